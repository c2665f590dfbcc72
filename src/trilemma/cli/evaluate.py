"""``trilemma evaluate``: how good a set of images is, measured against real ones, every figure with its interval and protocol."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluate import Estimate, Reading
    from ..evaluate.features import Extractor
    from ..train import World
    from .images import Images

__all__ = ["COMMAND", "Evaluate", "metric_names", "require_folder", "run"]

MOST = 20_000  # images that a classifier learns from


@dataclass(frozen=True)
class Evaluate:
    """Measure a set of images against real ones.

    Both are a folder of images, an array (samples.npz as `trilemma sample` writes), digits, idx:PATH or hf:NAME; @test behind a
    name takes that split. Prints every figure with its 95 % interval, and writes evaluation.json, samples.png and neighbours.png,
    the samples nearest to a real image beside the images nearest to them. Under torchrun the images are shared out between the
    processes, and the figures are the same.

    Args:
        samples: the images to judge.
        reference: real images, those of training.
        config: a preset or a YAML file with any of these settings; flags override it.
        extractor: what looks at the images: classifier (trained on the reference's labels in a minute), random, pixels,
            inception, inception-64, inception-192, inception-768, inception-spatial, dinov2, clip. auto is classifier where
            the reference has labels, and random where it has none.
        weights: a file of weights for inception, a folder of them for dinov2 and clip, a classifier trained before.
        metrics: names of metrics; all that can be had without it.
        n: judge this many of the samples, drawn by --seed; all of them without it.
        held_out: real images that nothing was trained on, for metrics of copying, and to see what real images reach.
        labels: an .npy file with the class that each sample was asked for; those in SAMPLES without it.
        json: print evaluation.json in place of the table.
        seed: of the classifier, of the draw of --n and of what metrics draw.
        out: folder to write into; without it `evaluation` beside SAMPLES, or the first free evaluation-2, evaluation-3, ....
        cache: where features of real images are kept; none for nowhere. Without it TRILEMMA_CACHE or the user's cache.
        device: auto, cpu, cuda, cuda:1.
        batch: images at once.
    """

    samples: Positional[str] = "runs/digits/drawn/samples.npz"
    reference: Positional[str] = "digits"
    config: str | None = None
    extractor: str = "auto"
    weights: str | None = None
    metrics: tuple[str, ...] = ()
    n: int | None = None
    held_out: str | None = None
    labels: str | None = None
    json: bool = False
    seed: int = 0
    out: str | None = None
    cache: str | None = None
    device: str = "auto"
    batch: int = 64

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1")
        if self.n is not None and self.n < 2:
            raise ValueError(f"n={self.n} must be at least 2")


COMMAND = Evaluate


def run(settings: Evaluate) -> int:
    """Measure, write, report; returns the exit status."""
    from ..train import setup

    metrics = _check_names(settings)
    if settings.out is not None:
        require_folder(Path(settings.out))
    try:
        launched = setup(settings.device)
        with launched as world:
            return _run(settings, metrics, world)
    except RuntimeError as error:
        if "device" in str(error) or "promises" in str(error):
            raise ValueError(str(error)) from None
        raise


def _run(settings: Evaluate, metrics: tuple[str, ...], world: "World") -> int:
    from ..evaluate import METRICS, Stamp, measure
    from .evaluated import Seen, record, table, write
    from .sample import free_folder

    start = time.perf_counter()
    sets = _open(settings)
    asked_labels = _asked(settings, sets["samples"])
    wanted = settings.extractor
    if wanted == "auto":
        wanted = "random" if sets["reference"].labels is None and settings.weights is None else "classifier"
    sums = {name: _checksum(images, settings, world) for name, images in sets.items()}
    extractor = _extractor(wanted, settings, sets["reference"], sums["reference"], world)
    seen = {
        name: Seen(images, sums[name], _read(images, sums[name], extractor, settings, world, keep=name != "samples"))
        for name, images in sets.items()
    }
    if not world.main:
        return 0
    samples, reference, held_out = seen["samples"], seen["reference"], seen.get("held_out")
    asked = _matched(asked_labels, samples.images, reference.images) if wanted == "classifier" else None
    if sums["samples"] == sums["reference"]:
        print(f"{settings.samples} and {settings.reference} are the same images", file=sys.stderr)
    stamp = Stamp(
        extractor.name,
        extractor.checksum,
        settings.reference,
        reference.checksum,
        extractor.resize,
        samples.images.n,
        settings.seed,
    )
    _say(f"measuring {samples.images.n} samples against {reference.images.n} real images")
    found = measure(
        samples.reading,
        reference.reading,
        held_out=None if held_out is None else held_out.reading,
        metrics=metrics or None,
        stamp=stamp,
        seed=settings.seed,
        asked=asked,
    )
    real: dict[str, Estimate] = {}
    if held_out is not None:  # the same figures of real images: nobody is asked to be better
        plain = [name for name in found if not {"held_out", "asked"} & set(METRICS[name].needs)]
        real = measure(held_out.reading, reference.reading, metrics=plain, seed=settings.seed) if plain else {}
    made = record(settings, seen, found, real, stamp, time.perf_counter() - start, world)
    out = Path(settings.out) if settings.out else free_folder(Path(settings.samples).parent / "evaluation")
    write(out, made, samples, reference)
    print(json.dumps(made, indent=2) if settings.json else table(settings, found, real, stamp, out))
    return 0


def _check_names(settings: Evaluate) -> tuple[str, ...]:
    """The metrics, after names that do not exist are found, and weights that nothing reads, before anything is loaded.

    Raises:
        ValueError: the nearest one is named, or the fix.
    """
    from .._names import lookup
    from ..evaluate import METRICS
    from ..evaluate.extractors import EXTRACTORS, check_weights

    lookup("extractor", settings.extractor, dict.fromkeys([*EXTRACTORS, "auto"]))
    check_weights(settings.extractor, settings.weights)
    metrics = metric_names(settings.metrics)
    for name in metrics:
        if "held_out" in METRICS[name].needs and settings.held_out is None:
            raise ValueError(f"{name} needs real images that nothing was trained on; name them by --held-out")
    return metrics


def metric_names(words: Sequence[str]) -> tuple[str, ...]:
    """Names of metrics, apart or joined by commas.

    Raises:
        ValueError: there is none of that name; the nearest one is named.

    >>> metric_names(("fid,kid", "recall"))
    ('fid', 'kid', 'recall')
    """
    from .._names import lookup
    from ..evaluate import METRICS

    names = tuple(part for word in words for part in word.split(",") if part)
    for name in names:
        lookup("metric", name, METRICS)
    return names


def require_folder(out: Path) -> None:
    """Find that a folder cannot be written to before the work for it is done.

    Raises:
        ValueError: it is a file or lies in one, or belongs to somebody else.

    >>> require_folder(Path(__file__))
    Traceback (most recent call last):
        ...
    ValueError: ...evaluate.py is a file; name a folder by --out
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file; name a folder by --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there} cannot be written to; name another folder by --out")


def _open(settings: Evaluate) -> "dict[str, Images]":
    """The sets, fit to be compared.

    Raises:
        ValueError: images of other sizes or channels, or fewer samples than asked for.
    """
    import torch

    from .images import open_images

    names = {"samples": settings.samples, "reference": settings.reference, "held_out": settings.held_out}
    sets = {name: open_images(source) for name, source in names.items() if source is not None}
    for images in sets.values():
        if images.shape != sets["reference"].shape:
            raise ValueError(
                f"{images.name} holds {images} and {settings.reference} holds {sets['reference']}: bring them to one size "
                "and kind first; how that is done moves every figure"
            )
    if settings.n is not None:
        there = sets["samples"].n
        if settings.n > there:
            raise ValueError(f"n={settings.n} samples were asked for, and {settings.samples} holds {there}")
        draw = torch.Generator().manual_seed(settings.seed)
        sets["samples"] = sets["samples"].subset(torch.randperm(there, generator=draw)[: settings.n].sort().values)
    return sets


def _asked(settings: Evaluate, samples: "Images") -> "Tensor | None":
    """The labels that the samples were asked for, as their file numbers them.

    Raises:
        ValueError: the file of --labels does not hold one whole number a sample.
    """
    import numpy as np
    import torch

    if settings.labels is None:
        return samples.labels
    if settings.n is not None:
        raise ValueError("--labels are those of all samples; leave out --n, or store the labels beside the images")
    try:
        labels = np.load(settings.labels, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{settings.labels} is not a plain numpy file: {error}") from None
    whole = isinstance(labels, np.ndarray) and np.issubdtype(labels.dtype, np.integer)
    if not whole or labels.shape != (samples.n,) or labels.min() < 0:
        raise ValueError(f"{settings.labels} must hold {samples.n} whole numbers from 0, one for each sample")
    return torch.from_numpy(labels.astype(np.int64))


def _matched(labels: "Tensor | None", samples: "Images", reference: "Images") -> "Tensor | None":
    """The samples' labels by the reference's numbers: classes of one name are one class.

    Raises:
        ValueError: a class that the reference does not have.
    """
    import torch

    if labels is None:
        return None
    names = reference.class_names
    number = {str(i): i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    spelled = [samples.class_names[i] if i < len(samples.class_names) else str(i) for i in labels.tolist()]
    strange = sorted(set(spelled) - set(number))
    if strange:
        raise ValueError(f"samples were asked for class {strange[0]}, and the reference has: {', '.join(names)}")
    return torch.tensor([number[name] for name in spelled])


def _rows(
    images: "Images", settings: Evaluate, world: "World", label: str, read: "Callable[[Tensor], Tensor]"
) -> "Tensor":
    """One row for each image. Batches are dealt to the processes in turn, and every process has all rows in the end.

    A batch is the same images whatever the number of processes, so the rows are the same numbers.
    """
    import torch
    from tqdm.auto import tqdm

    batches = torch.arange(images.n).split(settings.batch)
    mine = batches[world.rank :: world.size]
    total = sum(map(len, mine))
    rows = None
    with tqdm(total=total, desc=label, unit=" images", leave=False, disable=not world.main) as bar:
        for index in mine or batches[:1]:
            part = read(images.pixels(index))
            if rows is None:
                rows = torch.zeros(images.n, part.shape[1], dtype=part.dtype)
            if mine:
                rows[index] = part
            bar.update(len(index))
    assert rows is not None
    return rows if world.size == 1 else world.sum(rows.to(world.device)).cpu()


def _checksum(images: "Images", settings: Evaluate, world: "World") -> str:
    """Look at every image once: what cannot be read is found before the work begins."""
    from ..evaluate.reference import digests, digests_checksum

    return digests_checksum(images.shape, _rows(images, settings, world, f"checking {images.name}", digests))


def _extractor(wanted: str, settings: Evaluate, reference: "Images", checksum: str, world: "World") -> "Extractor":
    """What will look at the images; a classifier is trained once and kept, and all processes have the first one's."""
    import torch

    from ..evaluate.extractors import Subject, make_extractor

    if wanted != "classifier" or settings.weights is not None:
        return make_extractor(
            wanted, Subject(reference.shape, weights=settings.weights, seed=settings.seed, device=world.device)
        )
    if reference.labels is None:
        return make_extractor(wanted, Subject(reference.shape))  # refuses, in its words
    draw = torch.Generator().manual_seed(settings.seed)
    index = torch.randperm(reference.n, generator=draw)[:MOST].sort().values
    return _trained(settings, reference, index, checksum, world)


def _trained(settings: Evaluate, reference: "Images", index: "Tensor", checksum: str, world: "World") -> "Extractor":
    from ..evaluate import Classifier
    from ..evaluate.extractors import Subject, from_classifier, load_classifier, save_classifier, train_on
    from ..evaluate.reference import cache_folder, feature_key, tensors_checksum

    assert reference.labels is not None
    labels = tensors_checksum({"labels": reference.labels, "index": index})
    cache = cache_folder(settings.cache)
    key = feature_key(checksum, "classifier", labels, f"seed {settings.seed}")
    path = None if cache is None else cache / "classifiers" / f"{key}.safetensors"
    channels, height, width = reference.shape
    classifier = Classifier(channels, len(reference.class_names), size=min(height, width))
    if world.main:
        found = None
        try:
            found = load_classifier(path) if path is not None else None
        except FileNotFoundError:
            pass
        except ValueError as error:
            print(f"{error}; it is trained again", file=sys.stderr)
        if found is None:
            _say(f"training a classifier on {len(index)} of the reference's images")
            found = train_on(
                Subject(
                    reference.shape,
                    reference.pixels(index),
                    reference.labels[index],
                    seed=settings.seed,
                    device=world.device,
                ),
                classes=len(reference.class_names),
            )
            if path is not None:
                _kept(lambda: save_classifier(found, path))
        classifier = found
    classifier.to(world.device)
    for tensor in classifier.state_dict().values():
        world.sum(tensor if world.main else tensor.zero_())
    return from_classifier(classifier)


def _read(
    images: "Images", checksum: str, extractor: "Extractor", settings: Evaluate, world: "World", *, keep: bool
) -> "Reading":
    """Features of a set, from the cache where ``keep`` allows it and they are there."""
    import torch

    from ..evaluate import Reading
    from ..evaluate.reference import cache_folder, feature_key, load_reading, save_reading

    cache = cache_folder(settings.cache) if keep and world.main else None
    key = feature_key(checksum, extractor.name, extractor.checksum, extractor.resize)
    found = None
    try:
        found = load_reading(cache, key)
    except ValueError as error:
        print(error, file=sys.stderr)
    if bool(world.sum(torch.tensor(float(found is not None), device=world.device))):
        return found if found is not None else Reading(torch.zeros(images.n, 1))  # only the first process measures
    widths: list[int] = []

    def look(pixels: "Tensor") -> "Tensor":
        seen = extractor.read(pixels, batch=settings.batch)
        widths[:] = [seen.features.shape[1]]
        return seen.features if seen.logits is None else torch.cat([seen.features, seen.logits], 1)

    rows = _rows(images, settings, world, f"{extractor.name} looks at {images.name}", look)
    features, logits = rows[:, : widths[0]].contiguous(), rows[:, widths[0] :].contiguous()
    reading = Reading(features, logits if logits.shape[1] else None)
    _kept(lambda: save_reading(cache, key, reading))
    return reading


def _kept(write: Callable[[], None]) -> None:
    """Write to the cache; a cache that cannot be written to is a pity and no more."""
    try:
        write()
    except OSError as error:
        print(f"the cache cannot be written to: {error}", file=sys.stderr)


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(what, file=sys.stderr)
