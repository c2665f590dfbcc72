"""PNDM and PLMS: iPNDM with a start by a Runge-Kutta method, which costs calls.

With rho = sigma/alpha and eps = (x_t - alpha D) / sigma, going from s to t with a given eps is DDIM's step

    phi(x, eps, s, t) = alpha_t (x/alpha_s + (rho_t - rho_s) eps).                                           (1)

A pseudo Runge-Kutta step of a table (c, a, b) puts the averages of the eps of its stages into (1):

    x_k = phi(x, sum_j a_kj eps_j / c_k, s, s + c_k (t - s)),     x_t = phi(x, sum_j b_j eps_j, s, t),       (2)

and a linear multistep step the average of Adams and Bashforth for equal steps, ``BASHFORTH``. The inner times of (2) are taken
in the time of the process. No step starts where alpha = 0, and the last step to t = 0 is x = D.

Source: Liu et al. 2022 (arXiv:2202.09778), equations (11) to (14) and algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from ..numerics.tableau import HEUN, RK4, Tableau
from ..process.gaussian import GaussianProcess
from .loop import Carry, Denoise, Step
from .multistep import BASHFORTH, noise_levels

__all__ = ["PNDM", "plms", "pndm"]


@dataclass(frozen=True)
class _Level:
    """A time with its alpha and sigma as python floats."""

    t: Tensor
    alpha: float
    sigma: float

    def eps(self, x: Tensor, denoise: Denoise) -> Tensor:
        return x.sub(denoise(x, self.t).mean, alpha=self.alpha).div_(self.sigma)

    def to(self, other: _Level, x: Tensor, eps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Equation (1) with an average of several eps."""
        out = x * (other.alpha / self.alpha)
        move = other.sigma - other.alpha * self.sigma / self.alpha
        for weight, value in zip(weights, eps):
            out.add_(value, alpha=move * weight)
        return out


@dataclass(frozen=True)
class PNDM:
    """The rules :func:`pndm` and :func:`plms`: the first ``starts`` steps by (2), the others by linear multistep of order 4.

    Args:
        table: the Runge-Kutta method of the start.
        starts: number of steps that it takes.
    """

    table: Tableau
    starts: int

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        """Find alpha and sigma at all times, those of the stages included."""
        noise_levels(process, ts)  # refuses alpha = 0

        def along(times: Tensor) -> list[_Level]:
            return [_Level(*z) for z in zip(times, process.alpha(times).tolist(), process.sigma(times).tolist())]

        levels = along(ts)
        c = torch.tensor(self.table.c, dtype=torch.float64)
        inner = [along(ts[i] + c * (ts[i + 1] - ts[i])) for i in range(min(self.starts, len(ts) - 1))]

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            here, after = levels[i], levels[i + 1]
            if after.sigma == 0:
                return denoise(x, here.t).mean, None
            past = () if carry is None else carry
            stages = [here.eps(x, denoise)]
            past = (stages[0], *past)[: len(BASHFORTH)]
            if i >= self.starts:
                return here.to(after, x, past, BASHFORTH[min(i, len(BASHFORTH) - 1)]), past
            for k in range(1, self.table.stages):
                weights = [a / self.table.c[k] for a in self.table.a[k]]
                stages.append(inner[i][k].eps(here.to(inner[i][k], x, stages, weights), denoise))
            return here.to(after, x, stages, self.table.b), past

        return step


def pndm() -> PNDM:
    """F-PNDM: three pseudo Runge-Kutta steps of four stages, then linear multistep of order 4.

    Raises:
        ValueError: when bound, alpha = 0 at the start.

    Cost:
        One call a step, and nine more for the first three steps.

    Error:
        O(h^2): the averages are those of equal steps in sigma/alpha.

    Source: Liu et al. 2022 (arXiv:2202.09778), algorithm 2.

    >>> pndm().starts
    3
    """
    return PNDM(RK4, 3)


def plms() -> PNDM:
    """PLMS of latent diffusion: a first step by the improved Euler method, then linear multistep of order 2, 3, 4, 4, ...

    Raises:
        ValueError: when bound, alpha = 0 at the start.

    Cost:
        One call a step, and one more for the first.

    Error:
        As of :func:`pndm`.

    Source: Liu et al. 2022 (arXiv:2202.09778); Rombach et al. 2022 (arXiv:2112.10752), whose code has this start.

    >>> plms().table.name
    'heun'
    """
    return PNDM(HEUN, 1)
