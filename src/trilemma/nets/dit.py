"""A diffusion transformer for images and sequences, with adaptive layer norms that start as nothing (adaLN-zero)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from .layers import Conditioning, SelfAttention, check_input, zero_


def sincos_positions(grid: Sequence[int], width: int) -> Tensor:
    """Give fixed sine-cosine features of every position of a grid.

    The features are shared equally by the axes; along one axis, position p has sin(p w_j), cos(p w_j) with w_j
    geometric from 1 to 1/10000.

    Args:
        grid: positions along each axis, (n_1, ..., n_k).
        width: number of features, a multiple of twice the number of axes.

    Returns:
        (n_1 * ... * n_k, width), positions in row-major order.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5; by axis as in Peebles and Xie 2023, arXiv 2212.09748.

    >>> sincos_positions((2, 2), 8).shape
    torch.Size([4, 8])
    """
    if width % (2 * len(grid)):
        raise ValueError(f"width {width} is not a multiple of {2 * len(grid)}; sine-cosine positions need that")
    count = width // (2 * len(grid))
    w = 10000.0 ** (-torch.arange(count) / count)
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * w for axis in axes]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


class DiT(nn.Module):
    """Diffusion transformer on patches, for images and sequences of any size that the patch divides.

    Args:
        dims: 1 for sequences (B, C, L), 2 for images (B, C, H, W).
        channels: C of the input.
        out_channels: channels of the output; C if None.
        classes: number of classes, 0 for none.
        patch: side of a patch.
        width: size of a token, a multiple of ``heads`` and of ``4`` (``2`` for sequences).
        depth: number of blocks.
        heads: attention heads.
        dropout: probability of dropping a hidden unit of the MLPs while training, in [0, 1).
        checkpoint: recompute each block in the backward pass: memory of one block, a third more time.

    Source: Peebles and Xie 2023, arXiv 2212.09748.

    >>> net = DiT(dims=1, channels=1, patch=4, width=32, depth=2, heads=2)
    >>> net(torch.randn(2, 1, 64), torch.zeros(2)).shape
    torch.Size([2, 1, 64])
    """

    def __init__(
        self,
        dims: int = 2,
        channels: int = 3,
        *,
        out_channels: int | None = None,
        classes: int = 0,
        patch: int = 4,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if dims not in (1, 2):
            raise ValueError(f"dims is {dims}; 1 (sequences) and 2 (images) are there")
        self.config: dict[str, Any] = {
            "dims": dims,
            "channels": channels,
            "out_channels": out_channels,
            "classes": classes,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
            "checkpoint": checkpoint,
        }
        self.dims, self.channels, self.patch, self.checkpoint = dims, channels, patch, checkpoint
        self.out_channels = out_channels or channels
        self.condition = Conditioning(width, classes)
        self.inp = nn.Linear(channels * patch**dims, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.film = zero_(nn.Linear(width, 2 * width))
        self.out = zero_(nn.Linear(width, self.out_channels * patch**dims))
        sincos_positions((1,) * dims, width)  # refuses a width that positions cannot fill

    def forward(self, x: Tensor, c_time: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: input, (B, C, L) or (B, C, H, W); sizes are multiples of the patch.
            c_time: time input, () or (B,), about log_snr / 8.
            label: class of each item, (B,) integers, -1 for none; None for none at all.

        Returns:
            The shape of ``x`` with ``out_channels`` channels, in the dtype of the weights even under autocast.

        Raises:
            ValueError: an argument has a wrong shape, or a label is not known.

        Cost: quadratic in the number of patches.
        """
        check_input(x, self.dims, self.channels, self.patch)
        dtype = self.inp.weight.dtype
        c = self.condition(x, c_time, label)
        grid = [size // self.patch for size in x.shape[2:]]
        positions = sincos_positions(grid, self.inp.out_features).to(x.device, dtype)
        tokens = self.inp(patchify(x.to(dtype), self.patch)) + positions
        for block in self.blocks:
            if self.checkpoint and self.training:
                tokens = recompute(block, tokens, c, use_reentrant=False)
            else:
                tokens = block(tokens, c)
        scale, shift = self.film(c)[:, None].chunk(2, dim=2)
        out = self.out(_modulated_norm(tokens, scale, shift)).to(dtype)
        return unpatchify(out, self.patch, grid)


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut (B, C, n_1 p, ..., n_k p) into tokens (B, n_1 ... n_k, C p^k).

    >>> patchify(torch.arange(4.0).view(1, 1, 4), 2).tolist()
    [[[0.0, 1.0], [2.0, 3.0]]]
    """
    k = x.ndim - 2
    split = [n for size in x.shape[2:] for n in (size // patch, patch)]
    h = x.reshape(*x.shape[:2], *split)  # (B, C, n_1, p, ..., n_k, p)
    counts, inner = range(2, 2 + 2 * k, 2), range(3, 3 + 2 * k, 2)
    return h.permute(0, *counts, 1, *inner).reshape(x.shape[0], math.prod(split[::2]), -1)


def unpatchify(tokens: Tensor, patch: int, grid: Sequence[int]) -> Tensor:
    """Undo :func:`patchify` for a grid of (n_1, ..., n_k) patches.

    >>> x = torch.randn(2, 3, 4, 6)
    >>> torch.equal(unpatchify(patchify(x, 2), 2, (2, 3)), x)
    True
    """
    k = len(grid)
    h = tokens.view(tokens.shape[0], *grid, -1, *[patch] * k)  # (B, n_1, ..., n_k, C, p, ..., p)
    pairs = [axis for i in range(k) for axis in (1 + i, 2 + k + i)]
    return h.permute(0, 1 + k, *pairs).reshape(tokens.shape[0], -1, *[n * patch for n in grid])


def _modulated_norm(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without weights of its own, then the scale and shift of the condition; all in the token's dtype."""
    with torch.autocast(tokens.device.type, enabled=False):
        h = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    return h * (1 + scale) + shift


class _Block(nn.Module):
    """Attention and MLP, each with adaptive norm and a gate that starts at zero."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.film = zero_(nn.Linear(width, 6 * width))
        self.attend = SelfAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, c: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.film(c)[:, None].chunk(6, dim=2)
        tokens = tokens + gate1 * self.attend(_modulated_norm(tokens, scale1, shift1))
        return tokens + gate2 * self.mlp(_modulated_norm(tokens, scale2, shift2))
