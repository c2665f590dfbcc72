"""Krylov solvers against dense ones; moments and Lagrange weights against 40-digit arithmetic."""

import math

import mpmath
import pytest
import torch

from trilemma.numerics.linear import cg, gmres, lagrange_weights, moments
from trilemma.numerics.shapes import dot, pad, rms

F64 = torch.float64
SIZE = 12


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rotations(n):
    return torch.linalg.qr(rand(n, SIZE, SIZE, seed=1))[0]


def definite():
    """Five systems of condition 1, 10, 1e3, 1e6, and one with two distinct eigenvalues only."""
    spectra = [torch.logspace(0, c, SIZE, dtype=F64) for c in (0, 1, 3, 6)] + [torch.tensor([1.0, 50.0] * 6, dtype=F64)]
    q = rotations(5)
    return q @ torch.diag_embed(torch.stack(spectra)) @ q.mT


def product(a):
    """x -> A x for items of shape (2, 2, 3)."""
    return lambda x: torch.einsum("bij,bj->bi", a, x.flatten(1)).reshape(x.shape)


def relative_residual(a, x, b):
    return (product(a)(x) - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


@pytest.mark.parametrize("solver", [cg, gmres])
def test_solves_every_item_of_a_batch(solver):
    a, b = definite(), rand(5, 2, 2, 3, seed=2)
    x = solver(product(a), b, steps=200 if solver is cg else SIZE, rtol=1e-11)
    assert bool((relative_residual(a, x, b) < 1e-9).all())
    exact = torch.linalg.solve(a, b.flatten(1))
    torch.testing.assert_close(x.flatten(1)[[0, 1, 2, 4]], exact[[0, 1, 2, 4]], rtol=1e-6, atol=1e-6)


def test_gmres_on_systems_that_are_not_symmetric():
    left, right = rotations(4), torch.linalg.qr(rand(4, SIZE, SIZE, seed=7))[0]
    a = left @ torch.diag_embed(torch.stack([torch.logspace(0, c, SIZE, dtype=F64) for c in (0, 1, 2, 4)])) @ right
    b = rand(4, 2, 2, 3, seed=3)
    x = gmres(product(a), b, steps=SIZE, rtol=1e-13)
    assert bool((relative_residual(a, x, b) < 1e-9).all())


def test_gmres_meets_its_tolerance_on_a_cyclic_shift():
    """The hardest system for it: no progress at all until the last of SIZE steps (Greenbaum, Ptak and Strakos 1996)."""
    a = torch.roll(torch.eye(SIZE, dtype=F64), 1, 0)[None]
    b = torch.zeros(1, 2, 2, 3, dtype=F64)
    b[0, 0, 0, 0] = 1
    assert float(relative_residual(a, gmres(product(a), b, steps=SIZE), b)[0]) < 1e-9
    assert float(relative_residual(a, gmres(product(a), b, steps=SIZE - 1), b)[0]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("solver", [cg, gmres])
def test_tolerance_is_met(solver):
    a, b = definite()[:3], rand(3, 2, 2, 3, seed=2)
    for rtol in (1e-2, 1e-5):
        x = solver(product(a), b, steps=60 if solver is cg else SIZE, rtol=rtol)
        assert bool((relative_residual(a, x, b) <= rtol).all())


@pytest.mark.parametrize("solver", [cg, gmres])
def test_zero_right_hand_side_and_solved_items(solver):
    a, b = definite()[:3], rand(3, 2, 2, 3, seed=2)
    b[1] = 0
    x = solver(product(a), b, steps=100 if solver is cg else SIZE, rtol=1e-10)
    assert not bool(x[1].any())
    torch.testing.assert_close(x.flatten(1), torch.linalg.solve(a, b.flatten(1)), rtol=1e-6, atol=1e-7)
    again = solver(product(a), b, x, steps=100 if solver is cg else SIZE, rtol=1e-6)
    torch.testing.assert_close(again, x, rtol=1e-5, atol=1e-6)
    far = solver(product(a), b, rand(3, 2, 2, 3, seed=5), steps=400 if solver is cg else SIZE, rtol=1e-10)
    torch.testing.assert_close(
        far, x, rtol=1e-5, atol=1e-5
    )  # the guess of the zero item shrinks to nothing without a NaN


@pytest.mark.parametrize("solver", [cg, gmres])
def test_an_item_does_not_know_its_batch(solver):
    a, b = definite(), rand(5, 2, 2, 3, seed=2)
    whole = solver(product(a), b, steps=12, rtol=1e-4)
    for i in range(5):
        alone = solver(product(a[i : i + 1]), b[i : i + 1], steps=12, rtol=1e-4)
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-9, atol=1e-9)


def test_cg_counts_its_products():
    calls = 0

    def count(x):
        nonlocal calls
        calls += 1
        return product(definite()[4:])(x)

    cg(count, rand(1, 2, 2, 3), rtol=1e-10)
    assert calls == 2  # as many as there are distinct eigenvalues (Hestenes and Stiefel 1952, theorem 5:2)


LENGTHS = [1e-12, 1e-6, 1e-3, 0.1, 0.999999, 1.0, 1.5, 5.0, 30.0, 700.0, 1000.0]


def integral(h, k, end):
    """40 digits, by series or by recursion in a precision that cancellation cannot exhaust."""
    with mpmath.workdps(60):
        h = mpmath.mpf(h)
        if end:  # h^(k+1)/(k+1) 1F1(1; k+2; -h)
            return h ** (k + 1) / (k + 1) * mpmath.hyp1f1(1, k + 2, -h)
        return mpmath.gammainc(k + 1, 0, h)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("h", LENGTHS)
def test_moments(h, end):
    for k, value in enumerate(moments(h, 5, end=end)):
        assert value == pytest.approx(float(integral(h, k, end)), rel=2e-13, abs=0)


def test_moments_at_the_ends():
    assert moments(0.0, 3, end=True) == moments(0.0, 3, end=False) == [0, 0, 0]
    assert moments(math.inf, 5, end=False) == pytest.approx([1, 1, 2, 6, 24])  # k!


def test_the_integrals_of_this_file_are_integrals():
    """Against quadrature of the definition, so that the closed forms above are no second guess."""
    from scipy.integrate import quad

    def by_quadrature(h, k, end):
        return quad(lambda u: math.exp(u - h if end else -u) * u**k, 0, h)[0]

    for h in (1e-3, 1.0, 5.0):
        for k in range(5):
            for end in (True, False):
                assert by_quadrature(h, k, end) == pytest.approx(float(integral(h, k, end)), rel=1e-10)


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("h", [1e-6, 1e-2, 0.5, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("past", [(), (-1.0,), (-0.3, -2.1), (-1.0, -2.0, -3.0), (1.0, -0.5, -4.0)])
def test_lagrange_weights_integrate_polynomials(h, past, end):
    """Nodes are given in units of h: on the step, behind it, and one ahead of it."""
    nodes = [0.0, *(h * p for p in past)]
    weights = lagrange_weights(nodes, h, end=end)
    for degree in range(len(nodes)):
        scale = sum(abs(w * u**degree) for w, u in zip(weights, nodes))
        value = math.fsum(w * u**degree for w, u in zip(weights, nodes))
        assert abs(value - float(integral(h, degree, end))) <= 1e-12 * max(scale, float(integral(h, degree, end)))


def test_shapes_keep_items_apart():
    x = rand(3, 2, 4)
    torch.testing.assert_close(dot(x, x), torch.stack([(x[i] * x[i]).sum() for i in range(3)]))
    torch.testing.assert_close(rms(x), torch.stack([x[i].norm() / math.sqrt(8) for i in range(3)]))
    torch.testing.assert_close(pad(x[:, 0, 0], x) * x, torch.stack([x[i, 0, 0] * x[i] for i in range(3)]))
    for wrong in (torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="one per item"):
            pad(wrong, x)
