"""Published samplers in their authors' code, one file a family, each told to take a given denoiser's answer as its network's.

A peer is a function of a :class:`Task` and a number of calls. It starts from the task's normal numbers at the noise that it
thinks right, runs its own code in float32, and says where it started and ended. It may use fewer calls than allowed, where its
steps cost several; the task counts them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["End", "Late", "Peer", "Task"]


class Late(Exception):
    """A sampler starts with too little noise to compete."""


@dataclass(frozen=True)
class End:
    """What a peer returns.

    Args:
        x: x_t / alpha, shape ``(B, ...)``.
        start: sigma/alpha at its start; may be infinite.
        end: sigma/alpha at its end.
    """

    x: Tensor
    start: float
    end: float


@dataclass
class Task:
    """What a peer is given.

    Args:
        z: normal numbers, float32, shape ``(B, ...)``.
        denoise: E[x | x_t] as a function of w = x_t/(alpha + sigma) and u = sigma/(alpha + sigma).
        calls: how many there were.
        top: the sigma/alpha at which a competitor starts at least.
    """

    z: Tensor
    denoise: Callable[[Tensor, Tensor], Tensor]
    calls: int = 0
    top: float = 60.0

    def mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x | x_t] where x_t = alpha x + sigma eps, in the type of ``x``.

        Raises:
            Late: this is the first call, and too late.
        """
        if self.calls == 0 and float(sigma) < self.top * float(alpha):
            raise Late(f"starts at sigma/alpha {float(sigma) / float(alpha):.3g}")
        self.calls += 1
        total = float(alpha) + float(sigma)
        u = torch.tensor(float(sigma) / total, dtype=torch.float64)
        return self.denoise((x.double() / total).to(x), u).to(x)

    def at(self, x: Tensor, level: float) -> Tensor:
        """The same where alpha = 1 and sigma = ``level``."""
        return self.mean(x, 1.0, level)

    def eps(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[eps | x_t], in the type of ``x``."""
        wide = x.double()
        return ((wide - float(alpha) * self.mean(x, alpha, sigma).double()) / float(sigma)).to(x)


Peer = Callable[[Task, int], End]
