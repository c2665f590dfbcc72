"""Adams methods in the angle between data and noise, where data of one standard deviation are solved exactly.

With d the standard deviation of the data, every process is a rotation:

    theta = atan2(sigma, alpha d),   y = x_t / r,   z = E[x | x_t] / d,   r = sqrt(alpha^2 d^2 + sigma^2),   (1)
    dy/dtheta = v = (cos(theta) y - z) / sin(theta),                                                         (2)

from theta = pi/2 (or less, where alpha(1) > 0) down to 0. For Gaussian data of standard deviation d, v = 0: what is left to
integrate is only how the data differ from that. v stays finite as theta goes to 0, so the end needs no step of its own; it is
what a network in EDM's preconditioning computes, with the other sign.

A linear multistep method in theta changes y by a combination of the last values of v,

    y_{i+1} = y_i + sum_j w_ij v_{i-j},                                                                      (3)

with y_i the states at which v_i was evaluated. That covers the predictor of Adams and Bashforth, whose weights integrate the
polynomial through the last values of v; and the pair of it with the corrector of Adams and Moulton, which takes step i again
as soon as v_i is known (predict, evaluate, correct: one call a step), because the two differ by values of v only. Where the
last step to theta = 0 is long, or there is no past, it is x = D.

Sources: Karras et al. 2022 (arXiv:2206.00364), table 1, and Lu and Song 2024 (arXiv:2410.11081), section 3, for the coordinates;
Hairer, Norsett and Wanner 1993, section III.1, for the methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.linear import interpolatory_weights
from ..process.gaussian import GaussianProcess
from .plan import Plan

__all__ = ["Angular", "angle", "angular", "angular_plan", "norm_at", "time_at_angle"]


def angle(process: GaussianProcess, ts: Tensor, sigma_data: float) -> Tensor:
    """Theta of (1) at times of any shape.

    >>> from trilemma.process import Flow
    >>> angle(Flow(), torch.tensor([1.0, 0.5, 0.0]), 1.0) / math.pi
    tensor([0.5000, 0.2500, 0.0000])
    """
    return torch.atan2(process.sigma(ts), process.alpha(ts) * sigma_data)


def time_at_angle(process: GaussianProcess, theta: Tensor, sigma_data: float) -> Tensor:
    """The time at which theta has a value, any shape."""
    return process.time(-2 * (theta.tan().log() + math.log(sigma_data)))


def norm_at(process: GaussianProcess, t: Tensor, sigma_data: float) -> Tensor:
    """The radius r of (1), which turns y into x_t, at times of any shape."""
    return torch.hypot(process.alpha(t) * sigma_data, process.sigma(t))


def angular_plan(process: GaussianProcess, ts: Tensor, weights: list[list[float]], sigma_data: float) -> Plan:
    """The plan of (3).

    Args:
        process: the noise process.
        ts: times, shape ``(N+1,)``.
        weights: w of every step, newest value first; a row may be shorter than the past. A last row that is empty is x = D.
        sigma_data: standard deviation d of the data.

    Raises:
        ValueError: a row looks back beyond the first step.
    """
    theta = angle(process, ts, sigma_data)
    r = norm_at(process, ts, sigma_data)
    # v_j = x_j on_x[j] - D_j on_d[j]
    on_x = (theta[:-1].cos() / (theta[:-1].sin() * r[:-1])).tolist()
    on_d = (1 / (sigma_data * theta[:-1].sin())).tolist()
    scale = r.tolist()
    width = max(1, *map(len, weights))
    a, b = torch.zeros(2, len(weights), width, dtype=torch.float64)
    for i, row in enumerate(weights):
        if len(row) > i + 1:
            raise ValueError(f"step {i} has {len(row)} weights, but only {i + 1} values of v are known")
        if not row:
            b[i, 0] = 1.0
            continue
        a[i, 0] = scale[i + 1] / scale[i]
        for j, w in enumerate(row):
            a[i, j] += scale[i + 1] * w * on_x[i - j]
            b[i, j] -= scale[i + 1] * w * on_d[i - j]
    return Plan(ts, a, b, torch.zeros(len(weights), dtype=torch.float64))


@dataclass(frozen=True)
class Angular:
    """The rule :func:`angular`."""

    order: int | None
    sigma_data: float
    corrected: bool

    _LIMIT = 12.0  # of the sum of |w_j| over the step, beyond which a polynomial is carried too far from its nodes
    _GAIN = 7.0  # of an error in the states used; equal steps to 0 give 1.8, 2.7, 4.1 and 6.3 for orders 2 to 5
    _NEAR = 0.5  # from which angle on a step to 0 may use the past

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        """Equation (3)."""
        theta = angle(process, ts, self.sigma_data)
        return angular_plan(process, ts, self.weights(theta.tolist()), self.sigma_data)

    def weights(self, theta: list[float]) -> list[list[float]]:
        """The weights w of every step, for :func:`angular_plan`."""
        order = self.order or _order_for(len(theta) - 1)
        rows: list[list[float]] = []
        ahead: list[float] = []  # the predictor's weights of the step before, for v_{i-1}, v_{i-2}, ...
        for i in range(len(theta) - 1):
            predict = self._weights(theta, i, i, order)
            if theta[i + 1] == 0 and (len(predict) == 1 or theta[i] > self._NEAR):
                rows.append([])
                break
            back: list[float] = []
            if self.corrected and i > 0:
                correct = self._weights(theta, i - 1, i, order)
                tame = abs(correct[0]) <= math.tan(theta[i])  # else it would feed an error back enlarged
                if len(correct) > 1 and tame:
                    back = [c - p for c, p in _pairs(correct, [0.0, *ahead])]
            rows.append([p + c for p, c in _pairs(predict, back)])
            ahead = predict
        return rows

    def _weights(self, theta: list[float], base: int, newest: int, order: int) -> list[float]:
        """Weights of the integral over step ``base``, through ``order`` values, or as many as keep within the limits."""
        start, h = theta[base], theta[base + 1] - theta[base]
        for count in range(min(order, newest + 1), 1, -1):
            nodes = [(theta[newest - j] - start) / h for j in range(count)]  # of the step [0, 1]
            weights = interpolatory_weights(nodes, [1 / (k + 1) for k in range(count)])
            # an error of y_j comes back through v_j, for constant D by cot(theta_j)
            gain = sum(abs(h * w) / math.tan(theta[newest - j]) for j, w in enumerate(weights))
            if sum(map(abs, weights)) <= self._LIMIT and gain <= self._GAIN:
                return [h * w for w in weights]
        return [h]


def _order_for(steps: int) -> int:
    """High orders need steps that resolve the data; with fewer they only carry errors further."""
    return 2 if steps <= 12 else 3 if steps <= 18 else 4


def _pairs(p: list[float], q: list[float]) -> list[tuple[float, float]]:
    """The two rows side by side, the shorter one filled up with zeros."""
    n = max(len(p), len(q))
    return list(zip(p + [0.0] * (n - len(p)), q + [0.0] * (n - len(q))))


def angular(order: int | None = None, *, sigma_data: float = 0.5, corrected: bool = True) -> Angular:
    """Adams' method in the angle between data and noise, equation (3).

    Args:
        order: how many values the polynomial goes through, 1 to 5; the first steps use what there is. None: 2 for up to 12
            steps, 3 for up to 18, 4 for more.
        sigma_data: standard deviation of the data. It need not be exact: the order of convergence does not depend on it.
        corrected: take each step again, by Adams and Moulton's weights, once v at its end is known.

    Raises:
        ValueError: an option is out of range.

    Cost:
        One call a step; memory for ``order`` (corrected: ``order + 1``) pairs of states.

    Error:
        O(h^order) from pure noise; from a start where the data already show, the first step leaves O(h^3) (without correction
        O(h^2)).

    >>> from trilemma.process import Flow
    >>> plan = angular(2)(Flow(), torch.tensor([1.0, 0.6, 0.2, 0.0]))
    >>> plan.steps, tuple(plan.a.shape)
    (3, (3, 3))
    """
    if order is not None and not 1 <= order <= 5:
        raise ValueError(f"order must be 1 to 5, got {order}")
    if not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")
    return Angular(order, sigma_data, corrected)
