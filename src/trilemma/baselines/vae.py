r"""Variational autoencoders: the bound that is trained, the bounds that are reported.

With latents z of a prior p(z), a decoder p(x | z) and an encoder q(z | x),

    log p(x) >= ELBO(x) = E_q log p(x | z) - KL(q | p),                                                       (1)
    log p(x) >= IWAE_k(x) = E log (1/k) sum_j w_j,   w_j = p(x, z_j) / q(z_j | x),   z_1 .. z_k from q.       (2)

IWAE_1 is the ELBO; the bound rises with k to log p(x). What is trained, in nats per element of an item, is

    loss = -[E_q log p(x | z) - b(n) sum_g max(free_bits, KL_g)] / D,   b(n) = beta min(1, n / warmup),        (3)

where KL_g is the divergence of one latent (one channel of a map), averaged over the micro-batch, and n counts updates: a group
that costs less than ``free_bits`` nats is not pushed further towards saying nothing.

Sources: Kingma and Welling 2014 (arXiv:1312.6114) for (1); Burda et al. 2016 (arXiv:1509.00519) for (2); Higgins et al. 2017 for
beta; Bowman et al. 2016 (arXiv:1511.06349) for b(n); Kingma et al. 2016 (arXiv:1606.04934), appendix C.8, for free bits.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from ..numerics.noise import Noise
from ..train.game import Game, Minibatch
from .hierarchical import Ladder, Level
from .pixels import NormalPixels, bits_per_dim, check_levels, pixels

__all__ = ["VAE", "Bound", "Estimate", "evaluating"]

_PIXELS = 1000  # the position of the noise of p(x | z), beyond those of the levels


class LatentNet(Protocol):
    """What a network must offer to be the encoder and decoder of a `VAE`; see `Ladder`, which is one."""

    levels: int

    def encode(self, x: Tensor, label: Tensor | None = None) -> list[Tensor]:
        """What the encoder sees of the items."""

    def decode(
        self, noise: Noise, seen: Sequence[Tensor] | None = None, label: Tensor | None = None
    ) -> tuple[Tensor, list[Level]]:
        """The decoder's output and the levels, from the posterior, or from the prior where nothing was seen."""


@dataclass(frozen=True)
class Bound:
    """The parts of (1), in nats.

    Args:
        log_px: log p(x | z) of one draw of z, ``(B,)``.
        kl: divergence of each level, ``(B, levels)``.
    """

    log_px: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """(1), ``(B,)``."""
        return self.log_px - self.kl.sum(1)


@dataclass(frozen=True)
class Estimate:
    """An estimate of log p(x) with its Monte-Carlo error.

    Args:
        value: nats, ``(B,)`` float64.
        standard_error: of the mean of the weights, carried through the logarithm, ``(B,)`` float64; infinite for k = 1.
    """

    value: Tensor
    standard_error: Tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Leave out what only training does, such as dropout, for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class VAE(Game):
    """A variational autoencoder with residual networks.

    Its samples are, by ``show``, means of p(x | z) (what papers show: each pixel at its expectation given z) or draws from it,
    which alone are samples of the model whose likelihood is reported.

    Args:
        shape: of an item, ``(C, H, W)``.
        classes: number of labels that condition encoder and decoder, 0 for none.
        pixels: the likelihood, an entry of `trilemma.baselines.pixels.pixels`; state the levels of the data: 256 for bytes.
        latent: length of the latent vector.
        maps: channels of latent maps below it, coarsest first; with any, the model is a hierarchical VAE.
        widths: channels of each resolution, finest first.
        blocks: residual blocks of each resolution, one number or one each.
        beta: weight of the divergence; 1 is the bound.
        warmup: updates over which that weight rises from zero.
        free_bits: nats that each latent, or channel of a map, may cost for nothing.
        show: ``mean`` or ``draw``.
        net: an encoder and decoder of one's own in place of `Ladder`; the five arguments of the network are ignored then.

    Raises:
        ValueError: arguments out of range, or that do not fit each other.

    >>> model = VAE((1, 8, 8), pixels="logistic:17", latent=4, widths=(16, 16))
    >>> x = torch.zeros(5, 1, 8, 8)
    >>> model.elbo(x).elbo.shape, model.sample(3).shape
    (torch.Size([5]), torch.Size([3, 1, 8, 8]))
    """

    family: ClassVar[str] = "vae"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        *,
        pixels: str = "logistic:256",
        latent: int = 32,
        maps: Sequence[int] = (),
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        beta: float = 1.0,
        warmup: int = 0,
        free_bits: float = 0.0,
        show: Literal["mean", "draw"] = "mean",
        net: nn.Module | None = None,
    ) -> None:
        for name, value in {"beta": beta, "warmup": warmup, "free_bits": free_bits}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number, at least 0")
        if show not in ("mean", "draw"):
            raise ValueError(f"show={show!r} must be 'mean' or 'draw'")
        options = {"latent": latent, "maps": list(maps), "widths": list(widths)}
        options["blocks"] = blocks if isinstance(blocks, int) else list(blocks)
        bound = {"beta": beta, "warmup": warmup, "free_bits": free_bits, "show": show}
        super().__init__(shape, classes, {"pixels": pixels, **options, **bound})
        self.beta, self.warmup, self.free_bits, self.show = beta, warmup, free_bits, show
        self.pixels = _likelihood(pixels)
        self.net = net or Ladder(
            shape, self.pixels.params, latent=latent, maps=maps, widths=widths, blocks=blocks, classes=classes
        )

    @property
    def _latents(self) -> LatentNet:
        return cast(LatentNet, self.net)

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """One, who has all weights."""
        return {"vae": list(self.parameters())}

    def kl_weight(self, step: int) -> float:
        """The weight b(n) of the divergence after ``step`` updates, (3)."""
        return self.beta * (min(1.0, step / self.warmup) if self.warmup else 1.0)

    def loss(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(3); figures: the parts of (1) in nats per item, and the mean square error of the decoder's mean."""
        x = batch.x
        theta, levels = self._latents.decode(batch.noise, self._latents.encode(x, batch.label), batch.label)
        log_px = self.pixels.log_prob(theta, x).mean()
        # per level: groups are the elements of a vector and the channels of a map
        groups = [_divergence(level).flatten(2).sum(2).mean(0) if level.z.ndim > 2 else _divergence(level).mean(0)
                  for level in levels]  # fmt: skip
        cost = sum((group.clamp(min=self.free_bits).sum() for group in groups), torch.zeros_like(log_px))
        loss = -(log_px - self.kl_weight(batch.step) * cost) / x[0].numel()
        with torch.no_grad():
            kl = torch.stack([group.sum() for group in groups])
            figures = {"elbo": log_px - kl.sum(), **{f"kl_{i + 1}": value for i, value in enumerate(kl)}}
            figures["square_error"] = (self.pixels.mean(theta) - x).square().mean()
        return loss, {name: value.detach() for name, value in figures.items()}

    def observe(self, player: str, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """Let the optimal deviation of a normal likelihood follow the error."""
        if isinstance(self.pixels, NormalPixels):
            self.pixels.follow(figures["square_error"])
        return super().observe(player, figures)

    def draw(self, noise: Noise, label: Tensor | None) -> Tensor:
        """Means of p(x | z) or draws from it, by ``show``, with z from the prior."""
        theta, _ = self._latents.decode(noise, None, label)
        return self.pixels.mean(theta) if self.show == "mean" else self.pixels.draw(theta, noise.at(_PIXELS))

    def _checked(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"items have shape {tuple(x.shape[1:])}; this model has {self.shape}")
        if self.pixels.levels:
            check_levels(x, self.pixels.levels)
        return x

    @torch.no_grad()
    def elbo(self, x: Tensor, label: Tensor | None = None, *, seeds: int | Sequence[int] = 0) -> Bound:
        """The bound (1) of each item, at full weight and without free bits.

        Args:
            x: items ``(B, C, H, W)`` in model units; at the levels of a likelihood of integers.
            label: classes ``(B,)``, -1 for none.
            seeds: one integer for all or one per item.

        Returns:
            Its parts, in nats; of densities where the likelihood is normal.

        Raises:
            ValueError: items of another shape, or at no level.

        Cost: one evaluation of encoder and decoder.

        Error: one draw of z; the divergence of the top level is exact, of others given the draws above.
        """
        noise = Noise(seeds, len(self._checked(x)))
        with evaluating(self):
            theta, levels = self._latents.decode(noise, self._latents.encode(x, label), label)
            log_px = self.pixels.log_prob(theta, x)
        kl = torch.stack([_divergence(level).flatten(1).sum(1) for level in levels], dim=1)
        return Bound(log_px, kl)

    @torch.no_grad()
    def importance_weighted(
        self, x: Tensor, k: int, label: Tensor | None = None, *, seeds: int | Sequence[int] = 0
    ) -> Estimate:
        """The importance-weighted bound (2) of each item.

        Args:
            x: items ``(B, C, H, W)`` in model units; at the levels of a likelihood of integers.
            k: draws of z, at least 1.
            label: classes ``(B,)``, -1 for none.
            seeds: one integer for all or one per item.

        Returns:
            Nats, with the standard error of the logarithm of the mean weight.

        Raises:
            ValueError: items of another shape, or at no level, or no draws.

        Cost: one evaluation of the encoder and k of the decoder; memory of one.

        Error: its mean is below log p(x) by about half its squared standard error.
        """
        if k < 1:
            raise ValueError(f"k={k} draws cannot be averaged; take at least 1")
        noise = Noise(seeds, len(self._checked(x)))
        with evaluating(self):
            seen = self._latents.encode(x, label)
            log_w = torch.stack([self._log_weight(x, seen, label, noise.at(j)) for j in range(k)])
        value = log_w.logsumexp(0) - math.log(k)
        if k == 1:
            return Estimate(value, torch.full_like(value, math.inf))
        relative = torch.exp(log_w - value)  # of mean 1
        return Estimate(value, relative.std(0) / math.sqrt(k))

    def bits_per_dim(
        self, x: Tensor, label: Tensor | None = None, *, draws: int = 32, seeds: int | Sequence[int] = 0
    ) -> Tensor | None:
        """By the importance-weighted bound (2) of ``draws`` draws of z; a normal likelihood is none of integers."""
        if not self.pixels.levels:
            return None
        return bits_per_dim(self.importance_weighted(x, draws, label, seeds=seeds).value, self.shape)

    def _log_weight(self, x: Tensor, seen: Sequence[Tensor], label: Tensor | None, noise: Noise) -> Tensor:
        """Logarithm of the weight of one draw, ``(B,)`` float64."""
        theta, levels = self._latents.decode(noise, seen, label)
        log_w = self.pixels.log_prob(theta, x).double()
        for level in levels:
            assert level.posterior is not None
            log_w += (level.prior.log_prob(level.z) - level.posterior.log_prob(level.z)).flatten(1).sum(1)
        return log_w


_likelihood = pixels  # an argument of the model has its name


def _divergence(level: Level) -> Tensor:
    """The divergence of each element of one level."""
    assert level.posterior is not None
    return level.posterior.kl(level.prior)
