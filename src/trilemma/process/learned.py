"""A noise process whose log-SNR follows a density: how long it stays at each level is given by numbers, measured or learned.

Time counts how much of a density p over the log-SNR l lies above,

    t(l) = int_l^inf p(l') dl',     so that     dl/dt = -1 / p(l):                                           (1)

levels drawn at uniform times have the law p. Between knots p is linear, so t(l) is a parabola, with the inverse

    d = 2 tau / (p_i + sqrt(p_i^2 + 2 s tau)),     p = sqrt(p_i^2 + 2 s tau),                                (2)

for the way d below knot i after the time tau, s the slope of p downwards. Above the last knot L the density falls like
e^(-(l - L) / 2), which makes sigma proportional to t there,

    l = L - 2 log(t / t_0),     sigma / alpha = r t,     r = e^(-L/2) / t_0,     t_0 = 2 p(L).               (3)

Source: Kingma et al. 2021 (arXiv:2107.00630), section 5.1, for schedules that are learned; theirs is a monotone network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .gaussian import VariancePreserving

__all__ = ["Learned"]


@dataclass(frozen=True)
class Learned(VariancePreserving):
    """The variance preserving process of a density over log-SNR that is linear between knots, equation (1).

    By default the log-SNR is linear in time from 13 to -10, as VDM begins. A schedule that is fitted to a model comes from
    :func:`trilemma.likelihood.schedule.fit_schedule`.

    Args:
        knots: log-SNRs, increasing, at least two; the first is that of t = 1.
        density: p at each of them, positive, up to a factor that is found here.

    Raises:
        ValueError: the knots do not increase, or a density is not positive.

    >>> process = Learned((-4.0, 0.0, 4.0), (1.0, 2.0, 1.0))
    >>> process.time(torch.tensor([-4.0, 0.0, 4.0]))                  # masses 6, 6 and 2 of the tail
    tensor([1.0000, 0.5714, 0.1429])
    >>> process.log_snr(process.time(torch.tensor([-3.0, 1.0, 8.0])))
    tensor([-3.,  1.,  8.])
    """

    knots: tuple[float, ...] = (-10.0, 13.0)
    density: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("knots", "density"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.knots) < 2 or len(self.knots) != len(self.density):
            raise ValueError(
                f"a schedule needs at least two knots with a density each, got {len(self.knots)} and {len(self.density)}"
            )
        if not all(map(math.isfinite, self.knots)) or any(b <= a for a, b in zip(self.knots, self.knots[1:])):
            raise ValueError(f"knots must be finite log-SNRs in increasing order, got {self.knots}")
        if not all(0 < p < math.inf for p in self.density):
            raise ValueError(f"densities must be positive and finite, got {self.density}")

    def __repr__(self) -> str:
        return f"Learned({len(self.knots)} knots, log-SNR {self.knots[0]:g} to {self.knots[-1]:g})"

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Knots downwards, the normalised density at them, and their times."""
        knots = torch.tensor(self.knots, dtype=torch.float64).flip(0)
        p = torch.tensor(self.density, dtype=torch.float64).flip(0)
        mass = -knots.diff() * (p[1:] + p[:-1]) / 2
        p, mass = p / (mass.sum() + 2 * p[0]), mass / (mass.sum() + 2 * p[0])
        times = torch.cat([2 * p[:1], 2 * p[:1] + mass.cumsum(0)])
        times[-1] = 1.0
        return knots, p, times

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log-SNR and p at times, which of them are in the tail (3), and its r; float64."""
        knots, p, times = (values.to(t.device) for values in self._table)
        t = t.double()
        i = (torch.searchsorted(times, t.detach().contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        slope = (p[i + 1] - p[i]) / (knots[i] - knots[i + 1])
        tau = (t - times[i]).clamp(min=0)
        here = (p[i].square() + 2 * slope * tau).clamp(min=1e-300).sqrt()  # (2)
        body = knots[i] - 2 * tau / (p[i] + here)
        tail = t < times[0]
        above = knots[0] - 2 * (torch.where(tail, t, times[0]) / times[0]).log()  # (3)
        return torch.where(tail, above, body), torch.where(tail, t / 2, here), tail, (-knots[0] / 2).exp() / times[0]

    def log_snr(self, t: Tensor) -> Tensor:
        """Equations (2) and (3)."""
        return self._at(t)[0].to(t.dtype)

    def time(self, log_snr: Tensor) -> Tensor:
        """Equation (1), exactly."""
        knots, p, times = (values.to(log_snr.device) for values in self._table)
        level = log_snr.double()
        at = level.clamp(self.knots[0], self.knots[-1])
        i = (len(knots) - 1 - torch.searchsorted(knots.flip(0), at.detach().contiguous())).clamp(0, len(knots) - 2)
        d = (knots[i] - at).clamp(min=0)
        slope = (p[i + 1] - p[i]) / (knots[i] - knots[i + 1])
        body = (times[i] + d * (p[i] + slope * d / 2)).clamp(max=1)
        body = torch.where(level <= self.knots[0], 1.0, body)
        return torch.where(level > knots[0], times[0] * torch.exp(-(level - knots[0]) / 2), body).to(log_snr.dtype)

    def alpha2(self, t: Tensor) -> Tensor:
        """sigmoid(l)."""
        return torch.sigmoid(self._at(t)[0]).to(t.dtype)

    def sigma2(self, t: Tensor) -> Tensor:
        """sigmoid(-l)."""
        return torch.sigmoid(-self._at(t)[0]).to(t.dtype)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The curves' own: alpha' = -alpha sigma^2 / (2 p), sigma' = sigma alpha^2 / (2 p); sigma' = r alpha^3 in the tail."""
        log_snr, p, tail, r = self._at(t)
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        grow = torch.where(tail, r * alpha**3, sigma * alpha**2 / (2 * p))
        return (-sigma / alpha * grow).to(t.dtype), grow.to(t.dtype)

    def drift(self, t: Tensor) -> Tensor:
        """-sigma^2 / (2 p)."""
        log_snr, p, tail, r = self._at(t)
        alpha, sigma2 = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr)
        return -torch.where(tail, r * alpha * sigma2.sqrt(), sigma2 / (2 * p)).to(t.dtype)
