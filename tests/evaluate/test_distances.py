"""Distances against closed forms and dense formulas that share no code with them."""

import math

import numpy as np
import pytest
import torch

from trilemma.evaluate import (
    ClassSums,
    Moments,
    clip_distance,
    frechet_distance,
    frechet_estimates,
    inception_score,
    inception_score_splits,
    kernel_distance,
    kernel_distance_subsets,
    sliced_wasserstein,
    vendi_score,
)
from trilemma.evaluate.kernel import cubic, energy, gaussian, median_bandwidth
from trilemma.evaluate.vendi import _below, _influence_variance, _score


def normal(n, d, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def dense_mmd(x, y, kernel, biased=False):
    """With loops over pairs, in numpy."""
    x, y = x.numpy(), y.numpy()

    def mean(a, b, same):
        values = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if biased or not (same and i == j)]
        return np.mean(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (cubic, lambda p, q: (p @ q / len(p) + 1) ** 3),
        (gaussian(1.5), lambda p, q: math.exp(-np.sum((p - q) ** 2) / 4.5)),
        (energy, lambda p, q: -np.linalg.norm(p - q)),
    ],
)
def test_kernel_distances_are_their_definition(ours, theirs):
    x, y = normal(13, 3, 0), normal(9, 3, 1, 1.3, 0.4) + 5
    assert kernel_distance(x + 5, y, ours).value == pytest.approx(dense_mmd(x + 5, y, theirs), rel=1e-9)


def test_clip_distance_is_biased_on_unit_vectors_as_published():
    x, y = normal(13, 3, 0), normal(9, 3, 1, 1.3, 0.4)
    unit = [z / z.norm(dim=1, keepdim=True) for z in (x, y)]
    exact = 1000 * dense_mmd(*unit, lambda p, q: math.exp(-np.sum((p - q) ** 2) / 200), biased=True)
    assert clip_distance(x, y).value == pytest.approx(exact, rel=1e-9)


def test_gaussian_kernel_of_gaussians_in_closed_form():
    """N(0, I) and N(s, t^2 I) in D dimensions; a fault of 4 standard errors is a false alarm once in 16000 times."""
    d, s, t, h = 4, 0.5, 1.4, 1.5

    def expected(variance, squared):
        return (h * h / (h * h + variance)) ** (d / 2) * math.exp(-squared / 2 / (h * h + variance))

    exact = expected(2, 0) + expected(2 * t * t, 0) - 2 * expected(1 + t * t, d * s * s)
    found = kernel_distance(normal(4000, d, 0, t, s), normal(3000, d, 1), gaussian(h))
    error = (found.high - found.low) / 2 / 1.96
    assert abs(found.value - exact) < 4 * error < 0.2 * exact


def test_parts_of_large_sets_are_averaged_and_blocks_change_nothing():
    x, y = normal(3000, 2, 0), normal(2500, 2, 1, 1.0, 0.3)
    whole, parts = kernel_distance(x, y), kernel_distance(x, y, size=500)
    assert parts.value == pytest.approx(whole.value, abs=3 * (parts.high - parts.low))
    assert (whole.high - whole.low) < (parts.high - parts.low) < 2 * (whole.high - whole.low)
    again = kernel_distance(x[torch.randperm(3000, generator=torch.Generator().manual_seed(0))], y)
    assert again.value == pytest.approx(whole.value, rel=1e-10)
    mean, deviation = kernel_distance_subsets(x, y, subsets=1, size=2500, seed=4)
    assert deviation == 0
    assert mean == pytest.approx(whole.value, rel=0.3)
    with pytest.raises(ValueError, match="smaller size"):
        kernel_distance_subsets(x, y, size=2501)
    with pytest.raises(ValueError, match="larger size"):
        kernel_distance(x, y[:20], size=300)


def test_near_copies_far_from_zero_keep_their_distance():
    x = normal(50, 4, 0) + 1e4
    shifted = kernel_distance(x + torch.tensor([1e-3, 0, 0, 0], dtype=torch.float64), x, gaussian(1.0))
    near = kernel_distance(normal(50, 4, 0) + torch.tensor([1e-3, 0, 0, 0]), normal(50, 4, 0), gaussian(1.0))
    assert shifted.value == pytest.approx(near.value, rel=1e-6)
    assert median_bandwidth(x) == pytest.approx(median_bandwidth(normal(50, 4, 0)), rel=1e-9)


def test_the_bias_of_the_frechet_distance_is_what_theory_says_and_is_removed():
    """Equal N(0, I_D): E d^2 = D (1/n + 1/m) for the means, and to first order D (D + 1) (1/n + 1/m)/4 for covariances.

    Ten repetitions; its sd is about 0.07, so that 0.11 on a mean of ten is five standard errors.
    """
    d, n, m = 10, 600, 900
    exact = (d + d * (d + 1) / 4) * (1 / n + 1 / m)
    found = [frechet_estimates(normal(n, d, 2 * r), normal(m, d, 2 * r + 1), seed=r) for r in range(10)]
    fid, infinity = (torch.tensor([pair[i].value for pair in found]) for i in (0, 1))
    assert float(fid.mean()) == pytest.approx(exact, rel=0.1)
    assert abs(float(infinity.mean())) < 0.1 * exact
    assert all(pair[0].value == frechet_distance(*moments(r, n, m, d)) for r, pair in enumerate(found[:2]))


def moments(r, n, m, d):
    return Moments.of(normal(n, d, 2 * r)), Moments.of(normal(m, d, 2 * r + 1))


def test_influences_of_the_frechet_distance_are_its_derivative():
    """The interval without second order is the delete-one jackknife's."""
    x, y = normal(300, 3, 0, 1.5, 1.0), normal(200, 3, 1)
    fid, _ = frechet_estimates(x, y)
    whole = Moments.of(y)
    without = torch.tensor([frechet_distance(Moments.of(torch.cat([x[:i], x[i + 1 :]])), whole) for i in range(300)])
    other = Moments.of(x)
    left = torch.tensor([frechet_distance(other, Moments.of(torch.cat([y[:i], y[i + 1 :]]))) for i in range(200)])
    variance = sum(float((z - z.mean()).square().sum()) * (len(z) - 1) / len(z) for z in (without, left))
    assert (fid.high - fid.low) / 2 / 1.96 == pytest.approx(variance**0.5, rel=0.05)


def test_fast_and_safe_roots_agree_and_dead_features_do_no_harm():
    x, y = normal(200, 6, 0, 1.2), normal(300, 6, 1)
    dead = [torch.cat([z, torch.zeros(len(z), 2).double()], 1) for z in (x, y)]  # singular: the other branch
    plain, padded = (frechet_distance(Moments.of(a), Moments.of(b)) for a, b in ((x, y), dead))
    assert padded == pytest.approx(plain, rel=1e-9)
    full, cut = frechet_estimates(x, y)[0], frechet_estimates(*dead)[0]
    assert (cut.low, cut.high) == pytest.approx((full.low, full.high), rel=1e-4)


def test_more_features_than_vectors_cost_no_more_and_give_the_same():
    """Forty features turned into a space of 3000: distances, intervals and the rank are those of the forty."""
    x, y = normal(30, 40, 0, 1.2, 0.3), normal(35, 40, 1)
    turn = torch.linalg.qr(normal(3000, 40, 2))[0].T
    plain, turned = frechet_estimates(x, y), frechet_estimates(x @ turn + 5, y @ turn + 5)
    for a, b in zip(plain, turned):
        assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=1e-6)
        assert a.note == b.note


def test_few_vectors_are_warned_of():
    note = frechet_estimates(normal(20, 30, 0), normal(500, 30, 1))[0].note
    assert "20 vectors" in note
    assert "rank 30" in note
    assert frechet_estimates(normal(200, 5, 0), normal(500, 5, 1))[0].note == ""


def test_inception_score_reaches_its_bounds_and_adds_up():
    k = 7
    assert inception_score(torch.zeros(50, k)).value == pytest.approx(1.0)
    sure = inception_score(100 * torch.eye(k).repeat(10, 1))
    assert (sure.value, sure.high) == pytest.approx((k, k))
    collapsed = inception_score(100 * torch.eye(k)[:1].repeat(30, 1))
    assert collapsed.value == pytest.approx(1.0)
    logits = 3 * normal(500, k, 0)
    p = logits.softmax(1).numpy()
    exact = math.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), 1)))
    parts = [ClassSums.of(part) for part in logits.split([1, 9, 490])]
    assert sum(parts[1:], parts[0]).score == pytest.approx(exact, rel=1e-12)
    splits = [math.exp(np.mean(np.sum(q * np.log(q / q.mean(0)), 1))) for q in np.split(p, 10)]
    assert inception_score_splits(logits) == pytest.approx((np.mean(splits), np.std(splits)), rel=1e-10)


def test_the_jackknife_of_the_inception_score_is_delete_one():
    logits = 2 * normal(40, 5, 0)
    found = inception_score(logits)
    without = np.array([ClassSums.of(torch.cat([logits[:i], logits[i + 1 :]])).score for i in range(40)])
    error = math.sqrt(39 / 40 * np.sum((without - without.mean()) ** 2))
    centre = 40 * found.value - 39 * without.mean()
    assert (found.low, found.high) == pytest.approx((centre - 1.959964 * error, centre + 1.959964 * error), rel=1e-6)


def test_sliced_distance_in_one_dimension_is_scipys_and_a_shift_is_exact():
    from scipy.stats import norm

    x, y = normal(50, 1, 0), normal(30, 1, 1, 2.0, 1.0)
    level = (np.arange(1_500_000) + 0.5) / 1_500_000  # a multiple of 50 and 30
    xs, ys = (np.sort(z[:, 0].numpy()) for z in (x, y))
    exact = np.mean((xs[(level * 50).astype(int)] - ys[(level * 30).astype(int)]) ** 2)
    assert sliced_wasserstein(x, y, directions=3).value == pytest.approx(exact, rel=1e-9)
    many = normal(1000, 1, 2, 2.0, 1.0)
    quantiles = torch.from_numpy(norm.ppf((np.arange(1000) + 0.5) / 1000))[:, None]
    found = sliced_wasserstein(many, quantiles, directions=2)
    assert found.low <= 1 + (2 - 1) ** 2 <= found.high
    z, shift = normal(100, 3, 3), torch.tensor([2.0, 0.0, 0.0]).double()
    wide = sliced_wasserstein(z + shift, z, directions=400)
    assert wide.value == pytest.approx(4 / 3, rel=0.2)  # E (u.s)^2 = |s|^2 / D; sd of the mean of 400 is 4.5 %


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.0, math.inf])
def test_vendi_score_is_that_of_the_large_kernel_matrix(order):
    x = normal(40, 6, 0, 1.0, 0.5)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    values = np.linalg.eigvalsh(unit @ unit.T / 40)
    values = values[values > 1e-12]
    if order == 1:
        exact = math.exp(-np.sum(values * np.log(values)))
    elif math.isinf(order):
        exact = 1 / values.max()
    else:
        exact = np.sum(values**order) ** (1 / (1 - order))
    assert vendi_score(x, order=order).value == pytest.approx(exact, rel=1e-9)


def test_vectors_that_are_zero_are_one_kind_more():
    """As if each were a unit vector along an axis of its own, whatever the order; alone they are one kind."""
    x = normal(40, 6, 0)
    x[::3] = 0
    beside = torch.cat([x, (x == 0).all(1, keepdim=True).double()], 1)
    for order in (1.0, 2.0, math.inf):
        found, exact = (vendi_score(z, order=order) for z in (x, beside))
        assert (found.value, found.low, found.high) == pytest.approx((exact.value, exact.low, exact.high), rel=1e-12)
    assert found.note == "14 of 40 features are zero and count as one kind of their own"
    assert exact.note == ""
    none = vendi_score(torch.zeros(20, 3))
    assert (none.value, none.low, none.high) == (1, 1, 1)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, math.inf])
def test_influences_on_the_vendi_score_are_those_of_leaving_one_out(order):
    """The jackknife's variance of 400 vectors, which differs in the order of 1/n."""
    x = torch.relu(normal(400, 5, 0) * torch.tensor([3.0, 2.0, 1.0, 0.7, 0.5]) + 0.3)
    x = x[(x > 0).any(1)]
    n = len(x)
    z = x / x.norm(dim=1, keepdim=True)
    total = z.T @ z
    without = torch.tensor([_score((total - torch.outer(a, a)) / (n - 1), order) for a in z], dtype=torch.float64)
    exact = float((without - without.mean()).square().sum()) * (n - 1) / n
    found = _influence_variance(x, total / n, _score(total / n, order), order, False)
    assert found == pytest.approx(exact, rel=0.03)


def test_the_interval_below_a_largest_value_solves_its_equation():
    most, middle, first, second, z = 8.0, 7.8, 0.02, 0.001, 1.96
    low, high = _below(most, middle, first, second, z)
    assert low < middle < high < most
    for end in (low, high):
        assert (end - middle) ** 2 == pytest.approx(z**2 * (second + first * (most - end) / (most - middle)))
    assert middle - low > 1.3 * (high - middle)
    # far from the largest value it is the usual one; beyond it, it ends there
    assert _below(1e9, 7.8, first, second, z) == pytest.approx([7.8 - z * 0.021**0.5, 7.8 + z * 0.021**0.5], rel=1e-6)
    assert _below(8.0, 8.01, first, second, z) == pytest.approx((8.01 - z * 0.021**0.5, 8.0))


def test_distances_refuse_what_they_cannot_measure():
    x = normal(20, 3, 0)
    broken = x.clone()
    broken[4, 1] = math.nan
    two = (frechet_estimates, kernel_distance, clip_distance, sliced_wasserstein)
    for metric in two:
        with pytest.raises(ValueError, match="1 of 20"):
            metric(broken, x)
        with pytest.raises(ValueError, match="too few"):
            metric(x, x[:1])
        with pytest.raises(ValueError, match="too few"):
            metric(x[:0], x)
        with pytest.raises(ValueError, match="lengths"):
            metric(x, x[:, :2])
    with pytest.raises(ValueError, match="order"):
        vendi_score(x, order=-1.0)
    with pytest.raises(ValueError, match="single class"):
        inception_score(torch.zeros(30, 1))
    with pytest.raises(ValueError, match="equal"):
        median_bandwidth(torch.ones(10, 2))
    with pytest.raises(ValueError, match="positive"):
        gaussian(0.0)
    same = torch.ones(30, 3)
    assert frechet_estimates(same, same)[0].value == 0
    assert kernel_distance(same, same).value == pytest.approx(0)
    assert sliced_wasserstein(same, same).value == 0
