"""The terms of a variational bound on log p(x) at its two ends, and what a term and a bound are.

For x_t = alpha x + sigma eps, SNR = alpha^2 / sigma^2, l = log SNR, and d elements,

    KL(q(x_t | x) || N(0, sigma^2)) = SNR |x|^2 / 2,                                                         (1)
    -log N(x; m, v) = [log(2 pi v) + (x - m)^2 / v] / 2                       data with a density,           (2)
    -log softmax_k(-SNR (x_t/alpha - v_k)^2 / 2) at the value of x            data on values v_k,            (3)
    -log [Phi((x_+ - m)/sqrt v) - Phi((x_- - m)/sqrt v)]                      the same, by a Gaussian,       (4)

each of the last three summed over elements; x_- and x_+ are the middles between the value of x and its neighbours, infinite at
the first and at the last value. For another prior pi, (1) is corrected by E[log N(x_t; 0, sigma^2) - log pi(x_t)] over draws.

Sources: Kingma et al. 2021 (arXiv:2107.00630), appendix G, for (3); Ho et al. 2020 (arXiv:2006.11239), equation (13), for (4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..denoise.exact import MixtureDenoiser
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess

__all__ = ["Bound", "Term", "bin_nll", "bin_of", "gaussian_nll", "prior_term", "softmax_nll"]

Prior = Callable[[Tensor], Tensor]
Seeds = int | Sequence[int] | Tensor | torch.Generator
Cond = dict[str, Tensor]


@dataclass(frozen=True)
class Term:
    """A term of a bound in nats and its standard error, item by item; NaN for one draw, which shows no spread."""

    value: Tensor
    stderr: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> Term:
        """From independent draws, shape ``(draws, B, ...)``.

        >>> Term.of(torch.tensor([[1.0], [3.0]])).stderr
        tensor([1.])
        """
        n = len(draws)
        error = draws.std(0) / math.sqrt(n) if n > 1 else torch.full_like(draws[0], torch.nan)
        return cls(draws.mean(0), error)


@dataclass(frozen=True)
class Bound:
    """A lower bound on log p(x), shape ``(B,)``, in nats: minus the sum of its terms.

    Args:
        prior: what the noise at the first end costs.
        diffusion: the integral, or the sum over the steps.
        reconstruction: what is left to say at the last end.
        calls: of the denoiser, for each item.
    """

    prior: Term
    diffusion: Term
    reconstruction: Term
    calls: int

    @property
    def log_prob(self) -> Tensor:
        """The bound; of the density, or of the probability for data on values."""
        return -(self.prior.value + self.diffusion.value + self.reconstruction.value)

    @property
    def stderr(self) -> Tensor:
        """Its standard error: the terms' draws are independent."""
        terms = (self.prior, self.diffusion, self.reconstruction)
        return torch.stack([term.stderr for term in terms]).square().sum(0).sqrt()


def prior_term(denoiser: Denoiser, x: Tensor, t: Tensor, prior: Prior | None, noise: Noise, draws: int) -> Term:
    """(1), or KL(q(x_t | x) || pi) for a given or, for mixtures, the true law pi.

    Args:
        denoiser: says the process, and the law of x_t if it is a mixture's.
        x: clean items, ``(B, ...)``.
        t: the time of the first end.
        prior: log-density of x_t, ``(B, ...)`` to ``(B,)``.
        noise: source with ``B`` items.
        draws: of x_t, for a prior that is not (1)'s.
    """
    process, wide = denoiser.process, x.double()
    flat = wide.flatten(1)
    value = process.log_snr(t).exp().to(x.device) * flat.square().sum(1) / 2
    if prior is None and isinstance(denoiser, MixtureDenoiser):
        prior = lambda x_t: denoiser.log_prob(x_t, float(t))  # noqa: E731
    if prior is None:
        return Term(value, torch.zeros_like(value))
    gaps, var = [], float(process.sigma(t)) ** 2
    for k in range(draws):
        x_t = process.perturb(wide, t, noise.at(k))
        normal = -gaussian_nll(x_t, torch.zeros_like(x_t), torch.full_like(x_t, var))
        gaps.append(normal - prior(x_t.to(x.dtype)).double())
    gap = Term.of(torch.stack(gaps))
    return Term(value + gap.value, gap.stderr)


def gaussian_nll(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """(2), summed over elements: shape ``(B,)``."""
    return ((2 * math.pi * var).log() + (x - mean).square() / var).flatten(1).sum(1) / 2


def bin_of(x: Tensor, bins: Tensor) -> Tensor:
    """Which of the increasing values ``bins`` each element of ``x`` has, int64.

    Raises:
        ValueError: the values do not increase, or an element is none of them.

    >>> bin_of(torch.tensor([[-1.0, 1.0]]), torch.tensor([-1.0, 0.0, 1.0]))
    tensor([[0, 2]])
    """
    if bins.ndim != 1 or len(bins) < 2 or not bool((bins.diff() > 0).all()):
        raise ValueError(f"bins must be at least two increasing values, shape (K,), got shape {tuple(bins.shape)}")
    bins = bins.to(x)
    k = torch.searchsorted((bins[1:] + bins[:-1]) / 2, x.contiguous())
    off = float((x - bins[k]).abs().max())
    if off > 1e-2 * float(bins.diff().min()):
        raise ValueError(
            f"x has an element {off:.3g} away from the nearest of {len(bins)} values; give the values in model units, such as "
            "torch.linspace(-1, 1, 256) for bytes, or leave bins out for data with a density"
        )
    return k


def softmax_nll(process: GaussianProcess, x: Tensor, t: Tensor, bins: Tensor, noise: Noise) -> Tensor:
    """(3) at one draw of x_t, summed over elements: shape ``(B,)``."""
    values, own = bins.to(x.device).double(), bin_of(x, bins)
    snr = float(process.log_snr(t).exp())
    z = process.perturb(x.double(), t, noise) / float(process.alpha(t))
    total = torch.full_like(z, -torch.inf)
    for value in values:  # one at a time: memory of one image, whatever the number of values
        total = torch.logaddexp(total, -snr / 2 * (z - value).square())
    return (total + snr / 2 * (z - values[own]).square()).flatten(1).sum(1)


def bin_nll(x: Tensor, mean: Tensor, var: Tensor, bins: Tensor) -> Tensor:
    """(4), summed over elements, exact far out in the tails: shape ``(B,)``."""
    values, own = bins.to(x.device).double(), bin_of(x, bins)
    infinite = torch.full_like(values[:1], torch.inf)
    edges = torch.cat([-infinite, (values[1:] + values[:-1]) / 2, infinite])
    std = var.sqrt()
    low, high = (edges[own] - mean) / std, (edges[own + 1] - mean) / std
    flip = low + high > 0  # log Phi is exact in its left tail; low + high is never inf - inf
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return -(top + torch.log(-torch.expm1(bottom - top))).flatten(1).sum(1)
