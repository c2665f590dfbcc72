"""Linear systems given by a function, solved item by item, and the moments behind exponential integrators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .shapes import dot, pad

__all__ = ["cg", "gmres", "interpolatory_weights", "lagrange_weights", "moments"]


def cg(
    matvec: Callable[[Tensor], Tensor], b: Tensor, x: Tensor | None = None, *, steps: int = 50, rtol: float = 1e-6
) -> Tensor:
    """Solve A x = b for symmetric positive definite A by conjugate gradients, one system per item.

    Args:
        matvec: x to A x, shape ``(B, ...)`` to the same; items must not mix.
        b: right-hand sides, shape ``(B, ...)``.
        x: first guess; zero if not given.
        steps: at most so many products.
        rtol: an item stops changing when its residual is below this share of ``|b|``.

    Cost:
        At most ``steps`` products (one more with a first guess).

    Source: Hestenes and Stiefel 1952.

    >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    >>> torch.allclose(cg(lambda v: v @ A, torch.tensor([[3.0, 4.0]])), torch.ones(1, 2))
    True
    """
    r = b if x is None else b - matvec(x)
    x = torch.zeros_like(b) if x is None else x
    p, rho = r, dot(r, r)
    goal = rtol**2 * dot(b, b)
    for _ in range(steps):
        live = rho > goal
        if not bool(live.any()):
            break
        q = matvec(p)
        step = torch.where(live, rho / dot(p, q).where(live, torch.ones_like(rho)), 0)
        x, r = x + pad(step, p) * p, r - pad(step, q) * q
        new = dot(r, r)
        p = r + pad(torch.where(live, new / rho.where(live, torch.ones_like(rho)), 0), p) * p
        rho = torch.where(live, new, rho)
    return x


def gmres(
    matvec: Callable[[Tensor], Tensor], b: Tensor, x: Tensor | None = None, *, steps: int = 20, rtol: float = 1e-6
) -> Tensor:
    """Solve A x = b for any invertible A by the generalised minimal residual method, one system per item.

    Args:
        matvec: x to A x, shape ``(B, ...)`` to the same; items must not mix.
        b: right-hand sides, shape ``(B, ...)``.
        x: first guess; zero if not given.
        steps: dimension of the Krylov space.
        rtol: a new direction below this share of the product it comes from is left out.

    Cost:
        At most ``steps`` products (one more with a first guess), and memory for as many copies of ``b``.

    Source: Saad and Schultz 1986.

    >>> A = torch.tensor([[0.0, 1.0], [-2.0, 1.0]])
    >>> y = gmres(lambda v: v @ A.T, torch.tensor([[1.0, -1.0]]))
    >>> torch.allclose(y, torch.ones(1, 2), atol=1e-5)
    True
    """
    start = torch.zeros_like(b) if x is None else x
    r = b if x is None else b - matvec(x)
    size = dot(r, r).sqrt()
    tiny = torch.finfo(b.dtype).tiny
    basis = [r / pad(size.clamp(min=tiny), r)]
    columns: list[Tensor] = []  # of the Hessenberg matrix, each (B, steps + 1)
    for k in range(min(steps, math.prod(b.shape[1:]))):
        w = matvec(basis[k])
        scale = dot(w, w).sqrt()
        column = torch.zeros(len(b), steps + 1, dtype=b.dtype, device=b.device)
        for _ in range(2):  # Gram-Schmidt twice is enough
            for j, v in enumerate(basis):
                share = dot(v, w)
                column[:, j] += share
                w = w - pad(share, v) * v
        norm = dot(w, w).sqrt()
        live = norm > max(rtol, 10 * torch.finfo(b.dtype).eps) * scale
        column[:, k + 1] = torch.where(live, norm, 0)
        columns.append(column)
        basis.append(torch.where(pad(live, w), w / pad(norm.clamp(min=tiny), w), 0))
        if not bool(live.any()):
            break
    h = torch.stack(columns, 2)  # (B, steps + 1, k)
    rhs = torch.zeros(len(b), steps + 1, 1, dtype=b.dtype, device=b.device)
    rhs[:, 0, 0] = size
    y = (torch.linalg.pinv(h) @ rhs)[..., 0]
    return start + sum((pad(y[:, j], b) * basis[j] for j in range(y.shape[1])), torch.zeros_like(b))


def moments(h: float, count: int, *, end: bool) -> list[float]:
    """Moments of an exponential weight on [0, h], to full double precision for every h from 0 to infinity.

    With ``end`` the weight is one at h: integral of e^(u - h) u^k. Otherwise it is one at 0: integral of e^(-u) u^k.

    Args:
        h: length, not negative; may be infinite without ``end``.
        count: number of moments, k = 0, ..., count - 1.
        end: where the weight is largest.

    >>> [round(m, 6) for m in moments(1.0, 2, end=True)]
    [0.632121, 0.367879]
    """
    if h < 1:  # the recursions below cancel; these series do not
        out = []
        for k in range(count):
            total, term = 0.0, h ** (k + 1) / (k + 1 if end else 1)
            for n in range(20):  # sum_n (-h)^n k! / (k + 1 + n)!, or sum_n (-h)^n / (n! (k + 1 + n))
                total += term if end else term / (k + 1 + n)
                term *= -h / (k + 2 + n if end else n + 1)
            out.append(total)
        return out
    decay = math.exp(-h)
    out = [-math.expm1(-h)]
    for k in range(1, count):
        out.append(h**k - k * out[-1] if end else k * out[-1] - (h**k * decay if decay else 0.0))
    return out


def interpolatory_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights b_j with sum_j b_j u_j^k = m_k for k < len(nodes): those that integrate polynomials as the moments do.

    Args:
        nodes: distinct positions u_j.
        moments: the integrals m_k of u^k, as many as there are nodes.

    Source: Bjorck and Pereyra 1970, "Solution of Vandermonde systems of equations": no matrix, and errors of a few roundings.

    >>> interpolatory_weights([0.0, 1.0], [1.0, 0.5])              # the trapezoidal rule on [0, 1]
    [0.5, 0.5]
    """
    n, b = len(nodes), list(moments)
    for k in range(n - 1):  # the moments of Newton's polynomials, then of Lagrange's
        for i in range(n - 1, k, -1):
            b[i] -= nodes[k] * b[i - 1]
    for k in range(n - 2, -1, -1):
        for i in range(k + 1, n):
            b[i] /= nodes[i] - nodes[i - k - 1]
        for i in range(k, n - 1):
            b[i] -= b[i + 1]
    return b


def lagrange_weights(nodes: Sequence[float], h: float, *, end: bool) -> list[float]:
    """Weights b_j with sum_j b_j p(u_j) = integral of the exponential weight times p, for polynomials p of degree < len(nodes).

    Args:
        nodes: distinct positions u_j; the interval of integration is [0, h].
        h: its length.
        end: as in :func:`moments`.

    >>> [round(w, 6) for w in lagrange_weights([0.0], 1.0, end=True)]
    [0.632121]
    """
    return interpolatory_weights(nodes, moments(h, len(nodes), end=end))
