r"""Residual networks without normalisation, for generators and discriminators of images.

A block of the form

    h <- h + W_3 a(W_2 a(W_1 h)),                 W_1, W_3: 1x1, W_2: 3x3 in groups,                          (1)

whose first two weights have standard deviation gain L^(-1/4) / sqrt(fan-in), L the number of blocks, and whose last weight
starts at zero, keeps the variance of signals and gradients without normalising them. Resolution changes by bilinear resampling,
whose low-pass filter keeps details from folding down; nothing else mixes scales.

Sources: Huang et al. 2024, arXiv 2501.05441, section 4 (the blocks); Zhang et al. 2019, arXiv 1901.09321 (their weights at the
start); Zhang 2019, arXiv 1904.11486 (the filter); Miyato and Koyama 2018, arXiv 1802.05637 (the inner product with the class).
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, cat, float32, nn, promote_types, zeros
from torch.nn import functional

__all__ = ["Discriminator", "Generator", "coarsest"]

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

_SLOPE = 0.2
_GAIN = math.sqrt(2 / (1 + _SLOPE**2))


def coarsest(shape: Sequence[int], widths: Sequence[int]) -> tuple[int, int]:
    """Height and width of the coarsest level of images ``(C, H, W)``, each level half as large as the one before.

    Raises:
        ValueError: the image cannot be halved so often.

    >>> coarsest((1, 28, 28), (32, 64, 64))
    (7, 7)
    """
    factor = 2 ** (len(widths) - 1)
    if len(shape) != 3 or any(side % factor for side in shape[1:]):
        raise ValueError(
            f"widths={list(widths)} has {len(widths)} levels, so images must be (C, H, W) with sides that are multiples of "
            f"{factor}, not {tuple(shape)}; give fewer widths"
        )
    return shape[1] // factor, shape[2] // factor


class Generator(nn.Module):
    """From a latent vector to an image, coarse to fine.

    Args:
        shape: of an image, ``(C, H, W)``.
        latents: length of z.
        conditions: number of classes of the condition; 0 for none.
        widths: channels of each level, finest first.
        blocks: residual blocks of each level.
        expansion: channels inside a block, in channels outside.
        groups: groups of the 3x3 convolution.

    Differs: the coarsest map is a full linear function of z, as in DCGAN, where Huang et al. scale one fixed map a channel.

    >>> import torch
    >>> net = Generator((1, 8, 8), latents=16, widths=(8, 16))
    >>> net(torch.zeros(2, 16)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latents: int,
        conditions: int = 0,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        expansion: int = 2,
        groups: int = 1,
    ) -> None:
        super().__init__()
        side = coarsest(shape, widths)
        total = blocks * len(widths)
        self.latents, self.start = latents, (widths[-1], *side)
        self.embed = nn.Embedding(conditions, latents) if conditions else None
        inputs = latents * (2 if conditions else 1)
        self.inp = _scaled(nn.Linear(inputs, math.prod(self.start), bias=False))
        self.levels = nn.ModuleList()
        for level in reversed(range(len(widths))):
            self.levels.append(nn.Sequential(*(_Block(widths[level], expansion, groups, total) for _ in range(blocks))))
            if level:
                self.levels.append(_Up(widths[level], widths[level - 1]))
        self.bias = nn.Parameter(zeros(widths[0], 1, 1))
        self.out = _scaled(nn.Conv2d(widths[0], shape[0], 3, padding=1), gain=_GAIN)

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images ``(B, C, H, W)`` of latents ``(B, latents)`` and conditions ``(B,)``."""
        if self.embed is not None and condition is not None:
            z = cat([z, self.embed(condition)], 1)
        h = self.inp(z).unflatten(1, self.start)
        for module in self.levels:
            h = module(h)
        return self.out(functional.leaky_relu(h + self.bias, _SLOPE))


class Discriminator(nn.Module):
    """From an image to one number, fine to coarse.

    A condition k enters twice: as a bias b_k of the first map, and as the inner product of the last features with e_k.

    Args:
        shape: of an image, ``(C, H, W)``.
        conditions: number of classes of the condition; 0 for none.
        features: length of the last features.
        widths: channels of each level, finest first.
        blocks: residual blocks of each level.
        expansion: channels inside a block, in channels outside.
        groups: groups of the 3x3 convolution.

    >>> import torch
    >>> Discriminator((1, 8, 8), widths=(8, 16))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        conditions: int = 0,
        features: int = 64,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        expansion: int = 2,
        groups: int = 1,
    ) -> None:
        super().__init__()
        side = coarsest(shape, widths)
        total = blocks * len(widths)
        self.inp = _scaled(nn.Conv2d(shape[0], widths[0], 3, padding=1))
        self.shift = _zero(nn.Embedding(conditions, widths[0])) if conditions else None
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.levels.append(_Down(widths[level - 1], width))
            self.levels.append(nn.Sequential(*(_Block(width, expansion, groups, total) for _ in range(blocks))))
        self.bias = nn.Parameter(zeros(widths[-1], 1, 1))
        self.out = _scaled(nn.Linear(widths[-1] * math.prod(side), features if conditions else 1), gain=_GAIN)
        self.embed = nn.Embedding(conditions, features) if conditions else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """One number ``(B,)`` for each image ``(B, C, H, W)`` and its condition ``(B,)``."""
        h = self.inp(x)
        if self.shift is not None and condition is not None:
            h = h + self.shift(condition)[:, :, None, None]
        for module in self.levels:
            h = module(h)
        h = self.out(functional.leaky_relu(h + self.bias, _SLOPE).flatten(1))
        if self.embed is None or condition is None:
            return h.squeeze(1)
        return (h * self.embed(condition)).sum(1) / math.sqrt(h.shape[1])


class _Block(nn.Module):
    """(1)."""

    def __init__(self, width: int, expansion: int, groups: int, total: int) -> None:
        super().__init__()
        inner, gain = expansion * width, _GAIN * total**-0.25
        self.expand = _scaled(nn.Conv2d(width, inner, 1), gain=gain)
        self.mix = _scaled(nn.Conv2d(inner, inner, 3, padding=1, groups=groups), gain=gain)
        self.project = _scaled(nn.Conv2d(inner, width, 1, bias=False), gain=0.0)

    def forward(self, h: Tensor) -> Tensor:
        inner = functional.leaky_relu(self.expand(h), _SLOPE)
        return h + self.project(functional.leaky_relu(self.mix(inner), _SLOPE))


class _Up(nn.Module):
    """Twice the resolution, with other channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = _scaled(nn.Conv2d(inputs, outputs, 1, bias=False)) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return functional.interpolate(self.project(h), scale_factor=2, mode="bilinear")


class _Down(nn.Module):
    """Half the resolution, with other channels; the transpose of the filter of ``_Up``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = _scaled(nn.Conv2d(inputs, outputs, 1, bias=False)) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        h = self.project(h)
        h = h.to(promote_types(h.dtype, float32))  # the filter has no bf16
        return functional.interpolate(h, scale_factor=0.5, mode="bilinear", antialias=True)


def _scaled(layer: Layer, gain: float = 1.0) -> Layer:
    """Weights of standard deviation gain / sqrt(fan-in), biases at zero."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _zero(layer: nn.Embedding) -> nn.Embedding:
    nn.init.zeros_(layer.weight)
    return layer
