"""The parts that the backbones share: time and class conditioning, convolutions in one or two dimensions, attention.

Every feature map is a 4-D tensor (B, C, H, W); a sequence (B, C, L) is carried as (B, C, 1, L), so that one code
serves both and the fast layouts of 2-D convolutions are there for 1-D data too.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad


def zero_(module: nn.Module) -> nn.Module:
    """Set every parameter of a module to zero, so that a residual branch starts as nothing.

    >>> zero_(torch.nn.Linear(2, 2)).weight.abs().sum().item()
    0.0
    """
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def timestep_features(c_time: Tensor, count: int) -> Tensor:
    """Turn the time input into smooth features of bounded slope.

        [cos(w_j c), sin(w_j c)],  w_j geometric from 1/4 to 4

    With ``c = log_snr / 8`` the fastest feature has a period of 4 pi = 12.6 nats of log-SNR: fine enough to tell noise
    levels apart after a small MLP, smooth enough for derivatives in time (consistency models, flow maps).

    Args:
        c_time: the time input, (B,).
        count: number of features, even.

    Returns:
        (B, count).

    Differs: the frequencies of Song et al. 2021 and Karras et al. 2022 run down to 1e-4, where features are constant.

    >>> timestep_features(torch.zeros(3), 4)[0].tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    w = torch.logspace(-2, 2, count // 2, base=2.0, device=c_time.device, dtype=c_time.dtype)
    angle = c_time[:, None] * w
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Conditioning(nn.Module):
    """One vector per item from its time and, optionally, its class.

        c = SiLU(W2 SiLU(W1 features(c_time)) + E[label])

    Args:
        width: size of the vector.
        classes: number of classes; 0 for a network that knows none. One more embedding stands for "no label" (-1).
        features: number of sinusoidal features, even.
    """

    def __init__(self, width: int, classes: int = 0, *, features: int = 64) -> None:
        super().__init__()
        if classes < 0:
            raise ValueError(f"classes is {classes}; give the number of classes, or 0 for none")
        self.classes, self.features = classes, features
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None  # row 0 is "no label"

    def forward(self, x: Tensor, c_time: Tensor, label: Tensor | None) -> Tensor:
        """Embed ``c_time`` () or (B,) and ``label`` (B,) for the batch ``x``; returns (B, width)."""
        batch = x.shape[0]
        if c_time.shape not in ((), (batch,)):
            raise ValueError(f"c_time has shape {tuple(c_time.shape)}; it must be () or ({batch},) for this batch")
        features = timestep_features(c_time.to(self.hidden.weight.dtype).expand(batch), self.features)
        c = self.out(F.silu(self.hidden(features)))
        if self.label is None:
            if label is not None:
                raise ValueError("this network was built with classes=0 and takes no label; build it with classes=K")
        else:
            c = c + self.label(self._rows(label, batch, x.device))
        return F.silu(c)

    def _rows(self, label: Tensor | None, batch: int, device: torch.device) -> Tensor:
        """Rows of the label table, (B,): 0 for no label, k + 1 for class k."""
        if label is None:
            return torch.zeros(batch, dtype=torch.long, device=device)
        if label.shape != (batch,) or label.is_floating_point():
            raise ValueError(
                f"label has shape {tuple(label.shape)} and dtype {label.dtype}; it must be integers of shape ({batch},)"
            )
        if label.device.type == "cpu" and not torch.compiler.is_compiling():  # on a GPU the check would wait for it
            low, high = int(label.min()), int(label.max())
            if low < -1 or high >= self.classes:
                wrong = low if low < -1 else high
                raise ValueError(f"label {wrong} is outside [0, {self.classes}); use -1 for an item without a label")
        return label.long() + 1


def conv(dims: int, c_in: int, c_out: int, kernel: int = 3, *, stride: int = 1) -> nn.Conv2d:
    """Build a convolution along the last ``dims`` axes of a 4-D map, padded to keep the size where the stride is 1.

    >>> tuple(conv(1, 4, 8).weight.shape), tuple(conv(2, 4, 8).weight.shape)
    ((8, 4, 1, 3), (8, 4, 3, 3))
    """
    across = kernel if dims == 2 else 1
    step = stride if dims == 2 else 1
    same = 0 if stride > 1 else kernel // 2
    return nn.Conv2d(c_in, c_out, (across, kernel), (step, stride), (same if dims == 2 else 0, same))


class GroupNorm(nn.GroupNorm):
    """Group normalisation over groups of 16 channels that stays in the precision of its input.

    Groups of at least 16 channels keep vector units busy when channels lie side by side; statistics are float32
    inside. Autocast would return float32 on CUDA and cost a cast before every convolution, so it is off here.

    Source: Wu and He 2018, arXiv 1803.08494 (16 channels a group was their best fixed size).
    """

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__(math.gcd(channels, max(1, channels // 16)), channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if weight is not None and bias is not None and x.device.type != "cpu":  # the CPU alone mixes precisions
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def forward_mode() -> bool:
    """Whether forward-mode derivatives (``torch.func.jvp``) are being taken; some fused kernels have none.

    >>> forward_mode()
    False
    """
    return forward_ad._current_level >= 0


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, softmax(q k^T / sqrt(d)) v, of (B, heads, N, d).

    On the CPU the fused kernel is slow to train in bf16 (four to five times the plain products at 64 tokens, forward and
    backward) and has neither forward-mode nor second derivatives, so derivatives of short sequences go the plain way.

    >>> q = torch.randn(1, 2, 5, 4)
    >>> torch.allclose(attend(q, q, q), F.scaled_dot_product_attention(q, q, q), atol=1e-6)
    True
    """
    differentiating = torch.is_grad_enabled() or forward_mode()
    if q.device.type == "cpu" and differentiating and q.shape[2] <= 1024:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """Multi-head self-attention of tokens (B, N, D), in and out.

    Args:
        width: D, a multiple of the number of heads.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; change one of them")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend among the N tokens of each item."""
        batch, n, width = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, n, width))


def check_input(x: Tensor, dims: int, channels: int, factor: int) -> None:
    """Refuse an input whose rank, channels or sizes do not fit a network, saying which and what would.

    Raises:
        ValueError: with the shape and the fix.

    >>> check_input(torch.zeros(1, 3, 8, 8), 2, 3, 4)
    """
    shape = tuple(x.shape)
    if x.ndim != dims + 2:
        axes = "(B, C, H, W)" if dims == 2 else "(B, C, L)"
        raise ValueError(f"input has shape {shape}; a network with dims={dims} takes {axes}")
    if x.shape[1] != channels:
        raise ValueError(f"input of shape {shape} has {x.shape[1]} channels; this network was built with {channels}")
    if any(size % factor for size in shape[2:]):
        target = tuple(-(-size // factor) * factor for size in shape[2:])
        raise ValueError(f"sizes {shape[2:]} of input {shape} must be multiples of {factor}; pad or resize to {target}")


def per_level(value: int | Sequence[int], levels: int, name: str) -> list[int]:
    """Repeat one number for every level, or check that there is one for each.

    >>> per_level(2, 3, "blocks"), per_level((1, 2), 2, "blocks")
    ([2, 2, 2], [1, 2])
    """
    values = [value] * levels if isinstance(value, int) else list(value)
    if len(values) != levels:
        raise ValueError(f"{name} has {len(values)} entries for {levels} levels; give one number or {levels} of them")
    return values
