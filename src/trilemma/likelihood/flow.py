"""Exact log-likelihood by the probability flow (instantaneous change of variables)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..denoise.exact import MixtureDenoiser
from ..numerics.noise import Noise
from ..sampling.angle import norm_at
from ..sampling.draw import sigma_data_of
from ..sampling.start import check
from .field import Field, model_dtype
from .probes import CHANGING, TRACES, estimator
from .solve import adaptive_path, fixed_path

__all__ = ["Likelihood", "log_likelihood"]


@dataclass(frozen=True)
class Likelihood:
    """Log-densities and what is known about their errors."""

    log_prob: Tensor
    stderr: Tensor
    solver_error: Tensor
    prior_mismatch: Tensor
    calls: Tensor
    vjps: Tensor


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
    trace: str = "exact",
    probes: int = 1,
    prior: Callable[[Tensor], Tensor] | None = None,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int | None = None,
) -> Likelihood:
    """Log-density of clean items under the probability flow of a denoiser."""
    device, given = check(denoiser, x.shape, x, cond)
    x = x.to(device)
    if steps is None and trace in CHANGING:
        raise ValueError(f"trace={trace!r} changes its probes along the path, which needs a fixed grid: give steps=64")
    noise = Noise(seeds, len(x))
    estimator(trace, noise, probes)
    scale = sigma_data_of(denoiser)
    parts = []
    for items in torch.arange(len(x)).split(batch or len(x)):
        trace_of = estimator(trace, noise[items], probes)
        field = Field(
            denoiser,
            {k: v[items] for k, v in given.items()},
            scale,
            trace_of,
            model_dtype(denoiser, x),
            len(items),
            device,
        )
        one = torch.ones((), dtype=torch.float64)
        r0, r1 = (float(norm_at(denoiser.process, t, scale)) for t in (0 * one, one))
        y = x[items].double() / r0
        size = y[0].numel()
        if steps is None:
            path = adaptive_path(field, y, 1 if trace == "exact" else probes, rtol=rtol, atol=atol)
        else:
            path = fixed_path(field, y, steps)
        end = path.y * r1
        if prior is not None:
            last = prior(end)
        elif isinstance(denoiser, MixtureDenoiser):
            last = denoiser.log_prob(end, 1.0)
        else:
            last = -0.5 * (path.y.flatten(1).square().sum(1) + size * math.log(2 * math.pi * r1**2))
        samples = path.integral
        log_prob = samples.mean(1) + last.double() + size * math.log(r1 / r0)
        count = samples.shape[1]
        stderr = (
            torch.zeros_like(log_prob) if trace == "exact"
            else samples.std(1) / count**0.5 if count > 1 else torch.full_like(log_prob, torch.nan)
        )  # fmt: skip
        mismatch = torch.full_like(log_prob, torch.nan)
        parts.append((log_prob, stderr, path.error, mismatch, field.calls, field.vjps))
    return Likelihood(*(torch.cat(part) for part in zip(*parts)))
