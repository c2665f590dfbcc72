"""Stochastic rules of first order: Euler-Maruyama, reverse diffusion, ancestral sampling with the variances of the literature.

The reverse of dx = f x dt + g dw is, with the score (alpha D - x)/sigma^2, for every eta >= 0

    dx = (f x - (1 + eta^2)/2 g^2 score) dt + eta g dw,                                                      (1)

run backwards. From t to an earlier s, and with r and G the scale and the standard deviation of the forward step from s to t,

    Euler-Maruyama:      x_s = x - (t - s) (f x - (1 + eta^2)/2 g^2 score) + eta g sqrt(t - s) xi,           (2)
    reverse diffusion:   x_s = (2 - r) x + G^2 score + G xi,                                                 (3)
    ancestral:           x_s = a x + b D + c xi,     a = (r sigma_s^2)/sigma_t^2,  b = alpha_s (1 - e^(l_t - l_s)),   (4)

the last with the mean of q(x_s | x_t, x). Its variance is that of q, c^2 = v = sigma_s^2 (1 - e^(l_t - l_s)), if D is the truth
("small"); G^2, if the data are white noise ("large"); and by the law of total variance

    c^2 = v + b^2 Var[x | x_t],                                                                              (5)

either from the denoiser, item by item, or averaged over x_t as a function of the noise level, the best constant.

Sources: Song et al. 2021 (arXiv:2011.13456), appendices D to F; Ho et al. 2020 (arXiv:2006.11239); Bao et al. 2022
(arXiv:2201.06503) for (5) averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from .linear import ddim, ddpm
from .loop import Carry, Denoise, Step, check_grid
from .plan import Plan

__all__ = [
    "ErrorCurve",
    "ancestral",
    "euler_ancestral",
    "euler_maruyama",
    "gaussian_error",
    "measure_error",
    "reverse_diffusion",
]

euler_ancestral = ddim
"""k-diffusion's ``sample_euler_ancestral``: sigma_up^2 = eta^2 sigma_s^2 (1 - sigma_s^2/sigma_t^2) is DDIM's, in sigma/alpha."""


def _signal(process: GaussianProcess, ts: Tensor, name: str) -> None:
    """Refuse a start where alpha = 0."""
    if float(process.alpha(ts[0])) == 0:
        raise ValueError(f"{name} is singular where alpha = 0; start later than t = 1, or use ddpm")


def _finish(process: GaussianProcess, ts: Tensor, table: Tensor, *, mean: bool) -> Plan:
    """The plan of rows (a, b, c); the step to t = 0 is x = D, and with ``mean`` the last step adds no noise wherever it ends."""
    if ts[-1] == 0:
        table[-1] = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    if mean:
        table[-1, 2] = 0
    return Plan(ts, table[:, :1], table[:, 1:2], table[:, 2])


@dataclass(frozen=True)
class _EulerMaruyama:
    """The rule :func:`euler_maruyama`."""

    eta: float
    mean: bool

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        _signal(process, ts, "Euler-Maruyama")
        t, gap = ts[:-1], -ts.diff()
        alpha, sigma2, g2 = process.alpha(t), process.sigma(t) ** 2, process.diffusion2(t)
        pull = gap * g2 / sigma2 * (1 + self.eta**2) / 2
        rows = torch.stack([1 - gap * process.drift(t) - pull, alpha * pull, self.eta * (g2 * gap).sqrt()], 1)
        return _finish(process, ts, rows, mean=self.mean)


def euler_maruyama(eta: float = 1.0, *, mean: bool = False) -> _EulerMaruyama:
    """Euler and Maruyama's method (2) in the time of the process.

    Args:
        eta: amount of noise; 1 for the reverse equation, 0 for Euler's method on the probability flow.
        mean: whether the last step adds no noise, where the grid ends before t = 0 ("denoise" in score_sde).

    Raises:
        ValueError: eta is negative; and when bound to a grid that starts where alpha = 0.

    Cost:
        One call a step.

    Error:
        O(t - s) in the law. It is an explicit method: steps much longer than 1/g^2 (in units of sigma^2) overshoot.

    Differs:
        A last step to t = 0, where score_sde stops at t = 1e-5 or 1e-3, is x = D.

    Source: Song et al. 2021, equation (6) and appendix D.

    >>> from trilemma.process import VP
    >>> euler_maruyama()(VP(), torch.tensor([1.0, 0.9])).c                                        # g = sqrt(20)
    tensor([1.4142], dtype=torch.float64)
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be a finite number, at least 0, got {eta}")
    return _EulerMaruyama(eta, mean)


@dataclass(frozen=True)
class _ReverseDiffusion:
    """The rule :func:`reverse_diffusion`."""

    mean: bool

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        _signal(process, ts, "reverse diffusion")
        r, std = process.transition(ts[1:], ts[:-1])
        pull = (std / process.sigma(ts[:-1])) ** 2
        rows = torch.stack([2 - r - pull, process.alpha(ts[:-1]) * pull, std], 1)
        return _finish(process, ts, rows, mean=self.mean)


def reverse_diffusion(*, mean: bool = False) -> _ReverseDiffusion:
    """The forward chain turned round step by step, equation (3); the predictor of the paper's best samples.

    Args:
        mean: whether the last step adds no noise, where the grid ends before t = 0.

    Raises:
        ValueError: when bound to a grid that starts where alpha = 0.

    Cost:
        One call a step.

    Error:
        O(h) in the law.

    Differs:
        The chain is that of the grid, whatever its times; a last step to t = 0 is x = D.

    Source: Song et al. 2021, equation (46).

    >>> from trilemma.process import EDM
    >>> print(reverse_diffusion()(EDM(1.0), torch.tensor([1.0, 0.8])).c)              # sqrt(1 - 0.8^2)
    tensor([0.6000], dtype=torch.float64)
    """
    return _ReverseDiffusion(mean)


@dataclass(frozen=True)
class ErrorCurve:
    """E Var[x | x_t], a coordinate's mean, as a function of the log-SNR: linear between the points, on a logarithmic scale.

    Args:
        log_snr: increasing.
        var: positive, one for each.

    >>> ErrorCurve((0.0, 2.0), (1.0, 0.01))(torch.tensor([-torch.inf, 1.0, 9.0]))
    tensor([1.0000, 0.1000, 0.0100])
    """

    log_snr: tuple[float, ...]
    var: tuple[float, ...]

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The curve at log-SNRs of any shape; beyond its ends it is constant."""
        x, y = torch.tensor(self.log_snr).to(log_snr), torch.tensor(self.var).to(log_snr).log()
        if len(x) == 1:
            return y.exp().expand_as(log_snr)
        at = log_snr.clamp(float(x[0]), float(x[-1])).contiguous()
        k = torch.searchsorted(x, at).clamp(1, len(x) - 1)
        return torch.exp(y[k - 1] + (y[k] - y[k - 1]) * (at - x[k - 1]) / (x[k] - x[k - 1]))


def gaussian_error(sigma_data: float = 1.0) -> Callable[[Tensor], Tensor]:
    """E Var[x | x_t] of Gaussian data: s^2 / (1 + s^2 SNR), an upper bound for all data of that variance.

    >>> gaussian_error()(torch.tensor([-torch.inf, 0.0, torch.inf]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data must be a finite positive number, got {sigma_data}")
    return lambda log_snr: sigma_data**2 * torch.sigmoid(-log_snr - 2 * math.log(sigma_data))


@torch.no_grad()
def measure_error(
    denoiser: Denoiser, x: Tensor, ts: Tensor, noise: Noise, *, cond: dict[str, Tensor] | None = None
) -> ErrorCurve:
    """Measure E Var[x | x_t] of a denoiser as its mean squared error: the statistics of Analytic-DPM.

    Args:
        denoiser: the model.
        x: clean items, ``(B, ...)``.
        ts: times to measure at, decreasing in [0, 1], at least two; those at t = 0 and where alpha = 0 are left out.
        noise: source with ``B`` items.
        cond: conditions of the items.

    Cost:
        One call a time.

    Error:
        O(1 / sqrt(B d)) relative.

    Differs:
        The paper has sigma^2/alpha^2 (1 - E|eps|^2/d), which is the same for an exact denoiser but cancels at low SNR.

    Source: Bao et al. 2022, equations (8) and (9).
    """
    ts = check_grid(ts)
    levels, errors = [], []
    for i, t in enumerate(ts):
        log_snr = float(denoiser.process.log_snr(t))
        if math.isfinite(log_snr):
            error = denoiser(denoiser.process.perturb(x, t, noise.at(i)), t, **(cond or {})).mean - x
            levels.append(log_snr)
            errors.append(max(float(error.square().mean(dtype=torch.float64)), 1e-300))
    return ErrorCurve(tuple(levels), tuple(errors))


@dataclass(frozen=True)
class _Ancestral:
    """The rule :func:`ancestral`."""

    variance: str | Callable[[Tensor], Tensor]

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan | Step:
        small = ddpm(process, ts)
        if self.variance == "small":
            return small
        if self.variance == "learned":
            return _learned(small)
        if callable(self.variance):
            c = (small.c**2 + small.b[:, 0] ** 2 * self.variance(process.log_snr(ts[:-1]))).sqrt()
        else:
            c = process.transition(ts[1:], ts[:-1])[1]
        return Plan(ts, small.a, small.b, torch.where(ts[1:] > 0, c, 0.0))


def _learned(small: Plan) -> Step:
    """(5) with the variance that the denoiser gives."""
    rows = list(zip(small.a[:, 0].tolist(), small.b[:, 0].tolist(), small.c.tolist()))
    times = list(small.ts.unbind())

    def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
        a, b, c = rows[i]
        law = denoise(x, times[i])
        x = (x * a).add_(law.mean, alpha=b)
        if times[i + 1] > 0:
            xi = noise.normal_like(x)
            x.add_(xi.mul_(c) if law.var is None else xi.mul_(law.var.mul(b * b).add_(c * c).sqrt_()))
        return x, None

    return step


def ancestral(variance: str | Callable[[Tensor], Tensor] = "small") -> _Ancestral:
    """Ancestral sampling (4), by the variance that it draws with.

    Args:
        variance: ``"small"``, that of q(x_s | x_t, x), which is DDPM; ``"large"``, that of q(x_t | x_s), beta of the step;
            ``"learned"``, (5) with the ``var`` of the denoiser's posterior, as DDPM where it gives none; or a function from
            log-SNR to E Var[x | x_t] for (5), such as :func:`gaussian_error` or what :func:`measure_error` returns: Analytic-DPM.

    Raises:
        ValueError: there is no such variance.

    Cost:
        One call a step.

    Error:
        O(h) in the law; none with (5) where x is Gaussian.

    Differs:
        Learned variances were published as an interpolation between "small" and "large"; a posterior variance of x says the same.

    Sources: Ho et al. 2020, section 3.2; Nichol and Dhariwal 2021 (arXiv:2102.09672); Bao et al. 2022, equation (7).

    >>> from trilemma.process import EDM
    >>> ancestral("large")(EDM(1.0), torch.tensor([1.0, 0.6])).c
    tensor([0.8000], dtype=torch.float64)
    """
    if not callable(variance) and variance not in ("small", "large", "learned"):
        raise ValueError(f"variance must be 'small', 'large', 'learned' or a function of log-SNR, got {variance!r}")
    return _Ancestral(variance)
