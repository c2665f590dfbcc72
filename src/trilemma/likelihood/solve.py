"""The flow and its divergence from data to noise, with an error measured where it matters: in the log-density.

The angle runs up from the data as theta = theta_0 + c g / (g + c / 0.2), g = cosh(u) - 1, c = theta_1 - theta_0 +
0.6: like u^2 at the data, exponential, and slower again where the noise takes over. As dtheta/du = 0 at u = 0 for
every denoiser that is bounded there, nothing is evaluated at theta = 0 and nothing is cut off.              (1)

The log-density of a state y at theta is that of the noise at the end plus the divergence on the way there. So an
error e_y that one step makes, and an error e_l of its integral of the divergence, change the result to first order by

    |e| <= |e_l| + |score(y)^T e_y|,     score = -y - v / tan(theta),                                    (2)

whatever the flow does with e_y later: it is followed with the density that belongs to it. Errors along the level sets
of the density cost nothing, and watersheds, which tear neighbours apart, do not enlarge (2). Its sum over the steps
of an item is an estimate of the error of the result that costs nothing.

Adaptive: Runge-Kutta steps of its own for every item, accepted if (2) and e_y are small, none longer than a tenth of
the way: longer ones step over what their embedded pair would have to see. An item that has arrived leaves the batch.
Fixed: Adams' methods (predict, evaluate, correct: one evaluation a step) in equal steps of u, and the integral of the
divergence, whose values are all known in the end, by Gregory's formula.

Sources: Hairer, Norsett and Wanner 1993, II.4 and III.1; Cao and Petzold 2004, "A posteriori error estimation and
global error control for ordinary differential equations by the adjoint method", for (2), whose adjoint is known here:
it is the score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.linear import interpolatory_weights
from ..numerics.ode import rk_step
from ..numerics.shapes import dot, pad, rms
from ..numerics.tableau import TSITOURAS
from .field import Field

__all__ = ["Path", "adaptive_path", "fixed_path"]

_FINE, _TOP = 0.2, 0.6  # of (1)
_LOOSE = 10.0  # how much larger e_y may be than the tolerance: (2) is of first order in it
_LONGEST = 0.1  # step, and the first one, as a share of the way in u
_SHORTEST = 1e-10  # below it an item is given up
_ORDER = 4  # of Adams' methods


@dataclass(frozen=True)
class Path:
    """Where items arrived.

    Args:
        y: states at the end, float64, shape ``(B, ...)``.
        integral: samples of the integral of the divergence, shape ``(B, S)``.
        error: estimated error of the log-density in nats, shape ``(B,)``.
    """

    y: Tensor
    integral: Tensor
    error: Tensor


@dataclass(frozen=True)
class _Clock:
    """Equation (1)."""

    field: Field

    @property
    def span(self) -> float:
        return self.field.end - self.field.start

    @property
    def end(self) -> float:
        """The last u."""
        return math.acosh(1 + (self.span + _TOP) / _FINE * self.span / _TOP)

    def angle(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Theta, exactly the last one at the end, and dtheta/du."""
        c = self.span + _TOP
        g, k = 2 * torch.sinh(u / 2).square(), c / _FINE
        theta = torch.where(u >= self.end, self.field.end, self.field.start + c * g / (g + k))
        return theta, c * k * torch.sinh(u) / (g + k) ** 2

    def slopes(self, u: Tensor, y: Tensor, items: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """dy/du, samples of the divergence times dtheta/du, and the score at y."""
        theta, rate = self.angle(u)
        v, divergence = self.field(theta, y, items, index)
        return v * pad(rate, v), divergence * rate[:, None], self.field.score(theta, y, v)


def adaptive_path(field: Field, y: Tensor, samples: int, *, rtol: float, atol: float, max_calls: int = 2_000) -> Path:
    """Solve with steps of its own for every item, by Tsitouras' pair.

    Args:
        field: the flow and its divergence, which must not depend on the number of the evaluation.
        y: states at the data, float64, shape ``(B, ...)``.
        samples: number S of samples of the divergence.
        rtol: relative tolerance of a step, of (2) against the integral so far.
        atol: absolute tolerance of a step: nats a dimension.
        max_calls: give an item up after so many evaluations.

    Raises:
        ArithmeticError: an item cannot meet the tolerance, or the denoiser's answer is not finite; says where.

    Cost:
        Six evaluations a step and item, 60 at least.
    """
    clock, weights, power = _Clock(field), TSITOURAS.error or (), TSITOURAS.embedded_order + 1.0
    n, size = len(y), y[0].numel()
    integral = torch.zeros(n, samples, dtype=torch.float64, device=y.device)
    out, total = y.clone(), integral.clone()
    error = torch.zeros(n, dtype=torch.float64, device=y.device)
    items = torch.arange(n, device=y.device)
    u, before = torch.zeros_like(error), torch.ones_like(error)
    h = torch.full_like(u, _LONGEST * clock.end)
    state, slope = (y, integral), (torch.zeros_like(y), torch.zeros_like(integral))
    score = y

    def f(at: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal score  # of the last stage, which is the end of the step
        v, divergence, score = clock.slopes(at, now[0], items, 0)
        return v, divergence

    while len(items):
        left = clock.end - u
        ends = h >= left * (1 - 1e-12)
        h = torch.where(ends, left, h)  # lands exactly
        trial, stages = rk_step(f, state, u, h, TSITOURAS, slope)
        e_y, e_l = (
            pad(h, s[0]) * torch.einsum("k,k...->...", s.new_tensor(weights), s) for s in map(torch.stack, zip(*stages))
        )
        e = e_l.mean(1).abs() + dot(score, e_y).abs()  # (2)
        far = torch.maximum(state[1].mean(1).abs(), trial[1].mean(1).abs())
        wide = torch.maximum(state[0].abs(), trial[0].abs())
        ratio = torch.maximum(e / (atol * size + rtol * far), rms(e_y / (atol + rtol * wide)) / _LOOSE)
        ratio = torch.where(torch.isfinite(ratio), ratio, torch.inf)
        good = ratio <= 1
        state = _where(good, trial, state)
        slope = _where(good, stages[-1], slope)
        u = torch.where(good, torch.where(ends, clock.end, u + h), u)
        error[items] += torch.where(good, e, 0.0)
        safe = ratio.clamp(min=1e-10)
        # as (2) of numerics.ode
        factor = torch.where(good, 0.9 * safe ** (-0.7 / power) * before ** (0.4 / power), 0.9 * safe ** (-1 / power))
        before = torch.where(good, safe, before)
        h = (h * factor.clamp(0.2, 5.0)).clamp(max=_LONGEST * clock.end)
        done = good & ends
        stuck = ~done & ((h < _SHORTEST * clock.end) | (field.calls[items] >= max_calls))
        if bool(stuck.any()):
            i = int(stuck.long().argmax())
            raise ArithmeticError(
                f"item {int(items[i])} of its batch cannot meet rtol={rtol}, atol={atol} near theta="
                f"{float(clock.angle(u[i])[0]):.4g} after {int(field.calls[items[i]])} calls; "
                + _advice(bool(ratio[i].isinf()))
            )
        if bool(done.any()):
            out[items[done]], total[items[done]] = state[0][done], state[1][done]
            items, u, h, before = (part[~done] for part in (items, u, h, before))
            state, slope = ((pair[0][~done], pair[1][~done]) for pair in (state, slope))
    return Path(out, total, error)


def _advice(infinite: bool) -> str:
    if infinite:
        return "what the denoiser answers there is not finite: look at its weights"
    return "loosen the tolerance, or look whether the data have a density there (points and planes have none)"


def _where(mask: Tensor, new: tuple[Tensor, ...], old: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    first, second = (torch.where(pad(mask, a), a, b) for a, b in zip(new, old))
    return first, second


def _adams(count: int, newest: int) -> list[float]:
    """Weights of the integral over the next step, [0, 1], through ``count`` values from ``newest`` backwards."""
    return interpolatory_weights([float(newest - j) for j in range(count)], [1 / (m + 1) for m in range(count)])


def _gregory(steps: int, order: int = 4) -> Tensor:
    """Weights of the integral over ``steps`` equal steps of length one by Gregory's formula, shape ``(steps + 1,)``.

    >>> _gregory(6, 1).tolist()[:3]
    [0.4166666666666667, 1.0833333333333333, 1.0]
    """
    weights = torch.ones(steps + 1, dtype=torch.float64)
    weights[[0, -1]] = 0.5
    for k, share in enumerate((1 / 12, 1 / 24, 19 / 720, 3 / 160)[: min(order, steps)], start=1):
        for j in range(k + 1):
            difference = share * math.comb(k, j) * (-1) ** j
            weights[steps - j] -= difference
            weights[j] -= difference
    return weights


def fixed_path(field: Field, y: Tensor, steps: int) -> Path:
    """Solve with the same steps for every item, one evaluation a step.

    Args:
        field: the flow and its divergence.
        y: states at the data, float64, shape ``(B, ...)``.
        steps: number of evaluations.

    Cost:
        ``steps`` evaluations an item; memory for four slopes.

    Error:
        O(h^4). The estimate is the sum of |score^T (corrected - predicted)| over 14, which is Milne's estimate for
        order 4, and the change by one order of Gregory's formula.

    Raises:
        ArithmeticError: an item ends nowhere finite.
    """
    clock, n = _Clock(field), len(y)
    h, items = clock.end / steps, torch.arange(len(y), device=y.device)
    slopes, divergences = [torch.zeros_like(y)], []
    error = torch.zeros(n, dtype=torch.float64, device=y.device)
    for i in range(steps):
        guess = y + h * _sum(_adams(min(_ORDER, i + 1), 0), slopes)
        u = torch.full_like(error, clock.end if i + 1 == steps else (i + 1) * h)
        slope, divergence, score = clock.slopes(u, guess, items, i)
        divergences.append(divergence)
        slopes = [slope, *slopes][:_ORDER]
        y = y + h * _sum(_adams(min(_ORDER, i + 2), 1), slopes)
        error += dot(score, y - guess).abs() / 14
    values = torch.stack(divergences)
    integral, less = (h * torch.einsum("n,nbs->bs", _gregory(steps, k).to(y)[1:], values) for k in (4, 3))
    finite = integral.isfinite().all(1) & y.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        raise ArithmeticError(f"item {int((~finite).long().argmax())} of its batch ends nowhere; {_advice(True)}")
    return Path(y, integral, error + (integral - less).mean(1).abs())


def _sum(weights: list[float], slopes: list[Tensor]) -> Tensor:
    """sum_j w_j s_j."""
    return sum((w * s for w, s in zip(weights, slopes)), torch.zeros_like(slopes[0]))
