"""What a network may be asked to predict, as rows of one table.

Every target is a combination of the clean item and the noise value,

    F = p x + q eps,                                                                                         (1)

and with x_t = alpha x + sigma eps this is solved for x by

    x = c_skip x_t + c_out F,     c_skip = -q / (p sigma - q alpha),     c_out = sigma / (p sigma - q alpha).  (2)

So a row is two functions, p and q; all conversions between targets follow from (1) and (2).

Sources: Salimans and Ho 2022 (arXiv:2202.00512) for v; Karras et al. 2022 (arXiv:2206.00364), table 1, for edm, here for any
alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._names import lookup
from ..process.gaussian import GaussianProcess

__all__ = ["TARGETS", "Target", "coefficients", "get_target"]


@dataclass(frozen=True)
class Target:
    """A row of the table.

    Args:
        name: its name.
        row: process, time and sigma_data to (p, q) of (1).
        needs_signal: whether x cannot be found where alpha = 0.
        needs_smooth_start: whether (1) needs a finite sigma' at t = 0.
    """

    name: str
    row: Callable[[GaussianProcess, Tensor, float], tuple[Tensor, Tensor]]
    needs_signal: bool = False
    needs_smooth_start: bool = False

    def check(self, process: GaussianProcess) -> None:
        """Refuse a process on which (2) is singular at an end.

        Raises:
            ValueError: eps or score on a process without signal at t = 1, or velocity where sigma starts like a square root.
        """
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        if self.needs_signal and float(process.alpha(ends)[1]) == 0:
            raise ValueError(
                f"the target {self.name!r} says nothing about x where alpha = 0, as at t = 1 of {process}; "
                "use 'velocity', 'v' or 'edm'"
            )
        if self.needs_smooth_start and not bool(torch.isfinite(process.rates(ends)[1][0])):
            raise ValueError(f"the target {self.name!r} is infinite at t = 0 of {process}; use 'v', 'edm' or 'eps'")


def _edm(process: GaussianProcess, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = process.alpha(t), process.sigma(t)
    scale = (sigma**2 + (alpha * sigma_data) ** 2).sqrt()
    return sigma / (sigma_data * scale), -alpha * sigma_data / scale


def _one(t: Tensor) -> Tensor:
    return torch.ones_like(t)


TARGETS = {
    row.name: row
    for row in (
        Target("x0", lambda process, t, _: (_one(t), torch.zeros_like(t))),
        Target("eps", lambda process, t, _: (torch.zeros_like(t), _one(t)), needs_signal=True),
        Target("score", lambda process, t, _: (torch.zeros_like(t), -1 / process.sigma(t)), needs_signal=True),
        Target("v", lambda process, t, _: (-process.sigma(t), process.alpha(t))),
        Target("velocity", lambda process, t, _: process.rates(t), needs_smooth_start=True),
        Target("edm", _edm),
    )
}
"""x0: the clean item. eps: the noise. score: grad log p(x_t | x) = -eps/sigma. v = alpha eps - sigma x. velocity: dx_t/dt =
alpha' x + sigma' eps. edm: unit variance at every noise level for data of standard deviation sigma_data."""


def get_target(name: str, process: GaussianProcess) -> Target:
    """The row of that name, checked against the process.

    Raises:
        ValueError: there is no such row, or it is singular on this process.
    """
    target = lookup("target", name, TARGETS)
    target.check(process)
    return target


def coefficients(target: Target, process: GaussianProcess, t: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of (2), the shape of ``t``.

    >>> from trilemma.process import Flow
    >>> coefficients(TARGETS["velocity"], Flow(), torch.tensor(0.25), 1.0)          # x = x_t - t F
    (tensor(1.), tensor(-0.2500))
    """
    sigma = process.sigma(t)
    if target.name == "score":  # (2) times sigma, finite at t = 0
        alpha = process.alpha(t)
        return 1 / alpha, sigma**2 / alpha
    p, q = target.row(process, t, sigma_data)
    det = p * sigma - q * process.alpha(t)
    if target.name == "x0":
        return torch.zeros_like(t), torch.ones_like(t)
    return -q / det, sigma / det
