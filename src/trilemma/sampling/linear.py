"""Rules whose steps are linear in past states and past denoised states: exponential integrators, DDPM and DDIM.

In lambda = log(alpha/sigma), half the log-SNR, with D = E[x | x_t] and eps = (x_t - alpha D) / sigma, every process obeys for
every eta >= 0 the two equivalent laws

    d(x/sigma) = -eta^2 (x/sigma) dlambda + (1 + eta^2) e^lambda D dlambda + eta sqrt(2) dw,                 (1)
    d(x/alpha) = -(1 + eta^2) e^-lambda eps dlambda + eta sqrt(2) e^-lambda dw,                              (2)

which share their marginals: eta = 0 is the probability flow, eta = 1 the reverse of the forward equation, and eta = inf draws
every x_t afresh from D (consistency sampling). Over a step of length h from s to t, with D or eps replaced by the polynomial
through its last values and the exponential weight integrated exactly,

    x_t = (sigma_t/sigma_s) e^(-eta^2 h) x_s + alpha_t sum_j B_j D_j + sigma_t sqrt(1 - e^(-2 eta^2 h)) xi,  (3)
    x_t = (alpha_t/alpha_s) x_s - alpha_t (sigma_s/alpha_s) (1 + eta^2) sum_j N_j eps_j
          + eta sigma_t sqrt(e^(2h) - 1) xi,                                                                 (4)

where B integrates polynomials against e^(u - H) on [0, H], H = (1 + eta^2) h, and N against e^-u on [0, h].

Where lambda is infinite (t = 0 always, t = 1 where alpha = 0) a polynomial in lambda means nothing. Such a step, and a value of
the past at such a time, are left to the order that is defined: the last step to t = 0 is x = D.

Sources: Lu et al. 2022 (arXiv:2211.01095) for (3); Zhang and Chen 2023 (arXiv:2204.13902) and Gonzalez et al. 2023
(arXiv:2305.14267) for (4); Ho et al. 2020 and Song et al. 2021 (arXiv:2010.02502) for the first order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.linear import lagrange_weights
from ..process.gaussian import GaussianProcess
from .plan import Plan

__all__ = ["Exponential", "ddim", "ddpm", "dpmpp_2m", "dpmpp_3m", "exponential"]


@dataclass(frozen=True)
class _Curves:
    """alpha, sigma and lambda along a grid, as python floats."""

    alpha: list[float]
    sigma: list[float]
    lam: list[float]

    @classmethod
    def along(cls, process: GaussianProcess, ts: Tensor) -> _Curves:
        return cls(process.alpha(ts).tolist(), process.sigma(ts).tolist(), (process.log_snr(ts) / 2).tolist())

    def gap(self, i: int) -> float:
        """H of step i."""
        return self.lam[i + 1] - self.lam[i]

    def usable(self, i: int, order: int) -> int:
        """How many values of the past a polynomial in lambda can use in step i, at least one."""
        if math.isinf(self.gap(i)):
            return 1
        count = 0
        while count < min(order, i + 1) and math.isfinite(self.lam[i - count]):
            count += 1
        return max(count, 1)


def _published(curves: _Curves, i: int, count: int, factor: float) -> list[float]:
    """Weights B_j of DPM-Solver++ as its paper has them, with h and H = factor h.

    Two values: D_0 + (D_0 - D_1) / (2 r), the derivative taken at the middle of the step. Three values: the second derivative
    enters with half its weight.
    """
    h = curves.gap(i)
    full, first = factor * h, -math.expm1(-factor * h)
    if count == 1:
        return [first]
    r0 = (curves.lam[i] - curves.lam[i - 1]) / h
    if count == 2:
        slope = first / (2 * r0)
        return [first + slope, -slope]
    r1 = (curves.lam[i - 1] - curves.lam[i - 2]) / h
    second = 1 - first / full  # the paper's psi_2 and psi_3
    third = second / full - 0.5
    near, far = 1 / r0, 1 / r1  # D1_0 = near (D_0 - D_1), D1_1 = far (D_1 - D_2)
    d1_near, d1_far = 1 + r0 / (r0 + r1), -r0 / (r0 + r1)
    d2 = 1 / (r0 + r1)
    on_near = second * d1_near - third * d2
    on_far = second * d1_far + third * d2
    return [first + on_near * near, -on_near * near + on_far * far, -on_far * far]


@dataclass(frozen=True)
class Exponential:
    """The rule :func:`exponential`; called with a process and times it gives a :class:`Plan`."""

    order: int = 1
    eta: float = 0.0
    prediction: str = "x0"
    published: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4, got {self.order}")
        if not self.eta >= 0:
            raise ValueError(f"eta must be at least 0, got {self.eta}")
        if self.prediction not in ("x0", "eps"):
            raise ValueError(f"prediction must be 'x0' or 'eps', got {self.prediction!r}")
        if math.isinf(self.eta) and (self.order > 1 or self.prediction == "eps"):
            raise ValueError("eta = inf forgets the past: it needs order 1 and prediction 'x0'")
        if self.published and (self.order > 3 or self.prediction != "x0"):
            raise ValueError("the published forms are those of DPM-Solver++: prediction 'x0' and order 1 to 3")

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        """The numbers of (3) or (4)."""
        curves = _Curves.along(process, ts)
        n, on_eps = len(ts) - 1, self.prediction == "eps"
        a = torch.zeros(n, self.order if on_eps else 1, dtype=torch.float64)
        b = torch.zeros(n, self.order, dtype=torch.float64)
        c = torch.zeros(n, dtype=torch.float64)
        if on_eps and 0 in curves.alpha:
            raise ValueError(
                "prediction 'eps' is singular where alpha = 0; use prediction 'x0' or start later than t = 1"
            )
        weights = _Weights(curves, self)
        for i in range(n):
            if on_eps and math.isfinite(curves.gap(i)):
                self._eps(curves, i, weights.of(i), a[i], b[i], c[i])
            else:
                self._x0(curves, i, weights.of(i), a[i], b[i], c[i])
        return Plan(ts, a, b, c)

    def _x0(self, curves: _Curves, i: int, weights: list[float], a: Tensor, b: Tensor, c: Tensor) -> None:
        """Row (3); a step of infinite length forgets what it can."""
        sigma, h = curves.sigma[i + 1], curves.gap(i)
        decay = self.eta**2 * h if self.eta else 0.0
        a[0] = sigma / curves.sigma[i] * math.exp(-decay)
        b[: len(weights)] = curves.alpha[i + 1] * torch.tensor(weights, dtype=torch.float64)
        c.fill_(sigma * math.sqrt(-math.expm1(-2 * decay)))

    def _eps(self, curves: _Curves, i: int, weights: list[float], a: Tensor, b: Tensor, c: Tensor) -> None:
        """Row (4), with eps_j = (x_j - alpha_j D_j) / sigma_j."""
        alpha = curves.alpha[i + 1]
        scale = alpha * curves.sigma[i] / curves.alpha[i]
        a[0] = alpha / curves.alpha[i]
        for j, weight in enumerate(weights):
            share = scale * (1 + self.eta**2) * weight / curves.sigma[i - j]
            a[j] -= share
            b[j] += share * curves.alpha[i - j]
        c.fill_(
            self.eta * scale * math.sqrt(-math.expm1(-2 * curves.gap(i)))
        )  # sigma_t e^h = alpha_t sigma_s / alpha_s


class _Weights:
    """The weights B or N of every step, newest value first.

    A polynomial needs a past, which the first steps do not have: after a first step of first order the whole solution would be
    of second order, however high the rest. So while the past is short, a step of the deterministic rules of order 3 and 4 goes
    back to the start: it integrates the polynomial through all values so far over all of the way so far, and takes off what the
    state has already (``_done``). That leaves an error of O(h^3) from the first step, at no call.

    A polynomial also should not be carried far beyond its nodes, as by a step that is much longer than those before it. The
    order is lowered until the weights, relative to those of first order, sum to at most ``_LIMIT`` in absolute value; equal
    short steps give 2, 3.7 and 6.7 for orders 2, 3 and 4.
    """

    _LIMIT = 10.0

    def __init__(self, curves: _Curves, rule: Exponential) -> None:
        self.curves, self.rule = curves, rule
        self.end = rule.prediction == "x0"  # where the exponential weight is largest
        self.factor = 1 + rule.eta**2 if self.end else 1.0
        self.restarts = rule.order > 2 and rule.eta == 0 and not rule.published
        self._done: list[
            float
        ] = []  # weights of all values since the start in the state x_i, oldest first; empty later on

    def of(self, i: int) -> list[float]:
        """Weights of step ``i``; called for 0, 1, 2, ... in turn."""
        count = self.curves.usable(i, self.rule.order)
        if self.rule.published:
            return _published(self.curves, i, count, self.factor)
        first = self._polynomial(i, i, 1)
        if count == 1:
            self._done = first
            return first
        if self.restarts and len(self._done) == count - 1:
            weights, done = self._from_start(i, count)
            if self._tame(weights, first):
                self._done = done
                return weights
        self._done = []
        while count > 1:
            weights = self._polynomial(i, i, count)
            if self._tame(weights, first):
                return weights
            count -= 1
        return first

    def _tame(self, weights: list[float], first: list[float]) -> bool:
        return sum(map(abs, weights)) <= self._LIMIT * first[0]

    def _polynomial(self, i: int, base: int, count: int) -> list[float]:
        """Weights of the integral from lambda at ``base`` to the end of step ``i``."""
        lam = self.curves.lam
        nodes = [self.factor * (lam[i - j] - lam[base]) for j in range(count)] if count > 1 else [0.0]
        return lagrange_weights(nodes, self.factor * (lam[i + 1] - lam[base]), end=self.end)

    def _from_start(self, i: int, count: int) -> tuple[list[float], list[float]]:
        """Weights of step ``i`` that bring the state to the integral from the start, and the weights of that integral."""
        base, lam = i - count + 1, self.curves.lam
        done = self._polynomial(i, base, count)[::-1]
        # (3) counts in units of e^lambda at the end of a step, (4) in units of e^-lambda at its start
        old = [w * math.exp(lam[i] - lam[i + 1]) if self.end else w for w in self._done]
        unit = 1.0 if self.end else math.exp(lam[i] - lam[base])
        return [unit * (new - had) for new, had in zip(done, [*old, 0.0])][::-1], done


def exponential(order: int = 1, eta: float = 0.0, *, prediction: str = "x0", published: bool = False) -> Exponential:
    """The exponential multistep rule of equations (3) and (4).

    Args:
        order: how many values the polynomial goes through, 1 to 4; the first steps use what there is.
        eta: amount of noise. 0: the probability flow (DDIM, DPM-Solver++ multistep). 1: the reverse equation (DDPM,
            SDE-DPM-Solver++). ``inf``: consistency sampling. Not the eta of :func:`ddim`.
        prediction: which quantity the polynomial is fitted to, ``"x0"`` or ``"eps"``.
        published: weights of DPM-Solver++ as its paper and code have them instead of exact moments (``"x0"`` only). Their third
            order gives the second derivative half its weight, and so converges like a second.

    Raises:
        ValueError: an option is out of range.

    Cost:
        One call a step.

    Error:
        O(h^order) for eta = 0. Order 4 needs a start where D hardly changes, such as pure noise; from elsewhere its first step
        leaves an error of O(h^3).

    >>> from trilemma.process import EDM
    >>> print(exponential(2)(EDM(sigma_max=1.0), torch.tensor([1.0, 0.5, 0.25, 0.0])))
    step          t  a: states   b: denoised              c: noise
       0   1.000000    0.500000    0.500000   0.000000    0.000000
       1   0.500000    0.500000    0.778652  -0.278652    0.000000
       2   0.250000    0.000000    1.000000   0.000000    0.000000
       3   0.000000
    """
    return Exponential(order, eta, prediction, published)


ddpm = Exponential(1, 1.0)
"""Ancestral sampling with the variance of the posterior q(x_s | x_t, x). Source: Ho et al. 2020 (arXiv:2006.11239), eq. 6."""

dpmpp_2m = Exponential(2, published=True)
"""DPM-Solver++(2M) as published. Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2."""

dpmpp_3m = Exponential(3, published=True)
"""DPM-Solver++(3M) as published in the authors' code."""


@dataclass(frozen=True)
class _DDIM:
    """The rule :func:`ddim`."""

    eta: float

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        curves = _Curves.along(process, ts)
        rows = []
        for i in range(len(ts) - 1):
            alpha, sigma = curves.alpha[i + 1], curves.sigma[i + 1]
            h = curves.gap(i)
            noise = self.eta * sigma * math.sqrt(-math.expm1(-2 * h))
            # sigma^2 - noise^2 = sigma^2 (1 - eta^2 (1 - e^(-2h))), as a sum of terms that are not negative
            a = sigma * math.sqrt((1 - self.eta) * (1 + self.eta) + self.eta**2 * math.exp(-2 * h)) / curves.sigma[i]
            rows.append((a, alpha - a * curves.alpha[i], noise))
        table = torch.tensor(rows, dtype=torch.float64)
        return Plan(ts, table[:, :1], table[:, 1:2], table[:, 2])


def ddim(eta: float = 0.0) -> _DDIM:
    """DDIM: x_s = alpha_s D + sqrt(sigma_s^2 - c^2) eps + c xi with c = eta sigma_s sqrt(1 - e^(l_t - l_s)).

    Args:
        eta: 0 for the deterministic rule (which is ``exponential(1)``), 1 for DDPM; in between another family than that of
            :func:`exponential`.

    Raises:
        ValueError: eta is outside [0, 1].

    Cost:
        One call a step.

    Source: Song et al. 2021 (arXiv:2010.02502), equations (12) and (16), here for any process.

    >>> ddim(1.5)
    Traceback (most recent call last):
    ValueError: eta of DDIM must lie in [0, 1], got 1.5
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta of DDIM must lie in [0, 1], got {eta}")
    return _DDIM(eta)
