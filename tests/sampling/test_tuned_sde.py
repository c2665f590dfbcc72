"""Stochastic plans chosen by the law of their samples: the distance against closed forms, planted faults, and what is chosen."""

import math
from dataclasses import replace

import pytest
import torch

from oracles import F64
from trilemma.denoise import Covariances, Denoiser, FiniteDenoiser, Gaussian, MixtureDenoiser
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import log_snr_grid
from trilemma.sampling import Plan, sa_solver, sample
from trilemma.sampling.sa import Constant
from trilemma.sampling.start import begin
from trilemma.sampling.tune import published_plans
from trilemma.sampling.tune_sde import Row, _Laws, energy_distance, tune_sde

WIDTH = 0.2


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def corners(process):
    """Four modes in the plane."""
    means = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    return MixtureDenoiser(process, means, Covariances.diagonal(torch.full((4, 2), WIDTH**2)))


def inside(x):
    """Variance within the modes over the true one."""
    return float((x - x.sign()).square().mean()) / WIDTH**2


def test_the_distance_is_the_mean_over_pairs():
    x, y = normal(6, 3, seed=1), normal(6, 3, seed=2)
    total = 0.0
    for i in range(6):
        for j in range(6):
            if i != j:
                total += (x[i] - y[j]).norm() + (x[j] - y[i]).norm() - (x[i] - x[j]).norm() - (y[i] - y[j]).norm()
    assert energy_distance(x.reshape(6, 3, 1), y.reshape(6, 3, 1))[0] == pytest.approx(float(total) / 30, rel=1e-12)


def expected_gap(mean, std):
    """E|z| of z ~ N(mean, std^2)."""
    return std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * std**2)) + mean * math.erf(
        mean / (std * math.sqrt(2))
    )


def test_the_distance_of_gaussians_has_no_bias_and_its_error_is_told():
    """N(0, 1) and N(0.7, 4): the mean of 400 estimates from 40 items within 4.5 standard errors; a false alarm in 100,000."""
    exact = 2 * expected_gap(0.7, math.sqrt(5)) - expected_gap(0.0, math.sqrt(2)) - expected_gap(0.0, math.sqrt(8))
    x, y = normal(400, 40, 1, seed=3), 0.7 + 2 * normal(400, 40, 1, seed=4)
    found = torch.tensor([energy_distance(a, b) for a, b in zip(x, y)], dtype=F64)
    spread = float(found[:, 0].std())
    assert abs(float(found[:, 0].mean()) - exact) < 4.5 * spread / 20
    assert 0.9 < float(found[:, 1].mean()) / spread < 1.2


def test_items_of_the_two_laws_may_depend_on_each_other():
    x = normal(200, 2, seed=5)
    assert abs(energy_distance(x, x + 1e-9)[0]) < 1e-8
    assert energy_distance(x, x.flip(0))[0] == pytest.approx(0.0, abs=0.05)


def laws_of(model, n, batch=64):
    x = model.process.prior((n, 2), Noise(7, n), like=torch.empty(0))
    return _Laws(begin(model, (n, 2), 1.0, seeds=0, x=x, cond=None), Noise(8, n), batch, None, 40)


@pytest.mark.parametrize("noise", [0.6, 1.5])
def test_too_little_and_too_much_noise_are_seen(noise):
    """The spread is the variance within the modes, and a plan whose noise is wrong comes after one whose noise is right."""
    laws, process = laws_of(corners(VP()), 1000, batch=1000), VP()
    plan = sa_solver(2, 2, clock=Constant(0.5))(process, log_snr_grid(process, 20, low=-4.0, high=9.0))
    wrong = replace(plan, c=plan.c * noise)
    rows = []
    for some in (plan, wrong):
        ends = laws.run(some, 0, 1000)
        rows.append(laws.judged(Row("", some), ends, 0))
        assert rows[-1].spread == pytest.approx(inside(ends.x) / inside(laws.truth), rel=0.05)
    assert rows[0].excess == 0 < rows[1].excess
    assert rows[0].rank < rows[1].rank
    assert rows[0].distance < 3 * rows[0].stderr


def test_every_pilot_has_its_own_noise_whatever_the_batch():
    plan = sa_solver(2, 2)(VP(), log_snr_grid(VP(), 5))
    one, many = laws_of(corners(VP()), 20, batch=3), laws_of(corners(VP()), 20, batch=64)
    torch.testing.assert_close(one.ends(plan, 7, 20), many.ends(plan, 0, 20)[7:])


@pytest.mark.parametrize("process", [VP(), Flow()], ids=lambda p: type(p).__name__)
def test_what_is_chosen_has_the_law(process):
    """On fresh noise: shares of the modes within 4.5 standard errors of a quarter, spread near one."""
    model = corners(process)
    tuned = tune_sde(model, (240, 2), 10, seeds=1, batch=240)
    assert tuned.plan.c.any()
    assert tuned.best in tuned.rows
    assert tuned.published in tuned.rows
    assert any(not row.plan.c.any() for row in tuned.rows)
    x = sample(model, (3000, 2), tuned.plan, seeds=99)
    share = torch.bincount((x > 0).long() @ torch.tensor([2, 1])) / 3000
    assert float((share - 0.25).abs().max()) < 4.5 * math.sqrt(0.25 * 0.75 / 3000)
    assert 0.75 < inside(x) < 1.25


def test_the_law_of_given_items_is_found():
    """Items of twice the spread inside the modes: plans that are too noisy come first."""
    model = corners(VP())
    wide = 0.3 * normal(240, 2, seed=9) + normal(240, 2, seed=10).sign()
    tuned = tune_sde(model, (240, 2), 5, seeds=2, batch=240, reference=wide.float())
    own = tune_sde(model, (240, 2), 5, seeds=2, batch=240)
    assert (
        inside(sample(model, (3000, 2), tuned.plan, seeds=5))
        > inside(sample(model, (3000, 2), own.plan, seeds=5)) + 0.3
    )


class Label(Denoiser):
    """The denoised state is the label."""

    cond_keys = frozenset({"label"})

    def __init__(self):
        super().__init__()
        self.process = VP()

    def forward(self, x, t, *, label):
        return Gaussian(label[:, None].to(x).expand_as(x).clone())


def test_each_pilot_has_its_condition():
    label = torch.arange(48) % 3
    tuned = tune_sde(Label(), (48, 1), 2, cond={"label": label}, batch=5, reference=label[:, None].float())
    assert tuned.best.distance == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda p: type(p).__name__)
def test_what_is_chosen_draws_noise(process):
    """In two steps some published rules draw none, and points have no spread that could be wrong."""
    points = FiniteDenoiser(process, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    tuned = tune_sde(points, (48, 2), 2)
    assert tuned.plan.c.any()
    assert tuned.published.plan.c.any()
    assert tuned.best.excess == 0


def test_calls_are_counted():
    class Counting(Label):
        items = 0

        def forward(self, x, t, *, label):
            Counting.items += len(x)
            return super().forward(x, t, label=label)

    tuned = tune_sde(Counting(), (48, 1), 3, cond={"label": torch.arange(48) % 3})
    assert tuned.calls == Counting.items


def test_plans_that_differ_in_their_noise_alone_are_two():
    names = dict(published_plans(VP(), 6, stochastic=True))
    small, large = names["ddpm on uniform"], names["ancestral_large on uniform"]
    assert torch.equal(small.b, large.b)
    assert not torch.equal(small.c, large.c)
    assert not set(names) & set(dict(published_plans(VP(), 6)))


def test_wrong_input_is_named():
    model = corners(VP())
    for shape, steps, more, why in (
        ((96, 2), 1, {}, "at least 2 steps, got 1"),
        ((20, 2), 5, {}, r"at least 48 pilots to tell laws apart, got shape \(20, 2\)"),
        ((), 5, {}, r"at least 48 pilots to tell laws apart, got shape \(\)"),
        ((96, 2), 5, {"batch": 0}, "batch=0 must be at least 1"),
        ((96, 2), 20, {"fine": 15}, "got fine=15 for 20 steps"),
        ((96, 2), 5, {"reference": torch.zeros(95, 2)}, r"items of shape \(96, 2\), got \(95, 2\)"),
        ((96, 2), 5, {"reference": torch.full((96, 2), torch.nan)}, "must be finite"),
    ):
        with pytest.raises(ValueError, match=why):
            tune_sde(model, shape, steps, **more)
    with pytest.raises(ValueError, match="as many items each"):
        energy_distance(torch.zeros(4, 2), torch.zeros(5, 2))


def test_the_plan_is_a_plan():
    tuned = tune_sde(corners(Flow()), (96, 2), 4)
    assert Plan.from_json(tuned.plan.to_json()) == tuned.plan
    assert "energy distance" in str(tuned)
    assert len(str(tuned).splitlines()) == len(tuned.rows) + 2
