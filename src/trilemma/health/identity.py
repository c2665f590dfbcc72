"""What a network really predicts, found by reading its output as every row of the table of targets.

At one noise level the input of a network, c_in x_t, is the same on every process, and so is what it puts out, F. Taken for the
target F = p x + q eps of a row, it says with x_t = alpha x + sigma eps that

    x = (F - q x_t / sigma) / (p - q alpha / sigma),                                                         (1)

and whatever the network was trained for, no other reading has a smaller error. So the geometric mean over levels of the error of
(1), as a share of that of the best linear denoiser, names the target, its sign, the process and the data scale of its training.
The same holds for what it is told: if it errs less when told another number for the noise level, it was trained with that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Preconditioned
from ..denoise.targets import TARGETS, Target, coefficients
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from ..process.registry import PROCESSES
from .probe import Reference

__all__ = ["Identity", "identify"]


@dataclass(frozen=True)
class Identity:
    """Who a network is.

    Args:
        score: the error of what the model says, over that of a linear denoiser.
        best: the same for the reading that fits best.
        kind: how that one differs: ``""`` (it does not), ``"sign"``, ``"target"``, ``"process"``, ``"time"`` or ``"sigma_data"``.
        name: what it is, in words.
        mismatch: relative difference between the model's answer and c_skip x_t + c_out F with the coefficients of the table.
    """

    score: float
    best: float
    kind: str
    name: str
    mismatch: float


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
        Six calls a level and item.
    """
    process, clean, scale = model.process, x.double().flatten(1), reference.var**0.5
    rescaled = Preconditioned(model.net, process, model.target.name, sigma_data=scale)  # it has another c_in too
    seen, mismatch = [], 0.0
    for i, level in enumerate(levels):
        t = process.time(torch.tensor(level, dtype=torch.float64))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x_t = process.perturb(x, t, noise.at(i).normal_like(x))
        _, _, c_in, c_time = (float(c) for c in model.coefficients(t))
        heard = {said: model._net(x_t, c_in, c, dict(cond)) for said, c in _clocks(process, t, c_time).items()}
        heard["sigma_data"] = rescaled.output(x_t, t, **cond)
        outs = {said: out.double().flatten(1) for said, out in heard.items()}
        c_skip, c_out = (float(c) for c in coefficients(model.target, process, t, model.sigma_data))
        flat = x_t.double().flatten(1)
        answer, table = model(x_t, t, **cond).mean.double().flatten(1), c_skip * flat + c_out * outs[""]
        mismatch = max(mismatch, float((answer - table).norm() / table.norm().clamp(min=1e-30)))
        linear = float((reference.denoise(x_t, alpha, sigma) - clean).square().mean())
        seen.append(_Seen(level, alpha, sigma, flat, outs, linear))
    own, best, kind, name = math.inf, math.inf, "", ""
    for reading in _readings(model, scale):
        score = _score(clean, seen, reading)
        if not reading.kind:
            own = best = score
        elif score < 0.97 * best:  # an alternative has to be better, not as good
            best, kind, name = score, reading.kind, reading.said
    return Identity(own, best, kind, name, mismatch)


def _clocks(process: GaussianProcess, t: Tensor, c_time: float) -> dict[str, float]:
    """What a network may have been told of the noise level, the right number first."""
    turned = float(process.log_snr(1 - t).clamp(-40, 40)) / -8
    return {"": c_time, "1 - t in place of t": turned, "t itself": float(t), "1000 t": 1000 * float(t)}


@dataclass(frozen=True)
class _Seen:
    """A level: x_t, what the network put out by what it was told, and the error of the linear denoiser; flat."""

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
    if abs(math.log(scale / told)) > 0.1:
        yield _Reading("sigma_data", f"{own.name} for sigma_data={scale:.3g}", own, process, scale, key="sigma_data")
    yield _Reading("sign", f"{own.name} with the opposite sign", own, process, told, sign=-1.0)
    for row in TARGETS.values():
        if row is not own:
            yield _Reading("target", f"the target {row.name!r}", row, process, told)
    for name, make in PROCESSES.items():
        yield _Reading("process", f"{own.name} of the process {name!r}", own, make(), told)
    for clock in ("1 - t in place of t", "t itself", "1000 t"):
        yield _Reading("time", f"{own.name} when told {clock}", own, process, told, key=clock)


def _score(x: Tensor, seen: list[_Seen], reading: _Reading) -> float:
    """The error of (1) as a share of the linear one; infinite where the row is singular or the process does not go."""
    total, process = 0.0, reading.process
    for at in seen:
        t = process.time(torch.tensor(at.log_snr, dtype=torch.float64))
        if abs(float(process.log_snr(t)) - at.log_snr) > 0.1:
            return math.inf
        p, q = (reading.sign * float(c) for c in reading.row.row(process, t, reading.sigma_data))
        det = p - q * at.alpha / at.sigma
        if not (math.isfinite(p) and math.isfinite(q)) or det == 0:
            return math.inf
        error = float(((at.outs[reading.key] - q / at.sigma * at.x_t) / det - x).square().mean())
        total += min(5.0, math.log(max(error, 1e-30) / at.linear))
    return math.exp(total / len(seen))
