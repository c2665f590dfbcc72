"""The probability flow on a fixed row of noise levels, from data to noise or back, by Adams' method.

With d the standard deviation of the data, theta = atan(sigma / (alpha d)), r = sqrt(alpha^2 d^2 + sigma^2) and y = x_t / r,

    dy/dtheta = v = (cos(theta) y - E[x | x_t] / d) / sin(theta),                                            (1)

between two levels tan(theta) = low and high. Levels follow l = log tan(theta) in equal steps h of s,

    l = c + k sinh(s / k),     c = 0.25, k = 2:                                                              (2)

dense where noise turns into data, smooth in l, which is what a network is told, and with ever longer steps towards both ends.
Adams' predictor with one correction, of fifth order (``sampling.angle``), takes one call a step in either direction.

Source: Song et al. 2021 (arXiv:2011.13456), section 4.3, for the flow as an encoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..sampling.angle import Angular, norm_at, time_at_angle
from ..sampling.draw import sigma_data_of
from ..sampling.loop import Hook, Progress
from ..sampling.start import check

__all__ = ["LEVELS", "Track"]

LEVELS = (0.01, 400.0)
"""Between which sigma / (alpha d) the flow is solved by default."""
_CENTRE, _WIDTH, _ORDER = 0.25, 2.0, 5  # the best on two digits networks, of two families of grids and orders 3 to 6
_FEWEST = 4  # steps


class Track:
    """The field (1) of a batch on the levels (2).

    Args:
        denoiser: any denoiser.
        like: items of the shape, type and number that it is asked about.
        steps: number of steps, at least 4.
        levels: lowest and highest sigma / (alpha d); the highest at most that of the process at t = 1.
        cond: conditions, one per item.
        hook: called with a ``Progress`` after every step.

    Raises:
        ValueError: something does not fit.
    """

    def __init__(
        self, denoiser: Denoiser, like: Tensor, steps: int, levels: tuple[float, float],
        cond: dict[str, Tensor] | None, hook: Hook | None,
    ) -> None:  # fmt: skip
        if steps < _FEWEST:
            raise ValueError(f"steps must be at least {_FEWEST}, got {steps}")
        self.device, self.cond = check(denoiser, like.shape, like, cond)
        self.denoiser, self.process, self.hook, self.dtype = denoiser, denoiser.process, hook, like.dtype
        self.d = sigma_data_of(denoiser)
        one = torch.ones((), dtype=torch.float64)
        top = math.exp(-0.5 * float(self.process.log_snr(one))) / self.d  # infinite where alpha(1) = 0
        low, high = levels
        if not (0 < low < min(high, top) and math.isfinite(high)):
            raise ValueError(
                f"levels must be finite with 0 < low < high, and low below {top:.4g}, the last of this process; got {levels}"
            )
        ends = torch.tensor([low, min(high, top)], dtype=torch.float64).log()
        first, last = (_WIDTH * ((ends - _CENTRE) / _WIDTH).asinh()).tolist()
        self.h = (last - first) / steps
        s = torch.linspace(first, last, steps + 1, dtype=torch.float64)
        self.theta = torch.atan((_CENTRE + _WIDTH * (s / _WIDTH).sinh()).exp())  # (2)
        self.t = time_at_angle(self.process, self.theta, self.d)
        if high >= top:
            self.t[-1] = 1.0
        self.pace = self.theta.sin() * self.theta.cos() * (s / _WIDTH).cosh()  # dtheta/ds
        self.from_x = float(self.process.alpha(self.t[0]) / self.norm(self.t[0]))  # below the levels y is kept
        self.to_z = float(self.norm(one) / self.process.sigma(one))  # and above them

    def norm(self, t: Tensor) -> Tensor:
        """The radius r at times of any shape."""
        return norm_at(self.process, t, self.d)

    def at(self, theta: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """(1) at an angle and its time, both (); float64."""
        r = float(self.norm(t))
        x_t = (y * r).to(self.dtype)
        mean = self.denoiser(x_t, t, **self.cond).mean
        seen = x_t.double() / r  # so that its rounding does not pass for a difference, which sin(theta) enlarges
        return (float(theta.cos()) * seen - mean.double() / self.d) / float(theta.sin())

    def node(self, i: int, y: Tensor) -> Tensor:
        """(1) at level ``i``."""
        return self.at(self.theta[i], self.t[i], y)

    def seen(self, done: int, i: int, y: Tensor) -> None:
        """Tell the hook."""
        if self.hook is not None:
            t = self.t[i]
            self.hook(Progress(done, len(self.t) - 1, (y * float(self.norm(t))).to(self.dtype), float(t), None))

    def adams(self, y: Tensor, *, down: bool) -> Tensor:
        """From one end to the other."""
        order = list(range(len(self.theta)))[:: -1 if down else 1]
        past: list[Tensor] = []
        for done, weights in enumerate(Angular(_ORDER, self.d, True).weights(self.theta[order].tolist()), 1):
            past = [self.node(order[done - 1], y), *past][: _ORDER + 1]
            y = y + sum((w * v for w, v in zip(weights[1:], past[1:])), weights[0] * past[0])
            self.seen(done, order[done], y)
        return y
