"""Pilot trajectories of a model: true ends, the states on the way, and weights fitted to them.

In the coordinates of ``sampling.angle``, a plan on given times is fitted by walking down with the states y_i that it reaches
itself:

    w_i = argmin sum over items of rho(|y(theta_{i+1}) - y_i - sum_j w_j v_{i-j}|),                          (1)

a least-squares problem of a few unknowns, with Cauchy's rho against items that have left their trajectory.
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
from .angle import angle, angular, angular_plan, norm_at
from .draw import sigma_data_of
from .loop import run
from .plan import Plan
from .start import Start

__all__ = ["Candidate", "Pilots", "robust_weights"]

_MEMORY = 2**30  # bytes for the trajectories


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan with what is known of it.

    Args:
        name: how it was made.
        plan: the plan.
        error: mean over the items of their root mean square error, in units of the data.
        rmse: root mean square error over all items.
        published: whether it is a published rule on a published grid.
    """

    name: str
    plan: Plan
    error: float = math.inf
    rmse: float = math.inf
    published: bool = False


class Pilots:
    """Trajectories of the probability flow, and the model that they belong to.

    Args:
        start: n pilots, of which the first two thirds are to fit and choose with, the rest to judge.
        fine: steps of the reference solution, by ``angular(4)``.
        batch: pilots in one call.

    Attributes:
        end: x(0) of all pilots, shape ``(n, ...)``.
        y, v: states and slopes of ``sampling.angle`` of the first ``kept`` pilots, shape ``(fine + 1, kept, ...)``.
        calls: calls of the denoiser so far, times items.

    Cost:
        ``fine`` calls for n items.
    """

    def __init__(self, start: Start, fine: int, batch: int) -> None:
        self.denoiser, self.x, self.cond, self.batch, self.calls = start.denoiser, start.x, start.cond, batch, 0
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
        return self.judged(candidate, torch.cat(parts), self.end[first:last])

    @staticmethod
    def judged(candidate: Candidate, x: Tensor, end: Tensor) -> Candidate:
        """The candidate with the errors of the ends that it reached."""
        each = torch.nan_to_num((x - end).double().flatten(1).square().mean(1), nan=math.inf)
        return replace(candidate, error=float(each.sqrt().mean()), rmse=float(each.mean().sqrt()))

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
        """Weights (1) for a grid, through at most ``memory`` values of v; the fit is also a run of the plan on these pilots."""
        theta = angle(self.process, ts, self.sigma_data).tolist()
        radius = norm_at(self.process, ts, self.sigma_data).tolist()
        y = self.states(theta[0])
        rows: list[list[float]] = []
        past: list[Tensor] = []
        index = torch.arange(self.kept)
        for i in range(len(theta) - 1):
            mean = torch.cat([self.model(y[j.to(y.device)] * radius[i], ts[i], j) for j in index.split(self.batch)])
            past = [self.turn(y * radius[i], mean, ts[i])[1], *past][:memory]
            wanted = self.states(theta[i + 1]) - y
            row = robust_weights(past, wanted)
            y = y + sum(w * v for w, v in zip(row, past))
            rows.append(row)
        plan = angular_plan(self.process, ts, rows, self.sigma_data)
        return self.judged(Candidate(name, plan), y * self.sigma_data, self.end[: self.kept])


def robust_weights(past: list[Tensor], wanted: Tensor) -> list[float]:
    """Weights (1): least squares, each item weighted by how well the last weights fitted it, five times over.

    Args:
        past: the last values of v, newest first, each of shape ``(n, ...)``.
        wanted: what their combination should be, shape ``(n, ...)``.

    >>> v = torch.randn(8, 3)
    >>> [round(w, 3) for w in robust_weights([v], 0.5 * v)]
    [0.5]
    """
    v = torch.stack(past, -1).double().flatten(1, -2)  # (items, coordinates, k)
    b = wanted.double().flatten(1)
    gram, right = v.mT @ v, (v.mT @ b[..., None])[..., 0]  # (items, k, k), (items, k)
    square = b.square().sum(1)
    k = v.shape[-1]
    weight, out = torch.ones_like(square), torch.zeros(k, dtype=torch.float64, device=v.device)
    for _ in range(5):
        matrix = (weight[:, None, None] * gram).sum(0)
        matrix += 1e-10 * matrix.diagonal().mean() * torch.eye(k, dtype=torch.float64, device=v.device)
        out = torch.linalg.lstsq(matrix, (weight[:, None] * right).sum(0)[:, None]).solution[:, 0]
        rest = (square - 2 * (right @ out) + torch.einsum("k,nkl,l->n", out, gram, out)).clamp(min=0)
        weight = 1 / (1 + rest / (9 * rest.median() + 1e-300))
    return [float(w) for w in out]
