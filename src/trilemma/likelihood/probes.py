"""Estimators of the divergence along a path: what they sample, and which of them may change their probes on the way.

At one point of the path an estimator gives S samples of the trace whose mean over S is the estimate. The integrals of
the samples are kept apart, so that their spread gives the standard error of the whole integral:

    exact        S = 1, by all unit vectors
    hutchinson   v_s^T J v_s, with signs v_s that stay the same along the path
    hutch++      (2) of ``numerics.trace`` with S = probes, and a sketch of as many vectors
    fresh        v_s^T J v_s, with new signs at every evaluation
    orthogonal   v_s^T J v_s, with one row after another of randomised Hadamard matrices, one matrix a sample

Solvers that choose their steps compare evaluations with each other, so they need a field that stays the same. On a
fixed grid the errors of independent probes average out along the path; those of orthogonal rows cancel besides as far
as J stays the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._names import lookup
from ..numerics.noise import Noise
from ..numerics.trace import Product, exact_trace, hadamard, hutchpp, quadratic_forms, signs

__all__ = ["CHANGING", "TRACES", "Estimator", "estimator"]

Estimator = Callable[[Product, Tensor, Tensor, int], Tensor]
"""Products at a point, its state (for the shape), the items' numbers, and the number of the evaluation, to samples
(b, S)."""


def _exact(_: Noise, probes: int) -> Estimator:
    return lambda product, y, items, index: exact_trace(product, y)[:, None]


def _hutchinson(noise: Noise, probes: int) -> Estimator:
    return lambda product, y, items, index: quadratic_forms(product, signs(noise[items.cpu()], probes, y)).T


def _hutchpp(noise: Noise, probes: int) -> Estimator:
    def samples(product: Product, y: Tensor, items: Tensor, index: int) -> Tensor:
        width = min(probes, y[0].numel())
        sketch = signs(noise.at(0)[items.cpu()], width, y)
        return hutchpp(product, sketch, signs(noise.at(1)[items.cpu()], probes, y)).T

    return samples


def _fresh(noise: Noise, probes: int) -> Estimator:
    return lambda product, y, items, index: quadratic_forms(product, signs(noise.at(index)[items.cpu()], probes, y)).T


def _orthogonal(noise: Noise, probes: int) -> Estimator:
    def samples(product: Product, y: Tensor, items: Tensor, index: int) -> Tensor:
        rows = [hadamard(noise.at(p)[items.cpu()], index, y) for p in range(probes)]
        return quadratic_forms(product, torch.stack(rows)).T

    return samples


TRACES: dict[str, Callable[[Noise, int], Estimator]] = {
    "exact": _exact,
    "hutchinson": _hutchinson,
    "hutch++": _hutchpp,
    "fresh": _fresh,
    "orthogonal": _orthogonal,
}
"""Every estimator by its name."""

CHANGING = frozenset({"fresh", "orthogonal"})
"""Those that change their probes along the path, for fixed grids."""


def estimator(name: str, noise: Noise, probes: int) -> Estimator:
    """The estimator of that name.

    Raises:
        ValueError: there is none, or no probe is asked for.
    """
    if probes < 1:
        raise ValueError(f"at least one probe is needed, got probes={probes}")
    return lookup("trace", name, TRACES)(noise, probes)
