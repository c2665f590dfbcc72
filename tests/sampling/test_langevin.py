"""Langevin moves: their exact law on Gaussian data, what the published sizes are, and that annealing finds a mixture."""

import math

import numpy as np
import pytest
import torch

from oracles import F64, Mixture, law_of, log_snr_times
from trilemma.denoise import Gaussian
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow
from trilemma.sampling import ddpm, exponential, sample
from trilemma.sampling.langevin import annealed_langevin, corrector


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=["edm", "vp", "flow"])
def test_a_corrector_moves_a_gaussian_as_computed_by_hand(process):
    """v' = (1 - e/v)^2 v* + 2 e, e = 2 (snr sigma)^2, v the true and v* the present variance, after every step of DDPM."""
    var, snr, ts = 0.5, 0.3, torch.tensor([0.9, 0.5, 0.3, 0.0], dtype=F64)
    alpha, sigma = process.alpha(ts).tolist(), process.sigma(ts).tolist()
    v = alpha[0] ** 2 * var + sigma[0] ** 2
    plan = ddpm(process, ts)
    for i in range(3):
        gain = alpha[i] * var / (alpha[i] ** 2 * var + sigma[i] ** 2)
        v = (float(plan.a[i, 0]) + float(plan.b[i, 0]) * gain) ** 2 * v + float(plan.c[i]) ** 2
        e, true = 2 * (snr * sigma[i + 1]) ** 2, alpha[i + 1] ** 2 * var + sigma[i + 1] ** 2
        for _ in range(2 if sigma[i + 1] else 0):
            v = (1 - e / true) ** 2 * v + 2 * e
    assert law_of(corrector(ddpm, snr=snr, steps=2, measured=False), process, ts, 0.0, var)[1] == pytest.approx(
        v, rel=1e-9
    )


def test_many_moves_mend_a_law_that_is_wrong():
    """From data of the wrong variance to v / (1 - e/(2 v)), the law that Langevin's method keeps."""
    ts, snr = torch.tensor([0.1, 0.0999], dtype=F64), 0.1

    def wrong(process, ts):
        return lambda denoise, x, i, carry, noise: (3 * x, None)

    true = 0.5 + (80 * 0.0999) ** 2
    e = 2 * (snr * 80 * 0.0999) ** 2
    found = law_of(corrector(wrong, snr=snr, steps=400, measured=False), EDM(), ts, 0.0, 0.5)[1]
    assert found == pytest.approx(true / (1 - e / (2 * true)), rel=1e-5)


def test_measured_norms_are_those_of_the_item():
    """One move, from the definition: epsilon = 2 (snr |z| / |score|)^2, x + epsilon score + sqrt(2 epsilon) z; norms per item."""
    process, ts, noise = VP(), torch.tensor([0.6, 0.5], dtype=F64), Noise(4, 3)
    alpha, sigma = float(process.alpha(ts[1])), float(process.sigma(ts[1]))
    x = (
        torch.randn(3, 5, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 2.0, 9.0])[:, None, None]
    )

    def still(process, ts):
        return lambda denoise, x, i, carry, noise: (x, None)

    step = corrector(still, snr=0.2)(process, ts)
    out, _ = step(lambda x, t: Gaussian(torch.tanh(x)), x, 0, None, noise)
    z, score = noise.at(1).normal_like(x), (alpha * torch.tanh(x) - x) / sigma**2
    for k in range(3):
        epsilon = 2 * (0.2 * z[k].norm() / score[k].norm()) ** 2
        torch.testing.assert_close(out[k], x[k] + epsilon * score[k] + (2 * epsilon).sqrt() * z[k])


def test_where_the_score_vanishes_the_move_stays_bounded():
    """k is at most 1: from x = alpha D exactly, a move adds sigma sqrt(2) z and no more."""
    process, ts = VP(), torch.tensor([0.6, 0.5], dtype=F64)
    step = corrector(lambda process, ts: lambda d, x, i, c, n: (x, None))(process, ts)
    alpha, sigma = float(process.alpha(ts[1])), float(process.sigma(ts[1]))
    out, _ = step(lambda x, t: Gaussian(x / alpha), torch.ones(2, 1, dtype=F64), 0, None, Noise(0, 2))
    z = Noise(0, 2).at(1).normal_like(out)
    torch.testing.assert_close(out, 1 + sigma * math.sqrt(2) * z)


@pytest.mark.parametrize(("epsilon", "moves"), [(2e-5, 100), (6.2e-6, 5)])
def test_annealed_langevin_is_the_published_algorithm(epsilon, moves):
    """alpha_i = epsilon sigma_i^2/sigma_L^2 and x + alpha_i/2 score + sqrt(alpha_i) z on N(0, v), sigma from 1 to 0.01."""
    process, var = EDM(1.0), 0.04
    sigma = np.geomspace(1.0, 0.01, 10)
    v = var + sigma[0] ** 2
    for s in sigma[1:]:
        size = epsilon * s**2 / sigma[-1] ** 2
        for _ in range(moves):
            v = (1 - size / 2 / (var + s**2)) ** 2 * v + size
    ts = torch.tensor(sigma, dtype=F64)
    assert law_of(annealed_langevin(epsilon / 0.01**2, moves), process, ts, 0.0, var)[1] == pytest.approx(v, rel=1e-9)


def test_annealed_langevin_on_any_process_is_that_on_ve():
    ts = log_snr_times(VP(), -5.0, 3.0, 8)
    s = (VP().sigma(ts) / VP().alpha(ts)).tolist()
    mean, v = law_of(annealed_langevin(0.3, 4), VP(), ts, 0.7, 0.5)
    other = law_of(annealed_langevin(0.3, 4), EDM(), torch.tensor(s, dtype=F64) / 80, 0.7, 0.5)
    alpha = float(VP().alpha(ts[-1]))
    assert mean / alpha == pytest.approx(other[0], rel=1e-9)
    assert v / alpha**2 == pytest.approx(other[1], rel=1e-9)


@pytest.mark.slow
def test_annealed_langevin_reaches_the_law_of_a_mixture():
    """Unequal modes: the weight of each within 4.5 standard errors and 1 %; their width, which freezes on the way, within 4 % of
    what one mode alone would have. 4000 items; false alarm 1e-4."""
    modes, weights, std, n = np.array([[-1.0, 0.0], [1.0, 0.5], [0.2, -1.0]]), np.array([0.6, 0.3, 0.1]), 0.15, 4000
    sigma = np.geomspace(8.0, 0.03, 40)
    model = Mixture(weights, modes, [std**2 * np.eye(2)] * 3).torch(EDM(8.0))
    ts = torch.cat([torch.tensor(sigma / 8, dtype=F64), torch.zeros(1, dtype=F64)])
    x = sample(model, (n, 2), ts, annealed_langevin(0.1, 20)).double()
    nearest = torch.cdist(x, torch.tensor(modes)).min(1)
    share = torch.bincount(nearest.indices, minlength=3) / n
    assert bool(
        ((share - torch.tensor(weights)).abs() < 0.01 + 4.5 * torch.tensor(np.sqrt(weights * (1 - weights) / n))).all()
    )
    v = law_of(annealed_langevin(0.1, 20), EDM(8.0), ts, 0.0, std**2)[1]
    assert v == pytest.approx(std**2, rel=0.15)
    assert float(nearest.values.square().mean()) == pytest.approx(2 * v, rel=0.04)


def test_what_is_refused():
    with pytest.raises(ValueError, match="snr in"):
        corrector(exponential(1), snr=0.0)
    with pytest.raises(ValueError, match=r"at least 1, got 0\.2 and 0"):
        annealed_langevin(moves=0)
    with pytest.raises(ValueError, match="alpha = 0"):
        annealed_langevin()(Flow(), torch.tensor([1.0, 0.5], dtype=F64))
