"""What is watched while training: the loss by noise level, and whether the run has gone astray."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["DivergedError", "Divergence", "LossByNoise", "NoiseProfile"]


class DivergedError(RuntimeError):
    """Training was stopped because the loss is no number or has risen far above what it was.

    Attributes:
        step: the update that failed; it was not applied if the loss or the gradient was not finite.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Divergence:
    """Compares the mean error of each 50 updates with the lowest such mean so far.

    Args:
        factor: the rise that counts as divergence.
        window: updates in a mean.

    >>> watch = Divergence(5.0, window=2)
    >>> [watch.add(error) for error in (1.0, 1.0, 0.1, 0.1, 0.4, 0.4, 0.6, 0.6)]
    [False, False, False, False, False, False, False, True]
    """

    def __init__(self, factor: float, window: int = 50) -> None:
        self.factor, self.window = factor, window
        self.lowest: float | None = None
        self.mean: float | None = None
        self.total, self.count = 0.0, 0

    def add(self, error: float) -> bool:
        """Take in the error of one update; true if the run has diverged."""
        if self.lowest is None:
            self.lowest = error  # of the untrained network, until there is a mean
        self.total, self.count = self.total + error, self.count + 1
        if self.count < self.window:
            return False
        self.mean, self.total, self.count = self.total / self.count, 0.0, 0
        diverged = self.mean > self.factor * self.lowest
        self.lowest = min(self.lowest, self.mean)
        return diverged

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"lowest": self.lowest, "mean": self.mean, "total": self.total, "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.lowest, self.mean, self.total, self.count = (state[key] for key in ("lowest", "mean", "total", "count"))


@dataclass(frozen=True)
class NoiseProfile:
    """The error of the network by noise level.

    Args:
        log_snr: centres of the bins, ``(K,)``.
        error: running mean of the unweighted squared error of the network's output, ``(K,)``; nan where nothing was seen.
        share: share of the recent training items in the bin, ``(K,)``.
    """

    log_snr: Tensor
    error: Tensor
    share: Tensor


class LossByNoise:
    """Running means of the error in bins of log-SNR; the outer bins take in all that lies beyond.

    Args:
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        bins: number of bins.
        memory: updates over which old values fade to 1/e.

    >>> profile = LossByNoise(-1.0, 1.0, bins=2)
    >>> profile.add(profile.sums(torch.tensor([-0.5, 0.5, 0.6]), torch.tensor([1.0, 2.0, 4.0])))
    >>> profile.read().error
    tensor([1., 3.], dtype=torch.float64)
    """

    def __init__(self, low: float = -12.0, high: float = 12.0, *, bins: int = 16, memory: float = 200.0) -> None:
        self.edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
        self.fade = math.exp(-1 / memory)
        self.totals = torch.zeros(2, bins, dtype=torch.float64)  # errors, items

    def sums(self, log_snr: Tensor, error: Tensor) -> Tensor:
        """Errors and numbers of the items of a batch by bin: ``(2, K)``, float64, on the device of ``error``."""
        bins = len(self.edges) - 1
        where = torch.bucketize(log_snr.to(self.edges.dtype), self.edges[1:-1].to(log_snr.device))
        rows = torch.stack([error.detach().double(), torch.ones_like(error, dtype=torch.float64)])
        return torch.zeros(2, bins, dtype=torch.float64, device=error.device).index_add_(1, where, rows)

    def add(self, sums: Tensor) -> None:
        """Take in the sums of one update."""
        self.totals.mul_(self.fade).add_(sums.cpu())

    def read(self) -> NoiseProfile:
        """The running means."""
        errors, items = self.totals
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        return NoiseProfile(centres, errors / items, items / items.sum())
