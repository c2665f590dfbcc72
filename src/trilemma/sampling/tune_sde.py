"""The best stochastic plan for a model and a number of calls: the one whose samples have the model's law.

Noise drawn on the way leaves no true end to compare an item with, only a law. How far the law P of a plan's samples is from the
model's own law Q is told by the energy distance, which is 0 only where they are equal and has nothing to choose,

    D(P, Q) = 2 E|x - y| - E|x - x'| - E|y - y'|,     x, x' ~ P,   y, y' ~ Q,                                (1)

estimated without bias from the pairs of n items: the mean over i != j of

    h_ij = |x_i - y_j| + |x_j - y_i| - |x_i - x_j| - |y_i - y_j|.                                            (2)

y_i is the fine solution of the probability flow from the state at which the plan's x_i starts. That leaves (2) without bias, as
items are independent, and what both owe to the draw of the starts cancels. Distances between items hardly see what is finer than
the items are apart: graininess, or samples that are too clean. The denoiser does. At a low level sigma_f,

    spread = E|x - D(x, sigma_f)|^2 / E|y - D(y, sigma_f)|^2,                                                (3)

is for round Gaussian modes the ratio of the variances inside them, for others a mean of such ratios. Of plans whose spread lies
in [0.9, 1.1], within its own uncertainty, the least distance is best; others follow, by their spread.

All candidates start from the same states with the same noises. They are every stochastic plan of the registry on every grid, and
SA-Solver and exponential rules with four amounts of noise on grids of equal steps of log-SNR about the model's scale.

Sources: Szekely and Rizzo 2013, J. Stat. Plan. Inference 143, 1249, for (1); Xue et al. 2023 (arXiv:2309.05019) for how
much the best amount of noise depends on the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..denoise.posterior import Gaussian
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from ..process.grid import angular_grid, log_snr_grid
from .angle import angular
from .draw import sigma_data_of
from .linear import exponential
from .loop import Rule, run
from .plan import Plan
from .sa import Constant, sa_solver
from .start import Start, begin, check
from .tune import published_plans

__all__ = ["Row", "TunedSDE", "energy_distance", "tune_sde"]

_NOISES, _LOWS, _HIGHS = (0.25, 0.5, 0.75, 1.0), (-6.0, -4.0), (5.0, 7.0, 9.0)
_ROUNDS = (16, 4, 1)  # the first round has a sixteenth of the pilots to choose with
_STAY, _FEW = 5, 6  # one candidate of so many goes on, but not fewer than that
_FINE = 0.05  # sigma_f over sigma_data
_SPREAD = 0.1  # that may be off
_LEAST = 0.01  # of sigma_f, a number: what shows


def energy_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The energy distance (1) of two laws from as many items of both, and its standard error.

    Args:
        x: items of one law, shape ``(n, ...)``.
        y: items of the other, the same shape; ``x[i]`` and ``y[i]`` may depend on each other.

    Returns:
        The estimate, in units of the items, which has no bias and so may be negative; its standard error by the jackknife,
        which is too large rather than too small where the laws are equal.

    Raises:
        ValueError: fewer than three items, or other shapes.

    Cost:
        O(n^2) time in the size of an item, and memory for four n x n matrices.

    Source: Szekely and Rizzo 2013, by (2).

    >>> x, y = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    >>> value, stderr = energy_distance(x, y)
    >>> abs(value) < 2 * stderr, energy_distance(x, y + 1)[0] > 20 * stderr
    (True, True)
    """
    if x.shape != y.shape or len(x) < 3:
        raise ValueError(
            f"the laws need as many items each, at least 3, of one shape; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y, n = x.double().flatten(1), y.double().flatten(1), len(x)
    apart = torch.cdist(x, y)
    h = apart + apart.T - torch.cdist(x, x) - torch.cdist(y, y)
    rows = h.fill_diagonal_(0).sum(1)
    total = rows.sum()
    without = (total - 2 * rows) / ((n - 1) * (n - 2))
    return float(total / (n * (n - 1))), float(without.std(correction=0) * math.sqrt(n - 1))


@dataclass(frozen=True, eq=False)
class Row:
    """A stochastic plan and how far its law is from the model's.

    Args:
        name: the rule and the grid.
        plan: the plan.
        distance: estimate of (1), in units of the data.
        stderr: its standard error.
        spread: estimate of (3); 1 is right, less is too clean, more too noisy.
        excess: by how much log spread is off, beyond what is allowed and what so few items leave open.
        published: whether it is a published rule on a published grid.
    """

    name: str
    plan: Plan
    distance: float = math.inf
    stderr: float = math.inf
    spread: float = math.nan
    excess: float = math.inf
    published: bool = False

    @property
    def rank(self) -> tuple[float, float]:
        """What candidates are ordered by."""
        return self.excess, self.distance


@dataclass(frozen=True, eq=False)
class TunedSDE:
    """What :func:`tune_sde` found.

    Args:
        best: the best plan on all pilots.
        published: the best published one.
        rows: the finalists, best first by all pilots; their figures are of held-out pilots, which had no part in leaving these
            few (that of ``best``, as the first of them, is a little optimistic). The default without noise is among them, but is
            not chosen.
        calls: calls of the denoiser that tuning took, times items.
    """

    best: Row
    published: Row
    rows: tuple[Row, ...]
    calls: int

    @property
    def plan(self) -> Plan:
        """The plan to sample with: ``sample(denoiser, shape, tuned.plan)``."""
        return self.best.plan

    def __str__(self) -> str:
        wide = max(len(row.name) for row in self.rows)
        lines = [f"{'plan of ' + str(self.plan.steps) + ' calls':<{wide}}  energy distance       spread"]
        lines += [f"{r.name:<{wide}}  {r.distance:9.1e} +- {r.stderr:.1e} {r.spread:8.2f}" for r in self.rows]
        return "\n".join([*lines, f"took {self.calls} calls times items"])


def _own(process: GaussianProcess, steps: int, sigma_data: float) -> list[Row]:
    """SA-Solver and exponential rules with less and more noise on grids of log-SNR."""
    shift = -2 * math.log(sigma_data)
    found: list[Row] = []
    for eta in _NOISES:
        rules: dict[str, Rule] = {
            f"sa_solver(2, 2), tau {eta:g}": sa_solver(2, 2, clock=Constant(eta)),
            f"exponential(2), eta {eta:g}": exponential(2, eta),
        }
        for low in _LOWS:
            for high in _HIGHS:
                ts = log_snr_grid(process, steps, low=low + shift, high=high + shift)
                where = f"log-SNR {low + shift:.1f} to {high + shift:.1f}"
                plans = {name: rule(process, ts) for name, rule in rules.items()}
                found += [Row(f"{name}, {where}", plan) for name, plan in plans.items() if isinstance(plan, Plan)]
    return found


@dataclass(frozen=True, eq=False)
class _Ends:
    """Where a plan took some pilots, and |x - D|^2 of (3) there."""

    x: Tensor
    rest: Tensor

    def __add__(self, other: _Ends) -> _Ends:
        return _Ends(torch.cat([self.x, other.x]), torch.cat([self.rest, other.rest]))


class _Laws:
    """Pilots that a plan is run on, and items of the law that is wanted.

    Args:
        start: n pilots.
        noise: of the steps.
        batch: pilots in one call.
        truth: items of the law, one a pilot; those of the model itself by ``fine`` steps without noise if not given.
    """

    def __init__(self, start: Start, noise: Noise, batch: int, truth: Tensor | None, fine: int) -> None:
        self.start, self.noise, self.batch, self.calls = start, noise, batch, 0
        self.process, self.sigma_data = start.denoiser.process, sigma_data_of(start.denoiser)
        self.low = self.process.time(torch.tensor(-2 * math.log(_FINE * self.sigma_data), dtype=torch.float64))
        self.truth = self.ends(self.default(fine), 0, len(start.x)) if truth is None else truth.to(start.x)
        self.true_rest = self.rest(self.truth, 0)

    def default(self, steps: int) -> Plan:
        """The plan without noise that `sample` takes by itself."""
        ts = angular_grid(self.process, steps, sigma_data=self.sigma_data)
        return angular(sigma_data=self.sigma_data)(self.process, ts)

    def mean(self, index: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """E[x | x_t] of the pilots of that index; counts calls."""
        self.calls += len(index)
        return self.start.mean(index.to(self.start.x.device))

    def ends(self, plan: Plan, first: int, last: int) -> Tensor:
        """Where a plan takes pilots ``first`` to ``last``."""
        parts = []
        for index in torch.arange(first, last).split(self.batch):
            denoise = lambda x, t, index=index: Gaussian(self.mean(index)(x, t))  # noqa: E731
            x = self.start.x[index.to(self.start.x.device)]
            parts.append(run(plan, denoise, x, plan.steps, self.noise[index]))
        return torch.cat(parts)

    def rest(self, x: Tensor, first: int) -> Tensor:
        """|x - D|^2 of (3) for ends of the pilots from ``first`` on, shape ``(n,)``; less than shows counts as that."""
        parts, scale, least = [], float(self.process.alpha(self.low)), _LEAST * _FINE * self.sigma_data
        for index in torch.arange(len(x)).split(self.batch):
            some = x[index.to(x.device)]
            gap = some - self.mean(index + first)(some * scale, self.low)
            parts.append(gap.double().flatten(1).square().sum(1).clamp(min=x.shape[1:].numel() * least**2))
        return torch.cat(parts)

    def run(self, plan: Plan, first: int, last: int) -> _Ends:
        """Where a plan takes pilots ``first`` to ``last``, and what (3) needs."""
        x = self.ends(plan, first, last)
        return _Ends(x, self.rest(x, first) if bool(torch.isfinite(x).all()) else x.new_full((len(x),), math.nan))

    def judged(self, row: Row, ends: _Ends, first: int) -> Row:
        """The row with the figures of what its plan reached for the pilots from ``first`` on."""
        if not bool(torch.isfinite(ends.x).all()):
            return row
        here = slice(first, first + len(ends.x))
        distance, stderr = energy_distance(ends.x, self.truth[here])
        mine, true = ends.rest, self.true_rest[here]
        unknown = math.hypot(*(float(r.std() / r.mean()) for r in (mine, true))) / math.sqrt(len(mine))
        spread = float(mine.mean() / true.mean())
        excess = max(0.0, abs(math.log(spread)) - _SPREAD - 2 * unknown)
        return replace(row, distance=distance, stderr=stderr, spread=spread, excess=excess)


def _field(laws: _Laws, field: list[Row], choosing: int) -> list[tuple[Row, _Ends]]:
    """The best of the field by rounds on more and more of the first pilots, best first, with what they reached."""
    left = [(row, laws.run(row.plan, 0, 0)) for row in field]
    for part in _ROUNDS:
        items, seen = max(8, choosing // part), left
        left = []
        for row, ends in seen:
            ends = ends + laws.run(row.plan, len(ends.x), items)
            left.append((laws.judged(row, ends, 0), ends))
        left.sort(key=lambda pair: pair[0].rank)
        best = next(pair for pair in left if pair[0].published)  # stays, to be compared with
        left = left[: max(_FEW, math.ceil(len(left) / _STAY))]
        left += [] if any(row.published for row, _ in left) else [best]
    return left


@torch.no_grad()
def tune_sde(
    denoiser: Denoiser,
    shape: Sequence[int],
    steps: int,
    *,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    cond: dict[str, Tensor] | None = None,
    reference: Tensor | None = None,
    fine: int = 40,
    batch: int = 64,
) -> TunedSDE:
    """The stochastic plan of ``steps`` calls whose samples are nearest in law to the model's own, or to given items.

    Args:
        denoiser: any denoiser, guided, conditional or wrapped.
        shape: ``(n, ...)``: n pilots of the shape of an item. Two thirds are to leave a few candidates with, which are then
            judged on the rest, too. A distance that two sets of n exact samples have cannot be told from none, so more pilots
            choose better.
        steps: calls of the denoiser, at least 2.
        seeds: of the pilots' noise.
        cond: conditions for the denoiser, one per pilot: draw them as they will be used.
        reference: items whose law is wanted instead of the model's own, shape ``shape``, of the same conditions: data, say.
        fine: steps of the deterministic reference solution, of fourth order.
        batch: pilots in one call.

    Returns:
        The best plan by (1) and (3), the best published one, what is known of both from held-out pilots, and the cost.

    Raises:
        ValueError: fewer than 2 steps or 48 pilots, a reference of fewer steps than the plan, or seeds, conditions or
            references that do not fit.

    Cost:
        About ``(fine + 20 steps)`` n calls times items, and O(n^2) distances of items.

    >>> from trilemma.denoise import Covariances, MixtureDenoiser
    >>> from trilemma.process import VP
    >>> two = MixtureDenoiser(VP(), torch.tensor([[-1.0], [1.0]]), Covariances.diagonal(torch.full((2, 1), 0.04)))
    >>> tuned = tune_sde(two, (96, 1), 5)
    >>> tuned.plan.steps, bool(tuned.plan.c.any()), tuned.published.published
    (5, True, True)
    """
    shape = tuple(shape)
    if steps < 2:
        raise ValueError(f"tune_sde needs at least 2 steps, got {steps}; one step is x = D, without noise")
    if not shape or shape[0] < 48:
        raise ValueError(
            f"tune_sde needs at least 48 pilots to tell laws apart, got shape {shape}; 768 are a good number"
        )
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    if reference is None and fine < max(10, steps):
        raise ValueError(f"the reference needs more steps than the plan, got fine={fine} for {steps} steps")
    if reference is not None and (reference.shape != shape or not bool(torch.isfinite(reference).all())):
        raise ValueError(f"the reference must be finite items of shape {shape}, got {tuple(reference.shape)}")
    device, cond = check(denoiser, shape, None, cond)
    noise = Noise(seeds, shape[0]).at(-3)  # `sample` draws its start at -1, `tune` its pilots at -2
    x = denoiser.process.prior(shape, noise.at(-1), like=torch.empty(0, device=device))
    start = begin(denoiser, shape, 1.0, seeds=0, x=x, cond=cond)
    laws, choosing = _Laws(start, noise, batch, reference, fine), shape[0] - shape[0] // 3
    plans = published_plans(laws.process, steps, stochastic=True)
    field = [Row(name, plan, published=True) for name, plan in plans] + _own(laws.process, steps, laws.sigma_data)
    field = [row for row in field if bool(row.plan.c.any())]  # in a few steps some of their rules draw none
    still = Row("no noise: the default", laws.default(steps))
    rows = []
    for row, seen in [*_field(laws, field, choosing), (still, laws.run(still.plan, 0, choosing))]:
        fresh = laws.run(row.plan, choosing, shape[0])
        rows.append((laws.judged(row, seen + fresh, 0).rank, laws.judged(row, fresh, choosing)))
    ordered = [row for _, row in sorted(rows, key=lambda pair: pair[0])]
    noisy = [row for row in ordered if row.plan != still.plan]
    return TunedSDE(noisy[0], next(row for row in noisy if row.published), tuple(ordered), laws.calls)
