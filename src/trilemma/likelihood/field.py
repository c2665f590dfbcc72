"""The probability flow with its divergence, in the angle between data and noise.

With d the standard deviation of the data, theta = atan(sigma / (alpha d)), r = sqrt(alpha^2 d^2 + sigma^2) and y =
x_t / r,

    dy/dtheta = v = (cos(theta) y - E[x | x_t] / d) / sin(theta),                                            (1)
    dv/dy = (cos(theta) I - (r / d) dE[x | x_t]/dx_t) / sin(theta),                                          (2)
    grad log p(y) = -y - v / tan(theta).                                                                     (3)

For data N(0, d^2) all of it is 0, so v and its divergence are only what the data differ from that: the Gaussian part
is taken out exactly, before any estimate. (3) is Tweedie's formula. For exact denoisers v = O(theta) at the data; for
a network it is finite.

Sources: Song et al. 2021 (arXiv:2011.13456), appendix D.2, for the likelihood by the flow; Karras et al. 2022
(arXiv:2206.00364) and Lu and Song 2025 (arXiv:2410.11081) for the coordinates.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.shapes import pad
from ..numerics.trace import vjps
from ..sampling.angle import angle, norm_at, time_at_angle
from .probes import Estimator

__all__ = ["Field", "model_dtype"]


def model_dtype(denoiser: Denoiser, x: Tensor) -> torch.dtype:
    """The type that a denoiser computes in: of its first parameter or buffer; that of ``x`` if it has none."""
    numbers = (p.dtype for p in chain(denoiser.parameters(), denoiser.buffers()) if p.is_floating_point())
    return next(numbers, x.dtype)


class Field:
    """(1) and the trace of (2) for some items of a batch, counting what each item costs.

    Args:
        denoiser: any denoiser.
        cond: its conditions, one entry an item of the whole batch.
        scale: d.
        trace: estimator of the trace, see ``probes``.
        dtype: what the denoiser is given.
        n: number of items of the batch.
        device: where they are.

    Attributes:
        calls: forward passes of each item, shape ``(n,)``.
        vjps: vector-Jacobian products of each item, shape ``(n,)``.
    """

    def __init__(
        self, denoiser: Denoiser, cond: dict[str, Tensor], scale: float, trace: Estimator, dtype: torch.dtype, n: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.denoiser, self.cond, self.scale, self.trace, self.dtype = denoiser, cond, scale, trace, dtype
        self.calls, self.vjps = torch.zeros(2, n, dtype=torch.long, device=device)
        one = torch.ones((), dtype=torch.float64)
        self.start = float(angle(denoiser.process, 0 * one, scale))
        self.end = float(angle(denoiser.process, one, scale))

    def __call__(self, theta: Tensor, y: Tensor, items: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
        """v, shape ``(b, ...)``, and samples of its divergence, ``(b, S)``, both float64.

        Args:
            theta: angles above 0, float64, shape ``(b,)``.
            y: states, float64, shape ``(b, ...)``.
            items: their numbers in the batch, shape ``(b,)``.
            index: number of the evaluation, for probes that change along the path.

        Raises:
            ValueError: the answer of the denoiser has no derivative.
        """
        r, sin, cos, t = self._curves(theta, y)
        with torch.enable_grad():
            x_t = (y * r).to(self.dtype).requires_grad_()
            mean = self._mean(x_t, t, items)
            if not mean.requires_grad:
                raise ValueError(
                    "the answer of the denoiser has no derivative with respect to x_t; a likelihood needs one "
                    "that runs without torch.no_grad, torch.inference_mode or .detach()"
                )

            def product(vectors: Tensor) -> Tensor:  # (2), transposed, times vectors of shape (P, b, ...)
                self.vjps[items] += len(vectors)
                rows = vjps(mean, x_t, vectors.to(mean.dtype)).double()
                return (cos * vectors - rows * (r / self.scale)) / sin

            divergence = self.trace(product, y, items, index)
        # of the state that the denoiser saw: sin would enlarge the difference to y, which is rounding
        seen = x_t.detach().double() / r
        return (cos * seen - mean.detach().double() / self.scale) / sin, divergence.detach()

    @torch.no_grad()
    def flow(self, theta: Tensor, y: Tensor, items: Tensor) -> Tensor:
        """V alone."""
        r, sin, cos, t = self._curves(theta, y)
        x_t = (y * r).to(self.dtype)
        return (cos * (x_t.double() / r) - self._mean(x_t, t, items).double() / self.scale) / sin

    def _curves(self, theta: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """r, sin(theta) and cos(theta), to be multiplied with ``y``, and the time."""
        process = self.denoiser.process
        t = torch.where(theta >= self.end, 1.0, time_at_angle(process, theta, self.scale)).to(theta)
        r, sin, cos = (pad(c, y) for c in (norm_at(process, t, self.scale), theta.sin(), theta.cos()))
        return r, sin, cos, t

    def _mean(self, x_t: Tensor, t: Tensor, items: Tensor) -> Tensor:
        self.calls[items] += 1
        return self.denoiser(x_t, t, **{key: value[items] for key, value in self.cond.items()}).mean

    @staticmethod
    def score(theta: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """(3), shape ``(b, ...)``; below an angle of 0.01 with that of 0.01, where a network's v need not vanish."""
        return -y - v / pad(theta.tan().clamp(min=0.01), y)
