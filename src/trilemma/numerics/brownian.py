"""A Brownian path that is fixed by a seed, at every time, whatever times are asked for.

A Brownian motion W over a clock c in (0, inf) is looked at through

    Z(v) = W(c) / sqrt(c),     v = log c,     Cov[Z(v), Z(v')] = e^(-|v - v'| / 2),                          (1)

a stationary Markov process, so all scales of c are alike and relative precision is the same at every one. Between two times at
distance 2 d, the middle is

    Z | Z_-, Z_+ ~ N((Z_- + Z_+) / (2 cosh(d/2)), tanh(d/2)),                                                (2)

so Z is found at any dyadic time by halving an interval, one draw of noise a half, each draw at the position of its time: a
virtual tree, of which nothing is kept. The increment of W from c to c', in units of its standard deviation, is

    xi = (Z(v') - e^(-g/2) Z(v)) / sqrt(1 - e^(-g)),     g = v' - v.                                         (3)

Times are rounded to ticks of 2^-20, a millionth of the clock. The rounded times are times like others: their joint law, and so
the law of every increment, is exact; only which point of the path is seen moves by a tick.

Sources: Levy 1948 for halving; Li et al. 2020 (arXiv:2001.01328) for the virtual tree, there in c itself on a bounded interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .noise import Noise

__all__ = ["BrownianPath", "tick_of"]

_TICKS = 1 << 20  # in a unit of log c
_REACH = 256  # log c lies in [-256, 256]; e^(-256) is the correlation of its ends
_END = _REACH * _TICKS


def tick_of(log_clock: float) -> int:
    """The tick nearest to a logarithm of the clock.

    Raises:
        ValueError: it is beyond the reach of the tree.

    >>> tick_of(0.5)
    524288
    """
    if not abs(log_clock) < _REACH - 1:
        raise ValueError(f"the logarithm of a clock must lie within {_REACH - 1} of 0, got {log_clock}")
    return round(log_clock * _TICKS)


@dataclass(frozen=True)
class BrownianPath:
    """The path of every item of a batch.

    Args:
        noise: source of all its draws; the same source gives the same path.

    >>> import torch
    >>> path, like = BrownianPath(Noise(0, 2)), torch.empty(2, 3)
    >>> torch.equal(path.at(tick_of(-1.5), like), path.at(tick_of(-1.5), like))
    True
    """

    noise: Noise

    def at(self, tick: int, like: Tensor) -> Tensor:
        """Z of (1) at a tick: standard normal numbers with the shape, type and device of ``like``, ``(n, ...)``.

        Cost:
            31 draws of noise at most, less at times that are round in binary; memory for four tensors.
        """
        low, high = self.noise.at(-_END).normal_like(like), self.noise.at(_END).normal_like(like)
        left, half = -_END, _END
        while True:
            middle, d = left + half, half / _TICKS
            z = low.add(high).mul_(0.5 / math.cosh(d / 2))
            z.add_(self.noise.at(middle).normal_like(like), alpha=math.sqrt(math.tanh(d / 2)))  # (2)
            if middle == tick:
                return z
            low, high, left = (low, z, left) if tick < middle else (z, high, middle)
            half //= 2

    def increment(self, start: Tensor, end: Tensor, ticks: int) -> Tensor:
        """The normalised increment (3) between two values of :meth:`at` that are so many ticks apart.

        >>> import torch
        >>> path, like = BrownianPath(Noise(0, 10000)), torch.empty(10000, 1)
        >>> xi = path.increment(path.at(0, like), path.at(1000, like), 1000)
        >>> bool((xi.var() - 1).abs() < 0.05)
        True
        """
        g = ticks / _TICKS
        return end.add(start, alpha=-math.exp(-g / 2)).mul_(1 / math.sqrt(-math.expm1(-g)))
