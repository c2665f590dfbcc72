"""The health of a trained denoiser: what is wrong with it, how sure that is, and what to do.

The numbers come from ``probe`` (identities that every exact denoiser obeys), ``identity`` (what the network predicts),
``samples`` (its draws beside data) and ``compare`` (two errors side by side); ``rules`` says what they mean. Causes are looked
for before their consequences: once something structural is found, poor fit and poor samples are no findings of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser, Preconditioned
from ..numerics.noise import Noise
from ..sampling.start import check as fit
from . import rules
from .compare import average_lag, bound_gap, label_gain, memory_ratios, turned_over, unit_ratios, unrest
from .identity import Identity, identify
from .probe import Level, Reference, levels_of, probe
from .rules import Finding
from .samples import Samples, draw_samples

__all__ = ["Health", "check"]

FEW = 256  # items for what is seen item by item, or is no more than a note


@dataclass(frozen=True)
class Health:
    """What :func:`check` found.

    Args:
        findings: causes first.
        levels: the numbers by noise level, noise first.
        samples: samples beside data; nothing if none could be drawn.
        identity: what the network predicts; nothing if the denoiser is no network.
        items: held-out items that were used.
    """

    findings: tuple[Finding, ...]
    levels: tuple[Level, ...] = ()
    samples: Samples | None = None
    identity: Identity | None = None
    items: int = 0

    @property
    def healthy(self) -> bool:
        """Whether there is no fault; notes do not count."""
        return not any(finding.severity == "fault" for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([rules.verdict(self.findings), *self._evidence(), *self._findings(), *self._table()])

    def _evidence(self) -> list[str]:
        return rules.evidence(self.levels, self.samples, self.items) if self.levels else []

    def _findings(self) -> list[str]:
        return [f"\n{f.severity}: {f.name}\n    seen: {f.what}\n    do:   {f.advice}" for f in self.findings]

    def _table(self) -> list[str]:
        if not self.levels:
            return []
        rows = ["\nlog-SNR    error   linear  copying  x-slope  claimed/error  asymmetry"]
        rows += [
            f"{v.log_snr:7.2f} {v.error:8.4f} {v.linear:8.4f} {v.copying:8.4f} {v.slope:8.3f} {v.predicted / v.error:14.2f} "
            f"{v.asymmetry:10.3f}"
            for v in self.levels
        ]
        return [*rows, rules.LEGEND]


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
        For items and samples by default some 45,000 evaluations of the network and 4,600 vector-Jacobian products; 9,000 more
        for each of ``raw`` and ``train``, and with labels.

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
    bad = [name for name, value in model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if found := rules.weights(bad) or rules.data(bool(torch.isfinite(data).all())):
        return Health(tuple(found))
    x = data[:items]
    own = {key: value[:items] for key, value in (cond or {}).items()}
    device, own = fit(model, x.shape, x, own)
    x, noise, dim = x.to(device), Noise(seeds, len(x)), x[0].numel()
    rest = [part for part in (data[items:], train) if part is not None and len(part)]  # yardsticks know other items
    reference = Reference(torch.cat(rest)[:4096].to(device) if sum(map(len, rest)) >= 64 else x)
    levels = levels_of(model, reference.var)
    few, their = x[:FEW], {key: value[:FEW] for key, value in own.items()}
    who = None
    if isinstance(model, Preconditioned):
        who = identify(model, few, levels[1:-1], their, noise[:FEW].at(0), reference)
    table = tuple(probe(model, x, reference, levels, own, noise.at(1), few=FEW, batch=batch))
    looks = draw_samples(model, x, own, reference, draws, seeds) if draws else None

    def average() -> list[Finding]:
        return [] if raw is None else rules.average(*average_lag(model, raw, x, table, own, noise.at(2), batch))

    def units() -> list[Finding]:
        if looks is None or not rules.moved(looks):
            return []
        return rules.units(looks, *unit_ratios(model, x, table, looks, own, noise.at(5), batch), who)

    def scale() -> list[Finding]:
        if not isinstance(model, Preconditioned):
            return []
        return rules.scale(model.sigma_data, reference.var**0.5, float(x.double().std()))

    def labels() -> list[Finding]:
        label = own.get("label")
        if label is None or "label" not in model.cond_keys or len(label.unique()) < 2:
            return []
        return rules.labels(label_gain(model, x, levels, own, noise.at(3), batch))

    def order() -> list[Finding]:
        return rules.order(*turned_over(model, few, table, their, noise[:FEW].at(6), batch))

    def memory() -> list[Finding]:
        if train is None or model.cond_keys:
            return []
        return rules.memory(memory_ratios(model, x, train, levels, batch, rules.SURE))

    def bound() -> list[Finding]:
        if dim > 8:  # dear in many dimensions
            return []
        try:
            return rules.bound(*bound_gap(model, x, own, seeds))
        except ArithmeticError:
            return rules.stiff()

    found = (  # causes before consequences: what comes first explains what would come after
        rules.answers(table)
        or rules.random(unrest(model, few, levels[len(levels) // 2], their, noise[:FEW].at(7)))
        or average()
        or rules.coefficients(who)
        or rules.time(who, table)
        or units()
        or rules.reading(who)
        or scale()
        or labels()
        or rules.turned(table, who)
        or order()
        or rules.clock(who)
        or memory()
        or rules.fit(table, looks, dim)
        or [
            *rules.young(table, dim),
            *rules.calibration(table),
            *rules.asymmetry(table),
            *rules.samplers(looks),
            *bound(),
        ]
    )
    return Health(tuple(found), table, looks, who, len(x))
