"""The variational bound on log p(x) in continuous time, term by term and each with its standard error.

Between log-SNRs a < b and with l = log(alpha^2 / sigma^2) and D = E[x | x_l] from the denoiser,

    -log p(x) <= KL(q(x_a | x) || pi) + 1/2 int_a^b E|eps - eps_hat|^2 dl + E[-log p(x | x_b)],              (1)
    |eps - eps_hat|^2 = e^l |x - D|^2,

with equality for the exact denoiser, pi the law of x_a and p(x | x_b) the law of x. No process and no clock appear: a schedule
l(u), u uniform, only says where the integral is sampled, as E[|eps - eps_hat|^2 (-dl/du)] / 2. The two ends keep (1) finite:

    KL = SNR_a |x|^2 / 2                                            for pi = N(0, sigma_a^2),                (2)
    -log N(x; D, e^-b) = d/2 (log 2 pi - b) + e^b |x - D|^2 / 2     for data with a density,                 (3)
    -log softmax_k(-e^b (x_b/alpha_b - v_k)^2 / 2) at the value of x, summed over coordinates,  for data on values v_k.  (4)

What (2) leaves out is O(e^a); what (3) leaves out is O(e^-2b), since with the precision P of x near a point both the rest of the
integral and the decoder are -tr(P) e^-b / 2 to first order. Where there is a density the integrand tends to d/2 and its noise to
that of |eps|^2 / 2, however good the denoiser. Both belong to the denoiser of a Gaussian law as well, whose mean error is known
(``control``), so only the difference between the two errors is sampled, with the same noise. It vanishes at high l.

Sources: Kingma et al. 2021 (arXiv:2107.00630), equations (11) to (18); Kong et al. 2023 (arXiv:2302.03792) for the equality at
every x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._names import unknown
from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from ..sampling.draw import sigma_data_of
from ..sampling.start import check
from .control import Control
from .field import model_dtype
from .terms import Bound, Cond, Prior, Seeds, Term, prior_term, softmax_nll

__all__ = ["bound_control", "elbo", "eps_error", "level_ends"]

_END = 14.0  # log-SNR at which the integral ends on either side, if the process goes on
_LATTICES = 8  # independent sets of times, whose spread is the standard error


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
    control: Control | None = None,
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
        control: the Gaussian law whose error is subtracted draw by draw and added in the mean, such as ``Control.fit(images)``;
            N(0, sigma_data^2) without it, and with ``bins`` none. Changes the error only.
        seeds: of the noise, one integer or one an item.
        cond: conditions of the items.
        batch: evaluations at once.

    Returns:
        The bound with its terms, float64.

    Raises:
        ValueError: an option is out of range, ``x`` is not on the bins, the schedule does not reach the ends, or ``control``
            is a law of other items.

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
    >>> bound = elbo(exact, torch.tensor([[0.0, 0.0], [1.0, 2.0]]), control=Control.isotropic(1.0, 2))
    >>> [round(v, 4) for v in bound.log_prob.tolist()]                                          # the truth: -log(2 pi)
    [-1.8379, -4.3379]
    """
    groups, points = _spread(times, samples)
    device, cond = check(denoiser, x.shape, x, cond)
    x, noise, process = x.to(device), Noise(seeds, len(x)), denoiser.process
    low, high = level_ends(process, ends, bins)
    control = bound_control(denoiser, x, bins, control)
    u = noise.at(0).uniform((len(x), groups, 1), dtype=torch.float64)
    u = torch.cat([u, 1 - u], 2) if times == "antithetic" else (u + torch.arange(points).double() / points) % 1
    levels, rates = _levels(schedule, low, high, u.to(device))
    draws = []
    for g in range(groups):
        eps = noise.at(1, g).normal((len(x), points, *x.shape[1:]), dtype=model_dtype(denoiser, x), device=device)
        error = eps_error(denoiser, x, levels[:, g], eps, control=control, cond=cond, batch=batch)
        draws.append((error * rates[:, g]).mean(1) / 2)
    known = left = torch.zeros(len(x), dtype=torch.float64, device=device)
    if control is not None:  # its integral, and its error at the end
        known, left = control.integral(x, low, high) / 2, control.mean_error(x, high)
    start, last = (process.time(torch.tensor(level, dtype=torch.float64)) for level in (low, high))
    count = min(samples, _LATTICES)
    if bins is not None:
        decoded = torch.stack([softmax_nll(process, x, last, bins, noise.at(2, k)) for k in range(count)])
    else:
        eps = noise.at(2).normal((len(x), count, *x.shape[1:]), dtype=model_dtype(denoiser, x), device=device)
        level = torch.full((len(x), count), high, dtype=torch.float64, device=device)
        error = eps_error(denoiser, x, level, eps, control=control, cond=cond, batch=batch).T
        decoded = x[0].numel() / 2 * (math.log(2 * math.pi) - high) + (error + left) / 2  # (3)
    begin = prior_term(denoiser, x, start, prior, noise.at(3), min(samples, 64))
    calls = samples + (0 if bins is not None else count)
    return Bound(begin, Term.of(torch.stack(draws) + known), Term.of(decoded), calls)


def bound_control(denoiser: Denoiser, x: Tensor, bins: Tensor | None, control: Control | None) -> Control | None:
    """What :func:`elbo` subtracts, on the device of the items: what is given, else N(0, sigma_data^2), or nothing with bins."""
    if control is None and bins is None:
        control = Control.isotropic(sigma_data_of(denoiser), x[0].numel())
    return None if control is None else control.like(x)


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
    control: Control | None = None,
    cond: Cond | None = None,
    batch: int = 256,
) -> Tensor:
    """The squared error |eps - eps_hat|^2 of (1), or its difference from a Gaussian law's, an item's draws at its own levels.

    Args:
        denoiser: the model.
        x: clean items, ``(B, ...)``.
        levels: log-SNRs, ``(B, K)``.
        eps: noise values, ``(B, K, ...)``.
        control: the law whose error with the same noise is subtracted, on the device of ``x``.
        cond: conditions of the items.
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
        error = denoiser.process.log_snr(t).exp() * (mean.double() - clean).flatten(1).square().sum(1)
        if control is not None:
            error = error - control.error(clean, values, level)
        out[part] = error.view(len(part), draws)
    return out
