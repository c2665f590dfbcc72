"""A generative adversarial network: relativistic pairing, two gradient penalties, residual networks without normalisation.

The losses are (1) and (2) of ``adversarial``, the networks those of ``residual``; the discriminator moves first. Latents are
standard normal, the condition is the label (row 0 for none).

Source: Huang et al. 2024, "The GAN is dead; long live the GAN!", arXiv 2501.05441.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..numerics.noise import Noise
from ..train.game import Adam, Game, Minibatch
from .adversarial import annealed, gradient_penalty, relativistic
from .residual import Discriminator, Generator

__all__ = ["GAN"]


class GAN(Game):
    """A generative adversarial network: a sample in one call.

    Args:
        shape: of an image, ``(C, H, W)``, sides multiples of ``2**(levels - 1)``.
        classes: number of labels, 0 for none.
        latents: length of z.
        widths: channels of each level of both networks, finest first.
        blocks: residual blocks of each level of both networks.
        expansion: channels inside a block, in channels outside.
        groups: groups of the 3x3 convolutions.
        gamma: weight of both penalties, first and last; squared gradients are sums over pixels.
        beta2: decay rate of Adam's second moment, first and last; that of the first moment is 0.
        anneal: updates over which ``gamma`` and ``beta2`` go from first to last.

    Raises:
        ValueError: an option is out of range, or images cannot be halved that often.

    Differs: one learning rate schedule for both players, from the training's settings.

    >>> game = GAN((1, 8, 8), classes=10, widths=(8, 16), latents=16)
    >>> game.sample(3, label=torch.tensor([1, 2, -1])).shape
    torch.Size([3, 1, 8, 8])
    """

    family = "gan"
    calls = 1

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        *,
        latents: int = 64,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        expansion: int = 2,
        groups: int = 1,
        gamma: Sequence[float] = (1.0, 0.1),
        beta2: Sequence[float] = (0.9, 0.99),
        anneal: int = 2000,
    ) -> None:
        schedule = {"gamma": list(gamma), "beta2": list(beta2), "anneal": anneal}
        sizes: dict[str, Any] = {"widths": list(widths), "blocks": blocks, "expansion": expansion, "groups": groups}
        super().__init__(shape, classes, {"latents": latents, **sizes, **schedule})
        if len(gamma) != 2 or min(gamma) < 0:
            raise ValueError(f"gamma={list(gamma)} must be two numbers, at least 0: the first weight and the last")
        if len(beta2) != 2 or not all(0 <= value < 1 for value in beta2):
            raise ValueError(f"beta2={list(beta2)} must be two numbers in [0, 1): the first decay rate and the last")
        if anneal < 0 or latents < 1:
            raise ValueError(f"anneal={anneal} must be at least 0 and latents={latents} at least 1")
        self.gamma, self.beta2, self.anneal = tuple(gamma), tuple(beta2), anneal
        conditions = classes + 1 if classes else 0
        self.generator = Generator(shape, latents=latents, conditions=conditions, **sizes)
        self.discriminator = Discriminator(shape, conditions=conditions, **sizes)

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """The discriminator, then the generator."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def averaged(self) -> dict[str, Tensor]:
        """The generator alone: the discriminator has to follow what is there now."""
        return {name: p for name, p in self.named_parameters() if name.startswith("generator.")}

    def adam(self, player: str, step: int, usual: Adam) -> Adam:
        """No first moment, and a second moment whose memory grows."""
        return replace(usual, betas=(0.0, annealed(self.beta2, step, self.anneal)))

    def loss(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) of ``adversarial``, with the figures of the discriminator: what it says, how often it is right, penalties."""
        x, condition = batch.x, self._condition(batch.label, batch.x)
        fake = self.generator(batch.noise.normal((len(x), self.generator.latents), device=x.device), condition)
        if player == "generator":
            return relativistic(self.discriminator(fake, condition), self.discriminator(x, condition)).mean(), {}
        both = torch.cat([x, fake]).requires_grad_()
        score = self.discriminator(both, None if condition is None else condition.repeat(2))
        real, other = score.chunk(2)
        penalty = gradient_penalty(score, both)
        r1, r2 = (part.mean() for part in penalty.chunk(2))
        loss = relativistic(real, other).mean() + annealed(self.gamma, batch.step, self.anneal) / 2 * (r1 + r2)
        right = (real > other).double().mean()
        return loss, {"r1": r1, "r2": r2, "margin": (real - other).mean(), "right": right}

    def draw(self, noise: Noise, label: Tensor | None) -> Tensor:
        """The generator on standard normal latents."""
        device = self.generator.bias.device
        z = noise.normal((noise.n, self.generator.latents), device=device)
        return self.generator(z, self._condition(label, z))

    def _condition(self, label: Tensor | None, like: Tensor) -> Tensor | None:
        """Rows of the tables of conditions: 0 for no label, k + 1 for class k; ``None`` if the game knows no classes."""
        if not self.classes:
            return None
        return torch.zeros(len(like), dtype=torch.int64, device=like.device) if label is None else label + 1
