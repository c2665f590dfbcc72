"""The Gaussian law that a bound subtracts: its error against dense matrices, and what it is worth."""

import math

import pytest
import torch

from oracles import F64, Mixture
from trilemma.denoise import Covariances, GaussianDenoiser
from trilemma.likelihood import Control, elbo, fit_schedule
from trilemma.likelihood.bound import eps_error
from trilemma.numerics.noise import Noise
from trilemma.process import VP, Flow

FACTORS = torch.tensor([[[1.5, 0.2], [-0.4, 0.9], [0.3, 0.1], [0.0, -0.7]]], dtype=F64)
MEAN = torch.tensor([0.5, -1.0, 0.2, 0.0], dtype=F64)
X = torch.tensor([[0.3, -0.8, 1.2, 0.4], [2.0, 0.0, -1.0, 0.5]], dtype=F64)
LAWS = {
    "low rank": Covariances.low_rank(FACTORS, 0.05),
    "flat": Covariances.low_rank(FACTORS, 0.0),
    "diagonal": Covariances.diagonal(torch.tensor([[0.2, 1.0, 3.0, 0.0]])),
}


@pytest.fixture(params=LAWS)
def law(request):
    return Control(MEAN, LAWS[request.param])


def dense_error(law, x, levels):
    """E|eps - eps_hat|^2 at levels, by matrices: eps - eps_hat = e^(l/2) (1 - Q) (x - m) - Q eps, Q = e^l C (1 + e^l C)^-1."""
    snr = levels.exp()[:, None, None]
    cov, eye = snr * law.covariances.dense(), torch.eye(4, dtype=F64)
    gain = torch.linalg.solve(eye + cov, cov)
    bias = snr.sqrt() * ((x - MEAN) @ (eye - gain))
    return bias.square().sum(2) + gain.square().sum((1, 2))[:, None]


@pytest.mark.parametrize("level", [-6.0, 0.3, 9.0])
def test_the_error_is_that_of_the_exact_denoiser_with_the_same_noise(law, level):
    model = GaussianDenoiser(Flow(), MEAN, law.covariances)
    eps = Noise(0, 2).normal((2, 3, 4), dtype=F64)
    levels = torch.full((2, 3), level, dtype=F64)
    whole = eps_error(model, X, levels, eps)
    assert float(whole.min()) > 1e-4
    gap = eps_error(model, X, levels, eps, control=law)
    assert float(gap.abs().max()) < 1e-7 * float(whole.max())


@pytest.mark.parametrize("level", [-6.0, 0.3, 9.0])
def test_its_mean_and_integral_by_dense_matrices(law, level):
    levels = torch.linspace(-8, level, 4001, dtype=F64)
    curve = dense_error(law, X, levels)
    torch.testing.assert_close(law.mean_error(X, level), curve[-1], rtol=1e-9, atol=0)
    torch.testing.assert_close(law.integral(X, -8.0, level), torch.trapezoid(curve, levels, dim=0), rtol=1e-5, atol=0)


def test_a_fit_has_the_moments_of_the_items():
    x = torch.cat([X, -2 * X, X.flip(0) + 1]).reshape(6, 1, 2, 2)
    flat = x.flatten(1)
    fitted = Control.fit(x.float())
    torch.testing.assert_close(fitted.mean, flat.mean(0), rtol=1e-6, atol=1e-6)
    off = flat - flat.mean(0)
    torch.testing.assert_close(fitted.covariances.dense()[0], off.T @ off / 6, rtol=1e-5, atol=1e-5)


def test_a_fitted_law_knows_gaussian_data_without_noise():
    """Exact denoiser of correlated data: with its own law as control the bound is the density, up to the ends."""
    law = Control(MEAN, LAWS["low rank"])
    model = GaussianDenoiser(VP(), MEAN, law.covariances)
    exact = torch.distributions.MultivariateNormal(MEAN, law.covariances.dense()[0]).log_prob(X)
    bound = elbo(model, X, samples=8, control=law)
    assert float(bound.diffusion.stderr.max()) < 1e-9
    assert float(bound.reconstruction.stderr.max()) < 1e-9
    assert bool(((bound.log_prob - exact).abs() < 5 * bound.prior.stderr + 2e-4).all())


def test_no_control_changes_the_mean_and_a_near_one_lowers_the_error():
    mixture = Mixture.example()
    model = mixture.torch(VP())
    x = model.draw(Noise(0, 256))[0]
    bounds = [elbo(model, x, samples=64, control=law, batch=8192) for law in (None, Control.fit(x))]
    gap = bounds[0].log_prob - bounds[1].log_prob
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / 16  # false alarm 1e-5
    near = Control.fit(model.draw(Noise(1, 4000))[0])
    worth = [float(b.stderr.square().mean()) for b in (bounds[0], elbo(model, x, samples=64, control=near, batch=8192))]
    assert worth[1] < 0.8 * worth[0]


def test_a_schedule_is_fitted_for_what_the_bound_samples():
    """Data that the default control knows but for one of two coordinates: its levels alone are left, near -log 25."""
    variances = torch.tensor([[0.25, 25.0]])
    model = GaussianDenoiser(Flow(), torch.zeros(2), Covariances.diagonal(variances))
    x = model.draw(Noise(0, 2000))[0]
    levels = torch.linspace(-10, 10, 41, dtype=F64)
    fitted = fit_schedule(model, x, ends=(-10.0, 10.0), levels=41, batch=8192)
    wide, own = (torch.sigmoid(levels + math.log(s2)) for s2 in (25.0, 0.25))
    # with z the item and e the noise, both N(0, 1): e - eps_hat = (sqrt(1-q) sqrt(q) z - q e), and what is subtracted with 10 z
    a, b = (wide * (1 - wide)).sqrt(), (own * (1 - own)).sqrt() * 10
    z, e = Noise(1, 2).normal((2, 4000), dtype=F64)
    left = (a[:, None] * z - wide[:, None] * e).square() - (b[:, None] * z - own[:, None] * e).square()
    expected = left.square().mean(1).sqrt()
    expected = (expected / expected.max()).clamp(min=0.02)
    torch.testing.assert_close(torch.tensor(fitted.density, dtype=F64), expected, rtol=0.2, atol=0.02)


def test_what_does_not_fit_is_refused():
    model = GaussianDenoiser(VP(), torch.zeros(3), Covariances.diagonal(torch.ones(1, 3)))
    with pytest.raises(ValueError, match="4 coordinates, and an item has 3"):
        elbo(model, torch.zeros(1, 3), control=Control.isotropic(1.0, 4))
    with pytest.raises(ValueError, match="at least 2 items"):
        Control.fit(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="unknown of 'losses'"):
        fit_schedule(model, torch.zeros(4, 3), of="losses")
    with pytest.raises(ValueError, match="training sees the whole error"):
        fit_schedule(model, torch.zeros(4, 3), of="loss", control=Control.isotropic(1.0, 3))
