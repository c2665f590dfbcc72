"""Scores of the unusual: against closed forms of an exact mixture, pairs counted one by one, and chi^2."""

import math

import numpy as np
import pytest
import torch

from oracles import F64, Mixture
from trilemma.denoise import Covariances, GaussianDenoiser
from trilemma.likelihood import log_likelihood
from trilemma.likelihood.anomaly import ErrorProfile, PixelGaussian, auroc, complexity, likelihood_scores
from trilemma.numerics.noise import Noise
from trilemma.process import VP, Flow


def test_the_area_counts_pairs():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 12, (40,), generator=g).float(), torch.randint(3, 15, (25,), generator=g).float()
    pairs = [1.0 if y > x else 0.5 if y == x else 0.0 for x in a.tolist() for y in b.tolist()]
    assert auroc(a, b) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(b, a) == pytest.approx(1 - auroc(a, b), abs=1e-12)
    assert auroc(a, a) == pytest.approx(0.5, abs=1e-12)
    assert auroc(torch.tensor([0.0, math.inf]), torch.tensor([math.inf])) == 0.75
    with pytest.raises(ValueError, match="NaN"):
        auroc(a, torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="two sets"):
        auroc(a, b[:0])


@pytest.fixture(scope="module")
def case():
    """A mixture, 300 items of it, and 300 that are too narrow, at its mode: likely, yet not usual."""
    mixture = Mixture.example(components=1, dim=6, spread=0.5)
    model = mixture.torch(VP())
    x, _ = model.draw(Noise(0, 300))
    mean = torch.tensor(mixture.means[0])
    narrow = mean + 0.1 * (model.draw(Noise(1, 300))[0] - mean)
    return mixture, model, x, narrow


def test_the_parts_add_up_to_the_closed_form(case):
    mixture, model, x, narrow = case
    both = torch.cat([x[:6], narrow[:6]])
    likelihood = log_likelihood(model, both)
    scores = likelihood_scores(likelihood)
    exact = -torch.tensor(mixture.log_prob(both))
    torch.testing.assert_close(scores["density"], exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(scores["prior"] + scores["volume"], exact, rtol=0, atol=1e-3)
    log_1 = mixture.log_prob(
        likelihood.x_1, float(VP().alpha(torch.ones((), dtype=F64))), float(VP().sigma(torch.ones(())))
    )
    torch.testing.assert_close(scores["prior"], -torch.tensor(log_1), rtol=0, atol=1e-4)


def test_typicality_sees_what_the_density_does_not(case):
    """Narrow items: the density ranks them the wrong way round; 6-D, 0.1 of the spread, errors of an area about 0.03."""
    _, model, x, narrow = case
    reference, usual, unusual = (log_likelihood(model, y, steps=24) for y in (x[:150], x[150:250], narrow[:100]))
    a, b = (likelihood_scores(part, reference) for part in (usual, unusual))
    assert auroc(a["density"], b["density"]) < 0.05
    assert auroc(a["typicality"], b["typicality"]) > 0.75
    typical = (usual.log_prob - reference.log_prob.mean()).abs()
    torch.testing.assert_close(a["typicality"], typical)


def test_the_ratio_leaves_out_what_a_simple_model_explains():
    """Correlated data against data with the same pixels, shuffled: the ratio with their Gaussian sees the structure alone."""
    cov = 0.2 * (0.9 * torch.ones(4, 4) + 0.1 * torch.eye(4))
    model = GaussianDenoiser(Flow(), torch.zeros(4), Covariances.full(cov[None]))
    x, _ = model.draw(Noise(0, 400))
    shuffled = torch.stack([x[torch.randperm(400, generator=torch.Generator().manual_seed(i)), i] for i in range(4)], 1)
    simple = PixelGaussian.fit(x)
    exact = -0.5 * ((x - x.mean(0)) ** 2 / x.var(0, correction=0)).sum(1)
    exact = exact - 0.5 * torch.log(2 * math.pi * x.var(0, correction=0)).sum()
    torch.testing.assert_close(simple.log_prob(x), exact)
    a, b = (
        likelihood_scores(log_likelihood(model, y[:100], steps=24), simple=simple.log_prob(y[:100]))
        for y in (x, shuffled)
    )
    truth = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=F64), cov.double()).log_prob(x[:100])
    torch.testing.assert_close(a["ratio"], exact[:100] - truth, rtol=0, atol=0.01)
    assert auroc(a["ratio"], b["ratio"]) > 0.9


def test_complexity_orders_images():
    flat = torch.full((1, 1, 16, 16), 200, dtype=torch.uint8)
    ramp = torch.arange(16, dtype=torch.uint8).mul(7).expand(1, 1, 16, 16)  # rows that repeat
    noise = torch.randint(256, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    sizes = complexity(torch.cat([flat, ramp, noise]))
    assert sizes[0] < sizes[1] < sizes[2]
    assert 256 * 8 * math.log(2) < float(sizes[2]) < 1.1 * 256 * 8 * math.log(2)  # random bytes do not shrink
    with pytest.raises(ValueError, match="8-bit"):
        complexity(noise.float())


def test_profiles_of_usual_items_are_chi_squared():
    """Held-out usual items: mean square J within 20 % (J = 6, 600 items, 400 to fit); scaled ones stand out."""
    model = GaussianDenoiser(VP(), torch.zeros(64), Covariances.diagonal(torch.full((1, 64), 0.25)))
    x = 0.5 * torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))
    profile = ErrorProfile.fit(model, x[:400], levels=[0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
    usual = profile.score(model, x[400:], seeds=1)
    assert float(usual.square().mean()) == pytest.approx(6, rel=0.2)
    assert auroc(usual, profile.score(model, 1.5 * x[400:], seeds=1)) > 0.9
    assert auroc(usual, profile.score(model, 0.5 * x[400:], seeds=1)) > 0.9
    again = profile.score(model, x[400:405], seeds=Noise(1, 600).seeds[:5])
    torch.testing.assert_close(again, usual[:5], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="too few"):
        ErrorProfile.fit(model, x[:5])
    with pytest.raises(ValueError, match="positive"):
        ErrorProfile.fit(model, x, levels=[0.0])
