"""Bits per dimension of the same images under models of different families, each by the best it offers.

All are upper bounds. A denoiser: its probability flow on dequantised images. A VAE: the importance-weighted bound. A
normalising flow: its likelihood, the dequantisation averaged in weights. A VQ-VAE: its bound. A GAN has no likelihood.
"""

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..evaluate.estimate import of_mean

if TYPE_CHECKING:
    from ..denoise import Preconditioned
    from ..train.game import Game

__all__ = ["of_denoiser", "of_game"]

_DRAWS = 32  # weights that are averaged
_STEPS = 48  # calls of a denoiser
_EXACT = 16  # coordinates up to which the trace is exact; beyond, orthogonal probes err less than images differ


def of_denoiser(model: "Preconditioned", x: Tensor, label: Tensor | None, *, seed: int) -> dict[str, Any]:
    """Bits per dimension of images under a denoiser.

    Args:
        model: on any device.
        x: ``(N, C, H, W)`` in model units, at the levels of integers.
        label: classes ``(N,)``; ``None`` for a model without.
        seed: of the dequantisation.

    Returns:
        ``value``, ``low``, ``high`` and ``text``: an upper bound in expectation, its interval over the images, and both in words.

    Raises:
        ValueError: the images are at no levels of integers.
    """
    from ..likelihood import bits_per_dim
    from ..likelihood.dequantise import find_values, to_values

    values = find_values(x)
    found = bits_per_dim(
        model,
        to_values(x, values),
        values=values,
        seeds=seed,
        steps=_STEPS,
        trace="exact" if x[0].numel() <= _EXACT else "orthogonal",
        cond={} if label is None else {"label": label},
        batch=64,
    )
    return _figure(found.per_image)


def of_game(game: "Game", x: Tensor, label: Tensor | None, *, seed: int) -> dict[str, Any] | None:
    """Bits per dimension of images under a model of another family; ``None`` if it has none. Arguments as of `of_denoiser`."""
    from ..baselines.flow import NormalizingFlow
    from ..baselines.vae import VAE
    from ..baselines.vq import VQVAE

    device = next(game.parameters()).device
    x = x.to(device)
    label = None if label is None or not game.classes else label.to(device)
    if isinstance(game, NormalizingFlow):
        levels, nats = game.levels, game.log_prob(x, label, draws=_DRAWS, seeds=seed)
    elif isinstance(game, VAE):
        levels, nats = game.pixels.levels, game.importance_weighted(x, _DRAWS, label, seeds=seed).value
    elif isinstance(game, VQVAE):
        levels, nats = game.pixels.levels, game.elbo(x, label).elbo
    else:
        return None
    if not levels:  # a density of points is no probability of integers
        return None
    return _figure(-nats.double().cpu() / (x[0].numel() * math.log(2)))


def _figure(bits: Tensor) -> dict[str, Any]:
    estimate = of_mean(bits.cpu())
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "text": str(estimate)}
