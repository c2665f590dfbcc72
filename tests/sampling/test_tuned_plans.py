"""Tuned plans: the fit against linear algebra, exactness where it can be exact, and honest figures."""

import numpy as np
import pytest
import torch

from oracles import F64, Mixture
from trilemma.denoise import Covariances, Denoiser, Gaussian, GaussianDenoiser
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import angular_grid
from trilemma.sampling import angular, sample
from trilemma.sampling.pilots import Candidate, Pilots, hard_pilots, robust_weights
from trilemma.sampling.refine import refine
from trilemma.sampling.start import begin
from trilemma.sampling.tune import tune


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_the_fit_is_least_squares():
    """Where all items fit alike, the robust weights are those of NumPy's least squares."""
    past = [normal(40, 5, seed=1), normal(40, 5, seed=2)]
    wanted = 0.7 * past[0] - 0.2 * past[1]
    table = np.stack([v.flatten().numpy() for v in past], 1)
    expected = np.linalg.lstsq(table, wanted.flatten().numpy(), rcond=None)[0]
    np.testing.assert_allclose(robust_weights(past, wanted), expected, rtol=1e-7)


def test_the_fit_does_not_follow_items_that_left_their_trajectory():
    past = [normal(60, 8, seed=3), normal(60, 8, seed=4)]
    wanted = 0.7 * past[0] - 0.2 * past[1] + 1e-3 * normal(60, 8, seed=5)
    wanted[:6] += 5.0 * past[0][:6]  # a tenth of the items
    np.testing.assert_allclose(robust_weights(past, wanted), [0.7, -0.2], atol=1e-3)


def test_two_deviations_are_solved_exactly_by_two_weights():
    """On N(0, diag(s)) every coordinate is scaled by the flow, so as many weights as deviations reproduce any step."""
    process = VP()
    variance = torch.tensor([[0.04, 0.04, 1.0, 1.0]], dtype=F64)
    model = GaussianDenoiser(process, torch.zeros(4), Covariances.diagonal(variance))
    pilots = Pilots(begin(model, (24, 4), 1.0, seeds=1, x=None, cond=None), 200, 64)
    ts = angular_grid(process, 6)
    plan = pilots.fitted(ts, 2, "").plan
    x = normal(5, 4, seed=6)
    exact = x * (variance / (process.alpha(ts[0]) ** 2 * variance + process.sigma(ts[0]) ** 2)).sqrt()
    out = sample(model, (5, 4), ts, plan.rule, x=x)
    plain = sample(model, (5, 4), ts, angular(), x=x)
    assert float((plain - exact).abs().max()) > 1e-3
    # the first step has one weight for both, so it leaves an error that the second takes back
    assert float((out - exact).abs().max()) < 1e-5


def crowd_of(model, n, seed=8):
    x = model.process.prior((n, 2), Noise(seed, n), like=torch.empty(0, dtype=F64))
    return begin(model, (n, 2), 1.0, seeds=0, x=x, cond=None)


def test_hard_pilots_stand_for_the_crowd():
    """Weighted sums over the chosen are sums over the crowd on average; cheap plans' disagreement makes an item likelier."""
    model, n = Mixture.example().torch(Flow()), 400
    crowd = crowd_of(model, n)
    ends = [
        sample(model, (n, 2), angular_grid(Flow(), steps), angular(order), x=crowd.x)
        for steps, order in ((9, 2), (10, 3))
    ]
    gap = (ends[0] - ends[1]).norm(dim=1)
    sums = []
    for k in range(16):
        start, share = hard_pilots(crowd, 100, n, (k + 0.5) / 16)
        item = torch.cdist(start.x, crowd.x).argmin(1)
        assert len(item.unique()) == 100 == len(share)
        torch.testing.assert_close(1 / share, 100 / n * (1 + gap / gap.mean())[item] / 2)
        sums.append([float((share * what).sum()) for what in (torch.ones(100, dtype=F64), start.x[:, 0].square())])
    # exact over all positions in [0, 1); 16 of them are that within a part in fifty
    np.testing.assert_allclose(np.mean(sums, 0), [n, float(crowd.x[:, 0].square().sum())], rtol=0.02)


def test_refining_finds_the_exact_numbers():
    """On N(0, diag(s)) of two deviations two weights a step are enough; planted errors in all of them are taken back."""
    process = VP()
    variance = torch.tensor([[0.04, 0.04, 1.0, 1.0]], dtype=F64)
    model = GaussianDenoiser(process, torch.zeros(4), Covariances.diagonal(variance))
    x = normal(60, 4, seed=6)
    pilots = Pilots(begin(model, (60, 4), 1.0, seeds=1, x=x, cond=None), 200, 64)
    rule, ts = angular(2, corrected=False), angular_grid(process, 5)
    weights = tuple(map(tuple, rule.weights(torch.atan2(process.sigma(ts), process.alpha(ts) * 0.5).tolist())))
    start = pilots.judge(Candidate("", rule(process, ts), weights=weights), 0, pilots.kept)
    before = pilots.calls
    made = refine(pilots, start, 60_000, "refined")
    assert 0 < pilots.calls - before <= 60_000
    exact = x * (variance / (process.alpha(ts[0]) ** 2 * variance + process.sigma(ts[0]) ** 2)).sqrt()
    out = sample(model, (60, 4), made.plan, x=x)
    assert float((sample(model, (60, 4), start.plan, x=x) - exact).abs().max()) > 1e-2
    assert float((out - exact).abs().max()) < 1e-5
    assert made.rmse == pytest.approx(
        float((out - pilots.end)[: pilots.kept].square().mean().sqrt()), rel=1e-3, abs=1e-12
    )
    assert refine(pilots, start, 500, "refined") is start


@pytest.mark.parametrize("process", [EDM(), Flow()], ids=["edm", "flow"])
def test_better_than_everything_published_and_as_good_as_it_says(process):
    """The figures are true on noise that tuning never saw, against a finer reference."""
    model = Mixture.example().torch(process)
    tuned = tune(model, (150, 2), 8, seeds=7, budget=80_000)
    assert tuned.best.error == min(row.error for row in tuned.rows) <= tuned.published.error
    assert tuned.plan.steps == 8
    x = process.prior((300, 2), Noise(99, 300), like=torch.empty(0, dtype=F64))
    true = sample(model, (300, 2), angular_grid(process, 400), angular(4), x=x)

    def error(plan):
        return float((sample(model, (300, 2), plan.ts, plan.rule, x=x) - true).square().mean(1).sqrt().mean())

    assert error(tuned.plan) < 0.25 * error(tuned.published.plan)
    assert error(tuned.plan) == pytest.approx(tuned.best.error, rel=0.6)
    assert error(tuned.published.plan) == pytest.approx(tuned.published.error, rel=0.6)
    again = tune(model, (150, 2), 8, seeds=7, budget=80_000)
    torch.testing.assert_close(again.plan.b, tuned.plan.b, rtol=1e-6, atol=1e-9)  # sums may be taken in another order
    assert again.calls == tuned.calls
    pilots = 150 * (150 + 8 * 19)  # reference and choice
    assert tuned.calls <= pilots + 80_000 + 100 * 8 + len(tuned.rows) * 50 * 8  # budget, one fit, judging


class Labelled(Denoiser):
    """Each class is a point of its own."""

    cond_keys = frozenset({"label"})

    def __init__(self):
        super().__init__()
        self.process, self.seen = Flow(), []

    def forward(self, x_t, t, label):
        self.seen.append(len(label))
        assert bool((x_t.sum(1).isfinite()).all())
        return Gaussian(torch.tanh(3 * x_t) * (1.0 + label[:, None]))


def test_conditions_stay_with_their_pilots():
    model = Labelled()
    tuned = tune(model, (30, 1), 4, cond={"label": torch.arange(30) % 3}, fine=50, budget=0, batch=16)
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    label = torch.arange(9) % 3
    out = sample(model, (9, 1), tuned.plan.ts, tuned.plan.rule, x=x, cond={"label": label})
    true = sample(model, (9, 1), angular_grid(Flow(), 300), angular(4), x=x, cond={"label": label})
    assert float((out - true).abs().mean()) < 3 * tuned.best.error + 1e-3
    assert max(model.seen) == 16 or max(model.seen) == 9
    assert tuned.calls <= sum(model.seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((24, 2), 1), "at least 2 steps, got 1"),
        (((4, 2), 5), "at least 6 pilots"),
        (((24, 2), 300), "fine=150 for 300 steps"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tune(Mixture.example().torch(Flow()), *arguments)
    with pytest.raises(ValueError, match="one entry for each of 12 items, got"):
        tune(Labelled(), (12, 1), 4, cond={"label": torch.zeros(3)})


def test_pilots_are_not_what_sample_starts_from():
    """Else whoever checks a plan with the same seed would check it on what it was fitted to."""
    model, starts = Mixture.example().torch(Flow()), []
    model.register_forward_pre_hook(lambda module, args: starts.append(args[0].clone()))
    tune(model, (12, 2), 3, seeds=4, fine=20, budget=0)
    pilots = starts[0]
    sample(model, (12, 2), 2, seeds=4, hook=lambda progress: True)
    assert not bool(torch.isclose(pilots[:, None], starts[-1]).all(-1).any())


def test_a_plan_is_a_grid_and_a_rule():
    model = Mixture.example().torch(Flow())
    plan = angular(3)(Flow(), angular_grid(Flow(), 6))
    expected = sample(model, (4, 2), plan.ts, angular(3))
    assert torch.equal(sample(model, (4, 2), plan), expected)
    assert torch.equal(sample(model, (4, 2), plan.ts, plan), expected)
    assert torch.equal(sample(model, (4, 2), plan.ts, plan.rule), expected)


@pytest.mark.parametrize("grid", [np.int64(6), 6])
def test_a_number_of_steps_may_be_of_numpy(grid):
    model = Mixture.example().torch(Flow())
    assert torch.equal(sample(model, (4, 2), grid), sample(model, (4, 2), angular_grid(Flow(), 6), angular()))
