r"""What a decoder says of the pixels: likelihoods p(x | z) with draws and means.

An item holds D numbers in [-1, 1]. If they are integers 0 .. L-1 in disguise, x_k = -1 + k w with w = 2/(L - 1), a mixture of
logistic laws gives each integer the mass between the middles to its neighbours, and the outer integers the tails as well:

    P(x) = sum_i pi_i [F((x + w/2 - m_i)/s_i) - F((x - w/2 - m_i)/s_i)],   F(u) = 1/(1 + e^-u),                (1)
    F(b) - F(a) = F(b) F(-a) (1 - e^(a - b)).                                                                  (2)

(2) is a product of three numbers that are known to full relative precision, so log P needs no special cases. The mean that is
shown as a picture is that of the law clipped to [-1, 1], at most w/2 from the mean of the integers:

    -1 + integral_{-1}^{1} F((m - t)/s) dt = -1 + s [softplus((m + 1)/s) - softplus((m - 1)/s)].               (3)

For numbers that are no integers there is a normal law with one deviation for all pixels; its likelihood is a density, and the
deviation that maximises it is the root mean square error of the decoder,

    log p(x) = -D/2 log(2 pi sigma^2) - |x - m|^2 / (2 sigma^2),   sigma^2 = mean |x - m|^2 / D.               (4)

Sources: Salimans et al. 2017 (arXiv:1701.05517), section 2.1, for (1); Rybkin et al. 2021 (arXiv:2006.13202), equation 6, for
(4). Differs: the channels of a colour pixel are independent given z, where PixelCNN++ predicts one from the other.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..numerics.noise import Noise
from ..train.config import parse_entry

__all__ = ["Logistic", "NormalPixels", "Pixels", "bits_per_dim", "check_levels", "pixels"]

_SHARPEST = 0.1  # of a bin: the least scale of a logistic, where every likelihood of one integer is 1 up to 1 in 150


class Pixels(nn.Module, ABC):
    """The interface: ``params`` numbers for each channel of each pixel describe its law."""

    params: int
    levels: int  # of the integers, 0 if x is real

    @abstractmethod
    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood of items ``(B, C, ...)`` by the decoder's output ``(B, C * params, ...)``: ``(B,)`` nats."""

    @abstractmethod
    def mean(self, theta: Tensor) -> Tensor:
        """The mean of each pixel, ``(B, C, ...)``: what papers show as samples."""

    @abstractmethod
    def draw(self, theta: Tensor, noise: Noise) -> Tensor:
        """A draw of each pixel, ``(B, C, ...)``: with z from the prior a sample of the model."""


class Logistic(Pixels):
    """The mixture of discretised logistic laws (1).

    Args:
        levels: number L of integers, at least 2: 256 for bytes.
        mixtures: number of components, at least 1.

    Raises:
        ValueError: a number is out of range.

    >>> law = Logistic(levels=3)
    >>> grid = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1)
    >>> theta = torch.tensor([0.3, -1.0]).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    >>> round(law.log_prob(theta, grid).exp().sum().item(), 5)
    1.0
    """

    def __init__(self, levels: int = 256, mixtures: int = 1) -> None:
        super().__init__()
        if levels < 2 or mixtures < 1:
            raise ValueError(f"levels={levels} must be at least 2 and mixtures={mixtures} at least 1")
        self.levels, self.mixtures = levels, mixtures
        self.params = 2 if mixtures == 1 else 3 * mixtures

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales, each ``(B, C, K, ...)``."""
        k = self.mixtures
        theta = theta.float() if theta.dtype == torch.bfloat16 else theta
        theta = theta.unflatten(1, (-1, self.params))
        mean, raw = theta[:, :, :k], theta[:, :, k : 2 * k]
        log_weight = theta[:, :, 2 * k :].log_softmax(2) if k > 1 else torch.zeros_like(mean)
        if k > 1:  # the components start apart, or they would stay together
            shift = torch.linspace(-1, 1, k, dtype=mean.dtype, device=mean.device)
            mean = mean + shift.reshape(-1, *[1] * (mean.ndim - 3))
        least = 2 * _SHARPEST / (self.levels - 1)
        return log_weight, mean, F.softplus(raw + math.log(math.expm1(0.3))) + least  # a scale of 0.3 at raw = 0

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """(1) by (2); see :meth:`Pixels.log_prob`."""
        log_weight, mean, scale = self._split(theta)
        half = 1 / (self.levels - 1)
        x = x.unsqueeze(2).to(mean)
        above, below = (x + half - mean) / scale, (x - half - mean) / scale
        top, bottom = x > 1 - half, x < -1 + half
        log_mass = (
            F.logsigmoid(above).masked_fill(top, 0)
            + F.logsigmoid(-below).masked_fill(bottom, 0)
            + torch.log(-torch.expm1(-2 * half / scale)).expand_as(above).masked_fill(top | bottom, 0)
        )
        return (log_weight + log_mass).logsumexp(2).flatten(1).sum(1)

    def mean(self, theta: Tensor) -> Tensor:
        """(3); see :meth:`Pixels.mean`."""
        log_weight, mean, scale = self._split(theta)
        inside = scale * (F.softplus((mean + 1) / scale) - F.softplus((mean - 1) / scale)) - 1
        return (log_weight.exp() * inside).sum(2)

    def draw(self, theta: Tensor, noise: Noise) -> Tensor:
        """Integers, in units of x; see :meth:`Pixels.draw`."""
        log_weight, mean, scale = self._split(theta)
        u = noise.uniform(mean[:, :, 0].shape, dtype=mean.dtype, device=mean.device)
        if self.mixtures > 1:
            pick = noise.at(1).uniform(u.shape, dtype=mean.dtype, device=mean.device).unsqueeze(2)
            which = (log_weight.exp().cumsum(2)[:, :, :-1] < pick).sum(2, keepdim=True)
            mean, scale = mean.gather(2, which), scale.gather(2, which)
        real = mean[:, :, 0] + scale[:, :, 0] * torch.logit(u)
        top = self.levels - 1
        return (((real + 1) * (top / 2)).round().clamp(0, top) * (2 / top)) - 1


class NormalPixels(Pixels):
    """The normal law (4).

    Args:
        sigma: its deviation; ``None`` learns it as a parameter of the model, 0 takes (4)'s optimum: of the batch in training,
            and of what `follow` has seen otherwise.

    Raises:
        ValueError: sigma is negative.

    >>> law = NormalPixels(sigma=0.5)
    >>> law.log_prob(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)).item()      # two pixels of log(2) - log(2 pi)/2
    -0.4515...
    """

    params, levels = 1, 0

    def __init__(self, sigma: float | None = None) -> None:
        super().__init__()
        if sigma is not None and not 0 <= sigma < math.inf:
            raise ValueError(f"sigma={sigma} must be positive; None learns it, 0 takes the optimum of each batch")
        self.optimal = sigma == 0
        start = torch.tensor(math.log(sigma or 0.3))
        self.log_sigma = nn.Parameter(start) if sigma is None else nn.Buffer(start)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """(4); see :meth:`Pixels.log_prob`."""
        square = (x - theta.to(torch.promote_types(x.dtype, torch.float32))).square().flatten(1)
        log_sigma = self.log_sigma.to(square)
        if self.optimal and self.training:
            log_sigma = 0.5 * square.detach().mean().clamp(min=1e-8).log()
        density = -0.5 * square * torch.exp(-2 * log_sigma) - log_sigma - 0.5 * math.log(2 * math.pi)
        return density.sum(1)

    @torch.no_grad()
    def follow(self, square: Tensor, memory: float = 100.0) -> None:
        """Move the optimal deviation towards a mean square error ``()``; old ones fade to 1/e in ``memory`` updates."""
        if self.optimal:
            log_sigma = 0.5 * square.clamp(min=1e-8).log()
            self.log_sigma.lerp_(log_sigma.to(self.log_sigma), 1 / memory)

    def mean(self, theta: Tensor) -> Tensor:
        """The decoder's output; see :meth:`Pixels.mean`."""
        return theta

    def draw(self, theta: Tensor, noise: Noise) -> Tensor:
        """The decoder's output with noise; see :meth:`Pixels.draw`."""
        return theta + self.log_sigma.exp().to(theta) * noise.normal_like(theta)


def pixels(entry: str) -> Pixels:
    """A likelihood by its entry in a configuration.

    Args:
        entry: ``logistic:levels``, ``logistic:levels,mixtures``; ``normal`` with a learned deviation, ``normal:sigma`` with a
            given one, ``normal:0`` with the optimum of each batch.

    Raises:
        ValueError: it is none of these.

    >>> pixels("logistic:256,5").params
    15
    """
    name, numbers = parse_entry(entry)
    if name == "logistic" and 1 <= len(numbers) <= 2 and all(number == int(number) for number in numbers):
        return Logistic(*(int(number) for number in numbers))
    if name == "normal" and len(numbers) <= 1:
        return NormalPixels(*numbers)
    raise ValueError(
        f"{entry!r} is not a likelihood of pixels; write logistic:256, logistic:256,5, normal or normal:0.1"
    )


def bits_per_dim(nats: Tensor, shape: Sequence[int]) -> Tensor:
    """A log-likelihood of integers as bits an element: ``-nats / (D log 2)``.

    >>> bits_per_dim(torch.tensor([-8 * 64 * math.log(2)]), (1, 8, 8))
    tensor([8.])
    """
    return -nats / (math.prod(shape) * math.log(2))


def check_levels(x: Tensor, levels: int) -> None:
    """Refuse items that are no integers 0 .. levels-1 in units of [-1, 1], since (1) would be no likelihood of them.

    Raises:
        ValueError: naming a number that is none.

    >>> check_levels(torch.tensor([-1.0, 0.0, 0.5]), 5)
    """
    k = (x.double() + 1) * ((levels - 1) / 2)
    wrong = (k - k.round()).abs().gt(1e-3) | (k < -1e-3) | (k > levels - 1 + 1e-3)
    if wrong.any():
        raise ValueError(
            f"the item value {float(x[wrong][0]):g} is none of the {levels} levels of [-1, 1]; "
            "state the levels of the data, or take a normal likelihood"
        )
