"""Pilot trajectories of a model: true ends, the states on the way, and weights fitted to them.

The error of a plan is ruled by the few items near the boundary of a basin, of which a random draw has too few. So pilots are
drawn from a crowd: two cheap plans of different order run on all of it, and item k is taken with probability

    p_k ~ 1 + g_k / mean(g),     g_k the distance between its two ends,                                      (1)

at most 1, and then stands for 1/p_k of the crowd: means weighted by that are those of the whole crowd.

In the coordinates of ``sampling.angle``, a plan on given times is fitted by walking down with the states y_i that it reaches
itself:

    w_i = argmin sum over items of p_k^(-1/2) rho(|y(theta_{i+1}) - y_i - sum_j w_j v_{i-j}|),               (2)

a least-squares problem of a few unknowns, with Cauchy's rho against items that have left their trajectory. The root leaves the
items of large g more than their share, because what they are off on the way counts for more at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoise.posterior import Gaussian
from ..numerics.noise import Noise
from ..process.grid import angular_grid
from .angle import angle, angular, angular_plan, norm_at, time_at_angle
from .draw import sigma_data_of
from .loop import run
from .plan import Plan
from .start import Start

__all__ = ["Candidate", "Pilots", "hard_pilots", "robust_weights"]

_MEMORY = 2**30  # bytes for the trajectories
_CHEAP = ((9, 2), (10, 3))  # steps and orders of the two plans of (1)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan with what is known of it.

    Args:
        name: how it was made.
        plan: the plan.
        error: mean over the items of their root mean square error, in units of the data.
        rmse: root mean square error over all items.
        published: whether it is a published rule on a published grid.
        weights: w of ``angular_plan``, where the plan was made from them.
    """

    name: str
    plan: Plan
    error: float = math.inf
    rmse: float = math.inf
    published: bool = False
    weights: tuple[tuple[float, ...], ...] = ()


def hard_pilots(start: Start, n: int, batch: int, at: float) -> tuple[Start, Tensor]:
    """``n`` items of a crowd, drawn by (1), and 1/p of each.

    Args:
        start: the crowd.
        n: number of items to take.
        batch: items in one call.
        at: a uniform number in [0, 1), which decides the draw.

    Cost:
        19 calls for the crowd.
    """
    process, d = start.denoiser.process, sigma_data_of(start.denoiser)
    ends = []
    for steps, order in _CHEAP:
        plan, parts = angular(order, sigma_data=d)(process, angular_grid(process, steps, sigma_data=d)), []
        for index in torch.arange(len(start.x), device=start.x.device).split(batch):
            mean = start.mean(index)
            wrapped = lambda x, t, mean=mean: Gaussian(mean(x, t))  # noqa: E731
            parts.append(run(plan, wrapped, start.x[index], steps, Noise(0, len(index))))
        ends.append(torch.cat(parts))
    gap = (ends[0] - ends[1]).double().flatten(1).square().mean(1).sqrt().cpu()
    share = 1 + torch.nan_to_num(gap / gap.nanmean(), nan=1.0, posinf=1.0)
    p = torch.zeros_like(share)
    while (
        bool((p < 1).any()) and (missing := n - float(p.sum())) > 1e-6
    ):  # what the sure ones do not use goes to the others
        p = (p + missing * share * (p < 1) / share[p < 1].sum()).clamp(max=1)
    steps_up = torch.cat([p.new_zeros(1), p.cumsum(0) * (n / p.sum()) + at]).floor()
    steps_up[0] = 0
    chosen = (steps_up.diff() > 0).nonzero()[:n, 0]
    index = chosen.to(start.x.device)
    cond = {key: value[index] for key, value in start.cond.items()}
    return Start(start.denoiser, start.x[index], start.noise, cond), 1 / p[chosen]


class Pilots:
    """Trajectories of the probability flow, and the model that they belong to.

    Args:
        start: n pilots, of which the first two thirds are to fit and choose with, the rest to judge.
        fine: steps of the reference solution, by ``angular(4)``.
        batch: pilots in one call.
        share: how much of a crowd each stands for, shape ``(n,)``; one each if not given.

    Attributes:
        end: x(0) of all pilots, shape ``(n, ...)``.
        y, v: states and slopes of ``sampling.angle`` of the first ``kept`` pilots, shape ``(fine + 1, kept, ...)``.
        calls: calls of the denoiser so far, times items.

    Cost:
        ``fine`` calls for n items.
    """

    def __init__(self, start: Start, fine: int, batch: int, share: Tensor | None = None) -> None:
        self.denoiser, self.x, self.cond, self.batch, self.calls = start.denoiser, start.x, start.cond, batch, 0
        self.share = torch.ones(len(self.x), dtype=torch.float64) if share is None else share
        self.process, self.sigma_data = self.denoiser.process, sigma_data_of(self.denoiser)
        shape, device = self.x.shape, self.x.device
        self.judges = max(1, shape[0] // 3)  # the last items are not for choosing
        self.fit = shape[0] - self.judges
        grid = angular_grid(self.process, fine, sigma_data=self.sigma_data)
        self.theta = angle(self.process, grid, self.sigma_data)
        plan = angular(4, sigma_data=self.sigma_data)(self.process, grid)
        size = self.x[0].numel() * self.x.element_size()
        self.kept = min(self.fit, max(16, _MEMORY // (2 * fine * size)))
        self.y = torch.empty(fine + 1, self.kept, *shape[1:], dtype=self.x.dtype, device=device)
        self.v = torch.empty_like(self.y)
        ends = []
        for index in torch.arange(shape[0]).split(batch):
            here = index[index < self.kept]

            def keep(x: Tensor, i: int, mean: Tensor, here: Tensor = here) -> None:
                y, v = self.turn(x[: len(here)], mean[: len(here)], grid[i])
                self.y[i, here], self.v[i, here] = y, v

            ends.append(self.walk(plan, index, keep if len(here) else None))
        self.end = torch.cat(ends)
        self.y[-1] = self.end[: self.kept] / self.sigma_data
        self.v[-1] = 2 * self.v[-2] - self.v[-3] if fine > 2 else self.v[-2]

    def turn(self, x: Tensor, mean: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(y, v) of ``sampling.angle`` from a state and its denoised state."""
        d, theta = self.sigma_data, float(angle(self.process, t, self.sigma_data))
        y = x / float(norm_at(self.process, t, d))
        return y, (y * math.cos(theta) - mean / d) / math.sin(theta)

    def model(self, x: Tensor, t: Tensor, index: Tensor) -> Tensor:
        """E[x | x_t] for the pilots of that index."""
        self.calls += len(index)
        return self.denoiser(x, t, **{key: value[index.to(value.device)] for key, value in self.cond.items()}).mean

    def walk(self, plan: Plan, index: Tensor, keep: Callable[[Tensor, int, Tensor], None] | None = None) -> Tensor:
        """The ends of a plan for pilots of a batch; ``keep`` sees every state and its denoised state."""
        step = 0

        def denoise(x: Tensor, t: Tensor) -> Gaussian:
            nonlocal step
            mean = self.model(x, t, index)
            if keep is not None:
                keep(x, step, mean)
            step += 1
            return Gaussian(mean)

        return run(plan, denoise, self.x[index.to(self.x.device)], plan.steps, Noise(0, len(index)))

    def judge(self, candidate: Candidate, first: int, last: int) -> Candidate:
        """The candidate with its errors on pilots ``first`` to ``last``."""
        parts = [self.walk(candidate.plan, index) for index in torch.arange(first, last).split(self.batch)]
        return self.judged(candidate, torch.cat(parts), first)

    def judged(self, candidate: Candidate, x: Tensor, first: int = 0) -> Candidate:
        """The candidate with the errors of the ends that it reached for the pilots from ``first`` on."""
        here = slice(first, first + len(x))
        share = (self.share[here] / self.share[here].sum()).to(x.device)
        each = torch.nan_to_num((x - self.end[here]).double().flatten(1).square().mean(1), nan=math.inf)
        return replace(candidate, error=float((share * each.sqrt()).sum()), rmse=float((share * each).sum().sqrt()))

    def moved(self, ts: Tensor, by: Tensor) -> Tensor:
        """Times with the inner levels log tan(theta) moved; all must be left in order."""
        theta = torch.atan(angle(self.process, ts[1:-1], self.sigma_data).tan() * by.exp())
        return torch.cat([ts[:1], time_at_angle(self.process, theta, self.sigma_data), ts[-1:]])

    def slope(self, y: Tensor, t: Tensor, index: Tensor) -> Tensor:
        """Slope v of ``sampling.angle`` at a state y of the pilots of that index."""
        x = y * float(norm_at(self.process, t, self.sigma_data))
        parts = zip(x.split(self.batch), index.split(self.batch))
        return self.turn(x, torch.cat([self.model(some, t, i) for some, i in parts]), t)[1]

    def states(self, theta: float) -> Tensor:
        """State y of the kept pilots at an angle, by the cubic through two fine states and their slopes."""
        i = int((self.theta > theta).sum()) - 1
        i = min(max(i, 0), len(self.theta) - 2)
        h = float(self.theta[i + 1] - self.theta[i])
        s = (theta - float(self.theta[i])) / h
        y0, y1, v0, v1 = self.y[i], self.y[i + 1], self.v[i], self.v[i + 1]
        return (
            y0 * ((1 + 2 * s) * (1 - s) ** 2)
            + v0 * (h * s * (1 - s) ** 2)
            + y1 * (s * s * (3 - 2 * s))
            + v1 * (h * s * s * (s - 1))
        )

    def fitted(self, ts: Tensor, memory: int, name: str) -> Candidate:
        """Weights (2) for a grid, through at most ``memory`` values of v; the fit is also a run of the plan on these pilots."""
        theta = angle(self.process, ts, self.sigma_data).tolist()
        y, index = self.states(theta[0]), torch.arange(self.kept)
        root = self.share[: self.kept].sqrt().to(y.device)
        rows: list[list[float]] = []
        past: list[Tensor] = []
        for i in range(len(theta) - 1):
            past = [self.slope(y, ts[i], index), *past][:memory]
            row = robust_weights(past, self.states(theta[i + 1]) - y, root)
            y = y + sum(w * v for w, v in zip(row, past))
            rows.append(row)
        plan = angular_plan(self.process, ts, rows, self.sigma_data)
        return self.judged(Candidate(name, plan, weights=tuple(map(tuple, rows))), y * self.sigma_data)


def robust_weights(past: list[Tensor], wanted: Tensor, share: Tensor | None = None) -> list[float]:
    """Weights (2): least squares, each item weighted by how well the last weights fitted it, five times over.

    Args:
        past: the last values of v, newest first, each of shape ``(n, ...)``.
        wanted: what their combination should be, shape ``(n, ...)``.
        share: weights of the items, shape ``(n,)``; equal if not given.

    >>> v = torch.randn(8, 3)
    >>> [round(w, 3) for w in robust_weights([v], 0.5 * v)]
    [0.5]
    """
    v = torch.stack(past, -1).double().flatten(1, -2)  # (items, coordinates, k)
    b = wanted.double().flatten(1)
    gram, right = v.mT @ v, (v.mT @ b[..., None])[..., 0]  # (items, k, k), (items, k)
    square = b.square().sum(1)
    k = v.shape[-1]
    share = torch.ones_like(square) if share is None else share
    weight, out = share, torch.zeros(k, dtype=torch.float64, device=v.device)
    for _ in range(5):
        matrix = (weight[:, None, None] * gram).sum(0)
        matrix += 1e-10 * matrix.diagonal().mean() * torch.eye(k, dtype=torch.float64, device=v.device)
        out = torch.linalg.lstsq(matrix, (weight[:, None] * right).sum(0)[:, None]).solution[:, 0]
        rest = (square - 2 * (right @ out) + torch.einsum("k,nkl,l->n", out, gram, out)).clamp(min=0)
        weight = share / (1 + rest / (9 * rest.median() + 1e-300))
    return [float(w) for w in out]
