"""A scheme for the probability flow that is undone bit for bit.

On the levels of ``levels``, equal steps h of s, with f = dy/ds,

    y_{n+1} = y_n - y_{n-2} + y_{n-3} + h (7 (f_n + f_{n-2}) - 8 f_{n-1}) / 3,                               (1)

of fourth order, is solved for y_{n-3} by the same numbers: four states in a row go up and down by one call a step. They are kept
as multiples of 2^-40 to which rounded increments are added, which float64 does without error; so going down undoes going up bit
for bit, whatever the network is, if it answers the same to the same. Derivation: of the explicit symmetric schemes with

    rho = (z^2 - 1)(z^2 - 2 c z + 1),   sigma = (8 - 2c)/3 (z^3 + z) - (4 + 8c)/3 z^2                        (2)

a disturbance e^(k s) of the flow meets parasites e^(-k s (5+c)/(3+3c)) and e^(k s (1-c)/(3+3c)), which matter on the way down,
where the flow contracts and they grow. c = 0 is Milne's scheme, with growth 5/3; c -> 1 has least growth, 1, and infinite error.
c = 1/2 has growth 11/9, twice Milne's error, and whole numbers for rho.

Sources: Hairer, Lubich and Wanner 2006, chapter XV, for symmetric schemes and their parasites; Levesque and Verlet 1993 for
bit-reversible integration.
"""

from __future__ import annotations

from torch import Tensor

from ..numerics.ode import rk_step
from ..numerics.tableau import RK4
from ..sampling.angle import time_at_angle
from .levels import Track

__all__ = ["LARGEST", "START", "ascend", "descend", "to_lattice"]

LARGEST = 1024.0
"""How large |y| may be; float64 adds multiples of the unit without error up to 2^13."""
START = 3
"""Steps of RK4 before (1)."""
_UNIT = 2.0**-40


def to_lattice(y: Tensor) -> Tensor:
    """The nearest multiple of 2^-40."""
    return (y / _UNIT).round() * _UNIT


def ascend(track: Track, y: Tensor) -> list[Tensor]:
    """The last four states, newest first, by (1). Cost: a call a step and eleven more for the start."""
    states = [to_lattice(y)]

    def between(theta: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (track.at(theta, time_at_angle(track.process, theta, track.d), y[0]),)

    for i in range(START):
        h = track.theta[i + 1] - track.theta[i]
        (y,), _ = rk_step(between, (states[0],), track.theta[i], h, RK4)
        states = [to_lattice(y), *states]
        track.seen(i + 1, i + 1, states[0])
    f = [_slope(track, 2, states[1]), _slope(track, 1, states[2])]
    for i in range(START, len(track.theta) - 1):
        f = [_slope(track, i, states[0]), *f][:3]
        states = [states[0] - states[2] + states[3] + _increment(track, f), *states][:4]
        track.seen(i + 1, i + 1, states[0])
    return states


def descend(track: Track, states: list[Tensor]) -> Tensor:
    """The first state, from the last four by (1) solved for the oldest."""
    last = len(track.theta) - 1
    f = [_slope(track, last - 1, states[1]), _slope(track, last - 2, states[2])]
    for i in range(last - 1, START - 1, -1):
        f = [*f, _slope(track, i - 2, states[3])]
        states = [*states[1:], states[0] - states[1] + states[3] - _increment(track, f)]
        f = f[1:]
        track.seen(last - i, i, states[0])
    track.seen(last, 0, states[3])
    return states[3]


def _slope(track: Track, i: int, y: Tensor) -> Tensor:
    """The f of (1)."""
    return track.node(i, y) * float(track.pace[i])


def _increment(track: Track, f: list[Tensor]) -> Tensor:
    return to_lattice((7 * (f[0] + f[2]) - 8 * f[1]) * (track.h / 3))
