"""Small VAEs by the recipes of others, to stand beside ours: each trains for its published number of epochs, or for a number of
processor seconds if that is more, and then draws. None knows classes; samples are means of the decoder, as the recipes show them.

- The PyTorch examples' VAE: D-400-20-400-D, sigmoid, binary cross-entropy, Adam 1e-3, batches of 128, 10 epochs (Kingma and
  Welling 2014, arXiv 1312.6114, appendix C).
- The vanilla VAE of PyTorch-VAE: strided convolutions, batch normalisation and leaky ReLU, latents of 128, tanh, squared error
  and 0.00025 of the divergence, Adam 5e-3 times 0.95 each epoch, batches of 64; fewer levels where images are small. A second row
  takes ten times its weight of the divergence and 16 latents, which suits small grey images better.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from peers.gans import Trained, size

__all__ = ["convolutional", "fully_connected"]


def divergence(mean: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)


def reparametrised(mean: Tensor, log_var: Tensor) -> Tensor:
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)


def fully_connected(images: Tensor, labels: Tensor, seconds: float) -> Trained:
    torch.manual_seed(0)
    pixels, latents = images[0].numel(), 20
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 400), nn.ReLU(), nn.Linear(400, 2 * latents))
    decoder = nn.Sequential(nn.Linear(latents, 400), nn.ReLU(), nn.Linear(400, pixels), nn.Sigmoid())

    def loss(x: Tensor) -> Tensor:
        mean, log_var = encoder(x).chunk(2, 1)
        unit = (x.flatten(1) + 1) / 2
        seen = decoder(reparametrised(mean, log_var))
        return functional.binary_cross_entropy(seen, unit, reduction="sum") + divergence(mean, log_var).sum()

    def show(z: Tensor) -> Tensor:
        return decoder(z).view(-1, *images.shape[1:]) * 2 - 1

    return fitted(nn.ModuleList([encoder, decoder]), loss, show, images, seconds, latents, 1e-3, 1.0, 128, 10)


def convolutional(
    images: Tensor, labels: Tensor, seconds: float, *, latents: int = 128, weight: float = 0.00025, lr: float = 5e-3
) -> Trained:
    torch.manual_seed(0)
    channels, side = images.shape[1:3]
    padded = 2 ** (side - 1).bit_length()  # 28 -> 32
    border = (padded - side) // 2
    widths = [32, 64, 128, 256, 512][: padded.bit_length() - 1]

    def block(layer: nn.Module, width: int) -> nn.Sequential:
        return nn.Sequential(layer, nn.BatchNorm2d(width), nn.LeakyReLU())

    down = [block(nn.Conv2d(a, b, 3, 2, 1), b) for a, b in zip([channels, *widths], widths)]
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(widths[-1], 2 * latents))
    back = widths[::-1]
    up = [block(nn.ConvTranspose2d(a, b, 3, 2, 1, 1), b) for a, b in zip(back, [*back[1:], widths[0]])]
    start = nn.Sequential(nn.Linear(latents, back[0]), nn.Unflatten(1, (back[0], 1, 1)))
    decoder = nn.Sequential(start, *up, nn.Conv2d(widths[0], channels, 3, padding=1), nn.Tanh())

    def loss(x: Tensor) -> Tensor:
        x = functional.pad(x, (border,) * 4, value=-1.0)
        mean, log_var = encoder(x).chunk(2, 1)
        seen = decoder(reparametrised(mean, log_var))
        return functional.mse_loss(seen, x) + weight * divergence(mean, log_var).mean()

    def show(z: Tensor) -> Tensor:
        return decoder(z)[..., border : border + side, border : border + side]

    return fitted(nn.ModuleList([encoder, decoder]), loss, show, images, seconds, latents, lr, 0.95, 64, 0)


def fitted(
    nets: nn.ModuleList,
    loss: Callable[[Tensor], Tensor],
    show: Callable[[Tensor], Tensor],
    images: Tensor,
    seconds: float,
    latents: int,
    lr: float,
    gamma: float,
    batch: int,
    epochs: int,
) -> Trained:
    """Adam with a rate that falls each epoch; until the epochs and the seconds are both through."""
    optimizer = torch.optim.Adam(nets.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    begin, updates, epoch = time.process_time(), 0, 0
    while epoch < epochs or time.process_time() - begin < seconds:
        for index in torch.randperm(len(images)).split(batch):
            if len(index) == 1 or (epoch >= epochs and time.process_time() - begin >= seconds):
                continue  # batch normalisation needs two
            optimizer.zero_grad()
            loss(images[index]).backward()
            optimizer.step()
            updates += 1
        schedule.step()
        epoch += 1
    spent = time.process_time() - begin
    nets.eval()

    def draw(labels: Tensor, seed: int) -> Tensor:
        z = torch.randn(len(labels), latents, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            return torch.cat([show(part) for part in z.split(500)])

    return Trained(draw, updates, spent, size(nets[1]))
