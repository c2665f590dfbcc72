"""Sampling parallel in time: many steps of a plan at once, corrected until they agree with the steps one after another.

A plan is linear but for the denoiser. With guesses x_i^k of the states of a window of steps, one call denoises all of them, and
the plan is run again with what came out,

    x_(i+1)^(k+1) = sum_m a_im x_(i-m)^(k+1) + sum_j b_ij D(x_(i-j)^k) + c_i xi_i,                           (1)

Picard's iteration. The first state of the window is right, so after every sweep one more is, exactly; and those behind it are as
good as right once they no longer move. The window goes on, item by item, past the states whose inputs moved by at most

    rms(x_i^(k+1) - x_i^k) <= tolerance sqrt(alpha_i^2 + sigma_i^2).                                         (2)

Beyond the window, and before anything is known, D is taken to be the last one known.

Source: Shih et al. 2023 (arXiv:2305.16317), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..numerics.shapes import pad, rms
from .loop import Rule, check_grid
from .plan import Plan
from .start import begin

__all__ = ["Parallel", "parallel"]


@dataclass(frozen=True)
class Parallel:
    """Samples and what they cost.

    Args:
        x: the samples, shape ``(B, ...)``.
        sweeps: calls of the denoiser one after another; a plan of N steps takes N without this.
        evaluations: how often every item was denoised, shape ``(B,)``.
    """

    x: Tensor
    sweeps: int
    evaluations: Tensor


class _Steps:
    """All states and denoised states of a plan, some of them guesses; item b is right up to step ``at[b]``, its own."""

    def __init__(self, plan: Plan, x: Tensor, noise: Noise) -> None:
        self.n, self.a, self.b = plan.steps, plan.a.to(x), plan.b.to(x)
        self.x = x.expand(self.n + 1, *x.shape).clone()
        self.d = torch.zeros_like(self.x[1:])
        self.kicks: Tensor | None = None
        if bool(plan.c.any()):
            draws = [
                noise.at(i).normal_like(x) * c if c else torch.zeros_like(x) for i, c in enumerate(plan.c.tolist())
            ]
            self.kicks = torch.stack(draws)
        self.at, self.items = torch.zeros(len(x), dtype=torch.long), torch.arange(len(x))

    def window(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Steps ``at + first``, ... of all items as pairs of step and item; those that exist."""
        step = self.at + torch.arange(first, first + count)[:, None]
        live = step < self.n
        return step[live], self.items.expand_as(step)[live]

    def guess(self, size: int, ahead: int) -> None:
        """Behind a window of ``size`` steps, D is the last one in it."""
        last = self.d[(self.at + size).clamp(max=self.n) - 1, self.items]
        step, item = self.window(size, ahead)
        self.d[step, item] = last[item]

    def run(self, count: int) -> None:
        """(1) for the next ``count`` states of every item."""
        for j in range(count):
            step, item = self.window(j, 1)
            out = torch.zeros_like(self.x[0, item]) if self.kicks is None else self.kicks[step, item]
            for table, history in ((self.a, self.x), (self.b, self.d)):
                for k in range(table.shape[1]):
                    out += pad(table[step, k], out) * history[(step - k).clamp(min=0), item]
            self.x[step + 1, item] = out


@torch.no_grad()
def parallel(
    denoiser: Denoiser,
    shape: Sequence[int],
    grid: Tensor,
    rule: Rule,
    *,
    window: int = 16,
    tolerance: float = 1e-3,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    x: Tensor | None = None,
    cond: dict[str, Tensor] | None = None,
) -> Parallel:
    """What ``sample`` gives with a plan, in fewer calls one after another, on more items each.

    Args:
        denoiser: any denoiser, guided or wrapped.
        shape: ``(B, ...)``.
        grid: times, shape ``(N+1,)``.
        rule: a rule that makes a :class:`Plan`, with or without noise.
        window: how many steps are taken at once.
        tolerance: of (2), about the error of the result in units of the data; 0 for the same result as step by step.
        seeds: as in ``sample``: the same seeds give the same start and the same noise.
        x: the state at ``grid[0]``; drawn if not given.
        cond: conditions for the denoiser, one per item.

    Raises:
        ValueError: the rule makes no plan, or an argument does not fit.

    Cost:
        At most N sweeps, each one call on ``window * B`` items at most; memory for 2 N states, 3 N with noise.

    Error:
        None with tolerance 0 but rounding.

    Differs:
        The window of every item moves on its own; (2) is relative to the size of x_t, not to sigma_t; a plan may be of any order.

    >>> import trilemma as tl
    >>> two = tl.MixtureDenoiser(tl.Flow(), torch.tensor([[-1.0], [1.0]]), tl.Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> done = parallel(two, (8, 1), tl.uniform_grid(two.process, 100), tl.ddim(), window=100)
    >>> done.sweeps < 25
    True
    """
    ts = check_grid(grid)
    if window < 1 or not tolerance >= 0:
        raise ValueError(f"window must be at least 1 and tolerance at least 0, got {window} and {tolerance}")
    batch = begin(denoiser, shape, float(ts[0]), seeds=seeds, x=x, cond=cond)
    plan = rule(denoiser.process, ts)
    if not isinstance(plan, Plan):
        raise ValueError(f"parallel sampling needs a rule that makes a Plan, such as ddim() or dpmpp_2m; got {rule!r}")
    steps, size, sweeps = _Steps(plan, batch.x, batch.noise), 1, 0  # the first sweep has nothing to guess from
    evaluations = torch.zeros_like(steps.at)
    allowed = tolerance * torch.hypot(denoiser.process.alpha(ts), denoiser.process.sigma(ts))
    while bool((steps.at < steps.n).any()):
        step, item = steps.window(0, size)
        steps.d[step, item] = batch.mean(item)(steps.x[step, item], ts[step])
        steps.guess(size, window)
        before = steps.x[step + 1, item]
        steps.run(size + window)
        moved = torch.zeros(size, len(steps.at), dtype=torch.float64)
        moved[step - steps.at[item], item] = rms(steps.x[step + 1, item] - before).double().cpu()
        here = (steps.at + torch.arange(1, size + 1)[:, None]).clamp(max=steps.n)
        settled = moved <= allowed[here]  # (2); a state is right if all inputs of the steps to it were
        stride = 1 + settled[:-1].long().cumprod(0).sum(0)
        steps.at = (steps.at + stride).clamp(max=steps.n)
        evaluations += torch.bincount(item, minlength=len(evaluations))
        size, sweeps = window, sweeps + 1
    return Parallel(steps.x[-1], sweeps, evaluations)
