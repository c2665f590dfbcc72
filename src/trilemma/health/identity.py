"""What a network really predicts, and what it wants to be given, found by reading and feeding it in every other way.

At one noise level the input of a network, c_in x_t, is the same on every process, and so is what it puts out, F. Taken for the
target F* = p x + q eps of a row, it says with x_t = alpha x + sigma eps that

    x = (F - q x_t / sigma) / (p - q alpha / sigma),                                                         (1)

and whatever the network was trained for, no other reading has a smaller error. So the geometric mean over levels of the error of
(1), as a share of that of the best linear denoiser, names the target, its sign, the process and the data scale of its training.
The same holds for what it is given: if it errs less when told another number for the noise level, or when its input is scaled in
another way, it was trained so.

Even a network that has learned little cannot gain by a factor before its output once training has settled, so

    E <F* - F, F> = 0,     b = E <F*, F> / E <F, F> = 1,                                                     (2)

and b is -1 if its sign was turned, where (1) has nothing to tell: neither sign errs less than the linear denoiser.

At level l nothing errs less than what was trained for l. A clock that no formula knows is found by telling the network, at each
level l, every other one: the best on a quarter of the items is judged on the rest, so that chance has no part in it.          (3)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoise.denoiser import Preconditioned
from ..denoise.targets import TARGETS, Target, coefficients
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from ..process.registry import PROCESSES
from .probe import Reference, standard

__all__ = ["Identity", "Told", "identify"]


@dataclass(frozen=True)
class Told:
    """A network told another level, (3).

    Args:
        log_snr: the level of its input.
        best: the level that it was told when it erred least, on a quarter of the items.
        ratio: its error when told the right one over that when told this one, on the rest.
        sure: how much more that is, in standard errors.
        linear: its error when told this one over that of the linear denoiser.
        slope: b of (2) at this level, on the rest.
        slope_error: its standard error.
        effect: largest relative change of the output when it is told another, on the quarter; NaN if it puts out 0.
    """

    log_snr: float
    best: float
    ratio: float
    sure: float
    linear: float
    slope: float
    slope_error: float
    effect: float


@dataclass(frozen=True)
class Identity:
    """Who a network is.

    Args:
        score: the error of what the model says, over that of a linear denoiser, on a quarter of the items.
        best: the same for the reading that fits best.
        sure: by how many standard errors that one is ahead.
        kind: how that one differs: ``""`` (it does not), ``"sign"``, ``"target"``, ``"process"``, ``"time"``, ``"sigma_data"`` or
            ``"coefficients"``.
        name: what it is, in words.
        mismatch: relative difference between the model's answer and c_skip x_t + c_out F with the coefficients of the table.
        told: the same network told other levels.
        retold: the model's error over that when told the best level everywhere, a geometric mean over levels.
        retold_sure: how much more that is, in standard errors.
    """

    score: float
    best: float
    sure: float
    kind: str
    name: str
    mismatch: float
    told: tuple[Told, ...]
    retold: float
    retold_sure: float


@torch.no_grad()
def identify(
    model: Preconditioned,
    x: Tensor,
    levels: list[float],
    cond: Mapping[str, Tensor],
    noise: Noise,
    reference: Reference,
) -> Identity:
    """Compare the network with the table.

    Args:
        model: the denoiser.
        x: clean items, ``(N, ...)``.
        levels: log-SNRs.
        cond: conditions of the items.
        noise: source with N items.
        reference: moments of the data.

    Cost:
        ``len(levels) + 10`` calls a level and item of the first quarter, two of the others.
    """
    few, rest = slice(0, len(x) // 4), slice(len(x) // 4, None)
    near, given = x[few], {key: value[few] for key, value in cond.items()}
    own, *others = _readings(model, reference.var**0.5)
    scales = {reading.sigma_data for reading in others if reading.kind == "sigma_data"}
    clocks = [float(model.coefficients(_time(model.process, level))[3]) for level in levels]
    seen, told, gains, mismatch = [], [], [], 0.0
    for i, level in enumerate(levels):
        t = _time(model.process, level)
        x_t = model.process.perturb(x, t, noise.at(i).normal_like(x))
        at = _hear(model, near, x_t[few], t, given, reference, scales)
        seen.append(at)
        c_skip, c_out = (float(c) for c in coefficients(model.target, model.process, t, model.sigma_data))
        answer, table = model(x_t[few], t, **given).mean.double().flatten(1), c_skip * at.x_t + c_out * at.outs[""]
        mismatch = max(mismatch, float((answer - table).norm() / table.norm().clamp(min=1e-30)))
        louder = [replace(at, outs={"": _out(model, x_t[few], t, c, given)}) for c in clocks]
        best = min(range(len(levels)), key=[float(_gap(near, v, own).mean()) for v in louder].__getitem__)
        others_given = {key: value[rest] for key, value in cond.items()}
        far = _hear(model, x[rest], x_t[rest], t, others_given, reference, set(), alone=True)
        again = far if best == i else replace(far, outs={"": _out(model, x_t[rest], t, clocks[best], others_given)})
        right, other = (_gap(x[rest], v, own) for v in (far, again))
        gains.append((right - other) / far.linear)
        slope, slope_error = _factor(x[rest], far, own)
        effect = _effect(at.outs[""], [v.outs[""] for v in louder])
        ratio, sure, linear = (
            float(right.mean() / other.mean()),
            standard(right - other),
            float(other.mean()) / far.linear,
        )
        told.append(Told(level, levels[best], ratio, sure, linear, slope, slope_error, effect))
    score, items = _score(near, seen, own)
    least, ahead, kind, name = score, 0.0, "", ""
    for reading in others:
        found, its = _score(near, seen, reading)
        if found < 0.97 * least:  # an alternative has to be better, not as good
            least, ahead, kind, name = found, standard(items - its), reading.kind, reading.said
    retold = math.exp(sum(math.log(v.ratio) for v in told) / len(told))
    return Identity(score, least, ahead, kind, name, mismatch, tuple(told), retold, standard(torch.stack(gains).sum(0)))


def _time(process: GaussianProcess, level: float) -> Tensor:
    return process.time(torch.tensor(level, dtype=torch.float64))


def _out(model: Preconditioned, x_t: Tensor, t: Tensor, c_time: float, cond: dict[str, Tensor]) -> Tensor:
    """What the network puts out when it is told another number; flat."""
    return model._net(x_t, float(model.coefficients(t)[2]), c_time, cond).double().flatten(1)


def _hear(
    model: Preconditioned, x: Tensor, x_t: Tensor, t: Tensor, cond: dict[str, Tensor], reference: Reference,
    scales: set[float], alone: bool = False,
) -> _Seen:  # fmt: skip
    """What the network puts out at a level, as it is used and given something else."""
    process = model.process
    alpha, sigma, c_in = float(process.alpha(t)), float(process.sigma(t)), float(model.coefficients(t)[2])
    c_time = float(model.coefficients(t)[3])
    inputs = (
        {}
        if alone
        else {"x_t": 1.0, "c_in^2 x_t": c_in**2, **{f"{s:.3g}": math.hypot(alpha * s, sigma) ** -1 for s in scales}}
    )
    heard = {said: model._net(x_t, c, c_time, cond) for said, c in {"": c_in, **inputs}.items()}
    heard |= {} if alone else {said: model._net(x_t, c_in, c, cond) for said, c in _clocks(process, t).items()}
    linear = float((reference.denoise(x_t, alpha, sigma) - x.double().flatten(1)).square().mean())
    outs = {said: out.double().flatten(1) for said, out in heard.items()}
    return _Seen(float(process.log_snr(t)), alpha, sigma, x_t.double().flatten(1), outs, linear)


def _factor(x: Tensor, at: _Seen, own: _Reading) -> tuple[float, float]:
    """The factor b of (2) and its standard error."""
    p, q = (float(c) for c in own.row.row(own.process, _time(own.process, at.log_snr), own.sigma_data))
    clean, out = x.double().flatten(1), at.outs[""]
    aim, size = p * clean + q * (at.x_t - at.alpha * clean) / at.sigma, max(float(out.square().sum()), 1e-30)
    slope = float((aim * out).sum()) / size
    return slope, float(((aim - slope * out) * out).sum(1).std()) * len(x) ** 0.5 / size


def _effect(out: Tensor, others: list[Tensor]) -> float:
    """Largest relative difference of any of them; NaN for an untrained network, which answers 0 to everything."""
    size = float(out.norm())
    return max(float((other - out).norm()) for other in others) / size if size > 1e-6 else math.nan


def _clocks(process: GaussianProcess, t: Tensor) -> dict[str, float]:
    """What a network may have been told of the noise level in place of c_time."""
    turned = float(process.log_snr(1 - t).clamp(-40, 40)) / -8
    return {"1 - t in place of t": turned, "t itself": float(t), "1000 t": 1000 * float(t)}


@dataclass(frozen=True)
class _Seen:
    """A level: x_t, what the network put out by what it was given, and the error of the linear denoiser; flat."""

    log_snr: float
    alpha: float
    sigma: float
    x_t: Tensor
    outs: dict[str, Tensor]
    linear: float


@dataclass(frozen=True)
class _Reading:
    """A way to read a network: how it differs, in words; the row of the table, and the key of what it put out."""

    kind: str
    said: str
    row: Target
    process: GaussianProcess
    sigma_data: float
    sign: float = 1.0
    key: str = ""


def _readings(model: Preconditioned, scale: float) -> Iterator[_Reading]:
    """What the model says, then alternatives, the likelier ones first."""
    own, process, told = model.target, model.process, model.sigma_data
    yield _Reading("", "", own, process, told)
    for other in (0.5, 1.0, scale):  # EDM's, that of this library, and that of the data
        if abs(math.log(other / told)) > 0.1:
            yield _Reading(
                "sigma_data", f"{own.name} for sigma_data={other:.3g}", own, process, other, key=f"{other:.3g}"
            )
    yield _Reading("sign", f"{own.name} with the opposite sign", own, process, told, sign=-1.0)
    for row in TARGETS.values():
        if row is not own:
            yield _Reading("target", f"the target {row.name!r}", row, process, told)
    for name, make in PROCESSES.items():
        yield _Reading("process", f"{own.name} of the process {name!r}", own, make(), told)
    for clock in ("1 - t in place of t", "t itself", "1000 t"):
        yield _Reading("time", f"{own.name} when told {clock}", own, process, told, key=clock)
    for given in ("x_t", "c_in^2 x_t"):
        yield _Reading(
            "coefficients", f"{own.name} when given {given} in place of c_in x_t", own, process, told, key=given
        )


def _score(x: Tensor, seen: list[_Seen], reading: _Reading) -> tuple[float, Tensor]:
    """The error of (1) as a share of the linear one, a geometric mean over levels, and as a mean over levels item by item."""
    shares = torch.stack([_gap(x, at, reading) / at.linear for at in seen])
    if not bool(torch.isfinite(shares).all()):
        return math.inf, shares.mean(0)
    logs = [min(5.0, math.log(max(float(share), 1e-30))) for share in shares.mean(1)]
    return math.exp(sum(logs) / len(seen)), shares.mean(0)


def _gap(x: Tensor, at: _Seen, reading: _Reading) -> Tensor:
    """Squared error of (1) of each item, a mean over elements; infinite where the row is singular or the process does not go."""
    process, nothing = reading.process, torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    t = _time(process, at.log_snr)
    if abs(float(process.log_snr(t)) - at.log_snr) > 0.1:
        return nothing
    p, q = (reading.sign * float(c) for c in reading.row.row(process, t, reading.sigma_data))
    det = p - q * at.alpha / at.sigma
    if not (math.isfinite(p) and math.isfinite(q)) or det == 0:
        return nothing
    return ((at.outs[reading.key] - q / at.sigma * at.x_t) / det - x.double().flatten(1)).square().mean(1)
