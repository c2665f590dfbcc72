"""Laws of training times: which noise levels a denoiser is trained on, and how evenly a batch covers them.

A law maps uniform numbers u in (0, 1) to times by its quantile function. With ``low_discrepancy`` the u of a batch are

    u_i = (u_0 + i / n) mod 1,                                                                               (1)

each uniform but together evenly spread, which lowers the variance of the loss at no cost.

Source of (1): Kingma et al. 2021 (arXiv:2107.00630), appendix I.1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from .gaussian import GaussianProcess

__all__ = ["TIMES", "GeometricLevels", "LogNormalSigma", "LogSNR", "LogitNormal", "TimeLaw", "Uniform"]


@dataclass(frozen=True)
class TimeLaw(ABC):
    """A law of times; a subclass writes the quantile function.

    Args:
        low_discrepancy: spread each batch evenly, equation (1).
    """

    low_discrepancy: bool = True

    @abstractmethod
    def quantile(self, process: GaussianProcess, u: Tensor) -> Tensor:
        """Times for u in (0, 1), float64, any shape."""

    def __call__(self, process: GaussianProcess, n: int, noise: Noise) -> Tensor:
        """Draw the times of a whole batch.

        Args:
            process: the noise process.
            n: number of items in the batch (all processes together).
            noise: a source with one item.

        Returns:
            float64, shape ``(n,)``.
        """
        if self.low_discrepancy:
            first = noise.uniform((1,), dtype=torch.float64)
            u = ((first + torch.arange(n, dtype=torch.float64) / n) % 1).clamp(min=2.0**-53)
        else:
            u = noise.uniform((1, n), dtype=torch.float64)[0]
        return self.quantile(process, u)


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """Uniform on (0, 1).

    >>> from trilemma.process import Flow
    >>> [round(gap, 6) for gap in Uniform()(Flow(), 4, Noise(0, 1)).diff().remainder(1).tolist()]
    [0.25, 0.25, 0.25]
    """

    def quantile(self, process: GaussianProcess, u: Tensor) -> Tensor:
        """The time u."""
        return u


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """log(t / (1 - t)) ~ N(mean, std^2): middle noise levels of :class:`Flow` more often.

    Source: Esser et al. 2024 (arXiv:2403.03206), equation (19).
    """

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, process: GaussianProcess, u: Tensor) -> Tensor:
        """sigmoid(mean + std z)."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class LogNormalSigma(TimeLaw):
    """log(sigma/alpha) ~ N(mean, std^2), whatever the process.

    Levels that the process does not reach are trained at its last time.

    Source: Karras et al. 2022 (arXiv:2206.00364), table 1; for data of standard deviation 0.5.
    """

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, process: GaussianProcess, u: Tensor) -> Tensor:
        """The time at which log-SNR is -2 (mean + std z)."""
        return process.time(-2 * (self.mean + self.std * torch.special.ndtri(u)))


@dataclass(frozen=True)
class LogSNR(TimeLaw):
    """Log-SNR uniform from ``low``, or that of t = 1 if it is higher, to ``high``: times with density g^2/sigma^2.

    With it the bound on the likelihood is a plain mean: weighting ``likelihood``, times the length of the interval and the number
    of elements, is its diffusion term, and no factor varies with the process.

    Args:
        low_discrepancy: spread each batch evenly.
        low: the noisiest level.
        high: the cleanest.

    Raises:
        ValueError: the levels are not in order, or the process does not reach ``high``.

    Source: Song et al. 2021 (arXiv:2101.09258), section 4.1, importance sampling of the likelihood weighting, in closed form.

    >>> from trilemma.process import EDM
    >>> EDM(1.0).log_snr(LogSNR(low=-5.0, high=8.0).quantile(EDM(1.0), torch.tensor([0.25, 0.75])))         # EDM(1) begins at 0
    tensor([6., 2.])
    """

    low: float = -12.0
    high: float = 12.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"levels must be finite and in order, got low={self.low}, high={self.high}")

    def ends(self, process: GaussianProcess) -> tuple[float, float]:
        """The interval on a process."""
        low = max(self.low, float(process.log_snr(torch.tensor(1.0, dtype=torch.float64))))
        if low >= self.high:
            raise ValueError(f"{process} begins at log-SNR {low:.4g}, which is not below high={self.high}")
        return low, self.high

    def quantile(self, process: GaussianProcess, u: Tensor) -> Tensor:
        """The time at which the log-SNR is high + u (low - high)."""
        low, high = self.ends(process)
        return process.time(high + u * (low - high))


@dataclass(frozen=True)
class GeometricLevels(TimeLaw):
    """sigma/alpha one of ``count`` levels in geometric progression, each as likely as any other, whatever the process.

    Args:
        low_discrepancy: spread each batch evenly over the levels.
        high: the highest level.
        low: the lowest.
        count: how many, at least two; a whole number.

    Raises:
        ValueError: the levels are not in order, or fewer than two.

    Source: Song and Ermon 2019 (arXiv:1907.05600), section 4.1: ten levels from 1 to 0.01.

    >>> from trilemma.process import EDM
    >>> GeometricLevels(count=3).quantile(EDM(1.0), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    tensor([1.0000, 0.1000, 0.0100], dtype=torch.float64)
    """

    high: float = 1.0
    low: float = 0.01
    count: float = 10

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf or self.count < 2 or self.count != int(self.count):
            raise ValueError(
                f"geometric levels need 0 < low < high and a whole count of at least 2; got {self.low}, {self.high}, {self.count}"
            )

    def quantile(self, process: GaussianProcess, u: Tensor) -> Tensor:
        """The time of level number floor(count u), counted from the highest."""
        k = (u * self.count).floor().clamp(max=self.count - 1)
        share = k / (self.count - 1)
        return process.time(-2 * ((1 - share) * math.log(self.high) + share * math.log(self.low)))


TIMES: dict[str, Callable[[], TimeLaw]] = {
    "uniform": lambda: Uniform(low_discrepancy=False),
    "low_discrepancy": Uniform,
    "logit_normal": LogitNormal,
    "log_normal_sigma": LogNormalSigma,
    "log_snr": LogSNR,
    "geometric": GeometricLevels,
}
"""Every law of training times by its name."""
