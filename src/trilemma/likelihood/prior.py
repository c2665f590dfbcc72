"""The law of x_1, where the flow ends, and what it costs to take another one for it.

Exact denoisers know it, and what is ``later`` than them. For others it is N(0, r^2 I) with r^2 = alpha(1)^2 d^2 +
sigma(1)^2 and d the standard deviation of the data. What that misses in the log-density of one x_1 = r y is, with b and
H the difference of the scores at y = 0 and its derivative,

    log p(x_1) - log N(x_1; 0, r^2 I) = b^T y + y^T H y / 2 - (|b|^2 + tr H) / 2                             (1)

where p is Gaussian and b and H are small (the last term keeps its integral at one). By (3) of ``field`` the
difference of the scores is -v / tan(theta), so (1) needs v at y and at 0 and the divergence at y. It is 0 where
alpha(1) = 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..denoise.exact import FiniteDenoiser, MixtureDenoiser
from ..numerics.shapes import dot
from .field import Field
from .later import Later

__all__ = ["exact_prior", "gaussian_prior", "mismatch"]


def exact_prior(denoiser: Denoiser, x_1: Tensor) -> Tensor | None:
    """Log p(x_1) of an exact denoiser, shape ``(B,)``; nothing for other denoisers."""
    if isinstance(denoiser, Later):
        return exact_prior(denoiser.model, x_1)
    one = torch.ones((), dtype=torch.float64)
    if isinstance(denoiser, MixtureDenoiser):
        return denoiser.log_prob(x_1, one)
    if isinstance(denoiser, FiniteDenoiser):
        alpha, sigma = float(denoiser.process.alpha(one)), float(denoiser.process.sigma(one))
        data = denoiser.data.double()
        distance = torch.cdist(x_1.double().flatten(1), alpha * data).square() / (2 * sigma**2)
        norm = math.log(len(data)) + data.shape[1] / 2 * math.log(2 * math.pi * sigma**2)
        return torch.logsumexp(-distance, 1) - norm
    return None


def gaussian_prior(x_1: Tensor, r: float) -> Tensor:
    """Log N(x_1; 0, r^2 I), shape ``(B,)``."""
    flat = x_1.double().flatten(1)
    return -0.5 * (flat.square().sum(1) / r**2 + flat.shape[1] * math.log(2 * math.pi * r**2))


def mismatch(field: Field, y: Tensor, index: int) -> Tensor:
    """Equation (1), shape ``(B,)``.

    Args:
        field: the flow.
        y: states at its end, float64, shape ``(B, ...)``.
        index: number of the evaluation, for probes that change.

    Cost:
        Two calls and one trace an item; none where alpha(1) = 0.
    """
    cot = 1 / math.tan(field.end)
    if cot < 1e-12:
        return torch.zeros(len(y), dtype=torch.float64, device=y.device)
    theta, items = torch.full((len(y),), field.end).to(y), torch.arange(len(y), device=y.device)
    v, divergence = field(theta, y, items, index)
    centre = field.flow(theta, torch.zeros_like(y), items)
    return -cot / 2 * (dot(y, v + centre) - divergence.mean(1)) - cot**2 / 2 * dot(centre, centre)
