"""Traces of Jacobians, item by item, from vector-Jacobian products J^T v.

Exact by one product a coordinate, or without bias from random probes of mean 0 and covariance I:

    tr J = E[v^T J v]                                                       (Hutchinson),                    (1)
    tr J = tr(Q^T J Q) + E[(P g)^T J P g],   P = I - Q Q^T, Q = qr(J^T S)   (Hutch++)                        (2)

with S and g independent. The standard error over m probes is that of a mean: std(v_p^T J v_p) / sqrt(m), for (2) over
the m probes g. (2) takes what J does on the span of Q exactly, which pays where few singular values are large.

Signs (Rademacher) make the variance of (1) least, 2 sum_{i != j} S_ij^2 with S the symmetric part of J. The n rows of
a Hadamard matrix with random signs are such probes, and with sum_k v_k v_k^T = n I all of them are exact.

Sources: Hutchinson 1990; Meyer et al. 2021 (arXiv:2010.09649), algorithm 1, here with tr J = tr J^T in place of
products J v.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .noise import Noise

__all__ = ["exact_trace", "hadamard", "hutchpp", "quadratic_forms", "signs", "vjps"]

Product = Callable[[Tensor], Tensor]
_CHUNK = 2**22  # numbers in the probes of one batched product


def vjps(y: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """Products J^T v of the Jacobian J = dy/dx of every item with several vectors; the graph is kept.

    Args:
        y: a function of ``x`` that does not mix items, shape ``(B, ...)``.
        x: shape ``(B, ...)``, requires grad.
        vectors: shape ``(P, B, ...)``.

    Returns:
        Shape ``(P, B, ...)``.

    Cost:
        P backward passes; together where every operation of the graph can be batched, else one by one.

    >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    >>> vjps(x**2, x, torch.ones(1, 1, 2))
    tensor([[[2., 4.]]])
    """
    if not y.requires_grad:  # does not depend on x
        return torch.zeros_like(vectors)

    def product(v: Tensor, batched: bool) -> Tensor:
        (row,) = torch.autograd.grad(y, x, v, retain_graph=True, allow_unused=True, is_grads_batched=batched)
        return torch.zeros_like(v) if row is None else row

    if len(vectors) > 1:
        try:
            return product(vectors, batched=True)
        except RuntimeError:  # an operation without a batching rule
            pass
    return torch.stack([product(v, batched=False) for v in vectors])


def exact_trace(product: Product, like: Tensor) -> Tensor:
    """Trace of J from its products with all unit vectors, shape ``(B,)``.

    Args:
        product: vectors of shape ``(P, B, ...)`` to J^T v.
        like: a tensor of the shape ``(B, ...)`` of the items and of the type of the vectors.

    Cost:
        One product a coordinate, in batches of up to four million numbers.

    >>> a = torch.tensor([[1.0, 5.0], [0.0, 3.0]])
    >>> exact_trace(lambda v: v @ a, torch.zeros(1, 2))
    tensor([4.])
    """
    flat = like.flatten(1) if like.ndim > 1 else like[:, None]
    size = flat.shape[1]
    total = torch.zeros_like(flat[:, 0])
    step = max(1, _CHUNK // max(1, flat.numel()))
    for first in range(0, size, step):
        index = torch.arange(first, min(first + step, size), device=like.device)
        unit = torch.zeros(len(index), size, dtype=like.dtype, device=like.device)
        unit[torch.arange(len(index)), index] = 1
        vectors = unit[:, None].expand(-1, len(like), -1).reshape(len(index), *like.shape)
        rows = product(vectors).reshape(len(index), len(like), size)
        total = total + rows[torch.arange(len(index)), :, index].sum(0)
    return total


def quadratic_forms(product: Product, vectors: Tensor) -> Tensor:
    """v_p^T J v_p, shape ``(P, B, ...)`` to ``(P, B)``."""
    rows = product(vectors)
    return (rows * vectors).flatten(2).sum(2) if vectors.ndim > 2 else rows * vectors


def signs(noise: Noise, count: int, like: Tensor) -> Tensor:
    """Probes of independent signs, shape ``(count, B, ...)``; probe p of an item depends on its seed and p alone."""
    draws = [torch.where(noise.at(p).uniform(like.shape, device=like.device) < 0.5, -1.0, 1.0) for p in range(count)]
    return torch.stack(draws).to(like)


def hadamard(noise: Noise, row: int, like: Tensor) -> Tensor:
    """Probe number ``row``, shape ``(B, ...)``: the rows of a Hadamard matrix, in an order and with signs of
    each item.

    The order of the matrix is the least power of two that an item's coordinates fit into; it repeats with new signs.

    Args:
        noise: source of the signs and the order, one item per item of ``like``.
        row: number of the probe, from 0.
        like: a tensor of the shape and type of the probe.
    """
    shape, size = like.shape, max(1, like[0].numel())
    order = 1 << max(0, (size - 1).bit_length())
    again, row = divmod(row, order)
    noise = noise.at(again)
    flip = torch.where(noise.at(0).uniform((len(like), size), device=like.device) < 0.5, -1.0, 1.0)
    first = (noise.at(1).uniform((len(like),), dtype=torch.float64, device=like.device) * order).long()
    # columns in random places, so that which coordinates a run of rows tells apart is random too
    column = noise.at(2).uniform((len(like), order), dtype=torch.float64, device=like.device).argsort(1)[:, :size]
    bits = (first ^ row)[:, None] & column  # entry (i, j) of the matrix is -1 to the number of bits that i and j share
    for shift in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return (flip * (1 - 2 * (bits & 1))).reshape(shape).to(like)


def hutchpp(product: Product, sketch: Tensor, probes: Tensor) -> Tensor:
    """Samples of (2), shape ``(m, B)``.

    Args:
        product: vectors of shape ``(P, B, ...)`` to J^T v.
        sketch: the columns of S, shape ``(k, B, ...)``.
        probes: the vectors g, shape ``(m, B, ...)``.

    Cost:
        2 k + m products.
    """
    shape = sketch.shape[1:]
    columns = product(sketch).flatten(2) if sketch.ndim > 2 else product(sketch)[..., None]
    basis = torch.linalg.qr(columns.permute(1, 2, 0))[0]  # (B, D, k)
    inside = basis.permute(2, 0, 1).reshape(-1, *shape)
    known = quadratic_forms(product, inside).sum(0)
    flat = probes.reshape(len(probes), len(basis), -1)
    rest = flat - torch.einsum("bdk,bek,pbe->pbd", basis, basis, flat)
    return known + quadratic_forms(product, rest.reshape(probes.shape))
