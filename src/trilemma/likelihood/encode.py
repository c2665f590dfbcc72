"""Encoding: data to standard normal latents and back along the probability flow, with a scheme that inverts exactly.

With d the standard deviation of the data, theta = atan(sigma / (alpha d)), r = sqrt(alpha^2 d^2 + sigma^2) and y = x_t / r,

    dy/dtheta = v = (cos(theta) y - E[x | x_t] / d) / sin(theta),                                            (1)

between two levels tan(theta) = low and high; below and above them y is kept. The latent is z = x_1 / sigma(1), for which
``sample`` draws N(0, I). Levels follow l = log tan(theta) = sinh(s), s in equal steps h: dense where noise turns into data, and
smooth in l, which is what a network is told. On these levels stand two schemes:

Adams' predictor with one correction, of fourth order, up and down (``sampling.angle``): two solutions, each with its error.

A symmetric scheme, for f = dy/ds = v sin(theta) cos(theta) dl/ds,

    y_{n+1} = y_n - y_{n-2} + y_{n-3} + h (7 (f_n + f_{n-2}) - 8 f_{n-1}) / 3,                               (2)

of fourth order, is solved for y_{n-3} by the same numbers: four states in a row go up and down by one call a step. They are kept
as multiples of 2^-40 to which rounded increments are added, which float64 does without error; so going down undoes going up bit
for bit, whatever the network is, if it answers the same to the same. Derivation: of the explicit symmetric schemes with

    rho = (z^2 - 1)(z^2 - 2 c z + 1),   sigma = (8 - 2c)/3 (z^3 + z) - (4 + 8c)/3 z^2                        (3)

a disturbance e^(k s) of the flow meets parasites e^(-k s (5+c)/(3+3c)) and e^(k s (1-c)/(3+3c)), which matter on the way down,
where the flow contracts and they grow. c = 0 is Milne's scheme, with growth 5/3; c -> 1 has least growth, 1, and infinite error.
c = 1/2 has growth 11/9, twice Milne's error, and whole numbers for rho.

Sources: Song et al. 2021 (arXiv:2011.13456), section 4.3; Hairer, Lubich and Wanner 2006, chapter XV, for symmetric schemes and
their parasites; Levesque and Verlet 1993 for bit-reversible integration.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.ode import rk_step
from ..numerics.tableau import RK4
from ..sampling.angle import Angular, norm_at, time_at_angle
from ..sampling.draw import sigma_data_of
from ..sampling.loop import Hook, Progress
from ..sampling.start import check

__all__ = ["LEVELS", "Latent", "RoundTrip", "decode", "encode", "round_trip"]

LEVELS = (0.01, 400.0)
"""Between which sigma / (alpha d) the flow is solved by default."""
_UNIT = 2.0**-40  # of the states of (2); float64 adds their multiples without error up to 2^13
_LARGEST = 1024.0  # of |y| that is let in
_START = 3  # steps of RK4 before (2)


@dataclass(frozen=True)
class Latent:
    """What encoding makes of items; an item is the same in any batch.

    Args:
        z: standard normal units, shape ``(B, ...)``: ``sample(..., x=sigma(1) z)`` starts from it.
        carry: the three states before the last of the reversible scheme, float64 of shape ``(B, 3, ...)``; none without it.
        steps: number of steps that led here, and lead back.
        levels: between which sigma / (alpha d).
    """

    z: Tensor
    carry: Tensor | None = None
    steps: int = 50
    levels: tuple[float, float] = LEVELS

    @property
    def reversible(self) -> bool:
        """Whether the way back is exact."""
        return self.carry is not None


@dataclass(frozen=True)
class RoundTrip:
    """There and back.

    Args:
        error: |x' - x| / |x| of each item, Euclidean, shape ``(B,)``; |x'| where x = 0.
        latent: what is in between.
        x: what came back, shape ``(B, ...)``.
        calls: of the denoiser, up and down.
    """

    error: Tensor
    latent: Latent
    x: Tensor
    calls: tuple[int, int]


class _Flow:
    """The field (1) of a batch on the levels of a grid, counting its calls; goes up, or down."""

    def __init__(
        self, denoiser: Denoiser, like: Tensor, steps: int, levels: tuple[float, float],
        cond: dict[str, Tensor] | None, hook: Hook | None,
    ) -> None:  # fmt: skip
        if steps <= _START:
            raise ValueError(f"steps must be at least {_START + 1}, got {steps}")
        self.device, self.cond = check(denoiser, like.shape, like, cond)
        self.denoiser, self.process, self.hook, self.calls, self.dtype = denoiser, denoiser.process, hook, 0, like.dtype
        self.d = sigma_data_of(denoiser)
        one = torch.ones((), dtype=torch.float64)
        self.alpha = self.process.alpha
        top = math.exp(-0.5 * float(self.process.log_snr(one))) / self.d  # infinite where alpha(1) = 0
        low, high = levels
        if not (0 < low < min(high, top) and math.isfinite(high)):
            raise ValueError(
                f"levels must be finite with 0 < low < high, and low below {top:.4g}, the last of this process; got {levels}"
            )
        ends = torch.tensor([low, min(high, top)], dtype=torch.float64).log().asinh().tolist()
        self.h = (ends[1] - ends[0]) / steps
        s = torch.linspace(ends[0], ends[1], steps + 1, dtype=torch.float64)
        self.theta = torch.atan(s.sinh().exp())
        self.t = time_at_angle(self.process, self.theta, self.d)
        if high >= top:
            self.t[-1] = 1.0
        self.pace = self.theta.sin() * self.theta.cos() * s.cosh()  # dtheta/ds
        self.ends = (
            float(self.alpha(self.t[0]) / self.norm(self.t[0])),
            float(self.norm(one) / self.process.sigma(one)),
        )

    def norm(self, t: Tensor) -> Tensor:
        return norm_at(self.process, t, self.d)

    def at(self, theta: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """(1) at an angle and its time, both (); float64."""
        r = float(self.norm(t))
        x_t = (y * r).to(self.dtype)
        self.calls += 1
        mean = self.denoiser(x_t, t, **self.cond).mean
        seen = x_t.double() / r  # so that its rounding does not pass for a difference, which sin(theta) enlarges
        return (float(theta.cos()) * seen - mean.double() / self.d) / float(theta.sin())

    def node(self, i: int, y: Tensor) -> Tensor:
        """(1) at level ``i``."""
        return self.at(self.theta[i], self.t[i], y)

    def seen(self, done: int, i: int, y: Tensor) -> None:
        """Tell the hook."""
        if self.hook is not None:
            t = self.t[i]
            self.hook(Progress(done, len(self.t) - 1, (y * float(self.norm(t))).to(self.dtype), float(t), None))

    def adams(self, y: Tensor, *, down: bool) -> Tensor:
        """From one end to the other by Adams' method."""
        order = list(range(len(self.theta)))[:: -1 if down else 1]
        past: list[Tensor] = []
        for done, weights in enumerate(Angular(4, self.d, True).weights(self.theta[order].tolist()), 1):
            past = [self.node(order[done - 1], y), *past][:5]
            y = y + sum((w * v for w, v in zip(weights[1:], past[1:])), weights[0] * past[0])
            self.seen(done, order[done], y)
        return y

    def ascend(self, y: Tensor) -> list[Tensor]:
        """The last four states, newest first, by (2)."""
        states = [_to_lattice(y)]
        for i in range(_START):
            h = self.theta[i + 1] - self.theta[i]
            (y,), _ = rk_step(self._between, (states[0],), self.theta[i], h, RK4)
            states = [_to_lattice(y), *states]
            self.seen(i + 1, i + 1, states[0])
        f = [self._slope(2, states[1]), self._slope(1, states[2])]
        for i in range(_START, len(self.theta) - 1):
            f = [self._slope(i, states[0]), *f][:3]
            states = [states[0] - states[2] + states[3] + self._increment(f), *states][:4]
            self.seen(i + 1, i + 1, states[0])
        return states

    def descend(self, states: list[Tensor]) -> Tensor:
        """The first state, from the last four by (2) solved for the oldest."""
        last = len(self.theta) - 1
        f = [self._slope(last - 1, states[1]), self._slope(last - 2, states[2])]
        for i in range(last - 1, _START - 1, -1):
            f = [*f, self._slope(i - 2, states[3])]
            states = [*states[1:], states[0] - states[1] + states[3] - self._increment(f)]
            f = f[1:]
            self.seen(last - i, i, states[0])
        self.seen(last, 0, states[3])
        return states[3]

    def _between(self, theta: Tensor, y: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.at(theta, time_at_angle(self.process, theta, self.d), y[0]),)

    def _slope(self, i: int, y: Tensor) -> Tensor:
        return self.node(i, y) * float(self.pace[i])

    def _increment(self, f: list[Tensor]) -> Tensor:
        return _to_lattice((7 * (f[0] + f[2]) - 8 * f[1]) * (self.h / 3))


def _to_lattice(y: Tensor) -> Tensor:
    return (y / _UNIT).round() * _UNIT


@torch.no_grad()
def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 50,
    reversible: bool = False,
    levels: tuple[float, float] = LEVELS,
    cond: dict[str, Tensor] | None = None,
    hook: Hook | None = None,
) -> Latent:
    """Latents of clean items: where the probability flow carries them by t = 1.

    Args:
        denoiser: any denoiser.
        x: clean items, shape ``(B, ...)``, model units; they are taken as x_t / alpha at the lowest level.
        steps: number of steps, at least 4.
        reversible: by the scheme (2), which ``decode`` undoes exactly, with three more states to keep.
        levels: lowest and highest sigma / (alpha d); the highest at most that of the process at t = 1.
        cond: conditions for the denoiser, one per item; decode with the same.
        hook: called with a ``Progress`` after every step.

    Returns:
        The latents, on the device of the denoiser; ``z`` has the type of ``x``, with ``reversible`` it is float64.

    Raises:
        ValueError: x, the conditions, the steps or the levels do not fit; found before any work.

    Cost:
        One call a step; with ``reversible`` eleven more for its start. Memory for about eight states in float64.

    Error:
        O(h^4) after first steps of lower order, and O(low^2 + 1/high) for the levels left out. On atoms, such as images of few
        grey levels, the flow begins undefined: z depends on ``low``, and has less than unit variance.

    Source: Song et al. 2021 (arXiv:2011.13456), section 4.3.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import Flow
    >>> model = GaussianDenoiser(Flow(), torch.zeros(1), Covariances.diagonal(torch.full((1, 1), 0.25)))
    >>> encode(model, torch.tensor([[1.0], [-0.5]])).z.round(decimals=2)                    # in standard deviations
    tensor([[ 2.],
            [-1.]])
    """
    flow = _Flow(denoiser, x, steps, levels, cond, hook)
    y = x.to(flow.device).double() * flow.ends[0]
    if reversible and y.numel() and float(y.abs().max()) > _LARGEST:
        raise ValueError(
            f"|x| goes up to {float(x.abs().max()):.4g}, but the reversible scheme holds {_LARGEST:g} standard deviations "
            f"({flow.d:.4g}) of the data; scale the data, or encode with reversible=False"
        )
    if not reversible:
        return Latent((flow.adams(y, down=False) * flow.ends[1]).to(x.dtype), None, steps, levels)
    last, *before = flow.ascend(y)
    return Latent(last * flow.ends[1], torch.stack(before, 1), steps, levels)


@torch.no_grad()
def decode(
    denoiser: Denoiser,
    latent: Latent | Tensor,
    *,
    steps: int | None = None,
    dtype: torch.dtype | None = None,
    cond: dict[str, Tensor] | None = None,
    hook: Hook | None = None,
) -> Tensor:
    """Items of latents: the probability flow run down.

    Args:
        denoiser: the denoiser that encoded.
        latent: from ``encode``, or standard normal numbers of shape ``(B, ...)``.
        steps: number of steps; as many as led to the latent without it, 50 for plain numbers. A reversible latent goes back by
            the steps it came.
        dtype: of the result and of what the denoiser is given; float32 for a reversible latent without it, else that of z.
        cond: conditions for the denoiser, one per item.
        hook: called with a ``Progress`` after every step.

    Returns:
        Shape ``(B, ...)``, model units.

    Raises:
        ValueError: the latent, the conditions or the steps do not fit; found before any work.

    Cost:
        One call a step.

    Error:
        As of ``encode``. None from a reversible latent, if the denoiser answers bit for bit as before: same weights, device,
        type and batch. An answer that differs, as in another batch, by 1e-7, is enlarged by the parasites of (3), at
        most by about (high / low)^(11/9); on handwritten digits the item moved by 1e-5 to 2e-5.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import VP
    >>> model = GaussianDenoiser(VP(), torch.zeros(1), Covariances.diagonal(torch.full((1, 1), 0.25)))
    >>> x = torch.tensor([[0.3], [-0.1]])
    >>> torch.equal(decode(model, encode(model, x, reversible=True)), x)
    True
    """
    if isinstance(latent, Tensor):
        latent = Latent(latent, steps=50 if steps is None else steps)
    if latent.carry is None:
        flow = _Flow(denoiser, latent.z.to(dtype or latent.z.dtype), steps or latent.steps, latent.levels, cond, hook)
        y = flow.adams(latent.z.to(flow.device).double() / flow.ends[1], down=True)
        return (y / flow.ends[0]).to(flow.dtype)
    if steps not in (None, latent.steps):
        raise ValueError(f"this latent is reversible and goes back by the {latent.steps} steps it came, not by {steps}")
    if latent.carry.shape != (len(latent.z), _START, *latent.z.shape[1:]):
        raise ValueError(f"carry has shape {tuple(latent.carry.shape)}, which does not fit z, {tuple(latent.z.shape)}")
    flow = _Flow(denoiser, latent.z.to(dtype or torch.float32), latent.steps, latent.levels, cond, hook)
    newest = _to_lattice(latent.z.to(flow.device).double() / flow.ends[1])
    y = flow.descend([newest, *latent.carry.to(flow.device).double().unbind(1)])
    return (y / flow.ends[0]).to(flow.dtype)


def round_trip(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 50,
    reversible: bool = False,
    levels: tuple[float, float] = LEVELS,
    cond: dict[str, Tensor] | None = None,
) -> RoundTrip:
    """Encode, decode, and see what is lost. Arguments as of :func:`encode`.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import EDM
    >>> model = GaussianDenoiser(EDM(), torch.ones(1), Covariances.diagonal(torch.full((1, 1), 0.1)))
    >>> bool(round_trip(model, torch.tensor([[1.2], [0.7]])).error.max() < 1e-4)
    True
    """
    calls = []

    def count(*_: object) -> None:
        calls.append(1)

    handle = denoiser.register_forward_pre_hook(count)
    try:
        latent = encode(denoiser, x, steps=steps, reversible=reversible, levels=levels, cond=cond)
        up = len(calls)
        back = decode(denoiser, latent, dtype=x.dtype, cond=cond)
    finally:
        handle.remove()
    x = x.to(back.device)
    size = x.double().flatten(1).norm(dim=1)
    error = (back.double() - x.double()).flatten(1).norm(dim=1) / torch.where(size > 0, size, 1.0)
    return RoundTrip(error, latent, back, (up, len(calls) - up))
