"""The rules of ``check``: from what was measured to what is said, every threshold and every sentence.

A rule takes numbers and returns findings, none if there is nothing to say; it runs no model. Which rule is asked before which
stands in ``check``: causes before what follows from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .identity import Identity
from .probe import Level
from .samples import Samples

__all__ = [
    "LEGEND", "SURE", "Finding", "asymmetry", "average", "bound", "calibration", "clock", "coefficients", "data",
    "evidence", "fit", "labels", "memory", "moved", "order", "random", "reading", "samplers", "scale", "stiff", "time",
    "turned", "units", "verdict", "weights", "young",
]  # fmt: skip

SURE = 4.0  # standard errors that a finding needs
MATTERS = 0.1  # nats an item: what averaged weights may lack, and what data may tell, without anybody asking
AVERAGE = 1.15  # error of averaged weights over that of the weights that they should follow
LAG = 0.5  # share of what those have learned that the averaged ones lack
MISMATCH = 1e-2  # relative, between the answer and the table's coefficients
DEAF = 1e-7  # relative change of the output with the level told: young networks hear it faintly, a deaf one not at all
FAINT, SILENT = 0.05, 5.0  # the same of one that says enough, and the factor that one would need which says nothing
RETOLD = 1.03  # error over that when told other levels, a geometric mean
MIRRORED = 0.5  # how far from -1 the factor of a turned sign may be
READING = 1.15  # error as the output is read, over that of a better reading
SIGMA_DATA = 1.5  # factor between what a model was told of the data's scale and what it is
SHIFT, SCALE = 0.3, 0.3  # samples elsewhere than the data: in standard deviations, and in log scale
UNITS_FIT, UNITS_GAIN = 0.02, 0.1  # log error over the linear one on data moved to the samples: at most, and less by
MEMORY = 1.3  # error on held-out items over that on training items
WORSE = 1.05  # error over that of a linear denoiser, at a level that is counted
STARVED, FED = 1.1, 0.9  # the same at the worst level of a starved end, and at some level elsewhere
POOR_GAUSSIAN, POOR_FLOOR = 0.5, 2.5  # distance of samples over that of Gaussian ones, and over that of data to data
LEARNED = 0.25  # share of what averaging other items tells, below which it is a fault
YOUNG = 0.5  # below which it is a note
CALIBRATED = 1.4  # factor between the error that the derivative claims and the error
CURL = 0.3  # antisymmetric share of the derivative
SAMPLERS = 6.0  # distance between the two samplers' laws over that of data to data
BOUND = 0.1  # nats by which the bound may lie above the density by the flow


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


LEGEND = """Noise first, data last. error: squared, an element. linear, copying: the errors of two denoisers that need no
training, the best linear one and the average of other items; a good model is below the smaller one or close to it.
x-slope and claimed/error (what the model's own derivative says of its error) should be 1, asymmetry 0."""


def verdict(findings: Sequence[Finding]) -> str:
    """The first line."""
    names = [finding.name for finding in findings if finding.severity == "fault"]
    if not names:
        return "Healthy: no fault was found."
    return f"Not healthy: {len(names)} fault{'s' if len(names) > 1 else ''} ({', '.join(names)})."


def evidence(table: Sequence[Level], looks: Samples | None, items: int) -> list[str]:
    """What a healthy model is healthy by, in two sentences."""
    ratio = math.exp(sum(math.log(v.error / v.linear) for v in table) / len(table))
    lines = [
        f"On {items} held-out items and {len(table)} noise levels the model errs {ratio:.2f} times as much as the best linear "
        "denoiser, which knows only mean and covariance of the data."
    ]
    if looks is not None and math.isfinite(looks.distance) and looks.gaussian > 2 * looks.floor:
        share = max(looks.distance, 0.0) / looks.gaussian
        lines += [
            f"Its samples are {share:.2g} times as far from the data as Gaussian draws with the same mean and covariance."
        ]
    return lines


def _fault(name: str, what: str, advice: str) -> list[Finding]:
    return [Finding(name, "fault", what, advice)]


def _note(name: str, what: str, advice: str) -> list[Finding]:
    return [Finding(name, "note", what, advice)]


def weights(bad: Sequence[str]) -> list[Finding]:
    """Names of weight tensors that hold NaN or infinity."""
    if not bad:
        return []
    what = f"{len(bad)} weight tensors hold NaN or infinity, the first is {bad[0]}"
    return _fault("weights", what, "Go back to the last good checkpoint, with a lower learning rate.")


def data(finite: bool) -> list[Finding]:
    """Whether all held-out items are numbers."""
    if finite:
        return []
    advice = "Clean the data; a model trained on them is not to be trusted."
    return _fault("data", "the held-out data hold NaN or infinity", advice)


def average(ratio: float, nats: float, lag: float, sure: float) -> list[Finding]:
    """An average that stands still, or is too slow, is much worse than the weights that it should follow (``average_lag``)."""
    if sure < SURE or (ratio < AVERAGE and (lag < LAG or nats < MATTERS)):
        return []
    what = f"the averaged weights err {ratio:.2f} times as much as the weights they should follow"
    what += f", and lack {min(lag, 1.0):.0%} of what those have learned" if lag >= LAG else ""
    advice = (
        "Check that the average is updated at every step, saved, and not too slow for the length of the run; until then use the "
        "plain weights (ema=False, --no-ema)."
    )
    return _fault("average", what, advice)


def coefficients(who: Identity | None) -> list[Finding]:
    """Maps around the network that are not those of the table; no training mends them."""
    if who is None or who.mismatch <= MISMATCH:
        return []
    what = f"the answer differs from c_skip x_t + c_out F by {who.mismatch:.0%}"
    return _fault("coefficients", what, "Compare c_skip and c_out with trilemma.denoise.targets.coefficients.")


def answers(table: Sequence[Level]) -> list[Finding]:
    """Whether all answers are numbers."""
    bad = [v.log_snr for v in table if not math.isfinite(v.error)]
    if not bad:
        return []
    what = f"the model answers NaN or infinity at {len(bad)} of {len(table)} noise levels, the first is log-SNR {bad[0]:.1f}"
    return _fault(
        "answers", what, "Look for a division by a sigma of 0, a logarithm or a root of 0, or half precision."
    )


def random(change: float) -> list[Finding]:
    """Two answers to one question, and the relative difference between them."""
    if not change > MISMATCH:
        return []
    what = f"asked twice for the same, it answers differently, by {change:.1%}"
    advice = "Dropout, or noise, is on outside of training: call eval(), and give F.dropout training=self.training."
    return _fault("random", what, advice)


def time(who: Identity | None, table: Sequence[Level]) -> list[Finding]:
    """A network that is not told the noise level, or is told it in units in which all levels look the same."""
    if who is None:
        return []
    if all(v.effect < DEAF for v in who.told):
        what = "the network answers the same whatever noise level it is told"
        return _fault("time", what, "Pass c_time into the network, and train again.")
    # a network that has hardly been trained hears as faintly; but it says next to nothing, (2) of `identity`, and nothing well
    faint = all(v.effect < FAINT and abs(v.slope) < SILENT for v in who.told)
    if not faint or who.score < WORSE or not any(v.excess < -SURE for v in table):
        return []
    what = f"whatever noise level it is told, the answer changes by {max(v.effect for v in who.told):.1%} at most"
    return _fault(
        "time", what, "Tell it the same number in training and in use, such as t in 0..1 or steps in 0..1000."
    )


def clock(who: Identity | None) -> list[Finding]:
    """A network that errs less when it is told other levels, each level another, (3) of ``identity``."""
    if who is None or who.retold < RETOLD or who.retold_sure < SURE:
        return []
    moved = [v for v in who.told if v.ratio > 1 and v.sure > 2]
    if len({v.best for v in moved}) < 3 or [v.best for v in moved] != sorted(v.best for v in moved):
        return []
    most = max(moved, key=lambda v: v.ratio)
    what = f"at log-SNR {most.log_snr:.1f} it errs {most.ratio:.2f} times less when told that it is {most.best:.1f}"
    what += f" ({len(moved)} of {len(who.told)} levels)"
    return _fault(
        "time", what, "Tell it the same number in training and in use, and use the process that it was trained with."
    )


def order(way: str, ratio: float, sure: float) -> list[Finding]:
    """Data that the model knows, but turned over: what is turned, and by how much it errs less on that."""
    if ratio < READING or sure < SURE:
        return []
    what = f"it errs {ratio:.2f} times less on the data with {way} turned over"
    advice = (
        "The data were read in another way in training: compare the order of channels and axes, and black and white."
    )
    return _fault("data", what, advice)


def moved(looks: Samples | None) -> bool:
    """Whether samples have another mean or scale than the data."""
    if looks is None or not math.isfinite(looks.scale) or looks.scale < 1e-3:
        return False
    return abs(looks.shift) >= SHIFT or abs(math.log(looks.scale)) >= SCALE


def units(looks: Samples, fits: float, before: float, who: Identity | None) -> list[Finding]:
    """A model that fits the data once they are moved to the samples: log error over the linear one there, and before."""
    if fits > UNITS_FIT or fits > before - UNITS_GAIN:
        return []
    if who is not None and who.kind == "sigma_data" and math.log(who.best) < fits:
        return []  # the coefficients explain it better: a wrong scale there shrinks the samples too
    what = f"samples are data moved by {looks.shift:.2f} standard deviations and scaled by {looks.scale:.2f}"
    advice = "The model was trained on data in other units: give it what training gave it, such as [-1, 1], not [0, 1]."
    return _fault("range", what, advice)


def reading(who: Identity | None) -> list[Finding]:
    """A network whose input or output means something else than it is taken for.

    One that puts out almost nothing is, read in some way, nearly the linear denoiser: only beyond that a reading tells.
    """
    if who is None or not who.kind or who.best > 1 or who.score < READING * who.best:
        return []
    what = f"the network predicts {who.name}: so read, its error is {who.best / who.score:.2g} of what it is"
    advice = {
        "time": "Tell it the same number in training and in use; Preconditioned tells it c_time = -log-SNR / 8.",
        "sign": "Look for a sign that was turned, in the target of the loss or where the output is used.",
        "coefficients": "Give the network c_in x_t, scaled once, as in training.",
    }.get(who.kind, f"Build the model with {who.name}.")
    return _fault(who.kind, what, advice)


def scale(sigma_data: float, coordinate: float, std: float) -> list[Finding]:
    """What the model was told of the data, which need not be how it was trained.

    The standard deviation of all values, as in EDM, and that of a coordinate about its own mean will both do.
    """
    if min(coordinate, std) / SIGMA_DATA < sigma_data < max(coordinate, std) * SIGMA_DATA:
        return []
    what = f"sigma_data is {sigma_data:.3g} and the data have a standard deviation of {std:.3g}"
    return _fault("sigma_data", what, f"Train with sigma_data={std:.2g}, or rescale the data.")


def labels(gain: float) -> list[Finding]:
    """The right label has to help: gain over the label of another item, in standard errors."""
    if gain > SURE:
        return []
    if gain < -SURE:
        what = f"the right label does harm: that of another item does better ({-gain:.1f} standard errors)"
        advice = (
            "The classes were numbered in another order in training: compare the names of the classes on both sides."
        )
    else:
        what = f"the right label helps no more than that of another item ({gain:.1f} standard errors)"
        advice = "Check that items and labels are shuffled together, that the network is given labels, and label_dropout < 1."
    return _fault("labels", what, advice)


def turned(table: Sequence[Level], who: Identity | None) -> list[Finding]:
    """A sign that no better reading shows: a network with factor -1, (2) of ``identity``, or a denoiser that is no network."""
    if who is None:
        away = sum(v.slope < 0 for v in table) > len(table) // 2
        what = "the answers point away from the clean data at most noise levels"
    else:
        mirrored = [v for v in who.told if abs(v.slope + 1) < MIRRORED and v.slope < -SURE * v.slope_error]
        away = len(mirrored) > len(who.told) // 2
        what = f"at {len(mirrored)} of {len(who.told)} noise levels the output is minus what it has learned"
    return _fault("sign", what, "Look for a sign that was turned in the target or in the score.") if away else []


def memory(ratios: Sequence[float]) -> list[Finding]:
    """A model that knows its data by heart errs less on them than on others: the ratios of levels where that is sure."""
    if len(ratios) < 2 or max(ratios) < MEMORY:
        return []
    what = f"the error on held-out data is up to {max(ratios):.2f} times that on training data"
    return _fault("overfitted", what, "Stop earlier, add data, dropout or flips, or take a smaller network.")


def learned(table: Sequence[Level], dim: int) -> float | None:
    """Nats, (7) of ``probe``, by which the model is ahead of the linear denoiser, over those by which averaging other items is.

    Only levels count at which averaging surely is ahead; nothing if there is too little to learn.
    """
    step = table[1].log_snr - table[0].log_snr
    told = [v for v in table if v.copying < v.linear and v.copying_excess < -SURE]
    own, copied = (
        dim / 2 * step * sum(math.exp(v.log_snr) * (v.linear - getattr(v, name)) for v in told)
        for name in ("error", "copying")
    )
    return own / copied if copied > MATTERS else None


def fit(table: Sequence[Level], looks: Samples | None, dim: int) -> list[Finding]:
    """A network that is no better than what needs no training, at an end of the noise levels or altogether."""
    worse = [i for i, v in enumerate(table) if v.error > WORSE * v.linear and v.excess > SURE]
    poor = looks is not None and looks.distance > max(POOR_GAUSSIAN * looks.gaussian, POOR_FLOOR * looks.floor)
    ends = worse and len(worse) < len(table) - 2 and (worse == list(range(len(worse))) or worse[-1] == len(table) - 1)
    if (
        ends
        and max(table[i].error / table[i].linear for i in worse) > STARVED
        and any(v.error < FED * v.linear for v in table)
    ):
        side = "noisiest" if worse[0] == 0 else "cleanest"
        ratio = max(table[i].error / table[i].linear for i in worse)
        what = f"at the {side} levels the error is {ratio:.2f} times that of a linear denoiser, elsewhere it is below"
        advice = "The loss or the law of times starves these levels: check the weighting (a factor alpha^2 or sigma^2) and times."
        return _fault("weighting", what, advice)
    share = learned(table, dim)
    behind = sum(math.exp(v.log_snr) * (v.error - v.linear) for v in table) > 0  # in nats, (7) of `probe`
    if not (behind and len(worse) > 2) and not poor and (share is None or share >= LEARNED):
        return []
    said = []
    if worse:
        said += [f"at {len(worse)} of {len(table)} noise levels the error is above that of a linear denoiser"]
    if share is not None and share < LEARNED:
        said += [f"it has learned {max(share, 0.0):.0%} of what averaging other items tells beyond mean and covariance"]
    if poor and looks is not None:
        than, yardstick = "Gaussian ones", looks.gaussian
        if yardstick < looks.floor:  # these cannot be told from data with so few items
            than, yardstick = "one half of the data from the other", looks.floor
        said += [f"samples are {looks.distance / yardstick:.2g} times as far from the data as {than}"]
    return _fault("half-trained", "; ".join(said), "Train longer, with a larger network or another learning rate.")


def young(table: Sequence[Level], dim: int) -> list[Finding]:
    """A network that is beyond mean and covariance, but not far."""
    share = learned(table, dim)
    if share is None or share >= YOUNG:
        return []
    what = f"it has learned {share:.0%} of what averaging other items tells beyond mean and covariance"
    return _note("young", what, "Fine details are missing: train longer, or with a larger network.")


def calibration(table: Sequence[Level]) -> list[Finding]:
    """Tweedie's second formula by level."""
    off = [
        v
        for v in table
        if not 0.7 < v.predicted / v.error < CALIBRATED and abs(v.predicted - v.error) > SURE * v.predicted_error
    ]
    if not off:
        return []
    worst = max(off, key=lambda v: abs(math.log(max(v.predicted, 1e-12) / v.error)))
    what = (
        f"its own derivative claims {worst.predicted / worst.error:.2f} of the error at log-SNR {worst.log_snr:.1f} "
        f"({len(off)} of {len(table)} levels are off by more than {CALIBRATED})"
    )
    return _note(
        "calibration",
        what,
        "Harmless for samples; variances of the posterior that come from the derivative are off by this factor.",
    )


def asymmetry(table: Sequence[Level]) -> list[Finding]:
    """A field that is no gradient."""
    share = max(v.asymmetry for v in table)
    if share <= CURL:
        return []
    what = f"up to {share:.0%} of the derivative is antisymmetric"
    return _note(
        "asymmetry",
        what,
        "Harmless for samples; the answers are no gradient of a density, so take likelihoods with care.",
    )


def samplers(looks: Samples | None) -> list[Finding]:
    """The flow and the reverse equation should draw one law."""
    if looks is None or looks.stochastic <= SAMPLERS * looks.floor:
        return []
    what = f"the flow and the reverse equation draw different laws (distance {looks.stochastic:.3f})"
    return _note("samplers", what, "Take the sampler whose samples you judged.")


def bound(gap: float, z: float) -> list[Finding]:
    """The bound has to lie below the density by the flow: nats above it, and the same in standard errors."""
    if z < SURE or gap < BOUND:
        return []
    what = f"the variational bound is {gap:.2f} nats above the density by the flow"
    advice = "The denoiser is not consistent between levels; publish the bound, not the flow."
    return _note("bound", what, advice)


def stiff() -> list[Finding]:
    """A flow that its solver gave up on."""
    return _note("bound", "the flow is too stiff for its likelihood", "Train the cleanest levels longer.")
