"""The small GANs for MNIST of https://github.com/eriklindernoren/PyTorch-GAN, to stand beside ours: each trains for a number of
processor seconds and then draws. Networks, losses, initial weights and rates are as published there; images keep their own size,
of 8 pixels or more, where AC-GAN enlarges them to 32.

- CGAN (Mirza and Osindero 2014, arXiv 1411.1784): perceptrons that are told the class, least squares.
- AC-GAN (Odena et al. 2017, arXiv 1610.09585): convolutions; the discriminator names the class too, by a softmax before the
  cross-entropy, which takes one as well.
- WGAN-GP (Gulrajani et al. 2017, arXiv 1704.00028): perceptrons, five updates of the critic to one of the generator. It knows no
  classes.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from peers.gans import Trained, batches, size

__all__ = ["acgan", "cgan", "wgan_gp"]

LATENTS = 100
EPSILON = 0.8  # of batch normalisation in CGAN and AC-GAN


def cgan(images: Tensor, labels: Tensor, seconds: float) -> Trained:
    torch.manual_seed(0)
    classes = int(labels.max()) + 1
    generator = Told(perceptron(LATENTS + classes, images[0].numel(), EPSILON), classes)
    discriminator = Told(
        nn.Sequential(
            *(nn.Linear(images[0].numel() + classes, 512), nn.LeakyReLU(0.2)),
            *(nn.Linear(512, 512), nn.Dropout(0.4), nn.LeakyReLU(0.2)),
            *(nn.Linear(512, 512), nn.Dropout(0.4), nn.LeakyReLU(0.2)),
            nn.Linear(512, 1),
        ),
        classes,
    )
    of_g, of_d = adam(generator), adam(discriminator)

    def update(x: Tensor, label: Tensor, _: int) -> None:
        asked = torch.randint(classes, label.shape)
        fake = generator(torch.randn(len(x), LATENTS), asked)
        step(of_g, (discriminator(fake, asked) - 1).square().mean())
        real, unreal = discriminator(x.flatten(1), label), discriminator(fake.detach(), asked)
        step(of_d, ((real - 1).square().mean() + unreal.square().mean()) / 2)

    return played(generator, update, images, labels, seconds)


def acgan(images: Tensor, labels: Tensor, seconds: float) -> Trained:
    torch.manual_seed(0)
    classes, (channels, side) = int(labels.max()) + 1, images.shape[1:3]
    generator = Multiplied(classes, channels, side // 4)
    down: list[nn.Module] = []
    for inner, outer, normal in ((channels, 16, False), (16, 32, True), (32, 64, True), (64, 128, True)):
        down += [nn.Conv2d(inner, outer, 3, 2, 1), nn.LeakyReLU(0.2), nn.Dropout2d(0.25)]
        down += [nn.BatchNorm2d(outer, EPSILON)] if normal else []
    discriminator = nn.Sequential(*down, nn.Flatten(), nn.Linear(128 * (-(-side // 16)) ** 2, 1 + classes))
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
    of_g, of_d = adam(generator), adam(discriminator)

    def loss(seen: Tensor, real: float, label: Tensor) -> Tensor:
        valid = functional.binary_cross_entropy_with_logits(seen[:, 0], torch.full((len(seen),), real))
        return (valid + functional.cross_entropy(seen[:, 1:].softmax(1), label)) / 2

    def update(x: Tensor, label: Tensor, _: int) -> None:
        asked = torch.randint(classes, label.shape)
        fake = generator(torch.randn(len(x), LATENTS), asked)
        step(of_g, loss(discriminator(fake), 1.0, asked))
        step(of_d, (loss(discriminator(x), 1.0, label) + loss(discriminator(fake.detach()), 0.0, asked)) / 2)

    return played(generator, update, images, labels, seconds)


def wgan_gp(images: Tensor, labels: Tensor, seconds: float) -> Trained:
    torch.manual_seed(0)
    net = perceptron(LATENTS, images[0].numel(), EPSILON)
    critic = nn.Sequential(
        *(nn.Linear(images[0].numel(), 512), nn.LeakyReLU(0.2), nn.Linear(512, 256), nn.LeakyReLU(0.2)),
        nn.Linear(256, 1),
    )
    of_g, of_d = adam(net), adam(critic)

    def update(x: Tensor, _: Tensor, count: int) -> None:
        z, x = torch.randn(len(x), LATENTS), x.flatten(1)
        with torch.no_grad():
            fake = net(z)
        between = fake.lerp(x, torch.rand(len(x), 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = 10 * (slope.norm(dim=1) - 1).square().mean()
        step(of_d, critic(fake).mean() - critic(x).mean() + penalty)
        if count % 5 == 0:
            step(of_g, -critic(net(z)).mean())

    return played(Untold(net), update, images, labels, seconds)


def perceptron(inner: int, outer: int, epsilon: float) -> nn.Sequential:
    """The generator of CGAN and of WGAN-GP."""
    layers: list[nn.Module] = [nn.Linear(inner, 128), nn.LeakyReLU(0.2)]
    for a, b in ((128, 256), (256, 512), (512, 1024)):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b, epsilon), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(1024, outer), nn.Tanh())


class Told(nn.Module):
    """A net that sees the embedded class beside its input."""

    def __init__(self, net: nn.Module, classes: int) -> None:
        super().__init__()
        self.net, self.label = net, nn.Embedding(classes, classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.net(torch.cat([x, self.label(label)], 1))


class Untold(nn.Module):
    """A net that is not told the class."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.net(x)


class Multiplied(nn.Module):
    """The generator of AC-GAN: the latents times the embedded class, and two doublings."""

    def __init__(self, classes: int, channels: int, start: int) -> None:
        super().__init__()
        self.label = nn.Embedding(classes, LATENTS)
        self.net = nn.Sequential(
            *(nn.Linear(LATENTS, 128 * start**2), nn.Unflatten(1, (128, start, start)), nn.BatchNorm2d(128)),
            *(
                nn.Upsample(scale_factor=2),
                nn.Conv2d(128, 128, 3, 1, 1),
                nn.BatchNorm2d(128, EPSILON),
                nn.LeakyReLU(0.2),
            ),
            *(nn.Upsample(scale_factor=2), nn.Conv2d(128, 64, 3, 1, 1), nn.BatchNorm2d(64, EPSILON), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(64, channels, 3, 1, 1), nn.Tanh()),
        )

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return self.net(z * self.label(label))


def adam(net: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999))


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update; what its loss does to the weights of others is wiped before theirs."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def played(
    generator: nn.Module, update: Callable[[Tensor, Tensor, int], None], images: Tensor, labels: Tensor, seconds: float
) -> Trained:
    """Batches of 64 until the seconds are through; an update is one batch."""
    updates, begin = 0, time.process_time()
    for x, label in batches(images, labels, 64):
        if time.process_time() - begin > seconds:
            break
        update(x, label, updates)
        updates += 1
    spent = time.process_time() - begin
    generator.eval()

    @torch.no_grad()
    def draw(labels: Tensor, seed: int) -> Tensor:
        z = torch.randn(len(labels), LATENTS, generator=torch.Generator().manual_seed(seed))
        return torch.cat([generator(*part) for part in zip(z.split(500), labels.split(500))]).view(
            -1, *images.shape[1:]
        )

    return Trained(draw, updates, spent, size(generator))
