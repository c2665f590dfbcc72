"""The real images of a report: those that its runs were trained on, and those that none of them has seen."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..data import DataSet, load
from ..evaluate.features import to_bytes
from ..evaluate.reference import images_checksum
from .config import from_flat, read_yaml
from .report import Report
from .train import DataOptions, load_data

__all__ = ["Real", "read_split", "real_images", "trained_on"]

_MOST = 2000  # samples of each, where nothing is said


@dataclass(frozen=True, eq=False)
class Real:
    """Real images.

    Args:
        train: what models are trained on, and where copies are looked for.
        reference: those of them that samples are measured against.
        unseen: those that stand for perfect samples.
        origin: where ``unseen`` come from, for people.
        fresh: whether no run was trained on ``unseen``, as far as is known.
    """

    train: DataSet
    reference: DataSet
    unseen: DataSet
    origin: str
    fresh: bool


def real_images(settings: Report) -> Real:
    """The real images of a report.

    Raises:
        ValueError: the runs do not say what they were trained on, or were trained on different data; more samples are asked for
            than there are unseen images; or these are the training images.
    """
    options = DataOptions(data=settings.data) if settings.data else _of_all(settings.runs)
    train, fresh = load_data(options), True
    if settings.held_out:
        unseen, origin = load_data(replace(options, data=settings.held_out)), settings.held_out
    else:
        try:
            unseen, origin = read_split(options, "test"), "test split"
        except ValueError as error:
            if "split" not in str(error):
                raise
            train, unseen = train.split(0.5, seed=settings.seed)
            origin, fresh = "a half of the training images, which the runs have seen; name others by --held-out", False
            print(f"{options.data} has no test split, so real images are compared with {origin}", file=sys.stderr)
    if unseen.shape != train.shape:
        raise ValueError(f"held-out images are {unseen.shape}, the others {train.shape}; give images of one size")
    n = min(len(unseen), _MOST) if settings.n is None else settings.n
    if n > len(unseen):
        raise ValueError(
            f"n={n} samples cannot be held against {len(unseen)} unseen images, since distances depend on the number; "
            f"take --n {len(unseen)} at most, or name more images by --held-out"
        )
    if images_checksum([to_bytes(unseen.images)]) == images_checksum([to_bytes(train.images)]):
        raise ValueError(f"{origin} and the training images are the same images; name others by --held-out")
    few = 0 < settings.reference < len(train)
    reference = train.split(settings.reference, seed=settings.seed)[1] if few else train
    return Real(train, reference, unseen.subset(slice(0, n)), f"{origin}, {n} images", fresh)


def trained_on(run: Path | str) -> DataOptions | None:
    """What a run was trained on, as its settings say; ``None`` where there are none."""
    written = Path(run) / "config.json"
    values = read_yaml(str(written)) if written.exists() else {}
    if "data" not in values:
        return None
    known = {field.name: values[field.name] for field in fields(DataOptions) if field.name in values}
    return from_flat(DataOptions, known, source=str(written))


def read_split(options: DataOptions, split: str) -> DataSet:
    """One split of the data.

    Raises:
        ValueError: the data cannot be used, or have no such split.
    """
    given = asdict(options)
    return load(given.pop("data"), split=split, **given)


def _of_all(runs: Sequence[str]) -> DataOptions:
    """What all runs were trained on, as far as they say."""
    found = {run: options for run in runs if (options := trained_on(run)) is not None}
    if not found:
        raise ValueError(f"{runs[0]} does not say what it was trained on; name the images by --data")
    first = next(iter(found))
    for run, options in found.items():
        if options != found[first]:
            raise ValueError(
                f"{first} was trained on {found[first].data} and {run} on {options.data}, or on other settings of it; "
                "name the images to compare them on by --data"
            )
    return found[first]
