"""Samples of a denoiser beside data.

Laws are compared by the energy distance, over the mean distance of two items of the first,

    (2 E|X - Y| - E|X - X'| - E|Y - Y'|) / E|X - X'|,                                                        (1)

beside that of Gaussian draws with the mean and covariance of the data, and that of the data to themselves.

Source of (1): Szekely and Rizzo 2013.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..sampling import ddpm, sample
from .probe import Reference, levels_of

__all__ = ["Samples", "draw_samples", "relative_energy_distance"]


@dataclass(frozen=True)
class Samples:
    """Samples beside data; distances (1) over E|X - X'| of the data.

    Args:
        shift: mean of the samples less that of the data, in standard deviations of the data.
        scale: standard deviation of the samples over that of the data.
        distance: of samples by the probability flow to the data.
        moved: the same after the samples are shifted and scaled to the data's mean and standard deviation.
        stochastic: of the samples by the flow to those by the reverse equation.
        gaussian: of Gaussian draws to the data.
        floor: of one half of the data to the other.
    """

    shift: float
    scale: float
    distance: float
    moved: float
    stochastic: float
    gaussian: float
    floor: float


def relative_energy_distance(x: Tensor, y: Tensor) -> float:
    """(1), without bias; flat items.

    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> relative_energy_distance(x, x + 3.0) > 10 * abs(relative_energy_distance(x[:250], x[250:]))
    True
    """
    x, y = x.double().flatten(1), y.double().flatten(1)
    within = [torch.cdist(v, v).sum() / (len(v) * (len(v) - 1)) for v in (x, y)]
    return float((2 * torch.cdist(x, y).mean() - within[0] - within[1]) / within[0])


def draw_samples(
    model: Denoiser, x: Tensor, cond: dict[str, Tensor], reference: Reference, draws: int, seeds: int
) -> Samples:
    """Draw by the flow and by the reverse equation, for conditions of the data.

    Args:
        model: the denoiser, on the device of ``x``.
        x: held-out items, ``(N, ...)``.
        cond: their conditions.
        reference: moments of data of the same law.
        draws: samples to draw, N at most.
        seeds: of the noise.

    Cost:
        20 calls a sample for the flow; 60 for the reverse equation, of which half as many are drawn.
    """
    n = min(draws, len(x))
    few = min(n, max(2, (n + 1) // 2))
    own, their = ({key: value[:m] for key, value in cond.items()} for m in (n, few))
    flow = sample(model, (n, *x.shape[1:]), 20, seeds=seeds, cond=own).double()
    ts = model.process.time(
        torch.linspace(levels_of(model, reference.var)[0], 8 - math.log(reference.var), 60).double()
    )
    ts = torch.cat([ts, torch.zeros(1).double()])
    noisy = sample(model, (few, *x.shape[1:]), ts, ddpm, seeds=seeds + 1, cond=their).double()
    if not bool(torch.isfinite(flow).all() and torch.isfinite(noisy).all()):
        return Samples(math.inf, math.inf, math.inf, math.inf, math.inf, math.nan, math.nan)
    real, std = x.double(), reference.var**0.5
    white = Noise(seeds + 2, n).normal((n, len(reference.mean)), dtype=torch.float64).to(x.device)
    normal = white * reference.values.sqrt()
    normal = reference.mean + (normal if reference.basis is None else normal @ reference.basis.T)
    spread = float((flow - flow.mean(0)).square().mean().sqrt())
    centre, aim = flow.mean(), real.mean()
    moved = (flow - centre) * float((real - aim).std() / (flow - centre).std().clamp(min=1e-12)) + aim
    half = len(x) // 2
    return Samples(
        shift=float((flow.mean() - real.mean()) / std),
        scale=spread / std,
        distance=relative_energy_distance(real, flow),
        moved=relative_energy_distance(real, moved),
        stochastic=relative_energy_distance(flow, noisy),
        gaussian=relative_energy_distance(real, normal),
        floor=abs(relative_energy_distance(real[:half], real[half:])) + 2.0 / n,
    )
