r"""A small autoregressive transformer over the codes of an image: the prior of a VQ-VAE.

A sequence of codes k_1 .. k_N, read row by row, has the probability

    p(k | label) = prod_i p(k_i | k_1 .. k_{i-1}, label),                                                    (1)

every factor a softmax over the codebook, computed for all i at once by causal attention and one code at a time for sampling.

Source: Vaswani et al. 2017 (arXiv:1706.03762), the decoder; van den Oord et al. 2017 (arXiv:1711.00937), section 4, whose
prior is a PixelCNN. Differs: learned positions, normalisation before each branch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets.layers import zero_
from ..numerics.noise import Noise

__all__ = ["CodePrior"]


class CodePrior(nn.Module):
    """A causal transformer over sequences of codes.

    Args:
        codes: K, size of the codebook.
        length: N, codes of an item.
        classes: number of labels, 0 for none; one more stands for "no label" (-1).
        width: channels, a multiple of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: probability of dropping a channel of a branch while training.

    Raises:
        ValueError: the width is no multiple of the heads.

    >>> prior = CodePrior(8, 4, width=16, depth=1, heads=2)
    >>> prior.log_prob(torch.zeros(2, 4, dtype=torch.long)).tolist()       # it starts as the uniform law: -4 log 8
    [-8.3177..., -8.3177...]
    >>> prior.draw(Noise(0, 2)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        codes: int,
        length: int,
        *,
        classes: int = 0,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; change one of them")
        self.codes, self.length = codes, length
        self.start = nn.Embedding(classes + 1, width)  # row 0 is "no label"
        self.code = nn.Embedding(codes, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = zero_(nn.Linear(width, codes))

    def forward(self, codes: Tensor, label: Tensor | None = None) -> Tensor:
        """Logits of the next code after each of the first n codes, none included.

        Args:
            codes: int64 ``(B, n)``, n < N.
            label: classes ``(B,)``, -1 for none.

        Returns:
            ``(B, n + 1, K)``: row i sees the codes before i alone.
        """
        rows = torch.zeros(len(codes), dtype=torch.long, device=codes.device) if label is None else label + 1
        h = torch.cat([self.start(rows)[:, None], self.code(codes)], dim=1) + self.place[: codes.shape[1] + 1]
        for block in self.blocks:
            h = block(h)
        return self.out(self.norm(h))

    def log_prob(self, codes: Tensor, label: Tensor | None = None) -> Tensor:
        """(1): ``(B, N)`` codes -> ``(B,)`` nats."""
        logits = self(codes[:, :-1], label)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return -F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").sum(1)

    def draw(self, noise: Noise, label: Tensor | None = None) -> Tensor:
        """Draw the codes one after the other, the i-th from ``noise.at(i)``; int64 ``(n, N)``.

        Cost: N evaluations of the network.
        """
        device = self.place.device
        codes = torch.empty(noise.n, 0, dtype=torch.long, device=device)
        for i in range(self.length):
            cumulative = self(codes, label)[:, -1].double().softmax(1).cumsum(1)
            u = noise.at(i).uniform((noise.n, 1), dtype=torch.float64, device=device)
            code = torch.searchsorted(cumulative, u).clamp(max=self.codes - 1)
            codes = torch.cat([codes, code], dim=1)
        return codes


class _Block(nn.Module):
    """Causal self-attention and a two-layer network, both residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)
        zero_(self.proj)
        zero_(self.mlp[2])

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.dropout(self.proj(seen.transpose(1, 2).flatten(2)))
        return h + self.dropout(self.mlp(self.norm2(h)))
