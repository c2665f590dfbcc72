"""``trilemma check``: what is wrong with a trained run, how sure that is, and what to do about it."""

from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from .plain import plain

if TYPE_CHECKING:
    from ..data import DataSet
    from ..health import Finding, Health

__all__ = ["COMMAND", "Check", "run"]


@dataclass(frozen=True)
class Check:
    """Examine the health of a trained run on held-out data.

    Tests identities that every exact denoiser obeys, what the network predicts and wants to be given, whether it knows its
    training data by heart, whether its labels mean anything, its samples, and whether its averaged weights follow. Writes
    PATH/health/health.json and a picture by noise level. The exit status is 1 if there is a fault.

    With 512 items and 256 draws it asks the network for about 70,000 items and for 5,000 gradients: seconds for points, about a
    minute of a processor for a small U-Net on 8x8 images. Fewer items and draws cost less in proportion.

    Args:
        path: a run, a checkpoint or a model folder.
        config: a preset or a YAML file with any of these settings; flags override it.
        data: what to examine it on, as for `trilemma train`; that of the run without it, whose test split is taken if it has one.
        items: held-out items to use, at least 64.
        draws: samples to draw; 0 for none.
        seed: of the noise.
        device: auto, cpu, cuda, cuda:1, mps.
        batch: items at once.
        ema: examine the averaged weights.
    """

    path: Positional[str] = "runs/digits"
    config: str | None = None
    data: str | None = None
    items: int = 512
    draws: int = 256
    seed: int = 0
    device: str = "auto"
    batch: int = 256
    ema: bool = True

    def __post_init__(self) -> None:
        for name, low in (("items", FEWEST), ("draws", 0), ("batch", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")


COMMAND = Check
FEWEST = 64  # items that can be examined


def run(settings: Check) -> int:
    """Check, print the table and the verdict, write both and a picture."""
    from .._optional import require
    from ..health import check
    from ..train import load_model
    from ..train.checkpoint import write_file
    from .sample import pick_device

    require("matplotlib", extra="train")  # before the work, not after it
    device = pick_device(settings.device)
    model, info = load_model(settings.path, ema=settings.ema)
    raw = load_model(settings.path, ema=False)[0].to(device) if settings.ema else None
    held, seen = _data(settings)
    cond = {}
    if "label" in model.cond_keys and info.get("class_names"):
        if held.labels is None:
            raise ValueError(f"{settings.path} was trained with labels, and {held.source} has none; name data that has")
        cond["label"] = held.labels
    health = check(
        model.to(device),
        held.model_units(),
        cond=cond,
        train=None
        if seen is None
        else seen.model_units(slice(0, max(settings.items, min(4096, 2**24 // prod(seen.shape))))),
        raw=raw,
        items=settings.items,
        draws=settings.draws,
        seeds=settings.seed,
        batch=settings.batch,
    )
    health = replace(health, findings=(*health.findings, *_course(Path(settings.path))))
    folder = Path(settings.path) / "health"
    folder.mkdir(exist_ok=True)
    if health.levels:
        _picture(health, folder / "levels.png")
    write_file(folder / "health.json", _plain(health))
    print(health)
    print(f"\nThe numbers{' and a picture' if health.levels else ''} are in {folder}.")
    return 0 if health.healthy else 1


def _data(settings: Check) -> "tuple[DataSet, DataSet | None]":
    """Held-out data, and the data of training if the run says which; every part is read once."""
    from .real import read_split, trained_on
    from .train import DataOptions

    options = trained_on(settings.path) if settings.data is None else DataOptions(data=settings.data)
    if options is None:
        raise ValueError(f"{settings.path} does not say what it was trained on; name the data with --data")
    try:
        held = read_split(options, "test")
    except ValueError:
        held = None  # no division of its own
    if held is not None and settings.data is not None:
        return held, None
    seen = read_split(options, "train")
    return (seen, None) if held is None or len(held) < FEWEST else (held, seen)


def _course(path: Path) -> "list[Finding]":
    """What the records of the run add: a loss that still falls, an average that stands still."""
    from ..health.course import frozen_average, still_falling

    return [finding for finding in (frozen_average(path), still_falling(path)) if finding is not None]


def _plain(health: "Health") -> dict[str, Any]:
    """What is kept of it, as JSON data."""
    return {
        "healthy": health.healthy,
        "findings": [asdict(finding) for finding in health.findings],
        "levels": [plain(asdict(level)) for level in health.levels],
        "samples": None if health.samples is None else plain(asdict(health.samples)),
        "identity": None if health.identity is None else plain(asdict(health.identity)),
        "items": health.items,
    }


def _picture(health: "Health", path: Path) -> None:
    """Error by noise level beside its yardsticks, and calibration, slope and asymmetry below."""
    import os

    from matplotlib.figure import Figure

    at = [v.log_snr for v in health.levels]
    figure = Figure(figsize=(7, 6), layout="constrained")
    top, low = figure.subplots(2, 1, sharex=True)
    for label, values in (
        ("error of the model", [v.error for v in health.levels]),
        ("linear denoiser", [v.linear for v in health.levels]),
        ("average of other items", [v.copying for v in health.levels]),
        ("claimed by the derivative", [v.predicted for v in health.levels]),
    ):
        top.semilogy(at, [max(value, 1e-8) for value in values], label=label, marker="o", markersize=3)
    top.set_ylabel("squared error an element")
    top.legend()
    low.axhline(1, color="0.7", linewidth=1)
    low.plot(at, [v.slope for v in health.levels], label="slope of x on D", marker="o", markersize=3)
    low.plot(at, [v.predicted / v.error for v in health.levels], label="claimed / error", marker="o", markersize=3)
    low.plot(at, [v.asymmetry for v in health.levels], label="asymmetry", marker="o", markersize=3)
    low.set_ylim(-0.5, 2.5)
    low.set_xlabel("log-SNR (noise left, data right)")
    low.legend()
    part = path.with_name(f".{path.name}.part.png")
    figure.savefig(part, dpi=120)
    os.replace(part, path)
