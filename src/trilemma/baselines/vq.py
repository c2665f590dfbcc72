r"""Vector-quantised autoencoder with a prior: an image as a few codes, and a law over codes.

The encoder's map z_1 .. z_N is replaced by the nearest vectors of a codebook e_1 .. e_K, k_i = argmin_k |z_i - e_k|, and two
players learn, the autoencoder and then the prior over its codes:

    loss_autoencoder = -log p(x | e_{k_1} .. e_{k_N}) / D + commitment mean_i |z_i - sg(e_{k_i})|^2,          (1)
    loss_prior = -log p(k_1 .. k_N) / N,                                                                      (2)
    log p(x) >= log p(x | e_k) + log p(k).                                                                    (3)

(3) is the variational bound of an encoder without choice. Quantising has no derivative. The gradient passes it either unchanged,
or through the rotation and scaling that take z to e, held fixed:

    e = sg(|e|/|z| R) z,   R = 1 - 2 r r^T + 2 e^ z^^T,   r = (z^ + e^)/|z^ + e^|,   z^ = z/|z|, e^ = e/|e|.     (4)

The codebook is no parameter. It follows the means of what was assigned to it, as k-means does, with n_k vectors of sum s_k:

    N_k <- g N_k + (1 - g) n_k,   M_k <- g M_k + (1 - g) s_k,   e_k = M_k / N_k.                              (5)

A code with N_k below a share of the mean is dead, and begins again at a vector of the encoder; so do all of them at first.

Sources: van den Oord et al. 2017 (arXiv:1711.00937), equations 1 to 3 and appendix A.1 for (5); Fifty et al. 2024
(arXiv:2410.06424), section 4, for (4); Dhariwal et al. 2020 (arXiv:2005.00341), section 3, for dead codes. Differs: the prior is
a transformer and learns beside the autoencoder, not after it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..nets.layers import conv
from ..numerics.noise import Noise
from ..train.game import Game, Minibatch
from .autoregressive import CodePrior
from .pixels import NormalPixels, bits_per_dim, check_levels, pixels
from .resnet import Decoder, Encoder, LabelVector
from .vae import Bound, evaluating

__all__ = ["VQVAE", "Codebook", "rotated", "straight_through"]

_PIXELS = 1000  # the position of the noise of p(x | e), beyond those of the codes


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """The value of ``e`` with the gradient of ``z``.

    >>> z = torch.tensor([1.0], requires_grad=True)
    >>> straight_through(z, torch.tensor([3.0])).square().sum().backward()
    >>> z.grad
    tensor([6.])
    """
    return e.detach() + (z - z.detach())


def rotated(z: Tensor, e: Tensor) -> Tensor:
    """The value of ``e``, as a fixed rotation and scaling of ``z`` (4).

    Args:
        z: vectors of the encoder, ``(M, d)``.
        e: their codes, ``(M, d)``.

    >>> z = torch.tensor([[1.0, 0.0]], requires_grad=True)
    >>> rotated(z, torch.tensor([[0.0, 2.0]]))[0, 1].backward()         # what moves e outwards moves z outwards
    >>> z.grad.round()
    tensor([[2., 0.]])
    """
    size, length = z.detach().norm(dim=1, keepdim=True).clamp(min=1e-6), e.norm(dim=1, keepdim=True)
    z_hat, e_hat = z.detach() / size, (e / length.clamp(min=1e-6)).detach()
    r = z_hat + e_hat
    r = r / r.norm(dim=1, keepdim=True).clamp(min=1e-6)
    along = (z * z_hat).sum(1, keepdim=True)
    turned = z - 2 * r * (r * z).sum(1, keepdim=True) + 2 * e_hat * along
    return (length / size).detach() * turned


class Codebook(nn.Module):
    """Vectors that follow what is assigned to them, (5).

    Args:
        codes: K.
        width: d, length of a vector.
        decay: g of (5), in [0, 1).
        dead: share of the mean number of vectors below which a code begins again, in [0, 1).

    Raises:
        ValueError: a number is out of range.

    >>> book = Codebook(2, 1, decay=0.0)
    >>> book.follow(torch.zeros(2), torch.zeros(2, 1), fresh=torch.tensor([[-1.0], [1.0]]))      # the first update
    >>> book.nearest(torch.tensor([[0.2], [-3.0]]))
    tensor([1, 0])
    """

    def __init__(self, codes: int, width: int, *, decay: float = 0.99, dead: float = 0.03) -> None:
        super().__init__()
        if codes < 2 or not 0 <= decay < 1 or not 0 <= dead < 1:
            raise ValueError(f"codes={codes} must be at least 2, decay={decay} and dead={dead} in [0, 1)")
        self.decay, self.dead = decay, dead
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.counts: Tensor
        self.sums: Tensor

    @property
    def vectors(self) -> Tensor:
        """The codes e, ``(K, d)``."""
        return self.sums / self.counts.clamp(min=1e-12)[:, None]

    def nearest(self, z: Tensor) -> Tensor:
        """The code of each vector ``(M, d)``: int64 ``(M,)``. Cost: M K d, in the type of ``z``."""
        with torch.autocast(z.device.type, enabled=False):
            e = self.vectors.to(z)
            return (e.square().sum(1) - 2 * z @ e.T).argmin(1)

    def tally(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """n_k ``(K,)`` and s_k ``(K, d)`` of vectors ``(M, d)`` with the codes ``(M,)``."""
        z = z.detach().to(self.sums)
        return torch.zeros_like(self.counts).index_add_(0, k, torch.ones_like(z[:, 0])), torch.zeros_like(
            self.sums
        ).index_add_(0, k, z)

    @torch.no_grad()
    def follow(self, n: Tensor, s: Tensor, *, fresh: Tensor) -> None:
        """Update by (5), and let dead codes begin again.

        Args:
            n: vectors of each code, ``(K,)``, in any unit that does not change between updates.
            s: their sums, ``(K, d)``, in the same unit.
            fresh: where each code would begin again, ``(K, d)``.
        """
        n, s, fresh = (value.to(self.sums) for value in (n, s, fresh))
        counts, sums = self.counts.lerp(n, 1 - self.decay), self.sums.lerp(s, 1 - self.decay)
        mean = n.mean().where(n.sum() > 0, torch.ones_like(n[0]))
        gone = counts <= self.dead * mean
        self.counts.copy_(torch.where(gone, mean, counts))
        self.sums.copy_(torch.where(gone[:, None], mean * fresh, sums))


class VQVAE(Game):
    """A vector-quantised autoencoder and the prior over its codes.

    Its samples are codes of the prior, decoded: means of p(x | codes) or draws from it, by ``show``, as of `VAE`.

    Args:
        shape: of an item, ``(C, H, W)``.
        classes: number of labels that condition the prior and the decoder, 0 for none.
        pixels: the likelihood, an entry of `trilemma.baselines.pixels.pixels`.
        codes: K, size of the codebook.
        code_width: d, length of a code.
        widths: channels of each resolution, finest first; the codes live at the coarsest.
        blocks: residual blocks of each resolution, one number or one each.
        commitment: weight of the encoder's distance to its codes.
        decay: how slowly codes follow, in [0, 1).
        dead: share of the mean use below which a code begins again.
        gradient: ``rotation`` (4) or ``straight_through``.
        prior_width: channels of the prior's transformer.
        prior_depth: its blocks.
        show: ``mean`` or ``draw``.

    Raises:
        ValueError: arguments out of range, or that do not fit each other.

    >>> model = VQVAE((1, 8, 8), pixels="logistic:17", codes=8, widths=(16, 16), prior_width=16, prior_depth=1)
    >>> model.sample(3).shape, model.calls
    (torch.Size([3, 1, 8, 8]), 17)
    """

    family: ClassVar[str] = "vq"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        *,
        pixels: str = "logistic:256",
        codes: int = 64,
        code_width: int = 8,
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        commitment: float = 0.25,
        decay: float = 0.99,
        dead: float = 0.03,
        gradient: Literal["rotation", "straight_through"] = "rotation",
        prior_width: int = 128,
        prior_depth: int = 3,
        show: Literal["mean", "draw"] = "mean",
    ) -> None:
        if gradient not in ("rotation", "straight_through") or show not in ("mean", "draw"):
            raise ValueError(
                f"gradient={gradient!r} must be 'rotation' or 'straight_through', show={show!r} 'mean' or 'draw'"
            )
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment={commitment} must be a finite number, at least 0")
        nets = {"codes": codes, "code_width": code_width, "widths": list(widths)}
        nets |= {"blocks": blocks if isinstance(blocks, int) else list(blocks)}
        learning = {"commitment": commitment, "decay": decay, "dead": dead, "gradient": gradient}
        prior = {"prior_width": prior_width, "prior_depth": prior_depth}
        super().__init__(shape, classes, {"pixels": pixels, **nets, **learning, **prior, "show": show})
        self.commitment, self.show = commitment, show
        self._through = rotated if gradient == "rotation" else straight_through
        embed = 4 * max(widths) if classes else 0
        self.label = LabelVector(classes, embed) if classes else None
        self.encoder = Encoder(shape, widths, blocks)
        self.to_code = conv(2, widths[-1], code_width, 1)
        self.codebook = Codebook(codes, code_width, decay=decay, dead=dead)
        self.from_code = conv(2, code_width, widths[-1], 1)
        self.pixels = _likelihood(pixels)
        self.decoder = Decoder(widths, blocks, shape[0] * self.pixels.params, embed=embed)
        self.grid = self.encoder.coarse[1:]
        self.calls = math.prod(self.grid) + 1
        self.prior = CodePrior(codes, math.prod(self.grid), classes=classes, width=prior_width, depth=prior_depth)

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """The autoencoder, then the prior."""
        of_prior = list(self.prior.parameters())
        theirs = {id(p) for p in of_prior}
        return {"autoencoder": [p for p in self.parameters() if id(p) not in theirs], "prior": of_prior}

    def _encode(self, x: Tensor) -> Tensor:
        """Vectors of the encoder, ``(B, N, d)``, row by row."""
        z = self.to_code(self.encoder(x)[0]).flatten(2).transpose(1, 2)
        return z.to(torch.promote_types(z.dtype, torch.float32))  # distances to codes are not for bf16

    def encode(self, x: Tensor) -> Tensor:
        """The codes of items ``(B, C, H, W)``: int64 ``(B, N)``, row by row."""
        with torch.no_grad():
            return self.codebook.nearest(self._encode(x).flatten(0, 1)).view(len(x), -1)

    def decode(self, e: Tensor, label: Tensor | None = None) -> Tensor:
        """The decoder's output ``(B, C * params, H, W)`` for vectors ``(B, N, d)``."""
        c = None
        if self.label is not None:
            c = self.label(torch.full((len(e),), -1, device=e.device) if label is None else label)
        return self.decoder(self.from_code(e.transpose(1, 2).unflatten(2, self.grid)), c)

    def loss(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) or (2); what the codebook needs for (5) is among the figures, as means over items."""
        if player == "prior":
            log_prob = self.prior.log_prob(self.encode(batch.x), batch.label)
            return -log_prob.mean() / self.prior.length, {"code_nats": -log_prob.detach().mean()}
        z = self._encode(batch.x)
        flat = z.flatten(0, 1)
        k = self.codebook.nearest(flat)
        e = self.codebook.vectors[k].to(flat)
        theta = self.decode(self._through(flat, e).view_as(z), batch.label)
        log_px = self.pixels.log_prob(theta, batch.x).mean()
        distance = (flat - e).square().sum(1).mean()
        n, s = self.codebook.tally(flat, k)
        with torch.no_grad():
            figures = {"log_px": log_px, "distance": distance, "n": n / len(z), "s": s / len(z)}
            figures["square_error"] = (self.pixels.mean(theta) - batch.x).square().mean()
            figures["fresh"] = self._fresh(z, batch)
        return -log_px / batch.x[0].numel() + self.commitment * distance, {k: v.detach() for k, v in figures.items()}

    def _fresh(self, z: Tensor, batch: Minibatch) -> Tensor:
        """A vector of the whole batch for each code, ``(K, d)``, as a mean over items: whoever has it counts for all."""
        codes, (count, length) = len(self.codebook.counts), z.shape[:2]
        u = batch.whole.uniform((1, codes), dtype=torch.float64, device=z.device)[0]
        where = (u * (batch.size * length)).long()
        item, place = where // length - batch.place.start, where % length
        mine = (item >= 0) & (item < count)
        return z[item.clamp(0, count - 1), place] * (mine * (batch.size / count)).to(z)[:, None]

    @torch.no_grad()
    def observe(self, player: str, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """Move the codebook by (5); ``perplexity``, e to the entropy of the use of codes, is logged."""
        if player == "prior":
            return super().observe(player, figures)
        n = figures["n"]
        self.codebook.follow(n, figures["s"], fresh=figures["fresh"])
        if isinstance(self.pixels, NormalPixels):
            self.pixels.follow(figures["square_error"])
        logged = {name: figures[name] for name in ("log_px", "distance", "square_error")}
        return super().observe(player, {**logged, "perplexity": torch.special.entr(n / n.sum()).sum().exp()})

    def draw(self, noise: Noise, label: Tensor | None) -> Tensor:
        """Codes of the prior, decoded."""
        theta = self.decode(self.codebook.vectors[self.prior.draw(noise, label)], label)
        return self.pixels.mean(theta) if self.show == "mean" else self.pixels.draw(theta, noise.at(_PIXELS))

    @torch.no_grad()
    def elbo(self, x: Tensor, label: Tensor | None = None) -> Bound:
        """The bound (3) of each item, in nats; its divergence is the information in the codes, -log p(k).

        Args:
            x: items ``(B, C, H, W)`` in model units; at the levels of a likelihood of integers.
            label: classes ``(B,)``, -1 for none.

        Raises:
            ValueError: items at no level.
        """
        if self.pixels.levels:
            check_levels(x, self.pixels.levels)
        with evaluating(self):
            k = self.encode(x)
            log_px = self.pixels.log_prob(self.decode(self.codebook.vectors[k], label), x)
            return Bound(log_px, -self.prior.log_prob(k, label)[:, None])

    def bits_per_dim(
        self, x: Tensor, label: Tensor | None = None, *, draws: int = 1, seeds: int | Sequence[int] = 0
    ) -> Tensor | None:
        """By the bound (3), in which nothing is drawn; a normal likelihood is none of integers."""
        return bits_per_dim(self.elbo(x, label).elbo.double(), self.shape) if self.pixels.levels else None


_likelihood = pixels  # an argument of the model has its name
