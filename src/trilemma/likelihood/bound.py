"""Variational bounds on log p(x), term by term and each with its standard error.

In continuous time, between log-SNRs a < b and with l = log(alpha^2 / sigma^2) and D = E[x | x_l] from the denoiser,

    -log p(x) <= KL(q(x_a | x) || pi) + 1/2 int_a^b E|eps - eps_hat|^2 dl + E[-log p(x | x_b)],              (1)
    |eps - eps_hat|^2 = e^l |x - D|^2,

with equality for the exact denoiser, pi the law of x_a and p(x | x_b) the law of x. No process and no clock appear: a schedule
l(u), u uniform, only says where the integral is sampled, as E[|eps - eps_hat|^2 (-dl/du)] / 2. The two ends keep (1) finite:

    KL = SNR_a |x|^2 / 2                                            for pi = N(0, sigma_a^2),                (2)
    -log N(x; D, e^-b) = d/2 (log 2 pi - b) + e^b |x - D|^2 / 2     for data with a density,                 (3)
    -log softmax_k(-e^b (x_b/alpha_b - v_k)^2 / 2) at the value of x, summed over coordinates,  for data on values v_k.  (4)

What (2) leaves out is O(e^a); what (3) leaves out is O(e^-2b), since with the precision P of x near a point both the rest of the
integral and the decoder are -tr(P) e^-b / 2 to first order. Where there is a density the integrand tends to d/2 and its noise to
that of |eps|^2 / 2, however good the denoiser. Both belong to the denoiser of N(0, s^2), whose error is known,

    E|e^(l/2) (1 - q) x - q eps|^2 = q (1 - q) |x|^2 / s^2 + q^2 d,     q = sigmoid(l + 2 log s),
    int of it over l = q |x|^2 / s^2 + (log(1 + e^(l + 2 log s)) - q) d,                                     (5)

so only the difference between the two errors is sampled, with the same noise. It vanishes at both ends.

On a grid t_N > ... > t_0 the bound is DDPM's, with the mean a x_t + b D and variance v of q(x_s | x_t, D) and c^2 of the sampler,

    L_s = [d log(c^2/v) + d (v/c^2 - 1) + b^2 |x - D|^2 / c^2] / 2,                                          (6)

for each step, KL(q(x_N | x) || pi) before, and -log p(x | x_0) after them.

Sources: Kingma et al. 2021 (arXiv:2107.00630), equations (11) to (18); Ho et al. 2020 (arXiv:2006.11239), equation (5); Kong et
al. 2023 (arXiv:2302.03792) for the equality at every x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._names import unknown
from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..numerics.shapes import pad
from ..process.gaussian import GaussianProcess
from ..sampling.linear import ddpm
from ..sampling.loop import check_grid
from ..sampling.start import check
from .field import model_dtype
from .terms import Prior, Term, bin_nll, bin_of, gaussian_nll, prior_term, softmax_nll

__all__ = ["Bound", "StepBound", "Term", "discrete_bound", "elbo", "eps_error", "level_ends"]

_END = 14.0  # log-SNR at which the integral ends on either side, if the process goes on
_LATTICES = 8  # independent sets of times, whose spread is the standard error

Seeds = int | Sequence[int] | Tensor | torch.Generator
Cond = dict[str, Tensor]


@dataclass(frozen=True)
class Bound:
    """A lower bound on log p(x), shape ``(B,)``, in nats: minus the sum of its terms.

    Args:
        log_prob: the bound; of the density, or of the probability for data on values.
        stderr: its standard error.
        prior: what the noise at the first end costs.
        diffusion: the integral, or the sum over the steps.
        reconstruction: what is left to say at the last end.
        calls: of the denoiser, for each item.
    """

    log_prob: Tensor
    stderr: Tensor
    prior: Term
    diffusion: Term
    reconstruction: Term
    calls: int


@dataclass(frozen=True)
class StepBound(Bound):
    """A bound on a grid.

    Args:
        steps: the terms L_s of its steps, shape ``(B, N)``, in the order of the grid; their sum is ``diffusion``.
        ts: the grid that was used, ``(N + 1,)``; its last time is that of the decoder.
    """

    steps: Term
    ts: Tensor


def elbo(
    denoiser: Denoiser,
    x: Tensor,
    *,
    samples: int = 64,
    times: str = "low_discrepancy",
    schedule: GaussianProcess | None = None,
    ends: tuple[float, float] | None = None,
    bins: Tensor | None = None,
    prior: Prior | None = None,
    seeds: Seeds = 0,
    cond: Cond | None = None,
    batch: int = 256,
) -> Bound:
    """The bound (1) in continuous time.

    Args:
        denoiser: of any process, wrapped or not.
        x: clean items, ``(B, ...)``, model units.
        samples: draws of the integrand for each item; a multiple of 8 for low-discrepancy times, of 2 for antithetic ones.
        times: how an item's times are spread: ``"low_discrepancy"``, 8 lattices moved at random; ``"antithetic"``, pairs u and
            1 - u; ``"independent"``.
        schedule: its log-SNR at uniform times is where the integrand is sampled, such as that of
            :func:`~trilemma.likelihood.schedule.fit_schedule`; the log-SNR is uniform without it. Changes the error only.
        ends: the log-SNRs a and b; without it those of the process, as far as they lie within -14 and 14, and with ``bins`` the
            level at which half a bin is 3 sigma/alpha.
        bins: the values that an element of ``x`` can have, increasing, shape ``(K,)``; then (4), and the bound is on the
            logarithm of a probability. Without it (3), on that of a density.
        prior: log-density of x_a, ``(B, ...)`` to ``(B,)``; N(0, sigma_a^2), from which samplers start, without it.
        seeds: of the noise, one integer or one an item.
        cond: conditions of the items.
        batch: evaluations at once.

    Returns:
        The bound with its terms, float64.

    Raises:
        ValueError: an option is out of range, ``x`` is not on the bins, or the schedule does not reach the ends.

    Cost:
        ``samples + 8`` calls an item.

    Error:
        Unbiased. O(1 / sqrt(samples)), and of higher order in the part that comes from the times.

    Differs:
        VDM trains with one time an item, spread over the batch; here they are spread over the draws of each item, which so does
        not depend on its neighbours.

    Source: Kingma et al. 2021, equation (17) and appendix I.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import Flow
    >>> exact = GaussianDenoiser(Flow(), torch.zeros(2), Covariances.diagonal(torch.ones(1, 2)))
    >>> [round(v, 4) for v in elbo(exact, torch.tensor([[0.0, 0.0], [1.0, 2.0]])).log_prob.tolist()]  # the truth: -log(2 pi)
    [-1.8379, -4.3379]
    """
    groups, points = _spread(times, samples)
    device, cond = check(denoiser, x.shape, x, cond)
    x, noise, process = x.to(device), Noise(seeds, len(x)), denoiser.process
    low, high = level_ends(process, ends, bins)
    u = noise.at(0).uniform((len(x), groups, 1), dtype=torch.float64)
    u = torch.cat([u, 1 - u], 2) if times == "antithetic" else (u + torch.arange(points).double() / points) % 1
    levels, rates = _levels(schedule, low, high, u.to(device))
    scales = (getattr(module, "sigma_data", None) for module in denoiser.modules())  # of the model, wrapped or not
    scale = float(next((value for value in scales if value is not None), 1.0))
    draws = []
    for g in range(groups):
        eps = noise.at(1, g).normal((len(x), points, *x.shape[1:]), dtype=model_dtype(denoiser, x), device=device)
        error = eps_error(denoiser, x, levels[:, g], eps, cond=cond, scale=scale if bins is None else None, batch=batch)
        draws.append((error * rates[:, g]).mean(1) / 2)
    start, last = (process.time(torch.tensor(level, dtype=torch.float64)) for level in (low, high))
    count = min(samples, _LATTICES)
    if bins is not None:
        decoded = torch.stack([softmax_nll(process, x, last, bins, noise.at(2, k)) for k in range(count)])
        known = torch.zeros(len(x), dtype=torch.float64, device=device)
    else:
        eps = noise.at(2).normal((len(x), count, *x.shape[1:]), dtype=model_dtype(denoiser, x), device=device)
        level = torch.full((len(x), count), high, dtype=torch.float64, device=device)
        error = eps_error(denoiser, x, level, eps, cond=cond, scale=scale, batch=batch).T
        dim = x[0].numel()
        decoded = dim / 2 * (math.log(2 * math.pi) - high) + (error + _gaussian_error(x, high, scale)[0]) / 2  # (3)
        known = (_gaussian_error(x, high, scale)[1] - _gaussian_error(x, low, scale)[1]) / 2
    begin = prior_term(denoiser, x, start, prior, noise.at(3), min(samples, 64))
    calls = samples + (0 if bins is not None else count)
    return Bound(**_total(begin, Term.of(torch.stack(draws) + known), Term.of(decoded)), calls=calls)


def _gaussian_error(x: Tensor, level: float, scale: float) -> tuple[Tensor, Tensor]:
    """(5) at a log-SNR and its integral up to there, shape ``(B,)``."""
    shift = torch.tensor(level + 2 * math.log(scale), dtype=torch.float64)
    q, size, dim = torch.sigmoid(shift), x.double().flatten(1).square().sum(1) / scale**2, x[0].numel()
    return q * (1 - q) * size + q * q * dim, q * size + (torch.nn.functional.softplus(shift) - q) * dim


def _total(prior: Term, diffusion: Term, reconstruction: Term) -> dict[str, Any]:
    """The fields of a bound from its terms."""
    terms = (prior, diffusion, reconstruction)
    return {
        "log_prob": -torch.stack([term.value for term in terms]).sum(0),
        "stderr": torch.stack([term.stderr for term in terms]).square().sum(0).sqrt(),
        "prior": prior,
        "diffusion": diffusion,
        "reconstruction": reconstruction,
    }


def _spread(times: str, samples: int) -> tuple[int, int]:
    """How many independent sets of times, and how many times in each."""
    unit = {"low_discrepancy": _LATTICES, "antithetic": 2, "independent": 1}
    if times not in unit:
        raise unknown("times", times, unit)
    if samples < 1 or samples % unit[times]:
        raise ValueError(f"samples={samples} must be a positive multiple of {unit[times]} for times={times!r}")
    return (_LATTICES, samples // _LATTICES) if times == "low_discrepancy" else (samples // unit[times], unit[times])


def level_ends(
    process: GaussianProcess, ends: tuple[float, float] | None = None, bins: Tensor | None = None
) -> tuple[float, float]:
    """The log-SNRs a and b between which the integral of :func:`elbo` runs.

    Raises:
        ValueError: they are not in order, or the process does not reach the first.

    >>> from trilemma.process import EDM, Flow
    >>> level_ends(Flow()), tuple(round(end, 3) for end in level_ends(EDM()))
    ((-14.0, 14.0), (-8.764, 14.0))
    """
    lowest = float(process.log_snr(torch.tensor(1.0, dtype=torch.float64)))
    if ends is None:
        if bins is None:
            return max(lowest, -_END), _END
        return max(lowest, -_END), 2 * math.log(6 / float(bins.diff().min()))  # half a bin is three sigma/alpha
    low, high = ends
    if not (lowest - 1e-9 <= low < high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"ends={ends} must be finite, increasing log-SNRs, and {process} begins at {lowest:.4g}")
    return float(low), float(high)


def _levels(schedule: GaussianProcess | None, low: float, high: float, u: Tensor) -> tuple[Tensor, Tensor]:
    """Log-SNRs between the ends for uniform u, and -dl/du."""
    if schedule is None:
        return high + u * (low - high), torch.full_like(u, high - low)
    first, last = (schedule.time(torch.tensor(level, dtype=torch.float64)) for level in (high, low))
    reached = float(schedule.log_snr(last))
    if reached > low + 1e-6:
        raise ValueError(f"{schedule} reaches log-SNR {reached:.4g}, and the bound begins at {low:.4g}; give ends=")
    t = first.to(u.device) + u * (last - first).to(u.device)
    level = schedule.log_snr(t)
    return level, (last - first).to(u.device) * schedule.diffusion2(t) / schedule.sigma(t).square()


@torch.no_grad()
def eps_error(
    denoiser: Denoiser,
    x: Tensor,
    levels: Tensor,
    eps: Tensor,
    *,
    cond: Cond | None = None,
    scale: float | None = None,
    batch: int = 256,
) -> Tensor:
    """The squared error |eps - eps_hat|^2 of (1), or its difference from that of N(0, s^2), an item's draws at its own levels.

    Args:
        denoiser: the model.
        x: clean items, ``(B, ...)``.
        levels: log-SNRs, ``(B, K)``.
        eps: noise values, ``(B, K, ...)``.
        cond: conditions of the items.
        scale: s of (5), whose error with the same noise is subtracted; nothing is without it.
        batch: evaluations at once.

    Returns:
        float64, shape ``(B, K)``.

    Cost:
        K calls an item.

    >>> from trilemma.denoise import FiniteDenoiser
    >>> from trilemma.process import Flow
    >>> zero = FiniteDenoiser(Flow(), torch.zeros(1, 2))
    >>> eps_error(zero, torch.zeros(1, 2), torch.zeros(1, 1), torch.ones(1, 1, 2))              # it knows all about eps
    tensor([[0.]], dtype=torch.float64)
    """
    draws, wide = levels.shape[1], x.double()
    out = torch.empty(levels.shape, dtype=torch.float64, device=x.device)
    for part in torch.arange(len(x)).split(max(1, batch // draws)):
        clean = wide[part, None].expand(-1, draws, *x.shape[1:]).flatten(0, 1)
        values, level = eps[part].flatten(0, 1), levels[part].flatten().double()
        own = {key: value[part].repeat_interleave(draws, 0) for key, value in (cond or {}).items()}
        t = denoiser.process.time(level)
        mean = denoiser(denoiser.process.perturb(clean, t, values.double()).to(values.dtype), t, **own).mean
        snr = denoiser.process.log_snr(t).exp()
        error = snr * (mean.double() - clean).flatten(1).square().sum(1)
        if scale is not None:  # (5)
            q, size = torch.sigmoid(level + 2 * math.log(scale)), clean.flatten(1)
            guess = pad(snr.sqrt() * (1 - q), size) * size - pad(q, size) * values.double().flatten(1)
            error = error - guess.square().sum(1)
        out[part] = error.view(len(part), draws)
    return out


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
    """DDPM's bound on a grid, one term (6) for each step: which step costs what, and what a variance is worth.

    Args:
        denoiser: of any process, wrapped or not.
        x: clean items, ``(B, ...)``, model units.
        ts: decreasing times; a last time of 0 is left to the decoder, which starts at the time before it.
        variance: of the sampler, as in :func:`trilemma.sampling.stochastic.ancestral`: ``"small"``, ``"large"``, ``"learned"``
            or a function of log-SNR such as what ``measure_error`` returns (Analytic-DPM's optimum).
        samples: draws of every term.
        bins: as in :func:`elbo`; the decoder then is the Gaussian's mass between the middles of neighbouring values.
        prior: as in :func:`elbo`, at the first time.
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
            step = (spread / v).log() + (v + b2 * (wide - mean).square()) / spread - 1  # (6)
            steps[k, :, i] = step.flatten(1).sum(1) / 2
    begin = prior_term(denoiser, x, ts[0], prior, noise.at(2), max(samples, _LATTICES))
    total = _total(begin, Term.of(steps.sum(2)), Term.of(torch.stack(decoded)))
    return StepBound(**total, calls=samples * len(ts), steps=Term.of(steps), ts=ts)
