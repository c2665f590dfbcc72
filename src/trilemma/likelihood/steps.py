"""DDPM's bound on log p(x): a term for each step of a grid, so that one sees which step costs what.

On t_N > ... > t_0, with the mean a x_t + b D and the variance v of q(x_s | x_t, D), D = E[x | x_t], and the variance c^2 with
which a sampler draws, -log p(x) is at most KL(q(x_N | x) || pi), the sum of

    L_s = [d log(c^2/v) + d (v/c^2 - 1) + b^2 |x - D|^2 / c^2] / 2,                                          (1)

over the steps, and -log p(x | x_0) after them.

Source: Ho et al. 2020 (arXiv:2006.11239), equation (5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..sampling.linear import ddpm
from ..sampling.loop import check_grid
from ..sampling.start import check
from .field import model_dtype
from .terms import Bound, Cond, Prior, Seeds, Term, bin_nll, bin_of, gaussian_nll, prior_term

__all__ = ["StepBound", "discrete_bound"]

_PRIOR_DRAWS = 8  # at least, of a prior term that must be sampled: it costs no call


@dataclass(frozen=True)
class StepBound(Bound):
    """A bound on a grid.

    Args:
        steps: the terms L_s of its steps, shape ``(B, N)``, in the order of the grid; their sum is ``diffusion``.
        ts: the grid that was used, ``(N + 1,)``; its last time is that of the decoder.
    """

    steps: Term
    ts: Tensor


@torch.no_grad()
def _decode(
    denoiser: Denoiser, x: Tensor, t: Tensor, eps: Tensor, cond: Cond, batch: int
) -> tuple[Tensor, Tensor | None]:
    """Mean and variance of x given a draw of x_t, float64, at one time."""
    x_t = denoiser.process.perturb(x.double(), t, eps.double()).to(model_dtype(denoiser, x))
    laws = [
        denoiser(x_t[part], t, **{key: value[part] for key, value in cond.items()})
        for part in torch.arange(len(x)).split(batch)
    ]
    var = None if laws[0].var is None else torch.cat([law.var for law in laws if law.var is not None]).double()
    return torch.cat([law.mean for law in laws]).double(), var


def discrete_bound(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    variance: str | Callable[[Tensor], Tensor] = "small",
    samples: int = 4,
    bins: Tensor | None = None,
    prior: Prior | None = None,
    seeds: Seeds = 0,
    cond: Cond | None = None,
    batch: int = 256,
) -> StepBound:
    """DDPM's bound on a grid, one term (1) for each step: which step costs what, and what a variance is worth.

    Args:
        denoiser: of any process, wrapped or not.
        x: clean items, ``(B, ...)``, model units.
        ts: decreasing times; a last time of 0 is left to the decoder, which starts at the time before it.
        variance: of the sampler, as in :func:`trilemma.sampling.stochastic.ancestral`: ``"small"``, ``"large"``, ``"learned"``
            or a function of log-SNR such as what ``measure_error`` returns (Analytic-DPM's optimum).
        samples: draws of every term.
        bins: as in :func:`~trilemma.likelihood.bound.elbo`; the decoder then is the Gaussian's mass between the middles of
            neighbouring values.
        prior: as there, at the first time.
        seeds: of the noise.
        cond: conditions of the items.
        batch: evaluations at once.

    Returns:
        The bound; ``steps`` has the single terms.

    Raises:
        ValueError: the grid or an option is out of range, or the variance is to be learned and the denoiser gives none.

    Cost:
        ``samples`` calls an item and time.

    Error:
        Unbiased, O(1 / sqrt(samples)).

    Differs:
        The decoder draws with the variance of the choice, E Var[x | x_t], and with sigma^2/alpha^2 for "small" and "large".

    Sources: Ho et al. 2020, equations (5), (8) and (13); Nichol and Dhariwal 2021 (arXiv:2102.09672); Bao et al. 2022
    (arXiv:2201.06503), equation (7).

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import VP
    >>> exact = GaussianDenoiser(VP(), torch.zeros(2), Covariances.diagonal(torch.ones(1, 2)))
    >>> ts = torch.linspace(1, 0, 11, dtype=torch.float64)
    >>> best = lambda log_snr: torch.sigmoid(-log_snr)                                          # Var[x | x_t] of such data
    >>> bound = discrete_bound(exact, torch.zeros(1, 2), ts, variance=best, samples=48)
    >>> abs(float(bound.log_prob) + math.log(2 * math.pi)) < 4 * float(bound.stderr)             # no loss, in ten steps
    True
    """
    if not callable(variance) and variance not in ("small", "large", "learned"):
        raise ValueError(f"variance must be 'small', 'large', 'learned' or a function of log-SNR, got {variance!r}")
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    device, cond = check(denoiser, x.shape, x, cond)
    x, noise, process = x.to(device), Noise(seeds, len(x)), denoiser.process
    ts = check_grid(ts)
    ts = ts[ts > 0]
    if math.isinf(float(process.log_snr(ts[-1]))):
        raise ValueError("nothing can be decoded where alpha = 0; the grid needs a later time with signal")
    if bins is not None:
        bin_of(x, bins)
    wide, steps, decoded = x.double(), torch.zeros(samples, len(x), len(ts) - 1).double().to(device), []
    plan = ddpm(process, ts) if len(ts) > 1 else None
    for k in range(samples):
        for i, t in enumerate(ts):
            mean, var = _decode(denoiser, x, t, noise.at(1, k, i).normal_like(x), cond, batch)
            log_snr = process.log_snr(t)
            if variance in ("small", "large"):
                var = torch.full_like(mean, math.exp(-float(log_snr)))  # of the decoder; a step says its own below
            elif callable(variance):
                var = torch.full_like(mean, float(variance(log_snr)))
            elif var is None:
                raise ValueError("variance='learned' needs a denoiser that gives a variance, and this one gives none")
            if i + 1 == len(ts) or plan is None:
                decoded.append(gaussian_nll(wide, mean, var) if bins is None else bin_nll(wide, mean, var, bins))
                continue
            v, b2 = float(plan.c[i]) ** 2, float(plan.b[i, 0]) ** 2
            spread = {"small": v, "large": float(process.transition(ts[i + 1], t)[1]) ** 2}.get(
                str(variance), v + b2 * var
            )
            spread = torch.as_tensor(spread, dtype=torch.float64)
            step = (spread / v).log() + (v + b2 * (wide - mean).square()) / spread - 1  # (1)
            steps[k, :, i] = step.flatten(1).sum(1) / 2
    begin = prior_term(denoiser, x, ts[0], prior, noise.at(2), max(samples, _PRIOR_DRAWS))
    ends = Term.of(torch.stack(decoded))
    return StepBound(begin, Term.of(steps.sum(2)), ends, samples * len(ts), Term.of(steps), ts)
