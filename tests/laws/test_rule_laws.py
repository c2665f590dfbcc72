"""Laws of every sampling rule: what it costs, where it ends, and that an item does not know its batch."""

import math

import pytest
import torch

from oracles import F64, FAST, Mixture, log_snr_times, registry
from trilemma.denoise import Denoiser, Gaussian
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, GRIDS, PROCESSES, VP, Flow
from trilemma.sampling import RULES, Plan, get_rule, sample
from trilemma.sampling.registry import RuleEntry

every = pytest.mark.parametrize("name", RULES)


class Bounded(Denoiser):
    """A cheap denoiser, elementwise and so the same in any batch, with answers in [-1, 1]."""

    def __init__(self, process):
        super().__init__()
        self.process, self.calls = process, 0

    def forward(self, x_t, t):
        self.calls += 1
        return Gaussian(torch.tanh(2 * x_t))


def refuses(name, process, ts):
    """Rules on eps cannot start where there is no signal, and say so."""
    return RULES[name].needs_signal and float(process.alpha(ts[0])) == 0


def leaps(process, ts):
    """Whether a step between the first and the last lowers the noise level more than fifty-fold."""
    return bool((process.log_snr(ts[1:-1]).diff() > 2 * math.log(50)).any())


FEW = {name: ((1, 2, 3, 10), make()) for name, make in PROCESSES.items()}
MANY = {f"{name}, 50 steps": ((50,), PROCESSES[name]()) for name in ("vp", "flow", "edm")}


@every
@pytest.mark.parametrize("case", registry("vp", "flow", "edm", cases=FEW | MANY))
def test_every_grid_ends_inside_the_range_of_the_data(name, case):
    """1, 2, 3, 10 and 50 steps of every grid: all states finite, the last one a denoised state.

    From 10 steps on, the others are of the size of the process; with fewer, or on a grid that leaps as ``leading`` may, explicit
    methods may well overshoot from sigma = 80 to 0.002 and back, and rules on eps, which is not bounded as D is, with more.
    """
    (steps, process), rule = case, get_rule(name)
    for grid, make in GRIDS.items():
        for n in steps:
            ts = make(process, n)
            if refuses(name, process, ts):
                with pytest.raises(ValueError, match="alpha = 0"):
                    sample(Bounded(process), (3, 2), ts, rule)
                continue
            states: list = []
            x = sample(
                Bounded(process),
                (3, 2),
                ts,
                rule,
                hook=lambda progress, states=states: states.append((progress.t, progress.x)),
            )
            where = f"{grid} of {n} steps"
            assert float(x.abs().max()) <= 1 + 1e-5, where
            assert all(bool(torch.isfinite(state).all()) for _, state in states), where
            # w = x/(alpha + sigma) starts within 4.5 or so, and is drawn to [-1, 1]; "large" leaves the noise of the last level
            sizes = ts[:-1] if name == "ancestral_large" else ts[1:]
            steady = n >= 10 and not RULES[name].needs_signal and not leaps(process, ts)
            for t, (_, state) in zip(sizes, states if steady else []):
                assert float(state.abs().max() / (process.alpha(t) + process.sigma(t))) < 8, (
                    f"{where}, at t = {float(t)}"
                )


@pytest.mark.parametrize("name", [name for name, entry in RULES.items() if not entry.beyond])
@pytest.mark.parametrize("process", registry(*FAST))
def test_the_last_step_lands_on_the_denoised_state(name, process):
    """At t = 0 the sample is E[x | x_t] of the call before it: no noise is left, none is added, nothing is extrapolated."""
    ts = torch.tensor([0.9, 0.5, 0.2, 0.1, 0.02, 0.0], dtype=F64)
    for dtype, tolerance in ((torch.float32, 1e-6), (F64, 1e-14)):
        x = process.prior((4, 3), Noise(1, 4), t=0.9, like=torch.empty(0, dtype=dtype))
        last = []
        out = sample(
            Bounded(process), (4, 3), ts, get_rule(name), x=x, hook=lambda progress, last=last: last.append(progress.x0)
        )
        assert out.dtype == dtype
        torch.testing.assert_close(out, last[-1], rtol=0, atol=tolerance)
        if isinstance(get_rule(name)(process, ts), Plan):
            assert torch.equal(out, last[-1])


@every
def test_calls_are_those_of_the_registry(name):
    ts = log_snr_times(VP(), -8.0, 3.0, 7)
    model = Bounded(VP())
    sample(model, (1, 1), ts, get_rule(name))
    assert model.calls == 7 * RULES[name].calls + RULES[name].extra
    model.calls = 0
    sample(model, (1, 1), torch.cat([ts[:-1], torch.zeros(1, dtype=F64)]), get_rule(name))
    assert model.calls == 6 * RULES[name].calls + 1 + RULES[name].extra  # one call for the step to 0, which is x = D


@every
@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=["vp", "flow", "edm"])
def test_an_item_does_not_know_its_batch(name, process):
    """Bit for bit: alone, in a batch, and in the batch in another order; from its own seed."""
    ts = log_snr_times(process, -7.0, 2.0, 6)
    model, rule, seeds = Bounded(process), get_rule(name), [3, 1, 4, -15, 9]
    batch = sample(model, (5, 3, 2), ts, rule, seeds=seeds)
    for i in (0, 3):
        assert torch.equal(sample(model, (1, 3, 2), ts, rule, seeds=seeds[i : i + 1])[0], batch[i])
    order = [4, 2, 0, 1, 3]
    assert torch.equal(sample(model, (5, 3, 2), ts, rule, seeds=[seeds[i] for i in order]), batch[order])
    assert len({tuple(item.flatten().tolist()) for item in batch}) == 5
    assert torch.equal(sample(model, (5, 3, 2), ts, rule, seeds=torch.tensor(seeds)), batch)


@every
def test_items_of_an_exact_model_agree_too(name):
    """The same with a model whose sums may be taken in another order in another batch."""
    model, ts = Mixture.example().torch(Flow()), log_snr_times(Flow(), -7.0, 2.0, 6)
    batch = sample(model, (5, 2), ts, get_rule(name), seeds=range(5))
    alone = sample(model, (1, 2), ts, get_rule(name), seeds=[3])
    torch.testing.assert_close(alone[0], batch[3], rtol=1e-5, atol=1e-5)


@every
def test_only_stochastic_rules_use_the_seed(name):
    """From one state, other seeds give other samples if and only if the rule says that it draws noise."""
    model, ts = Bounded(VP()), log_snr_times(VP(), -6.0, 2.0, 6)
    x = VP().prior((2, 3), Noise(0, 2), t=float(ts[0]))
    first, second = (sample(model, (2, 3), ts, get_rule(name), seeds=s, x=x) for s in (1, 2))
    assert torch.equal(first, second) == (not RULES[name].stochastic)


@every
def test_the_given_state_is_not_changed(name):
    """Nothing is mutated: not x, not the grid, and a bound step can be used twice."""
    process, ts = VP(), log_snr_times(VP(), -6.0, 2.0, 4)
    x = process.prior((2, 3), Noise(0, 2), t=float(ts[0]))
    before, grid = x.clone(), ts.clone()
    step = get_rule(name)(process, ts)
    outs = []
    for _ in range(2):
        y, carry = x, None
        for i in range(4):
            y, carry = step(Bounded(process), y, i, carry, Noise(0, 2).at(i))
        outs.append(y)
    assert torch.equal(x, before)
    assert torch.equal(ts, grid)
    assert torch.equal(*outs)


@every
def test_single_and_double_precision_agree(name):
    """The floor of float32: rounding of 20 steps, or five moves of Langevin's at each, relative to alpha + sigma."""
    floor = 1e-5 if name == "annealed_langevin" else 2e-6
    for process in (EDM(), VP(), Flow()):
        model, ts = Mixture.example().torch(process), log_snr_times(process, -8.0, 3.0, 20)
        x = process.prior((8, 2), Noise(0, 8), t=float(ts[0]))
        single = sample(model, (8, 2), ts, get_rule(name), x=x)
        double = sample(model, (8, 2), ts, get_rule(name), x=x.double())
        scale = float(process.alpha(ts[-1]) + process.sigma(ts[-1]))
        assert float((single.double() - double).abs().max()) / scale < floor


def test_the_registry_says_what_there_is():
    with pytest.raises(ValueError, match="'dpmpp_2m'"):
        get_rule("dpmp_2m")
    for entry in RULES.values():
        assert isinstance(entry, RuleEntry)
        assert entry.stochastic == (entry.order == 0)
