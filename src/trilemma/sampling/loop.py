"""The only sampling loop, and what it runs.

A *rule* says how to go down a grid of times; bound to a process and a grid, once and in float64, it is a *step*. A step maps
(denoise, x, i, carry, noise) to (x, carry): it takes x from time i of the grid to time i + 1, and what it wants to remember
travels in ``carry``, which is None at the first step. Nothing is mutated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..denoise.denoiser import Denoiser
from ..denoise.posterior import Gaussian
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess

__all__ = ["Denoise", "Hook", "Progress", "Rule", "Step", "check_grid", "run", "sample"]

Carry = Any
Denoise = Callable[[Tensor, Tensor], Gaussian]
"""x_t and a time of the grid (a float64 scalar on the CPU) to the posterior."""


class Step(Protocol):
    """A bound rule: from time i of its grid to time i + 1."""

    def __call__(self, denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
        """Take the step; ``noise`` is at a position of this step's own."""


class Rule(Protocol):
    """A way to go down any grid."""

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        """Bind to a process and times ``(N+1,)``, float64 and decreasing."""


@dataclass(slots=True)
class Progress:
    """What a hook sees after a step.

    Args:
        i: number of steps done, from 1.
        n: number of steps in all.
        x: the state after the step, shape ``(B, ...)``.
        t: its time.
        x0: the denoiser's latest E[x | x_t], shape ``(B, ...)``.
    """

    i: int
    n: int
    x: Tensor
    t: float
    x0: Tensor | None


Hook = Callable[[Progress], object]
"""Called after every step; a true value stops the loop."""


def check_grid(ts: Tensor) -> Tensor:
    """The times as float64 on the CPU, if they can be sampled along.

    Raises:
        ValueError: they are not finite, not one-dimensional, outside [0, 1] or not strictly decreasing.

    >>> check_grid(torch.tensor([1.0, 0.0])).dtype
    torch.float64
    """
    ts = torch.as_tensor(ts, dtype=torch.float64).cpu()
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"a grid has shape (steps + 1,) with at least one step, got {tuple(ts.shape)}")
    if not bool(((ts >= 0) & (ts <= 1)).all()):
        raise ValueError(f"times of a grid lie in [0, 1], got {float(ts.min())} to {float(ts.max())}")
    if not bool((ts.diff() < 0).all()):
        i = int((ts.diff() >= 0).long().argmax())
        raise ValueError(
            f"times of a grid decrease, but time {i} is {float(ts[i])} and time {i + 1} is {float(ts[i + 1])}"
        )
    return ts


def run(
    step: Step, denoise: Denoise, x: Tensor, n: int, noise: Noise, hook: Callable[[int, Tensor], object] | None = None
) -> Tensor:
    """Take ``n`` steps.

    Args:
        step: a bound rule.
        denoise: the denoiser as a function of x and the time.
        x: the state at the first time, shape ``(B, ...)``.
        n: number of steps.
        noise: source of all noise; step ``i`` draws from ``noise.at(i)``.
        hook: called with the number of steps done and the state; a true value stops.

    Returns:
        The state at the last time.
    """
    carry: Carry = None
    for i in range(n):
        x, carry = step(denoise, x, i, carry, noise.at(i))
        if hook is not None and hook(i + 1, x):
            break
    return x


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    shape: Sequence[int],
    grid: Tensor,
    rule: Rule,
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
        grid: times, shape ``(N+1,)``, decreasing; see ``trilemma.process.grid``.
        rule: how to step; see ``trilemma.sampling.RULES``.
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
    >>> x = sample(two, (1000, 1), tl.log_snr_grid(two.process, 20), tl.dpmpp_2m)
    >>> round(float(x.abs().mean()), 1)
    1.0
    """
    ts = check_grid(grid)
    device = next(chain(denoiser.parameters(), denoiser.buffers()), torch.empty(0)).device
    cond = {key: torch.as_tensor(value, device=device) for key, value in (cond or {}).items()}
    denoiser.check_cond(cond)
    if any(m.training and m.p > 0 for m in denoiser.modules() if isinstance(m, nn.Dropout)):
        raise ValueError("the denoiser is in training mode and drops units at random; call .eval() on it first")
    shape = tuple(shape)
    noise = Noise(seeds, shape[0])
    for key, value in cond.items():
        if value.ndim == 0 or value.shape[0] != shape[0]:
            raise ValueError(
                f"the condition {key!r} needs one entry for each of {shape[0]} items, got {tuple(value.shape)}"
            )
    if x is None:
        if float(denoiser.process.log_snr(ts[0])) > 0:
            raise ValueError(f"at t = {float(ts[0])}, where this grid starts, x_t is more signal than noise: give x")
        x = denoiser.process.prior(shape, noise.at(-1), t=float(ts[0]), like=torch.empty(0, device=device))
    elif tuple(x.shape) != shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, but {shape} was asked for")
    elif not x.is_floating_point() or not bool(torch.isfinite(x).all()):
        raise ValueError(f"x must be floating point and finite, got {x.dtype} with NaN, infinite or integer entries")
    else:
        x = x.to(device)
    try:
        step = rule(denoiser.process, ts)
    except TypeError as error:
        raise ValueError(
            f"rule must be one such as ddpm, ddim() or get_rule('dpmpp_2m'), got {rule!r}: {error}"
        ) from error
    times = ts.tolist()
    latest: Tensor | None = None

    def denoise(x: Tensor, t: Tensor) -> Gaussian:
        nonlocal latest
        out = denoiser(x, t, **cond)
        latest = out.mean
        return out

    def after(i: int, x: Tensor) -> object:
        return hook(Progress(i, len(times) - 1, x, times[i], latest)) if hook is not None else None

    return run(step, denoise, x, len(ts) - 1, noise, after if hook is not None else None)
