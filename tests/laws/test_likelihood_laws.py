"""The likelihood by the flow is the density, on every process, for items of any shape, by both solvers."""

import numpy as np
import pytest
import torch

from oracles import F64, FAST, PROCESS_CASES, Mixture, registry
from trilemma.denoise import Covariances, MixtureDenoiser
from trilemma.likelihood import log_likelihood
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VE, Cosine, Flow, SubVP

TWO = Mixture.example()


def points(mixture, n=6, seed=4):
    """Draws by NumPy."""
    rng = np.random.default_rng(seed)
    k = rng.choice(len(mixture.weights), n, p=mixture.weights)
    return torch.tensor(np.stack([rng.multivariate_normal(mixture.means[i], mixture.covs[i]) for i in k]))


@pytest.mark.parametrize("process", registry(*FAST, cases=PROCESS_CASES))
def test_it_is_the_density_on_every_process(process):
    x = points(TWO)
    truth = torch.tensor(TWO.log_prob(x))
    tight = log_likelihood(TWO.torch(process), x, rtol=1e-6, atol=1e-6)
    assert float((tight.log_prob - truth).abs().max()) < 1e-4
    assert float(tight.prior_mismatch.abs().max()) == 0  # the exact law of x_1 was taken
    fixed = log_likelihood(TWO.torch(process), x, steps=96)
    assert float((fixed.log_prob - truth).abs().max()) < 1e-3


def pictures():
    """Three means and covariances of 3x4x4 pictures, floor 0.05 and eight strong directions."""
    g = torch.Generator().manual_seed(8)
    means, factors = torch.randn(3, 3, 4, 4, generator=g), torch.randn(3, 48, 8, generator=g) * 0.2
    return means * 0.3, Covariances.low_rank(factors, 0.05**2)


@pytest.mark.slow
@pytest.mark.parametrize("process", [SubVP(), VE(), EDM(), Cosine()], ids=lambda p: type(p).__name__)
def test_pictures(process):
    means, covariances = pictures()
    model = MixtureDenoiser(process, means, covariances)
    x = model.draw(Noise(1, 2))[0]
    found = log_likelihood(model, x, rtol=1e-6, atol=1e-6, batch=1)
    torch.testing.assert_close(found.log_prob, model.log_prob(x), rtol=0, atol=1e-3)


def test_pictures_on_a_fixed_grid():
    """The cheap form of it; the dense density is another code path than E[x | x_t]."""
    means, covariances = pictures()
    model = MixtureDenoiser(Flow(), means, covariances)
    x = model.draw(Noise(1, 2))[0]
    dense = torch.stack([
        torch.distributions.MultivariateNormal(m.flatten().to(F64), c).log_prob(x.flatten(1))
        for m, c in zip(means, covariances.dense())
    ]).logsumexp(0) - np.log(3)  # fmt: skip
    found = log_likelihood(model, x, steps=64)
    torch.testing.assert_close(found.log_prob, dense, rtol=0, atol=0.05)  # 2e-4 a coordinate
    assert found.calls.tolist() == [64, 64]
    assert found.vjps.tolist() == [64 * 48] * 2
