"""Traces of Jacobians of fields whose divergence is known and is not zero, on items of odd shapes."""

import math

import pytest
import torch

from trilemma.numerics import trace
from trilemma.numerics.noise import Noise
from trilemma.numerics.trace import exact_trace, hadamard, hutchpp, quadratic_forms, signs, vjps

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


def products(f, x):
    """Products with the transposed Jacobian of ``f`` at ``x``."""
    x = x.clone().requires_grad_()
    y = f(x)
    return lambda vectors: vjps(y, x, vectors)


def forms(f, x, noise, probes):
    """v^T J v for signs v, shape ``(probes, B)``."""
    return quadratic_forms(products(f, x), signs(noise, probes, x))


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 2, 5), (1, 7, 1)])
def test_exact_trace(shape):
    f, x = Field(shape), rand(4, *shape, seed=9)
    torch.testing.assert_close(exact_trace(products(f, x), x), f.divergence(x))


def test_fields_that_ignore_some_or_all_of_x():
    x = rand(3, 4)
    constant = lambda x: torch.ones_like(x)
    assert exact_trace(products(constant, x), x).tolist() == [0, 0, 0]
    assert not forms(constant, x, Noise(0, 3), 4).any()
    half = lambda x: torch.cat([x[:, :2] ** 2, torch.ones_like(x[:, 2:])], 1)
    torch.testing.assert_close(exact_trace(products(half, x), x), 2 * x[:, :2].sum(1))


def test_signs_are_unbiased():
    """2000 estimates of 16 probes: |z| < 4.9, false alarm 1e-6."""
    f, n = Field((2, 3)), 2000
    x = rand(1, 2, 3, seed=4).expand(n, 2, 3)
    mean = forms(f, x, Noise(0, n), 16).mean(0)
    assert abs(float(mean.mean() - f.divergence(x[:1]))) < 4.9 * float(mean.std()) / math.sqrt(n)


def test_variance_of_a_probe():
    """2 sum_{i != j} S_ij^2, 20000 items of two probes; 10 % is more than 4.9 deviations."""
    a = rand(5, 5, seed=2)
    s = (a + a.T) / 2
    expected = 2 * float(s.square().sum() - s.diagonal().square().sum())
    samples = forms(lambda x: x @ a.T, torch.zeros(20_000, 5, dtype=F64), Noise(1, 20_000), 2)
    assert float(samples.var()) == pytest.approx(expected, rel=0.1)
    assert float((samples[0] - samples[1]).square().mean()) == pytest.approx(2 * expected, rel=0.1)  # independent


def test_signs_are_exact_on_diagonal_fields():
    x = rand(3, 6)
    torch.testing.assert_close(forms(lambda x: x**3, x, Noise(0, 3), 3), (3 * x**2).sum(1).expand(3, 3))


def test_probes_belong_to_items():
    f, x, noise = Field((2, 3)), rand(4, 2, 3), Noise([5, 6, 7, 8])
    whole, alone = forms(f, x, noise, 5), forms(f, x[2:3], noise[2:3], 5)
    torch.testing.assert_close(whole[:, 2:3], alone, rtol=1e-13, atol=1e-13)


class Stubborn(torch.autograd.Function):
    """tanh whose derivative knows no batches."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        assert type(g) is torch.Tensor
        assert g.untyped_storage().data_ptr()  # batched tensors have none: RuntimeError
        return g * (1 - x.tanh() ** 2)


@pytest.mark.parametrize("tanh", [torch.tanh, Stubborn.apply], ids=["batched", "one by one"])
def test_products_are_those_of_the_dense_jacobian(tanh):
    a, x, v = rand(6, 6), rand(3, 2, 3, seed=1).requires_grad_(), rand(4, 3, 2, 3, seed=2)
    y = tanh(x.flatten(1) @ a.T).reshape(x.shape)
    slope = 1 - torch.tanh(x.detach().flatten(1) @ a.T) ** 2
    jacobian = slope[:, :, None] * a  # (3, 6, 6)
    expected = torch.einsum("pbi,bij->pbj", v.flatten(2), jacobian).reshape(v.shape)
    torch.testing.assert_close(vjps(y, x, v), expected)


def test_the_exact_trace_does_not_depend_on_how_products_are_batched(monkeypatch):
    a = rand(7, 7)
    product = lambda v: v @ a
    whole = exact_trace(product, torch.zeros(2, 7, dtype=F64))
    monkeypatch.setattr(trace, "_CHUNK", 40)  # two vectors at a time, and one left over
    torch.testing.assert_close(exact_trace(product, torch.zeros(2, 7, dtype=F64)), whole)
    torch.testing.assert_close(whole, a.trace().expand(2))


def test_all_rows_of_a_hadamard_matrix_are_exact():
    """Five coordinates take a matrix of eight rows; the next eight are another one. A part of them is not
    exact."""
    noise, like, a = Noise(3, 4), torch.zeros(4, 5, dtype=F64), rand(5, 5)
    rows = torch.stack([hadamard(noise, k, like) for k in range(16)])
    assert bool((rows.abs() == 1).all())
    for part in (rows[:8], rows[8:]):
        torch.testing.assert_close(torch.einsum("kbi,kbj->bij", part, part), 8 * torch.eye(5).to(F64).expand(4, 5, 5))
    assert not torch.equal(rows[:8].sum(1), rows[8:].sum(1))
    squares = torch.einsum("kbi,ij,kbj->kb", rows, a, rows)
    assert float((squares[:3].mean(0) - a.trace()).abs().min()) > 1e-3
    assert torch.equal(hadamard(noise[2:3], 6, like[:1])[0], rows[6, 2])  # an item alone


def test_hadamard_rows_are_unbiased():
    """One row, 4000 items; each off-diagonal mean within 4.9 / sqrt(n): false alarm 1e-5 over ten pairs."""
    n = 4000
    v = hadamard(Noise(0, n), 0, torch.zeros(n, 5, dtype=F64))
    second = v.T @ v / n
    assert float((second - torch.eye(5)).abs().max()) < 4.9 / math.sqrt(n)


def test_hutchpp_takes_few_directions_exactly():
    """A matrix of rank 3 by a sketch of 3; and without a bias for any other, |z| < 4.9 over 2000 items."""
    low, n = rand(8, 3) @ rand(3, 8, seed=1), 2000
    draw = lambda seed, k, items: signs(Noise(seed, items), k, torch.zeros(items, 8, dtype=F64))
    samples = hutchpp(lambda v: v @ low, draw(0, 3, 2), draw(1, 2, 2))
    torch.testing.assert_close(samples, low.trace().expand(2, 2))
    full = low + rand(8, 8, seed=5) / 3
    mean = hutchpp(lambda v: v @ full, draw(2, 3, n), draw(3, 2, n)).mean(0)
    plain = quadratic_forms(lambda v: v @ full, draw(3, 2, n)).mean(0)
    assert abs(float(mean.mean() - full.trace())) < 4.9 * float(mean.std()) / math.sqrt(n)
    assert float(mean.std()) < 0.5 * float(plain.std())
