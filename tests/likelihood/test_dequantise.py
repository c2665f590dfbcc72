"""Dequantisation: on a discrete law with known probabilities every bound lies below them, in the stated order, and converges."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from oracles import F64, scalar
from trilemma.data.dataset import DataSet
from trilemma.denoise import Covariances, Denoiser, FiniteDenoiser, Gaussian, MixtureDenoiser
from trilemma.likelihood.bits import best_level, bits_per_dim, density_at
from trilemma.likelihood.dequantise import TruncatedNormal, Uniform, find_values, to_model_units, to_values
from trilemma.likelihood.later import Later, LaterProcess
from trilemma.likelihood.variational import Variational, train_dequantiser
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow

K = 4
HALF = 1 / (K - 1)
WIDTH = 0.12 * HALF  # of the model's density around a value


def law_of_two(seed=0):
    """Probabilities of two integers below K that depend on one another."""
    p = np.random.default_rng(seed).uniform(0.1, 1.0, (K, K)) + 3 * np.eye(K)
    return p / p.sum()


def model_of(process, width=WIDTH):
    grid = torch.tensor(list(product(range(K), repeat=2)), dtype=F64) * 2 * HALF - 1
    covariances = Covariances.diagonal(torch.full((K * K, 2), width**2))
    return MixtureDenoiser(process, grid, covariances, torch.tensor(law_of_two().ravel()))


def every_image(copies=1):
    """All images, and their probabilities."""
    k = torch.tensor(list(product(range(K), repeat=2)) * copies)
    return k, torch.tensor(law_of_two().ravel()).repeat(copies)


def bits_of(p):
    return -np.log2(np.asarray(p, float)) / 2


def mass_of_bins(width):
    """P(k) of a mixture with independent normal noise around the values: products of error functions, no draw."""
    edges = np.arange(K) * 2 * HALF - 1
    gap = edges[:, None] - edges[None]
    inside = 0.5 * np.vectorize(math.erf)((gap + HALF) / width / 2**0.5)
    inside -= 0.5 * np.vectorize(math.erf)((gap - HALF) / width / 2**0.5)
    return inside @ law_of_two() @ inside.T


def value(report, p):
    """Bits/dim under the true law, from one of every image."""
    return float((report.per_image * p).sum() / p.sum())


@pytest.mark.slow
def test_the_bounds_are_in_order_and_converge():
    """True bits <= truncated normal, more samples closer <= variational <= uniform; and many samples give the closed form."""
    model = model_of(VP())
    images, p = every_image(4)
    exact = float((bits_of(p) * p.numpy()).sum() / p.sum())
    how = {"values": K, "steps": 24}
    uniform = bits_per_dim(model, images, dequantise="uniform", **how)
    learned = train_dequantiser(model, images, tau=15.0, values=K, updates=250, batch=128, lr=1e-2)
    variational = bits_per_dim(model, images, dequantise=learned, **how)
    seen = images[torch.multinomial(p, 64, replacement=True, generator=torch.Generator().manual_seed(0))]
    law, tried = best_level(model, seen, taus=(1.0, 2.7), values=K, steps=24)
    assert law.tau == 2.7
    assert tried[1.0] > tried[law.tau] + 0.1
    one, four, many = (bits_per_dim(model, images, dequantise=law, samples=s, values=K, steps=40) for s in (1, 4, 8))
    values = [value(report, p) for report in (uniform, variational, one, four, many)]
    assert values[0] > values[1] + 1.0
    assert values[1] > values[2] + 2e-3
    assert abs(values[3] - values[4]) < 0.01  # about twice the error of so many draws
    assert values[2] > max(values[3:])
    assert values[4] > exact - 1e-3
    limit = bits_of(mass_of_bins(math.hypot(HALF / law.tau, WIDTH))).ravel()
    limit = float((limit * p[:16].numpy()).sum())
    assert abs(values[4] - limit) < 6e-3
    assert values[4] - exact < 0.015
    for report, found in ((four, values[3]), (many, values[4])):  # draws of the same kind, of which few are large
        assert 0 < report.gap < 0.02
        assert abs(found - limit - report.gap) < 0.01
    assert many.gained > four.gained > 0
    assert math.isnan(one.gap)


def test_one_coordinate_by_quadrature():
    """The uniform bound is -E log2 p(x + u) - log2(2b), the integral done by Gauss and Legendre."""
    width = 0.5 * HALF
    means = torch.linspace(-1, 1, K, dtype=F64)[:, None]
    model = MixtureDenoiser(Flow(), means, Covariances.diagonal(torch.full((K, 1), width**2)))
    images = torch.arange(K)[:, None].repeat(400, 1)
    report = bits_per_dim(model, images, dequantise="uniform", values=K, steps=40)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    expected = []
    for k in range(K):
        x = (2 * k * HALF - 1) + HALF * nodes
        density = np.mean(
            [np.exp(-((x - m) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi)) for m in means[:, 0].numpy()],
            0,
        )
        expected.append(-np.sum(weights / 2 * np.log2(density)) - math.log2(2 * HALF))
    assert abs(report.value - np.mean(expected)) < 4.5 * report.stderr + 1e-3  # a false alarm in 1e5
    assert report.stderr < 0.02
    assert report.offset == pytest.approx(math.log2((K - 1) / 2))


def test_atoms_have_probabilities_although_they_have_no_density():
    """A finite data set, its images once, twice and five times: the flow gives their frequencies; 8-bit images of three axes."""
    frames = torch.tensor([[3, 250, 7, 90], [200, 10, 255, 0], [128, 128, 90, 60]], dtype=torch.uint8).reshape(
        3, 1, 2, 2
    )
    data = to_model_units(frames).double()
    model = FiniteDenoiser(EDM(), data[[0, 1, 1, 2, 2, 2, 2, 2]])
    report = bits_per_dim(model, frames, dequantise=TruncatedNormal(4.0), samples=2, rtol=1e-5, atol=1e-5)
    exact = -torch.tensor([1 / 8, 2 / 8, 5 / 8], dtype=F64).log2() / 4
    torch.testing.assert_close(report.per_image, exact, rtol=0, atol=0.02)
    assert report.offset == pytest.approx(math.log2(127.5))
    assert report.value > 0


@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=["vp", "flow", "edm"])
def test_a_later_process_is_a_process_and_its_denoiser_exact(process):
    """E[x_s | x_t] of a mixture against that of the mixture of x_s, made by hand; curves against the kernel of the base."""
    start, model = 0.23, model_of(process, 0.1)
    alpha, sigma = (float(c(scalar(start))) for c in (process.alpha, process.sigma))
    later = LaterProcess(process, start)
    by_hand = MixtureDenoiser(
        later,
        alpha * model.means.reshape(-1, 2),
        Covariances.diagonal(torch.full((K * K, 2), alpha**2 * 0.01 + sigma**2, dtype=F64)),
        torch.tensor(law_of_two().ravel()),
    )
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (0.01, 0.4, 0.97, 1.0):
        torch.testing.assert_close(
            Later(model, start)(x, scalar(t)).mean, by_hand(x, scalar(t)).mean, rtol=1e-8, atol=1e-9
        )
    t = torch.tensor([1e-4, 0.2, 0.9, 1.0], dtype=F64)
    old = start + (1 - start) * t
    variance = process.sigma(old) ** 2 - (process.alpha(old) / alpha * sigma) ** 2
    torch.testing.assert_close(later.sigma(t) ** 2, variance, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(later.time(later.log_snr(t)), t, rtol=1e-9, atol=1e-11)
    inside = t[:-1]
    snr = 2 * (later.alpha(inside) / later.sigma(inside)).log()
    torch.testing.assert_close(later.log_snr(inside), snr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(6,), (2, 5), (1, 4, 4), (2, 2, 3, 2)])
def test_the_learned_law_is_a_density(shape):
    """E_q[1/q] over (-1, 1)^D is its volume 2^D; and log q is the log-determinant of the map, by finite differences."""
    torch.manual_seed(0)
    law = Variational(shape, hidden=8, couplings=3)
    for p in law.parameters():
        torch.nn.init.normal_(p, std=0.2)
    law.double().requires_grad_(False)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1), dtype=F64)

    class Fixed:
        def __init__(self, u):
            self.u = u

        def uniform(self, shape, **_):
            return self.u.reshape(shape)

    u = torch.rand(math.prod(shape), generator=torch.Generator().manual_seed(2), dtype=F64) * 0.8 + 0.1
    jacobian = torch.autograd.functional.jacobian(lambda u: law.draw(x, Fixed(u))[0].flatten(), u)
    _, log_q = law.draw(x, Fixed(u))
    assert float(log_q) == pytest.approx(-float(torch.linalg.slogdet(jacobian)[1]), abs=1e-8)


def test_truncated_normal_noise_has_its_density():
    """20000 draws against the distribution function (Kolmogorov: a false alarm in 1e4), and log q normalised by quadrature."""
    law, n = TruncatedNormal(1.7), 20_000
    v, log_q = law.draw(torch.zeros(n, 1), Noise(0, n))
    z = math.erf(1.7 / 2**0.5)
    uniform = (torch.erf(v[:, 0].sort()[0] * 1.7 / 2**0.5) / z + 1) / 2
    assert float((uniform - (torch.arange(n) + 0.5) / n).abs().max()) < 2.23 / n**0.5
    order = v[:, 0].argsort()
    mass = torch.trapezoid(log_q[order].exp(), v[order, 0])
    assert float(mass) == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_training_reaches_the_optimum_of_a_gaussian_bin():
    """For p normal inside of the bin, the best logistic scale is known: -E[log p - log q] is at most 0.02 nats a dimension."""
    model = model_of(Flow(), 0.25 * HALF)
    images, p = every_image(4)
    law = train_dequantiser(model, images, tau=12.0, values=K, updates=250, batch=96, lr=1e-2)
    width = HALF * math.hypot(0.25, 1 / 12)
    report = bits_per_dim(model, images, dequantise=law, values=K, steps=40)
    limit = bits_of(mass_of_bins(width)).ravel()
    excess = (value(report, p) - float((limit * p[:16].numpy()).sum())) * math.log(2)
    assert 0 < excess < 0.02
    before = bits_per_dim(model, images, dequantise=Variational((2,), tau=12.0), values=K, steps=40)
    assert value(before, p) - value(report, p) > 0.5


def test_error_bars_and_parts():
    """More images, smaller error; batches, order and other images leave an image as it is."""
    model = model_of(VP())
    images, _ = every_image()
    whole = bits_per_dim(model, images, values=K, steps=24, seeds=range(16))
    parts = bits_per_dim(model, images, values=K, steps=24, seeds=range(16), batch=5)
    torch.testing.assert_close(whole.per_image, parts.per_image, rtol=1e-6, atol=1e-6)
    part = bits_per_dim(model, images[[7, 2]], values=K, steps=24, seeds=[7, 2])
    torch.testing.assert_close(part.per_image, whole.per_image[[7, 2]], rtol=1e-6, atol=1e-6)
    assert whole.stderr == pytest.approx(float(whole.per_image.std()) / 4)
    low, high = whole.interval
    assert high - low == pytest.approx(2 * 2.13145 * whole.stderr, rel=1e-5)  # Student, 15 degrees of freedom
    assert whole.calls == 24
    assert whole.prior_mismatch == 0  # the law of x_1 is known, also of items at a level of noise
    assert math.isnan(part.gap)
    assert math.isnan(bits_per_dim(model, images[:1], values=K, steps=24).stderr)


def test_bins_lie_around_the_values_that_the_data_have():
    """As DataSet maps them, and back."""
    k = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    torch.testing.assert_close(to_model_units(k), DataSet(k).model_units(), rtol=0, atol=1e-6)
    assert torch.equal(to_values(DataSet(k).model_units(), 256), k.long())
    assert find_values(DataSet(k).model_units()) == 256
    assert find_values(torch.tensor([-1.0, 1.0])) == 2
    v, _ = Uniform().draw(torch.zeros(4000, 1), Noise(0, 4000))
    assert abs(float(v.mean())) < 4.5 * 0.5774 / 4000**0.5  # a false alarm in 1e5
    assert float(v.abs().max()) < 1
    with pytest.raises(ValueError, match="not made of 17 equally spaced values"):
        to_values(torch.tensor([0.01]), 17)
    with pytest.raises(ValueError, match="no grid of up to 256 values"):
        find_values(torch.rand(50))


class OnlyShape(Denoiser):
    """Takes (1, 4, 4) only."""

    def __init__(self):
        super().__init__()
        self.process, self.net = VP(), torch.nn.Conv2d(1, 1, 1)

    def forward(self, x_t, t):
        return Gaussian(self.net(x_t))


def test_what_it_refuses():
    model, images = model_of(VP()), torch.zeros(3, 2, dtype=torch.uint8)
    for wrong in (images.float(), images.double() / 255, images.bool()):
        with pytest.raises(ValueError, match="raw integers, such as uint8 from 0 to 255"):
            bits_per_dim(model, wrong)
    with pytest.raises(ValueError, match="hold 0 and 1 only; if 1 is white, say values=2"):
        bits_per_dim(model, images)
    with pytest.raises(ValueError, match="go from 0 to 9, outside of 0 to 3; say values=10"):
        bits_per_dim(model, images.int() + torch.tensor([0, 9]), values=4)
    with pytest.raises(ValueError, match="outside of 0 to 3"):
        bits_per_dim(model, images.int() - 1, values=4)
    with pytest.raises(ValueError, match=r"images of shape \(3,\) do not fit this denoiser"):
        bits_per_dim(model, torch.full((2, 3), 9))
    with pytest.raises(ValueError, match=r"images of shape \(3, 4, 4\) do not fit this denoiser"):
        bits_per_dim(OnlyShape(), torch.full((2, 3, 4, 4), 9))
    with pytest.raises(ValueError, match="samples=0"):
        bits_per_dim(model, images, values=4, samples=0)
    with pytest.raises(ValueError, match="did you mean 'uniform'"):
        bits_per_dim(model, images, values=4, dequantise="unifrom")
    with pytest.raises(ValueError, match=r"tau=0 must lie between"):
        TruncatedNormal(0.0)
    with pytest.raises(ValueError, match="never has sigma/alpha = 200"):
        density_at(model_of(EDM()), 200.0)
    with pytest.raises(ValueError, match="taus is empty"):
        best_level(model, images, taus=())
    with pytest.raises(ValueError, match=r"made for items of shape \(3,\), not \(2,\)"):
        bits_per_dim(model, images, values=4, dequantise=Variational((3,)))
