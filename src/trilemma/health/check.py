"""The health of a trained denoiser: what is wrong with it, how sure that is, and what to do.

The numbers come from ``probe`` (identities that every exact denoiser obeys) and ``identity`` (what the network predicts); samples
are compared with held-out data by the energy distance

    2 E|X - Y| - E|X - X'| - E|Y - Y'|,                                                                      (1)

beside that of Gaussian draws with the mean and covariance of the data, and that of the data to themselves. Causes are looked
for before their consequences: once something structural is found, poor fit and poor samples are not reported as findings of
their own.

Source of (1): Szekely and Rizzo 2013.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser, Preconditioned
from ..likelihood.bound import elbo
from ..likelihood.flow import log_likelihood
from ..numerics.noise import Noise
from ..sampling import ddpm, sample
from ..sampling.start import check as fit
from .identity import Identity, identify
from .probe import Level, Reference, errors, levels_of, probe

__all__ = ["Finding", "Health", "Samples", "check", "energy_distance"]

_SURE = 4.0  # standard errors


@dataclass(frozen=True)
class Finding:
    """Something about a model.

    Args:
        name: of the fault, one word.
        severity: ``"fault"``: fix it before the model is used; ``"note"``: know it.
        what: what was seen, with its number.
        advice: what to do.
    """

    name: str
    severity: str
    what: str
    advice: str


@dataclass(frozen=True)
class Samples:
    """Samples beside data; distances (1) over E|X - X'| of the data.

    Args:
        shift: mean of the samples less that of the data, in standard deviations of the data.
        scale: standard deviation of the samples over that of the data.
        distance: of samples by the probability flow to the data.
        moved: the same after the samples are shifted and scaled to the data's mean and standard deviation.
        stochastic: of the samples by the flow to those by the reverse equation.
        gaussian: of Gaussian draws to the data.
        floor: of one half of the data to the other.
    """

    shift: float
    scale: float
    distance: float
    moved: float
    stochastic: float
    gaussian: float
    floor: float


@dataclass(frozen=True)
class Health:
    """What :func:`check` found.

    Args:
        findings: causes first.
        levels: the numbers by noise level, noise first.
        samples: samples beside data; nothing if none could be drawn.
        identity: what the network predicts; nothing if the denoiser is no network.
    """

    findings: tuple[Finding, ...]
    levels: tuple[Level, ...] = ()
    samples: Samples | None = None
    identity: Identity | None = None
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether there is no fault; notes do not count."""
        return not any(finding.severity == "fault" for finding in self.findings)

    def __str__(self) -> str:
        rows = ["log-SNR    error   linear   x-slope  claimed/error  asymmetry"] if self.levels else []
        rows += [
            f"{v.log_snr:7.2f} {v.error:8.4f} {v.linear:8.4f} {v.slope:9.3f} {v.predicted / v.error:14.2f} {v.asymmetry:10.3f}"
            for v in self.levels
        ]
        faults = sum(finding.severity == "fault" for finding in self.findings)
        rows.append("healthy" if self.healthy else f"{faults} fault{'s' if faults > 1 else ''} found")
        rows += [f"{f.severity}: {f.name}: {f.what}\n    {f.advice}" for f in self.findings]
        return "\n".join(rows)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """(1) over E|X - X'|, without bias; flat items.

    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> energy_distance(x, x + 3.0) > 10 * abs(energy_distance(x[:250], x[250:]))
    True
    """
    x, y = x.double().flatten(1), y.double().flatten(1)
    within = [torch.cdist(v, v).sum() / (len(v) * (len(v) - 1)) for v in (x, y)]
    return float((2 * torch.cdist(x, y).mean() - within[0] - within[1]) / within[0])


def check(
    model: Denoiser,
    data: Tensor,
    *,
    cond: Mapping[str, Tensor] | None = None,
    train: Tensor | None = None,
    raw: Denoiser | None = None,
    items: int = 512,
    draws: int = 256,
    seeds: int = 0,
    batch: int = 256,
) -> Health:
    """Examine a trained denoiser by cheap identities on held-out data, and say what is wrong with it.

    Args:
        model: the denoiser, with averaged weights if it has them.
        data: held-out clean items, ``(N, ...)``, N of at least 64, model units.
        cond: conditions of the items, such as ``{"label": labels}``.
        train: items that it was trained on, to see whether it knows them by heart.
        raw: the same model with the weights that were not averaged, to see whether the average follows.
        items: held-out items to use.
        draws: samples to draw; 0 for none.
        seeds: of the noise.
        batch: evaluations at once.

    Returns:
        The findings, causes first, with all numbers.

    Raises:
        ValueError: too few items, or conditions that do not fit.

    Cost:
        About 20 calls and 40 vector-Jacobian products an item at 9 levels together 2, and 90 calls a sample.

    Error:
        A finding needs 4 standard errors and an effect that matters.

    >>> from trilemma.denoise import Covariances, MixtureDenoiser
    >>> from trilemma.process import Flow
    >>> two = MixtureDenoiser(Flow(), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), Covariances.diagonal(torch.full((2, 2), 0.1)))
    >>> print(check(two, two.draw(Noise(0, 256))[0]).healthy)
    True
    """
    if len(data) < 64:
        raise ValueError(f"{len(data)} held-out items are too few to tell anything; give at least 64")
    if bad := [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]:
        what = f"{len(bad)} weight tensors hold NaN or infinity, the first is {bad[0]}"
        return Health(
            (Finding("weights", "fault", what, "Go back to the last good checkpoint, with a lower learning rate."),)
        )
    if not bool(torch.isfinite(data).all()):
        what = "the held-out data hold NaN or infinity"
        return Health(
            (Finding("data", "fault", what, "Clean the data; a model trained on them is not to be trusted."),)
        )
    x = data[:items]
    own = {key: value[:items] for key, value in (cond or {}).items()}
    device, own = fit(model, x.shape, x, own)
    x, noise = x.to(device), Noise(seeds, len(x))
    rest = data[items:] if len(data) >= 2 * items else (train if train is not None else data)
    reference = Reference(rest[:4096].to(device))
    std = reference.var**0.5
    levels = levels_of(model, reference.var)
    who = identify(model, x, levels[1:-1], own, noise.at(0), reference) if isinstance(model, Preconditioned) else None
    table = tuple(probe(model, x, reference, levels, own, noise.at(1), batch=batch))
    looks = _samples(model, x, own, reference, draws, seeds, batch) if draws else None
    found = (  # causes before consequences: what comes first explains what would come after
        _average(model, raw, x, levels, own, noise.at(2), batch)
        or _structure(who, table)
        or _range(model, x, table, looks, who, own, noise.at(5), batch)
        or _reading(who)
        or _scale(model, std)
        or _labels(model, x, levels, own, noise.at(3), batch)
        or _turned(table)
        or _memory(model, x, train, levels, noise.at(4), batch)
        or _fit(table, looks)
        or [*_notes(table, looks), *_bound(model, x, own, seeds)]
    )
    return Health(tuple(found), table, looks, who)


def _samples(
    model: Denoiser, x: Tensor, cond: dict[str, Tensor], reference: Reference, draws: int, seeds: int, batch: int
) -> Samples | None:
    """Draw by the flow and by the reverse equation, for conditions of the data."""
    n = min(draws, len(x))
    own = {key: value[:n] for key, value in cond.items()}
    shape = (n, *x.shape[1:])
    flow = sample(model, shape, 20, seeds=seeds, cond=own).double()
    ts = model.process.time(
        torch.linspace(levels_of(model, reference.var)[0], 8 - math.log(reference.var), 60).double()
    )
    noisy = sample(model, shape, torch.cat([ts, torch.zeros(1).double()]), ddpm, seeds=seeds + 1, cond=own).double()
    if not bool(torch.isfinite(flow).all() and torch.isfinite(noisy).all()):
        return Samples(math.inf, math.inf, math.inf, math.inf, math.inf, math.nan, math.nan)
    real, std = x.double(), reference.var**0.5
    white = Noise(seeds + 2, n).normal((n, len(reference.mean)), dtype=torch.float64).to(x.device)
    normal = white * reference.values.sqrt()
    normal = reference.mean + (normal if reference.basis is None else normal @ reference.basis.T)
    spread = float((flow - flow.mean(0)).square().mean().sqrt())
    centre, aim = flow.mean(), real.mean()
    moved = (flow - centre) * float((real - aim).std() / (flow - centre).std().clamp(min=1e-12)) + aim
    half = len(x) // 2
    return Samples(
        shift=float((flow.mean() - real.mean()) / std),
        scale=spread / std,
        distance=energy_distance(real, flow),
        moved=energy_distance(real, moved),
        stochastic=energy_distance(flow, noisy),
        gaussian=energy_distance(real, normal),
        floor=abs(energy_distance(real[:half], real[half:])) + 2.0 / n,
    )


def _average(
    model: Denoiser,
    raw: Denoiser | None,
    x: Tensor,
    levels: list[float],
    cond: dict[str, Tensor],
    noise: Noise,
    batch: int,
) -> list[Finding]:
    """An average that stands still is much worse than the weights that it should follow."""
    if raw is None:
        return []
    mine, theirs = (errors(m, x, levels, cond, noise, batch=batch).mean(1) for m in (model, raw))
    ratio = float((mine / theirs).log().mean().exp())
    if ratio < 1.15:
        return []
    what = f"the averaged weights err {ratio:.2f} times as much as the weights they should follow"
    advice = "Check that the average is updated at every step and saved; use the plain weights (ema=False) until then."
    return [Finding("average", "fault", what, advice)]


def _structure(who: Identity | None, table: tuple[Level, ...]) -> list[Finding]:
    """Faults of the maps around the network, which no training mends."""
    if who is not None and who.mismatch > 1e-2:
        what = f"the answer differs from c_skip x_t + c_out F by {who.mismatch:.0%}"
        return [
            Finding(
                "coefficients", "fault", what, "Compare c_skip and c_out with trilemma.denoise.targets.coefficients."
            )
        ]
    if all(v.time_effect < 1e-7 for v in table):  # young networks hear it faintly, a deaf one not at all
        what = "the network answers the same whatever noise level it is told"
        return [Finding("time", "fault", what, "Pass c_time into the network, and train again.")]
    return []


def _reading(who: Identity | None) -> list[Finding]:
    """A network whose output means something else than it is taken for."""
    if who is None or not who.kind or who.best > 1 or who.score < 1.15 * who.best:
        return []
    what = f"the network predicts {who.name}: so read, its error is {who.best / who.score:.2g} of what it is"
    return [Finding(who.kind, "fault", what, f"Build the model with {who.name}, or look for what turned it round.")]


def _turned(table: tuple[Level, ...]) -> list[Finding]:
    """A sign that no row of the table explains, as in a denoiser that is no network."""
    if sum(v.slope < 0 for v in table) <= len(table) // 2:
        return []
    what = "the answers point away from the clean data at most noise levels"
    return [Finding("sign", "fault", what, "Look for a sign that was turned in the target or in the score.")]


def _scale(model: Denoiser, std: float) -> list[Finding]:
    """What the model was told of the data, which need not be how it was trained."""
    if not isinstance(model, Preconditioned) or abs(math.log(model.sigma_data / std)) < math.log(1.5):
        return []
    what = f"sigma_data is {model.sigma_data:.3g} and the data have a standard deviation of {std:.3g}"
    return [Finding("sigma_data", "fault", what, f"Train with sigma_data={std:.2g}, or rescale the data.")]


def _range(
    model: Denoiser, x: Tensor, table: tuple[Level, ...], looks: Samples | None, who: Identity | None,
    cond: dict[str, Tensor], noise: Noise, batch: int,
) -> list[Finding]:  # fmt: skip
    """Samples have another mean and scale than the data: does the model fit the data once they are moved to those?"""
    if looks is None or not math.isfinite(looks.scale) or looks.scale < 1e-3:
        return []
    if abs(looks.shift) < 0.3 and abs(math.log(looks.scale)) < 0.3:
        return []
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
    if fits > 0.02 or fits > before - 0.1:
        return []
    if who is not None and who.kind == "sigma_data" and math.log(who.best) < fits:
        return []  # the coefficients explain it better: a wrong scale there shrinks the samples too
    what = f"samples are data moved by {looks.shift:.2f} standard deviations and scaled by {looks.scale:.2f}"
    advice = "The model was trained on data in other units: give it what training gave it, such as [-1, 1], not [0, 1]."
    return [Finding("range", "fault", what, advice)]


def _labels(
    model: Denoiser, x: Tensor, levels: list[float], cond: dict[str, Tensor], noise: Noise, batch: int
) -> list[Finding]:
    """The right label has to help: against the labels of other items, on the same noise."""
    label = cond.get("label")
    if label is None or "label" not in model.cond_keys or len(label.unique()) < 2:
        return []
    other = label.roll(1)
    for shift in range(2, len(label)):
        same = other == label
        if not bool(same.any()):
            break
        other = torch.where(same, label.roll(shift), other)
    right, wrong = (errors(model, x, levels, {**cond, "label": v}, noise, batch=batch) for v in (label, other))
    gain = (wrong - right).sum(0)
    z = float(gain.mean() / (gain.std() / len(x) ** 0.5 + 1e-30))
    if z > _SURE:
        return []
    what = f"the right label helps no more than that of another item ({z:.1f} standard errors)"
    advice = (
        "Check that images and labels are shuffled together, that the network is given labels, and label_dropout < 1."
    )
    return [Finding("labels", "fault", what, advice)]


def _memory(
    model: Denoiser, x: Tensor, train: Tensor | None, levels: list[float], noise: Noise, batch: int
) -> list[Finding]:
    """A model that knows its data by heart errs less on them than on others."""
    if train is None or model.cond_keys:
        return []
    seen = train[: len(x)].to(x)
    gaps = []
    for i, level in enumerate(levels):
        here, there = (errors(model, v, [level], {}, Noise(1, len(v)).at(i), batch=batch)[0] for v in (x, seen))
        error = (here.var() / len(here) + there.var() / len(there)).sqrt()
        if float(here.mean() - there.mean()) > _SURE * float(error):
            gaps.append(float(here.mean() / there.mean()))
    if len(gaps) < 2 or max(gaps) < 1.3:
        return []
    what = f"the error on held-out data is up to {max(gaps):.2f} times that on training data"
    return [
        Finding("overfitted", "fault", what, "Stop earlier, add data, dropout or flips, or take a smaller network.")
    ]


def _fit(table: tuple[Level, ...], looks: Samples | None) -> list[Finding]:
    """Levels at which the network is no better than two moments of the data."""
    worse = [i for i, v in enumerate(table) if v.error > 1.05 * v.linear and v.excess > _SURE]
    poor = looks is not None and looks.distance > max(0.5 * looks.gaussian, 2.5 * looks.floor)
    ends = worse and len(worse) < len(table) - 2 and (worse == list(range(len(worse))) or worse[-1] == len(table) - 1)
    if (
        ends
        and max(table[i].error / table[i].linear for i in worse) > 1.1
        and any(v.error < 0.9 * v.linear for v in table)
    ):
        side = "noisiest" if worse[0] == 0 else "cleanest"
        ratio = max(table[i].error / table[i].linear for i in worse)
        what = f"at the {side} levels the error is {ratio:.2f} times that of a linear denoiser, elsewhere it is below"
        advice = "The loss or the law of times starves these levels: check the weighting (a factor alpha^2 or sigma^2) and times."
        return [Finding("weighting", "fault", what, advice)]
    if len(worse) > 2 or poor:
        what = f"at {len(worse)} of {len(table)} noise levels the error is above that of a linear denoiser"
        if looks is not None:
            what += f"; samples are {looks.distance / max(looks.gaussian, 1e-9):.2f} times as far from the data as Gaussian ones"
        return [Finding("half-trained", "fault", what, "Train longer, with a larger network or another learning rate.")]
    return []


def _notes(table: tuple[Level, ...], looks: Samples | None) -> list[Finding]:
    """What is worth knowing about a model that works."""
    found = []
    off = [v for v in table if not 0.7 < v.predicted / v.error < 1.4]
    if off:
        worst = max(off, key=lambda v: abs(math.log(max(v.predicted, 1e-12) / v.error)))
        what = (
            f"its own derivative claims {worst.predicted / worst.error:.2f} of the error at log-SNR {worst.log_snr:.1f} "
            f"({len(off)} of {len(table)} levels are off by more than 1.4)"
        )
        found.append(
            Finding("calibration", "note", what, "Posterior variances by Tweedie's formula are off by this factor.")
        )
    if max(v.asymmetry for v in table) > 0.3:
        what = f"up to {max(v.asymmetry for v in table):.0%} of the derivative is antisymmetric"
        found.append(
            Finding("asymmetry", "note", what, "The field is no gradient there; likelihoods by flow and SDE differ.")
        )
    if looks is not None and looks.stochastic > 6 * looks.floor:
        what = f"the flow and the reverse equation draw different laws (distance {looks.stochastic:.3f})"
        found.append(Finding("samplers", "note", what, "Take the sampler whose samples you judged."))
    return found


def _bound(model: Denoiser, x: Tensor, cond: dict[str, Tensor], seeds: int) -> list[Finding]:
    """In few dimensions: the bound has to lie below the density by the flow."""
    if x[0].numel() > 8:
        return []
    few, own = x[:64], {key: value[:64] for key, value in cond.items()}
    bound = elbo(model, few, samples=64, ends=(levels_of(model, 1.0)[0], 8.0), cond=own, seeds=seeds)
    try:
        exact = log_likelihood(model, few, rtol=1e-3, atol=1e-3, cond=own)
    except ArithmeticError:
        return [
            Finding("bound", "note", "the flow is too stiff for its likelihood", "Train the cleanest levels longer.")
        ]
    gap = bound.log_prob - exact.log_prob
    z = float(gap.mean() / (gap.std() / len(few) ** 0.5 + 1e-30))
    if z < _SURE or float(gap.mean()) < 0.1:
        return []
    what = f"the variational bound is {float(gap.mean()):.2f} nats above the density by the flow"
    return [
        Finding(
            "bound", "note", what, "The denoiser is not consistent between levels; publish the bound, not the flow."
        )
    ]
