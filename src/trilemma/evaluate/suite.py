"""Every metric by name, and all of them for one set of samples.

A metric is a family function of a `Case`, which computes one or several figures at once; families are computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

from .agreement import class_agreement
from .estimate import Estimate, of_proportion
from .features import Reading
from .frechet import frechet_estimates
from .inception_score import inception_score
from .rows import checked
from .stamp import Stamp

__all__ = ["DEFAULT", "METRICS", "Case", "Metric", "measure"]


@dataclass(frozen=True, eq=False)
class Case:
    """What there is to measure with.

    Args:
        samples: what an extractor sees in the samples.
        reference: what it sees in real images, those of training.
        held_out: what it sees in real images that were not trained on.
        asked: ``(N,)`` int64, the class each sample was made for.
        seed: of what metrics draw: halvings, projections.
    """

    samples: Reading
    reference: Reading
    held_out: Reading | None = None
    asked: Tensor | None = None
    seed: int = 0

    def has(self, need: str) -> bool:
        """Whether a metric's need is met: ``"logits"``, ``"held_out"`` or ``"asked"``."""
        if need == "logits":
            return self.samples.logits is not None
        return getattr(self, need) is not None


Family = Callable[[Case], Mapping[str, Estimate]]


@dataclass(frozen=True)
class Metric:
    """An entry of `METRICS`.

    Args:
        family: computes it, and perhaps others, from a `Case`.
        better: ``"higher"`` or ``"lower"``, or a value that it should be near.
        says: one plain sentence for a reader who does not know it.
        needs: of ``"logits"``, ``"held_out"``, ``"asked"``.
        side: the corner of the trilemma that it speaks of: ``"quality"``, ``"coverage"``, ``"both"`` or ``"memory"``.
    """

    family: Family
    better: str
    says: str
    needs: tuple[str, ...] = ()
    side: str = "both"


def measure(
    samples: Reading,
    reference: Reading,
    *,
    held_out: Reading | None = None,
    metrics: Sequence[str] | None = None,
    stamp: Stamp | None = None,
    seed: int = 0,
    asked: Tensor | None = None,
) -> dict[str, Estimate]:
    """Figures of samples against real images, each with its interval.

    Args:
        samples: what an extractor sees in the samples.
        reference: what the same extractor sees in real images.
        held_out: what it sees in real images that no model was trained on; some metrics need them.
        metrics: names in `METRICS`; ``None`` for those of `DEFAULT` whose needs are met.
        stamp: the protocol; its ``n`` and ``seed`` are filled in here.
        seed: of what metrics draw, the same for figures that will be compared.
        asked: ``(N,)`` int64, the class each sample was made for.

    Returns:
        An `Estimate` for each name, in the order asked for.

    Raises:
        ValueError: an unknown name, a need that is not met, or features that cannot be measured.

    >>> import torch
    >>> draw = torch.Generator().manual_seed(0)
    >>> real, made = (Reading(torch.randn(200, 4, generator=draw), None) for _ in range(2))
    >>> measure(made, real, metrics=["fid"])["fid"].low
    0.0
    """
    case = Case(samples, reference, held_out, asked, seed)
    if metrics is None:
        metrics = [name for name in DEFAULT if all(case.has(need) for need in METRICS[name].needs)]
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"no metric is called {name!r}; there are {', '.join(METRICS)}")
        for need in METRICS[name].needs:
            if not case.has(need):
                raise ValueError(f"{name} needs {need}, which are not given")
    sets = {"samples": samples, "references": reference} | ({} if held_out is None else {"held-out images": held_out})
    for name, reading in sets.items():
        checked(reading.features, name=name)
        if reading.features.shape[1] != samples.features.shape[1]:
            lengths = f"{samples.features.shape[1]} and {reading.features.shape[1]}"
            raise ValueError(f"features of samples and {name} have lengths {lengths}; both need the same extractor")
    if stamp is not None:
        stamp = replace(stamp, n=len(samples.features), seed=seed)
    found: dict[str, Estimate] = {}
    for name in metrics:
        if name not in found:
            found |= METRICS[name].family(case)
    return {name: replace(found[name], metric=name, stamp=stamp) for name in metrics}


def _frechet(case: Case) -> Mapping[str, Estimate]:
    fid, infinity = frechet_estimates(case.samples.features, case.reference.features, seed=case.seed)
    return {"fid": fid, "fid_infinity": infinity}


def _inception(case: Case) -> Mapping[str, Estimate]:
    assert case.samples.logits is not None
    return {"inception_score": inception_score(case.samples.logits)}


def _agreement(case: Case) -> Mapping[str, Estimate]:
    assert case.asked is not None
    return {"class_agreement": of_proportion(class_agreement(case.samples.predictions, case.asked))}


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "fid": Metric(
            _frechet,
            "lower",
            "Distance between the mean and spread of the features of samples and of real images; 0 for equal ones.",
        ),
        "fid_infinity": Metric(
            _frechet, "lower", "The same distance as it would be for infinitely many images, without the bias of few."
        ),
        "inception_score": Metric(
            _inception,
            "higher",
            "How sure a classifier is of each sample, and how many classes appear alike often: from 1 to their number.",
            ("logits",),
            "quality",
        ),
        "class_agreement": Metric(
            _agreement,
            "higher",
            "Share of samples that a classifier takes for the class they were asked to be.",
            ("logits", "asked"),
            "quality",
        ),
    }
)
DEFAULT: tuple[str, ...] = tuple(METRICS)
