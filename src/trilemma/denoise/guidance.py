"""Guidance: denoisers that wrap denoisers, so that every sampler, likelihood and inverse solver takes them.

All of it is extrapolation from a weak answer over a strong one,

    x_w = x_weak + w (x_strong - x_weak).                                                                    (1)

Classifier-free guidance takes the same model without its conditions for the weak one, autoguidance a worse model.

Sources: Ho and Salimans 2022 (arXiv:2207.12598), whose w is ours less one; Karras et al. 2024 (arXiv:2406.02507).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics.shapes import pad
from .denoiser import Denoiser
from .posterior import Gaussian

__all__ = ["CFG", "Guided", "Thresholded", "Unconditional", "Within"]


class _Wrapper(Denoiser):
    """A denoiser around another one, with its process and its conditions."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model
        self.process = model.process
        self.cond_keys = model.cond_keys


class Unconditional(_Wrapper):
    """A denoiser that leaves its conditions out.

    Args:
        model: a denoiser trained with and without conditions.
        drop: the conditions to leave out; all if not given.
    """

    def __init__(self, model: Denoiser, drop: frozenset[str] | None = None) -> None:
        super().__init__(model)
        self.drop = model.cond_keys if drop is None else frozenset(drop)
        self.check_cond(dict.fromkeys(self.drop, torch.empty(0)))

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """The answer without the conditions."""
        self.check_cond(cond)
        return self.model(x_t, t, **{k: v for k, v in cond.items() if k not in self.drop})


class Guided(_Wrapper):
    """Equation (1); with a worse ``weak`` model this is autoguidance.

    Args:
        model: the strong denoiser.
        weak: the weak one, on the same process; it is given the conditions that it takes, which may be none.
        scale: w; 1 is the strong model and 0 the weak one.
        rescale: in [0, 1]; moves the standard deviation of each answer this far back to that of the strong one.

    Raises:
        ValueError: the processes differ, or ``rescale`` is out of range.

    Cost:
        Two calls; one where w is 0 or 1.

    Source: Lin et al. 2024 (arXiv:2305.08891), equation (16) for ``rescale``, there on v.
    """

    def __init__(self, model: Denoiser, weak: Denoiser, scale: float, *, rescale: float = 0.0) -> None:
        super().__init__(model)
        if weak.process != model.process:
            raise ValueError(
                f"both denoisers need one process, got {model.process} and {weak.process}; wrap one in Rescheduled"
            )
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale}")
        self.weak, self.scale, self.rescale = weak, float(scale), float(rescale)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """The extrapolated answer."""
        self.check_cond(cond)
        if self.scale == 1:
            return self.model(x_t, t, **cond)
        weak = self.weak(x_t, t, **{key: value for key, value in cond.items() if key in self.weak.cond_keys})
        if self.scale == 0:
            return weak
        strong = self.model(x_t, t, **cond)
        out = strong.blend(weak, self.scale)
        if self.rescale:
            ratio = strong.mean.flatten(1).std(1, correction=0) / out.mean.flatten(1).std(1, correction=0).clamp(
                min=1e-12
            )
            out = Gaussian(out.mean * pad(1 + self.rescale * (ratio - 1), out.mean), out.var)
        return out


class CFG(Guided):
    """Classifier-free guidance: :class:`Guided` by the same model without its conditions.

    Args:
        model: a denoiser trained with and without conditions.
        scale: 1 is the conditional model, 0 the unconditional one, larger follows the condition more closely.
        rescale: as in :class:`Guided`.

    Raises:
        ValueError: the model takes no conditions.

    Cost:
        Two calls; one where the scale is 0 or 1.
    """

    def __init__(self, model: Denoiser, scale: float, *, rescale: float = 0.0) -> None:
        if not model.cond_keys:
            raise ValueError("classifier-free guidance needs a denoiser with conditions, and this one takes none")
        super().__init__(model, Unconditional(model), scale, rescale=rescale)


class Within(_Wrapper):
    """One denoiser inside an interval of noise levels and another one outside.

    ``Within(CFG(model, 3.0), model, low=0.3, high=5.0)`` guides in the middle only.

    Args:
        model: used where ``low < sigma/alpha <= high``.
        outside: used elsewhere.
        low: lower end of the interval.
        high: upper end.

    Cost:
        One call of either; of both where items of one batch fall on different sides.

    Source: Kynkaanniemi et al. 2024 (arXiv:2404.07724).
    """

    def __init__(self, model: Denoiser, outside: Denoiser, *, low: float = 0.0, high: float = float("inf")) -> None:
        super().__init__(model)
        if outside.process != model.process:
            raise ValueError(f"both denoisers need one process, got {model.process} and {outside.process}")
        if not 0 <= low < high:
            raise ValueError(f"the interval needs 0 <= low < high, got low={low}, high={high}")
        self.outside, self.low, self.high = outside, low, high

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """The answer of the denoiser in charge."""
        level = torch.exp(-self.process.log_snr(t) / 2)
        inside = (level > self.low) & (level <= self.high)
        if bool(inside.all()):
            return self.model(x_t, t, **cond)
        if not bool(inside.any()):
            return self.outside(x_t, t, **cond)
        a, b = self.model(x_t, t, **cond), self.outside(x_t, t, **cond)
        return Gaussian(torch.where(pad(inside.to(x_t.device), x_t), a.mean, b.mean))


class Thresholded(_Wrapper):
    """A denoiser whose answers are kept in the range of the data.

    Static: clamp to [-limit, limit]. Dynamic: clamp each item to [-s, s] and scale it by limit/s, with s the given quantile of
    its absolute values, at least ``limit``.

    Args:
        model: the denoiser; for data in a known range, such as pixels, and not for latents.
        limit: the range in model units.
        quantile: of absolute values, for the dynamic form; static without it.

    Source: Saharia et al. 2022 (arXiv:2205.11487), section 2.3.
    """

    def __init__(self, model: Denoiser, limit: float = 1.0, *, quantile: float | None = None) -> None:
        super().__init__(model)
        if limit <= 0:
            raise ValueError(f"limit must be positive, got {limit}")
        if quantile is not None and not 0 < quantile <= 1:
            raise ValueError(f"quantile must lie in (0, 1], got {quantile}")
        self.limit, self.quantile = limit, quantile

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """The answer, clamped."""
        out = self.model(x_t, t, **cond)
        if self.quantile is None:
            return Gaussian(out.mean.clamp(-self.limit, self.limit), out.var)
        s = torch.quantile(out.mean.flatten(1).abs().float(), self.quantile, dim=1).clamp(min=self.limit).to(out.mean)
        s = pad(s, out.mean)
        return Gaussian(out.mean.clamp(-s, s) * (self.limit / s), out.var)
