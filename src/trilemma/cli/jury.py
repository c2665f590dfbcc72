"""Judges the samples of every contender by one protocol, and keeps what was judged.

rows/NAME.json                     the figures of one row, with a key of all that they depend on
rows/NAME.npz                      its samples, uint8, and the index of the training image nearest to each of the first
rows/classifier-KEY.safetensors    the classifier that saw them, where it was trained here
"""

import hashlib
import math
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import DataSet, load
from ..evaluate import DEFAULT, METRICS, Reading, Stamp, measure
from ..evaluate.extractors import Subject, make_extractor, save_classifier, train_on
from ..evaluate.features import Extractor, to_bytes, to_units
from ..evaluate.reference import images_checksum, tensors_checksum
from ..evaluate.rows import nearest
from ..train.checkpoint import CorruptError, read_json, write_file
from .contenders import Contender
from .report import Report, machine
from .sample import pick_device
from .train import DataOptions, load_data

__all__ = ["SHOWN", "Jury", "Real", "kept_samples", "real_images", "slug"]

SHOWN = 100  # samples of each kind that are shown
_MOST = 2000  # samples of each, where nothing is said
_COPIES = 512  # samples whose nearest training images are looked for


def slug(name: str) -> str:
    """A name as a file's name.

    >>> slug("digits: DPM-Solver++(2M) 10")
    'digits-dpm-solver-2m-10'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


@dataclass(frozen=True, eq=False)
class Real:
    """Real images.

    Args:
        train: what samples are measured against.
        unseen: those that stand for perfect samples.
        origin: where ``unseen`` come from, for people.
        fresh: whether no run was trained on ``unseen``, as far as is known.
    """

    train: DataSet
    unseen: DataSet
    origin: str
    fresh: bool


def real_images(settings: Report) -> Real:
    """The real images of a report.

    Raises:
        ValueError: the runs do not say what they were trained on, or were trained on different data; more samples are asked for
            than there are unseen images; or these are the training images.
    """
    options = DataOptions(data=settings.data) if settings.data else _trained_on(settings.runs)
    train, fresh = load_data(options), True
    if settings.held_out:
        unseen, origin = load_data(replace(options, data=settings.held_out)), settings.held_out
    else:
        try:
            given = {name: value for name, value in asdict(options).items() if name not in ("data", "on_error")}
            unseen, origin = load(options.data, split="test", on_error=options.on_error, **given), "test split"
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
    return Real(train, unseen.subset(slice(0, n)), f"{origin}, {n} images", fresh)


def _trained_on(runs: Sequence[str]) -> DataOptions:
    """What all runs were trained on."""
    from .config import from_flat, read_yaml

    found: dict[str, DataOptions] = {}
    for run in runs:
        written = Path(run) / "config.json"
        values = read_yaml(str(written)) if written.exists() else {}
        if "data" in values:
            known = {field: value for field, value in values.items() if field in asdict(DataOptions())}
            found[run] = from_flat(DataOptions, known, source=str(written))
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


class Jury:
    """Measures everything with the same eyes, against the same images.

    Args:
        settings: of the report.
        real: the real images.

    Attributes:
        stamp: the protocol.
        floor: the figures of the unseen images.
        copies: median distance by pixel of an unseen image to the nearest training image.
    """

    def __init__(self, settings: Report, real: Real) -> None:
        self.settings, self.train, self.unseen, self.fresh = settings, real.train, real.unseen, real.fresh
        self.rows = Path(settings.out) / "rows"
        self.rows.mkdir(parents=True, exist_ok=True)
        checksum = images_checksum([to_bytes(self.train.images)])
        self.extractor = self._eyes(checksum)
        self.stamp = Stamp(
            extractor=self.extractor.name,
            extractor_checksum=self.extractor.checksum,
            reference=self.train.source,
            reference_checksum=checksum,
            resize=self.extractor.resize,
            n=len(self.unseen),
            seed=settings.seed,
        )
        labels = {} if self.unseen.labels is None else {"labels": self.unseen.labels}
        self._beside = tensors_checksum({"images": to_bytes(self.unseen.images)} | labels)
        self._known: dict[str, dict[str, Any] | None] = {}
        self._reference = self.extractor.read(self.train.images)
        self._seen = self.extractor.read(self.unseen.images)
        self.floor = self._figures(self._seen, self.unseen.labels, None)
        self.copies = float(self._nearest(to_bytes(self.unseen.images))[0].median())

    def _eyes(self, checksum: str) -> Extractor:
        """What sees the images; a classifier is trained once and kept, so that a report that was stopped goes on with it."""
        settings, train = self.settings, self.train
        name, weights = settings.extractor, settings.weights
        if name == "auto":
            name = "random" if train.labels is None and weights is None else "classifier"
        subject = Subject(
            train.shape,
            train.images,
            train.labels,
            weights=weights,
            seed=settings.seed,
            device=pick_device(settings.device),
        )
        if name == "classifier" and weights is None and train.labels is not None:
            key = _key(checksum, tensors_checksum({"labels": train.labels}), settings.seed)
            path = self.rows / f"classifier-{key}.safetensors"
            if not path.exists():
                save_classifier(train_on(subject), path)
            subject = replace(subject, weights=path)
        return make_extractor(name, subject)

    def judge(self, entrant: Contender) -> tuple[dict[str, Any], Tensor, Tensor]:
        """The row of a contender, its first samples, and the training images nearest to them.

        What was kept of a row is taken if all that it depends on is the same.
        """
        settings, n = self.settings, len(self.unseen)
        figures, samples = (self.rows / f"{slug(entrant.name)}{ending}" for ending in (".json", ".npz"))
        key = _key(
            entrant.run,
            entrant.weights,
            machine(str(entrant.device)),
            self.stamp,
            self._beside,
            self.fresh,
            settings.bits,
            settings.batch,
            settings.watts,
            settings.metrics,
        )
        row = _kept(figures, samples, key)
        if row is None:
            labels = None if self.unseen.labels is None or not entrant.classes else self.unseen.labels
            drawn = entrant.draw(n, labels, seed=settings.seed, batch=settings.batch, watts=settings.watts)
            if not bool(drawn.images.isfinite().all()):
                raise ValueError(f"{entrant.name} makes samples with a NaN or infinity; leave it out")
            images = to_bytes(drawn.images)
            found = self._figures(self.extractor.read(images), labels, self._seen if self.fresh else None)
            distance, nearby = self._nearest(images)
            row = {
                "key": key,
                "name": entrant.name,
                "run": entrant.run,
                "family": entrant.family,
                "n": n,
                "calls": drawn.calls,
                **asdict(drawn.cost),
                "metrics": found,
                "copies": float(distance.median()),
                "bits_per_dim": self._bits(entrant),
            }
            part = samples.with_name(f".{samples.stem}.part.npz")
            np.savez_compressed(part, images=images.numpy(), nearest=nearby.numpy())
            part.replace(samples)
            write_file(figures, row)
        with np.load(samples) as arrays:
            images, nearby = (torch.from_numpy(arrays[name][:SHOWN]) for name in ("images", "nearest"))
        return row, to_units(images), self.train.model_units(nearby)

    def _figures(self, seen: Reading, asked: Tensor | None, held_out: Reading | None) -> dict[str, Any]:
        """The figures of some images that can be had, as JSON data, each with its interval in words."""
        given = {"logits": seen.logits, "held_out": held_out, "asked": asked}
        wanted = dict.fromkeys(("fid", "coverage", *self.settings.metrics)) if self.settings.metrics else DEFAULT
        found = measure(
            seen,
            self._reference,
            held_out=held_out,
            metrics=[name for name in wanted if all(given[need] is not None for need in METRICS[name].needs)],
            stamp=self.stamp,
            seed=self.settings.seed,
            asked=asked,
        )
        return {
            name: {
                **{end: _finite(getattr(e, end)) for end in ("value", "low", "high")},
                "text": str(e),
                "note": e.note,
                "method": e.method,
            }
            for name, e in found.items()
        }

    def _bits(self, entrant: Contender) -> dict[str, Any] | None:
        """Bits per dimension of unseen images, once for all rules of a run."""
        count, labels = self.settings.bits, self.unseen.labels
        if count == 0 or not self.fresh:
            return None
        if entrant.run not in self._known:
            x = self.unseen.model_units(slice(0, count))
            mine = labels[:count] if labels is not None and entrant.classes else None
            try:
                self._known[entrant.run] = entrant.bits(x, mine, self.settings.seed)
            except ValueError as error:
                print(f"no likelihood of {entrant.run}: {error}", file=sys.stderr)
                self._known[entrant.run] = None
        return self._known[entrant.run]

    def _nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Distance by pixel of the first images to the nearest training image, and which one that is."""
        x, y = (to_units(to_bytes(part)).flatten(1) for part in (images[:_COPIES], self.train.images))
        distance, index = nearest(x, y)
        return distance[:, 0] / x.shape[1] ** 0.5, index[:, 0]


def kept_samples(out: str, name: str) -> tuple[Tensor, dict[str, Any]]:
    """All samples of a row in model units, and the row.

    Args:
        out: folder of the report.
        name: of the row.
    """
    rows = Path(out) / "rows"
    with np.load(rows / f"{slug(name)}.npz") as arrays:
        return to_units(torch.from_numpy(arrays["images"])), read_json(rows / f"{slug(name)}.json")


def _key(*parts: object) -> str:
    """A checksum of all that something depends on."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def _kept(figures: Path, samples: Path, key: str) -> dict[str, Any] | None:
    """A row of an earlier report, if it is whole and of the same key."""
    if not (figures.exists() and samples.exists()):
        return None
    try:
        row: dict[str, Any] = read_json(figures)
        with np.load(samples) as arrays:
            whole = len(arrays["images"]) == row["n"] and "nearest" in arrays
    except (CorruptError, ValueError, KeyError, OSError, zipfile.BadZipFile):
        return None
    return row if whole and row.get("key") == key else None
