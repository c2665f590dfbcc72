"""Bits per dimension of the same images under models of every family, each by the best bound it offers.

All are upper bounds: a denoiser's by its probability flow on dequantised images, other families' by ``Game.bits_per_dim``. A
GAN has no likelihood.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from ..train.game import Game

if TYPE_CHECKING:
    from ..denoise import Preconditioned

__all__ = ["bits_per_dim"]

_STEPS = 48  # calls of a denoiser
_EXACT = 16  # coordinates up to which the trace is exact; beyond, orthogonal probes err less than images differ


def bits_per_dim(model: "Preconditioned | Game", x: Tensor, label: Tensor | None, *, seed: int) -> Tensor | None:
    """Bits per dimension of each image under a model.

    Args:
        model: on any device.
        x: ``(N, C, H, W)`` in model units, at the levels of integers.
        label: classes ``(N,)``; ``None`` for a model without.
        seed: of the dequantisation and of what else is drawn.

    Returns:
        ``(N,)`` float64 on the CPU, upper bounds in expectation; ``None`` for a model that has no likelihood.

    Raises:
        ValueError: the images are at no levels of integers, or at others than the model's.
    """
    if isinstance(model, Game):
        device = next(model.parameters()).device
        found = model.bits_per_dim(x.to(device), None if label is None else label.to(device), seeds=seed)
        return None if found is None else found.double().cpu()
    from ..likelihood import bits_per_dim
    from ..likelihood.dequantise import find_values, to_values

    values = find_values(x)
    return bits_per_dim(
        model,
        to_values(x, values),
        values=values,
        seeds=seed,
        steps=_STEPS,
        trace="exact" if x[0].numel() <= _EXACT else "orthogonal",
        cond={} if label is None else {"label": label},
        batch=64,
    ).per_image.cpu()
