"""Exponential integrators of several calls a step: DPM-Solver, DPM-Solver++ and SEEDS, which need no past.

In lambda = log(alpha/sigma) a step of length h from s goes over the states at lambda_s + r_i h, r = 1/2 for the second order, 1/3
and 2/3 for the third. By the laws (1) and (2) of ``linear``, for D = E[x | x_t] or eps = (x_t - alpha D) / sigma linear in lambda
between the first value and the last one known, the state at p, a length H after s, is

    x_p = (sigma_p/sigma_s) e^(-eta^2 H) x + alpha_p sum_j B_j D_j + noise,                                  (1)
    x_p = (alpha_p/alpha_s) x - alpha_p (sigma_s/alpha_s) (1 + eta^2) sum_j N_j eps_j + noise,               (2)

with B and N the exact integrals of ``linear``; second order takes the value in the middle for the whole step (B_2, N_2 those of a
constant). The noise is that of one Brownian path: every part [k, k+1] of the step has a draw xi_k of its own, which enters every
later state p with

    sigma_p sqrt(e^(-2 eta^2 (p - k - 1)) - e^(-2 eta^2 (p - k))) in (1),                                    (3)
    eta alpha_p sqrt(e^(-2 lambda_k) - e^(-2 lambda_(k+1))) in (2),                                          (4)

writing p - k for the difference of their lambdas: over a whole step the squares sum to sigma_t^2 (1 - e^(-2 eta^2 h)) in (3) and
to eta^2 sigma_t^2 (e^(2h) - 1) in (4).

Where lambda is infinite (t = 0, or t = 1 where alpha = 0) a step has no inside: it is (1) of first order, and to t = 0 x = D.

Sources: Lu et al. 2022 (arXiv:2206.00927) for (2), Lu et al. 2022 (arXiv:2211.01095) for (1), Gonzalez et al. 2023
(arXiv:2305.14267) for (4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.linear import lagrange_weights
from ..process.gaussian import GaussianProcess
from .stages import Staged

__all__ = ["Singlestep", "fast_orders", "singlestep"]

_INSIDE = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}


@dataclass(frozen=True)
class Singlestep:
    """The rule :func:`singlestep`."""

    orders: tuple[int, ...]
    eta: float = 0.0
    prediction: str = "x0"

    def __post_init__(self) -> None:
        if not self.orders or not set(self.orders) <= set(_INSIDE):
            raise ValueError(f"order must be 1, 2 or 3, or a sequence of these, got {self.orders}")
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be at least 0 and finite, got {self.eta}")
        if self.prediction not in ("x0", "eps"):
            raise ValueError(f"prediction must be 'x0' or 'eps', got {self.prediction!r}")

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Staged:
        """The numbers of every step."""
        n = len(ts) - 1
        orders = self.orders * n if len(self.orders) == 1 else self.orders
        if len(orders) != n:
            raise ValueError(
                f"{len(orders)} orders were given for a grid of {n} steps; give one order, or one per step"
            )
        if self.prediction == "eps" and bool((process.alpha(ts) == 0).any()):
            raise ValueError(
                "prediction 'eps' is singular where alpha = 0; use prediction 'x0' or start later than t = 1"
            )
        lam = process.log_snr(ts) / 2
        steps = []
        for i in range(n):
            h = lam[i + 1] - lam[i]
            inside = _INSIDE[orders[i]] if bool(torch.isfinite(h)) else (0.0,)
            at = torch.stack([lam[i] + r * h if r else lam[i] for r in inside])
            times = process.time(2 * at)
            times[0] = ts[i]
            steps.append(
                (times, self._table(process, torch.cat([times, ts[i + 1 :][:1]]), [*at.tolist(), float(lam[i + 1])]))
            )
        return Staged(steps)

    def _table(self, process: GaussianProcess, times: Tensor, lam: list[float]) -> Tensor:
        """Rows (1) or (2) of the states at ``times``, the first and the last of which are the ends of the step."""
        alpha, sigma = process.alpha(times).tolist(), process.sigma(times).tolist()
        stages = len(lam) - 1
        basis = torch.eye(1 + 2 * stages, dtype=torch.float64)
        on_eps = self.prediction == "eps" and math.isfinite(lam[-1])
        x, draws = basis[0], basis[1 + stages :]
        rows, values = [x], []
        for p in range(1, stages + 1):
            value = basis[p]
            values.append((rows[-1] - alpha[p - 1] * value) / sigma[p - 1] if on_eps else value)
            weights = self._weights(lam, p, end=not on_eps)
            scale = -alpha[p] * (1 + self.eta**2) * sigma[0] / alpha[0] if on_eps else alpha[p]
            row = self._keep(alpha, sigma, lam, p, on_eps) * x
            row = row + scale * sum((w * values[j] for j, w in weights.items()), torch.zeros_like(x))
            if self.eta:
                for k in range(p):
                    row = row + self._noise(alpha[p], sigma[p], lam, k, p, on_eps) * draws[k]
            rows.append(row)
        return torch.stack(rows)

    def _weights(self, lam: list[float], p: int, *, end: bool) -> dict[int, float]:
        """B or N of the values that state ``p`` is made from, by their number."""
        factor = 1 + self.eta**2 if end else 1.0
        length = factor * (lam[p] - lam[0])
        if p == len(lam) - 1 == 2:
            return {1: lagrange_weights([0.0], length, end=end)[0]}
        used = [0] if p == 1 else [0, p - 1]
        nodes = [factor * (lam[j] - lam[0]) if j else 0.0 for j in used]
        return dict(zip(used, lagrange_weights(nodes, length, end=end)))

    def _keep(self, alpha: list[float], sigma: list[float], lam: list[float], p: int, on_eps: bool) -> float:
        """Weight of x in state ``p``."""
        if on_eps:
            return alpha[p] / alpha[0]
        return sigma[p] / sigma[0] * (math.exp(-(self.eta**2) * (lam[p] - lam[0])) if self.eta else 1.0)

    def _noise(self, alpha: float, sigma: float, lam: list[float], k: int, p: int, on_eps: bool) -> float:
        """(3) or (4): weight of the draw of part k in state ``p``."""
        part, after = lam[k + 1] - lam[k], lam[p] - lam[k + 1] if p > k + 1 else 0.0
        if on_eps:
            return self.eta * alpha * math.exp(-lam[k]) * math.sqrt(-math.expm1(-2 * part))
        rate = self.eta**2
        return sigma * math.exp(-rate * after) * math.sqrt(-math.expm1(-2 * rate * part))


def singlestep(order: int | Sequence[int] = 2, eta: float = 0.0, *, prediction: str = "x0") -> Singlestep:
    """The exponential Runge-Kutta rule of equations (1) and (2).

    ====================  =====  ===  ==========
    published name        order  eta  prediction
    ====================  =====  ===  ==========
    DPM-Solver-2, -3      2, 3   0    eps
    DPM-Solver++(2S, 3S)  2, 3   0    x0
    SEEDS-2, -3           2, 3   1    eps
    DPM-Solver++ SDE (S)  2      1    x0
    ====================  =====  ===  ==========

    Args:
        order: 1, 2 or 3, for all steps or one for each; :func:`fast_orders` gives those of DPM-Solver-fast.
        eta: amount of noise; 0 for the probability flow, 1 for the reverse equation.
        prediction: what is taken as linear in lambda, ``"x0"`` or ``"eps"``.

    Raises:
        ValueError: an option is out of range; when bound, ``"eps"`` where alpha = 0, or orders for another number of steps.

    Cost:
        ``order`` calls a step; one for the step to t = 0 and for one from where alpha = 0.

    Error:
        O(h^order) for eta = 0. For eta > 0 the law of Gaussian data is right to O(h^2) with orders 2 and 3.

    Differs:
        The noise of the x0 form with eta = 1 has the exact covariance of (3); k-diffusion's ``dpmpp_sde`` takes the increments of
        a Brownian motion in sigma for both states, whose covariance is another.

    >>> from trilemma.process import EDM
    >>> step = singlestep(2)(EDM(sigma_max=1.0), torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64))
    >>> step.steps[0][0].tolist()                                              # the middle in lambda
    [1.0, 0.5]
    >>> step.steps[0][1][:, :3].tolist()                             # of x, D_1, D_2 in both states and the result
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.0, 0.75]]
    """
    return Singlestep((order,) if isinstance(order, int) else tuple(order), eta, prediction)


def fast_orders(calls: int) -> tuple[int, ...]:
    """How DPM-Solver-fast spends its calls: steps of third order, and lower ones at the end for what is left.

    Made for equal steps in log-SNR between two finite ends, as ``singlestep(fast_orders(20), prediction="eps")``. On a grid whose
    last step goes to t = 0, append a 1: that step is of first order in any case.

    Args:
        calls: total number of calls, at least 1.

    Returns:
        The orders, whose sum is ``calls``.

    Source: Lu et al. 2022 (arXiv:2206.00927), section 3.4.

    >>> fast_orders(9), fast_orders(10), fast_orders(11)
    ((3, 3, 2, 1), (3, 3, 3, 1), (3, 3, 3, 2))
    """
    if calls < 1:
        raise ValueError(f"calls must be at least 1, got {calls}")
    threes, left = divmod(calls, 3)
    return (*(3,) * (threes - 1), 2, 1) if left == 0 else (*(3,) * threes, left)
