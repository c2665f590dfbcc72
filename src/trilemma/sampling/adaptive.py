"""Samplers that choose their steps: the probability flow in the angle of signal and noise, with control of the true error.

With theta = atan(sigma / (alpha sigma_data)), from pi/2 where alpha = 0 to 0 at the data, and
y = x_t / sqrt(alpha^2 sigma_data^2 + sigma^2), every process has the flow

    dy/dtheta = (y cos(theta) - D / sigma_data) / sin(theta),     D = E[x | x_t],                            (1)

which is zero for data N(0, sigma_data^2) and finite everywhere but at theta = 0, where it is 0/0. So the last step, from

    theta_end = 0.1 sqrt(rtol + atol / sigma_data)                                                           (2)

is Euler's, x = D, whose error is of second order: a twentieth of the tolerance for detail of a tenth of sigma_data.

A step's error is controlled by (1) of ``numerics.ode``. What becomes of it later is another matter: near the watershed of two
modes it grows a hundredfold. So every item is solved twice, with tolerances a factor of eight apart, and accepted if the two
solutions agree within the tolerance; the others are solved again with tolerances smaller by eight.

Sources: Karras et al. 2022 (arXiv:2206.00364) for the scaling; Lu and Song 2025 (arXiv:2410.11081) for the angle; Hairer, Norsett
and Wanner 1993, II.4, for the error by two solutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.ode import Continuous, Solution, integrate_adaptive
from ..numerics.shapes import pad, rms
from ..numerics.tableau import BOGACKI_SHAMPINE, TABLES, TSITOURAS, Tableau
from ..process.gaussian import GaussianProcess
from .angle import angle, norm_at, time_at_angle
from .draw import sigma_data_of
from .start import Start, begin

__all__ = ["Adaptive", "adaptive", "angle_field"]

_FACTOR = 8.0  # between the tolerances of two solutions
_FIRST = 1 / 8  # share of the tolerance of the better of the first two
_SMALLEST = 1e-4  # share below which an item is given up
_STEP = 0.1  # first step in theta: above pi/2 - 0.1 there is ten times more noise than data


def angle_field(
    process: GaussianProcess, mean: Callable[[Tensor, Tensor], Tensor], sigma_data: float, latest: float = 1.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """The field (1) as a function of theta, ``()`` or ``(B,)``, and y, ``(B, ...)``, for any solver of ordinary equations.

    Args:
        process: the noise process.
        mean: E[x | x_t] as a function of x and the time.
        sigma_data: standard deviation of the data.
        latest: no time after this one is asked for.

    >>> from trilemma.process import Flow
    >>> field = angle_field(Flow(), lambda x, t: torch.zeros_like(x), 1.0)
    >>> field(torch.tensor(math.pi / 4), torch.ones(1, 1))
    tensor([[1.]])
    """

    def field(theta: Tensor, y: Tensor) -> Tensor:
        theta = theta.double()
        t = time_at_angle(process, theta, sigma_data).clamp(max=latest)
        x = y * pad(norm_at(process, t, sigma_data), y).to(y)
        cos, sin = (pad(c, y).to(y) for c in (theta.cos(), theta.sin()))
        return (y * cos - mean(x, t) / sigma_data) / sin

    return field


@dataclass(frozen=True)
class _Flow:
    """The flow of a batch, to be solved with local control at any tolerance."""

    batch: Start
    start: float
    sigma_data: float
    table: Tableau
    dense: bool
    max_calls: int

    @property
    def process(self) -> GaussianProcess:
        """That of the denoiser."""
        return self.batch.denoiser.process

    def solve(self, items: Tensor, rtol: float, atol: float) -> tuple[Tensor, Solution[Tensor]]:
        """Samples of some items, and the solution in y down to the last step."""
        scale, mean = self.sigma_data, self.batch.mean(items)
        first = torch.tensor(self.start, dtype=torch.float64)
        begin = float(angle(self.process, first, scale))
        end = min(0.1 * math.sqrt(rtol + atol / scale), begin / 2)  # (2)
        last = time_at_angle(self.process, torch.tensor(end, dtype=torch.float64), scale)
        solution = integrate_adaptive(
            angle_field(self.process, mean, scale, self.start), self.batch.x[items] / float(norm_at(self.process, first, scale)),
            begin, end, rtol=rtol, atol=atol / scale, table=self.table, first_step=min(_STEP, begin - end),
            max_calls=self.max_calls, dense=self.dense,
        )  # fmt: skip
        return mean(solution.y * float(norm_at(self.process, last, scale)), last), solution


@dataclass(frozen=True)
class _Path:
    """The states of some items at any time."""

    items: Tensor
    flow: _Flow
    y: Continuous[Tensor]
    x0: Tensor

    def at(self, t: Tensor) -> Tensor:
        """The states at time ``t``, shape ``(len(items), ...)``."""
        flow, (begin, end) = self.flow, self.y.span
        theta, norm = (
            float(angle(flow.process, t, flow.sigma_data)),
            float(norm_at(flow.process, t, flow.sigma_data)),
        )
        if not 0 <= float(t) <= flow.start:
            raise ValueError(f"the solution is known for times from 0 to {flow.start}, got {float(t)}")
        if theta >= end:
            return self.y(min(theta, begin)) * norm
        # Euler's step keeps D and eps
        eps = (self.y(end) - self.x0 * (math.cos(end) / flow.sigma_data)) / math.sin(end)
        return self.x0 * float(flow.process.alpha(t)) + eps * float(flow.process.sigma(t))


@dataclass(frozen=True)
class Adaptive:
    """Samples and what they cost.

    Args:
        x: the samples, shape ``(B, ...)``.
        calls: calls of the denoiser, on all items or on some.
        error: estimated error of every item in units of the tolerance, shape ``(B,)``; NaN where it was not controlled.
        accepted: accepted steps of every item's final solution, shape ``(B,)``.
        rejected: rejected ones.
    """

    x: Tensor
    calls: int
    error: Tensor
    accepted: Tensor
    rejected: Tensor
    _paths: tuple[_Path, ...] = ()

    def at(self, t: float) -> Tensor:
        """The states of all items at a time between the start and 0, shape ``(B, ...)``; needs ``dense=True``.

        Raises:
            ValueError: the solution in between was not kept, or the time is not between 0 and the start.
        """
        if not self._paths:
            raise ValueError("the solution in between was not kept; ask for it with dense=True")
        out = torch.empty_like(self.x)
        for path in self._paths:
            out[path.items] = path.at(torch.tensor(t, dtype=torch.float64))
        return out


@torch.no_grad()
def adaptive(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    method: str | Tableau | None = None,
    control: str = "global",
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    x: Tensor | None = None,
    start: float = 1.0,
    sigma_data: float | None = None,
    cond: dict[str, Tensor] | None = None,
    dense: bool = False,
    max_calls: int = 10_000,
) -> Adaptive:
    """Samples of the probability flow with a given error, by steps of their own for every item.

    The error of an item is rms(|x - x*| / (atol + rtol |x|)), where x* is the exact solution for this denoiser.

    Args:
        denoiser: any denoiser, guided or wrapped.
        shape: ``(B, ...)``.
        rtol: relative tolerance.
        atol: absolute tolerance, in units of x.
        method: a Runge-Kutta pair of ``numerics.tableau`` or its name. If not given, that of Bogacki and Shampine for
            tolerances of 1e-3 and more, and that of Tsitouras below, where the higher order pays.
        control: ``"global"`` for the error of the result; ``"local"`` for the error that each step adds.
        seeds: an integer, one integer per item, or a ``torch.Generator``; as in ``sample``.
        x: the state at ``start``; drawn if not given.
        start: time at which to start.
        sigma_data: standard deviation of the data in (1), a matter of cost; that of the denoiser inside, or 0.5, if not given.
        cond: conditions for the denoiser, one per item.
        dense: keep the solution in between, for :meth:`Adaptive.at`.
        max_calls: give up one solution after so many calls.

    Raises:
        ValueError: something does not fit; found before any work is done.
        ArithmeticError: an item cannot be solved.

    Cost:
        For an error of 1e-3 on a 64-D mixture 41 calls with local control, and 115 with global control, the later of them on
        the few items that need them.

    Error:
        Global control: the tolerance for all items but those that would need a tolerance 1e-4 times smaller, whose ``error`` says
        so. Local control: about the tolerance for most items, up to a hundred times that near a watershed.

    >>> import trilemma as tl
    >>> two = tl.MixtureDenoiser(tl.Flow(), torch.tensor([[-1.0], [1.0]]), tl.Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> solution = adaptive(two, (100, 1), rtol=1e-4, atol=1e-4)
    >>> bool((solution.error <= 1).all())
    True
    """
    default = BOGACKI_SHAMPINE if rtol + atol >= 1e-3 else TSITOURAS
    table = TABLES.get(method) if isinstance(method, str) else method or default
    if table is None or table.error is None:
        pairs = ", ".join(name for name, entry in TABLES.items() if entry.error is not None)
        raise ValueError(f"method must be a Runge-Kutta pair with an error estimate, one of {pairs}; got {method!r}")
    if control not in ("global", "local"):
        raise ValueError(f"control must be 'global' or 'local', got {control!r}")
    if not (rtol >= 0 and atol >= 0 and rtol + atol > 0):
        raise ValueError(f"tolerances must be positive, got rtol={rtol}, atol={atol}")
    scale = sigma_data_of(denoiser) if sigma_data is None else sigma_data
    if not 0 < scale < math.inf:
        raise ValueError(f"sigma_data must be positive and finite, got {sigma_data}")
    batch = begin(denoiser, shape, start, seeds=seeds, x=x, cond=cond)
    flow = _Flow(batch, start, scale, table, dense, max_calls)

    items = torch.arange(len(batch.x), device=batch.x.device)
    out = torch.empty_like(batch.x)
    error = torch.full((len(out),), torch.nan, dtype=torch.float64, device=out.device)
    accepted = torch.zeros(len(out), dtype=torch.long, device=out.device)
    rejected, paths = torch.zeros_like(accepted), []
    share = 1.0 if control == "local" else _FIRST
    coarse = None if control == "local" else flow.solve(items, share * _FACTOR * rtol, share * _FACTOR * atol)[0]
    while len(items):
        fine, solution = flow.solve(items, share * rtol, share * atol)
        done = torch.ones_like(items, dtype=torch.bool)
        if coarse is not None:
            error[items] = rms((fine - coarse) / (atol + rtol * fine.abs())).double()
            done = (error[items] <= 1) | (share / _FACTOR < _SMALLEST)
        for whole, part in ((out, fine), (accepted, solution.accepted), (rejected, solution.rejected)):
            whole[items] = part
        if solution.path is not None:
            paths.append(_Path(items, flow, solution.path, fine))  # a later one has the better solution of its items
        items, coarse, share = items[~done], fine[~done], share / _FACTOR
    return Adaptive(out, batch.calls, error, accepted, rejected, tuple(paths))
