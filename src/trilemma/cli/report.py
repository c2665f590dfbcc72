"""``trilemma report``: quality, coverage and cost of every way to sample some trained runs, measured alike, on one page."""

import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from .._names import lookup
from .._version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from .real import Real

__all__ = ["COMMAND", "Compared", "Report", "compare", "machine", "run", "write", "write_page"]


@dataclass(frozen=True)
class Report:
    """Compare every way to sample one or more trained runs: the generative learning trilemma, measured.

    Draws the same number of samples from each run by each rule, and measures quality, coverage, likelihood where there is one,
    speed, energy and memory by one protocol. Writes report.html, which needs nothing but a browser, report.json with every
    figure, and sample sheets. What was measured before is kept in OUT/rows: a report that was stopped goes on.

    Args:
        runs: trained runs of any family: diffusion, gan, ddgan, vae, vq, flow.
        config: a preset or a YAML file with any of these settings; flags override it.
        rules: how to sample denoisers, as rule:steps; a tuned plan that is missing is tuned first.
        data: the real images, as `trilemma train` takes them; those that the runs were trained on without it.
        held_out: real images that no run was trained on; the test split of the data without it.
        extractor: what sees the images; `trilemma evaluate --help` lists them. auto trains a classifier on the labels, and is
            random where there are none.
        weights: file or folder with the extractor's weights, where it is not trained here.
        metrics: names of the figures besides fid and coverage; all usual ones without it.
        reference: training images that samples are measured against, drawn at random, with as many of each class; 0 for all of
            them. The time of precision, recall and coverage grows with the square. Nearest images are looked for among all.
        n: samples of each, not more than there are held-out images, with which they are compared; as many, or 2000, without it.
        bits: held-out images whose likelihood is taken, at least 2; 0 for none.
        guidance: strength of classifier-free guidance of denoisers.
        watts: power of this machine, for the energy where no counter can be read.
        seed: of everything.
        out: folder of the report.
        device: auto, cpu, cuda, cuda:1, mps.
        batch: samples at once.
    """

    runs: Positional[tuple[str, ...]] = ()
    config: str | None = None
    rules: tuple[str, ...] = ("ddpm:1000", "ddim:50", "dpmpp_2m:10", "angular:10", "tuned:5", "tuned:8", "tuned:10")
    data: str | None = None
    held_out: str | None = None
    extractor: str = "auto"
    weights: str | None = None
    metrics: tuple[str, ...] = ()
    reference: int = 10_000
    n: int | None = None
    bits: int = 64
    guidance: float = 1.0
    watts: float = 65.0
    seed: int = 0
    out: str = "runs/report"
    device: str = "auto"
    batch: int = 256

    def __post_init__(self) -> None:
        for kind, given in (("run", [Path(run).resolve() for run in self.runs]), ("rule", self.rules)):
            if len(set(given)) < len(given):
                raise ValueError(f"a {kind} is named twice in {' '.join(map(str, given))}; name each once")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1")
        if self.bits < 2 and self.bits != 0:
            raise ValueError(f"bits={self.bits} images have no interval; take at least 2, or 0 for no likelihood")
        if self.n is not None and self.n < 20:
            raise ValueError(f"n={self.n} samples are too few for any figure; take at least 20")
        if self.reference < 20 and self.reference != 0:
            raise ValueError(f"reference={self.reference} real images are too few; take at least 20, or 0 for all")
        if not 0 < self.watts < float("inf"):
            raise ValueError(f"watts={self.watts} is the power of the machine and must be positive")


COMMAND = Report


def run(settings: Report) -> int:
    """Draw, measure, write; returns the exit status."""
    from .findings import findings, plain
    from .verdict import tell

    compared = compare(settings, command=shlex.join(["trilemma", *sys.argv[1:]]))
    out = Path(settings.out)
    write(out, compared, tell(compared.figures, compared.pictures))
    print("\n" + "\n".join(plain(line) for line in findings(compared.figures)))
    print(f"\nopen {out / 'report.html'}")
    return 0


@dataclass(frozen=True, eq=False)
class Compared:
    """What a report shows.

    Args:
        figures: every number, JSON data.
        pictures: see ``verdict.tell``.
    """

    figures: dict[str, Any]
    pictures: "dict[str, Tensor]"


def compare(settings: Report, *, command: str = "") -> Compared:
    """Everything of a report but the page; figures and samples of each row are kept in ``settings.out`` as they come.

    Args:
        settings: see `Report`.
        command: what was typed, for the page.

    Raises:
        ValueError: runs, data, rules or metrics that do not fit each other; found before anything is drawn.
        FileNotFoundError: a run or the data are not there.
    """
    from ..evaluate import METRICS
    from .contenders import contenders, read_run
    from .findings import joules, seconds
    from .jury import SHOWN, Jury
    from .real import real_images

    settings = _checked(settings)
    opened = [read_run(path, settings) for path in settings.runs]
    real = real_images(settings)
    train, unseen = real.train, real.unseen
    for one in opened:
        if one.shape != train.shape:
            raise ValueError(
                f"{one.path} makes images of shape {one.shape}, those of {train.source} are {train.shape}: a report compares "
                "models of the same images; leave it out, or name its images by --data"
            )
        if one.classes not in (0, train.classes):
            raise ValueError(
                f"{one.path} knows {one.classes} classes, {train.source} has {train.classes}: a report compares models of the "
                "same images; leave it out, or name its images by --data"
            )
    entrants = [entrant for one in opened for entrant in contenders(one, settings)]  # which may tune
    if not entrants:
        raise ValueError("there is no way to sample left; name some by --rules, as in --rules ddim:50")
    jury = Jury(settings, real)
    print(f"  {'real unseen images':34s} {_figures(jury.floor)}")
    rows, pictures = [], {"real": unseen.model_units(slice(0, SHOWN))}
    for entrant in entrants:
        row, images, nearest = jury.judge(entrant)
        rows.append(row)
        pictures |= {row["name"]: images, f"nearest: {row['name']}": nearest}
        print(f"  {row['name']:34s} {_figures(row['metrics'])}   {seconds(row)}, {joules(row)} a sample")
    figures = {
        "settings": {**asdict(settings), "n": len(unseen)},
        "command": command,
        "data": {
            "reference": _named(real),
            "unseen": real.origin,
            "fresh": real.fresh,
            "labelled": unseen.labels is not None,
        },
        "stamp": asdict(jury.stamp),
        "floor": jury.floor,
        "copies": jury.copies,
        "rows": rows,
        "about": {
            name: {"says": metric.says, "better": metric.better}
            for name, metric in METRICS.items()
            if any(name in row["metrics"] for row in rows)
        },
        "machine": machine(str(entrants[0].device)),
    }
    return Compared(figures, pictures)


def _checked(settings: Report) -> Report:
    """The settings, after all that can be found wrong at once."""
    from ..evaluate.extractors import EXTRACTORS
    from .contenders import parse_rule
    from .evaluate import metric_names, require_folder

    if not settings.runs:
        raise ValueError("name the runs to compare, as in: trilemma report runs/digits runs/vae")
    settings = replace(settings, metrics=metric_names(settings.metrics))
    for entry in settings.rules:
        parse_rule(entry)
    lookup("extractor", settings.extractor, dict.fromkeys([*EXTRACTORS, "auto"]))
    require_folder(Path(settings.out))
    return settings


def _named(real: "Real") -> str:
    """What samples are measured against, for people."""
    of = "" if real.reference is real.train else f"{len(real.reference)} random ones of "
    return f"{of}{real.train}"


def write(out: Path, compared: Compared, page: str) -> None:
    """report.json, report.html and a picture of the samples of each row, each at once or not at all."""
    from ..data.pixels import save_picture
    from ..train.checkpoint import write_file
    from .jury import slug

    (out / "samples").mkdir(parents=True, exist_ok=True)
    for row in compared.figures["rows"]:
        save_picture(out / "samples" / f"{slug(row['name'])}.png", compared.pictures[row["name"]], columns=10)
    write_file(out / "report.json", compared.figures)
    write_page(out / "report.html", page)


def write_page(path: Path, page: str) -> None:
    """A page, at once or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)


def _figures(metrics: dict[str, dict[str, Any]]) -> str:
    return "  ".join(f"{name} {metrics[name]['text']}" for name in ("fid", "coverage", "recall") if name in metrics)


def machine(device: str) -> dict[str, Any]:
    """Where something was measured, as JSON data."""
    import torch

    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "trilemma": __version__,
    }
