"""A denoiser whose data are x_s, the items at a level of noise: so that everything known of x is known of x_s.

From time s on, the process is one with clean items x_s, by (3) of ``process.gaussian``,

    x_t = (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) xi,                    (1)

and by Tweedie's formula, since the score of x_t is the same whatever is called clean,

    E[x_s | x_t] = e^(l_t - l_s) (alpha_s / alpha_t) x_t + (1 - e^(l_t - l_s)) alpha_s E[x | x_t].           (2)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..denoise.posterior import Gaussian
from ..numerics.shapes import pad
from ..process.gaussian import GaussianProcess

__all__ = ["Later", "LaterProcess"]


@dataclass(frozen=True)
class LaterProcess(GaussianProcess):
    """The process (1), its times stretched to [0, 1].

    Args:
        base: a process.
        start: the time s, in (0, 1).
    """

    base: GaussianProcess
    start: float

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise ValueError(f"start must lie inside of (0, 1), got {self.start}")

    def old_time(self, t: Tensor) -> Tensor:
        """The time of the base."""
        return torch.where(t >= 1, 1.0, self.start + (1 - self.start) * t)

    def _start(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.start)

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t / alpha_s."""
        return self.base.transition(self._start(t), self.old_time(t))[0]

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of (1)."""
        return self.base.transition(self._start(t), self.old_time(t))[1]

    def log_snr(self, t: Tensor) -> Tensor:
        """-log(sigma_s^2 (e^(l_s - l_t) - 1))."""
        s = self._start(t)
        return (
            -2 * self.base.sigma(s).log()
            - torch.expm1(self.base.log_snr(s) - self.base.log_snr(self.old_time(t))).log()
        )

    def time(self, log_snr: Tensor) -> Tensor:
        """By the inverse of the base, from e^(-l) = alpha_s^2 (q_t^2 - q_s^2), q = sigma / alpha."""
        s = self._start(log_snr)
        ratio = torch.exp(-self.base.log_snr(s)) + torch.exp(-log_snr) / self.base.alpha(s) ** 2
        return ((self.base.time(-ratio.log()) - self.start) / (1 - self.start)).clamp(0, 1)


class Later(Denoiser):
    """The denoiser (2), of x_s.

    Args:
        model: a denoiser.
        start: the time s, in (0, 1).

    Cost:
        One call of ``model``.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.likelihood import log_likelihood
    >>> from trilemma.process import VP
    >>> model = GaussianDenoiser(VP(), torch.zeros(1), Covariances.diagonal(torch.full((1, 1), 0.01)))
    >>> x_s = torch.tensor([[0.5]])
    >>> gap = log_likelihood(Later(model, 0.3), x_s).log_prob - model.log_prob(x_s, 0.3)
    >>> bool(gap.abs() < 1e-3)
    True
    """

    def __init__(self, model: Denoiser, start: float) -> None:
        super().__init__()
        self.model = model
        self.process: LaterProcess = LaterProcess(model.process, float(start))
        self.cond_keys = model.cond_keys

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """Equation (2)."""
        old, base = self.process.old_time(t.double()), self.process.base
        s = torch.full_like(old, self.process.start)
        alpha, alpha_s = base.alpha(old), base.alpha(s)
        on_x = alpha / alpha_s * (base.sigma(s) / base.sigma(old)) ** 2
        on_mean = -torch.expm1(base.log_snr(old) - base.log_snr(s)) * alpha_s
        mean = self.model(x_t, old, **cond).mean
        return Gaussian(pad(on_x.to(x_t), x_t) * x_t + pad(on_mean.to(x_t), x_t) * mean)
