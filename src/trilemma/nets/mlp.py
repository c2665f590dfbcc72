"""A residual multilayer perceptron for vectors."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Conditioning, zero_


class MLP(nn.Module):
    """Residual MLP for vectors (B, D), conditioned on time and class.

        h <- h + W2 SiLU((1 + s(c)) * W1 LN(h) + b(c))

    Args:
        features: D, the size of a vector.
        out_features: size of the output; D if None.
        classes: number of classes, 0 for none.
        width: hidden size.
        depth: number of residual blocks.
        dropout: probability of dropping a hidden unit while training, in [0, 1).

    >>> import torch
    >>> net = MLP(2, width=32, depth=2)
    >>> net(torch.randn(5, 2), torch.zeros(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        features: int,
        out_features: int | None = None,
        *,
        classes: int = 0,
        width: int = 128,
        depth: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "features": features,
            "out_features": out_features,
            "classes": classes,
            "width": width,
            "depth": depth,
            "dropout": dropout,
        }
        self.condition = Conditioning(width, classes)
        self.inp = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = zero_(nn.Linear(width, out_features or features))

    def forward(self, x: Tensor, c_time: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: input, (B, D).
            c_time: time input, () or (B,), about log_snr / 8.
            label: class of each item, (B,) integers, -1 for none; None for none at all.

        Returns:
            (B, D) or (B, out_features), in the dtype of the weights even under autocast.

        Raises:
            ValueError: an argument has a wrong shape, or a label is not known.
        """
        if x.ndim != 2 or x.shape[1] != self.config["features"]:
            raise ValueError(f"input has shape {tuple(x.shape)}; this MLP takes (B, {self.config['features']})")
        c = self.condition(x, c_time, label)
        h = self.inp(x.to(self.inp.weight.dtype))
        for block in self.blocks:
            h = block(h, c)
        return self.out(F.silu(self.norm(h))).to(self.out.weight.dtype)


class _Block(nn.Module):
    """One residual block of the MLP."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = zero_(nn.Linear(width, 2 * width))
        self.up = nn.Linear(width, width)
        self.down = zero_(nn.Linear(width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c).chunk(2, dim=1)
        u = self.up(self.norm(h)) * (1 + scale) + shift
        return h + self.down(self.dropout(F.silu(u)))
