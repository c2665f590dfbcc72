"""Rules that wrap rules: churn, restart, and noise along a Brownian path.

An inner rule is bound inside the outer one: for churn, to the two ends of every step, the first of them moved; for restart, to
the stretches of the grid between restarts. So any rule can be inside; one that remembers earlier steps has nothing to remember
at the start of a stretch and takes its first step there.

A linear rule draws c xi in a step, with xi ~ N(0, 1) anew in every step, so the same seed on another grid gives another sample.
In the family (1) of ``linear`` the noise of a step is

    sigma_t sqrt(1 - e^(-g)) xi = sigma_t e^(-v_t / 2) (W(e^(v_t)) - W(e^(v_s))),     v = 2 eta^2 lambda,  g = v_t - v_s,  (1)

with one Brownian motion W. When xi is read off a path W that the seed fixes, all grids follow the same solution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.brownian import BrownianPath, tick_of
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from ..process.grid import karras_grid
from .loop import Carry, Denoise, Rule, Step
from .plan import Plan
from .sa import Clock, Constant

__all__ = ["Churn", "brownian", "churn", "restart"]


@dataclass(frozen=True)
class Churn:
    """The rule :func:`churn`."""

    inner: Rule
    amount: float
    low: float
    high: float
    inflate: float

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        """Bind the inner rule to every step from its raised noise level."""
        n = len(ts) - 1
        log_snr = process.log_snr(ts)
        gamma = min(self.amount / n, math.sqrt(2) - 1)
        bound = []
        for i in range(n):
            level = math.exp(-float(log_snr[i]) / 2)
            raised = process.time(log_snr[i] - 2 * math.log1p(gamma)) if self.low <= level <= self.high else ts[i]
            scale, std = process.transition(ts[i], raised) if raised > ts[i] else (torch.ones(()), torch.zeros(()))
            bound.append(
                (self.inner(process, torch.stack([torch.maximum(raised, ts[i]), ts[i + 1]])), float(scale), float(std))
            )

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            inner, scale, std = bound[i]
            if std:
                x = (x * scale).add_(noise.at(0).normal_like(x), alpha=std * self.inflate)
            return inner(denoise, x, 0, None, noise.at(1))[0], None

        return step


def churn(inner: Rule, amount: float, *, low: float = 0.0, high: float = math.inf, inflate: float = 1.0) -> Churn:
    """EDM's stochastic sampler around any rule: before each step, raise the noise level by adding noise.

    The level sigma/alpha is multiplied by 1 + gamma, gamma = min(amount / N, sqrt(2) - 1), where it lies in [low, high], by
    noise of standard deviation ``inflate`` times what that needs; never beyond the level of t = 1.

    Args:
        inner: the rule to take the steps; ``runge_kutta(HEUN)`` in the paper.
        amount: S_churn; 0 leaves the inner rule as it is.
        low: S_tmin, in units of sigma/alpha.
        high: S_tmax.
        inflate: S_noise.

    Raises:
        ValueError: a number is negative, or ``low`` is above ``high``.

    Cost:
        That of the inner rule.

    Differs:
        The paper's Heun works in sigma/alpha; ``runge_kutta(HEUN)`` works in sigma/(alpha + sigma), where the end is straighter.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2.
    """
    if amount < 0 or inflate < 0 or not 0 <= low <= high:
        raise ValueError(
            f"churn needs amount >= 0, inflate >= 0 and 0 <= low <= high; got {amount}, {inflate}, {low}, {high}"
        )
    return Churn(inner, amount, low, high, inflate)


class _Increment:
    """Noise that answers its one draw with a value found before."""

    def __init__(self, xi: Tensor) -> None:
        self.xi = xi

    def normal_like(self, x: Tensor) -> Tensor:
        """The value."""
        return self.xi


def _clock_of(rule: Rule) -> Clock | None:
    """The clock that a rule was made with, if it says."""
    eta, clock = getattr(rule, "eta", None), getattr(rule, "clock", None)
    return clock if eta is None else Constant(eta)


def _amounts(process: GaussianProcess, ts: Tensor, clock: Clock) -> Tensor:
    """The standard deviations (1) of the noise of all steps."""
    return process.sigma(ts[1:]) * torch.sqrt(-torch.expm1(-clock(process.log_snr(ts)).diff()))


@dataclass(frozen=True)
class _Brownian:
    """The rule :func:`brownian`."""

    inner: Rule
    clock: Clock

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        """Find the ticks between which every step that draws noise reads the path."""
        plan, own = self.inner(process, ts), _clock_of(self.inner) or self.clock
        if not isinstance(plan, Plan):
            raise ValueError(f"brownian needs a rule that gives a Plan, one draw a step; {self.inner!r} does not")
        if not torch.allclose(_amounts(process, ts, self.clock), _amounts(process, ts, own), rtol=1e-6, atol=0.0):
            raise ValueError(
                f"{self.inner!r} draws the noise of {own}, not of {self.clock}; give brownian no eta or clock"
            )
        clock, noisy = self.clock(process.log_snr(ts)).tolist(), plan.c.tolist()
        reads: list[tuple[int | None, int] | None] = [None] * plan.steps
        for i in range(plan.steps):
            if noisy[i]:
                start, end = (tick_of(v) if v != -math.inf else None for v in clock[i : i + 2])
                if end is None or end == start:
                    raise ValueError(
                        f"step {i} draws noise while the clock goes from {clock[i]} to {clock[i + 1]}; give brownian the eta "
                        "or the clock of its rule, and no steps that are shorter than a millionth of the clock"
                    )
                reads[i] = start, end

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            path, last, z, inner = (BrownianPath(noise), None, None, None) if carry is None else carry
            read = reads[i]
            if read is None:
                x, inner = plan(denoise, x, i, inner, noise)
                return x, (path, last, z, inner)
            start, end = read
            like = x if x.dtype == torch.float64 else x.float()
            new = path.at(end, like)
            if start is None:  # W = 0 where the clock is
                xi = new
            else:
                xi = path.increment(z if z is not None and last == start else path.at(start, like), new, end - start)
            x, inner = plan(denoise, x, i, inner, _Increment(xi.to(x.dtype)))  # type: ignore[arg-type]
            return x, (path, end, new, inner)

        return step


def brownian(inner: Rule, eta: float | None = None, *, clock: Clock | None = None) -> _Brownian:
    """The noise of a linear rule read off a Brownian path that the seed fixes, equation (1).

    Then the same seed gives the same sample on every grid, up to the error of the rule: at 20, 50 and 500 steps, or on a finer
    grid to check that a sample has converged.

    Args:
        inner: a rule that gives a :class:`Plan`, of the family (1) of ``linear``: ``exponential(order, eta)``, ``ddpm``, those of
            ``sa``; to first order also ``ddim(eta)`` and ``euler_maruyama(eta)``.
        eta: its amount of noise; the rule's own ``eta`` or ``clock`` if neither is given, and 1 if it has none.
        clock: its clock, where eta is not constant.

    Raises:
        ValueError: eta and a clock are given. When bound, if the rule gives no plan, has another clock of its own, or draws noise
            where the clock stands still.

    Cost:
        At most 31 draws of noise a step instead of one, and memory for five states.

    Error:
        Strong, per item: O(h), for Gaussian noise that does not depend on the state.

    >>> import trilemma as tl
    >>> one = tl.GaussianDenoiser(tl.EDM(), torch.zeros(1), tl.Covariances.diagonal(torch.ones(1, 1)))
    >>> x = [tl.sample(one, (1, 1), tl.log_snr_grid(one.process, n), brownian(tl.ddpm)) for n in (100, 1000)]
    >>> bool((x[0] - x[1]).abs() < 0.1)
    True
    """
    if eta is not None and clock is not None:
        raise ValueError(f"give eta or a clock, not both; got {eta} and {clock}")
    return _Brownian(inner, (clock or _clock_of(inner) or Constant()) if eta is None else Constant(eta))


@dataclass(frozen=True)
class _Restart:
    """The rule :func:`restart`."""

    inner: Rule
    low: float
    high: float
    steps: int
    repeats: int
    inflate: float

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        """Cut the grid at the time nearest to the low level, if it comes from above it and has a time below the high one."""
        n, above = len(ts) - 1, process.log_snr(ts) / 2 + math.log(self.low)  # log(low / level)
        at = 1 + int(above[1:].abs().argmin())
        top = process.time(torch.tensor(-2 * math.log(self.high), dtype=torch.float64))
        if above[0] >= 0 or not 0 < ts[at] < top:
            return self.inner(process, ts)
        before, after = self.inner(process, ts[: at + 1]), self.inner(process, ts[at:]) if at < n else None
        low, high = (math.exp(-float(process.log_snr(t)) / 2) for t in (ts[at], top))
        inside = karras_grid(process, self.steps + 1, sigma_min=low, sigma_max=high)[:-1]
        inside[0], inside[-1] = top, ts[at]
        again = self.inner(process, inside)
        scale, std = (float(v) for v in process.transition(ts[at], top))

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            if i >= at:
                assert after is not None
                return after(denoise, x, i - at, carry, noise)
            x, carry = before(denoise, x, i, carry, noise.at(0))
            if i + 1 < at:
                return x, carry
            for k in range(self.repeats):
                own = noise.at(1 + k)
                x, memory = (x * scale).add_(own.at(0).normal_like(x), alpha=std * self.inflate), None
                for j in range(self.steps):
                    x, memory = again(denoise, x, j, memory, own.at(1 + j))
            return x, None

        return step


def restart(
    inner: Rule, *, low: float = 0.06, high: float = 0.3, steps: int = 3, repeats: int = 2, inflate: float = 1.0
) -> _Restart:
    """Restart sampling: at a low noise level go back up by fresh noise, and down again, several times.

    Fresh noise forgets errors made before, as in a stochastic rule; the way down is the inner rule's, with its small errors.

    Args:
        inner: the rule for all ways down; ``runge_kutta(HEUN)`` in the paper. Another restart, for several intervals.
        low: t_min in units of sigma/alpha; moved to the nearest level of the grid.
        high: t_max.
        steps: steps of a way down, on Karras' levels with rho = 7.
        repeats: K.
        inflate: S_noise.

    Raises:
        ValueError: a number is out of range.

    Cost:
        That of the inner rule, and ``repeats * steps`` steps more; none if the grid has no level below ``high``.

    Source: Xu et al. 2023 (arXiv:2306.14878), algorithm 1; the interval is that of CIFAR-10.

    >>> from trilemma.sampling import ddim
    >>> restart(ddim(), low=1.0, high=0.5)
    Traceback (most recent call last):
    ValueError: restart needs 0 < low < high, steps >= 1, repeats >= 0 and inflate >= 0; got 1.0, 0.5, 3, 2 and 1.0
    """
    if not 0 < low < high < math.inf or steps < 1 or repeats < 0 or inflate < 0:
        raise ValueError(
            f"restart needs 0 < low < high, steps >= 1, repeats >= 0 and inflate >= 0; got {low}, {high}, {steps}, {repeats} and "
            f"{inflate}"
        )
    return _Restart(inner, low, high, steps, repeats, inflate)
