"""Plans that ``trilemma tune`` made for a model, and where they are kept: in ``tuned`` beside it.

tuned/8.json                 the plan of 8 steps, what it was tuned for and how well it did
tuned/8-guidance-2.json      the same under guidance 2
tuned/error.png              error against steps; error-guidance-2.png
"""

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..denoise import Preconditioned
    from ..sampling import Plan
    from ..sampling.tune import Tuned

__all__ = ["describe", "fingerprint", "flags", "load_plan", "path_of", "picture", "read", "record", "stale", "table"]


def path_of(folder: Path | str, name: str, guidance: float) -> Path:
    """A file of the tuned plans of a model.

    >>> path_of("runs/digits", "8.json", 2.0).as_posix()
    'runs/digits/tuned/8-guidance-2.json'
    """
    path = Path(folder) / "tuned" / name
    return path if guidance == 1 else path.with_stem(f"{path.stem}-guidance-{guidance:g}")


def fingerprint(model: "Preconditioned") -> str:
    """A checksum of a model's process, target and weights: a plan is tuned for exactly these."""
    import torch

    value = zlib.crc32(f"{model.process} {model.target.name} {model.sigma_data}".encode())
    for tensor in model.state_dict().values():
        value = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def read(folder: Path | str) -> list[dict[str, Any]]:
    """The records of all tuned plans of a model, by guidance and steps.

    Raises:
        CorruptError: a file there is not such a record; it is named.
    """
    from ..train.checkpoint import CorruptError, read_json

    records = []
    for path in (Path(folder) / "tuned").glob("*.json"):
        try:
            record = read_json(path)
        except CorruptError as error:
            raise CorruptError(f"{error}; delete it, and tune again") from None
        if (
            not isinstance(record, dict)
            or not {"plan", "steps", "guidance", "labels", "weights", "error"} <= record.keys()
        ):
            raise CorruptError(f"{path} is not a plan that `trilemma tune` wrote; delete it, and tune again")
        records.append(record)
    return sorted(records, key=lambda record: (record["guidance"], record["steps"]))


def load_plan(folder: Path | str, steps: int, guidance: float) -> tuple["Plan", dict[str, Any]]:
    """The tuned plan of that many steps at that guidance, and its record.

    Raises:
        ValueError: there is none; the message says which there are and how to make it.
        CorruptError: its file is damaged.
    """
    from ..sampling import Plan
    from ..train.checkpoint import CorruptError

    records = read(folder)
    for record in records:
        if (record["steps"], record["guidance"]) == (steps, guidance):
            try:
                return Plan.from_json(json.dumps(record["plan"])), record
            except ValueError as error:
                raise CorruptError(f"{path_of(folder, f'{steps}.json', guidance)}: {error}; tune again") from None
    there: dict[float, list[str]] = {}
    for record in records:
        there.setdefault(record["guidance"], []).append(str(record["steps"]))
    have = "; ".join(f"{', '.join(budgets)} at guidance {g:g}" for g, budgets in there.items()) or "none"
    raise ValueError(
        f"{folder} has no plan tuned for {steps} steps at guidance {guidance:g} (steps with a plan: {have}); "
        f"make it with: trilemma tune {folder} {flags(steps, guidance)}"
    )


def flags(steps: int, guidance: float) -> str:
    """Steps and guidance as `trilemma tune` and `trilemma sample` take them.

    >>> flags(8, 2.0)
    '--steps 8 --guidance 2'
    """
    return f"--steps {steps}" + (f" --guidance {guidance:g}" if guidance != 1 else "")


def stale(record: dict[str, Any], model: "Preconditioned") -> bool:
    """Whether a plan was tuned for other weights than these."""
    return bool(record["weights"] != fingerprint(model))


def record(tuned: "Tuned", model: "Preconditioned", **more: Any) -> dict[str, Any]:
    """What is kept of a plan, as JSON data.

    Args:
        tuned: what tuning found.
        model: the model it was tuned for.
        more: how it was tuned: guidance, labels, seed, seconds, ....
    """
    from ..process.grid import angular_grid
    from ..sampling import angular

    plan, d = tuned.plan, model.sigma_data
    default = angular(sigma_data=d)(model.process, angular_grid(model.process, plan.steps, sigma_data=d))
    rows = [{"name": row.name, "error": _finite(row.error), "rmse": _finite(row.rmse)} for row in tuned.rows]
    return {
        "steps": plan.steps,
        **more,
        "name": tuned.best.name,
        "error": _finite(tuned.best.error),
        "published": {"name": tuned.published.name, "error": _finite(tuned.published.error)},
        "default": next((_finite(row.error) for row in tuned.rows if row.plan == default), None),
        "rows": rows,
        "calls": tuned.calls,
        "process": str(model.process),
        "sigma_data": d,
        "weights": fingerprint(model),
        "plan": json.loads(plan.to_json()),
    }


def describe(record: dict[str, Any]) -> str:
    """A plan in one line, without its number of steps."""
    at = "" if record["guidance"] == 1 else f"at guidance {record['guidance']:g}, "
    of = f"classes {', '.join(record['labels'])}, " if record["labels"] else ""
    return f"{at}{of}error {_error(record['error'])}, {_gain(record)} times better than {record['published']['name']}"


def table(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Rows for a table, the first one its head."""
    head = ["steps", "error", "default", "published", "better", "seconds", "calls", "plan", "best published"]
    rows = [
        [
            str(record["steps"]),
            _error(record["error"]),
            _error(record["default"]),
            _error(record["published"]["error"]),
            f"{_gain(record)}x",
            f"{record['seconds']:.0f}",
            str(record["calls"]),
            record["name"],
            record["published"]["name"],
        ]
        for record in records
    ]
    return [head, *rows]


def picture(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw error against steps: tuned, best published and default."""
    from .._optional import require

    require("matplotlib", extra="train")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(6, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    steps = [record["steps"] for record in records]
    lines = {
        "best published rule and grid": ([record["published"]["error"] for record in records], "s--", "tab:grey"),
        "default, not tuned": ([record["default"] for record in records], "^--", "tab:blue"),
        "tuned": ([record["error"] for record in records], "o-", "tab:red"),
    }
    for label, (errors, style, colour) in lines.items():
        axes.loglog(steps, [math.nan if e is None else e for e in errors], style, color=colour, label=label)
    axes.set(xlabel="steps", ylabel="mean error of an item")
    axes.set_title("Distance to the exact solution of the same model", fontsize="medium")
    axes.set_xticks(steps, [str(n) for n in steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.legend()
    part = path.with_name(f".{path.name}.part")
    figure.savefig(part, format="png")
    part.replace(path)


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _gain(record: dict[str, Any]) -> str:
    ours, theirs = record["error"], record["published"]["error"]
    return f"{theirs / ours:.1f}" if ours and theirs else "-"
