"""Published samplers that choose their steps by comparing two orders: DPM-Solver-12 and -23, and "Gotta go fast" for noise.

Every item is at a place of its own, and tries a step of length h with a result x' of lower and x'' of higher order. With

    E = rms((x'' - x') / max(atol, rtol max(|x'|, |x'_before|))),                                            (1)

it goes on with x'' if E <= 1, and in either case h becomes 0.9 h E^-power. The end, at a little noise, is x = E[x | x_t].

The pairs of DPM-Solver step in lambda = log(alpha/sigma) with the value m = eps, k = alpha, o = sigma, s = 1, or m = E[x | x_t],
k = sigma, o = alpha, s = -1. The states at a length H = r h after the start are, from one value or from two, the second at r_1,

    x_p = (k_p/k) x - o_p (e^(sH) - 1) m_0,                                                                  (2)
    x_p = (2) - o_p ((e^(sH) - 1)/(sH) - 1) (r/r_1) (m_1 - m_0),                                             (3)
    x_p = (2) - o_p (e^(sH) - 1) (m_1 - m_0) / (2 r_1).                                                      (4)

The 12 pair is (2) and (4) with r_1 = 1/2; the 23 pair (4) with r_1 = 1/3, and (3) with r_1 = 2/3 and m_1 found by (3) from 1/3.

Gotta go fast steps in time, down from t to t - h, on the reverse equation with drift b = f x - g^2 score,

    x' = x - h b(x, t) + g(t) dW,     x'' = (x' + x - h b(x', t - h) + g(t - h) dW) / 2,                     (5)

where dW is the increment of one Brownian path, which the seed fixes: neither rejections nor neighbours change it.

Sources: Lu et al. 2022 (arXiv:2206.00927), appendix C; Jolicoeur-Martineau et al. 2021 (arXiv:2105.14080), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.brownian import BrownianPath, tick_of
from ..numerics.shapes import pad, rms
from .adaptive import Adaptive
from .start import Start, begin

__all__ = ["dpm_solver_adaptive", "gotta_go_fast"]

Attempt = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Items (their numbers), their states, places and step lengths, to x' and x''."""


def _march(
    batch: Start,
    attempt: Attempt,
    place: float,
    goal: float,
    h: float,
    power: float,
    rtol: float,
    atol: float,
    max_calls: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states at ``goal``, and how many steps were accepted and rejected on the way up from ``place``."""
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0 and h > 0):
        raise ValueError(
            f"tolerances and the first step must be positive, got rtol={rtol}, atol={atol}, first_step={h}"
        )
    x, before = batch.x.clone(), batch.x.clone()
    at = torch.full((len(x),), place, dtype=torch.float64)
    length = torch.full_like(at, h)
    accepted, rejected = torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long)
    while bool((at < goal).any()):
        items = (at < goal).nonzero()[:, 0]
        left = goal - at[items]
        ends = length[items] >= left * (1 - 1e-9)
        step = torch.where(ends, left, length[items])
        low, high = attempt(items, x[items], at[items], step)
        size = torch.maximum(low.abs(), before[items].abs())
        ratio = rms((high - low) / (rtol * size).clamp(min=atol)).double().cpu()
        ratio = torch.where(torch.isfinite(ratio), ratio, torch.inf).clamp(1e-10, 1e10)
        good = ratio <= 1
        kept = items[good]
        x[kept], before[kept] = high[good], low[good]
        at[kept] = torch.where(ends, goal, at[items] + step)[good]
        accepted[kept] += 1
        rejected[items[~good]] += 1
        length[items] = 0.9 * step * ratio**-power
        live = items[at[items] < goal]
        if len(live) and (batch.calls >= max_calls or bool((at[live] + length[live] == at[live]).any())):
            item = int(live[length[live].argmin()])
            raise ArithmeticError(
                f"item {item} cannot meet rtol={rtol}, atol={atol} (step {float(length[item]):.2g} after {batch.calls} calls)"
            )
    return x, accepted, rejected


def _finish(batch: Start, t: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> Adaptive:
    """The denoised states."""
    x, accepted, rejected = found
    mean = batch.mean(torch.arange(len(x)))(x, t)
    return Adaptive(mean, batch.calls, torch.full((len(x),), torch.nan, dtype=torch.float64), accepted, rejected)


@torch.no_grad()
def dpm_solver_adaptive(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    order: int = 3,
    prediction: str = "eps",
    rtol: float = 0.05,
    atol: float = 0.0078,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    x: Tensor | None = None,
    start: float = 1.0,
    end: float = 0.002,
    first_step: float = 0.05,
    cond: dict[str, Tensor] | None = None,
    max_calls: int = 10_000,
) -> Adaptive:
    """DPM-Solver-12 or -23: the probability flow with steps in lambda chosen by (1), by the pairs (2) to (4).

    Args:
        denoiser: any denoiser, guided or wrapped.
        shape: ``(B, ...)``.
        order: of x'': 2 for the 12 pair, 3 for the 23 pair.
        prediction: ``"eps"`` as in the paper, or ``"x0"``.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step; the default is 2/256.
        seeds: as in ``sample``.
        x: the state at ``start``; drawn if not given.
        start: time at which to start, with alpha > 0.
        end: sigma/alpha at which x = E[x | x_t].
        first_step: first h, in lambda.
        cond: conditions for the denoiser, one per item.
        max_calls: give up after so many.

    Raises:
        ValueError: something does not fit, or alpha = 0 at the start.
        ArithmeticError: an item cannot meet the tolerance.

    Cost:
        ``order`` calls an attempt, on the items that are not finished, and one at the end.

    Error:
        That of a step is about the tolerance; of the whole, some tolerances. See ``adaptive`` for control of it.

    Differs:
        Every item has steps of its own; the paper's code lets the worst item of a batch decide.

    >>> import trilemma as tl
    >>> two = tl.MixtureDenoiser(tl.VP(), torch.tensor([[-1.0], [1.0]]), tl.Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> round(float(dpm_solver_adaptive(two, (1000, 1), rtol=0.01).x.abs().mean()), 1)
    1.0
    """
    if order not in (2, 3) or prediction not in ("eps", "x0") or not end > 0:
        raise ValueError(
            f"order is 2 or 3, prediction 'eps' or 'x0', and end > 0; got {order}, {prediction!r} and {end}"
        )
    batch, process = begin(denoiser, shape, start, seeds=seeds, x=x, cond=cond), denoiser.process
    on_eps = prediction == "eps"
    place = float(process.log_snr(torch.tensor(start, dtype=torch.float64)) / 2)
    if math.isinf(place):
        raise ValueError(f"steps in lambda cannot start where alpha = 0; give a start below {start} and x")

    def attempt(items: Tensor, x: Tensor, lam: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        mean = batch.mean(items)

        def curves(r: float) -> tuple[Tensor, Tensor, Tensor]:
            t = process.time(2 * (lam + r * h))
            return t, process.alpha(t), process.sigma(t)

        def value(x: Tensor, r: float) -> Tensor:
            t, alpha, sigma = curves(r)
            d = mean(x, t)
            return (x - pad(alpha.to(x), x) * d) / pad(sigma.to(x), x) if on_eps else d

        def state(r: float, slope: Tensor | None = None, share: Tensor | float = 0.0) -> Tensor:
            """(2), and (3) or (4) with the last weight but for o_p."""
            _, alpha, sigma = curves(r)
            keep, out = (alpha / first[1], sigma) if on_eps else (sigma / first[2], alpha)
            y = pad(keep.to(x), x) * x - pad((out * torch.expm1(sign * r * h)).to(x), x) * m0
            return y if slope is None else y - pad((out * share).to(x), x) * slope

        def linear(r: float, r1: float) -> Tensor:
            return (torch.expm1(sign * r * h) / (sign * r * h) - 1) * (r / r1)

        sign, first = 1.0 if on_eps else -1.0, curves(0.0)
        m0, r1 = value(x, 0.0), 1 / order
        d1 = value(state(r1), r1) - m0
        second = state(1.0, d1, torch.expm1(sign * h) / (2 * r1))  # (4)
        if order == 2:
            return state(1.0), second
        d2 = value(state(2 / 3, d1, linear(2 / 3, r1)), 2 / 3) - m0
        return second, state(1.0, d2, linear(1.0, 2 / 3))

    found = _march(batch, attempt, place, -math.log(end), first_step, 1 / order, rtol, atol, max_calls)
    return _finish(batch, process.time(torch.tensor(-2 * math.log(end), dtype=torch.float64)), found)


@torch.no_grad()
def gotta_go_fast(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    rtol: float = 0.02,
    atol: float = 0.0078,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    x: Tensor | None = None,
    start: float = 1.0,
    end: float = 1e-3,
    first_step: float = 0.01,
    cond: dict[str, Tensor] | None = None,
    max_calls: int = 100_000,
) -> Adaptive:
    """The reverse equation with steps in time chosen by (1), by the pair (5) along a Brownian path that the seed fixes.

    Args:
        denoiser: any denoiser, guided or wrapped.
        shape: ``(B, ...)``.
        rtol: relative tolerance of a step; 0.01 to 0.5 in the paper.
        atol: absolute tolerance of a step; the default is 2/256.
        seeds: as in ``sample``.
        x: the state at ``start``; drawn if not given.
        start: time at which to start, with alpha > 0.
        end: time at which x = E[x | x_t].
        first_step: first h, in time.
        cond: conditions for the denoiser, one per item.
        max_calls: give up after so many.

    Raises:
        ValueError: something does not fit, or the drift is infinite at the start, as where alpha = 0.
        ArithmeticError: an item cannot meet the tolerance.

    Cost:
        Two calls an attempt, on the items that are not finished, and one at the end; for every attempt of an item about 30
        draws of noise, one item after another, a few milliseconds: the price of a path that the seed fixes.

    Error:
        Along the path that the seed fixes, of the order of the square root of the tolerance.

    Differs:
        The paper draws new noise after a rejection, which prefers small noise; here the noise of a shorter step is a part of that
        of the longer one.

    >>> import trilemma as tl
    >>> one = tl.GaussianDenoiser(tl.VP(), torch.zeros(1), tl.Covariances.diagonal(torch.ones(1, 1)))
    >>> coarse, fine = (gotta_go_fast(one, (1, 1), rtol=tol, atol=tol, end=0.01) for tol in (0.3, 0.1))
    >>> bool((coarse.x - fine.x).abs() < 0.5), fine.calls > coarse.calls
    (True, True)
    """
    batch, process = begin(denoiser, shape, start, seeds=seeds, x=x, cond=cond), denoiser.process
    first = torch.tensor(start, dtype=torch.float64)
    if not 0 < end < start or not bool(
        torch.isfinite(process.drift(first)) & torch.isfinite(process.diffusion2(first))
    ):
        raise ValueError(
            f"needs 0 < end < start and a finite drift at the start (alpha > 0), got start={start} and end={end}"
        )
    paths = [BrownianPath(batch.noise[[i]]) for i in range(len(batch.x))]
    read: list[dict[int, Tensor]] = [{} for _ in paths]  # what a path was at the ends of the last attempt

    def increments(items: Tensor, x: Tensor, late: Tensor, early: Tensor) -> Tensor:
        """Of W on the clock t, in units of their standard deviation."""
        out = []
        for i, like, ends in zip(items.tolist(), x.split(1), zip(late.log().tolist(), early.log().tolist())):
            top, bottom = (tick_of(v) for v in ends)
            bottom = min(bottom, top - 1)
            read[i] = {tick: read[i][tick] if tick in read[i] else paths[i].at(tick, like) for tick in (bottom, top)}
            out.append(paths[i].increment(read[i][bottom], read[i][top], top - bottom))
        return torch.cat(out)

    def attempt(items: Tensor, x: Tensor, place: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, late, early = batch.mean(items), -place, (-place - h).clamp(min=end)
        xi = increments(items, x, late, early)

        def move(y: Tensor, t: Tensor) -> Tensor:
            """One side of (5): x - h b(y, t) + g dW."""
            alpha, sigma, f, g2 = process.alpha(t), process.sigma(t), process.drift(t), process.diffusion2(t)
            on_y, on_d = h * (f + g2 / sigma**2), h * alpha * g2 / sigma**2
            drift = pad(on_y.to(x), x) * y - pad(on_d.to(x), x) * mean(y, t)
            return x - drift + pad((g2 * h).sqrt().to(x), x) * xi

        low = move(x, late)
        return low, (low + move(low, early)) / 2

    found = _march(batch, attempt, -start, -end, first_step, 0.9, rtol, atol, max_calls)
    return _finish(batch, torch.tensor(end, dtype=torch.float64), found)
