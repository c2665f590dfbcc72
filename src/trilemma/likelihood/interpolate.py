"""Items between items: along the great circle between their latents.

    z(w) = ((1-w)|z0| + w|z1|) (sin((1-w) a) z0/|z0| + sin(w a) z1/|z1|) / sin(a),   a the angle of z0 and z1.  (1)

Latents lie near a sphere of radius sqrt(D); the straight line between two of them leaves it by a factor of up to sqrt(2), and
what is decoded from there is washed out.

Source: Shoemake 1985, "Animating rotation with quaternion curves"; Song et al. 2021 (arXiv:2010.02502), section 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from .encode import decode, encode

__all__ = ["interpolate", "slerp"]


def slerp(z0: Tensor, z1: Tensor, weights: Tensor | Sequence[float]) -> Tensor:
    """Spherical interpolation: directions along the great circle, norms along a line; equation (1).

    Args:
        z0: shape ``(B, ...)``; each item is one vector.
        z1: the same shape.
        weights: shape ``(W,)``; 0 gives z0 and 1 gives z1, exactly.

    Returns:
        Shape ``(W, B, ...)``.

    Raises:
        ValueError: the shapes differ, or the vectors of an item are opposite or zero, and no great circle is the shortest.

    >>> slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), [0.0, 0.5, 1.0]).round(decimals=3)
    tensor([[[2.0000, 0.0000]],
    <BLANKLINE>
            [[1.4140, 1.4140]],
    <BLANKLINE>
            [[0.0000, 2.0000]]])
    """
    if z0.shape != z1.shape or z0.ndim < 2:
        raise ValueError(f"slerp needs two batches (B, ...) of one shape, got {tuple(z0.shape)} and {tuple(z1.shape)}")
    w = torch.as_tensor(weights, dtype=torch.float64, device=z0.device).reshape(-1, 1, 1)
    a, b = z0.double().flatten(1), z1.double().flatten(1)
    na, nb = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    ua, ub = a / na, b / nb
    angle = 2 * torch.atan2((ua - ub).norm(dim=1, keepdim=True), (ua + ub).norm(dim=1, keepdim=True))  # precise at 0
    if not bool((angle < math.pi - 1e-6).all()):  # NaN for a zero vector
        item = int((~(angle < math.pi - 1e-6)).long().argmax())
        raise ValueError(
            f"the vectors of item {item} are opposite or zero: no great circle between them is the shortest"
        )
    sin = angle.sin()
    near = sin < 1e-12  # parallel: the sines cancel
    first = torch.where(near, 1 - w, ((1 - w) * angle).sin() / torch.where(near, 1.0, sin))
    second = torch.where(near, w, (w * angle).sin() / torch.where(near, 1.0, sin))
    out = ((1 - w) * na + w * nb) * (first * ua + second * ub)
    out = torch.where(w == 0, a, torch.where(w == 1, b, out))
    return out.reshape(-1, *z0.shape).to(z0.dtype)


def interpolate(
    denoiser: Denoiser,
    x0: Tensor,
    x1: Tensor,
    weights: Tensor | Sequence[float],
    *,
    steps: int = 50,
    cond: dict[str, Tensor] | None = None,
) -> Tensor:
    """Items between items: encode two batches, :func:`slerp` their latents, decode.

    Args:
        denoiser: any denoiser.
        x0: clean items, shape ``(B, ...)``.
        x1: the same shape.
        weights: shape ``(W,)``.
        steps: of each way.
        cond: conditions, one per pair.

    Returns:
        Shape ``(W, B, ...)``.

    Cost:
        ``3 steps`` calls, the last third with W times the items.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import Flow
    >>> model = GaussianDenoiser(Flow(), torch.zeros(2), Covariances.diagonal(torch.full((1, 2), 0.25)))
    >>> interpolate(model, torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), [0.5]).round(decimals=2)
    tensor([[[0.7100, 0.7100]]])
    """
    cond = {key: torch.as_tensor(value) for key, value in (cond or {}).items()}
    ends = [encode(denoiser, x, steps=steps, cond=cond) for x in (x0, x1)]
    z = slerp(ends[0].z, ends[1].z, weights)
    given = {key: value.repeat(len(z), *(1,) * (value.ndim - 1)) for key, value in cond.items()}
    return decode(denoiser, z.flatten(0, 1), steps=steps, cond=given).reshape(z.shape)
