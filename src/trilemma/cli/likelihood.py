"""``trilemma likelihood``: bits per dimension of held-out data under a trained run, with every part of its error."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from .plain import plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..likelihood import BitsPerDim
    from .items import Opened

__all__ = ["COMMAND", "LikelihoodOf", "run"]

_EXACT = 16  # coordinates up to which the trace is exact by default: it costs a backward pass each


@dataclass(frozen=True)
class LikelihoodOf:
    """Measure the likelihood of data under a trained run, by its probability flow.

    For images: bits per dimension of the raw integers, an upper bound whose gap is stated, with the error of the mean, of the
    solver, of estimated traces and of the law at t = 1. Writes likelihood.json, and images.png with the most likely images in
    its upper half and the least likely below. For points (a model of vectors, --data POINTS.npy): nats, and in two dimensions
    field.png, the log-density.

    Args:
        path: a run, a checkpoint or a model folder.
        config: a preset or a YAML file with any of these settings; flags override it.
        data: what `trilemma train` takes as data: digits, a folder of images, FILE.npz, FILE.npy, idx:PATH, or hf:NAME.
        split: train, test or all; what has no division of its own is all train.
        n: how many items, from the first; 0 for all.
        label: score items as of this class, or none for no class; without it each as of its own.
        dequantise: truncated_normal, uniform, or variational, a small flow that is trained for it first on --data's train split.
        tau: half a bin in standard deviations of the noise at which the density is taken, for truncated_normal and variational; 0
            to choose the best for truncated_normal, on train images.
        values: number of values a pixel can have; found in the data without it.
        samples: draws of dequantisation noise an image; more make the bound tighter.
        trace: exact, hutchinson, hutch++, orthogonal, fresh; auto is exact up to 16 coordinates and orthogonal beyond
            (hutchinson with --steps 0).
        probes: of an estimated trace; one shows no error of its own.
        steps: calls of the network on a fixed grid; 0 for as many as --rtol wants.
        rtol: tolerance of the solver, where --steps is 0.
        guidance: not for likelihoods; only 1 is accepted.
        seed: of dequantisation and probes.
        out: folder to write into; without it `likelihood` in PATH, or the first free likelihood-2, ....
        device: auto, cpu, cuda, cuda:1.
        batch: items at once.
        ema: use the averaged weights.
    """

    path: Positional[str] = "runs/digits"
    config: str | None = None
    data: str = "digits"
    split: str = "test"
    n: int = 64
    label: str | None = None
    dequantise: str = "truncated_normal"
    tau: float = 3.0
    values: int | None = None
    samples: int = 1
    trace: str = "auto"
    probes: int = 1
    steps: int = 64
    rtol: float = 1e-4
    guidance: float = 1.0
    seed: int = 0
    out: str | None = None
    device: str = "auto"
    batch: int = 32
    ema: bool = True

    def __post_init__(self) -> None:
        for name, low in (("n", 0), ("samples", 1), ("probes", 1), ("batch", 1), ("steps", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")
        if 0 < self.steps < 8:
            raise ValueError(f"steps={self.steps} must be 8 or more, or 0 for as many as --rtol wants")
        if not self.rtol > 0:
            raise ValueError(f"rtol={self.rtol:g} must be positive")
        if self.tau != 0 and not 0.1 <= self.tau <= 30:
            raise ValueError(f"tau={self.tau:g} must lie between 0.1 and 30, or be 0 to choose the best")
        if self.values is not None and self.values < 2:
            raise ValueError(f"values={self.values} must be at least 2")
        if self.guidance != 1:
            raise ValueError(
                f"guidance={self.guidance:g} is not for likelihoods: the density of a guided flow is not that of what it samples "
                "nor p(x) p(y | x)^w; leave it out"
            )


COMMAND = LikelihoodOf


def run(settings: LikelihoodOf) -> int:
    """Measure, save, report; returns the exit status."""
    from .._names import lookup
    from ..likelihood.probes import TRACES
    from ..train.checkpoint import write_file
    from .items import open_run, whole_folder

    lookup("trace", settings.trace, dict.fromkeys([*TRACES, "auto"]))
    lookup("dequantise", settings.dequantise, dict.fromkeys(["truncated_normal", "uniform", "variational"]))
    if settings.tau == 0 and settings.dequantise != "truncated_normal":
        raise ValueError(
            f"tau=0 chooses a level for truncated_normal only, not for {settings.dequantise}; give a number"
        )
    opened = open_run(settings, "likelihoods")
    trace = settings.trace
    if trace == "auto":
        trace = "exact" if math.prod(opened.shape) <= _EXACT else "orthogonal" if settings.steps else "hutchinson"
    with whole_folder(settings.out, Path(settings.path) / "likelihood") as (part, out):
        start = time.perf_counter()
        lines, result = (_points if len(opened.shape) == 1 else _images)(settings, opened, trace, part)
        record = {
            **asdict(settings),
            "trace": trace,
            "process": str(opened.model.process),
            "trained_on": opened.info.get("data"),
            "seconds": round(time.perf_counter() - start, 2),
            "device": str(opened.device),
            **result,
        }
        write_file(part / "likelihood.json", plain(record))
    print("\n".join(lines))
    print(f"everything is in {out}")
    return 0


def _images(settings: LikelihoodOf, opened: "Opened", trace: str, part: Path) -> tuple[list[str], dict[str, Any]]:
    """Bits per dimension of images: what to print, and the record."""
    import torch

    from ..likelihood import bits_per_dim
    from ..likelihood.dequantise import find_values, to_values
    from .items import conditions, pictures, read_items

    x, own = read_items(opened, settings.data, settings.split, settings.n or None)
    values = settings.values or find_values(x)
    k, labels = to_values(x, values), conditions(opened, own, settings.label, len(x))
    law = _law(settings, opened, trace, values)
    with _progress("likelihood", settings.samples * -(-len(k) // settings.batch)) as hook:
        found = bits_per_dim(
            opened.model, k, dequantise=law, values=values, samples=settings.samples, seeds=settings.seed,
            rtol=settings.rtol, atol=settings.rtol, steps=settings.steps or None, trace=trace, probes=settings.probes,
            cond={} if labels is None else {"label": labels}, batch=settings.batch, hook=hook,
        )  # fmt: skip
    order = found.per_image.cpu().argsort()
    shown = min(20, len(x) // 2)
    drawn = shown > 0 and pictures(
        part / "images.png", x[torch.cat([order[:shown], order[-shown:]])], columns=min(10, shown)
    )
    lines = _table(found, len(x), values)
    if drawn:
        lines.append(f"images.png: the {shown} most likely, then the {shown} least likely")
    result = {
        **{name: value for name, value in vars(found).items() if name != "per_image"},
        "interval": list(found.interval),
        "values": values,
        "images": len(x),
        "per_image": found.per_image.tolist(),
        "labels": None if labels is None else labels.tolist(),
        "unit": "bits per dimension",
    }
    return lines, result


def _law(settings: LikelihoodOf, opened: "Opened", trace: str, values: int) -> Any:
    """The law of dequantisation, chosen or trained on other images than those that are judged where there are any."""
    from ..likelihood import TruncatedNormal, best_level, train_dequantiser
    from ..likelihood.dequantise import to_values
    from .items import conditions, read_items

    if settings.dequantise == "uniform":
        return "uniform"
    if settings.dequantise == "truncated_normal" and settings.tau:
        return TruncatedNormal(settings.tau)
    x, own = read_items(opened, settings.data, "train", 64 if settings.tau == 0 else 5000)
    if settings.split != "test":
        print(
            "the dequantisation is fitted on images that are judged, too; judge --split test to avoid that",
            file=sys.stderr,
        )
    labels = conditions(opened, own, settings.label, len(x))
    cond = {} if labels is None else {"label": labels}
    if settings.tau == 0:
        law, tried = best_level(
            opened.model, to_values(x, values), values=values, seeds=settings.seed + 1, trace=trace, probes=settings.probes,
            cond=cond, batch=settings.batch,
        )  # fmt: skip
        print("bits/dim by tau: " + ", ".join(f"{tau:g}: {bits:.3f}" for tau, bits in tried.items()))
        return law
    print("training a dequantiser, 500 updates", file=sys.stderr)
    return train_dequantiser(
        opened.model, to_values(x, values), values=values, tau=settings.tau, seed=settings.seed, cond=cond
    )


def _table(found: "BitsPerDim", n: int, values: int) -> list[str]:
    """The figure and its parts, a line each."""
    low, high = found.interval
    rows = [
        (
            "bits/dim",
            f"{found.value:.4f}",
            f"95 % interval {low:.4f} to {high:.4f}, over {n} images of {values} values",
        ),
        ("nats", f"{found.value * math.log(2):.4f}", "a dimension"),
        ("of it about", _number(found.gap), f"gap of dequantisation ({found.dequantise}, samples: {found.samples})"),
        ("+-", _number(found.solver_error), "the solver, by its own estimate"),
        ("+-", _number(found.probe_stderr), "estimated traces, contained in the interval"),
        ("apart", _number(found.prior_mismatch), _mismatch(found.prior_mismatch, "taken off")),
        ("offset", f"{found.offset:.4f}", "bits of a bin, contained"),
        ("calls", f"{found.calls:.0f}", "of the network, an image"),
    ]
    return [f"{name:>14}  {value:>9}  {what}" for name, value, what in rows]


def _points(settings: LikelihoodOf, opened: "Opened", trace: str, part: Path) -> tuple[list[str], dict[str, Any]]:
    """Nats of points, and their field in two dimensions."""
    from ..likelihood import log_likelihood
    from .items import conditions, read_items

    x, own = read_items(opened, settings.data, settings.split, settings.n or None)
    labels = conditions(opened, own, settings.label, len(x))
    how: dict[str, Any] = {
        "steps": settings.steps or None, "rtol": settings.rtol, "atol": settings.rtol, "trace": trace,
        "probes": settings.probes, "seeds": settings.seed,
    }  # fmt: skip
    cond = {} if labels is None else {"label": labels}
    with _progress("likelihood", -(-len(x) // settings.batch)) as hook:
        found = log_likelihood(opened.model, x, cond=cond, batch=settings.batch, hook=hook, **how)
    mean, mismatch = float(found.log_prob.mean()), float(found.prior_mismatch.mean())
    error = float(found.log_prob.std()) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    lines = [
        f"log-density: {mean:.4f} +- {_number(error)} nats, mean over {len(x)} points and its standard error",
        f"solver {_number(float(found.solver_error.mean()))}, probes {_number(float(found.stderr.mean()))}, "
        f"apart {_number(mismatch)}, {_mismatch(mismatch, 'added')}",
    ]
    if opened.shape == (2,):
        _field(opened, x, None if labels is None else int(labels[0]), how, part / "field.png")
        lines.append("field.png: the log-density")
    parts = {name: float(getattr(found, name).mean()) for name in ("solver_error", "stderr", "prior_mismatch")}
    return lines, {"value": mean, "stderr": error, "points": found.log_prob.tolist(), "parts": parts, "unit": "nats"}


def _field(opened: "Opened", x: "Tensor", label: int | None, how: dict[str, Any], path: Path) -> None:
    """Draw the log-density around points, 80 x 80."""
    import torch

    from .._optional import require
    from ..likelihood import log_likelihood

    require("matplotlib", extra="train")
    from matplotlib.figure import Figure

    low, high = x.amin(0), x.amax(0)
    margin = 0.3 * (high - low).clamp(min=1e-3)
    sides = [torch.linspace(float(a), float(b), 80) for a, b in zip(low - margin, high + margin)]
    grid = torch.stack(torch.meshgrid(*sides, indexing="xy"), -1).reshape(-1, 2)
    cond = {} if label is None else {"label": torch.full((len(grid),), label)}
    with _progress("field", 4) as hook:
        found = log_likelihood(opened.model, grid, cond=cond, batch=1600, hook=hook, **how)
    values = found.log_prob.reshape(80, 80).cpu().numpy()
    figure = Figure(figsize=(5.4, 4.4), layout="constrained", dpi=120)
    axes = figure.subplots()
    extent = (float(sides[0][0]), float(sides[0][-1]), float(sides[1][0]), float(sides[1][-1]))
    top = float(values.max())
    image = axes.imshow(
        values, origin="lower", extent=extent, aspect="auto", vmin=max(top - 12, float(values.min())), vmax=top
    )
    points = x[:500].numpy()
    axes.scatter(points[:, 0], points[:, 1], s=3, c="white", alpha=0.5, linewidths=0)
    figure.colorbar(image, label="log p(x), nats")
    figure.savefig(path, format="png")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int, int], object]]:
    """A bar with the time that is left, as a hook for the number of batches done."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit="batch", leave=False) as bar:
        yield lambda done, total: bar.update(done - bar.n)


def _mismatch(value: float, what: str) -> str:
    if value == 0:
        return "mismatch of the law at t = 1: no signal is left there, so that it is known"
    return f"estimated mismatch of the law at t = 1, to be {what} if the model's own law is meant"


def _number(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value:.2g}"
