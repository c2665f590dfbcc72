"""A Gaussian law as control variate of the variational bound: its denoiser's error is known, draw by draw and in the mean.

The denoiser of N(m, C), C = U diag(s) U^T, errs in the noise of a clean x by, with z = U^T (x - m), xi = U^T eps, l = log-SNR and
q = e^l s / (1 + e^l s),

    |eps - eps_hat|^2 = sum_j (e^(l/2) (1 - q_j) z_j - q_j xi_j)^2,                                          (1)
    its mean          = sum_j  e^l (1 - q_j)^2 z_j^2 + q_j^2,                                                (2)
    int of (2) over l = sum_j  e^l z_j^2 / (1 + e^l s_j) + log(1 + e^l s_j) - q_j,   from -infinity to l.    (3)

So where a model errs much as N(m, C) does, only the difference between the two errors needs to be sampled, with the same noise,
and (3) is added. For data with a density the model's error tends to |eps|^2 at high l, and so does (1): the difference vanishes.

Source: the mean error of a Gaussian law is textbook; Kong et al. 2023 (arXiv:2302.03792), section 3, subtract that of N(0, I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.exact import Covariances

__all__ = ["Control"]


@dataclass(frozen=True)
class Control:
    """The law N(m, C); make it by :meth:`isotropic` or :meth:`fit`, or from a mean and any :class:`Covariances`.

    Args:
        mean: m, flattened, shape ``(D,)``.
        covariances: C, one covariance.
    """

    mean: Tensor
    covariances: Covariances

    @classmethod
    def isotropic(cls, scale: float, size: int) -> Control:
        """N(0, scale^2 I) in ``size`` coordinates: what a bound subtracts by default, ``scale`` the model's ``sigma_data``."""
        variances = torch.full((1, size), scale**2, dtype=torch.float64)
        return cls(torch.zeros(size, dtype=torch.float64), Covariances.diagonal(variances))

    @classmethod
    def fit(cls, x: Tensor) -> Control:
        """Mean and covariance of items, which need not be those that are judged.

        Args:
            x: clean items, ``(B, ...)``, model units.

        Raises:
            ValueError: fewer than two items.

        Cost:
            D^2 numbers and D^3 operations; beyond some thousand coordinates use ``Covariances.low_rank``.

        >>> Control.fit(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).covariances.dense().tolist()
        [[[1.0, 0.0], [0.0, 0.0]]]
        """
        if len(x) < 2:
            raise ValueError(f"a covariance needs at least 2 items, got {len(x)}")
        flat = x.double().flatten(1).cpu()
        return cls(flat.mean(0), Covariances.full(torch.cov(flat.T, correction=0).reshape(1, *[flat.shape[1]] * 2)))

    def error(self, x: Tensor, eps: Tensor, level: Tensor) -> Tensor:
        """(1) for items ``(B, ...)``, noise values of that shape and log-SNRs ``(B,)``; float64, shape ``(B,)``."""
        snr, (spread, _) = level.double().exp()[:, None], self._spectrum()
        off = snr.sqrt() * self._from_mean(x) - snr * spread * self._coordinates(eps)
        return (off / (1 + snr * spread)).square().sum(1)

    def mean_error(self, x: Tensor, level: float) -> Tensor:
        """(2) for items ``(B, ...)`` at a log-SNR; float64, shape ``(B,)``.

        >>> Control.isotropic(1.0, 3).mean_error(torch.ones(1, 3), 0.0)                    # q = 1/2: 3 (1/4 + 1/4)
        tensor([1.5000], dtype=torch.float64)
        """
        snr, (spread, count) = math.exp(level), self._spectrum()
        kept = 1 / (1 + snr * spread)
        return (snr * (kept * self._from_mean(x)).square() + count * (1 - kept).square()).sum(1)

    def integral(self, x: Tensor, low: float, high: float) -> Tensor:
        """The integral of (2) between two log-SNRs for items ``(B, ...)``; float64, shape ``(B,)``."""
        z2, (spread, count) = self._from_mean(x).square(), self._spectrum()

        def until(level: float) -> Tensor:  # (3)
            snr = math.exp(level)
            gain = snr * spread
            return (snr * z2 / (1 + gain) + count * (gain.log1p() - gain / (1 + gain))).sum(1)

        return until(high) - until(low)

    def like(self, x: Tensor) -> Control:
        """The same law on the device of items ``(B, ...)``.

        Raises:
            ValueError: it has not their number of coordinates.
        """
        if len(self.mean) != x[0].numel():
            raise ValueError(f"control is a law of {len(self.mean)} coordinates, and an item has {x[0].numel()}")
        law = self.covariances
        basis = None if law.basis is None else law.basis.to(x.device)
        return Control(self.mean.to(x.device), Covariances(law.values.to(x.device), basis, law.floor.to(x.device)))

    def _coordinates(self, x: Tensor) -> Tensor:
        """In the basis, and what lies outside it: ``(B, R + D)``."""
        return torch.cat(self.covariances.split(x.double().flatten(1)[:, None]), 2)[:, 0]

    def _from_mean(self, x: Tensor) -> Tensor:
        """The z of (1), ``(B, R + D)``."""
        return self._coordinates(x.double().flatten(1) - self.mean)

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Variances s along :meth:`_coordinates`, and how many dimensions each of them stands for."""
        inside, size = self.covariances.values[0], len(self.mean)
        spread = torch.cat([inside, self.covariances.floor.expand(size)])
        return spread, torch.cat([torch.ones_like(inside), torch.full_like(spread[:size], 1 - len(inside) / size)])
