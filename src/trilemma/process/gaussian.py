"""Gaussian noise processes: two curves from which everything else follows.

A clean item x becomes, at time t in [0, 1],

    x_t = alpha(t) x + sigma(t) eps,     eps ~ N(0, I),     alpha(0) = 1, sigma(0) = 0,                      (1)

with log-SNR  l(t) = log(alpha^2 / sigma^2)  strictly decreasing from +infinity. The same marginals are those of

    dx = f x dt + g dw,     f = alpha' / alpha,     g^2 = (sigma^2)' - 2 f sigma^2 = -sigma^2 l',            (2)

and going from time s to a later t, with r = alpha_t / alpha_s,

    x_t = r x_s + sigma_t sqrt(1 - e^(l_t - l_s)) xi,     xi ~ N(0, I).                                      (3)

Sources: Song et al. 2021 (arXiv:2011.13456) for the stochastic equations; Kingma et al. 2021 (arXiv:2107.00630) for l.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from ..numerics.shapes import pad

__all__ = ["GaussianProcess", "Shifted", "VariancePreserving"]


def _rate(curve: object, t: Tensor) -> Tensor:
    """Derivative of an elementwise function by forward differentiation, in the type of ``t``."""
    t = t.contiguous() if t.ndim else t  # jvp refuses expanded tensors
    return torch.func.jvp(curve, (t,), (torch.ones_like(t),))[1]  # type: ignore[arg-type]


@dataclass(frozen=True)
class GaussianProcess(ABC):
    """A process (1); a subclass writes ``alpha`` and ``sigma`` for tensors of times, and the rest follows.

    All methods take times of any shape and return that shape, in the type of the times. Subclasses are frozen dataclasses:
    values that compare, hash and print.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal; 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise; 0 at t = 0."""

    def log_snr(self, t: Tensor) -> Tensor:
        """Logarithm of the signal-to-noise ratio, l = log(alpha^2/sigma^2); +inf at t = 0, -inf where alpha = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time(self, log_snr: Tensor) -> Tensor:
        """Inverse of :meth:`log_snr`: the time at which the log-SNR has the given value.

        Values below l(1), which the process never reaches, give 1. Solved by bisection unless a subclass knows better.
        """
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(70 if log_snr.dtype == torch.float64 else 30):
            middle = (low + high) / 2
            above = self.log_snr(middle) > log_snr
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        ends = self.log_snr(torch.ones_like(low)) >= log_snr
        return torch.where(ends, 1.0, torch.where(log_snr == torch.inf, 0.0, (low + high) / 2))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives alpha'(t) and sigma'(t); sigma' is infinite at t = 0 where sigma starts like a square root."""
        return _rate(self.alpha, t), _rate(self.sigma, t)

    def drift(self, t: Tensor) -> Tensor:
        """Coefficient f of (2)."""
        return self.rates(t)[0] / self.alpha(t)

    def diffusion2(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient g^2 of (2)."""
        sigma = self.sigma(t)
        return 2 * sigma * (self.rates(t)[1] - self.drift(t) * sigma)

    def prior(self, shape: Sequence[int], noise: Noise, *, t: float = 1.0, like: Tensor | None = None) -> Tensor:
        """Draw pure noise N(0, sigma(t)^2), from which sampling starts.

        Args:
            shape: ``(n, ...)`` for the ``n`` items of ``noise``.
            noise: source of the draw.
            t: where sampling starts.
            like: a tensor whose type and device are taken; float32 on the CPU without it.
        """
        dtype, device = (torch.float32, torch.device("cpu")) if like is None else (like.dtype, like.device)
        scale = float(self.sigma(torch.tensor(t, dtype=torch.float64)))
        return noise.normal(shape, dtype=dtype, device=device).mul_(scale)

    def perturb(self, x: Tensor, t: Tensor, noise: Noise | Tensor) -> Tensor:
        """Draw x_t given the clean x: equation (1).

        Args:
            x: clean items, shape ``(B, ...)``.
            t: time, ``()`` or ``(B,)``.
            noise: a source, or the value of eps, of the shape of ``x``.

        >>> from trilemma.process import Flow
        >>> Flow().perturb(torch.ones(2, 3), torch.tensor([0.0, 1.0]), torch.zeros(2, 3))
        tensor([[1., 1., 1.],
                [0., 0., 0.]])
        """
        eps = noise if isinstance(noise, Tensor) else noise.normal_like(x)
        return pad(self.alpha(t).to(x), x) * x + pad(self.sigma(t).to(x), x) * eps

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Scale r and standard deviation of the step (3) from time ``s`` to a time ``t`` that is not earlier."""
        gap = torch.where(s == t, 0.0, self.log_snr(t) - self.log_snr(s))
        scale = torch.where(s == t, 1.0, self.alpha(t) / self.alpha(s))  # 0/0 where alpha(1) = 0
        return scale, self.sigma(t) * torch.expm1(gap).neg().clamp(min=0).sqrt()

    def renoise(self, x_s: Tensor, s: Tensor, t: Tensor, noise: Noise | Tensor) -> Tensor:
        """Draw x_t given x_s at an earlier time s <= t: equation (3).

        Args:
            x_s: items at time ``s``, shape ``(B, ...)``.
            s: their time, ``()`` or ``(B,)``.
            t: the later time, ``()`` or ``(B,)``.
            noise: a source, or the value of xi.
        """
        scale, std = self.transition(s, t)
        xi = noise if isinstance(noise, Tensor) else noise.normal_like(x_s)
        return pad(scale.to(x_s), x_s) * x_s + pad(std.to(x_s), x_s) * xi


class VariancePreserving(GaussianProcess):
    """Processes with alpha^2 + sigma^2 = 1; a subclass writes both squares, each without cancellation.

    Then f = (alpha^2)' / (2 alpha^2) and g^2 = -2 f, finite at t = 0 although sigma' is not.
    """

    @abstractmethod
    def alpha2(self, t: Tensor) -> Tensor:
        """The square of alpha."""

    @abstractmethod
    def sigma2(self, t: Tensor) -> Tensor:
        """The square of sigma, 1 - alpha^2, precise near t = 0."""

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal."""
        return self.alpha2(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise."""
        return self.sigma2(t).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2)."""
        return self.alpha2(t).log() - self.sigma2(t).log()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha' and sigma', from d(alpha^2) = -d(sigma^2)."""
        slope = _rate(self.alpha2, t) / 2
        return slope / self.alpha(t), -slope / self.sigma(t)

    def drift(self, t: Tensor) -> Tensor:
        """F = alpha' / alpha."""
        return _rate(self.alpha2, t) / (2 * self.alpha2(t))

    def diffusion2(self, t: Tensor) -> Tensor:
        """g^2 = -2 f."""
        return -2 * self.drift(t)


@dataclass(frozen=True)
class Shifted(GaussianProcess):
    """Another process with its log-SNR moved by a constant at every time: sigma is multiplied by e^(-shift/2).

    Large images are noisier than small ones at the same log-SNR per pixel, since neighbours agree: for images of side d
    designed at side d_0 take ``shift = 2 log(d_0 / d)``, made by :meth:`for_resolution`.

    Args:
        base: the process.
        shift: what is added to the log-SNR; finite, negative for more noise.

    Source: Hoogeboom et al. 2023 (arXiv:2301.11093), equation (4).

    >>> from trilemma.process import Cosine
    >>> t = torch.tensor(0.5)
    >>> round(float(Shifted.for_resolution(Cosine(), side=128, reference=64).log_snr(t) - Cosine().log_snr(t)), 4)
    -1.3863
    """

    base: GaussianProcess
    shift: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.shift):
            raise ValueError(f"shift={self.shift} must be a finite number")

    @classmethod
    def for_resolution(cls, base: GaussianProcess, side: int, reference: int = 64) -> Shifted:
        """The shift for images of ``side`` pixels when ``base`` suits images of ``reference`` pixels."""
        return cls(base, 2 * math.log(reference / side))

    def alpha(self, t: Tensor) -> Tensor:
        """That of the base."""
        return self.base.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """e^(-shift/2) times that of the base."""
        return self.base.sigma(t) * math.exp(-self.shift / 2)

    def log_snr(self, t: Tensor) -> Tensor:
        """That of the base plus the shift."""
        return self.base.log_snr(t) + self.shift

    def time(self, log_snr: Tensor) -> Tensor:
        """By the inverse of the base."""
        return self.base.time(log_snr - self.shift)

    def drift(self, t: Tensor) -> Tensor:
        """That of the base."""
        return self.base.drift(t)

    def diffusion2(self, t: Tensor) -> Tensor:
        """e^(-shift) times that of the base."""
        return self.base.diffusion2(t) * math.exp(-self.shift)
