"""The processes of the literature, each as its two curves with what has a closed form.

name      alpha               sigma                         of (1) in ``gaussian``
VP        e^(-B/2)            sqrt(1 - e^(-B))              B(t) = t beta_min + t^2 (beta_max - beta_min) / 2
SubVP     e^(-B/2)            1 - e^(-B)
VE        1                   sigma_min sqrt(r^(2t) - 1)    r = sigma_max / sigma_min
EDM       1                   sigma_max t
Flow      1 - t               t
Cosine    cos(pi t / 2)       sin(pi t / 2)
Sigmoid   a stretched sigmoid, variance preserving
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .gaussian import GaussianProcess, VariancePreserving

__all__ = ["EDM", "VE", "VP", "Cosine", "Flow", "Sigmoid", "SubVP"]


def _require(holds: bool, process: GaussianProcess, what: str) -> None:
    """Refuse settings that make no process."""
    if not holds:
        raise ValueError(f"{process} is no process; it needs finite {what}")


@dataclass(frozen=True)
class VP(VariancePreserving):
    """Variance preserving, beta(t) linear: alpha^2 = e^(-B), B = t beta_min + t^2 (beta_max - beta_min) / 2.

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.

    Source: Song et al. 2021, equation (32); the limit of DDPM's thousand steps.

    >>> round(float(VP().sigma(torch.tensor(1.0))), 5)
    0.99998
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _require(0 < self.beta_min <= self.beta_max < math.inf, self, "0 < beta_min <= beta_max")

    def _b(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + t * ((self.beta_max - self.beta_min) / 2))

    def alpha2(self, t: Tensor) -> Tensor:
        """e^(-B)."""
        return torch.exp(-self._b(t))

    def sigma2(self, t: Tensor) -> Tensor:
        """1 - e^(-B)."""
        return -torch.expm1(-self._b(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """-log(e^B - 1)."""
        return -torch.expm1(self._b(t)).log()

    def time(self, log_snr: Tensor) -> Tensor:
        """The positive root of B(t) = log(1 + e^(-l))."""
        b = torch.nn.functional.softplus(-log_snr).clamp(max=self.beta_min + self.beta_max)  # beyond B(1), and finite
        slope = self.beta_max - self.beta_min
        return (2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * b))).clamp(max=1)

    def drift(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))


@dataclass(frozen=True)
class SubVP(GaussianProcess):
    """The alpha of :class:`VP` with sigma = 1 - alpha^2, below the variance preserving one everywhere.

    Source: Song et al. 2021, equation (29). Best likelihoods of the three in that paper.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _require(0 < self.beta_min <= self.beta_max < math.inf, self, "0 < beta_min <= beta_max")

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal."""
        return VP(self.beta_min, self.beta_max).alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """1 - alpha^2."""
        return VP(self.beta_min, self.beta_max).sigma2(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """From alpha/sigma = 1 / (2 sinh(B/2)): the time at which VP has e^B = e^(2 asinh(e^(-l/2) / 2))."""
        b = (2 * torch.asinh(torch.exp(-log_snr / 2) / 2)).clamp(max=self.beta_min + self.beta_max)  # as in VP
        slope = self.beta_max - self.beta_min
        return (2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * b))).clamp(max=1)


@dataclass(frozen=True)
class VE(GaussianProcess):
    """Variance exploding: alpha = 1, g = sigma_min (sigma_max/sigma_min)^t sqrt(2 log(sigma_max/sigma_min)).

    Args:
        sigma_min: scale of the first noise.
        sigma_max: about the largest distance between two data points.

    Differs: the paper takes sigma(t) = sigma_min r^t, r = sigma_max/sigma_min, for the noise, which is not 0 at t = 0. The
    noise that its own equation adds from t = 0 on is sigma^2 = sigma_min^2 (r^(2t) - 1), used here.

    Source: Song et al. 2021, equation (31).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _require(0 < self.sigma_min < self.sigma_max < math.inf, self, "0 < sigma_min < sigma_max")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min sqrt(r^(2t) - 1)."""
        return self.sigma_min * torch.expm1(2 * self._log_ratio * t).sqrt()

    def time(self, log_snr: Tensor) -> Tensor:
        """log(1 + sigma^2 / sigma_min^2) / (2 log r)."""
        return (torch.log1p(torch.exp(-log_snr) / self.sigma_min**2) / (2 * self._log_ratio)).clamp(max=1)

    def diffusion2(self, t: Tensor) -> Tensor:
        """2 log(r) sigma_min^2 r^(2t), finite at 0 although sigma' is not."""
        return 2 * self._log_ratio * self.sigma_min**2 * torch.exp(2 * self._log_ratio * t)


@dataclass(frozen=True)
class EDM(GaussianProcess):
    """alpha = 1 and sigma = sigma_max t: time is the noise level.

    Args:
        sigma_max: largest noise level.

    Source: Karras et al. 2022 (arXiv:2206.00364), section 3, with time scaled to [0, 1].
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _require(0 < self.sigma_max < math.inf, self, "sigma_max > 0")

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_max t."""
        return self.sigma_max * t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """0 and sigma_max."""
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def time(self, log_snr: Tensor) -> Tensor:
        """e^(-l/2) / sigma_max."""
        return (torch.exp(-log_snr / 2) / self.sigma_max).clamp(max=1)


@dataclass(frozen=True)
class Flow(GaussianProcess):
    """alpha = 1 - t and sigma = t: the straight path from data to noise.

    alpha(1) = 0, so eps and score as targets are refused.

    Source: Lipman et al. 2023 (arXiv:2210.02747); Liu et al. 2023 (arXiv:2209.03003), with data at t = 0.
    """

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t.clone()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-1 and 1."""
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """1 / (1 + e^(l/2))."""
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True)
class Cosine(GaussianProcess):
    """alpha = cos(pi t / 2) and sigma = sin(pi t / 2), with alpha(1) exactly 0.

    Source: Nichol and Dhariwal 2021 (arXiv:2102.09672) in its continuous form without offset, l = -2 log tan(pi t / 2).
    """

    def alpha(self, t: Tensor) -> Tensor:
        """cos(pi t / 2), written so that it is 0 at 1."""
        return torch.sin((1 - t) * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(t * (math.pi / 2))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """-(pi/2) sigma and (pi/2) alpha."""
        return self.sigma(t) * (-math.pi / 2), self.alpha(t) * (math.pi / 2)

    def time(self, log_snr: Tensor) -> Tensor:
        """(2 / pi) atan(e^(-l/2))."""
        return torch.atan(torch.exp(-log_snr / 2)) * (2 / math.pi)


@dataclass(frozen=True)
class Sigmoid(VariancePreserving):
    """alpha^2 = (S(end) - S(start + t (end - start))) / (S(end) - S(start)), S(u) = 1 / (1 + e^(-u/tau)).

    Args:
        start: argument of S at t = 0.
        end: argument of S at t = 1, where alpha is 0.
        tau: temperature; larger leaves more time at low noise.

    Source: Jabri et al. 2022 (arXiv:2212.11972), appendix B; Chen 2023 (arXiv:2301.10972).
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        _require(
            -math.inf < self.start < self.end < math.inf and 0 < self.tau < math.inf, self, "start < end and tau > 0"
        )

    def _between(self, low: Tensor, gap: Tensor) -> Tensor:
        """S(low + gap) - S(low) for arguments divided by tau, without cancellation: e^-low (1 - e^-gap) S(low) S(low + gap)."""
        return torch.exp(-low) * -torch.expm1(-gap) * torch.sigmoid(low) * torch.sigmoid(low + gap)

    @property
    def _width(self) -> float:
        return (self.end - self.start) / self.tau

    @cached_property
    def _span(self) -> float:
        start, width = torch.tensor([self.start / self.tau, self._width], dtype=torch.float64)
        return float(self._between(start, width))

    def alpha2(self, t: Tensor) -> Tensor:
        """The share of S that is left."""
        gap = (1 - t) * self._width
        return self._between(self.end / self.tau - gap, gap) / self._span

    def sigma2(self, t: Tensor) -> Tensor:
        """The share of S that is gone."""
        return self._between(torch.full_like(t, self.start / self.tau), t * self._width) / self._span

    def _time_from(self, low: float, square: Tensor) -> Tensor:
        """The time after the argument ``low`` at which S has gone ``square`` of its way.

        With a = e^(-low/tau) and q = square span (1 + a):  1 - e^-gap = q (1 + a) / (a (1 + q)).
        """
        a = math.exp(-low / self.tau)
        q = square * (self._span * (1 + a))
        return -torch.log1p(-q * (1 + a) / (a * (1 + q))) / self._width

    def time(self, log_snr: Tensor) -> Tensor:
        """In closed form from the nearer end, S being antisymmetric about 1/2: sigma^2 from t = 0, alpha^2 from t = 1."""
        near, far = torch.sigmoid(-log_snr), torch.sigmoid(log_snr)
        return torch.where(log_snr > 0, self._time_from(self.start, near), 1 - self._time_from(-self.end, far))
