"""Steps of several calls as data: a table of numbers for every step.

Between its calls such a step is linear. What the denoiser is given in stage i, and the result of the step (i = S + 1), are

    x_i = r_i x + sum_{j<i} b_ij D_j + sum_k c_ik xi_k,     D_j = E[x | x_j] at time t_j,                    (1)

with xi_k standard normal, the same in all stages, and x_1 = x. The numbers depend on the process and the grid only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..numerics.noise import Noise
from .loop import Carry, Denoise

__all__ = ["Staged"]


class Staged:
    """A bound step (1).

    Args:
        steps: for every step the times of its S stages, shape ``(S,)``, and its table, shape ``(S + 1, 1 + S + draws)``: weights
            of x, of the denoised states and of the draws, in every stage and in the result.

    Cost:
        S calls a step.
    """

    def __init__(self, steps: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.steps = tuple(steps)
        self._rows = [[[(k, w) for k, w in enumerate(row) if w] for row in table.tolist()] for _, table in self.steps]
        self._times = [list(times.unbind()) for times, _ in self.steps]

    def __call__(self, denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
        """Equation (1); draw k is at position k of the step's noise."""
        times, rows = self._times[i], self._rows[i]
        known = {0: x}

        def value(k: int) -> Tensor:
            if k not in known:
                known[k] = noise.at(k - 1 - len(times)).normal_like(x)
            return known[k]

        def combine(row: list[tuple[int, float]]) -> Tensor:
            out: Tensor | None = None
            for k, weight in row:
                out = value(k) * weight if out is None else out.add_(value(k), alpha=weight)
            return torch.zeros_like(x) if out is None else out

        for j, t in enumerate(times):
            known[1 + j] = denoise(combine(rows[j]) if j else x, t).mean
        return combine(rows[-1]), None
