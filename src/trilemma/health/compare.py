"""Two errors side by side: of averaged weights and plain ones, of right labels and wrong ones, of data held out and seen,
of data in these units and in those of the samples, of data as they are and turned over; one answer beside the same once more;
and the bound beside the density by the flow.

The noise is the same on both sides wherever the items are, so that a difference is known far better than either error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..likelihood.bound import elbo
from ..likelihood.flow import log_likelihood
from ..numerics.noise import Noise
from .probe import Level, Reference, errors, levels_of, standard
from .samples import Samples

__all__ = ["average_lag", "bound_gap", "label_gain", "memory_ratios", "turned_over", "unit_ratios", "unrest"]

Cond = Mapping[str, Tensor]


def average_lag(
    model: Denoiser, raw: Denoiser, x: Tensor, table: Sequence[Level], cond: Cond, noise: Noise, batch: int
) -> tuple[float, float, float, float]:
    """How far averaged weights are behind the plain ones.

    Returns:
        Their error over that of the plain ones, a geometric mean over levels; the nats, (7) of ``probe``, by which they are
        behind; the same as a share of those by which the plain ones are ahead of the linear denoiser, 0 if they are not; and
        by how many standard errors they are behind.
    """
    levels = [v.log_snr for v in table]
    mine, theirs = (errors(m, x, levels, cond, noise, batch=batch) for m in (model, raw))
    weight = torch.tensor(levels, dtype=torch.float64, device=mine.device).exp()
    weight *= x[0].numel() / 2 * (levels[1] - levels[0])
    linear = torch.tensor([v.linear for v in table], dtype=torch.float64, device=mine.device)
    behind, ahead = weight @ (mine - theirs), float(weight @ (linear - theirs.mean(1)))
    ratio, nats = float((mine.mean(1) / theirs.mean(1)).log().mean().exp()), float(behind.mean())
    return ratio, nats, nats / ahead if ahead > 0 else 0.0, standard(behind)


def unit_ratios(
    model: Denoiser, x: Tensor, table: Sequence[Level], looks: Samples, cond: Cond, noise: Noise, batch: int
) -> tuple[float, float]:
    """Log error over that of the linear denoiser, a mean over levels: on data moved to the samples' units, and unmoved."""
    centre = x.mean()
    moved = (x - centre) * looks.scale + centre + looks.shift * float((x - x.mean(0)).square().mean().sqrt())
    there, reference = [], Reference(moved)
    for i, level in enumerate(levels_of(model, reference.var)):
        t = model.process.time(torch.tensor(level, dtype=torch.float64))
        x_t = model.process.perturb(moved, t, noise.at(i).at(0).normal_like(x))
        linear = reference.denoise(x_t, float(model.process.alpha(t)), float(model.process.sigma(t))) - moved.flatten(1)
        there.append(
            float(errors(model, moved, [level], cond, noise.at(i), batch=batch).mean() / linear.square().mean())
        )
    here = [v.error / v.linear for v in table]
    fits, before = (sum(map(math.log, ratios)) / len(ratios) for ratios in (there, here))
    return fits, before


def turned_over(
    model: Denoiser, x: Tensor, table: Sequence[Level], cond: Cond, noise: Noise, batch: int
) -> tuple[str, float, float]:
    """The way of turning the data over that the model errs least on: data read in another order than in training.

    Reversing an axis, exchanging two of equal length and changing the sign keep all distances, so the best linear denoiser and
    the exact one err as much on the turned data as on the data; a model errs least on the law that it learned.

    Returns:
        What is turned; the model's error as the data are over that on the turned ones, a geometric mean over three levels; and
        by how many standard errors it is larger.
    """
    names = {2: ("coordinates",), 3: ("channels", "samples"), 4: ("channels", "rows", "columns")}.get(x.ndim, ())
    ways = {f"the order of the {name}": x.flip(1 + k) for k, name in enumerate(names) if x.shape[1 + k] > 1}
    ways["the sign"] = -x
    if x.ndim == 4 and x.shape[2] == x.shape[3]:
        ways["rows and columns"] = x.mT.contiguous()  # networks may call view
    levels = [v.log_snr for v in table][len(table) // 4 :: len(table) // 4][:3]
    weight = torch.tensor([1 / v.linear for v in table if v.log_snr in levels], dtype=torch.float64, device=x.device)
    here, found = errors(model, x, levels, cond, noise, batch=batch), ("", 1.0, 0.0)
    for way, other in ways.items():
        there = errors(model, other, levels, cond, noise, batch=batch)
        ratio = float((here.mean(1) / there.mean(1)).log().mean().exp())
        if ratio > found[1]:
            found = way, ratio, standard(weight @ (here - there))
    return found


@torch.no_grad()
def unrest(model: Denoiser, x: Tensor, level: float, cond: Cond, noise: Noise) -> float:
    """Relative difference of two answers to the same question, at a log-SNR."""
    t = model.process.time(torch.tensor(level, dtype=torch.float64))
    x_t = model.process.perturb(x, t, noise.normal_like(x))
    one, other = (model(x_t, t, **cond).mean.double() for _ in range(2))
    return float((one - other).norm() / one.norm().clamp(min=1e-30))


def label_gain(model: Denoiser, x: Tensor, levels: list[float], cond: Cond, noise: Noise, batch: int) -> float:
    """How much less the model errs with the right labels than with those of other items, in standard errors."""
    label = cond["label"]
    other = label.roll(1)
    for shift in range(2, len(label)):
        same = other == label
        if not bool(same.any()):
            break
        other = torch.where(same, label.roll(shift), other)
    right, wrong = (errors(model, x, levels, {**cond, "label": v}, noise, batch=batch) for v in (label, other))
    gain = (wrong - right).sum(0)
    return standard(gain)


def memory_ratios(
    model: Denoiser, x: Tensor, train: Tensor, levels: list[float], batch: int, sure: float
) -> list[float]:
    """Error on held-out items over that on training items, at levels where it is larger by ``sure`` standard errors."""
    seen, ratios = train[: len(x)].to(x), []
    for i, level in enumerate(levels):
        here, there = (errors(model, v, [level], {}, Noise(1, len(v)).at(i), batch=batch)[0] for v in (x, seen))
        error = (here.var() / len(here) + there.var() / len(there)).sqrt()
        if float(here.mean() - there.mean()) > sure * float(error):
            ratios.append(float(here.mean() / there.mean()))
    return ratios


def bound_gap(model: Denoiser, x: Tensor, cond: Cond, seeds: int) -> tuple[float, float]:
    """The variational bound less the density by the flow: mean over 64 items in nats, and in standard errors.

    Raises:
        ArithmeticError: the flow is too stiff for its likelihood.
    """
    few, own = x[:64], {key: value[:64] for key, value in cond.items()}
    bound = elbo(model, few, samples=64, ends=(levels_of(model, 1.0)[0], 8.0), cond=own, seeds=seeds)
    exact = log_likelihood(model, few, rtol=1e-3, atol=1e-3, cond=own)
    gap = bound.log_prob - exact.log_prob
    return float(gap.mean()), standard(gap)
