"""All numbers of a plan fitted together, by Gauss and Newton's method on the ends of the pilots.

Weights fitted step by step are the best for the next state, which is not the same as for the end: an error near the boundary of
a basin grows a hundredfold. With p the weights and levels of an angular plan and e_k(p) how far pilot k ends from its truth,

    minimise over p     sum_k s_k log(1 + |e_k(p)|^2 / c^2),                                                 (1)
    (sum_k u_k J_k^T J_k + mu D) dp = -sum_k u_k J_k^T e_k,     u_k = s_k / (1 + |e_k|^2 / c^2),             (2)

where J_k = de_k/dp is taken by differences of roll-outs, each from the first step that its number moves; D is the diagonal of
the matrix before it, mu Levenberg and Marquardt's damping and s_k the share of ``sampling.pilots``. c is 20 times the median of
|e_k|, so items that have left their basin do not rule the fit, but those that are about to do.

A number is moved for one step alone, or, in plans of more than 8 steps, for neighbouring steps together: 8 hats, 1 at a knot and
falling to 0 at the next.

Source: Nocedal and Wright 2006, section 10.3, for the method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .angle import angle, angular_plan
from .pilots import Candidate, Pilots

__all__ = ["refine"]

_KNOTS, _LAGS = 8, 3  # numbers of hats, and of the values of v whose weights move
_DELTA = 1e-3  # of the differences; weights are in units of their step
_FEWEST = 24  # pilots that are worth it
_MEMORY = 2**30  # bytes for J


@dataclass(frozen=True, eq=False)
class _Direction:
    """A number that moves: the weight of lag ``lag``, or the level (-1), by ``hat`` at every step or inner time."""

    lag: int
    hat: Tensor

    @property
    def first(self) -> int:
        """The first step that comes out otherwise."""
        return int(self.hat.nonzero()[0])


def _hats(n: int) -> Tensor:
    """Hat functions over n places, shape ``(min(n, _KNOTS), n)``; they sum to one."""
    knots = min(n, _KNOTS)
    at = torch.arange(n, dtype=torch.float64) * ((knots - 1) / max(1, n - 1))
    return (1 - (at - torch.arange(knots, dtype=torch.float64)[:, None]).abs()).clamp(min=0)


def _directions(weights: tuple[tuple[float, ...], ...]) -> list[_Direction]:
    steps = len(weights)
    found = [_Direction(-1, hat) for hat in _hats(steps - 1)]
    for lag in range(_LAGS):
        has = torch.tensor([float(len(row) > lag) for row in weights], dtype=torch.float64)
        found += [_Direction(lag, hat * has) for hat in _hats(steps) if bool((hat * has).any())]
    return found


@dataclass(frozen=True, eq=False)
class _Run:
    """A plan and its roll-out on some pilots: the states y_i, the slopes v_i and the ends."""

    ts: Tensor
    weights: tuple[tuple[float, ...], ...]
    y: list[Tensor]
    v: list[Tensor]
    end: Tensor


def _run(
    pilots: Pilots, index: Tensor, ts: Tensor, weights: tuple[tuple[float, ...], ...], since: _Run | None, first: int
) -> _Run:
    """The roll-out of a plan that agrees with that of ``since`` up to the call of step ``first``."""
    theta = angle(pilots.process, ts, pilots.sigma_data)
    y = since.y[: first + 1] if since else [pilots.states(float(theta[0]))[index]]
    v = since.v[: first + 1] if since else []
    for i in range(first, len(weights)):
        if len(v) == i:
            v = [*v, pilots.slope(y[i], ts[i], index)]
        if weights[i]:
            y = [*y, y[i] + sum(w * v[i - j] for j, w in enumerate(weights[i]))]
        else:  # x = D
            y = [*y, y[i] * float(theta[i].cos()) - v[i] * float(theta[i].sin())]
    return _Run(ts, weights, y[:-1], v, y[-1] * pilots.sigma_data)


def _moved(
    pilots: Pilots, plan: _Run, directions: list[_Direction], by: list[float]
) -> tuple[Tensor, tuple[tuple[float, ...], ...]]:
    """Times and weights after a move along the directions."""
    steps = len(plan.weights)
    level, shift = torch.zeros(steps - 1, dtype=torch.float64), torch.zeros(steps, _LAGS, dtype=torch.float64)
    for direction, size in zip(directions, by):
        if direction.lag < 0:
            level += size * direction.hat
        else:
            shift[:, direction.lag] += size * direction.hat
    shift *= angle(pilots.process, plan.ts, pilots.sigma_data).diff().abs()[:, None]
    rows = [
        tuple(w + (extra[j] if j < _LAGS else 0.0) for j, w in enumerate(row))
        for row, extra in zip(plan.weights, shift.tolist())
    ]
    return pilots.moved(plan.ts, level), tuple(rows)


def refine(pilots: Pilots, start: Candidate, budget: int, name: str) -> Candidate:
    """A candidate with weights, refined by (2) as long as the budget lasts.

    Args:
        pilots: the first of them are fitted to, as many as leave room for two rounds.
        start: where to start.
        budget: calls times items.
        name: of the result.

    Returns:
        The refined candidate with its errors on the pilots it was fitted to; ``start`` if the budget is too small.
    """
    steps, directions = start.plan.steps, _directions(start.weights)
    cost = sum(steps - 1 - d.first for d in directions) + 3 * steps  # calls an item of a round
    items = min(pilots.kept, budget // (2 * cost), _MEMORY // (8 * len(directions) * pilots.x[0].numel()))
    if items < _FEWEST:
        return start
    index, stop = torch.arange(items), pilots.calls + budget
    truth, device = pilots.end[:items].double().flatten(1), pilots.x.device
    root = (pilots.share[:items].sqrt() / pilots.share[:items].sqrt().sum()).to(device)

    def errors(run: _Run) -> tuple[Tensor, Tensor]:
        rest = run.end.double().flatten(1) - truth
        return rest, torch.nan_to_num(rest.square().mean(1), nan=torch.inf)

    best, damping = _run(pilots, index, start.plan.ts, start.weights, None, 0), 1e-2
    while pilots.calls + (cost - 2 * steps) * items <= stop and damping < 1e6:
        rest, square = errors(best)
        scale = 400 * square.median() + 1e-300
        columns = []
        for direction in directions:
            ts, weights = _moved(pilots, best, [direction], [_DELTA])
            end = _run(pilots, index, ts, weights, best, direction.first).end
            columns.append((end.double() - best.end.double()).flatten(1) / _DELTA)
        jacobian, share = torch.stack(columns, -1), root / (1 + square / scale)
        matrix = torch.einsum("n,ndp,ndq->pq", share, jacobian, jacobian).cpu()
        right = torch.einsum("n,ndp,nd->p", share, jacobian, rest).cpu()
        floor = 1e-12 * matrix.diagonal().mean() + 1e-300
        tried = []
        for mu in (damping / 30, damping, damping * 30):
            step = torch.linalg.solve(matrix + torch.diag(mu * matrix.diagonal() + floor), -right)
            ts, weights = _moved(pilots, best, directions, step.tolist())
            if bool((ts.diff() < 0).all()) and bool(torch.isfinite(step).all()):
                run = _run(pilots, index, ts, weights, None, 0)
                tried.append((float((root * torch.log1p(errors(run)[1] / scale)).sum()), mu, run))
        least, mu, run = min(tried, key=lambda t: t[0], default=(torch.inf, damping, best))
        if least < float((root * torch.log1p(square / scale)).sum()):
            best, damping = run, mu
        else:
            damping *= 1000
    plan = angular_plan(pilots.process, best.ts, [list(row) for row in best.weights], pilots.sigma_data)
    return pilots.judged(replace(start, name=name, plan=plan, weights=best.weights), best.end)
