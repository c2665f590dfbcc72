"""What ``trilemma evaluate`` leaves: a table, evaluation.json, a sheet of samples, and the nearest real images of some.

evaluation.json    every figure with its interval; the sets, their checksums and the protocol; versions
samples.png        the first samples
neighbours.png     a row for each of the samples nearest to a real image, and for some others: it, then its nearest real images
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plain import plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluate import Estimate, Reading, Stamp
    from ..train import World
    from .evaluate import Evaluate
    from .images import Images

__all__ = ["Seen", "neighbours", "record", "table", "write"]

SHOWN = 100  # samples on the sheet
ROWS = 8  # of neighbours, of either kind
NEAR = 5  # neighbours a row


@dataclass(frozen=True, eq=False)
class Seen:
    """A set of images, its checksum and its features."""

    images: "Images"
    checksum: str
    reading: "Reading"


def record(
    settings: "Evaluate",
    seen: Mapping[str, Seen],
    found: "Mapping[str, Estimate]",
    real: "Mapping[str, Estimate]",
    stamp: "Stamp",
    seconds: float,
    world: "World",
) -> dict[str, Any]:
    """All that was found, as JSON data.

    Args:
        settings: of the command.
        seen: "samples", "reference", and "held_out" where there are such.
        found: the figures.
        real: the same of held-out images.
        stamp: the protocol.
        seconds: the whole command took.
        world: the processes.
    """
    import torch

    from .._version import __version__

    sets = {
        name: {"name": one.images.name, "n": one.images.n, "shape": one.images.shape, "checksum": one.checksum}
        for name, one in seen.items()
    }
    return {
        "metrics": {name: _plain(estimate) for name, estimate in found.items()},
        "held_out_metrics": {name: _plain(estimate) for name, estimate in real.items()},
        "stamp": asdict(stamp),
        **sets,
        "settings": asdict(settings),
        "features": seen["samples"].reading.features.shape[1],
        "processes": world.size,
        "device": str(world.device),
        "seconds": round(seconds, 3),
        "versions": {"trilemma": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }


def _plain(estimate: "Estimate") -> dict[str, Any]:
    """An estimate without its stamp, numbers that are none as null."""
    names = ("value", "low", "high", "n", "method", "confidence", "note")
    return {name: plain(getattr(estimate, name)) for name in names}


def table(
    settings: "Evaluate", found: "Mapping[str, Estimate]", real: "Mapping[str, Estimate]", stamp: "Stamp", out: Path
) -> str:
    """The figures and what they mean, for people.

    Args:
        settings: of the command.
        found: the figures.
        real: the same of held-out images.
        stamp: the protocol.
        out: the folder that was written.
    """
    from ..evaluate import METRICS
    from .info import columns

    rows = [["", "figure", "95 % interval", *(["held out"] if real else []), "better"]]
    for name, estimate in found.items():
        figure, _, interval = str(estimate).partition(" ")
        beside = [str(real[name]).partition(" ")[0] if name in real else "-"] if real else []
        rows.append([name.replace("_", " "), figure, interval, *beside, METRICS[name].better])
    title = f"{stamp.n} samples of {settings.samples} against {settings.reference}"
    notes = [f"{name.replace('_', ' ')}: {estimate.note}" for name, estimate in found.items() if estimate.note]
    means = [f"{name.replace('_', ' ')}: {METRICS[name].says}" for name in found]
    protocol = (
        f"protocol: {stamp.extractor} features {stamp.extractor_checksum[:8]}, resize {stamp.resize}, reference "
        f"{stamp.reference_checksum[:8]}, n {stamp.n}, seed {stamp.seed}; compare only figures with the same"
    )
    parts = [columns(title, rows), "\n".join(means), "\n".join(notes), protocol, f"written: {out}"]
    return "\n\n".join(part for part in parts if part)


def write(out: Path, made: Mapping[str, Any], samples: Seen, reference: Seen) -> None:
    """Write the folder so that it appears whole; files of that name in a folder that is there are replaced one by one.

    Args:
        out: the folder.
        made: see `record`.
        samples: the images that were judged.
        reference: the real images.
    """
    import torch

    from ..data.pixels import save_picture

    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        (part / "evaluation.json").write_text(json.dumps(made, indent=2, allow_nan=False) + "\n")
        if samples.images.shape[0] in (1, 3):
            first = samples.images.pixels(torch.arange(min(SHOWN, samples.images.n)))
            save_picture(part / "samples.png", first)
            save_picture(part / "neighbours.png", neighbours(samples, reference), columns=NEAR + 1)
        if out.exists():
            for file in part.iterdir():
                os.replace(file, out / file.name)
        else:
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def neighbours(samples: Seen, reference: Seen) -> "Tensor":
    """Rows of a sample and its nearest real images: those that are nearest to one, then some spread over all samples.

    Returns:
        ``(rows * 6, C, H, W)`` uint8.
    """
    import torch

    from ..evaluate.rows import nearest

    near = min(NEAR, reference.images.n - 1)
    distance, index = nearest(samples.reading.features, reference.reading.features, near)
    count = min(ROWS, len(distance))
    spread = torch.linspace(0, len(distance) - 1, count).round().long()
    chosen = torch.cat([distance[:, 0].argsort()[:count], spread])
    rows = [
        torch.cat([samples.images.pixels(i[None]), reference.images.pixels(index[i])])
        for i in chosen  # one image and its nearest; a folder decodes these only
    ]
    blank = torch.zeros(NEAR - near, *samples.images.shape, dtype=torch.uint8)
    return torch.cat([torch.cat([row, blank]) for row in rows])
