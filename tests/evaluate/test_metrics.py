"""Metrics against closed forms and an independent matrix root."""

import math

import numpy as np
import pytest
import torch

from trilemma.data import load
from trilemma.evaluate import Moments, Proportion, class_agreement, frechet_distance, train_classifier
from trilemma.evaluate.frechet import _factor


def with_moments(mean, covariance):
    return Moments(101, mean.double(), covariance.double() * 100)


def spd(seed, d, rank=None):
    root = torch.randn(d, rank or d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def test_diagonal_gaussians_have_a_closed_form():
    s1, s2 = torch.tensor([1.0, 4.0, 0.0, 9.0]), torch.tensor([9.0, 1.0, 4.0, 9.0])
    m1, m2 = torch.zeros(4), torch.tensor([1.0, 0.0, -2.0, 0.0])
    exact = (m1 - m2).square().sum() + (s1.sqrt() - s2.sqrt()).square().sum()
    a, b = with_moments(m1, s1.diag()), with_moments(m2, s2.diag())
    assert frechet_distance(a, b) == pytest.approx(float(exact), rel=1e-12)


def test_general_gaussians_against_scipy():
    from scipy.linalg import sqrtm

    c1, c2 = spd(0, 12), spd(1, 12)
    exact = np.trace(c1.numpy() + c2.numpy() - 2 * np.real(sqrtm((c1 @ c2).numpy())))
    zero = torch.zeros(12)
    got = frechet_distance(with_moments(zero, c1), with_moments(zero, c2))
    assert got == pytest.approx(float(exact), rel=1e-9)


def test_it_is_a_squared_metric_on_singular_covariances():
    a = with_moments(torch.zeros(20), spd(0, 20, rank=3))
    b = with_moments(torch.ones(20), spd(1, 20, rank=5))
    assert frechet_distance(a, a) < 1e-10 * float(a.covariance.trace())
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    # Rotating both spaces alike changes nothing.
    q, _ = torch.linalg.qr(spd(2, 20))
    turned = [with_moments(q @ g.mean, q @ g.covariance @ q.T) for g in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_covariances_wider_than_a_block_that_share_their_axes():
    """The distance is that of the roots of their spectra, over 3 decades or 11."""
    d = 600
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for decades in (3, 11):
        one = torch.logspace(0, -decades, d, dtype=torch.float64)
        two = one[torch.randperm(d, generator=torch.Generator().manual_seed(1))]
        a, b = (with_moments(torch.zeros(d), (q * s) @ q.T) for s in (one, two))
        exact = float((one.sqrt() - two.sqrt()).square().sum())
        assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-9)
        assert frechet_distance(a, a) < 1e-9 * float(one.sum())


def test_a_factor_is_exact_where_the_largest_variances_hide_small_ones_that_others_depend_on():
    """x_k = g + 1e-5 e_k and y_k = e_k / 2: to divide by what is left of x_k without g, 1e-10 known to 1e-16, would cost 1e-7."""
    one, eye = torch.ones(300, 300, dtype=torch.float64), torch.eye(300, dtype=torch.float64)
    covariance = torch.cat([torch.cat([one + 1e-10 * eye, 5e-6 * eye]), torch.cat([5e-6 * eye, 0.25 * eye])], 1)
    found = _factor(covariance)
    assert found.shape == (600, 301)
    assert (found @ found.T - covariance).abs().max() < 1e-14


def test_one_large_variance_does_not_hide_many_small_ones():
    """1 and 599 times 1e-9 against 1 and 599 times 4e-9: eigenvalues of the product, known to 1e-16, would be lost."""
    q, _ = torch.linalg.qr(torch.randn(600, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    small = torch.full((600,), 1e-9, dtype=torch.float64)
    small[0] = 0
    a, b = (with_moments(torch.zeros(600), torch.outer(q[:, 0], q[:, 0]) + (q * s) @ q.T) for s in (small, 4 * small))
    assert frechet_distance(a, b) == pytest.approx(599e-9, rel=1e-5)


@pytest.mark.parametrize(("n", "m", "decades"), [(500, 400, 2), (300, 450, 7), (40, 900, 2), (900, 40, 7)])
def test_fewer_vectors_than_features_have_the_singular_values_of_their_products(n, m, decades):
    """tr (C1^(1/2) C2 C1^(1/2))^(1/2) is the sum of the singular values of X Y^T / sqrt((n - 1)(m - 1)), X and Y centred."""
    d = 600
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=draw, dtype=torch.float64) * torch.logspace(0, -decades, d, dtype=torch.float64)
    x, y = (torch.randn(k, d, generator=draw, dtype=torch.float64) @ mix.T + 0.1 * i for i, k in enumerate((n, m)))
    one, two = ((z - z.mean(0)).numpy() / math.sqrt(len(z) - 1) for z in (x, y))
    overlap = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    exact = float((x.mean(0) - y.mean(0)).square().sum()) + np.square(one).sum() + np.square(two).sum() - 2 * overlap
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(exact, rel=1e-9)


def test_moments_wider_than_a_block_are_numpys_and_symmetric():
    x = torch.randn(1100, 600, generator=torch.Generator().manual_seed(0)).cumsum(1) + 3
    found = Moments.of(x).covariance
    assert torch.equal(found, found.T)
    assert np.allclose(found, np.cov(x.double().numpy().T), rtol=1e-12, atol=1e-10)


def test_moments_merge_to_the_same_as_all_at_once_far_from_zero():
    x = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    parts = [Moments.of(part) for part in x.split([1, 2, 300, 697])]
    merged = sum(parts[1:], parts[0])
    whole = np.cov(x.numpy().T)
    assert merged.n == 1000
    assert np.allclose(merged.mean, x.mean(0), rtol=1e-14)
    assert np.allclose(merged.covariance, whole, rtol=1e-7, atol=1e-9)


def test_moments_refuse_what_has_none():
    with pytest.raises(ValueError, match="N >= 1"):
        Moments.of(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="NaN"):
        Moments.of(torch.tensor([[float("inf")]]))
    with pytest.raises(ValueError, match="single vector"):
        _ = Moments.of(torch.zeros(1, 3)).covariance
    with pytest.raises(ValueError, match="lengths 2 and 3"):
        frechet_distance(Moments.of(torch.zeros(4, 2)), Moments.of(torch.zeros(4, 3)))
    with pytest.raises(ValueError, match="2 and 3"):
        _ = Moments.of(torch.zeros(4, 2)) + Moments.of(torch.zeros(4, 3))


def test_agreement_and_its_interval():
    asked = torch.arange(10).repeat(10)
    said = asked.clone()
    said[:5] = 9 - said[:5]
    found = class_agreement(said, asked)
    assert found == Proportion(95, 100)
    # statsmodels.stats.proportion.proportion_confint(95, 100, 0.05, "wilson") = (0.8882, 0.9785)
    assert found.interval() == pytest.approx((0.8882, 0.9785), abs=2e-4)
    assert Proportion(0, 10).interval()[0] == 0
    assert Proportion(10, 10).interval()[1] == 1
    with pytest.raises(ValueError, match="two"):
        class_agreement(asked, asked[:3])
    with pytest.raises(ValueError, match="not a proportion"):
        Proportion(3, 2)


def test_wilson_bounds_solve_their_defining_equation():
    z = 1.96
    for k, n in [(1, 20), (7, 20), (19, 20)]:
        for p in Proportion(k, n).interval(z):
            assert (k / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, rel=1e-9)


def test_classifier_is_fixed_by_its_seed_and_leaves_the_global_generator_alone():
    train = load("digits")
    before = torch.random.get_rng_state()
    few = {"classes": 10, "steps": 10, "width": 4}
    models = [train_classifier(train.images, train.labels, seed=seed, **few) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    a, again, other = (model.read(train.images[:50]) for model in models)
    assert torch.equal(a.features, again.features)
    assert not torch.equal(a.features, other.features)
    assert torch.allclose(models[0].read(train.images[:50], batch=7).features, a.features, atol=1e-5)


def test_classifier_tells_real_digits_from_spoiled_ones():
    train, test = load("digits"), load("digits", split="test")
    model = train_classifier(train.images, train.labels, classes=10, steps=200, width=16)
    real = model.read(test.images)
    assert class_agreement(real.predictions, test.labels).value > 0.93
    reference = Moments.of(model.read(train.images).features)
    floor = frechet_distance(Moments.of(real.features), reference)
    noise = 0.5 * torch.randn(test.images.shape, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(Moments.of(model.read(test.images + noise).features), reference) > 4 * floor


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (1, 5)])
def test_classifier_fits_other_sizes(channels, size):
    x = torch.randn(40, channels, size, size, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 2
    x = x + 2 * y[:, None, None, None]
    model = train_classifier(x, y, classes=2, steps=30, width=4, batch=40)
    assert class_agreement(model.read(x).predictions, y).value > 0.9


def test_classifier_refuses_what_it_cannot_learn():
    x = torch.zeros(4, 1, 8, 8)
    with pytest.raises(ValueError, match="two are needed"):
        train_classifier(x, torch.zeros(4, dtype=torch.int64), classes=1)
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        train_classifier(x, torch.arange(4), classes=3)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        train_classifier(x, torch.zeros(3, dtype=torch.int64), classes=2)
