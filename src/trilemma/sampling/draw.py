"""``sample``: from noise to data, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser, Preconditioned
from ..denoise.posterior import Gaussian
from ..process.grid import angular_grid
from .angle import angular
from .loop import Hook, Progress, Rule, check_grid, run
from .plan import Plan
from .start import begin

__all__ = ["sample", "sigma_data_of"]


def sigma_data_of(denoiser: Denoiser) -> float:
    """The standard deviation of the data as a preconditioned denoiser inside knows it; if none does 0.5, as of images."""
    return next((m.sigma_data for m in denoiser.modules() if isinstance(m, Preconditioned)), 0.5)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    grid: Tensor | int | Plan,
    rule: Rule | Plan | None = None,
    *,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    x: Tensor | None = None,
    hook: Hook | None = None,
    cond: dict[str, Tensor] | None = None,
) -> Tensor:
    """Draw samples: from noise at ``grid[0]`` down to ``grid[-1]``.

    Args:
        denoiser: any denoiser, guided or wrapped.
        shape: ``(B, ...)``.
        grid: times, shape ``(N+1,)``, decreasing; see ``trilemma.process.grid``. A number of steps means
            ``angular_grid``; a plan, its own times and rule.
        rule: how to step; see ``trilemma.sampling.RULES``. ``angular()`` for the denoiser's ``sigma_data`` if not given.
        seeds: an integer, one integer per item, or a ``torch.Generator``. An item depends on its own seed, not on the batch.
        x: the state at ``grid[0]``; drawn from N(0, sigma^2) if not given.
        hook: called with a :class:`Progress` after every step; a true value stops and returns the state as it is.
        cond: conditions for the denoiser, one per item.

    Returns:
        Shape ``(B, ...)``, float32 unless ``x`` says otherwise, on the device of the denoiser.

    Raises:
        ValueError: the grid, the seeds, the conditions or ``x`` do not fit; found before any work is done.

    Cost:
        The calls of the rule (one a step for most) and memory for a few copies of the state.

    >>> import trilemma as tl
    >>> two = tl.MixtureDenoiser(tl.Flow(), torch.tensor([[-1.0], [1.0]]), tl.Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> x = sample(two, (1000, 1), 20)
    >>> round(float(x.abs().mean()), 1)
    1.0
    >>> x = sample(two, (1000, 1), tl.log_snr_grid(two.process, 20), tl.dpmpp_2m, seeds=range(1000))
    """
    sigma_data = sigma_data_of(denoiser)
    if isinstance(grid, Plan):
        times, rule = grid.ts, grid if rule is None else rule
    elif isinstance(grid, Integral) and not isinstance(grid, bool):
        times = angular_grid(denoiser.process, int(grid), sigma_data=sigma_data)
    else:
        times = torch.as_tensor(grid)
    if rule is None:
        rule = angular(sigma_data=sigma_data)
    elif isinstance(rule, Plan):
        rule = rule.rule
    elif not callable(rule):
        raise ValueError(f"rule must be one such as ddpm, ddim() or get_rule('dpmpp_2m'), got {rule!r}")
    ts = check_grid(times)
    start = begin(denoiser, shape, float(ts[0]), seeds=seeds, x=x, cond=cond)
    step = rule(denoiser.process, ts)
    at = ts.tolist()
    latest: Tensor | None = None

    def denoise(x: Tensor, t: Tensor) -> Gaussian:
        nonlocal latest
        out = denoiser(x, t, **start.cond)
        latest = out.mean
        return out

    def after(i: int, x: Tensor) -> object:
        return hook(Progress(i, len(at) - 1, x, at[i], latest)) if hook is not None else None

    return run(step, denoise, start.x, len(ts) - 1, start.noise, after if hook is not None else None)
