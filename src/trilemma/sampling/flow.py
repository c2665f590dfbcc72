"""Runge-Kutta methods on the probability flow, in coordinates where every process is a straight flow.

With u = sigma / (alpha + sigma) and w = x_t / (alpha + sigma),

    dw/du = (w - D) / u,     D = E[x | x_t],                                                                 (1)

whose solution for constant D is a straight line from w to D. u runs from 1 (or less, where alpha(1) > 0) to 0. At u = 0 the
field is 0/0, so the last step to t = 0 is Euler's, which is exactly x = D.

Source: Liu et al. 2023 (arXiv:2209.03003), proposition 3.1 for the change of coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.tableau import EULER, Tableau
from ..process.gaussian import GaussianProcess
from .loop import Denoise
from .stages import Staged

__all__ = ["RungeKutta", "flow_field", "runge_kutta", "scale_at", "time_at", "u_at"]


def u_at(process: GaussianProcess, t: Tensor) -> Tensor:
    """U = sigma / (alpha + sigma) at times ``t``, any shape."""
    return process.sigma(t) / (process.alpha(t) + process.sigma(t))


def time_at(process: GaussianProcess, u: Tensor) -> Tensor:
    """The time at which sigma / (alpha + sigma) is ``u``, any shape."""
    return process.time(2 * (torch.log1p(-u) - u.log()))


def scale_at(process: GaussianProcess, t: Tensor) -> Tensor:
    """Alpha + sigma, which turns w into x_t."""
    return process.alpha(t) + process.sigma(t)


def flow_field(process: GaussianProcess, denoise: Denoise) -> Callable[[Tensor, Tensor], Tensor]:
    """The field (1) as a function of u, ``()`` or ``(B,)``, and w, ``(B, ...)``, for any solver of ordinary equations.

    >>> from trilemma.denoise import Gaussian
    >>> from trilemma.process import VP
    >>> field = flow_field(VP(), lambda x, t: Gaussian(torch.zeros_like(x)))
    >>> field(torch.tensor(0.5), torch.ones(1, 1))
    tensor([[2.]])
    """

    def field(u: Tensor, w: Tensor) -> Tensor:
        t = time_at(process, u.double())
        shape = (-1, *(1,) * (w.ndim - 1)) if u.ndim else ()
        x = w * scale_at(process, t).reshape(shape).to(w)
        return (w - denoise(x, t).mean) / u.reshape(shape).to(w)

    return field


@dataclass(frozen=True)
class RungeKutta:
    """The rule :func:`runge_kutta`."""

    table: Tableau

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Staged:
        """The numbers of every step; at t = 0 Euler's."""
        u, scale = u_at(process, ts), scale_at(process, ts)
        steps = []
        for i in range(len(ts) - 1):
            table = EULER if ts[i + 1] == 0 else self.table
            at = u[i] + torch.tensor(table.c, dtype=torch.float64) * (u[i + 1] - u[i])
            times = time_at(process, at)
            times[0] = ts[i]
            scales = torch.cat([scale_at(process, times), scale[i + 1 : i + 2]])
            steps.append((times, scales[:, None] * _rows(table, float(u[i + 1] - u[i]), at.tolist(), float(scale[i]))))
        return Staged(steps)


def _rows(table: Tableau, h: float, at: list[float], scale: float) -> Tensor:
    """Weights of (x, D_1, D_2, ...) in w at every stage of a step of (1) from ``at[0]``, and in its result.

    Args:
        table: the method.
        h: length of the step in u.
        at: u of every stage.
        scale: alpha + sigma before the step.
    """
    basis = torch.eye(1 + table.stages, dtype=torch.float64)
    w = basis[0] / scale
    rows: list[Tensor] = []
    slopes: list[Tensor] = []
    for weights in (*table.a, table.b):
        rows.append(w + h * sum((a * k for a, k in zip(weights, slopes)), torch.zeros_like(w)))
        if len(slopes) < table.stages:
            slopes.append((rows[-1] - basis[len(rows)]) / at[len(slopes)])
    return torch.stack(rows)


def runge_kutta(table: Tableau) -> RungeKutta:
    """A Runge-Kutta method on the probability flow, equation (1).

    Args:
        table: from ``trilemma.numerics.tableau``; Heun's is EDM's deterministic sampler in other coordinates.

    Cost:
        One call a stage and step; one for a last step to t = 0.

    Error:
        O(h^order) away from t = 0.
    """
    return RungeKutta(table)
