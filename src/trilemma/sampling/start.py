"""What every sampler starts from: a state, its conditions and its noise, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise

__all__ = ["Start", "begin", "check"]


class Start:
    """A batch at the time at which sampling starts.

    Attributes:
        x: the state, shape ``(B, ...)``.
        noise: source of all noise, one seed an item.
        calls: calls of the denoiser so far.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, noise: Noise, cond: dict[str, Tensor]) -> None:
        self.denoiser, self.x, self.noise, self.cond, self.calls = denoiser, x, noise, cond, 0

    def mean(self, items: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """E[x | x_t] of the items with these numbers, as a function of x and the time, ``()`` or one an item; counts calls."""
        cond = {key: value[items] for key, value in self.cond.items()}

        def mean(x: Tensor, t: Tensor) -> Tensor:
            self.calls += 1
            return self.denoiser(x, t, **cond).mean

        return mean


def check(
    denoiser: Denoiser, shape: Sequence[int], x: Tensor | None, cond: dict[str, Tensor] | None
) -> tuple[torch.device, dict[str, Tensor]]:
    """The device of a denoiser that is fit to sample, and the conditions there of the items of ``shape``.

    Raises:
        ValueError: the conditions or ``x`` do not fit, or the denoiser drops units.
    """
    device = next(chain(denoiser.parameters(), denoiser.buffers()), torch.empty(0)).device
    cond = {key: torch.as_tensor(value, device=device) for key, value in (cond or {}).items()}
    denoiser.check_cond(cond)
    if any(m.training and m.p > 0 for m in denoiser.modules() if isinstance(m, nn.Dropout)):
        raise ValueError("the denoiser is in training mode and drops units at random; call .eval() on it first")
    for key, value in cond.items():
        if value.ndim == 0 or value.shape[0] != shape[0]:
            raise ValueError(
                f"the condition {key!r} needs one entry for each of {shape[0]} items, got {tuple(value.shape)}"
            )
    if x is not None and tuple(x.shape) != tuple(shape):
        raise ValueError(f"x has shape {tuple(x.shape)}, but {tuple(shape)} was asked for")
    if x is not None and not (x.is_floating_point() and bool(torch.isfinite(x).all())):
        raise ValueError(f"x must be floating point and finite, got {x.dtype} with NaN, infinite or integer entries")
    return device, cond


def begin(
    denoiser: Denoiser,
    shape: Sequence[int],
    t: float,
    *,
    seeds: int | Sequence[int] | Tensor | torch.Generator,
    x: Tensor | None,
    cond: dict[str, Tensor] | None,
) -> Start:
    """The start of a batch of ``shape`` at time ``t``; the same seeds give the same state.

    Raises:
        ValueError: the shape, the seeds, the conditions, the time or ``x`` do not fit.
    """
    device, cond = check(denoiser, shape, x, cond)
    shape, noise = tuple(shape), Noise(seeds, shape[0])
    if not 0 < t <= 1:
        raise ValueError(f"sampling starts at a time in (0, 1], got {t}")
    if x is None:
        if float(denoiser.process.log_snr(torch.tensor(t, dtype=torch.float64))) > 0:
            raise ValueError(f"at t = {t}, where this starts, x_t is more signal than noise: give x")
        x = denoiser.process.prior(shape, noise.at(-1), t=t, like=torch.empty(0, device=device))
    return Start(denoiser, x.to(device), noise, cond)
