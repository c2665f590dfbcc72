"""Every metric by name, and all of them for one set of samples.

A metric is a family function of a `Case`, which computes one or several figures at once; families are computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

from .agreement import class_agreement
from .estimate import Estimate, of_proportion
from .feature_likelihood import feature_likelihood_divergence
from .features import Reading
from .frechet import frechet_estimates
from .inception_score import inception_score
from .kernel import clip_distance, energy, gaussian, kernel_distance, median_bandwidth
from .manifold import density_coverage, precision_recall
from .memorisation import authenticity, nearer_than_held_out, share_copied
from .rows import checked
from .sliced import sliced_wasserstein
from .stamp import Stamp
from .vendi import vendi_score

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
        better: ``"higher"``, ``"lower"`` or ``"near"`` some value, as in ``"near 0.5"``.
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


def _kernel(case: Case) -> Mapping[str, Estimate]:
    return {"kid": kernel_distance(case.samples.features, case.reference.features, seed=case.seed)}


def _clip(case: Case) -> Mapping[str, Estimate]:
    return {"cmmd": clip_distance(case.samples.features, case.reference.features, seed=case.seed)}


def _median(case: Case) -> Mapping[str, Estimate]:
    kernel = gaussian(median_bandwidth(case.reference.features))
    return {"mmd": kernel_distance(case.samples.features, case.reference.features, kernel, seed=case.seed)}


def _energy(case: Case) -> Mapping[str, Estimate]:
    return {"energy": kernel_distance(case.samples.features, case.reference.features, energy, seed=case.seed)}


def _sliced(case: Case) -> Mapping[str, Estimate]:
    found = sliced_wasserstein(case.samples.features, case.reference.features, seed=case.seed)
    return {"sliced_wasserstein": found}


def _precision(case: Case) -> Mapping[str, Estimate]:
    found = precision_recall(case.samples.features, case.reference.features, seed=case.seed)
    return dict(zip(("precision", "recall"), found))


def _density(case: Case) -> Mapping[str, Estimate]:
    found = density_coverage(case.samples.features, case.reference.features, seed=case.seed)
    return dict(zip(("density", "coverage"), found))


def _vendi(case: Case) -> Mapping[str, Estimate]:
    return {"vendi": vendi_score(case.samples.features, seed=case.seed)}


def _authentic(case: Case) -> Mapping[str, Estimate]:
    return {"authenticity": authenticity(case.samples.features, case.reference.features)}


def _copies(case: Case) -> Mapping[str, Estimate]:
    return {"copied": share_copied(case.samples.features, case.reference.features)}


def _nearer(case: Case) -> Mapping[str, Estimate]:
    assert case.held_out is not None
    sets = (case.samples.features, case.reference.features, case.held_out.features)
    return {"nearer_than_held_out": nearer_than_held_out(*sets)}


def _likelihood(case: Case) -> Mapping[str, Estimate]:
    assert case.held_out is not None
    sets = (case.samples.features, case.reference.features, case.held_out.features)
    return {"fld": feature_likelihood_divergence(*sets, seed=case.seed)}


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
        "kid": Metric(
            _kernel,
            "lower",
            "Distance of all moments of the features up to the third; near 0, also below, for equal ones.",
        ),
        "precision": Metric(
            _precision, "higher", "Share of samples that lie where real images are: are they realistic?", (), "quality"
        ),
        "recall": Metric(
            _precision,
            "higher",
            "Share of real images that lie where samples are: is all there is made?",
            (),
            "coverage",
        ),
        "density": Metric(
            _density,
            "higher",
            "How deep samples lie among real images; about 1 for equal ones, more where samples crowd.",
            (),
            "quality",
        ),
        "coverage": Metric(
            _density,
            "higher",
            "Share of real images with a sample among their five nearest; about 0.97 for equal ones.",
            (),
            "coverage",
        ),
        "vendi": Metric(
            _vendi,
            "higher",
            "How many different samples there are, in effect; compare it with that of real images.",
            (),
            "coverage",
        ),
        "sliced_wasserstein": Metric(
            _sliced,
            "lower",
            "How far features have to be moved, squared, seen from random directions; 0 for equal ones.",
        ),
        "energy": Metric(
            _energy,
            "lower",
            "How much farther samples are from real images than each from their own; 0 for equal ones.",
        ),
        "mmd": Metric(
            _median,
            "lower",
            "Distance seen through a Gaussian window of the real images' median distance; 0 for equal ones.",
        ),
        "cmmd": Metric(
            _clip, "lower", "Distance seen through a wide Gaussian window, meant for CLIP features; 0 for equal ones."
        ),
        "authenticity": Metric(
            _authentic,
            "near 0.5",
            "Share of samples that are no nearer to a training image than other training images are; near 0 for copies.",
            (),
            "memory",
        ),
        "copied": Metric(
            _copies,
            "lower",
            "Share of samples three times nearer to one training image than to any other.",
            (),
            "memory",
        ),
        "nearer_than_held_out": Metric(
            _nearer,
            "near 0.5",
            "How often a sample is nearer to the training set than a new real image is; 0.5 without copying, 1 for copies.",
            ("held_out",),
            "memory",
        ),
        "fld": Metric(
            _likelihood,
            "lower",
            "How badly samples explain new real images; 0 as well as training images do, above 100 for bad ones or copies.",
            ("held_out",),
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
DEFAULT: tuple[str, ...] = tuple(name for name in METRICS if name not in ("cmmd", "energy", "mmd"))
