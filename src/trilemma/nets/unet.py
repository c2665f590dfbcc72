"""A U-Net for images and sequences: one code for both by ``dims``."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from .layers import Conditioning, GroupNorm, SelfAttention, check_input, conv, forward_mode, per_level, zero_
from .precision import memory_format


class UNet(nn.Module):
    """U-Net with residual blocks, attention at chosen levels, time and class conditioning.

    Level k works at 1/2**k of the resolution with ``widths[k]`` channels. Every residual branch and the output start
    at zero, so a fresh network returns 0. Most of the work is meant for the middle: at full resolution a convolution
    of few channels costs less than the passes over memory around it.

    Differs: one skip connection a level, where Ho et al. 2020 and Dhariwal and Nichol 2021 have one a block.

    Args:
        dims: 1 for sequences (B, C, L), 2 for images (B, C, H, W).
        channels: C of the input.
        out_channels: channels of the output; C if None.
        classes: number of classes, 0 for none.
        widths: channels of each level, finest first; multiples of 32 are fast.
        blocks: residual blocks of each level on the way down and again on the way up; one number or one a level.
        attention: the levels (0 is the finest) with self-attention after each block; None for the coarsest alone.
        head_width: channels of an attention head; divides the width of every level with attention.
        dropout: probability of dropping a channel value while training, in [0, 1).
        checkpoint: recompute each block in the backward pass: memory of one block, a third more time.

    >>> import torch
    >>> net = UNet(dims=2, channels=3, classes=10, widths=(16, 32), blocks=1, attention=(1,))
    >>> net(torch.randn(2, 3, 8, 8), torch.zeros(2), torch.tensor([3, -1])).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        dims: int = 2,
        channels: int = 3,
        *,
        out_channels: int | None = None,
        classes: int = 0,
        widths: Sequence[int] = (32, 128, 128),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] | None = None,
        head_width: int = 32,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if dims not in (1, 2):
            raise ValueError(f"dims is {dims}; 1 (sequences) and 2 (images) are there")
        levels = len(widths)
        counts = per_level(blocks, levels, "blocks")
        attention = [levels - 1] if attention is None else list(attention)
        if stray := [level for level in attention if not 0 <= level < levels]:
            raise ValueError(f"attention names level {stray[0]}; the {levels} levels are 0 to {levels - 1}")
        for level in attention:
            if widths[level] % head_width:
                raise ValueError(f"widths[{level}] is {widths[level]}, not a multiple of head_width {head_width}")
        self.config: dict[str, Any] = {
            "dims": dims,
            "channels": channels,
            "out_channels": out_channels,
            "classes": classes,
            "widths": list(widths),
            "blocks": counts,
            "attention": attention,
            "head_width": head_width,
            "dropout": dropout,
            "checkpoint": checkpoint,
        }
        self.dims, self.channels, self.factor, self.checkpoint = dims, channels, 2 ** (levels - 1), checkpoint
        embed = 4 * max(64, widths[0])

        def block(c_in: int, level: int) -> nn.Module:
            heads = widths[level] // head_width if level in attention else 0
            return _Block(dims, c_in, widths[level], embed, heads, dropout)

        self.condition = Conditioning(embed, classes)
        self.inp = conv(dims, channels, widths[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.down.append(conv(dims, widths[level - 1], width, 2, stride=2))
            self.down.extend(block(width, level) for _ in range(counts[level]))
        for level in reversed(range(levels)):
            self.up.extend(
                block(widths[level] * (2 if i == 0 and level < levels - 1 else 1), level) for i in range(counts[level])
            )
            if level:
                self.up.append(_Up(dims, widths[level], widths[level - 1]))
        self.norm = GroupNorm(widths[0])
        self.out = zero_(conv(dims, widths[0], out_channels or channels))

    def forward(self, x: Tensor, c_time: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: input, (B, C, L) or (B, C, H, W); sizes are multiples of 2**(levels - 1).
            c_time: time input, () or (B,), about log_snr / 8.
            label: class of each item, (B,) integers, -1 for none; None for none at all.

        Returns:
            The shape of ``x`` with ``out_channels`` channels, in the dtype of the weights even under autocast.

        Raises:
            ValueError: an argument has a wrong shape, or a label is not known.
        """
        check_input(x, self.dims, self.channels, self.factor)
        c = self.condition(x, c_time, label)
        # torch's forward-mode derivative of group_norm takes the plain layout only
        layout = torch.contiguous_format if forward_mode() else memory_format(x.device)
        h = x.to(self.inp.weight.dtype)
        h = h if self.dims == 2 else h.unsqueeze(2)
        h = self.inp(h.contiguous(memory_format=layout)).contiguous(memory_format=layout)
        skips = []
        for module in self.down:
            if isinstance(module, nn.Conv2d):
                skips.append(h)
                h = module(h)
            else:
                h = self._run(module, h, c)
        for module in self.up:
            h = module(h, skips.pop()) if isinstance(module, _Up) else self._run(module, h, c)
        h = self.out(F.silu(self.norm(h))).to(self.inp.weight.dtype)
        return (h if self.dims == 2 else h.squeeze(2)).contiguous()

    def _run(self, block: nn.Module, h: Tensor, c: Tensor) -> Tensor:
        """Run a residual block, recomputing it in the backward pass where asked."""
        if self.checkpoint and self.training:
            return recompute(block, h, c, use_reentrant=False)
        return block(h, c)


class _Block(nn.Module):
    """Residual block, then attention where heads > 0.

        x + W2 SiLU((1 + s(c)) norm(W1 SiLU(norm(x))) + b(c))

    Source: Dhariwal and Nichol 2021, arXiv 2105.05233, section 3.1 (adaptive group normalisation).
    """

    def __init__(self, dims: int, c_in: int, c_out: int, embed: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(c_in)
        self.conv1 = conv(dims, c_in, c_out)
        self.film = zero_(nn.Linear(embed, 2 * c_out))
        self.norm2 = GroupNorm(c_out, affine=False)  # the condition scales and shifts in its place
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_(conv(dims, c_out, c_out))
        self.shortcut = conv(dims, c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.attention = _SpatialAttention(c_out, heads) if heads else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        h = self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))
        return h if self.attention is None else self.attention(h)


class _SpatialAttention(nn.Module):
    """Residual self-attention among the positions of a map (B, C, H, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = GroupNorm(width)
        self.attend = SelfAttention(width, heads)
        zero_(self.attend.proj)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # a view when channels lie side by side
        out = self.attend(tokens).view(x.shape[0], x.shape[2], x.shape[3], x.shape[1])
        return x + out.permute(0, 3, 1, 2)


class _Up(nn.Module):
    """Double the resolution by a learned 2-fold expansion that starts as nearest neighbour, then append the skip."""

    def __init__(self, dims: int, c_in: int, c_out: int) -> None:
        super().__init__()
        axes = (2, 2) if dims == 2 else (1, 2)
        self.expand = nn.ConvTranspose2d(c_in, c_out, axes, axes)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([self.expand(x), skip], dim=1)
