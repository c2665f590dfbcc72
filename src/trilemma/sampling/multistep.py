"""Linear multistep methods on eps in the noise level rho = sigma/alpha: DEIS, LMS, iPNDM, DPM-Solver, gradient estimation.

With eps = (x_t - alpha D) / sigma and D = E[x | x_t], the probability flow of every process is

    d(x/alpha) = eps drho,                                                                                   (1)

so a step from s to t is x_t = alpha_t (x_s/alpha_s + sum_j W_j eps_j), with weights of this and the last values of eps that are

    W_j = integral from rho_s to rho_t of l_j drho,                                                          (2)
    W_j = beta_j (rho_t - rho_s),     sum_j beta_j = 1,                                                      (3)
    W_j = (alpha_s/alpha_t) sigma_t times those of a Taylor series in lambda = -log rho,                     (4)

where l_j are Lagrange's polynomials through the past, in rho or in the time t. (2) in rho is Adams-Bashforth's method for steps
of any length; (3) is DDIM's step with an average of eps, exact for equal steps in rho only. The first steps use what past there
is, so the first is Euler's: its error, O(h^2), stays, and no published start gives more than second order from a state where eps
already bends.

The last step to t = 0 is x = D. No step starts where alpha = 0: rho is infinite there.

Sources: Zhang and Chen 2023 (arXiv:2204.13902) for (2) and for iPNDM; Liu et al. 2022 (arXiv:2202.09778) for (3); Lu et al. 2022
(arXiv:2206.00927) for (4); Permenter and Yuan 2024 (arXiv:2306.04848) for gradient estimation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..process.gaussian import GaussianProcess
from .linear import _Curves, _published
from .plan import Plan

__all__ = [
    "BASHFORTH",
    "adams",
    "deis",
    "dpm_solver",
    "eps_plan",
    "gauss_legendre",
    "gradient_estimation",
    "ipndm",
    "noise_levels",
]

BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights beta_j of Adams and Bashforth's methods of order 1 to 4 for equal steps, newest value first."""

_POINTS = 64  # of Gauss and Legendre for (2): rounding for steps of up to 40 in log-SNR


@functools.cache
def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre's rule on [0, 1], shape ``(count,)`` each; not to be written to.

    >>> points, weights = gauss_legendre(2)
    >>> round(float((weights * points**3).sum()), 12)                       # exact up to degree 2 count - 1
    0.25
    """
    points, weights = (torch.from_numpy(z) for z in np.polynomial.legendre.leggauss(count))
    return (1 + points) / 2, weights / 2


def noise_levels(process: GaussianProcess, ts: Tensor) -> list[float]:
    """Rho = sigma/alpha along a grid.

    Raises:
        ValueError: it is infinite, where alpha = 0.

    >>> from trilemma.process import Flow
    >>> noise_levels(Flow(), torch.tensor([0.5, 0.0]))
    [1.0, 0.0]
    """
    rho = process.sigma(ts) / process.alpha(ts)
    if not bool(torch.isfinite(rho).all()):
        raise ValueError("methods on eps are singular where alpha = 0; use one on x0 or start later than t = 1")
    return list(rho.tolist())


def eps_plan(process: GaussianProcess, ts: Tensor, rows: list[list[float]]) -> Plan:
    """The plan of x_t = alpha_t (x_s/alpha_s + sum_j W_j eps_j), its last row x = D where t = 0.

    Args:
        process: the noise process.
        ts: times, shape ``(N+1,)``.
        rows: the weights W of each step, newest value first; of a step to t = 0 they are not read.
    """
    alpha, sigma = process.alpha(ts).tolist(), process.sigma(ts).tolist()
    n, width = len(rows), max(map(len, rows))
    a, b = torch.zeros(2, n, width, dtype=torch.float64)
    for i, row in enumerate(rows):
        if sigma[i + 1] == 0:
            b[i, 0] = 1
            continue
        a[i, 0] = alpha[i + 1] / alpha[i]
        for j, weight in enumerate(row):
            share = alpha[i + 1] * weight / sigma[i - j]
            a[i, j] += share
            b[i, j] -= share * alpha[i - j]
    return Plan(ts, a, b, torch.zeros(n, dtype=torch.float64))


@dataclass(frozen=True)
class Adams:
    """The rules :func:`adams` and :func:`deis`."""

    order: int
    variable: str

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4, got {self.order}")
        if self.variable not in ("rho", "time"):
            raise ValueError(f"variable must be 'rho' or 'time', got {self.variable!r}")

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        """The integrals (2), all in lambda, where drho = -rho dlambda and every step is of moderate length."""
        rho = torch.tensor(noise_levels(process, ts), dtype=torch.float64)
        nodes = rho if self.variable == "rho" else ts
        points, weights = gauss_legendre(_POINTS)
        inside = int((rho > 0).sum())
        lam = -rho[:inside].log()
        gap = lam.diff()[:, None]
        at = lam[:-1, None] + gap * points  # (steps that do not end at 0, points)
        levels = torch.exp(-at)
        mass = -levels * weights * gap
        where = levels if self.variable == "rho" else process.time(2 * at)
        rows = []
        for i in range(inside - 1):
            past = nodes[max(i + 1 - self.order, 0) : i + 1].flip(0)
            rows.append([float((mass[i] * _lagrange(past, j, where[i])).sum()) for j in range(len(past))])
        return eps_plan(process, ts, rows + [[0.0]] * (len(ts) - inside))


def _lagrange(nodes: Tensor, j: int, at: Tensor) -> Tensor:
    """The polynomial that is 1 at node j and 0 at the others."""
    out = torch.ones_like(at)
    for k in range(len(nodes)):
        if k != j:
            out = out * (at - nodes[k]) / (nodes[j] - nodes[k])
    return out


def adams(order: int = 4) -> Adams:
    """Adams and Bashforth's method in sigma/alpha for steps of any length, equation (2) in rho.

    Published thrice: k-diffusion's ``lms``, DEIS' rhoAB of order - 1, and iPNDM_v.

    Args:
        order: how many values of eps it remembers, 1 to 4.

    Raises:
        ValueError: the order is another, or, when bound, alpha = 0 at the start.

    Cost:
        One call a step.

    Error:
        O(h^2) from orders 2 on, for the first step is Euler's; O(h^order) where that one is short.

    Differs:
        k-diffusion carries the polynomial on into a step to sigma = 0; here that step is x = D. The weights of iPNDM_v in the
        diff-sampler code agree with (2) up to order 2 only, since those of orders 3 and 4 have misplaced factors.

    Source: Zhang and Chen 2023 (arXiv:2204.13902), appendix B.2, rhoAB.

    >>> from trilemma.process import EDM
    >>> print(adams(2)(EDM(sigma_max=1.0), torch.tensor([1.0, 0.75, 0.5])))
    step          t  a: states              b: denoised              c: noise
       0   1.000000    0.750000   0.000000    0.250000   0.000000    0.000000
       1   0.750000    0.500000   0.125000    0.500000  -0.125000    0.000000
       2   0.500000
    """
    return Adams(order, "rho")


def deis(order: int = 3) -> Adams:
    """DEIS' tAB: equation (2) with polynomials in the time of the process.

    Args:
        order: degree of the polynomial, 0 to 3, as the paper counts: it remembers one value of eps more.

    Raises:
        ValueError: the order is another, or, when bound, alpha = 0 at the start.

    Cost:
        One call a step.

    Error:
        O(h^2) from orders 1 on, for the first step is Euler's.

    Differs:
        The paper's process is VP. For another one the same name means other numbers: on ``EDM``, where time is proportional to
        sigma, it is rhoAB. The integrals are exact instead of sums over 10000 points. The ``DEISMultistepScheduler`` of Diffusers
        has polynomials in log rho, which is ``exponential(order, prediction="eps")``.

    Source: Zhang and Chen 2023 (arXiv:2204.13902), equation (15).

    >>> from trilemma.process import VP
    >>> deis(1)(VP(), torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)).b.shape
    torch.Size([2, 2])
    """
    if order not in (0, 1, 2, 3):
        raise ValueError(f"order must be 0, 1, 2 or 3, the degree of the polynomial, got {order}")
    return Adams(order + 1, "time")


@dataclass(frozen=True)
class Averaged:
    """Equation (3): step i has the weights ``beta[i]``, and all later ones the last; newest value first."""

    beta: tuple[tuple[float, ...], ...]

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        """Every step as DDIM's, with an average of eps."""
        rho = noise_levels(process, ts)
        rows = []
        for i in range(len(ts) - 1):
            beta = self.beta[min(i, len(self.beta) - 1)]
            rows.append([weight * (rho[i + 1] - rho[i]) for weight in beta])
        return eps_plan(process, ts, rows)


def ipndm(order: int = 4) -> Averaged:
    """IPNDM: DDIM's step with the average of eps that Adams and Bashforth's method has for equal steps, equation (3).

    Args:
        order: how many values of eps it remembers, 1 to 4.

    Raises:
        ValueError: the order is another, or, when bound, alpha = 0 at the start.

    Cost:
        One call a step.

    Error:
        O(h^2) from order 2 on where neighbouring steps in sigma/alpha are of nearly the same length; O(h) otherwise. The weights
        of equal steps are kept on purpose: with five to ten calls they do better than :func:`adams` on networks.

    Source: Zhang and Chen 2023 (arXiv:2204.13902), appendix B.3; :func:`trilemma.sampling.pndm.pndm` without its dear start.

    >>> ipndm(5)
    Traceback (most recent call last):
    ValueError: order must be 1, 2, 3 or 4, got 5
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order}")
    return Averaged(BASHFORTH[:order])


def gradient_estimation(gamma: float = 2.0) -> Averaged:
    """DDIM's step with gamma eps_i + (1 - gamma) eps_{i-1}, equation (3).

    Args:
        gamma: 1 for DDIM, 3/2 for ``ipndm(2)``, 2 in the paper.

    Raises:
        ValueError: gamma is not finite.

    Cost:
        One call a step.

    Error:
        O(h); O(h^2) for gamma = 3/2.

    Source: Permenter and Yuan 2024 (arXiv:2306.04848), algorithm 2; ``gam`` in smalldiffusion.

    >>> gradient_estimation(1.5) == ipndm(2)
    True
    """
    if not np.isfinite(gamma):
        raise ValueError(f"gamma must be finite, such as 2, got {gamma}")
    return Averaged(((1.0,), (gamma, 1 - gamma)))


@dataclass(frozen=True)
class DPMSolver:
    """The rule :func:`dpm_solver`."""

    order: int

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        """Equation (4): the weights of DPM-Solver++ with the sign of h turned."""
        rho, curves = noise_levels(process, ts), _Curves.along(process, ts)
        rows = []
        for i in range(len(ts) - 1):
            weights = _published(curves, i, min(self.order, i + 1), -1.0) if rho[i + 1] else [0.0]
            rows.append([rho[i + 1] * weight for weight in weights])
        return eps_plan(process, ts, rows)


def dpm_solver(order: int = 2) -> DPMSolver:
    """Multistep DPM-Solver on eps as its code has it: a Taylor series in log(alpha/sigma), equation (4).

    Args:
        order: 1, 2 or 3 values of eps.

    Raises:
        ValueError: the order is another, or, when bound, alpha = 0 at the start.

    Cost:
        One call a step.

    Error:
        O(h^2) for orders 2 and 3: the third gives the second derivative half its weight.

    Differs:
        From ``exponential(order, prediction="eps")``, which has the exact moments: order 2 takes the slope at the middle of the
        step, order 3 as above. No order is lowered in the last steps but in that to t = 0, which is x = D.

    Source: Lu et al. 2022 (arXiv:2206.00927), appendix B; the multistep form is in the authors' code.

    >>> dpm_solver(4)
    Traceback (most recent call last):
    ValueError: order must be 1, 2 or 3, got 4
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    return DPMSolver(order)
