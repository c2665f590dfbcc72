"""Small GANs by the recipes of others, to stand beside ours: each trains for a number of processor seconds and then draws.

- DCGAN: network, initial weights, loss, optimiser and batch of the PyTorch example (Radford et al. 2015, arXiv 1511.06434), with
  fewer levels where images are small. It knows no classes.
- R3GAN: the authors' own networks and losses from a checkout of https://github.com/brownvc/R3GAN (Huang et al. 2024), in float32
  and without augmentation, narrow, with the schedules of its CIFAR-10 preset, or with other rates where the caller says so.
"""

import copy
import importlib
import math
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.torch_version import TorchVersion

__all__ = ["Trained", "dcgan", "r3gan"]


@dataclass
class Trained:
    """A trained generator.

    Args:
        draw: labels and a seed to images in [-1, 1].
        updates: how many there were.
        seconds: processor seconds of training.
        parameters: of the generator.
    """

    draw: Callable[[Tensor, int], Tensor]
    updates: int
    seconds: float
    parameters: int


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def batches(images: Tensor, labels: Tensor, batch: int):
    """Shuffled batches without end."""
    while True:
        for index in torch.randperm(len(images)).split(batch):
            if len(index) == batch:
                yield images[index], labels[index]


def dcgan(images: Tensor, labels: Tensor, seconds: float, *, width: int = 64, latents: int = 100) -> Trained:
    torch.manual_seed(0)
    channels, side = images.shape[1:3]
    start = 7 if side == 28 else 4
    levels = round(math.log2(side / start))
    up: list[nn.Module] = []
    down: list[nn.Module] = []
    for level in range(levels):  # level 0 is the finest
        inner, outer = width * 2**level, channels if level == 0 else width * 2 ** (level - 1)
        last = level == 0
        up = [
            nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=False),
            *([nn.Tanh()] if last else [nn.BatchNorm2d(outer), nn.ReLU(True)]),
            *up,
        ]
        down += [
            nn.Conv2d(outer, inner, 4, 2, 1, bias=False),
            *([] if last else [nn.BatchNorm2d(inner)]),
            nn.LeakyReLU(0.2),
        ]
    top = width * 2 ** (levels - 1)
    generator = nn.Sequential(
        nn.ConvTranspose2d(latents, top, start, 1, 0, bias=False), nn.BatchNorm2d(top), nn.ReLU(True), *up
    )
    discriminator = nn.Sequential(*down, nn.Conv2d(top, 1, start, 1, 0, bias=False), nn.Flatten(0))
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    of_g, of_d = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (generator, discriminator))
    loss, updates, begin = functional.binary_cross_entropy_with_logits, 0, time.process_time()
    for x, _ in batches(images, labels, 64):
        if time.process_time() - begin > seconds:
            break
        fake = generator(torch.randn(len(x), latents, 1, 1))
        one, zero = torch.ones(len(x)), torch.zeros(len(x))
        of_d.zero_grad()
        (loss(discriminator(x), one) + loss(discriminator(fake.detach()), zero)).backward()
        of_d.step()
        of_g.zero_grad()
        loss(discriminator(fake), one).backward()
        of_g.step()
        updates += 1
    spent = time.process_time() - begin
    generator.eval()

    @torch.no_grad()
    def draw(labels: Tensor, seed: int) -> Tensor:
        return generator(torch.randn(len(labels), latents, 1, 1, generator=torch.Generator().manual_seed(seed)))

    return Trained(draw, updates, spent, size(generator))


def _stand_ins() -> None:
    """Empty modules for what its downloads and its version checks import; nothing here uses them."""
    sys.modules.setdefault("requests", types.ModuleType("requests"))
    if "pkg_resources" not in sys.modules:
        module = types.ModuleType("pkg_resources")
        module.parse_version = TorchVersion  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = module


def r3gan(
    images: Tensor,
    labels: Tensor,
    seconds: float,
    *,
    checkout: Path,
    widths: tuple[int, ...] = (64, 32),
    lr: tuple[float, float] = (2e-4, 5e-5),
    gamma: tuple[float, float] = (0.05, 0.005),
    batch: int = 64,
    latents: int = 64,
) -> Trained:
    """Schedules run along processor time; the average's half-life ends at a quarter of the images so far seen."""
    sys.path.insert(0, str(checkout))
    _stand_ins()
    networks, trainer = (importlib.import_module(f"R3GAN.{name}") for name in ("Networks", "Trainer"))
    torch.manual_seed(0)
    classes, blocks, groups = int(labels.max()) + 1, [2] * len(widths), [width // 8 for width in widths]
    generator = networks.Generator(latents, list(widths), groups, blocks, 2, classes, latents)
    back = list(reversed(widths))
    discriminator = networks.Discriminator(back, list(reversed(groups)), blocks, 2, classes, widths[0])
    play = trainer.AdversarialTraining(generator, discriminator)
    average = copy.deepcopy(generator)
    of_g, of_d = (torch.optim.Adam(net.parameters(), lr[0], (0.0, 0.9), eps=1e-8) for net in (generator, discriminator))
    updates, begin = 0, time.process_time()
    for x, label in batches(images, labels, batch):
        done = (time.process_time() - begin) / seconds
        if done > 1:
            break
        cosine = (1 + math.cos(math.pi * done)) / 2
        x, condition = (
            x.expand(-1, 3, -1, -1),
            functional.one_hot(label, classes).float(),
        )  # its networks want three channels
        for optimizer in (of_g, of_d):
            optimizer.param_groups[0].update(
                lr=lr[1] + (lr[0] - lr[1]) * cosine, betas=(0.0, 0.99 + (0.9 - 0.99) * cosine)
            )
        of_g.zero_grad()
        discriminator.requires_grad_(False)
        play.AccumulateGeneratorGradients(torch.randn(batch, latents), x, condition)
        discriminator.requires_grad_(True)
        of_g.step()
        of_d.zero_grad()
        weight = gamma[1] + (gamma[0] - gamma[1]) * cosine
        play.AccumulateDiscriminatorGradients(torch.randn(batch, latents), x, condition, weight)
        of_d.step()
        updates += 1
        keep = 0.5 ** (1 / max(1.0, 0.1 * updates))
        with torch.no_grad():
            for a, b in zip(average.parameters(), generator.parameters()):
                a.lerp_(b, 1 - keep)
    spent = time.process_time() - begin

    @torch.no_grad()
    def draw(labels: Tensor, seed: int) -> Tensor:
        z = torch.randn(len(labels), latents, generator=torch.Generator().manual_seed(seed))
        return average(z, functional.one_hot(labels, classes).float()).mean(1, keepdim=True)

    return Trained(draw, updates, spent, size(generator))
