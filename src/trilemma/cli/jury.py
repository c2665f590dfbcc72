"""Judges the samples of every contender by one protocol, and keeps what was judged.

rows/NAME.json     the figures of one row, with a key of all that they depend on
rows/NAME.npz      its samples, uint8
"""

import math
import re
import sys
import zipfile
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import DataSet, load
from ..evaluate import Reading, Stamp, measure
from ..evaluate.extractors import Subject, make_extractor
from ..evaluate.features import to_bytes
from ..evaluate.reference import images_checksum
from ..evaluate.rows import nearest
from ..train.checkpoint import CorruptError, read_json, write_file
from .contenders import Contender
from .report import Report

__all__ = ["SHOWN", "Jury", "kept_samples", "real_images", "slug"]

SHOWN = 100  # samples of each kind that are shown
_COPIES = 512  # samples whose nearest training images are looked for


def slug(name: str) -> str:
    """A name as a file's name.

    >>> slug("digits: DPM-Solver++(2M) 10")
    'digits-dpm-solver-2m-10'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def real_images(settings: Report) -> tuple[DataSet, DataSet, str]:
    """The images that samples are measured against, those that stand for perfect samples, and where the latter come from.

    Raises:
        ValueError: the first run does not say what it was trained on, or more samples are asked for than there are unseen images.
    """
    from .config import from_flat, read_yaml
    from .train import DataOptions, load_data

    options = DataOptions(data=settings.data) if settings.data else None
    if options is None:
        written = Path(settings.runs[0]) / "config.json"
        if not written.exists():
            raise ValueError(f"{settings.runs[0]} does not say what it was trained on; name the images by --data")
        known = {field: value for field, value in read_yaml(str(written)).items() if field in asdict(DataOptions())}
        options = from_flat(DataOptions, known, source=str(written))
    train = load_data(options)
    if settings.held_out:
        unseen, origin = load_data(replace(options, data=settings.held_out)), settings.held_out
    else:
        try:
            given = {name: value for name, value in asdict(options).items() if name not in ("data", "on_error")}
            unseen, origin = load(options.data, split="test", on_error=options.on_error, **given), "test split"
        except ValueError:
            train, unseen = train.split(0.5, seed=settings.seed)
            origin = "half of the training images, since there are no unseen ones; name some by --held-out"
            print(f"{options.data} has no test split: {origin}", file=sys.stderr)
    if unseen.shape != train.shape:
        raise ValueError(f"held-out images are {unseen.shape}, the others {train.shape}; give images of one size")
    n = len(unseen) if settings.n is None else settings.n
    if n > len(unseen):
        raise ValueError(
            f"n={n} samples cannot be held against {len(unseen)} unseen images, since distances depend on the number; "
            f"take --n {len(unseen)} at most, or name more images by --held-out"
        )
    return train, unseen.subset(slice(0, n)), f"{origin}, {n} images"


class Jury:
    """Measures everything with the same eyes, against the same images.

    Args:
        settings: of the report.
        train: what samples are measured against.
        unseen: real images that stand for perfect samples.

    Attributes:
        stamp: the protocol.
        floor: the figures of ``unseen``.
        metrics: names of the figures.
        copies: median distance by pixel of an unseen image to the nearest training image.
    """

    def __init__(self, settings: Report, train: DataSet, unseen: DataSet) -> None:
        name = settings.extractor
        if name == "classifier" and train.labels is None:
            name = "random"
            print(
                "there are no labels to train a classifier on: features of a random network are used", file=sys.stderr
            )
        subject = Subject(train.shape, train.images, train.labels, weights=settings.weights, seed=settings.seed)
        extractor = make_extractor(name, subject)
        self.settings, self.train, self.unseen, self.extractor = settings, train, unseen, extractor
        self.stamp = Stamp(
            extractor=extractor.name,
            extractor_checksum=extractor.checksum,
            reference=train.source,
            reference_checksum=images_checksum([to_bytes(train.images)]),
            resize=extractor.resize,
            n=len(unseen),
            seed=settings.seed,
        )
        self._known: dict[str, dict[str, Any] | None] = {}
        self._reference = extractor.read(train.images)
        self._seen = extractor.read(unseen.images)
        self.floor = self._figures(self._seen, unseen.labels, None)
        self.metrics = list(self.floor)
        self.copies = float(self._nearest(to_bytes(unseen.images))[0].median())

    def judge(self, entrant: Contender) -> tuple[dict[str, Any], Tensor, Tensor]:
        """The row of a contender, its first samples, and the training images nearest to them.

        What was kept of a row is taken if all that it depends on is the same.
        """
        settings, n = self.settings, len(self.unseen)
        rows = Path(settings.out) / "rows"
        figures, samples = (rows / f"{slug(entrant.name)}{ending}" for ending in (".json", ".npz"))
        parts = (
            entrant.weights,
            entrant.device,
            self.stamp,
            n,
            settings.bits,
            settings.batch,
            settings.watts,
            settings.metrics,
        )
        key = f"{zlib.crc32(repr(parts).encode()):08x}"
        row = _kept(figures, samples, key)
        if row is None:
            labels = None if self.unseen.labels is None or not entrant.classes else self.unseen.labels
            drawn = entrant.draw(n, labels, seed=settings.seed, batch=settings.batch, watts=settings.watts)
            images = to_bytes(drawn.images)
            found = self._figures(self.extractor.read(images), labels, self._seen)
            row = {
                "key": key,
                "name": entrant.name,
                "run": entrant.run,
                "family": entrant.family,
                "n": n,
                "calls": drawn.calls,
                **asdict(drawn.cost),
                "metrics": found,
                "copies": float(self._nearest(images)[0].median()),
                "bits_per_dim": self._bits(entrant),
            }
            rows.mkdir(parents=True, exist_ok=True)
            part = samples.with_name(f".{samples.stem}.part.npz")
            np.savez_compressed(part, images=images.numpy())
            part.replace(samples)
            write_file(figures, row)
        with np.load(samples) as arrays:
            images = torch.from_numpy(arrays["images"][:SHOWN])
        return row, _units(images), self.train.model_units(self._nearest(images)[1])

    def _figures(self, seen: Reading, asked: Tensor | None, held_out: Reading | None) -> dict[str, Any]:
        """The figures of some images as JSON data, each with its interval in words."""
        asked = asked if seen.logits is not None else None
        found = measure(
            seen,
            self._reference,
            held_out=held_out,
            metrics=self.settings.metrics or None,
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
        if count == 0:
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
        x, y = (_units(to_bytes(part)).flatten(1) for part in (images[:_COPIES], self.train.images))
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
        return _units(torch.from_numpy(arrays["images"])), read_json(rows / f"{slug(name)}.json")


def _units(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


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
            whole = len(arrays["images"]) == row["n"]
    except (CorruptError, ValueError, KeyError, OSError, zipfile.BadZipFile):
        return None
    return row if whole and row.get("key") == key else None
