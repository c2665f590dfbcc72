"""Time grids fitted to a model: the cheapest way down a fine grid, by what a step from one of its times to another costs.

With L(i, j) the cost of one step from time i to a later one j of the fine grid, the best grid of N steps is found exactly by

    C_k(j) = min over i < j of C_{k-1}(i) + q^(k-1) L(i, j),     C_0(0) = 0,                                 (1)

where q = 1 unless later steps are to count for more. Three costs of the literature, with D_i = E[x | x_i], s = alpha^2/sigma^2 at
the times of the grid, and r = sqrt(alpha^2 d^2 + sigma^2) for data of standard deviation d:

    GITS     L(i, j) = E |DDIM(x_i; i -> j) - x_j| / r_j,     x_i on trajectories of the probability flow,   (2)
    Watson   L(i, j) = (s_j - s_i) / 2  E |x - D_i|^2,                                                       (3)
    AYS      L(i, j) = 1/2 integral from s_i to s_j of E |D(s) - D_i|^2 ds.                                  (4)

(2) is how far a step leaves the trajectory, in a unit in which Gaussian data carry an error to the end unchanged. (3) is a term
of the bound on -log p(x) for a chain of the steps i -> j. (4), the KLUB, is the divergence between the reverse equation and
the same equation with D held over every step. With x_i made of x_j by more noise, E[D_j | x_i] = D_i for the exact denoiser, so

    E |D_j - D_i|^2 = E |x - D_i|^2 - E |x - D_j|^2,                                                         (5)

and (4) is (3) less what no grid can save: they have the same best grid, and differ by the errors of a trained denoiser. Both
need D once per item and level, on paths of noise that are shared by all levels.

Sources: Watson et al. 2021 (arXiv:2106.03802) for (1) and (3); Sabour et al. 2024 (arXiv:2404.14507) for (4); Chen et al. 2024
(arXiv:2405.11326) for (2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from ..process.grid import angular_grid, log_snr_grid
from .angle import angular
from .draw import sample, sigma_data_of
from .loop import Progress, check_grid

__all__ = ["ays_grid", "best_path", "bound_costs", "deviation_costs", "gits_grid", "klub_costs", "watson_grid"]

Seeds = int | Sequence[int] | Tensor | torch.Generator


def best_path(cost: Tensor, steps: int, *, discount: float = 1.0) -> Tensor:
    """The cheapest way from the first node to the last in a given number of steps forward, equation (1).

    Args:
        cost: L(i, j), shape ``(K, K)``; only j > i is looked at; ``inf`` forbids a step.
        steps: number N of steps, 1 to K - 1.
        discount: the q of (1), at least 0.

    Returns:
        Increasing nodes, int64, shape ``(N + 1,)``, the first 0, the last K - 1.

    Raises:
        ValueError: the costs have another shape or are NaN, there are too many steps, or every way is forbidden.

    Cost:
        O(N K^2) additions.

    Source: Watson et al. 2021 (arXiv:2106.03802), algorithm 1.

    >>> best_path(torch.tensor([[0.0, 1.0, 5.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), 2).tolist()
    [0, 1, 2]
    """
    cost = torch.as_tensor(cost, dtype=torch.float64).cpu()
    count = len(cost)
    forward = torch.ones(cost.shape, dtype=torch.bool).triu(1)
    if cost.shape != (count, count) or bool(cost[forward].isnan().any()):
        raise ValueError(f"costs have shape (K, K) and are not NaN above the diagonal, got {tuple(cost.shape)}")
    if not 1 <= steps < count:
        raise ValueError(f"{steps} steps cannot be taken over {count} nodes; take 1 to {count - 1}, or a finer grid")
    if not 0 <= discount < math.inf:
        raise ValueError(f"discount must be at least 0 and finite, got {discount}")
    cost = torch.where(forward, cost, torch.inf)
    total, came = cost[0], []
    for k in range(1, steps):
        total, origin = (total[:, None] + discount**k * cost).min(0)
        came.append(origin)
    if total[-1] == torch.inf:
        raise ValueError(f"no way of {steps} steps leads to the last node; allow some more of them")
    path = [count - 1]
    for origin in reversed(came):
        path.append(int(origin[path[-1]]))
    return torch.tensor([0, *reversed(path)])


def deviation_costs(
    denoiser: Denoiser,
    shape: Sequence[int],
    ts: Tensor,
    *,
    seeds: Seeds = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """The costs (2): root mean square over the coordinates of an item, mean over the items.

    Args:
        denoiser: any denoiser.
        shape: ``(n, ...)`` for n trajectories.
        ts: times of the trajectories, shape ``(K,)``, from 1 to 0.
        seeds: of the trajectories' starts.
        cond: conditions, one per trajectory.
        batch: trajectories in one call.

    Returns:
        Shape ``(K, K)``, float64, zero on and below the diagonal; in units of ``sigma_data``.

    Cost:
        K - 1 calls for n items, and memory for 2 K states of a batch.

    Error:
        That of the trajectories, of fourth order in the steps of ``ts``; O(1/sqrt(n)) of the mean.
    """
    ts, process, shape = check_grid(ts), denoiser.process, tuple(shape)
    scale = sigma_data_of(denoiser)
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    radius = torch.hypot(alpha * scale, sigma)
    rule, like = angular(4, sigma_data=scale), next(chain(denoiser.parameters(), denoiser.buffers()), torch.empty(0))
    start = process.prior(shape, Noise(seeds, shape[0]), t=float(ts[0]), like=torch.empty(0, device=like.device))
    cost = torch.zeros(len(ts), len(ts), dtype=torch.float64)
    for index, given in _batches(denoiser, shape[0], batch, cond):
        xs: list[Tensor] = [start[index.to(start.device)]]
        means: list[Tensor] = []

        def keep(progress: Progress, xs: list[Tensor] = xs, means: list[Tensor] = means) -> None:
            xs.append(progress.x)
            means.append(progress.x0)  # type: ignore[arg-type]

        sample(denoiser, (len(index), *shape[1:]), ts, rule, x=xs[0], hook=keep, cond=given)
        states = torch.stack(xs)
        for i, mean in enumerate(means):
            a = sigma[i + 1 :] / sigma[i]
            b = alpha[i + 1 :] - a * alpha[i]
            a, b, r = (row.reshape(-1, *(1,) * len(shape)).to(states) for row in (a, b, radius[i + 1 :]))
            gap = (a * states[i] + b * mean - states[i + 1 :]) / r
            cost[i, i + 1 :] += gap.flatten(2).double().square().mean(2).sqrt().sum(1).cpu()
    return cost / shape[0]


def _batches(
    denoiser: Denoiser, n: int, batch: int, cond: dict[str, Tensor] | None
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Indices of the items of every batch, and their conditions."""
    cond = dict(cond or {})
    denoiser.check_cond(cond)
    for key, value in cond.items():
        if len(value) != n:
            raise ValueError(f"the condition {key!r} needs one entry for each of {n} items, got {len(value)}")
    for index in torch.arange(n).split(batch):
        yield index, {key: value[index.to(value.device)] for key, value in cond.items()}


def _errors(
    denoiser: Denoiser, x: Tensor, ts: Tensor, seeds: Seeds, cond: dict[str, Tensor] | None, batch: int
) -> Tensor:
    """E <D_i - x, D_j - x> for all levels, float64, shape ``(K, K)``, each item on one path of noise through all levels."""
    process, noise = denoiser.process, Noise(seeds, len(x))
    if not bool((process.sigma(ts) > 0).all()):
        raise ValueError(
            f"these costs are infinite at t = 0; end the levels before it, got {float(ts[-1])} as the last"
        )
    gram = torch.zeros(len(ts), len(ts), dtype=torch.float64)
    for index, given in _batches(denoiser, len(x), batch, cond):
        clean, source = x[index.to(x.device)], noise[index]
        x_t, rest = clean, []
        for k in range(len(ts) - 1, -1, -1):  # upwards, from less noise to more
            last = ts[k + 1] if k + 1 < len(ts) else ts.new_zeros(())
            x_t = process.renoise(x_t, last, ts[k], source.at(k))
            rest.append((denoiser(x_t, ts[k], **given).mean - clean).double().flatten())
        each = torch.stack(rest[::-1])
        gram += (each @ each.mT).cpu()
    return gram / len(x)


def _snr(process: GaussianProcess, ts: Tensor) -> Tensor:
    return process.log_snr(ts).exp()


@torch.no_grad()
def bound_costs(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    seeds: Seeds = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """The costs (3), in nats an item.

    Args:
        denoiser: any denoiser.
        x: clean items, shape ``(n, ...)``.
        ts: decreasing times above 0, shape ``(K,)``.
        seeds: of the noise.
        cond: conditions, one per item.
        batch: items in one call.

    Returns:
        Shape ``(K, K)``, float64, zero on and below the diagonal. The sum over the steps of a chain, with the divergence from the
        prior at its start and the decoder at its end, bounds -log p(x).

    Raises:
        ValueError: a time is 0, where the costs are infinite, or the times do not decrease.

    Cost:
        K calls for n items.

    Error:
        O(1/sqrt(n)).

    Source: Kingma et al. 2021 (arXiv:2107.00630), equation (13), for (3).
    """
    ts = check_grid(ts)
    return _bound(_errors(denoiser, x, ts, seeds, cond, batch), _snr(denoiser.process, ts))


def _bound(errors: Tensor, snr: Tensor) -> Tensor:
    """The costs (3)."""
    return ((snr - snr[:, None]) / 2 * errors.diagonal()[:, None]).triu(1)


@torch.no_grad()
def klub_costs(
    denoiser: Denoiser,
    x: Tensor,
    ts: Tensor,
    *,
    seeds: Seeds = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """The costs (4), in nats an item.

    Args:
        denoiser, x, seeds, cond, batch: as of :func:`bound_costs`.
        ts: decreasing times above 0, shape ``(K,)``; between them the integrand is interpolated, linearly in 1 / (1 + d^2 s),
            as it is for Gaussian data.

    Returns:
        Shape ``(K, K)``, float64, zero on and below the diagonal.

    Raises:
        ValueError: a time is 0, where the costs are infinite, or the times do not decrease.

    Cost:
        K calls for n items, and memory for K states of a batch in float64.

    Error:
        O(1/sqrt(n)), and second order in the steps of ``ts``.

    Source: Sabour et al. 2024 (arXiv:2404.14507), theorem 3.1, in the variable s = 1/sigma^2.
    """
    ts = check_grid(ts)
    return _klub(_errors(denoiser, x, ts, seeds, cond, batch), _snr(denoiser.process, ts), sigma_data_of(denoiser))


def _klub(errors: Tensor, snr: Tensor, sigma_data: float) -> Tensor:
    """The costs (4), by weights of the integrand at both ends of every step of the levels."""
    size = errors.diagonal()
    gap = (size + size[:, None] - 2 * errors).clamp(min=0)  # E |D_k - D_i|^2
    level, step = 1 / (1 + sigma_data**2 * snr), snr.diff()
    # a function that is A + B / (1 + d^2 s) has the mean (1 - w) left + w right over the step, w from the mean of 1 / (1 + d^2 s)
    mean = (level[:-1].log() - level[1:].log()) / (sigma_data**2 * step)
    w = (mean - level[:-1]) / level.diff()
    part = ((1 - w) * gap[:, :-1] + w * gap[:, 1:]) * step / 2
    cost = torch.zeros_like(gap)
    cost[:, 1:] = part.triu().cumsum(1)
    return cost.triu(1)


def gits_grid(
    denoiser: Denoiser,
    shape: Sequence[int],
    steps: int,
    *,
    fine: int = 80,
    discount: float = 1.0,
    seeds: Seeds = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """The grid whose DDIM steps leave trajectories of the probability flow least in sum, by (2): short steps where these bend.

    Args:
        denoiser: any denoiser, guided, conditional or wrapped.
        shape: ``(n, ...)`` for n trajectories; 256 in the paper.
        steps: number of steps.
        fine: steps of the trajectories, on ``angular_grid``; at least ``steps``.
        discount: what the cost of a step is multiplied by for every step before it; 1.15 in the paper for most data.
        seeds: of the trajectories' starts.
        cond: conditions, one per trajectory: draw them as they will be used.
        batch: trajectories in one call.

    Returns:
        Times, shape ``(steps + 1,)``, from 1 to 0.

    Raises:
        ValueError: there are fewer than 1 or more than ``fine`` steps.

    Cost:
        ``fine`` calls for n items, whatever the number of steps.

    Differs:
        The paper has trajectories of 60 steps by iPNDM and measures in x / alpha, without r; it discounts by 1.15.

    Source: Chen et al. 2024 (arXiv:2405.11326), section 3.3.

    >>> import trilemma as tl
    >>> two = tl.MixtureDenoiser(tl.Flow(), torch.tensor([[-1.0], [1.0]]), tl.Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> ts = gits_grid(two, (64, 1), 6)
    >>> x = tl.sample(two, (1000, 1), ts, tl.ddim())
    """
    ts = angular_grid(denoiser.process, _enough(fine, steps), sigma_data=sigma_data_of(denoiser))
    cost = deviation_costs(denoiser, shape, ts, seeds=seeds, cond=cond, batch=batch)
    return ts[best_path(cost, steps, discount=discount)]


def watson_grid(
    denoiser: Denoiser,
    x: Tensor,
    steps: int,
    *,
    fine: int = 128,
    sigma_min: float = 0.02,
    seeds: Seeds = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """The grid with the least bound on -log p(x), by (3).

    Args:
        denoiser: any denoiser.
        x: clean items, shape ``(n, ...)``; some hundreds.
        steps: number of steps.
        fine: steps of equal log-SNR down to ``sigma_min``; at least ``steps``.
        sigma_min: sigma/alpha at the end of the chain, below which nothing counts; t = 0 is put in its place.
        seeds: of the noise.
        cond: conditions, one per item.
        batch: items in one call.

    Returns:
        Times, shape ``(steps + 1,)``, from 1 to 0.

    Raises:
        ValueError: there are fewer than 1 or more than ``fine`` steps, or the process has no noise level above ``sigma_min``.

    Cost:
        ``fine`` calls for n items, whatever the number of steps.

    Differs:
        The paper chooses among the steps of a discrete chain. Its grids are best for the bound, not for the looks of samples.

    Source: Watson et al. 2021 (arXiv:2106.03802), section 3.

    >>> import trilemma as tl
    >>> two = tl.MixtureDenoiser(tl.Flow(), torch.tensor([[-1.0], [1.0]]), tl.Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> watson_grid(two, two.draw(tl.Noise(0, 256))[0], 5).shape
    torch.Size([6])
    """
    ts = _levels(denoiser.process, fine, steps, sigma_min)
    cost = bound_costs(denoiser, x, ts, seeds=seeds, cond=cond, batch=batch)
    return _ended(ts[best_path(cost, steps)])


def ays_grid(
    denoiser: Denoiser,
    x: Tensor,
    steps: int,
    *,
    fine: int = 128,
    sigma_min: float = 0.02,
    seeds: Seeds = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """The grid of Align Your Steps: the least divergence from the reverse equation if D is held over every step, by (4).

    Args:
        denoiser, x, steps, fine, sigma_min, seeds, cond, batch: as of :func:`watson_grid`. For Stable Diffusion the paper has
            sigma_min = 0.03.

    Returns:
        Times, shape ``(steps + 1,)``, from 1 to 0.

    Raises:
        ValueError: there are fewer than 1 or more than ``fine`` steps, or the process has no noise level above ``sigma_min``.

    Cost:
        ``fine`` calls for n items, whatever the number of steps.

    Differs:
        The paper estimates the integral anew for each candidate, descends coordinate by coordinate from 10 steps until a
        validation draw gets worse, and interpolates other numbers of steps. The sum over steps has its least value by (1)
        at once, for any number of steps, on estimates that share their noise.

    Source: Sabour et al. 2024 (arXiv:2404.14507), section 3.

    >>> import trilemma as tl
    >>> two = tl.MixtureDenoiser(tl.Flow(), torch.tensor([[-1.0], [1.0]]), tl.Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> ts = ays_grid(two, two.draw(tl.Noise(0, 256))[0], 8)
    >>> x = tl.sample(two, (1000, 1), ts, tl.ddpm)
    """
    ts = _levels(denoiser.process, fine, steps, sigma_min)
    cost = klub_costs(denoiser, x, ts, seeds=seeds, cond=cond, batch=batch)
    return _ended(ts[best_path(cost, steps)])


def _enough(fine: int, steps: int) -> int:
    if not 1 <= steps <= fine:
        raise ValueError(f"a grid needs at least one step, and at most fine={fine} of them; got {steps}")
    return fine


def _levels(process: GaussianProcess, fine: int, steps: int, sigma_min: float) -> Tensor:
    """Times of equal log-SNR down to ``sigma_min``, shape ``(fine + 1,)``."""
    most = math.exp(-float(process.log_snr(torch.ones((), dtype=torch.float64))) / 2)
    if not 0 < sigma_min < min(most, 100.0):
        raise ValueError(f"sigma_min must lie between 0 and {min(most, 100.0):.4g}, got {sigma_min}")
    return log_snr_grid(process, _enough(fine, steps) + 1, high=-2 * math.log(sigma_min))[:-1]


def _ended(ts: Tensor) -> Tensor:
    """The times with 0 in place of the last."""
    return torch.cat([ts[:-1], ts.new_zeros(1)])
