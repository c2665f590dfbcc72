"""What a network really predicts, found by reading its output as every row of the table of targets.

At one noise level the input of a network, c_in x_t, is the same on every process, and so is what it puts out, F. Taken for the
target F = p x + q eps of a row, it says with x_t = alpha x + sigma eps that

    x = (F - q x_t / sigma) / (p - q alpha / sigma),                                                         (1)

and whatever the network was trained for, no other reading has a smaller error. So the geometric mean over levels of the error of
(1), as a share of that of the best linear denoiser, names the target, its sign, the process and the data scale of its training.
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
        kind: how that one differs: ``""`` (it does not), ``"sign"``, ``"target"``, ``"process"`` or ``"sigma_data"``.
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
        Three calls a level and item.
    """
    process, clean, scale = model.process, x.double().flatten(1), reference.var**0.5
    rescaled = Preconditioned(model.net, process, model.target.name, sigma_data=scale)  # it has another c_in too
    seen, mismatch = [], 0.0
    for i, level in enumerate(levels):
        t = process.time(torch.tensor(level, dtype=torch.float64))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        x_t = process.perturb(x, t, noise.at(i).normal_like(x))
        out = model.output(x_t, t, **cond).double()
        c_skip, c_out = (float(c) for c in coefficients(model.target, process, t, model.sigma_data))
        answer, table = model(x_t, t, **cond).mean.double(), c_skip * x_t.double() + c_out * out
        mismatch = max(mismatch, float((answer - table).norm() / table.norm().clamp(min=1e-30)))
        linear = float((reference.denoise(x_t, alpha, sigma) - clean).square().mean())
        other = rescaled.output(x_t, t, **cond).double().flatten(1)
        seen.append(_Seen(level, alpha, sigma, x_t.double().flatten(1), out.flatten(1), other, linear))
    own, best, kind, name = math.inf, math.inf, "", ""
    for found, said, row, home, sign in _candidates(model, scale):
        score = _score(clean, seen, row, home, sign, scale if found == "sigma_data" else model.sigma_data, found)
        if not found:
            own = best = score
        elif score < 0.97 * best:  # an alternative has to be better, not as good
            best, kind, name = score, found, said
    return Identity(own, best, kind, name, mismatch)


@dataclass(frozen=True)
class _Seen:
    """A level: x_t, what the network put out, also for the data's own scale, and the error of the linear denoiser; flat."""

    log_snr: float
    alpha: float
    sigma: float
    x_t: Tensor
    out: Tensor
    rescaled: Tensor
    linear: float


def _candidates(model: Preconditioned, scale: float) -> Iterator[tuple[str, str, Target, GaussianProcess, float]]:
    """What the model says, then alternatives, the likelier ones first: kind, name, row, process and sign."""
    own, process = model.target, model.process
    yield "", "", own, process, 1.0
    if abs(math.log(scale / model.sigma_data)) > 0.1:
        yield "sigma_data", f"{own.name} for sigma_data={scale:.3g}", own, process, 1.0
    yield "sign", f"{own.name} with the opposite sign", own, process, -1.0
    for row in TARGETS.values():
        if row is not own:
            yield "target", f"the target {row.name!r}", row, process, 1.0
    for name, make in PROCESSES.items():
        yield "process", f"{own.name} of the process {name!r}", own, make(), 1.0


def _score(
    x: Tensor, seen: list[_Seen], row: Target, process: GaussianProcess, sign: float, sigma_data: float, kind: str
) -> float:
    """The error of (1) as a share of the linear one; infinite where the row is singular or the process does not go."""
    total = 0.0
    for at in seen:
        t = process.time(torch.tensor(at.log_snr, dtype=torch.float64))
        if abs(float(process.log_snr(t)) - at.log_snr) > 0.1:
            return math.inf
        p, q = (sign * float(c) for c in row.row(process, t, sigma_data))
        det = p - q * at.alpha / at.sigma
        if not (math.isfinite(p) and math.isfinite(q)) or det == 0:
            return math.inf
        out = at.rescaled if kind == "sigma_data" else at.out
        error = float(((out - q / at.sigma * at.x_t) / det - x).square().mean())
        total += min(5.0, math.log(max(error, 1e-30) / at.linear))
    return math.exp(total / len(seen))
