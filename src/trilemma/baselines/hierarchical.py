r"""The networks of a VAE: an encoder upwards, a decoder downwards, and latents between them at one or several resolutions.

The decoder draws a vector z_1 and then, going down in resolution, maps z_2, z_3, ... each given all above it,

    p(z) = N(z_1; 0, 1) prod_{l > 1} N(z_l; m_l(z_<l), s_l(z_<l)),                                            (1)
    q(z | x) = prod_l N(z_l; m_l + d_l, s_l e^{r_l}),   d_l, r_l functions of (z_<l, x),                      (2)

so that the encoder only states what is new beside the prior, and d = r = 0, where it starts, costs nothing. Without maps this is
the usual VAE. The divergence of a level has a closed form, element by element, given the draws above it:

    KL(q | p) = log(s_p/s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2.                                     (3)

Sources: Kingma and Welling 2014 (arXiv:1312.6114), appendix B; Sonderby et al. 2016 (arXiv:1602.02282) for going down; Vahdat
and Kautz 2020 (arXiv:2007.03898), section 3.2, for (2). Differs: the top of NVAE is a map and here a vector; group
normalisation, no squeeze-and-excitation, no spectral regularisation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nets.layers import GroupNorm, conv, zero_
from ..numerics.noise import Noise
from .resnet import Decoder, Encoder, LabelVector

__all__ = ["Ladder", "Level", "Normal"]

_WIDEST = 5.0  # absolute value of a log-deviation, as in NVAE


@dataclass(frozen=True)
class Normal:
    """Independent normal laws.

    Args:
        mean: ``(B, ...)``.
        log_std: logarithm of the deviations, the same shape.

    >>> Normal(torch.ones(1, 2), torch.zeros(1, 2)).kl(Normal(torch.zeros(1, 2), torch.zeros(1, 2)))
    tensor([[0.5000, 0.5000]])
    """

    mean: Tensor
    log_std: Tensor

    @staticmethod
    def read(raw: Tensor) -> "Normal":
        """The law by ``(B, 2 K, ...)`` numbers of a network; log-deviations are kept within +-5 smoothly."""
        mean, log_std = raw.float().chunk(2, dim=1) if raw.dtype == torch.bfloat16 else raw.chunk(2, dim=1)
        return Normal(mean, _WIDEST * torch.tanh(log_std / _WIDEST))

    def beside(self, other: "Normal") -> "Normal":
        """This law as a correction of another one, (2)."""
        return Normal(other.mean + self.mean * other.log_std.exp(), other.log_std + self.log_std)

    def draw(self, noise: Noise) -> Tensor:
        """One draw an item, differentiable in the law."""
        return self.mean + self.log_std.exp() * noise.normal_like(self.mean)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density of each element, in nats."""
        return -0.5 * ((z - self.mean) * torch.exp(-self.log_std)).square() - self.log_std - 0.5 * math.log(2 * math.pi)

    def kl(self, other: "Normal") -> Tensor:
        """Divergence (3) of each element from another law, in nats."""
        ratio = 2 * (self.log_std - other.log_std)
        apart = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        return 0.5 * (torch.expm1(ratio) - ratio + apart)


@dataclass(frozen=True)
class Level:
    """What happened at one level: the draw, the prior's law, and the encoder's law, or ``None`` where z is from the prior."""

    z: Tensor
    prior: Normal
    posterior: Normal | None


class _Map(nn.Module):
    """One map of latents: its prior from what is above, its posterior from that and the encoder, its way into the decoder."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.prior = nn.Sequential(GroupNorm(width), nn.SiLU(), zero_(conv(2, width, 2 * channels)))
        self.posterior = nn.Sequential(
            conv(2, 2 * width, width, 1), GroupNorm(width), nn.SiLU(), zero_(conv(2, width, 2 * channels))
        )
        self.join = conv(2, channels, width, 1)

    def forward(self, h: Tensor, seen: Tensor | None, noise: Noise) -> tuple[Tensor, Level]:
        prior = Normal.read(self.prior(h))
        posterior = None
        if seen is not None:
            posterior = Normal.read(self.posterior(torch.cat([h, seen.to(h.dtype)], dim=1))).beside(prior)
        z = (posterior or prior).draw(noise)
        return h + self.join(z), Level(z, prior, posterior)


class Ladder(nn.Module):
    """Residual encoder and decoder for images, with a vector of latents and, optionally, maps of latents below it.

    Args:
        shape: of an item, ``(C, H, W)``; sizes are multiples of 2**(levels - 1).
        out: numbers that the decoder puts out for each channel of a pixel.
        latent: length of the vector z_1.
        maps: channels of the latent maps, coarsest first, one a level from the coarsest up; ``()`` for none.
        widths: channels of each level, finest first.
        blocks: residual blocks of each level on the way up and again on the way down; one number or one a level.
        classes: number of labels, 0 for none; one more stands for "no label" (-1).

    Raises:
        ValueError: arguments that do not fit each other.

    >>> net = Ladder((1, 8, 8), out=2, latent=4, maps=(2,), widths=(16, 16))
    >>> x = torch.zeros(3, 1, 8, 8)
    >>> theta, levels = net.decode(Noise(0, 3), net.encode(x))
    >>> theta.shape, [tuple(level.z.shape) for level in levels]
    (torch.Size([3, 2, 8, 8]), [(3, 4), (3, 2, 4, 4)])
    """

    def __init__(
        self,
        shape: Sequence[int],
        out: int,
        *,
        latent: int = 32,
        maps: Sequence[int] = (),
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if len(maps) > len(widths):
            raise ValueError(f"maps={list(maps)} are more than the {len(widths)} levels of widths={list(widths)}")
        if latent < 1 or any(channels < 1 for channels in maps):
            raise ValueError(f"latent={latent} and maps={list(maps)} must be at least 1")
        self.latent, self.levels = latent, 1 + len(maps)
        embed = 4 * max(widths) if classes else 0
        self.label = LabelVector(classes, embed) if classes else None
        self.encoder = Encoder(shape, widths, blocks, embed=embed)
        flat = math.prod(self.encoder.coarse)
        self.top = nn.Sequential(GroupNorm(widths[-1]), nn.SiLU(), nn.Flatten(), zero_(nn.Linear(flat, 2 * latent)))
        self.start = nn.Linear(latent, flat)
        self.decoder = Decoder(widths, blocks, shape[0] * out, embed=embed)
        self.maps = nn.ModuleList(_Map(width, channels) for width, channels in zip(reversed(widths), maps))

    def _condition(self, label: Tensor | None, n: int) -> Tensor | None:
        if self.label is None:
            return None
        none = torch.full((n,), -1, device=self.start.weight.device)
        return self.label(none if label is None else label)

    def encode(self, x: Tensor, label: Tensor | None = None) -> list[Tensor]:
        """What the encoder sees at each resolution, coarsest first: maps ``(B, widths[k], H / 2**k, W / 2**k)``."""
        return self.encoder(x, self._condition(label, len(x)))

    def decode(
        self, noise: Noise, seen: Sequence[Tensor] | None = None, label: Tensor | None = None
    ) -> tuple[Tensor, list[Level]]:
        """Draw latents and decode them.

        Args:
            noise: the levels draw from ``noise.at(0)``, ``noise.at(1)``, ..., coarsest first.
            seen: of :meth:`encode`, for latents of the posterior; ``None`` for those of the prior.
            label: classes ``(B,)``, -1 for none.

        Returns:
            The decoder's output ``(B, C * out, H, W)``, and what happened at each level.
        """
        weight, c = self.start.weight, self._condition(label, noise.n)
        zeros = torch.zeros(noise.n, self.latent, device=weight.device, dtype=weight.dtype)
        prior = Normal(zeros, zeros)
        posterior = None if seen is None else Normal.read(self.top(seen[0]))
        z = (posterior or prior).draw(noise.at(0))
        levels = [Level(z, prior, posterior)]
        h = self.start(z).unflatten(1, self.encoder.coarse)
        for i in range(len(self.decoder.blocks)):
            h = self.decoder.stage(i, h, c)
            if i < len(self.maps):
                h, level = self.maps[i](h, None if seen is None else seen[i], noise.at(i + 1))
                levels.append(level)
        return self.decoder.finish(h), levels
