r"""A denoising-diffusion GAN: a few large denoising steps, each drawn by a conditional generator.

The times 0 = t_0 < ... < t_K = 1 are uniform. With q of the process, one step back from x_t to s = t_{k-1} is

    x0hat = tanh G(x_t, z, t),     x_s ~ q(x_s | x_t, x0hat) = N(a x_t + b x0hat, c^2),                       (1)
    a = alpha_t sigma_s^2 / (alpha_s sigma_t^2),  b = alpha_s (1 - d),  c^2 = sigma_s^2 (1 - d),  d = SNR_t / SNR_s.

Over a large step q(x_s | x_t) is far from normal; the latent z lets the generator draw from it, where a denoiser's mean cannot.
The discriminator sees the pair (x_s, x_t), real ones from the process and generated ones from (1). Both of a pair have the same
x_t, so they play the relativistic game, (1) and (2) of ``adversarial``, with penalties on x_s: what x_t alone says cancels.

Source: Xiao, Kreis and Vahdat 2022, "Tackling the generative learning trilemma with denoising diffusion GANs", arXiv 2112.07804,
equations 4, 6 and 8.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..nets.layers import Conditioning
from ..nets.unet import UNet
from ..numerics.noise import Noise
from ..numerics.shapes import pad
from ..process import GaussianProcess, process_from_config, process_from_entry, process_to_config
from ..train.game import Adam, Game, Minibatch
from .adversarial import annealed, gradient_penalty, relativistic
from .residual import Discriminator

__all__ = ["DDGAN", "posterior"]


def posterior(process: GaussianProcess, x0: Tensor, x_t: Tensor, s: Tensor, t: Tensor, noise: Noise | Tensor) -> Tensor:
    """Draw x_s given x_t and x0, by (1).

    Args:
        process: the noise process.
        x0: clean items ``(B, ...)``.
        x_t: the same at the later time.
        s: the earlier time, ``()`` or ``(B,)``, float64; at 0 the result is ``x0``.
        t: the later time.
        noise: a source, or the value of the standard normal part.

    >>> from trilemma.process import Flow
    >>> s, t = torch.tensor([0.0, 0.5], dtype=torch.float64)
    >>> posterior(Flow(), torch.ones(1, 2), torch.zeros(1, 2), s, t, Noise(0, 1))
    tensor([[1., 1.]])
    """
    eps = noise if isinstance(noise, Tensor) else noise.normal_like(x_t)
    d = torch.exp(process.log_snr(t) - process.log_snr(s))
    alpha, sigma = process.alpha(s), process.sigma(s)
    a = process.alpha(t) / alpha * (sigma / process.sigma(t)) ** 2
    b, c = alpha * (1 - d), sigma * (1 - d).clamp(min=0).sqrt()
    return pad(a.to(x_t), x_t) * x_t + pad(b.to(x_t), x_t) * x0 + pad(c.to(x_t), x_t) * eps


class DDGAN(Game):
    """A denoising-diffusion GAN: a sample in a few denoising steps.

    Args:
        shape: of an image, ``(C, H, W)``.
        classes: number of labels, 0 for none.
        steps: K, the number of denoising steps; 2 to 8.
        process: an entry, as in ``vp:beta_max=10``, or the JSON data of ``process_to_config``; alpha must not vanish at t = 1.
            Steps between times of almost pure noise teach nothing: b is 0.06 in the last of four steps of ``vp``, so that
            small images, which drown in less noise than large ones, want a smaller ``beta_max`` or fewer steps.
        latents: length of z.
        widths: channels of each level of the generator, a U-Net, finest first.
        blocks: its residual blocks of each level.
        attention: its levels with attention.
        critic_widths: channels of each level of the discriminator; those of the generator without it.
        critic_blocks: its residual blocks of each level.
        critic_expansion: channels inside its blocks, in channels outside.
        gamma: weight of both penalties, first and last; squared gradients are sums over pixels.
        beta1: decay rate of the first moment in Adam.
        beta2: decay rate of the second moment, first and last.
        anneal: updates over which ``gamma`` and ``beta2`` go from first to last.
        pace: learning rate of the generator in that of the discriminator. Normalised as it is, the U-Net changes more by an
            update of the same size than the discriminator can follow.

    Raises:
        ValueError: an option is out of range.

    Differs: Xiao et al. play the non-saturating game with the penalty on the real x_s alone, in every fifteenth update. The
        discriminator is the residual network of the GAN with the class as its condition and the step as K more channels, of
        which one is 1: a condition of its own for each pair of step and class leaves each too few items to learn from. z
        enters the generator with the time and the class, not in layers of its own.

    >>> game = DDGAN((1, 8, 8), classes=10, widths=(16, 32), blocks=1, attention=())
    >>> game.sample(2, label=torch.tensor([1, 2])).shape, game.calls
    (torch.Size([2, 1, 8, 8]), 4)
    """

    family = "ddgan"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        *,
        steps: int = 4,
        process: str | Mapping[str, Any] = "vp",
        latents: int = 64,
        widths: Sequence[int] = (32, 64),
        blocks: int | Sequence[int] = 1,
        attention: Sequence[int] = (),
        critic_widths: Sequence[int] | None = None,
        critic_blocks: int = 1,
        critic_expansion: int = 1,
        gamma: Sequence[float] = (1.0, 0.1),
        beta1: float = 0.0,
        beta2: Sequence[float] = (0.9, 0.99),
        anneal: int = 2000,
        pace: float = 0.25,
    ) -> None:
        made = process_from_entry(process) if isinstance(process, str) else process_from_config(dict(process))
        critic_widths = widths if critic_widths is None else critic_widths
        options = {"steps": steps, "process": process_to_config(made), "latents": latents, "widths": list(widths)}
        options |= {"blocks": blocks if isinstance(blocks, int) else list(blocks), "attention": list(attention)}
        options |= {"critic_widths": list(critic_widths), "critic_blocks": critic_blocks}
        options |= {"critic_expansion": critic_expansion, "gamma": list(gamma)}
        super().__init__(
            shape, classes, {**options, "beta1": beta1, "beta2": list(beta2), "anneal": anneal, "pace": pace}
        )
        if steps < 1 or latents < 1:
            raise ValueError(f"steps={steps} and latents={latents} must be at least 1")
        if not float(made.alpha(torch.tensor(1.0, dtype=torch.float64))) > 0:
            raise ValueError(f"{made} has no signal left at t = 1, so that (1) has no mean there; take vp")
        if not 0 < pace < math.inf:
            raise ValueError(f"pace={pace} must be a positive number")
        if len(gamma) != 2 or min(gamma) < 0:
            raise ValueError(f"gamma={list(gamma)} must be two numbers, at least 0: the first weight and the last")
        if len(beta2) != 2 or not all(0 <= value < 1 for value in (beta1, *beta2)):
            raise ValueError(f"beta1={beta1} and the two of beta2={list(beta2)} must lie in [0, 1)")
        self.process, self.calls, self.latents = made, steps, latents
        self.gamma, self.beta1, self.beta2, self.anneal, self.pace = tuple(gamma), beta1, tuple(beta2), anneal, pace
        self.generator = UNet(
            2, shape[0], classes=classes, widths=widths, blocks=blocks, attention=attention, head_width=min(widths)
        )
        self.generator.condition = _Conditioning(self.generator.condition.out.out_features, classes, latents)
        self.discriminator = Discriminator(
            (2 * shape[0] + steps, *shape[1:]),
            conditions=classes + 1,
            widths=critic_widths,
            blocks=critic_blocks,
            expansion=critic_expansion,
        )

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """The discriminator, then the generator."""
        return {
            "discriminator": list(self.discriminator.parameters()),
            "generator": list(self.generator.parameters()),
        }

    def averaged(self) -> dict[str, Tensor]:
        """The generator alone."""
        return {name: p for name, p in self.named_parameters() if name.startswith("generator.")}

    def adam(self, player: str, step: int, usual: Adam) -> Adam:
        """The moments of this game, and the generator's own pace."""
        lr = usual.lr * (self.pace if player == "generator" else 1.0)
        return replace(usual, lr=lr, betas=(self.beta1, annealed(self.beta2, step, self.anneal)))

    def loss(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) of ``adversarial`` at steps drawn evenly across the batch."""
        x, noise = batch.x, batch.noise
        k = self._steps(batch).to(x.device)
        s, t = (k - 1).double() / self.calls, k.double() / self.calls
        x_s = self.process.perturb(x, s, noise.at(0))
        x_t = self.process.renoise(x_s, s, t, noise.at(1))
        fake = posterior(self.process, self._clean(x_t, t, noise.at(2), batch.label), x_t, s, t, noise.at(3))
        condition = torch.zeros_like(k) if batch.label is None else batch.label + 1
        step = functional.one_hot(k - 1, self.calls).to(x)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        given = torch.cat([x_t, step], 1)
        if player == "generator":
            real, other = (self.discriminator(torch.cat([x_s, given], 1), condition) for x_s in (x_s, fake))
            return relativistic(other, real).mean(), {}
        both = torch.cat([x_s, fake]).requires_grad_()
        score = self.discriminator(torch.cat([both, given.repeat(2, 1, 1, 1)], 1), condition.repeat(2))
        real, other = score.chunk(2)
        r1, r2 = (part.mean() for part in gradient_penalty(score, both).chunk(2))
        loss = relativistic(real, other).mean() + annealed(self.gamma, batch.step, self.anneal) / 2 * (r1 + r2)
        return loss, {"r1": r1, "r2": r2, "margin": (real - other).mean(), "right": (real > other).double().mean()}

    def draw(self, noise: Noise, label: Tensor | None) -> Tensor:
        """From pure noise, (1) at the times K/K, ..., 1/K."""
        like = next(self.generator.parameters())
        x = self.process.prior((noise.n, *self.shape), noise.at(0), like=like)
        ts = torch.arange(self.calls, -1, -1, dtype=torch.float64, device=like.device) / self.calls
        for k, (t, s) in enumerate(pairwise(ts), 1):
            x0 = self._clean(x, t.expand(len(x)), noise.at(k, 0), label)
            x = posterior(self.process, x0, x, s, t, noise.at(k, 1))
        return x

    def _clean(self, x_t: Tensor, t: Tensor, noise: Noise, label: Tensor | None) -> Tensor:
        """x0hat of (1) with a fresh z."""
        z = noise.normal((len(x_t), self.latents), dtype=x_t.dtype, device=x_t.device)
        time = (self.process.log_snr(t) / 8).to(x_t)
        clean: Tensor = self.generator(x_t, torch.cat([time[:, None], z], 1), label)
        return clean.tanh()

    def _steps(self, batch: Minibatch) -> Tensor:
        """The step k in 1 ... K of each item: every step equally often in the whole batch, up to rounding."""
        start = batch.whole.uniform((1,), dtype=torch.float64)
        spread = (torch.arange(batch.size, dtype=torch.float64) + 0.5) / batch.size
        return (((spread + start) % 1.0) * self.calls).long()[batch.place] + 1


class _Conditioning(Conditioning):
    """The condition of the U-Net from the time in the first column and z in the others, the latter through a small network."""

    def __init__(self, width: int, classes: int, latents: int) -> None:
        super().__init__(width, classes)
        self.mapping = nn.Sequential(nn.Linear(latents, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, x: Tensor, c_time: Tensor, label: Tensor | None) -> Tensor:
        time, z = c_time[:, 0], functional.normalize(c_time[:, 1:]) * (c_time.shape[1] - 1) ** 0.5
        mapped: Tensor = self.mapping(z)
        return super().forward(x, time, label) + mapped
