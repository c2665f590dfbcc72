"""Grids fitted to a model: the dynamic programme by brute force, all three costs in closed form, and what the grids are for."""

import math
from itertools import combinations, pairwise

import pytest
import torch

from oracles import F64, PROCESS_CASES, Mixture, scalar
from trilemma.denoise import Covariances, Denoiser, Gaussian, GaussianDenoiser
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import angular_grid, karras_grid, log_snr_grid, uniform_grid
from trilemma.sampling import angular, ddim, sample
from trilemma.sampling.grids import (
    _klub,
    ays_grid,
    best_path,
    bound_costs,
    deviation_costs,
    gits_grid,
    klub_costs,
    watson_grid,
)
from trilemma.sampling.loop import check_grid

three = pytest.mark.parametrize("process", [Flow(), VP(), EDM()], ids=["flow", "vp", "edm"])
costly = pytest.mark.parametrize(
    "process",
    [
        pytest.param(Flow(), id="flow"),
        pytest.param(VP(), id="vp", marks=pytest.mark.slow),
        pytest.param(EDM(), id="edm", marks=pytest.mark.slow),
    ],
)
MEAN, VAR = torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.5, 0.04], dtype=F64)


def gaussian(process):
    return GaussianDenoiser(process, MEAN, Covariances.diagonal(VAR[None]))


def items_of(n, seed=0):
    return MEAN + VAR.sqrt() * Noise(seed, n).normal((n, 2), dtype=F64)


def snr(process, ts):
    return (process.alpha(ts) / process.sigma(ts)) ** 2


def errors(process, ts):
    """E |x - D_i|^2 = sum of v / (1 + v s)."""
    return (VAR / (1 + VAR * snr(process, ts)[:, None])).sum(1)


def levels(process, count=60, low=-8.0, high=6.0):
    ts = process.time(torch.linspace(low, high, count, dtype=F64))
    ts[0] = 1
    return ts


@pytest.mark.parametrize("discount", [1.0, 1.15, 0.5])
def test_the_best_path_is_that_of_brute_force(discount):
    rng = torch.Generator().manual_seed(0)
    for count in (2, 3, 5, 9):
        cost = torch.randn(count, count, generator=rng, dtype=F64).abs()
        cost[torch.rand(count, count, generator=rng) < 0.1] = math.inf
        for steps in range(1, count):
            ways = [(0, *inner, count - 1) for inner in combinations(range(1, count - 1), steps - 1)]
            totals = {
                way: sum(discount**k * float(cost[i, j]) for k, (i, j) in enumerate(pairwise(way))) for way in ways
            }
            if min(totals.values()) == math.inf:
                with pytest.raises(ValueError, match="no way"):
                    best_path(cost, steps, discount=discount)
            else:
                assert tuple(best_path(cost, steps, discount=discount).tolist()) == min(totals, key=totals.get)


def test_what_is_no_cost_or_number_of_steps_is_refused():
    with pytest.raises(ValueError, match=r"shape \(K, K\)"):
        best_path(torch.zeros(3, 4), 2)
    with pytest.raises(ValueError, match="NaN"):
        best_path(torch.full((3, 3), math.nan), 2)
    for steps in (0, 3):
        with pytest.raises(ValueError, match="take 1 to 2"):
            best_path(torch.zeros(3, 3), steps)
    with pytest.raises(ValueError, match="discount"):
        best_path(torch.zeros(3, 3), 2, discount=-1.0)
    with pytest.raises(ValueError, match="t = 0"):
        bound_costs(gaussian(VP()), items_of(4), torch.tensor([1.0, 0.5, 0.0]))
    with pytest.raises(ValueError, match="decrease"):
        klub_costs(gaussian(VP()), items_of(4), torch.tensor([0.5, 1.0]))
    for steps in (0, 9):
        for fit in (
            lambda n: gits_grid(gaussian(VP()), (4, 2), n, fine=8),
            lambda n: ays_grid(gaussian(VP()), items_of(4), n, fine=8),
            lambda n: watson_grid(gaussian(VP()), items_of(4), n, fine=8),
        ):
            with pytest.raises(ValueError, match=f"at most fine=8 .* got {steps}"):
                fit(steps)
    with pytest.raises(ValueError, match="sigma_min must lie between 0 and 5, got 7"):
        ays_grid(gaussian(EDM(5.0)), items_of(4), 3, sigma_min=7.0)
    with pytest.raises(ValueError, match="no conditions"):
        gits_grid(gaussian(VP()), (4, 2), 3, cond={"label": torch.zeros(4)})


@three
def test_deviations_of_gaussian_data_are_those_of_algebra(process):
    """Data N(0, v): the flow multiplies x by S_j / S_i, S^2 = alpha^2 v + sigma^2, a step of DDIM by a + b alpha v / S^2."""
    v, d, n = 0.6, 0.5, 32  # the library takes d = 0.5 where the denoiser does not say
    model = GaussianDenoiser(process, torch.zeros(1), Covariances.diagonal(torch.tensor([[v]])))
    ts = angular_grid(process, 60)
    cost = deviation_costs(model, (n, 1), ts, seeds=7, batch=10)
    alpha, sigma = process.alpha(ts).tolist(), process.sigma(ts).tolist()
    spread = [math.sqrt(a * a * v + s * s) for a, s in zip(alpha, sigma)]
    size = float(Noise(7, n).normal((n, 1)).abs().mean()) * sigma[0] / spread[0]
    for i, j in [(0, 1), (0, 30), (0, 60), (10, 20), (20, 60), (30, 33), (50, 60), (59, 60)]:
        a = sigma[j] / sigma[i]
        step = a + (alpha[j] - alpha[i] * a) * alpha[i] * v / spread[i] ** 2
        away = abs(step * spread[i] - spread[j]) * size / math.hypot(alpha[j] * d, sigma[j])
        assert float(cost[i, j]) == pytest.approx(away, rel=2e-3, abs=4e-5)
    assert not cost.tril().any()


@three
def test_costs_of_the_bound_are_those_of_algebra(process):
    """2 sum v_c^2 / (1 + v_c s)^2 is the variance of an item's error; five standard errors fail once in 10^6."""
    ts, n = levels(process), 4000
    cost = bound_costs(gaussian(process), items_of(n), ts, seeds=3, batch=999)
    s = snr(process, ts)
    exact = ((s - s[:, None]) / 2 * errors(process, ts)[:, None]).triu(1)
    noise = (2 * (VAR / (1 + VAR * s[:, None])).square().sum(1) / n).sqrt() / errors(process, ts)
    upper = torch.ones_like(cost).triu(1).bool()
    assert bool(((cost / exact - 1).abs() < 5 * noise[:, None])[upper].all())
    assert not cost.tril().any()


def klub_exactly(process, ts):
    """(s_j - s_i) E |x - D_i|^2 / 2 less the integral of E |x - D|^2 / 2, log(1 + v s) / 2 a coordinate."""
    s = snr(process, ts)
    until = torch.log1p(VAR * s[:, None]).sum(1) / 2
    return ((s - s[:, None]) / 2 * errors(process, ts)[:, None] - (until - until[:, None])).triu(1)


@three
def test_klub_is_that_of_algebra(process):
    """Neighbours in the levels differ little, so only steps over more than one are compared relatively; noise about 2 %."""
    ts = levels(process)
    cost, exact = klub_costs(gaussian(process), items_of(4000), ts, seeds=3, batch=1000), klub_exactly(process, ts)
    far = torch.ones_like(cost).triu(3).bool()
    assert float((cost / exact - 1).abs()[far].max()) < 0.15
    assert float((cost / exact - 1)[far].abs().mean()) < 0.03
    assert not cost.tril().any()


def test_the_integral_of_klub_is_of_second_order_and_exact_for_one_gaussian():
    """Exact errors in: E <D_i - x, D_j - x> is the error at the less noisy of the two."""

    def off(count, sigma_data):
        process, ts = Flow(), levels(Flow(), count)
        e = errors(process, ts)
        got = _klub(torch.minimum(e, e[:, None]), snr(process, ts), sigma_data)
        exact = klub_exactly(process, ts)
        return float((got[0, -1] / exact[0, -1] - 1).abs())

    coarse, fine = off(30, 1.0), off(60, 1.0)
    assert coarse < 0.02
    assert coarse / fine == pytest.approx((59 / 29) ** 2, rel=0.1)
    ts, v = levels(VP()), 0.49
    e, s = v / (1 + v * snr(VP(), ts)), snr(VP(), ts)
    exact = (s - s[:, None]) / 2 * e[:, None] - (torch.log1p(v * s) - torch.log1p(v * s)[:, None]) / 2
    torch.testing.assert_close(_klub(torch.minimum(e, e[:, None]), s, 0.7), exact.triu(1), rtol=1e-6, atol=1e-9)


@three
def test_the_bound_bounds_and_is_tight_in_many_steps(process):
    """-log p(x) of a mixture, from its density, against prior + steps + decoder; the standard error is about 0.1 nats of 5."""
    model, end = Mixture.example().torch(process), 0.05
    x, _ = model.draw(Noise(0, 2000))
    ts = log_snr_grid(process, 200, high=-2 * math.log(end))[:-1]
    s = snr(process, ts)
    cost = bound_costs(model, x, ts, seeds=1, batch=2000)
    prior = float(s[0]) / 2 * float(x.square().sum(1).mean())
    decoder = math.log(2 * math.pi * end**2) + 1  # two coordinates, N(x_end / alpha, end^2)
    truth = -float(model.log_prob(x).mean())

    def bound(path):
        return prior + decoder + float(cost[path[:-1], path[1:]].sum())

    assert truth - 0.2 < bound(torch.arange(200)) < truth + 0.4
    assert bound(torch.tensor([*range(0, 199, 30), 199])) > truth + 2


@costly
def test_klub_is_the_bound_less_what_no_grid_can_save(process):
    """So their difference, half the integral of E |x - D|^2 ds, adds up along any way; 8000 items leave 2 % of noise."""
    model = Mixture.example().torch(process)
    x, _ = model.draw(Noise(0, 8000))
    ts = levels(process, 90)
    bound, klub = (costs(model, x, ts, seeds=1, batch=2000) for costs in (bound_costs, klub_costs))
    rest = bound - klub
    for i, j, k in [(40, 50, 60), (45, 55, 65), (50, 60, 70), (70, 80, 89)]:
        assert float(rest[i, j] + rest[j, k]) == pytest.approx(float(rest[i, k]), rel=0.06)
        assert float(klub[i, k] - klub[i, j] - klub[j, k]) > 0.2 * float(rest[i, k])  # what has to cancel


def along(cost, ts, grid):
    """The sum of the costs over the steps of a grid whose times are among ``ts``."""
    place = torch.tensor([int((ts - t).abs().argmin()) for t in grid])
    torch.testing.assert_close(ts[place], grid, rtol=0, atol=1e-12)
    return float(cost[place[:-1], place[1:]].sum())


def merged(*grids):
    return torch.cat(grids).unique().flip(0)


@costly
@pytest.mark.parametrize("steps", [10, pytest.param(5, marks=pytest.mark.slow)])
def test_fitted_grids_have_less_of_their_objective_than_others_on_items_not_fitted_to(process, steps):
    model = Mixture.example().torch(process)
    x, _ = model.draw(Noise(0, 1024))
    fresh, _ = model.draw(Noise(1, 1024))
    end = process.time(scalar(-2 * math.log(0.02)))[None]
    others = [
        uniform_grid(process, steps),
        karras_grid(process, steps, sigma_min=0.06),
        log_snr_grid(process, steps, low=-5.0, high=-2 * math.log(0.06)),
    ]
    for fit, costs in ((watson_grid, bound_costs), (ays_grid, klub_costs)):
        ended = [torch.cat([ts[:-1], end]) for ts in (fit(model, x, steps, batch=1024), *others)]
        ts = merged(*ended, levels(process, 60, high=7.0))
        mine, *theirs = (along(costs(model, fresh, ts, seeds=5, batch=1024), ts, grid) for grid in ended)
        assert mine < min(theirs)
    grids = [gits_grid(model, (128, 2), steps, batch=128), *others]
    ts = merged(*grids, angular_grid(process, 60))
    mine, *theirs = (along(deviation_costs(model, (128, 2), ts, seeds=5, batch=128), ts, grid) for grid in grids)
    assert mine < min(theirs)


@three
@pytest.mark.parametrize("steps", [8, 10])
def test_ddim_on_its_trajectories_is_nearer_to_the_truth(process, steps):
    """Mean error of the ends against a fine solution, trajectories other than those fitted to."""
    model = Mixture.example().torch(process)
    x = process.prior((400, 2), Noise(5, 400), like=torch.empty(0, dtype=F64))
    truth = sample(model, (400, 2), angular_grid(process, 300), angular(4), x=x)

    def error(ts):
        return float((sample(model, (400, 2), ts, ddim(), x=x) - truth).square().mean(1).sqrt().mean())

    fitted = error(gits_grid(model, (128, 2), steps, batch=128))
    assert fitted < error(uniform_grid(process, steps))
    assert fitted < 0.9 * error(angular_grid(process, steps))
    for make in (karras_grid, log_snr_grid):
        assert fitted < 0.5 * error(make(process, steps))


@pytest.mark.parametrize("process", [pytest.param(p, id=name) for name, p in PROCESS_CASES.items()])
def test_fitted_grids_are_grids_on_every_process(process):
    model, x = gaussian(process), items_of(16).float()
    for steps in (1, 2, 7, 12):
        for ts in (
            gits_grid(model, (8, 2), steps, fine=12),
            watson_grid(model, x, steps, fine=12),
            ays_grid(model, x, steps, fine=12),
        ):
            assert torch.equal(check_grid(ts), ts)
            assert ts.dtype == F64
            assert len(ts) == steps + 1
            assert ts[0] == 1
            assert ts[-1] == 0


def test_discount_moves_steps_to_the_end_where_they_count_for_more():
    model = Mixture.example().torch(VP())
    plain, published = (gits_grid(model, (64, 2), 8, discount=q) for q in (1.0, 1.15))
    assert bool((published[1:-1] < plain[1:-1]).all())


class Labelled(Denoiser):
    """The exact denoiser of N(label, 0.25)."""

    cond_keys = frozenset({"label"})

    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x_t, t, **cond):
        a, s2, m = float(self.process.alpha(t)), float(self.process.sigma(t)) ** 2, cond["label"][:, None]
        return Gaussian(m + a * 0.25 / (a * a * 0.25 + s2) * (x_t - a * m))


def test_items_keep_their_conditions_and_do_not_know_their_batch():
    model, label = Labelled(VP()), torch.arange(10, dtype=F64)
    x = label[:, None] + 0.5 * Noise(0, 10).normal((10, 1), dtype=F64)
    ts = levels(VP(), 10)
    for costs in (bound_costs, klub_costs):
        one, all_ = (costs(model, x, ts, cond={"label": label}, batch=batch) for batch in (3, 64))
        torch.testing.assert_close(one, all_)
    grid = angular_grid(VP(), 10)
    one, all_ = (deviation_costs(model, (10, 1), grid, cond={"label": label}, batch=batch) for batch in (3, 64))
    torch.testing.assert_close(one, all_, rtol=1e-4, atol=1e-6)
    # the errors do not depend on the label, as they would if an item had another's
    shifted = bound_costs(model, x - label[:, None], ts, cond={"label": torch.zeros(10, dtype=F64)}, batch=3)
    torch.testing.assert_close(bound_costs(model, x, ts, cond={"label": label}, batch=3), shifted)
    with pytest.raises(ValueError, match="10 items, got 4"):
        bound_costs(model, x, ts, cond={"label": label[:4]})
