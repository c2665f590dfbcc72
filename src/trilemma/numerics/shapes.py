"""Shapes: broadcast one number per item over the rest of a tensor, and reduce the rest to one number per item.

The first axis of a tensor counts items. Nothing in this library reduces over it: an item alone gives what it gives in a batch.
"""

import torch
from torch import Tensor

__all__ = ["dot", "pad", "rms"]


def pad(v: Tensor, x: Tensor) -> Tensor:
    """Append axes to ``v`` so that it broadcasts against ``x`` from the left.

    Args:
        v: one number, shape ``()``, or one per item, shape ``(B,)`` with ``B`` equal to ``x.shape[0]`` or 1.
        x: shape ``(B, ...)``.

    Returns:
        ``v`` as ``()`` or ``(B, 1, ..., 1)``; a view, never a copy.

    Raises:
        ValueError: ``v`` has another shape.

    >>> pad(torch.zeros(4), torch.zeros(4, 3, 8, 8)).shape
    torch.Size([4, 1, 1, 1])
    """
    if v.ndim == 0:
        return v
    if v.ndim != 1 or x.ndim < 1 or v.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"expected one number or one per item of a batch of shape {tuple(x.shape)}, got shape {tuple(v.shape)}"
        )
    return v.reshape(-1, *(1,) * (x.ndim - 1))


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of each item of ``x`` with the same item of ``y``: shapes ``(B, ...)`` to ``(B,)``.

    >>> dot(torch.ones(2, 3), torch.full((2, 3), 2.0))
    tensor([6., 6.])
    """
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1)) if x.ndim > 1 else x * y


def rms(x: Tensor) -> Tensor:
    """Root mean square of each item: shape ``(B, ...)`` to ``(B,)``.

    >>> rms(torch.tensor([[3.0, -3.0], [0.0, 0.0]]))
    tensor([3., 0.])
    """
    return x.flatten(1).square().mean(1).sqrt() if x.ndim > 1 else x.abs()
