"""The only sampling loop, and what it runs.

A *rule* says how to go down a grid of times; bound to a process and a grid, once and in float64, it is a *step*. A step maps
(denoise, x, i, carry, noise) to (x, carry): it takes x from time i of the grid to time i + 1, and what it wants to remember
travels in ``carry``, which is None at the first step. Nothing is mutated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..denoise.posterior import Gaussian
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess

__all__ = ["Denoise", "Hook", "Progress", "Rule", "Step", "check_grid", "run"]

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
