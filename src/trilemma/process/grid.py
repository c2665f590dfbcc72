"""Time grids for sampling: decreasing float64 times from t = 1 to t = 0, shape ``(steps + 1,)``.

Every grid is a plain function of the process and the number of steps; a tensor of one's own serves as well. All but
``uniform``, ``trailing``, ``leading`` and ``quadratic`` are laid out in the noise level, so they mean the same for every
process. Grids fitted to a model are in ``sampling.grids``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .betas import FromBetas
from .gaussian import GaussianProcess

__all__ = [
    "GRIDS",
    "Grid",
    "angular_grid",
    "karras_grid",
    "leading_grid",
    "log_snr_grid",
    "quadratic_grid",
    "shifted_grid",
    "trailing_grid",
    "uniform_grid",
]


class Grid(Protocol):
    """A function from a process and a number of steps to times."""

    def __call__(self, process: GaussianProcess, steps: int) -> Tensor:
        """Times from 1 to 0."""


def _count(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"a grid needs at least one step, got {steps}")
    return steps


def _chain(process: GaussianProcess, steps: int) -> int:
    """How many steps the chain of a process has, a thousand if it is continuous; at least as many as are asked of it."""
    chain = process.steps if isinstance(process, FromBetas) else 1000
    if steps > chain:
        raise ValueError(f"{steps} steps were asked of a chain of {chain}; ask for at most that many")
    return chain


def _from_log_snr(process: GaussianProcess, values: Tensor) -> Tensor:
    """Times with the given increasing log-SNRs, the first moved to exactly 1 and 0 put behind the last."""
    ts = process.time(values)
    ts[0] = 1.0
    return torch.cat([ts, ts.new_zeros(1)])


def _lowest(process: GaussianProcess) -> float:
    return float(process.log_snr(torch.ones((), dtype=torch.float64)))


def uniform_grid(process: GaussianProcess, steps: int) -> Tensor:
    """Equally spaced times.

    >>> from trilemma.process import Flow
    >>> uniform_grid(Flow(), 4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return torch.linspace(1, 0, _count(steps) + 1, dtype=torch.float64)


def trailing_grid(process: GaussianProcess, steps: int) -> Tensor:
    """Equally spaced times rounded to the steps of a discrete chain, ending on its last: T, T - T/N, ...

    For a continuous process the same as ``uniform_grid``. With as many steps as the chain has: the chain itself.

    Raises:
        ValueError: there are more steps than the chain has.

    Source: Lin et al. 2024 (arXiv:2305.08891), table 2.
    """
    ts = uniform_grid(process, steps)
    if not isinstance(process, FromBetas):
        return ts
    return (ts * _chain(process, steps)).round() / process.steps


def leading_grid(process: GaussianProcess, steps: int, *, offset: int = 0, published: bool = False) -> Tensor:
    """Every T//N-th step of a discrete chain, counted from its first, then 0: k = offset + 1 + i (T//N), i = N - 1, ..., 0.

    Args:
        process: the noise process; a continuous one is taken as a chain of a thousand steps.
        steps: number N of steps.
        offset: what is added to all k; 1 for Stable Diffusion.
        published: start at the largest such k, which is short of T, although sampling starts from noise as of T. Else the first
            time is moved to 1.

    Raises:
        ValueError: there are more steps than the chain has, or the offset leads out of it.

    Source: Lin et al. 2024 (arXiv:2305.08891), table 2; the default of Diffusers.

    >>> from trilemma.process import Flow
    >>> leading_grid(Flow(), 4).tolist()
    [1.0, 0.501, 0.251, 0.001, 0.0]
    """
    chain = _chain(process, _count(steps))
    k = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (chain // steps) + (offset + 1)
    if offset < 0 or k[0] > chain:
        raise ValueError(
            f"offset={offset} leads out of a chain of {chain}; with {steps} steps take 0 to {chain - int(k[0]) + offset}"
        )
    if not published:
        k[0] = chain
    return torch.cat([k / chain, k.new_zeros(1)])


def quadratic_grid(process: GaussianProcess, steps: int) -> Tensor:
    """Times whose square roots are equally spaced, t = (1 - i/N)^2: short steps at low noise.

    Differs: the paper rounds down to the steps of its chain, and its code starts at 0.8 T.

    Source: Song et al. 2021 (arXiv:2010.02502), appendix D.2.

    >>> from trilemma.process import Flow
    >>> quadratic_grid(Flow(), 4).tolist()
    [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    return uniform_grid(process, steps) ** 2


def karras_grid(
    process: GaussianProcess, steps: int, *, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Tensor:
    """Noise levels sigma/alpha equally spaced in their rho-th root, then 0.

    Args:
        process: the noise process.
        steps: number of steps, the last one from ``sigma_min`` to 0.
        rho: 7 in the paper; larger for shorter steps at low noise.
        sigma_min: lowest level above 0, in units of the data.
        sigma_max: highest level, at most that of the process; the first time is 1 in any case.

    Raises:
        ValueError: rho is not above 0, or the levels are not in order.

    Source: Karras et al. 2022 (arXiv:2206.00364), equation (5).
    """
    if not (0 < rho < math.inf and 0 < sigma_min < sigma_max < math.inf):
        raise ValueError(
            f"karras_grid needs rho > 0 and 0 < sigma_min < sigma_max, all finite; got {rho}, {sigma_min} and {sigma_max}"
        )
    ramp = torch.linspace(0, 1, _count(steps), dtype=torch.float64)
    top = min(sigma_max, math.exp(-_lowest(process) / 2)) ** (1 / rho)
    levels = (top + ramp * (sigma_min ** (1 / rho) - top)) ** rho
    return _from_log_snr(process, -2 * levels.log())


def log_snr_grid(process: GaussianProcess, steps: int, *, low: float = -10.0, high: float = 11.0) -> Tensor:
    """Equally spaced log-SNRs, then 0.

    Args:
        process: the noise process.
        steps: number of steps, the last one from ``high`` to 0.
        low: where the equal spacing starts, unless the process starts above it; the first time is 1 in any case.
        high: the last log-SNR before 0: sigma/alpha = 0.004 for 11.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"log_snr_grid needs low < high, both finite; got {low} and {high}")
    return _from_log_snr(process, torch.linspace(max(low, _lowest(process)), high, _count(steps), dtype=torch.float64))


def shifted_grid(process: GaussianProcess, steps: int, *, shift: float = 3.0) -> Tensor:
    """Equally spaced u = sigma/(alpha + sigma), moved towards noise: u -> shift u / (1 + (shift - 1) u), as shares of u(1).

    Args:
        process: the noise process; on Flow, u is the time itself.
        steps: number of steps.
        shift: 1 for equal spacing; sqrt(m/n) for images of m pixels and a model designed at n.

    Raises:
        ValueError: the shift is not above 0.

    Source: Esser et al. 2024 (arXiv:2403.03206), equation (23).
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shifted_grid needs a finite shift > 0, 1 for none; got {shift}")
    top = torch.sigmoid(torch.tensor(-_lowest(process) / 2, dtype=torch.float64))  # u at t = 1
    u = torch.linspace(1, 0, _count(steps) + 1, dtype=torch.float64)[:-1]
    u = top * shift * u / (1 + (shift - 1) * u)
    return _from_log_snr(process, 2 * torch.log((1 - u) / u))


def angular_grid(
    process: GaussianProcess, steps: int, *, sigma_data: float = 0.5, spread: float | None = None, centre: float = -0.1
) -> Tensor:
    """Noise levels l = log(sigma / (alpha sigma_data)) with density cosh(l - centre)^(-spread), the last step to 0 included.

    With ``spread`` 1 and ``centre`` 0 they are equally spaced in the angle atan(sigma / (alpha sigma_data)): dense where noise
    turns into data, with tails e^(-spread |l|). Less spread reaches further, for data with structure on many scales.

    Args:
        process: the noise process.
        steps: number of steps.
        sigma_data: standard deviation of the data.
        spread: exponent of the density, in (0, 2]; small for a wide law. None: 0.5, and 0.6 for 13 to 24 steps, where errors
            in the middle, at the boundaries of basins, weigh more than those in the tails (``benchmarks/results/solvers.md``).
        centre: the densest level; below 0 where fine structure needs more steps than coarse.

    Raises:
        ValueError: a number is out of range.

    >>> from trilemma.process import Flow
    >>> angular_grid(Flow(), 4, sigma_data=1.0, spread=1.0, centre=0.0).round(decimals=3).tolist()
    [1.0, 0.707, 0.5, 0.293, 0.0]
    """
    if spread is None:
        spread = 0.6 if 12 < steps < 25 else 0.5
    if not (0 < sigma_data < math.inf and 0 < spread <= 2 and math.isfinite(centre)):
        raise ValueError(
            "angular_grid needs a finite sigma_data > 0, 0 < spread <= 2 and a finite centre; "
            f"got {sigma_data}, {spread} and {centre}"
        )
    top = -_lowest(process) / 2 - math.log(sigma_data)
    level = torch.linspace(-60, min(top, 60.0), 40_001, dtype=torch.float64)  # beyond 60: less than 1e-16 of x
    share = torch.cosh(level - centre) ** -spread
    below = torch.cumulative_trapezoid(share, level)
    below = torch.cat([below.new_zeros(1), below]) / below[-1]
    wanted = 1 - torch.arange(_count(steps), dtype=torch.float64) / steps
    i = torch.searchsorted(below, wanted).clamp(1, len(level) - 1)
    level = level[i - 1] + (wanted - below[i - 1]) / (below[i] - below[i - 1]) * (level[i] - level[i - 1])
    return _from_log_snr(process, -2 * (level + math.log(sigma_data)))


GRIDS: dict[str, Callable[[GaussianProcess, int], Tensor]] = {
    "uniform": uniform_grid,
    "trailing": trailing_grid,
    "leading": leading_grid,
    "quadratic": quadratic_grid,
    "karras": karras_grid,
    "log_snr": log_snr_grid,
    "shifted": shifted_grid,
    "angular": angular_grid,
}
"""Every grid by its name."""
