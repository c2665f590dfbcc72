r"""Residual encoder and decoder of images with normalisation, for autoencoders.

Level k works at 1/2**k of the resolution. Its blocks are, with a vector c that may condition them,

    x + W2 SiLU((1 + s(c)) norm(W1 SiLU(norm(x))) + b(c)),                                                    (1)

and W2, s, b start at zero, so that every block starts as nothing.

Source: He et al. 2016 (arXiv:1603.05027), the order within a branch; Dhariwal and Nichol 2021 (arXiv:2105.05233), section 3.1,
for s and b.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets.layers import GroupNorm, check_input, conv, per_level, zero_
from ..nets.precision import memory_format

__all__ = ["Decoder", "Encoder", "LabelVector", "ResidualBlock"]


class LabelVector(nn.Module):
    """The vector that conditions every block, by the class of an item.

    Args:
        classes: number of labels; one more stands for "no label" (-1).
        width: length of the vector.

    >>> LabelVector(10, 8)(torch.tensor([3, -1])).shape
    torch.Size([2, 8])
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(classes + 1, width)  # row 0 is "no label"

    def forward(self, label: Tensor) -> Tensor:
        """Classes ``(B,)`` -> ``(B, width)``."""
        return F.silu(self.table(label + 1))


class ResidualBlock(nn.Module):
    """The block (1).

    Args:
        width: channels, in and out.
        embed: length of the vector that conditions it; 0 for none.

    >>> x = torch.randn(1, 16, 4, 4)
    >>> torch.equal(ResidualBlock(16)(x), x)
    True
    """

    def __init__(self, width: int, embed: int = 0) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(width), conv(2, width, width)
        self.norm2, self.conv2 = GroupNorm(width), zero_(conv(2, width, width))
        self.film = zero_(nn.Linear(embed, 2 * width)) if embed else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """``(B, width, H, W)`` and ``(B, embed)`` -> ``(B, width, H, W)``."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None and c is not None:
            scale, shift = self.film(c)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        return x + self.conv2(F.silu(h))


class Encoder(nn.Module):
    """From an image to a map at every resolution.

    Args:
        shape: of an item, ``(C, H, W)``; sizes are multiples of 2**(levels - 1).
        widths: channels of each level, finest first.
        blocks: blocks of each level, one number or one each.
        embed: length of the vector that conditions the blocks; 0 for none.

    Attributes:
        coarse: shape of the coarsest map.

    Raises:
        ValueError: sizes, widths and blocks that do not fit each other.

    >>> [tuple(h.shape) for h in Encoder((1, 8, 8), (16, 32))(torch.zeros(2, 1, 8, 8))]
    [(2, 32, 4, 4), (2, 16, 8, 8)]
    """

    def __init__(
        self, shape: Sequence[int], widths: Sequence[int], blocks: int | Sequence[int] = 1, *, embed: int = 0
    ) -> None:
        super().__init__()
        counts, factor = per_level(blocks, len(widths), "blocks"), 2 ** (len(widths) - 1)
        check_input(torch.empty(1, *shape, device="meta"), 2, shape[0], factor)
        self.coarse = (widths[-1], shape[1] // factor, shape[2] // factor)
        self.inp = conv(2, shape[0], widths[0])
        self.shrink = nn.ModuleList(conv(2, *pair, 2, stride=2) for pair in pairwise(widths))
        self.blocks = nn.ModuleList(_stack(*each, embed) for each in zip(widths, counts))

    def forward(self, x: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """Maps ``(B, widths[k], H / 2**k, W / 2**k)``, coarsest first."""
        layout = memory_format(x.device)
        h = self.inp(x.contiguous(memory_format=layout)).contiguous(memory_format=layout)
        seen: list[Tensor] = []
        for level, blocks in enumerate(self.blocks):
            h = self.shrink[level - 1](h) if level else h
            seen.append(_through(blocks, h, c))
            h = seen[-1]
        return seen[::-1]


class Decoder(nn.Module):
    """From the coarsest map to an output for every pixel, stage by stage.

    Args:
        widths: channels of each level, finest first.
        blocks: blocks of each level, one number or one each.
        out: channels of the output.
        embed: length of the vector that conditions the blocks; 0 for none.

    >>> Decoder((16, 32), 1, 2)(torch.zeros(2, 32, 4, 4)).shape
    torch.Size([2, 2, 8, 8])
    """

    def __init__(self, widths: Sequence[int], blocks: int | Sequence[int], out: int, *, embed: int = 0) -> None:
        super().__init__()
        counts = per_level(blocks, len(widths), "blocks")
        self.grow = nn.ModuleList(nn.ConvTranspose2d(*pair, 2, 2) for pair in pairwise(reversed(widths)))
        self.blocks = nn.ModuleList(_stack(*each, embed) for each in reversed(list(zip(widths, counts))))
        self.out = nn.Sequential(GroupNorm(widths[0]), nn.SiLU(), conv(2, widths[0], out))

    def stage(self, i: int, h: Tensor, c: Tensor | None = None) -> Tensor:
        """Stage i (0 is the coarsest): twice the resolution, except at first, and the level's blocks."""
        h = self.grow[i - 1](h) if i else h.contiguous(memory_format=memory_format(h.device))
        return _through(self.blocks[i], h, c)

    def forward(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        """All stages: ``(B, widths[-1], h, w)`` -> ``(B, out, H, W)`` in the type of the weights."""
        for i in range(len(self.blocks)):
            h = self.stage(i, h, c)
        return self.finish(h)

    def finish(self, h: Tensor) -> Tensor:
        """The output from the finest map."""
        last = self.out[-1]
        assert isinstance(last, nn.Conv2d)
        return self.out(h).to(last.weight.dtype)


def _stack(width: int, count: int, embed: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(width, embed) for _ in range(count))


def _through(blocks: nn.Module, h: Tensor, c: Tensor | None) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)
    for block in blocks:
        h = block(h, c)
    return h
