"""Divergence of fields whose divergence is known and is not zero, on items of odd shapes."""

import math

import pytest
import torch

from trilemma.numerics.noise import Noise
from trilemma.numerics.trace import divergence, hutchinson

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Field:
    """x -> tanh(A x + b) + c x^2 of flattened items, with div = sum_i A_ii (1 - tanh_i^2) + 2 c sum_i x_i."""

    def __init__(self, shape, seed=0):
        self.size = math.prod(shape)
        self.a, self.b = rand(self.size, self.size, seed=seed) / 3, rand(self.size, seed=seed + 1)

    def __call__(self, x):
        flat = x.flatten(1)
        return (torch.tanh(flat @ self.a.T + self.b) + 0.1 * flat**2).reshape(x.shape)

    def divergence(self, x):
        flat = x.flatten(1)
        return (self.a.diagonal() * (1 - torch.tanh(flat @ self.a.T + self.b) ** 2)).sum(1) + 0.2 * flat.sum(1)


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 2, 5), (1, 7, 1)])
def test_exact_divergence(shape):
    f, x = Field(shape), rand(4, *shape, seed=9)
    with torch.no_grad():  # works inside a sampler
        value, div = divergence(f, x)
    assert torch.equal(value, f(x))
    torch.testing.assert_close(div, f.divergence(x))
    assert not value.requires_grad
    assert not div.requires_grad


def test_fields_that_ignore_some_or_all_of_x():
    x = rand(3, 4)
    assert divergence(lambda x: torch.ones_like(x), x)[1].tolist() == [0, 0, 0]
    half = lambda x: torch.cat([x[:, :2] ** 2, torch.ones_like(x[:, 2:])], 1)
    torch.testing.assert_close(divergence(half, x)[1], 2 * x[:, :2].sum(1))
    _, mean, error = hutchinson(lambda x: torch.ones_like(x), x, Noise(0, 3), probes=4)
    assert mean.tolist() == error.tolist() == [0, 0, 0]


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_knows_its_error(law):
    """2000 estimates of 16 probes. Mean: |z| < 4.9, false alarm 1e-6. Coverage of 2.131 standard errors (Student, 15 degrees of
    freedom: 95 %): within 4.9 binomial deviations and 1 % for the law not being normal."""
    f, n = Field((2, 3)), 2000
    x = rand(1, 2, 3, seed=4).expand(n, 2, 3).contiguous()
    value, mean, error = hutchinson(f, x, Noise(0, n), probes=16, law=law)
    assert torch.equal(value, f(x))
    truth = f.divergence(x[:1])
    assert abs(float(mean.mean() - truth)) < 4.9 * float(mean.std()) / math.sqrt(n)
    cover = float(((mean - truth).abs() < 2.131 * error).double().mean())
    assert abs(cover - 0.95) < 0.01 + 4.9 * math.sqrt(0.95 * 0.05 / n)


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_variance_of_a_probe(law):
    """2 sum_{i != j} S_ij^2 for signs and 2 sum_ij S_ij^2 for normal numbers, over two probes the half of it, and the squared
    standard errors have that mean; 20000 pairs, 10 % is more than 4.9 deviations."""
    a = rand(5, 5, seed=2)
    s = (a + a.T) / 2
    expected = 2 * (s.square().sum() - (s.diagonal().square().sum() if law == "rademacher" else 0))
    x, noise = torch.zeros(20_000, 5, dtype=F64), Noise(1, 20_000)
    _, mean, error = hutchinson(lambda x: x @ a.T, x, noise, probes=2, law=law)
    assert float(mean.var()) == pytest.approx(float(expected) / 2, rel=0.1)
    assert float(error.square().mean()) == pytest.approx(float(expected) / 2, rel=0.1)


def test_signs_are_exact_on_diagonal_fields():
    x = rand(3, 6)
    _, mean, error = hutchinson(lambda x: x**3, x, Noise(0, 3), probes=3)
    torch.testing.assert_close(mean, (3 * x**2).sum(1))
    assert float(error.max()) < 1e-12


def test_probes_belong_to_items():
    f, x, noise = Field((2, 3)), rand(4, 2, 3), Noise([5, 6, 7, 8])
    _, mean, error = hutchinson(f, x, noise, probes=5)
    _, alone, alone_error = hutchinson(f, x[2:3], noise[2:3], probes=5)
    torch.testing.assert_close(mean[2:3], alone, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(error[2:3], alone_error, rtol=1e-12, atol=1e-13)
    assert bool(torch.isnan(hutchinson(f, x, noise)[2]).all())  # one probe shows no spread


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="probe"):
        hutchinson(torch.tanh, rand(2, 2), Noise(0, 2), probes=0)
    with pytest.raises(ValueError, match="cauchy"):
        hutchinson(torch.tanh, rand(2, 2), Noise(0, 2), law="cauchy")
