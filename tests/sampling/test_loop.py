"""sample() and run(): starts, hooks, conditions, and errors before any work is done."""

import pytest
import torch
from torch import nn

from oracles import F64, Mixture, log_snr_times, scalar
from trilemma.denoise import CFG, Denoiser, Gaussian, Preconditioned
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import log_snr_grid, uniform_grid
from trilemma.sampling import RULES, ProgressBar, Trajectory, ddim, ddpm, get_rule, run, sample, together
from trilemma.sampling.loop import check_grid

TS = uniform_grid(Flow(), 6)


class Counting(Denoiser):
    cond_keys = frozenset({"label"})

    def __init__(self, process=None):
        super().__init__()
        self.process, self.calls, self.seen = process or Flow(), 0, []

    def forward(self, x_t, t, label=None):
        self.calls += 1
        self.seen.append(float(t))
        shift = 0 if label is None else label[:, None]
        return Gaussian(0.5 * torch.tanh(x_t) + shift)


def test_starts_from_the_prior_of_the_first_time():
    """A 4000-item batch starts with standard deviation sigma(t_0): chi^2 within 4.9 deviations."""
    for process, first in ((EDM(), 1.0), (VP(), 0.5), (Flow(), 1.0)):
        starts = []

        class Watch(Denoiser):
            def __init__(self, process=process):
                super().__init__()
                self.process = process

            def forward(self, x_t, t, starts=starts):
                starts.append(x_t)
                return Gaussian(torch.zeros_like(x_t))

        sample(Watch(), (4000, 5), torch.tensor([first, 0.0]), ddim(0.0))
        z = starts[0].double() / float(process.sigma(scalar(first)))
        assert abs(float(z.square().mean()) - 1) < 4.9 * (2 / z.numel()) ** 0.5
        assert starts[0].dtype == torch.float32


def test_the_denoiser_is_asked_at_the_times_of_the_grid():
    model = Counting()
    sample(model, (2, 3), TS, ddpm)
    assert model.seen == pytest.approx(TS[:-1].tolist(), abs=0)
    assert model.calls == 6


def test_seeds_of_every_kind():
    model = Counting()
    go = lambda seeds, n=3: sample(model, (n, 2), TS, ddpm, seeds=seeds)
    assert torch.equal(go(5), go(5))
    assert torch.equal(go(5), go(5, 6)[:3])
    assert torch.equal(go(range(3)), go([0, 1, 2]))
    assert torch.equal(go(range(3)), go(torch.arange(3)))
    assert torch.equal(go(torch.Generator().manual_seed(1)), go(torch.Generator().manual_seed(1)))
    assert not torch.equal(go(5), go(6))
    assert torch.equal(go(0), sample(model, (3, 2), TS, ddpm))


def test_the_global_generator_is_left_alone():
    """Neither drawn from nor seeded, by any rule."""
    before = torch.get_rng_state()
    for name in RULES:
        sample(Counting(VP()), (2, 3), log_snr_times(VP(), -8.0, 3.0, 3), get_rule(name))
    assert torch.equal(torch.get_rng_state(), before)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, c_time):
        return self.weight * x


def test_nothing_of_the_graph_is_kept():
    out = sample(Preconditioned(Scale(), Flow(), "velocity"), (3, 2), TS, get_rule("heun"))
    assert not out.requires_grad
    assert out.grad_fn is None


def test_hooks_see_every_step_and_may_stop():
    model, seen = Counting(), []

    def hook(progress):
        seen.append((progress.i, progress.n, progress.t))
        assert progress.x.shape == progress.x0.shape == (2, 3)
        return progress.i == 4

    stopped = sample(model, (2, 3), TS, ddpm, seeds=1, hook=hook)
    assert [(i, n) for i, n, _ in seen] == [(k, 6) for k in range(1, 5)]
    assert [t for _, _, t in seen] == TS[1:5].tolist()
    assert model.calls == 4
    # the state at which it stopped is on the way of the whole run
    path = Trajectory()
    sample(Counting(), (2, 3), TS, ddpm, seeds=1, hook=path)
    assert torch.equal(path.x[3], stopped)


def test_a_hook_changes_nothing():
    for name in ("ddpm", "exponential_3", "heun", "churn"):
        ts = log_snr_grid(Flow(), 6)
        watched = sample(Counting(), (2, 3), ts, get_rule(name), hook=Trajectory())
        assert torch.equal(watched, sample(Counting(), (2, 3), ts, get_rule(name)))


def test_trajectories_keep_what_they_were_asked_for():
    path = Trajectory(every=4)
    out = sample(Counting(), (2, 3), TS, ddpm, hook=path)
    assert path.t == [float(TS[4]), 0.0]
    assert torch.equal(path.x[-1], out)
    assert torch.equal(path.x0[-1], out)  # the last step lands on the denoised state
    before = path.x[0].clone()
    sample(Counting(), (2, 3), TS, ddpm, seeds=9, hook=path)
    assert torch.equal(path.x[0], before)
    with pytest.raises(ValueError, match="every"):
        Trajectory(0)


def test_several_hooks_all_run_and_any_may_stop():
    path, model = Trajectory(), Counting()
    sample(model, (2, 3), TS, ddpm, hook=together(lambda p: p.i == 2, path))
    assert model.calls == len(path.x) == 2


def test_progress_bar_counts_to_the_end(capsys):
    with ProgressBar("digits") as bar:
        sample(Counting(), (2, 3), TS, ddpm, hook=bar)
    shown = capsys.readouterr().err
    assert "digits" in shown
    assert "/6" in shown
    sample(Counting(), (2, 3), TS, ddpm, hook=ProgressBar(disable=True))
    assert capsys.readouterr().err == ""
    bar = ProgressBar()
    for _ in range(2):  # the same one again
        sample(Counting(), (2, 3), TS, ddpm, hook=bar)
    bar.close()


def test_conditions_reach_the_denoiser():
    label = torch.tensor([0.0, 10.0])
    model = Counting()
    out = sample(model, (2, 3), TS, ddpm, cond={"label": label})
    assert float(out[0].abs().max()) < 1
    assert float(out[1].min()) > 9
    guided = sample(CFG(Counting(), 3.0), (2, 3), TS, ddim(0.0), cond={"label": label})
    assert float(guided[1].min()) > 29


def test_run_stops_between_steps_and_gives_each_its_own_noise():
    positions = []

    def step(denoise, x, i, carry, noise):
        positions.append(noise)
        return x + i, (carry or 0) + 1

    out = run(step, lambda x, t: Gaussian(x), torch.zeros(2, 1), 5, Noise(0, 2), lambda i, x: i == 3)
    assert out.tolist() == [[3.0], [3.0]]
    draws = [noise.normal((2, 1)) for noise in positions]
    assert len(draws) == 3
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[1], Noise(0, 2).at(1).normal((2, 1)))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"grid": torch.tensor([1.0, 0.5, 0.5, 0.0])}, r"time 1 is 0\.5 and time 2 is 0\.5"),
        ({"grid": torch.tensor([0.0, 1.0])}, "decrease"),
        ({"grid": torch.tensor([1.0])}, "at least one step"),
        ({"grid": torch.tensor([[1.0, 0.0]])}, "shape"),
        ({"grid": torch.tensor([1.5, 0.0])}, r"\[0, 1\]"),
        ({"grid": torch.tensor([1.0, -0.1])}, r"\[0, 1\]"),
        ({"grid": torch.tensor([1.0, float("nan"), 0.0])}, r"\[0, 1\]|finite"),
        ({"seeds": [1, 2, 3]}, "3 seeds were given for 2 items"),
        ({"x": torch.zeros(2, 4)}, r"\(2, 4\).*\(2, 3\)"),
        ({"x": torch.full((2, 3), float("nan"))}, "NaN"),
        ({"cond": {"lable": torch.zeros(2)}}, r"'lable'.*'label'"),
        ({"cond": {"label": torch.zeros(3)}}, "one entry for each of 2"),
        ({"cond": {"label": torch.tensor(1.0)}}, "one entry for each of 2"),
    ],
)
def test_mistakes_are_found_before_any_work(change, word):
    model = Counting()
    given = {"grid": TS, **change}
    with pytest.raises(ValueError, match=word):
        sample(model, (2, 3), given.pop("grid"), ddpm, **given)
    assert model.calls == 0


def test_grids_may_be_lists_of_any_precision():
    assert torch.equal(check_grid([1.0, 0.5, 0.0]), torch.tensor([1.0, 0.5, 0.0], dtype=F64))
    assert check_grid(torch.tensor([1, 0])).dtype == F64


def test_part_of_the_way_and_the_rest_is_the_whole():
    """For a rule without memory, from its state at the middle on; the positions of the noise start anew, so without noise."""
    model, ts = Mixture.example().torch(VP()), log_snr_times(VP(), -8.0, 4.0, 10)
    x = VP().prior((3, 2), Noise(0, 3), t=float(ts[0]), like=torch.zeros(1, dtype=F64))
    for name in ("ddim", "heun", "rk4"):
        whole = sample(model, (3, 2), ts, get_rule(name), x=x)
        half = sample(model, (3, 2), ts[:6], get_rule(name), x=x)
        torch.testing.assert_close(sample(model, (3, 2), ts[5:], get_rule(name), x=half), whole, rtol=1e-12, atol=1e-12)
