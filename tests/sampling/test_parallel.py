"""Parallel in time against one step after another: the same numbers with tolerance 0, fewer calls in a row with more."""

import pytest
import torch

from oracles import F64, Mixture, log_snr_times
from trilemma.denoise import Denoiser, Gaussian
from trilemma.numerics.noise import Noise
from trilemma.process import VP, Flow
from trilemma.process.grid import log_snr_grid, uniform_grid
from trilemma.sampling import RULES, Plan, ddim, ddpm, get_rule, sample
from trilemma.sampling.parallel import parallel

PLANS = [name for name in RULES if isinstance(get_rule(name)(VP(), log_snr_times(VP(), -6.0, 3.0, 8)), Plan)]


class Labelled(Denoiser):
    """Elementwise and bent, with a condition; counts calls and rows."""

    cond_keys = frozenset({"label"})

    def __init__(self, process):
        super().__init__()
        self.process, self.calls, self.rows = process, 0, 0

    def forward(self, x_t, t, *, label=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        alpha = self.process.alpha(t.double()).to(x_t)
        alpha = alpha[:, None] if alpha.ndim else alpha
        return Gaussian(torch.tanh(3 * alpha * x_t) + (0 if label is None else label[:, None]))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("window", [1, 3, 12])
def test_tolerance_zero_is_step_by_step(name, window):
    """Every plan of the registry, with noise or without, to t = 0; after at most as many sweeps as there are steps."""
    model, ts = Labelled(VP()), log_snr_times(VP(), -6.0, 3.0, 12)
    ts[-1] = 0.0
    label = torch.tensor([0.0, 1.0, -2.0], dtype=F64)
    x = VP().prior((3, 2), Noise(0, 3), t=float(ts[0]), like=torch.empty(0, dtype=F64))
    expected = sample(model, (3, 2), ts, get_rule(name), x=x, seeds=[5, 6, 7], cond={"label": label})
    model.calls = model.rows = 0
    done = parallel(
        model, (3, 2), ts, get_rule(name), window=window, tolerance=0.0, x=x, seeds=[5, 6, 7], cond={"label": label}
    )
    torch.testing.assert_close(done.x, expected, rtol=1e-11, atol=1e-11)
    assert done.sweeps == model.calls <= 12
    assert int(done.evaluations.sum()) == model.rows
    if window == 1:
        assert done.sweeps == 12
        assert done.evaluations.tolist() == [12] * 3


@pytest.mark.parametrize("window", [4, 10])
def test_every_sweep_settles_one_state(window):
    """A denoiser that depends on its input in an unforeseeable way needs all sweeps, one that does not depend on it needs two."""

    class Wild(Labelled):
        def forward(self, x_t, t, **cond):
            return Gaussian(torch.sin(1e6 * x_t + t.to(x_t).reshape(-1, 1)))

    class Tame(Labelled):
        def forward(self, x_t, t, **cond):
            return Gaussian(torch.full_like(x_t, 0.3))

    ts = log_snr_times(VP(), -5.0, 2.0, 10)
    assert parallel(Wild(VP()), (2, 1), ts, ddim(), window=window, tolerance=0.0).sweeps == 10
    assert parallel(Tame(VP()), (2, 1), ts, ddim(), window=window, tolerance=1e-12).sweeps <= 2 + 10 // window


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(ddim(), id="ddim"),
        pytest.param(ddpm, id="ddpm", marks=pytest.mark.slow),
        pytest.param(get_rule("dpmpp_2m"), id="dpmpp_2m", marks=pytest.mark.slow),
    ],
)
def test_fewer_calls_in_a_row(rule):
    """A hundred steps in less than half as many sweeps, with an error of the order of the tolerance."""
    process = Flow()
    model, ts = Mixture.example().torch(process), log_snr_grid(process, 100)
    x = process.prior((16, 2), Noise(2, 16), like=torch.empty(0, dtype=F64))
    expected = sample(model, (16, 2), ts, rule, x=x)
    sweeps, errors = [], []
    for tolerance in (1e-2, 1e-4):
        done = parallel(model, (16, 2), ts, rule, window=100, tolerance=tolerance, x=x)
        sweeps.append(done.sweeps)
        errors.append(float((done.x - expected).square().mean().sqrt()))
        assert errors[-1] < 10 * tolerance
    assert sweeps[0] < 35
    assert sweeps[0] < sweeps[1] < 70
    assert errors[1] < errors[0] / 10


def test_an_item_does_not_know_its_batch():
    """Windows move item by item, so the result is the same bit for bit, within the tolerance too."""
    model, ts = Labelled(VP()), uniform_grid(VP(), 30)
    whole = parallel(model, (4, 3), ts, ddim(), window=8, tolerance=0.02, seeds=range(4))
    alone = [parallel(model, (1, 3), ts, ddim(), window=8, tolerance=0.02, seeds=[i]) for i in range(4)]
    assert torch.equal(torch.cat([one.x for one in alone]), whole.x)
    assert torch.cat([one.evaluations for one in alone]).tolist() == whole.evaluations.tolist()
    assert whole.sweeps == max(one.sweeps for one in alone) < 30


@pytest.mark.parametrize(
    ("word", "bad"),
    [
        ("window", {"window": 0}),
        ("tolerance", {"tolerance": -1.0}),
        ("Plan", {"rule": get_rule("heun")}),
        ("shape", {"x": torch.zeros(1, 2)}),
    ],
)
def test_bad_input_is_refused(word, bad):
    with pytest.raises(ValueError, match=word):
        parallel(Labelled(VP()), (2, 2), uniform_grid(VP(), 4), bad.pop("rule", ddim()), **bad)
