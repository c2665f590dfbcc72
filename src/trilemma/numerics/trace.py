"""Divergence of a vector field, div f = sum_i df_i/dx_i, item by item.

Exact by one vector-Jacobian product a coordinate, or without bias by Hutchinson's identity

    E[v^T J v] = tr J   for independent v_i of mean 0 and variance 1,                                        (1)

whose standard error over P probes is std_p(v_p^T J v_p) / sqrt(P).

Source: Hutchinson 1990. With signs (Rademacher) the variance is 2 sum_{i != j} S_ij^2, S the symmetric part of J: least possible.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .noise import Noise
from .shapes import dot

__all__ = ["divergence", "hutchinson"]


def divergence(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and exact divergence of ``f`` at ``x``.

    Args:
        f: a field that keeps the shape and does not mix items.
        x: shape ``(B, ...)``.

    Returns:
        ``f(x)``, shape ``(B, ...)``, and div f, shape ``(B,)``.

    Cost:
        One forward and as many backward passes as an item has coordinates.

    >>> value, div = divergence(lambda x: x**2, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> div
    tensor([ 6., 14.])
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = f(x)
        flat = y.flatten(1)
        total = torch.zeros(x.shape[0], dtype=y.dtype, device=y.device)
        if y.requires_grad:  # a field that does not depend on x has divergence 0
            for i in range(flat.shape[1]):
                (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True, allow_unused=True)
                total = total if row is None else total + row.flatten(1)[:, i]
    return y.detach(), total.detach()


def hutchinson(
    f: Callable[[Tensor], Tensor], x: Tensor, noise: Noise, *, probes: int = 1, law: str = "rademacher"
) -> tuple[Tensor, Tensor, Tensor]:
    """Value of ``f`` and an unbiased estimate of its divergence, with its standard error: equation (1).

    Args:
        f: a field that keeps the shape and does not mix items.
        x: shape ``(B, ...)``.
        noise: source of the probes, one item per item of ``x``.
        probes: number P of probes an item.
        law: ``"rademacher"`` (signs) or ``"gaussian"``.

    Returns:
        ``f(x)``; the estimate, shape ``(B,)``; its standard error, shape ``(B,)`` (NaN for one probe, which shows no spread).

    Raises:
        ValueError: no probe is asked for, or the law is unknown.

    Cost:
        One forward and P backward passes.
    """
    if probes < 1:
        raise ValueError(f"at least one probe is needed, got {probes}")
    if law not in ("rademacher", "gaussian"):
        raise ValueError(f"law must be 'rademacher' or 'gaussian', got {law!r}")
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = f(x)
        values = []
        for p in range(probes):
            v = noise.at(p).normal_like(x)
            v = v.sign() if law == "rademacher" else v
            if y.requires_grad:
                (row,) = torch.autograd.grad(y, x, v, retain_graph=p + 1 < probes)
                values.append(dot(row, v))
            else:
                values.append(dot(torch.zeros_like(x), v))
    samples = torch.stack(values).detach()
    error = samples.std(0) / probes**0.5 if probes > 1 else torch.full_like(samples[0], torch.nan)
    return y.detach(), samples.mean(0), error
