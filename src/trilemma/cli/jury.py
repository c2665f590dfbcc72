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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluate import DEFAULT, METRICS, Reading, Stamp, measure
from ..evaluate.estimate import of_mean
from ..evaluate.extractors import Subject, make_extractor, save_classifier, train_on
from ..evaluate.features import Extractor, to_bytes, to_units
from ..evaluate.reference import images_checksum, tensors_checksum
from ..evaluate.rows import nearest
from ..train.checkpoint import CorruptError, read_json, write_file
from .bits import bits_per_dim
from .contenders import Contender, Run
from .real import Real
from .report import Report, machine
from .sample import pick_device

__all__ = ["SHOWN", "Jury", "kept_samples", "slug"]

SHOWN = 100  # samples of each kind that are shown
_COPIES = 512  # samples whose nearest training images are looked for


def slug(name: str) -> str:
    """A name as a file's name.

    >>> slug("digits: DPM-Solver++(2M) 10")
    'digits-dpm-solver-2m-10'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


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
        if real.reference is not self.train:
            checksum = images_checksum([to_bytes(real.reference.images)])
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
        self._reference = self.extractor.read(real.reference.images)
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
            entrant.run.path,
            entrant.run.title,
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
            labels = None if self.unseen.labels is None or not entrant.run.classes else self.unseen.labels
            drawn = entrant.draw(n, labels, seed=settings.seed, batch=settings.batch, watts=settings.watts)
            if not bool(drawn.images.isfinite().all()):
                raise ValueError(f"{entrant.name} makes samples with a NaN or infinity; leave it out")
            images = to_bytes(drawn.images)
            found = self._figures(self.extractor.read(images), labels, self._seen if self.fresh else None)
            distance, nearby = self._nearest(images)
            row = {
                "key": key,
                "name": entrant.name,
                "run": entrant.run.path,
                "title": entrant.run.title,
                "family": entrant.run.family,
                "n": n,
                "calls": drawn.calls,
                **asdict(drawn.cost),
                "metrics": found,
                "copies": float(distance.median()),
                "bits_per_dim": self._bits(entrant.run),
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

    def _bits(self, run: Run) -> dict[str, Any] | None:
        """Bits per dimension of unseen images with their interval over the images, once for all rules of a run."""
        count, labels = self.settings.bits, self.unseen.labels
        if count == 0 or not self.fresh:
            return None
        if run.path not in self._known:
            x = self.unseen.model_units(slice(0, count))
            mine = labels[:count] if labels is not None and run.classes else None
            self._known[run.path] = None
            try:
                bits = bits_per_dim(run.model, x, mine, seed=self.settings.seed)
            except ValueError as error:
                print(f"no likelihood of {run.path}: {error}", file=sys.stderr)
            else:
                if bits is not None:
                    e = of_mean(bits)
                    self._known[run.path] = {"value": e.value, "low": e.low, "high": e.high, "text": str(e)}
        return self._known[run.path]

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
