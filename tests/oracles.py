"""Answers that do not come from trilemma: textbook formulas in NumPy and SciPy, written densely and without any cleverness.

A mixture of Gaussians stands for the data. Everything is known about it: its density at every noise level, E[x | x_t], and, by
SciPy's adaptive integrator, the exact end of a probability-flow trajectory. Because x/alpha turns every process into the one with
alpha = 1 (Karras et al. 2022), one truth in units of sigma/alpha serves all of them.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from trilemma.denoise import Covariances, MixtureDenoiser
from trilemma.process import EDM, PROCESSES, VP, Cosine, FromBetas, Shifted, Sigmoid, linear_betas

F64 = torch.float64

FAST = (
    "vp",
    "flow",
    "edm",
    "ddpm_zero_snr",
)  # one process of each kind: what is costly runs over the others in the slow tier


def registry(*names, cases=None):
    """All processes of the registry, or of ``cases``, as parameters of a test, those not named marked slow."""
    cases = cases or {name: make() for name, make in PROCESSES.items()}
    return [pytest.param(p, id=name, marks=() if name in names else pytest.mark.slow) for name, p in cases.items()]


# every process of the registry, and some of other settings
PROCESS_CASES = {
    **{name: make() for name, make in PROCESSES.items()},
    "vp_slow": VP(0.5, 8.0),
    "edm_small": EDM(5.0),
    "sigmoid_late": Sigmoid(0.0, 3.0, 0.7),
    "cosine_shifted": Shifted(Cosine(), -1.386),
    "vp_shifted": Shifted(VP(), 2.0),
    "short_chain": FromBetas(linear_betas(10, 0.05, 0.6)),
}


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


class Mixture:
    """sum_k w_k N(m_k, C_k) in D dimensions, by the definition."""

    def __init__(self, weights, means, covs):
        self.weights = np.asarray(weights, float) / np.sum(weights)
        self.means, self.covs = np.asarray(means, float), np.asarray(covs, float)
        self.dim = self.means.shape[1]

    @classmethod
    def example(cls, components=4, dim=2, seed=0, spread=1.0):
        rng = np.random.default_rng(seed)
        roots = rng.normal(size=(components, dim, dim)) * 0.3
        return cls(
            rng.uniform(0.5, 2.0, components),
            spread * rng.normal(size=(components, dim)),
            roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(dim),
        )

    def parts(self, x, alpha, sigma):
        """log w_k N(x; alpha m_k, alpha^2 C_k + sigma^2 I), shape (K, B), and E[x_0 | x, k], shape (K, B, D)."""
        x = np.asarray(x, float).reshape(-1, self.dim)
        logs, means = [], []
        for w, m, c in zip(self.weights, self.means, self.covs):
            s = alpha**2 * c + sigma**2 * np.eye(self.dim)
            rest = (x - alpha * m).T
            gain = np.linalg.solve(s, rest)
            size = self.dim * math.log(2 * math.pi) + np.linalg.slogdet(s)[1]
            logs.append(math.log(w) - 0.5 * (np.sum(rest * gain, 0) + size))
            means.append(m + (alpha * c @ gain).T)
        return np.array(logs), np.array(means)

    def log_prob(self, x, alpha=1.0, sigma=0.0):
        return np.logaddexp.reduce(self.parts(x, alpha, sigma)[0], axis=0)

    def denoise(self, x, alpha, sigma):
        """E[x | x_t]: the regressions of the components, weighted by how likely each is."""
        logs, means = self.parts(x, alpha, sigma)
        return np.einsum("kb,kbd->bd", np.exp(logs - np.logaddexp.reduce(logs, axis=0)), means)

    def torch(self, process) -> MixtureDenoiser:
        means, covs = torch.tensor(self.means), Covariances.full(torch.tensor(self.covs))
        return MixtureDenoiser(process, means, covs, torch.tensor(self.weights))


# where orders and laws are measured: a log-SNR at which little but noise is left, and one at which much is decided
LOW, HIGH = -7.5, 3.0


@cache
def flow_truth(low=LOW, high=HIGH, items=6, seed=3):
    """A mixture, starts x/alpha at log-SNR ``low``, and their exact ends x/alpha at ``high`` on dx/dsigma = (x - D) / sigma."""
    from scipy.integrate import solve_ivp

    mixture = Mixture.example()
    s0, s1 = math.exp(-low / 2), math.exp(-high / 2)
    start = s0 * np.random.default_rng(seed).normal(size=(items, mixture.dim))

    def field(log_sigma, y):
        x = y.reshape(items, mixture.dim)
        return (x - mixture.denoise(x, 1.0, math.exp(log_sigma))).ravel()

    end = solve_ivp(field, (math.log(s0), math.log(s1)), start.ravel(), method="DOP853", rtol=3e-13, atol=1e-13).y[
        :, -1
    ]
    return mixture, torch.tensor(start), torch.tensor(end.reshape(items, mixture.dim))


def lowest(process):
    """The first log-SNR of a measurement: LOW, or that of t = 1 of a process that starts with less noise."""
    return max(LOW, float(process.log_snr(scalar(1.0))))


def log_snr_times(process, low, high, steps):
    """Times of equally spaced log-SNRs between two finite ends."""
    return process.time(torch.linspace(low, high, steps + 1, dtype=F64))


class Basis:
    """A stand-in for Noise that answers every draw with a unit vector, so that an affine sampler shows its coefficients.

    Item 0 gets no noise at all, item 1 none either (it starts from another x), item k + 2 gets 1 in draw number k and 0 in all
    others. Drawing twice at one position is an error: two draws must be independent. With ``again`` it is none: a rule that reads
    the increments of a path sees the same draws again and again, and what it makes of them must be right all the same.
    """

    def __init__(self, items, draws=None, position=(), again=False):
        self.items, self.position, self.again = items, position, again
        self.draws = {} if draws is None else draws

    def at(self, *position):
        return Basis(self.items, self.draws, self.position + position, self.again)

    def normal_like(self, x):
        assert self.again or self.position not in self.draws, f"drawn twice at {self.position}"
        k = self.draws.setdefault(self.position, len(self.draws))
        out = torch.zeros_like(x)
        if k + 2 < self.items:
            out[k + 2] = 1
        return out


def law_of(rule, process, ts, mean, var, again=False):
    """Exact mean and variance of a sampler's state at ts[-1], started from the true law at ts[0], for data N(mean, var) in 1-D.

    For Gaussian data the denoiser is affine, and so is every sampler: x_end = offset + A x_start + sum_k B_k xi_k.
    """
    from trilemma.denoise import Gaussian
    from trilemma.sampling import run

    def denoise(x, t):
        a, s2 = float(process.alpha(t)), float(process.sigma(t)) ** 2
        return Gaussian(mean + a * var / (a * a * var + s2) * (x - a * mean))

    step, n = rule(process, ts), len(ts) - 1
    count = Basis(2, again=again)
    run(step, denoise, torch.zeros(2, 1, dtype=F64), n, count)
    items = len(count.draws) + 2
    x = torch.zeros(items, 1, dtype=F64)
    x[1] = 1
    out = run(step, denoise, x, n, Basis(items, again=again))[:, 0]
    offset, slope, noise = out[0], out[1] - out[0], out[2:] - out[0]
    a, s2 = float(process.alpha(ts[0])), float(process.sigma(ts[0])) ** 2
    return float(offset + slope * a * mean), float(slope**2 * (a * a * var + s2) + noise.square().sum())
