"""Precision to coverage, memorisation and the likelihood divergence against loops, closed forms and planted copies."""

import math

import numpy as np
import pytest
import torch

from trilemma.evaluate import (
    authenticity,
    copied,
    copy_score,
    density_coverage,
    expected_coverage,
    feature_likelihood_divergence,
    nearer_than_held_out,
    nearest,
    precision_recall,
    share_copied,
)
from trilemma.evaluate.feature_likelihood import _fit, _log_likelihoods
from trilemma.evaluate.manifold import _counts
from trilemma.evaluate.rows import centred, tiles


def normal(n, d, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def radius(own, i, k):
    return sorted(float((own[i] - own[j]).norm()) for j in range(len(own)) if j != i)[k - 1]


def loops(x, y, k):
    """Number of real balls about each sample, and whether each real ball holds one, by distances one at a time."""
    held = np.zeros((len(y), len(x)), bool)
    for i in range(len(y)):
        reach = radius(y, i, k)
        held[i] = [float((y[i] - g).norm()) <= reach for g in x]
    return held


def test_all_four_are_their_definitions():
    x, y = normal(23, 3, 0, 0.8, 0.5), normal(31, 3, 1)
    held, around = loops(x, y, 3), loops(y, x, 3)
    found = precision_recall(x, y, halvings=4)
    assert [e.value for e in found] == [held.any(0).mean(), around.any(0).mean()]
    held = loops(x, y, 5)
    density, coverage = density_coverage(x, y, halvings=4)
    assert density.value == pytest.approx(held.sum() / 5 / len(x))
    assert coverage.value == held.any(1).mean()


def test_halves_are_measured_within_themselves():
    """Row r of the balls is what the two halves give alone."""
    x, y = normal(40, 2, 0), normal(50, 2, 1, 1.2)
    draw = torch.Generator().manual_seed(0)
    of_x = torch.rand(3, 40, generator=draw) < 0.5
    of_y = torch.rand(3, 50, generator=draw) < 0.5
    count, filled = _counts(*reversed(centred(y, x)), 5, of_x, of_y)
    for r in range(3):
        for side in (True, False):
            held = loops(x[of_x[r] == side], y[of_y[r] == side], 5)
            assert count[r + 1, of_x[r] == side].tolist() == held.sum(0).tolist()
            assert filled[r + 1, of_y[r] == side].tolist() == held.sum(1).tolist()


def test_coverage_of_equal_laws_is_the_lemma():
    """Mean of 20 repetitions; its standard error is about 0.003, and five of them are a false alarm once in a million."""
    n, m, k = 150, 250, 3
    found = [
        density_coverage(normal(n, 3, 2 * r), normal(m, 3, 2 * r + 1), k=k, halvings=0)[1].value for r in range(20)
    ]
    exact = 1 - math.comb(m - 1, k) / math.comb(n + m - 1, k)
    assert expected_coverage(n, m, k) == pytest.approx(exact)
    assert np.mean(found) == pytest.approx(exact, abs=5 * np.std(found) / 20**0.5)
    assert expected_coverage(10**9, 10**9, k) == pytest.approx(1 - 2.0**-k)


def test_collapse_shows_in_recall_and_coverage_not_in_precision():
    real = torch.cat([normal(100, 2, i, 0.1, 3.0 * i) for i in range(4)])
    made = normal(400, 2, 9, 0.1)
    precision, recall = precision_recall(made, real)
    density, coverage = density_coverage(made, real)
    assert precision.value > 0.85
    assert recall.value < 0.27
    assert coverage.value < 0.27
    assert density.value > 0.8
    again = density_coverage(made[torch.arange(399, -1, -1)], real, halvings=0)[1]
    assert again.value == coverage.value
    assert again.low == -math.inf


def test_all_inside_is_not_certain_to_stay_so():
    """With a share p of samples inside, all n = 30 are with p^n: 30 % at p = 0.96, which the interval must then hold."""
    near, far = normal(30, 2, 0, 0.01), normal(60, 2, 1, 0.01, 50.0)
    real = torch.cat([near + 1e-3, near - 1e-3])
    least = 30 / (30 + 1.959964**2)  # Wilson's lower end for 30 of 30
    inside, outside = (precision_recall(z[:30], real)[0] for z in (near, far))
    assert (inside.value, inside.low, inside.high) == (1, pytest.approx(least, abs=1e-6), 1)
    assert inside.low < 0.96
    assert (outside.value, outside.low, outside.high) == (0, 0, pytest.approx(1 - least, abs=1e-6))
    assert density_coverage(far, real)[1].high == pytest.approx(1.959964**2 / (60 + 1.959964**2), abs=1e-6)
    copies = nearer_than_held_out(near + 1e-6, near, far)
    assert (copies.value, copies.low) == (1, pytest.approx(least, abs=1e-6))


def test_neighbours_are_exact_for_near_copies_far_away():
    train = normal(60, 5, 0) + 1e3
    copy = train[17] + 1e-7
    distance, index = nearest(copy[None], train, 3)
    assert index[0, 0] == 17
    assert float(distance[0, 0]) == pytest.approx(1e-7 * 5**0.5, rel=1e-2)
    exact = (train - copy).norm(dim=1).sort()
    assert torch.equal(index[0], exact.indices[:3])
    own, _ = nearest(train, None)
    assert torch.allclose(own[:, 0], torch.cdist(train, train).fill_diagonal_(math.inf).min(1).values)
    for other in (
        None,
        train[:11],
    ):  # tiles of any size are parts of one matrix: of one set, those not below its diagonal
        sets = [z for z in (train, other) if z is not None]
        whole = (train[:, None] - sets[-1]).square().sum(2)
        if other is None:
            whole.fill_diagonal_(math.inf)
        seen = torch.zeros_like(whole)
        for rows, columns, d in tiles(*reversed(centred(*reversed(sets))), block=7):
            assert torch.allclose(d, whole[rows, columns], rtol=1e-9, atol=1e-12)
            seen[rows, columns] += 1
        assert torch.equal(seen.triu(), torch.ones_like(whole).triu()) if other is None else bool((seen == 1).all())
        for block in (4, 7, 1000):
            values, index = nearest(train, other, 5, block=block)
            exact = whole.sort(1)
            assert torch.equal(index, exact.indices[:, :5])
            assert torch.allclose(values, exact.values[:, :5].sqrt(), rtol=1e-9, atol=1e-6)
    for k in (0, 60):
        with pytest.raises(ValueError, match="take k from 1 to 59"):
            nearest(train, None, k)


def test_planted_copies_are_found_and_new_samples_are_not():
    train, fresh, held_out = normal(300, 6, 0), normal(300, 6, 1), normal(200, 6, 2)
    mixed = torch.cat([train[:60] + 1e-3, fresh[60:]])
    flags = copied(mixed, train)
    assert bool(flags[:60].all())
    assert int(flags[60:].sum()) <= 3
    assert share_copied(mixed, train).low <= 0.2 <= share_copied(mixed, train).high
    assert torch.equal(nearest(mixed, train)[1][:60, 0], torch.arange(60))
    assert authenticity(train + 1e-3, train).value == 0
    assert authenticity(mixed, train).value == pytest.approx(0.8 * authenticity(fresh[60:], train).value)
    # new samples: the share is 1/2 within 5 sd = 0.12 of its Mann-Whitney statistic; copies are always nearer
    assert nearer_than_held_out(fresh, train, held_out).value == pytest.approx(0.5, abs=0.13)
    found = nearer_than_held_out(mixed, train, held_out)
    assert found.low > 0.5
    assert copy_score(train + 1e-3, train, held_out) < -10
    assert abs(copy_score(fresh, train, held_out)) < 4


def test_copy_score_is_scipys_and_cells_find_what_hides_in_one():
    from scipy.stats import mannwhitneyu

    train, made, held_out = normal(80, 2, 0), normal(50, 2, 1, 1.2), normal(60, 2, 2)
    a, b = (torch.cdist(z, train).min(1).values.numpy() for z in (made, held_out))
    u = mannwhitneyu(a, b).statistic
    z = (u - 50 * 60 / 2) / math.sqrt(50 * 60 * 111 / 12)
    assert copy_score(made, train, held_out) == pytest.approx(z)
    assert f"{z:.1f}" in nearer_than_held_out(made, train, held_out).note
    # copies in one of two clusters, samples too far out in the other
    train, held_out = (torch.cat([normal(100, 2, s), normal(100, 2, s + 1) + 100]) for s in (0, 10))
    made = torch.cat([train[:30] + 1e-4, normal(100, 2, 20, 6.0) + 100])
    assert copy_score(made, train, held_out) > 0
    assert copy_score(made[:30], train, held_out, cells=2) < -5
    with pytest.raises(ValueError, match="take fewer"):
        copy_score(made[:30], train, held_out[100:], cells=2)


def test_em_climbs_to_a_point_where_the_likelihood_is_flat():
    centres, x = normal(12, 2, 0), normal(40, 2, 1)
    fitted = _fit(centres, x, 3000)
    far = 0.81 * (x - x.mean(0)).square().sum(1)
    free = fitted.clone().requires_grad_()
    grid = torch.linspace(-3, 5, 4001, dtype=torch.float64)[:, None]  # of the background's log variance

    def objective(log_variances):
        squared = (x[:, None] - centres).square().sum(2)
        terms = -0.5 * squared / log_variances.exp() - log_variances - math.log(2 * math.pi) - math.log(12)
        outer = -0.5 * far / grid.exp() - grid - math.log(2 * math.pi)
        return -torch.logaddexp(terms.logsumexp(1), outer).mean(1).max()  # the background at its best

    loss = objective(free)
    loss.backward()
    assert float(free.grad.abs().max()) < 0.02
    assert float(objective(_fit(centres, x, 1))) > float(loss.detach())


def test_likelihoods_are_those_of_the_mixture():
    x, centres = normal(5, 3, 0), normal(4, 3, 1)
    variances = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
    parts = [
        torch.distributions.MultivariateNormal(c, v * torch.eye(3).double()).log_prob(x)
        for c, v in zip(centres, variances)
    ]
    exact = torch.stack(parts).logsumexp(0) - math.log(4)
    assert torch.allclose(_log_likelihoods(x, centres, variances.log()), exact, rtol=1e-10)


def test_likelihood_divergence_orders_good_bad_and_copied():
    train, held_out = normal(200, 4, 0), normal(200, 4, 1)
    good, wide, copies = (
        feature_likelihood_divergence(s, train, held_out, halvings=4)
        for s in (normal(200, 4, 2), normal(200, 4, 2, 1.0, 2.0), train + 1e-9)
    )
    assert good.high < wide.low < copies.value
    assert good.value == pytest.approx(0, abs=10)
    assert copies.value > 100
    moved = feature_likelihood_divergence(3 * normal(200, 4, 2) + 7, 3 * train + 7, 3 * held_out + 7, halvings=4)
    assert moved.value == pytest.approx(good.value, rel=1e-6)  # units of features do not matter


def test_manifolds_refuse_what_they_cannot_measure():
    x = normal(20, 3, 0)
    for metric in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="at least"):
            metric(x, x[:5], k=5)
        with pytest.raises(ValueError, match="k >= 1"):
            metric(x, x, k=0)
        with pytest.raises(ValueError, match="lengths 3 and 2"):
            metric(x[:, :2], x)
        with pytest.raises(ValueError, match="NaN"):
            metric(x * math.nan, x)
    with pytest.raises(ValueError, match="all held-out features are equal"):
        feature_likelihood_divergence(x, x, torch.ones(20, 3))
    with pytest.raises(ValueError, match="3, 3 and 2"):
        feature_likelihood_divergence(x, x, x[:, :2])
    same = torch.ones(30, 2)
    assert [e.value for e in precision_recall(same, same)] == [1, 1]
