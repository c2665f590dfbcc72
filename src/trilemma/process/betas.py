"""Processes given by the variances beta_1, ..., beta_T of a discrete chain, such as DDPM's thousand steps.

    alpha_k^2 = prod_{i <= k} (1 - beta_i)  at t = k/T,  alpha = 1 at t = 0,                                 (1)

and alpha is linear in t in between, which keeps alpha = 0 at t = 1 possible and costs no accuracy where the chain is defined.

Sources: Ho et al. 2020 (arXiv:2006.11239); Nichol and Dhariwal 2021 (arXiv:2102.09672), equation (17); Lin et al. 2024
(arXiv:2305.08891), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .gaussian import VariancePreserving

__all__ = ["FromBetas", "cosine_betas", "linear_betas", "zero_terminal_snr"]


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> tuple[float, ...]:
    """DDPM's betas: equally spaced from ``first`` to ``last``.

    >>> linear_betas(3, 0.1, 0.3)
    (0.1, 0.2, 0.3)
    """
    return tuple(round(first + (last - first) * i / max(steps - 1, 1), 15) for i in range(steps))


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> tuple[float, ...]:
    """Betas of the cosine schedule: alpha_k^2 proportional to cos^2((k/T + offset) / (1 + offset) pi/2), beta cut at ``largest``.

    >>> cosine_betas()[-1]
    0.999
    """

    def curve(k: int) -> float:
        return math.cos((k / steps + offset) / (1 + offset) * math.pi / 2) ** 2

    return tuple(min(1 - curve(k + 1) / curve(k), largest) for k in range(steps))


def zero_terminal_snr(betas: tuple[float, ...]) -> tuple[float, ...]:
    """Move and stretch alpha so that the last step leaves no signal and the first stays as it is.

    Source: Lin et al. 2024, algorithm 1. Not for eps or score as target, which say nothing about x where alpha = 0.

    >>> zero_terminal_snr(linear_betas())[-1]
    1.0
    """
    beta = torch.tensor(betas, dtype=torch.float64)
    alpha = (1 - beta).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    squares = torch.cat([torch.ones(1, dtype=torch.float64), alpha.square()])
    return tuple(float(b) for b in 1 - squares[1:] / squares[:-1])


@dataclass(frozen=True)
class FromBetas(VariancePreserving):
    """A variance preserving process through the points (1) of a discrete chain.

    Args:
        betas: each in (0, 1], at least two, only the last may be 1; DDPM's own by default.

    Raises:
        ValueError: a beta is out of range.

    >>> process = FromBetas()
    >>> k = torch.tensor(1.0, dtype=torch.float64) / 1000
    >>> round(float(process.sigma(k)) ** 2, 12)                                     # the first beta
    0.0001
    """

    betas: tuple[float, ...] = linear_betas()

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        if len(self.betas) < 2:
            raise ValueError(f"at least two betas are needed, got {len(self.betas)}")
        for k, beta in enumerate(self.betas):
            if not 0 < beta < 1 and not (beta == 1 and k == len(self.betas) - 1):
                raise ValueError(f"beta number {k + 1} is {beta}; each must lie in (0, 1), the last one in (0, 1]")

    def __repr__(self) -> str:
        return f"FromBetas({len(self.betas)} betas from {self.betas[0]:.6g} to {self.betas[-1]:.6g})"

    @property
    def steps(self) -> int:
        """Number T of steps of the chain."""
        return len(self.betas)

    @cached_property
    def _gaps(self) -> Tensor:
        """1 - alpha at t = 0, 1/T, ..., 1, without cancellation."""
        logs = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0) / 2
        return torch.cat([torch.zeros(1, dtype=torch.float64), -torch.expm1(logs)])

    def _gap(self, t: Tensor) -> Tensor:
        """1 - alpha(t) by linear interpolation of (1)."""
        place = t.double() * self.steps
        k = place.detach().floor().clamp(0, self.steps - 1).long()
        gaps = self._gaps.to(t.device)
        return (gaps[k] + (place - k) * (gaps[k + 1] - gaps[k])).to(t.dtype)

    def alpha2(self, t: Tensor) -> Tensor:
        """alpha^2."""
        return (1 - self._gap(t)).square()

    def sigma2(self, t: Tensor) -> Tensor:
        """(1 - alpha)(1 + alpha)."""
        gap = self._gap(t)
        return gap * (2 - gap)

    def time(self, log_snr: Tensor) -> Tensor:
        """From 1 - alpha = 1 - sqrt(sigmoid(l)), by inverse interpolation."""
        # 1 - a = (1 - a^2) / (1 + a)
        gap = torch.sigmoid(-log_snr.double()) / (1 + torch.sigmoid(log_snr.double()).sqrt())
        gaps = self._gaps.to(gap.device)
        k = (torch.searchsorted(gaps, gap.contiguous(), right=True) - 1).clamp(0, self.steps - 1)
        place = k + (gap - gaps[k]) / (gaps[k + 1] - gaps[k])
        return (place / self.steps).clamp(0, 1).to(log_snr.dtype)
