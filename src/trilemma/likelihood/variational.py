"""Variational dequantisation: a conditional flow q(u | k), trained by the score alone.

u = b v, v = 2 sigmoid(z) - 1, and z comes from a logistic z_0, for which v is uniform, by an affine map of every number and
affine couplings of one half of the numbers on the other, all conditional on the image:

    log q(v | k) = log logistic(z_0) - sum log scale - sum log dv/dz,     dv/dz = 2 sigmoid(z) sigmoid(-z).  (1)

Untrained, all maps are the identity: q is uniform. Training maximises (1) of ``dequantise``. Its gradient needs no likelihood,
since that of the log-density is the score, one call of the denoiser:

    d/du log p_t(alpha (x + u)) = alpha score(alpha (x + u), t).                                             (2)

Source: Ho et al. 2019 (arXiv:1902.00275), section 3.1; Dinh et al. 2017 (arXiv:1605.08803) for couplings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..sampling.start import check
from .dequantise import to_model_units

__all__ = ["Variational", "train_dequantiser"]

_SCALE = 4.0  # of |log scale| of one map


class _Net(nn.Module):
    """Shift and log scale of every number from ``inputs`` tensors of the item's shape; convolutions, linear for plain vectors."""

    def __init__(self, shape: Sequence[int], inputs: int, hidden: int) -> None:
        super().__init__()
        channels, dims = shape[0], len(shape) - 1
        if dims > 3:
            raise ValueError(
                f"items of shape {tuple(shape)} have {dims} axes beside their channels; at most 3 are known"
            )
        sizes = ((inputs * channels, hidden), (hidden, hidden), (hidden, 2 * channels))
        if dims == 0:
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in sizes)
        else:
            layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
            self.layers = nn.ModuleList(layer(a, b, kernel_size=3, padding=1) for a, b in sizes)
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.cat(parts, 1)
        for layer in self.layers[:-1]:
            h = torch.nn.functional.silu(layer(h))
        shift, raw = self.layers[-1](h).chunk(2, 1)
        return shift, _SCALE * torch.tanh(raw / _SCALE)


class Variational(nn.Module):
    """The law (1), a ``Dequantiser``.

    Args:
        shape: of one item, ``(C, ...)`` with up to three more axes.
        tau: half a bin over the noise of the level at which the density is taken, as of ``TruncatedNormal``.
        hidden: width of the networks.
        couplings: number of couplings, on one half and the other in turn.

    Raises:
        ValueError: the shape has too many axes, or a number is out of range.

    >>> v, log_q = Variational((2, 4, 4)).draw(torch.zeros(3, 2, 4, 4), Noise(0, 3))
    >>> bool(torch.allclose(log_q, torch.tensor(-32 * math.log(2), dtype=torch.float64)))       # uniform as it begins
    True
    """

    name = "variational"

    def __init__(self, shape: Sequence[int], *, tau: float = 3.0, hidden: int = 32, couplings: int = 2) -> None:
        super().__init__()
        if not 0.1 <= tau <= 100 or hidden < 1 or couplings < 0:
            raise ValueError(
                f"tau={tau:g} must lie in [0.1, 100], hidden={hidden} above 0 and couplings={couplings} not below"
            )
        self.shape, self.tau = tuple(shape), float(tau)
        self.affine = _Net(shape, 1, hidden)
        self.couplings = nn.ModuleList(_Net(shape, 2, hidden) for _ in range(couplings))
        places = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
        self.register_buffer("mask", (torch.stack(places).sum(0) % 2).to(torch.float32))

    @property
    def level(self) -> float:
        """1 / tau."""
        return 1 / self.tau

    def draw(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """V and log q(v | x); differentiable in the weights."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"this dequantiser was made for items of shape {self.shape}, not {tuple(x.shape[1:])}")
        image = x.to(next(self.parameters()))
        u = noise.uniform(x.shape, dtype=torch.float64, device=x.device)
        z = torch.logit(u)
        log_q = logsigmoid(z) + logsigmoid(-z)
        shift, log_scale = self.affine(image)
        z, log_q = shift.double() + log_scale.double().exp() * z, log_q - log_scale.double()
        for i, net in enumerate(self.couplings):
            moved = self.get_buffer("mask") if i % 2 else 1 - self.get_buffer("mask")
            v = 2 * torch.sigmoid(z) - 1
            shift, log_scale = net(image, (1 - moved) * v.to(image))
            log_scale = (moved * log_scale).double()
            z, log_q = (moved * shift).double() + log_scale.exp() * z, log_q - log_scale
        log_q = log_q - math.log(2) - logsigmoid(z) - logsigmoid(-z)
        return 2 * torch.sigmoid(z) - 1, log_q.flatten(1).sum(1)


def train_dequantiser(
    denoiser: Denoiser,
    images: Tensor,
    *,
    tau: float = 3.0,
    values: int = 256,
    updates: int = 500,
    batch: int = 64,
    lr: float = 3e-3,
    hidden: int = 32,
    couplings: int = 2,
    seed: int = 0,
    cond: dict[str, Tensor] | None = None,
) -> Variational:
    """Train :class:`Variational` for a denoiser by the gradient (2).

    Args:
        denoiser: any denoiser; it is not changed.
        images: raw integers, shape ``(N, ...)``: training data.
        tau: as of :class:`Variational`.
        values: number of values.
        updates: number of updates, by Adam, the rate falling as a cosine.
        batch: images an update.
        lr: the first rate.
        hidden: as of :class:`Variational`.
        couplings: as of :class:`Variational`.
        seed: of weights and noise.
        cond: conditions for the denoiser, one per image.

    Returns:
        The trained law, in evaluation mode, on the device of the denoiser.

    Raises:
        ValueError: the images are no such integers, or an option is out of range.

    Cost:
        One call of the denoiser an update.

    >>> from trilemma.denoise import Covariances, MixtureDenoiser
    >>> from trilemma.process import VP
    >>> two = MixtureDenoiser(VP(), torch.tensor([[-1.0], [1.0]]), Covariances.diagonal(torch.full((2, 1), 1e-4)))
    >>> law = train_dequantiser(two, torch.tensor([[0], [1]]), values=2, updates=60, batch=32, lr=3e-2)
    >>> v, _ = law.draw(torch.ones(500, 1), Noise(1, 500))
    >>> bool(v.std() < 0.5)                                            # towards 1/3, from 0.58
    True
    """
    if updates < 1 or batch < 1 or not lr > 0:
        raise ValueError(f"updates={updates}, batch={batch} and lr={lr:g} must be positive")
    x = to_model_units(images, values)
    device, given = check(denoiser, x.shape, x, cond)
    x, half, noise = x.to(device), 1 / (values - 1), Noise([seed], 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        law = Variational(x.shape[1:], tau=tau, hidden=hidden, couplings=couplings).to(device)
    process = denoiser.process
    t = process.time(torch.tensor(-2 * math.log(half / tau), dtype=torch.float64))
    alpha = float(process.alpha(t))
    optimiser = torch.optim.Adam(law.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for step in range(updates):
        own = noise.at(step)
        items = (own.uniform((1, batch), dtype=torch.float64)[0] * len(x)).long().to(device)
        v, log_q = law.draw(x[items], Noise(seed, batch).at(step))
        with torch.no_grad():
            x_t = (alpha * (x[items].double() + half * v)).to(x)
            score = denoiser.score(x_t, t, **{key: value[items] for key, value in given.items()}).double()
        loss = (log_q - alpha * half * (score * v).flatten(1).sum(1)).mean() / x[0].numel()  # (2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return law.eval().requires_grad_(False)
