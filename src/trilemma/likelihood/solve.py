"""The flow and its divergence from data to noise, with an error measured where it matters: in the log-density.

Theta = theta_0 + s (cosh(u) - 1) runs from the data up, with steps that grow in proportion. The slope in u is 0 at the data, for
every denoiser that is bounded there, so nothing is evaluated at theta = 0 and nothing is cut off.

The log-density that a state y at theta has is its prior at the end plus the divergence on the way there. So an error e_y made by one
step and an error e_l of its integral of the divergence change the result, to first order, by

    e = e_l + score(y)^T e_y,     score = -y - v / tan(theta),                                               (1)

whatever the flow does with e_y later: it is followed exactly, with the density that belongs to it. Errors along the level sets of
the density cost nothing, and watersheds, which tear neighbours apart, do not enlarge (1). The sum of (1) over the steps of an item
is the error of its result, estimated at no cost.

Adaptive: Runge-Kutta steps of its own for every item, accepted if (1) a dimension and e_y are small; an item that has arrived leaves the
batch. Fixed: Adams' methods (predict, evaluate, correct: one evaluation a step) in equal steps of u; the integral of the divergence,
whose values are all known in the end, by Gregory's formula.

Source: Hairer, Norsett and Wanner 1993, II.4 and III.1. (1) is the adjoint's error estimate of Cao and Petzold 2004 with the adjoint
known in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.linear import interpolatory_weights
from ..numerics.ode import rk_step
from ..numerics.shapes import dot, pad, rms
from ..numerics.tableau import TSITOURAS, Tableau
from .field import Field

__all__ = ["Path", "adaptive_path", "fixed_path"]

_FINE = 0.02  # s


@dataclass(frozen=True)
class Path:
    """Where items arrived.

    Args:
        y: states at the end, float64, shape ``(B, ...)``.
        integral: samples of the integral of the divergence, shape ``(B, S)``.
        error: sum of (1), in nats, shape ``(B,)``.
    """

    y: Tensor
    integral: Tensor
    error: Tensor


class _Clock:
    """Theta as a function of u in [0, end]."""

    def __init__(self, field: Field, fine: float) -> None:
        self.field, self.fine = field, fine
        self.end = math.acosh(1 + (field.end - field.start) / fine)

    def theta(self, u: Tensor) -> Tensor:
        """Angles, exactly the last one at the end."""
        half = torch.sinh(u / 2)
        theta = self.field.start + 2 * self.fine * half * half
        return torch.where(u >= self.end, self.field.end, theta)

    def slope(self, u: Tensor, y: Tensor, items: Tensor, index: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """dy/du and samples of the divergence times dtheta/du, and the score at y."""
        theta, rate = self.theta(u), self.fine * torch.sinh(u)
        v, divergence = self.field(theta, y, items, index)
        return v * pad(rate, y), divergence * rate[:, None], self.field.score(theta, y, v)


def adaptive_path(
    field: Field, y: Tensor, samples: int, *, rtol: float, atol: float, table: Tableau = TSITOURAS, max_calls: int = 10_000,
    fine: float = _FINE, loose: float = 30.0, first: float = 0.1,
) -> Path:  # fmt: skip
    clock = _Clock(field, fine)
    weights, power = table.error, table.embedded_order + 1.0
    assert weights is not None
    n, size = len(y), y[0].numel()
    integral = torch.zeros(n, samples, dtype=torch.float64, device=y.device)
    out, total = y.clone(), integral.clone()
    error = torch.zeros(n, dtype=torch.float64, device=y.device)
    items = torch.arange(n, device=y.device)
    u, before = torch.zeros_like(error), torch.ones_like(error)
    h = torch.full_like(u, first * clock.end)
    slope: tuple[Tensor, ...] = (torch.zeros_like(y), integral)
    while len(items):
        left = clock.end - u
        ends = h >= left * (1 - 1e-12)
        h = torch.where(ends, left, h)
        score = y

        def f(at: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal score
            v, divergence, score = clock.slope(at, state[0], items)
            return v, divergence

        state = (y, integral)
        trial, slopes = rk_step(f, state, u, h, table, slope)
        e_y, e_l = (sum(pad(h, k[j]) * k[j] * w for w, k in zip(weights, slopes) if w) for j in range(2))
        e = e_l.mean(1) + dot(score, e_y)
        scale_l = size * atol + rtol * torch.maximum(integral.mean(1).abs(), trial[1].mean(1).abs())
        ratio_y = rms(e_y / (atol + rtol * torch.maximum(y.abs(), trial[0].abs()))) / loose
        ratio = torch.maximum(e.abs() / scale_l, ratio_y)
        ratio = torch.where(torch.isfinite(ratio), ratio, torch.inf)
        good = ratio <= 1
        y, integral = (torch.where(pad(good, new), new, old) for new, old in zip(trial, state))
        slope = tuple(torch.where(pad(good, new), new, old) for new, old in zip(slopes[-1], slope))
        u = torch.where(good, torch.where(ends, clock.end, u + h), u)
        error[items] += torch.where(good, e, 0.0)
        safe = ratio.clamp(min=1e-10)
        factor = torch.where(good, 0.9 * safe ** (-0.7 / power) * before ** (0.4 / power), 0.9 * safe ** (-1 / power))
        before = torch.where(good, safe, before)
        h = h * factor.clamp(0.2, 5.0)
        done = good & ends
        if bool(done.any()):
            out[items[done]], total[items[done]] = y[done], integral[done]
            keep = ~done
            items, u, h, before, y, integral = (part[keep] for part in (items, u, h, before, y, integral))
            slope = tuple(part[keep] for part in slope)
        stuck = (u + h == u) | (field.calls[items] >= max_calls)
        if bool(stuck.any()):
            i = int(stuck.long().argmax())
            raise ArithmeticError(
                f"item {int(items[i])} cannot meet rtol={rtol}, atol={atol} near theta={float(clock.theta(u[i])):.6g} "
                f"after {int(field.calls[items[i]])} calls; loosen the tolerance"
            )
    return Path(out, total, error)


_GREGORY = (-1 / 12, -1 / 24, -19 / 720, -3 / 160, -863 / 60480, -275 / 24192)


def _gregory(n: int, order: int) -> Tensor:
    """Weights of Gregory's formula for n equal steps of length one, shape (n + 1,)."""
    w = torch.ones(n + 1, dtype=torch.float64)
    w[0] = w[-1] = 0.5
    for k, c in enumerate(_GREGORY[: min(order, n)], start=1):
        for j in range(k + 1):
            d = c * math.comb(k, j) * (-1) ** j
            w[n - j] += d
            w[j] += d
    return w


def fixed_path(field: Field, y: Tensor, steps: int, *, order: int = 4, fine: float = _FINE, gregory: int = 4) -> Path:
    clock = _Clock(field, fine)
    h = clock.end / steps
    n, items = len(y), torch.arange(len(y), device=y.device)
    slopes = [torch.zeros_like(y)]
    divs: list[Tensor] = []
    error = torch.zeros(n, dtype=torch.float64, device=y.device)
    for i in range(steps):
        k = min(order, i + 1)
        ahead = interpolatory_weights([-float(j) for j in range(k)], [1 / (m + 1) for m in range(k)])
        k2 = min(order, i + 2)
        back = interpolatory_weights([1.0 - j for j in range(k2)], [1 / (m + 1) for m in range(k2)])
        guess = y + h * sum(w * s for w, s in zip(ahead, slopes))
        at = torch.full((n,), clock.end if i + 1 == steps else (i + 1) * h, dtype=torch.float64, device=y.device)
        slope, div, score = clock.slope(at, guess, items, i)
        divs.append(div)
        slopes = [slope, *slopes][: order + 1]
        y = y + h * sum(w * s for w, s in zip(back, slopes))
        error = error + dot(score, y - guess)
    w = _gregory(steps, gregory).to(y.device)[1:]
    integral = torch.einsum("n,nbs->bs", w * h, torch.stack(divs))
    return Path(y, integral, error)
