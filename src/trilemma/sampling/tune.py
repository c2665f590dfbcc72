"""The best plan for a model and a number of calls: published rules, angular rules on a family of grids, and fitted weights.

Pilot trajectories, chosen for what is hard (see ``sampling.pilots``), are solved finely once, which gives true ends x(0) and the
states on the way. Every candidate then runs on the pilots with the model itself and is judged by the mean over the items of their
root mean square error. (The mean counts the few items that end in another basin, but is not ruled by them alone as the root mean
square over all items is.) Candidates:

1. every deterministic rule of the registry of one call a step, on every grid; without those on eps where alpha(1) = 0, which
   cannot start there;
2. ``angular`` of orders 2 to 5 on ``angular_grid`` with many spreads and centres;
3. on the best grids so found, weights fitted to the model (see ``sampling.pilots``);
4. small moves of the grid of the best, fitted again;
5. all numbers of the best so far refined together (see ``sampling.refine``).

Rounds of successive halving spend few pilots on bad candidates. The last few, and the best published one, are judged on pilots
that had no part in any choice before; the best there is returned, so it is never worse there than the best published one.

Sources: Sabour et al. 2024 (arXiv:2404.14507) for tuning grids to models; Shaul et al. 2024 (arXiv:2403.01329) for fitted
coefficients, there by gradients through the sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..process.betas import FromBetas
from ..process.gaussian import GaussianProcess
from ..process.grid import GRIDS, angular_grid
from .angle import angle, angular
from .pilots import Candidate, Pilots, hard_pilots
from .plan import Plan
from .refine import refine
from .registry import RULES
from .start import begin, check

__all__ = ["Candidate", "Tuned", "published_plans", "tune"]

_CROWD = 8  # times as many items to choose the pilots from
_SPREADS, _CENTRES = (0.4, 0.55, 0.7, 0.9), (-1.4, -0.9, -0.5, -0.1, 0.3)


@dataclass(frozen=True, eq=False)
class Tuned:
    """What :func:`tune` found.

    Args:
        best: the best candidate on the held-out pilots; being the least of a few figures, its error is a little optimistic.
        published: the best published one there.
        rows: all that were judged on the held-out pilots, best first.
        calls: calls of the denoiser that tuning took, times items.
    """

    best: Candidate
    published: Candidate
    rows: tuple[Candidate, ...]
    calls: int

    @property
    def plan(self) -> Plan:
        """The plan to sample with: ``sample(denoiser, shape, tuned.plan)``."""
        return self.best.plan

    def __str__(self) -> str:
        wide = max(len(row.name) for row in self.rows)
        lines = [f"{'plan of ' + str(self.plan.steps) + ' calls':<{wide}}  mean error       rmse"]
        lines += [f"{row.name:<{wide}}  {row.error:10.2e} {row.rmse:10.2e}" for row in self.rows]
        gain = self.published.error / self.best.error
        return "\n".join(
            [*lines, f"{gain:.1f} times better than the best published plan; took {self.calls} calls times items"]
        )


def published_plans(process: GaussianProcess, steps: int, *, stochastic: bool = False) -> list[tuple[str, Plan]]:
    """Every rule of the registry, deterministic or stochastic, that is a plan of one call a step and can start here, on every
    grid, with its name; what was published under several names is there once.

    >>> from trilemma.process import EDM
    >>> "ddim on karras" in dict(published_plans(EDM(), 5)), "ddpm on karras" in dict(published_plans(EDM(), 5, stochastic=True))
    (True, True)
    """
    found: list[tuple[str, Plan]] = []
    for name, entry in RULES.items():
        if entry.stochastic != stochastic or entry.calls != 1 or entry.extra or entry.beyond:
            continue
        for grid, make in GRIDS.items():
            if grid == "angular" or (grid == "trailing" and not isinstance(process, FromBetas)):  # is then uniform
                continue
            ts = make(process, steps)
            if bool((ts.diff() >= 0).any()) or (entry.needs_signal and float(process.alpha(ts[0])) == 0):
                continue
            plan = entry.make()(process, ts)
            if isinstance(plan, Plan) and not any(_same(plan, other) for _, other in found):
                found.append((f"{name} on {grid}", plan))
    return found


def _same(plan: Plan, other: Plan) -> bool:
    """Whether two plans are one: several rules were published under several names."""

    def wide(table: Tensor, columns: int) -> Tensor:
        return torch.nn.functional.pad(table, (0, columns - table.shape[1]))

    def close(one: Tensor, two: Tensor) -> bool:
        columns = max(one.shape[1], two.shape[1])
        return torch.allclose(wide(one, columns), wide(two, columns), rtol=1e-9, atol=1e-9)

    return torch.equal(plan.ts, other.ts) and all(
        close(*pair) for pair in ((plan.a, other.a), (plan.b, other.b), (plan.c[:, None], other.c[:, None]))
    )


def _angular(process: GaussianProcess, steps: int, sigma_data: float) -> list[Candidate]:
    """Angular rules of all orders on a family of grids."""
    found = []
    for spread in _SPREADS:
        for centre in _CENTRES:
            ts = angular_grid(process, steps, sigma_data=sigma_data, spread=spread, centre=centre)
            for order in (2, 3, 4) if steps <= 12 else (3, 4, 5):
                rule = angular(order, sigma_data=sigma_data)
                weights = tuple(map(tuple, rule.weights(angle(process, ts, sigma_data).tolist())))
                name = f"angular({order}), spread {spread:g}, centre {centre:g}"
                found.append(Candidate(name, rule(process, ts), weights=weights))
    return found


def _halve(pilots: Pilots, field: Sequence[Candidate], keep: int) -> list[Candidate]:
    """The best ``keep`` of the field by rounds on more and more pilots, best first."""
    steps, left = field[0].plan.steps, list(field)
    items, enough = min(pilots.fit, max(3, 60 // steps)), min(pilots.fit, max(48, 2400 // steps))
    while True:
        left = sorted((pilots.judge(c, 0, items) for c in left), key=lambda c: c.error)
        if items >= enough:
            return left[:keep]
        left, items = left[: max(keep, math.ceil(len(left) / 5))], min(3 * items, enough)


def _search(pilots: Pilots, start: Candidate, make: Callable[[Tensor], Candidate], budget: int) -> Candidate:
    """Moves of the grid, one mode after the other, kept where what is made on it has less error; smaller when none helps."""
    best, size = start, 0.25
    while size > 0.02:
        before = best.error
        for mode in range(1, min(5, best.plan.steps)):
            for amount in (size, -size):
                if pilots.calls > budget:
                    return best
                steps = best.plan.steps
                wave = torch.sin(torch.arange(1, steps, dtype=torch.float64) * (math.pi * mode / steps))
                ts = pilots.moved(best.plan.ts, amount * wave)
                if bool((ts.diff() >= 0).any()):
                    continue
                tried = make(ts)
                if tried.error < best.error:
                    best = tried
                    break
        if best.error > 0.97 * before:
            size /= 2
    return best


@torch.no_grad()
def tune(
    denoiser: Denoiser,
    shape: Sequence[int],
    steps: int,
    *,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    cond: dict[str, Tensor] | None = None,
    fine: int = 150,
    budget: int = 120_000,
    batch: int = 64,
) -> Tuned:
    """The plan of ``steps`` calls with the least error for this denoiser.

    Args:
        denoiser: any denoiser, guided, conditional or wrapped.
        shape: ``(n, ...)``: n pilots of the shape of an item. Two thirds are for fitting and choosing, the rest judge; from about
            200 pilots on the choice is steady.
        steps: calls of the denoiser, at least 2.
        seeds: of the pilots' noise.
        cond: conditions for the denoiser, one per pilot: draw them as they will be used.
        fine: steps of the reference solution, of fourth order.
        budget: calls times items, those for choosing and solving the pilots apart, after which the search for better numbers
            stops. The candidates before it take about 2500 ``steps``, which are not cut short.
        batch: pilots in one call.

    Returns:
        The best plan with its error against the reference on held-out pilots, the best published plan there, and the cost.

    Raises:
        ValueError: fewer than 2 steps or 6 pilots, or seeds or conditions that do not fit.

    Cost:
        ``fine + 152`` n calls times items for the pilots, and about ``budget``. Memory for 2 ``fine`` states of the fitting
        pilots (at most 1 GiB; fewer of them are fitted to if that is not enough).

    Error:
        The reference's own, about 1e-6 for smooth denoisers, is a floor of what can be told apart.

    >>> from trilemma.denoise import Covariances, MixtureDenoiser
    >>> from trilemma.process import Flow
    >>> two = MixtureDenoiser(Flow(), torch.tensor([[-1.0], [1.0]]), Covariances.diagonal(torch.full((2, 1), 0.04)))
    >>> tuned = tune(two, (48, 1), 5, fine=60, budget=20_000)
    >>> tuned.plan.steps, tuned.best.error <= tuned.published.error
    (5, True)
    """
    shape = tuple(shape)
    if steps < 2:
        raise ValueError(f"tune needs at least 2 steps, got {steps}; one step is x = D")
    if shape[0] < 6:
        raise ValueError(f"tune needs at least 6 pilots to fit and to judge, got {shape[0]}; 200 are a good number")
    if fine < max(10, steps):
        raise ValueError(f"the reference needs more steps than the plan, got fine={fine} for {steps} steps")
    noise = Noise(seeds, shape[0]).at(-2)  # at -1 `sample` draws its start: pilots must not be what is sampled later
    device, cond = check(denoiser, shape, None, cond)
    draws = [noise.at(k) for k in range(_CROWD + 1)]
    x = torch.cat([denoiser.process.prior(shape, draw, like=torch.empty(0, device=device)) for draw in draws[:_CROWD]])
    cond = {key: torch.cat([value] * _CROWD) for key, value in cond.items()}
    crowd = begin(denoiser, x.shape, 1.0, seeds=0, x=x, cond=cond)
    start, share = hard_pilots(crowd, shape[0], batch, float(draws[_CROWD][:1].uniform((1,))))
    pilots = Pilots(start, fine, batch, share)
    limit, process, sigma_data = pilots.calls + budget, pilots.process, pilots.sigma_data
    plans = published_plans(process, steps)
    published = _halve(pilots, [Candidate(name, plan, published=True) for name, plan in plans], 2)
    family = _halve(pilots, _angular(process, steps, sigma_data), 4)
    default = angular(sigma_data=sigma_data)(process, angular_grid(process, steps, sigma_data=sigma_data))
    finalists = [*published, Candidate("the default", default), *family[:2]]
    grids = list({tuple(c.plan.ts.tolist()): c.plan.ts for c in (*family, *published)}.values())
    fits = [(k, pilots.fitted(ts, k, f"fitted weights of {k} values")) for ts in grids[:2] for k in (3, 5)]
    memory, fitted = min(fits, key=lambda fit: fit[1].error)
    name = f"fitted weights of {memory} values, fitted grid"
    moved = _search(
        pilots, fitted, lambda ts: pilots.fitted(ts, memory, name), pilots.calls + (limit - pilots.calls) // 3
    )
    finalists += [fitted, moved]
    for left, one in zip((2, 1), (moved, family[0])):
        finalists.append(refine(pilots, one, (limit - pilots.calls) // left, f"{one.name}, refined"))
    once = [c for i, c in enumerate(finalists) if not any(c.plan == other.plan for other in finalists[:i])]
    most = 2 * min(c.error for c in once)  # on the pilots to choose with; the default has not been seen there
    once = [c for c in once if c.error <= most or c.plan is default or c is published[0]]
    rows = sorted((pilots.judge(c, pilots.fit, shape[0]) for c in once), key=lambda c: c.error)
    return Tuned(rows[0], next(c for c in rows if c.published), tuple(rows), pilots.calls + 19 * len(x))
