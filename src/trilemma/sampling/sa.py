"""Multistep rules for the reverse equation with an amount of noise that depends on the noise level: SA-Solver and ER-SDE-Solver.

The family (1) of ``linear`` keeps its marginals when eta is any function of lambda = log(alpha/sigma). All of it that a step
needs is the logarithm of a *clock*,

    Phi(lambda) = 2 * integral of eta^2 dlambda,     G = Phi_t - Phi_s,     H = h + G/2,                     (1)

    x_t = (sigma_t/sigma_s) e^(-G/2) x_s + alpha_t sum_j B_j D_j + sigma_t sqrt(1 - e^(-G)) xi,              (2)

where for a D that is constant sum B = 1 - e^(-H), and in the clock e^Phi the noise is a Brownian motion. *SA-Solver* takes for B
the integrals of Lagrange's polynomials through past D against e^(u - H), u = (1 + eta^2)(lambda - lambda_s), eta^2 averaged over
the step: Adams-Bashforth. When D at the new state is known, the step is taken again with it, from the same state and with the
same xi: Adams-Moulton. Only the sum over D differs, so the corrected state is

    x_t + alpha_t sum_j (B'_j - B_j) D_j,                                                                    (3)

and both together are a plan. *ER-SDE-Solver* writes the clock as (s/phi(s))^2, s = sigma/alpha, and expands D in s by finite
differences d = (D_0 - D_1)/(s_0 - s_1), e = 2 (d - d_1)/(s_0 - s_2): with r = phi(s_t)/phi(s_0) = (s_t/s_0) e^(-G/2),

    sum B D = (1 - r) D_0 + k_1 d + k_2 e,     k_1 = s_t - s_0 + s_t I[1],  k_2 = (s_t - s_0)^2/2 + s_t I[s - s_0],  (4)

with I[f] the integral of e^((Phi - Phi_t)/2) f over lambda. Steps of infinite length use what is finite, as in ``linear``.

Sources: Xue et al. 2023 (arXiv:2309.05019) for SA-Solver; Cui et al. 2023 (arXiv:2309.06169) for ER-SDE-Solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..numerics.linear import lagrange_weights
from ..process.gaussian import GaussianProcess
from .multistep import gauss_legendre
from .plan import Plan

__all__ = ["Band", "Clock", "Constant", "Extended", "er_sde", "sa_solver"]

_LIMIT = (
    10.0  # of the absolute weights, relative to their sum, beyond which a polynomial is carried too far; see ``linear``
)


class Clock(Protocol):
    """How much noise is drawn on the way: Phi of (1), not decreasing."""

    def __call__(self, log_snr: Tensor) -> Tensor:
        """Phi at log-SNRs, any shape; only its differences matter, but -inf is before all noise."""


@dataclass(frozen=True)
class Constant:
    """The same eta everywhere: 0 for the probability flow, 1 for the reverse of the forward equation.

    >>> Constant(0.5)(torch.tensor([-4.0, 4.0]))
    tensor([-1.,  1.])
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a finite number, at least 0, got {self.eta}")

    def __call__(self, log_snr: Tensor) -> Tensor:
        """eta^2 l."""
        return log_snr * self.eta**2 if self.eta else torch.zeros_like(log_snr)


@dataclass(frozen=True)
class Band:
    """Noise between two levels sigma/alpha only: eta = tau there and 0 outside.

    Args:
        tau: amount of noise.
        low: lowest level with noise.
        high: highest.

    Source: Xue et al. 2023, section 6, [0.05, 1] for CIFAR-10.
    """

    tau: float = 1.0
    low: float = 0.05
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf or not 0 < self.low < self.high < math.inf:
            raise ValueError(
                f"a band needs tau >= 0 and finite 0 < low < high, got {self.tau}, {self.low} and {self.high}"
            )

    def __call__(self, log_snr: Tensor) -> Tensor:
        """tau^2 l within the band, constant outside."""
        return self.tau**2 * log_snr.clamp(-2 * math.log(self.high), -2 * math.log(self.low))


@dataclass(frozen=True)
class Extended:
    """ER-SDE's own: phi(s) = s (e^(s^power) + offset), much noise at high levels and hardly any at low ones.

    Source: Cui et al. 2023, section 4, as in their released code.
    """

    power: float = 0.3
    offset: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.power <= 1 or not self.offset > 0:
            raise ValueError(f"power must lie in (0, 1] and offset be above 0, got {self.power} and {self.offset}")

    def __call__(self, log_snr: Tensor) -> Tensor:
        """2 log(s / phi(s))."""
        level = torch.exp(-self.power * log_snr / 2)
        return -2 * torch.logaddexp(level, torch.full_like(level, math.log(self.offset)))


@dataclass(frozen=True)
class _Road:
    """What both rules know of a grid: alpha, sigma, lambda and Phi at its times, as python floats."""

    alpha: list[float]
    sigma: list[float]
    lam: list[float]
    phi: list[float]

    @classmethod
    def along(cls, process: GaussianProcess, ts: Tensor, clock: Clock) -> _Road:
        log_snr = process.log_snr(ts)
        return cls(*(v.tolist() for v in (process.alpha(ts), process.sigma(ts), log_snr / 2, clock(log_snr))))

    def noise(self, i: int) -> float:
        """G of step i; 0 where Phi stands still at infinity."""
        return self.phi[i + 1] - self.phi[i] if self.phi[i + 1] > self.phi[i] else 0.0

    def finite(self, i: int) -> bool:
        """Whether step i has finite ends, so that a polynomial means something."""
        return math.isfinite(self.lam[i + 1] - self.lam[i])

    def past(self, i: int, count: int) -> int:
        """How many of the last values at step i, at least one, are at a finite lambda."""
        return max(1, sum(math.isfinite(self.lam[i - j]) for j in range(min(count, i + 1))))

    def plan(self, ts: Tensor, weights: Callable[[int], list[float]], width: int) -> Plan:
        """The rows (2), with ``weights(i)`` those of D_i, D_(i-1), ... in x_t."""
        n = len(ts) - 1
        a, b, c = (torch.zeros(n, size, dtype=torch.float64) for size in (1, width, 1))
        for i in range(n):
            a[i, 0] = self.keep(i)
            row = weights(i)
            b[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
            c[i, 0] = self.sigma[i + 1] * math.sqrt(-math.expm1(-self.noise(i)))
        return Plan(ts, a, b, c[:, 0])

    def keep(self, i: int) -> float:
        """The weight of x_s in (2)."""
        return self.sigma[i + 1] / self.sigma[i] * math.exp(-self.noise(i) / 2)


def _tame(weights: list[float], total: float) -> bool:
    return sum(map(abs, weights)) <= _LIMIT * abs(total)


@dataclass(frozen=True)
class _SASolver:
    """The rule :func:`sa_solver`."""

    predictor: int
    corrector: int
    clock: Clock

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        road = _Road.along(process, ts, self.clock)

        def weights(i: int) -> list[float]:
            out = self._adams(road, i, self.predictor, 0)
            if i == 0 or not self.corrector or not road.finite(i - 1):
                return [road.alpha[i + 1] * w for w in out]
            new, old = self._adams(road, i - 1, self.corrector, 1), self._adams(road, i - 1, self.predictor, 0)
            row = [0.0] * max(len(out), len(new), 1 + len(old))
            for j, w in enumerate(out):
                row[j] += road.alpha[i + 1] * w
            share = road.keep(i) * road.alpha[i]  # (3) before this step
            for j, w in enumerate(new):
                row[j] += share * w
            for j, w in enumerate(old):
                row[j + 1] -= share * w
            return row

        return road.plan(ts, weights, max(self.predictor + bool(self.corrector), self.corrector))

    @staticmethod
    def _adams(road: _Road, i: int, count: int, ahead: int) -> list[float]:
        """B of step i from ``count`` values, newest first, of which ``ahead`` (0 or 1) is that at the end of the step."""
        if not road.finite(i):
            return [1.0]
        h = road.lam[i + 1] - road.lam[i]
        factor = 1 + road.noise(i) / (2 * h)
        total = -math.expm1(-factor * h)
        for size in range(min(count, ahead + road.past(i, count)), 1 + ahead, -1):
            nodes = [factor * (road.lam[i + ahead - j] - road.lam[i]) for j in range(size)]
            weights = lagrange_weights(nodes, factor * h, end=True)
            if _tame(weights, total):
                return weights
        nodes = [factor * (road.lam[i + ahead - j] - road.lam[i]) for j in range(1 + ahead)]
        return lagrange_weights(nodes, factor * h, end=True)


def sa_solver(predictor: int = 3, corrector: int = 4, *, clock: Clock = Band()) -> _SASolver:
    """SA-Solver: stochastic Adams, a predictor and a corrector that share their noise.

    Args:
        predictor: how many values of D the predictor uses, 1 to 4.
        corrector: how many the corrector uses, the new one among them, 2 to 4; 0 for none.
        clock: where there is how much noise, tau of the paper.

    Raises:
        ValueError: a number is out of range.

    Cost:
        One call a step: D is evaluated at the predicted states.

    Error:
        Without noise and from pure noise, where D hardly changes, O(h^min(predictor + 1, corrector)), or O(h^predictor) with no
        corrector; from elsewhere the first step leaves an error of O(h^3), or O(h^2) with no corrector. In the law, O(h) where
        there is noise and O(h^2) for Gaussian data.

    Differs:
        eta^2 is averaged over a step that crosses the edge of a band. The number of values is lowered where the step is so much
        longer than those before it that the weights explode.

    Source: Xue et al. 2023 (arXiv:2309.05019), algorithm 1.

    >>> from trilemma.process import EDM
    >>> plan = sa_solver(2, 2, clock=Constant(1.0))(EDM(1.0), torch.tensor([1.0, 0.5, 0.25, 0.0]))
    >>> [round(w, 4) for w in (plan.a[0] + plan.b[0].sum()).tolist()]                # a constant stays as it is
    [1.0]
    """
    if predictor not in (1, 2, 3, 4) or corrector not in (0, 2, 3, 4):
        raise ValueError(
            f"the predictor uses 1 to 4 values and the corrector 2 to 4, or 0 for none; got {predictor} and {corrector}"
        )
    return _SASolver(predictor, corrector, clock)


@dataclass(frozen=True)
class _ERSDE:
    """The rule :func:`er_sde`."""

    order: int
    clock: Clock

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        road = _Road.along(process, ts, self.clock)

        def weights(i: int) -> list[float]:
            scale = road.alpha[i + 1]
            if not road.finite(i):
                return [scale]
            level = [math.exp(-v) for v in road.lam[max(0, i - 2) : i + 2]][::-1]  # s_t, s_0, s_1, s_2
            total = -math.expm1(road.lam[i] - road.lam[i + 1] - road.noise(i) / 2)
            for size in range(road.past(i, self.order), 1, -1):
                row = self._row(total, level, size, *self._slopes(road, process, ts, i, level))
                if _tame(row, total):
                    return [scale * w for w in row]
            return [scale * total]

        return road.plan(ts, weights, self.order)

    def _slopes(
        self, road: _Road, process: GaussianProcess, ts: Tensor, i: int, level: list[float]
    ) -> tuple[float, float]:
        """k_1 and k_2 of (4), by Gauss and Legendre's rule in lambda."""
        h, gap = road.lam[i + 1] - road.lam[i], level[0] - level[1]
        at, weight = gauss_legendre(64)
        lam = road.lam[i] + h * at
        kernel = level[0] * h * weight * torch.exp((self.clock(2 * lam) - road.phi[i + 1]) / 2)
        return gap + float(kernel.sum()), gap**2 / 2 + float((kernel * (torch.exp(-lam) - level[1])).sum())

    @staticmethod
    def _row(total: float, level: list[float], size: int, first: float, second: float) -> list[float]:
        """(4) as weights of D_0, D_1, D_2."""
        near = 1 / (level[1] - level[2])
        if size == 2:
            return [total + first * near, -first * near]
        far, share = 1 / (level[2] - level[3]), 2 * second / (level[1] - level[3])
        return [total + (first + share) * near, -(first + share) * near - share * far, share * far]


def er_sde(order: int = 3, *, clock: Clock = Extended()) -> _ERSDE:
    """ER-SDE-Solver: the extended reverse equation, equation (4).

    Args:
        order: of its deterministic part, 1 to 3.
        clock: the noise; phi(s) = s^p of the paper is ``Constant(sqrt(p - 1))``.

    Raises:
        ValueError: the order is out of range.

    Cost:
        One call a step.

    Error:
        In the law, O(h). Without noise O(h^min(order, 2)): the third value is added to a first derivative that stays of first
        order, as published.

    Differs:
        The integrals are exact, where the released code sums 100 points; the order is lowered where weights explode.

    Source: Cui et al. 2023 (arXiv:2309.06169), algorithms 1 to 3.

    >>> from trilemma.process import EDM
    >>> er_sde(1, clock=Constant(1.0))(EDM(1.0), torch.tensor([1.0, 0.5])).b                     # DDPM
    tensor([[0.7500]], dtype=torch.float64)
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    return _ERSDE(order, clock)
