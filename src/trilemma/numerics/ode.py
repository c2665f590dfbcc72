"""Ordinary differential equations y' = f(t, y): on a given grid, or with a step length chosen for each item.

A state is a tensor or a tuple of tensors whose first axis counts items. Errors are measured, and steps accepted, item by
item: an item's solution does not depend on its neighbours. Times are float64 whatever the state is.

Item b accepts a step when the worst component of the state has

    rms((y' - y*) / (atol + rtol max(|y|, |y'|))) <= 1                                                       (1)

where y* is the embedded result, and the next step is h 0.9 E^(-0.7/k) E_prev^(0.4/k), k the order of y* plus one.   (2)
Between accepted steps the solution is continued by (3) of ``tableau``.

Source: Hairer, Norsett and Wanner 1993, "Solving ordinary differential equations I", II.4; Gustafsson 1991 for (2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from .shapes import pad, rms
from .tableau import RK4, TSITOURAS, Tableau

__all__ = ["Continuous", "Solution", "integrate", "integrate_adaptive", "rk_step"]

Y = TypeVar("Y", Tensor, tuple[Tensor, ...])
Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Piece:
    """One step of every item: where it began, its length (0 where it was rejected), and what it is continued by."""

    t: Tensor
    h: Tensor
    y: Parts
    change: Parts
    slopes: tuple[Parts, Parts]
    quartic: Parts | None


@dataclass(frozen=True)
class Continuous(Generic[Y]):
    """The solution at every time between its ends, by (3) of ``tableau``; made by :func:`integrate_adaptive`.

    Error:
        O(h^5) inside a step of Dormand and Prince's or Tsitouras' method, O(h^4) inside those of the others.
    """

    start: Y
    span: tuple[float, float]
    pieces: tuple[_Piece, ...]

    def __call__(self, t: float) -> Y:
        """The state of all items at one time.

        Raises:
            ValueError: the time is outside of the solution.
        """
        low, high = sorted(self.span)
        if not low <= t <= high:
            raise ValueError(f"the solution goes from {self.span[0]} to {self.span[1]}, not to {t}")
        single = isinstance(self.start, Tensor)
        out: Parts = cast(Parts, (self.start,) if single else self.start)
        for piece in self.pieces:
            x = (t - piece.t) / torch.where(piece.h == 0, torch.nan, piece.h)
            inside = (x >= 0) & (x <= 1 + 1e-12)  # of two pieces that meet, the later
            if bool(inside.any()):
                out = _where(inside, self._inside(piece, x), out)
        return cast(Y, out[0] if single else out)

    @staticmethod
    def _inside(piece: _Piece, x: Tensor) -> Parts:
        out = []
        for n, (y, change) in enumerate(zip(piece.y, piece.change)):
            r, h = pad(x, y).to(y.dtype), pad(piece.h, y).to(y.dtype)
            first, last = (h * slope[n] for slope in piece.slopes)
            part = y + r * change + r * (r - 1) * ((1 - 2 * r) * change + (r - 1) * first + r * last)
            out.append(part if piece.quartic is None else part + (r * (1 - r)).square() * piece.quartic[n])
        return tuple(out)


@dataclass(frozen=True)
class Solution(Generic[Y]):
    """The state at the last time, and what it cost.

    Args:
        y: the final state.
        calls: evaluations of the field on the whole batch.
        accepted: accepted steps of each item, shape ``(B,)``.
        rejected: rejected steps of each item, shape ``(B,)``.
        path: the solution in between, if it was asked for.
    """

    y: Y
    calls: int
    accepted: Tensor
    rejected: Tensor
    path: Continuous[Y] | None = None


class _Field(Generic[Y]):
    """A field on tuples that counts its calls, made from one on tensors or tuples."""

    def __init__(self, f: Callable[[Tensor, Y], Y], y: Y) -> None:
        self.f: Callable[[Tensor, Y], Y] = f
        self.single, self.calls = isinstance(y, Tensor), 0

    def __call__(self, t: Tensor, y: Parts) -> Parts:
        self.calls += 1
        out = self.f(t, cast(Y, y[0] if self.single else y))
        return (out,) if isinstance(out, Tensor) else out

    def unpack(self, y: Parts) -> Y:
        return cast(Y, y[0] if self.single else y)


def _move(y: Parts, h: Tensor, weights: Sequence[float], slopes: Sequence[Parts]) -> Parts:
    """The state y + h sum_i w_i k_i, component by component; h is () or (B,)."""
    out = []
    for n, part in enumerate(y):
        terms = [k[n] * w for w, k in zip(weights, slopes) if w != 0]
        out.append(part + pad(h, part).to(part.dtype) * sum(terms[1:], terms[0]) if terms else part)
    return tuple(out)


def rk_step(
    f: Callable[[Tensor, Parts], Parts], y: Parts, t: Tensor, h: Tensor, table: Tableau, first: Parts | None = None
) -> tuple[Parts, list[Parts]]:
    """One step of a Runge-Kutta method, equation (1) of ``tableau``.

    Args:
        f: the field on tuples.
        y: the state, components of shape ``(B, ...)``.
        t: present time, ``()`` or ``(B,)``.
        h: step length, ``()`` or ``(B,)``; may be negative.
        table: the method.
        first: f(t, y), if it is known.

    Returns:
        The next state and the slopes of all stages.

    Cost:
        One call a stage, less the first if it is given.
    """
    slopes = [f(t, y) if first is None else first]
    for row, node in zip(table.a[1:], table.c[1:]):
        slopes.append(f(t + node * h, _move(y, h, row, slopes)))
    return _move(y, h, table.b, slopes), slopes


def _items(y: Parts) -> int:
    sizes = {part.shape[0] if part.ndim else -1 for part in y}
    if len(sizes) != 1 or -1 in sizes:
        raise ValueError(f"every part of a state needs the same first axis, got shapes {[tuple(p.shape) for p in y]}")
    return sizes.pop()


def integrate(f: Callable[[Tensor, Y], Y], y: Y, ts: Tensor, table: Tableau = RK4) -> Solution[Y]:
    """Integrate over a given grid.

    Args:
        f: field ``f(t, y)`` with ``t`` a float64 scalar tensor.
        y: state at ``ts[0]``.
        ts: times, shape ``(N+1,)``, increasing or decreasing.
        table: the Runge-Kutta method.

    Cost:
        N times the stages, less N-1 where the last stage is the next first.

    Error:
        O(h^order).

    >>> import math
    >>> integrate(lambda t, y: y, torch.ones(1, dtype=torch.float64), torch.linspace(0, 1, 11)).y.item() - math.e < 3e-6
    True
    """
    field = _Field(f, y)
    state: Parts = (y,) if isinstance(y, Tensor) else y
    ts = ts.double()
    first = None
    for t, h in zip(ts[:-1], ts.diff()):
        state, slopes = rk_step(field, state, t, h, table, first)
        first = slopes[-1] if table.reuses_last else None
    n = _items(state)
    return Solution(field.unpack(state), field.calls, torch.full((n,), len(ts) - 1), torch.zeros(n, dtype=torch.long))


def _ratio(error: Parts, y0: Parts, y1: Parts, rtol: float, atol: float) -> Tensor:
    """(1), shape (B,)."""
    scales = [atol + rtol * torch.maximum(a.abs(), b.abs()) for a, b in zip(y0, y1)]
    return torch.stack([rms(e / s).double() for e, s in zip(error, scales)]).amax(0)


def _where(mask: Tensor, y1: Parts, y0: Parts) -> Parts:
    return tuple(torch.where(pad(mask, a), a, b) for a, b in zip(y1, y0))


def integrate_adaptive(
    f: Callable[[Tensor, Y], Y],
    y: Y,
    t0: float,
    t1: float,
    *,
    rtol: float,
    atol: float,
    table: Tableau = TSITOURAS,
    first_step: float | None = None,
    max_calls: int = 10_000,
    dense: bool = False,
) -> Solution[Y]:
    """Integrate with a step length of its own for each item.

    Args:
        f: field ``f(t, y)`` with ``t`` float64 of shape ``(B,)``: items are at different times.
        y: state at ``t0``.
        t0: first time.
        t1: last time; may be before the first.
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step, in units of the state.
        table: a method with embedded weights.
        first_step: length of the first step; chosen from the field if not given.
        max_calls: give up after so many evaluations.
        dense: keep the solution in between, as ``path``; memory for five states a step.

    Raises:
        ValueError: the method has no error estimate, or a tolerance is not positive.
        ArithmeticError: an item cannot meet the tolerance (a singularity, NaN, or too many calls); says where.

    Cost:
        Stages times (accepted + rejected steps of the slowest item); one less a step where the last stage is the next first.

    >>> s = integrate_adaptive(lambda t, y: -y, torch.ones(2, dtype=torch.float64), 0.0, 1.0, rtol=1e-8, atol=1e-8)
    >>> bool(((s.y - torch.exp(torch.tensor(-1.0, dtype=torch.float64))).abs() < 1e-7).all())
    True
    """
    error_weights = table.error
    if error_weights is None:
        raise ValueError(
            f"the method {table.name!r} has no embedded error estimate; use heun, tsitouras or dormand_prince"
        )
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"tolerances must be positive, got rtol={rtol}, atol={atol}")
    field = _Field(f, y)
    state: Parts = (y,) if isinstance(y, Tensor) else y
    n, device = _items(state), state[0].device
    power = table.embedded_order + 1.0
    t = torch.full((n,), float(t0), dtype=torch.float64, device=device)
    span = float(t1) - float(t0)
    accepted = torch.zeros(n, dtype=torch.long, device=device)
    rejected = torch.zeros_like(accepted)
    slope = field(t, state)
    h = torch.full_like(t, span if first_step is None else abs(first_step) * (1.0 if span >= 0 else -1.0))
    if first_step is None and span != 0:
        zero = tuple(torch.zeros_like(p) for p in state)
        size, speed = _ratio(state, state, zero, rtol, atol), _ratio(slope, state, zero, rtol, atol)
        guess = torch.where((size > 1e-5) & (speed > 1e-5), 0.01 * size / speed, 1e-6)
        h = guess.clamp(max=abs(span)) * (1.0 if span >= 0 else -1.0)
    before = torch.ones_like(t)  # the error ratio of the last accepted step
    pieces: list[_Piece] = []
    while True:
        left = float(t1) - t
        active = left != 0
        if not bool(active.any()):
            path = Continuous(y, (float(t0), float(t1)), tuple(pieces)) if dense else None
            return Solution(field.unpack(state), field.calls, accepted, rejected, path)
        ends = h.abs() >= left.abs() * (1 - 1e-12)
        h = torch.where(ends, left, h)  # lands exactly; finished items stay with h = 0
        if field.calls >= max_calls or bool((active & (t + h == t)).any()):
            item = (
                int((active & (t + h == t)).long().argmax()) if field.calls < max_calls else int(active.long().argmax())
            )
            raise ArithmeticError(
                f"item {item} cannot meet rtol={rtol}, atol={atol} near t={float(t[item]):.6g} "
                f"(step {float(h[item]):.2g} after {field.calls} calls); loosen the tolerance or stop before a singular end"
            )
        trial, slopes = rk_step(field, state, t, h, table, slope)
        zeros = tuple(torch.zeros_like(p) for p in state)
        ratio = _ratio(_move(zeros, h, error_weights, slopes), state, trial, rtol, atol)
        ratio = torch.where(torch.isfinite(ratio), ratio, torch.inf)
        good = active & (ratio <= 1)
        start, state = state, _where(good, trial, state)
        began, t = t, torch.where(good, torch.where(ends, float(t1), t + h), t)
        accepted, rejected = accepted + good, rejected + (active & ~good)
        slope = _where(good, slopes[-1], slope) if table.reuses_last else field(t, state)
        if dense:
            change = tuple(after - part for after, part in zip(state, start))
            quartic = None if table.dense is None else _move(zeros, h, table.dense, slopes)
            pieces.append(_Piece(began, torch.where(good, h, 0), start, change, (slopes[0], slope), quartic))
        safe = ratio.clamp(min=1e-10)
        factor = torch.where(good, 0.9 * safe ** (-0.7 / power) * before ** (0.4 / power), 0.9 * safe ** (-1 / power))
        before = torch.where(good, safe, before)
        h = h * factor.clamp(0.2, 5.0)
