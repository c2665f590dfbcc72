"""``trilemma info``: what there is to choose from, or what a run is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from tyro.conf import Positional

__all__ = ["COMMAND", "Info", "columns", "run"]


@dataclass(frozen=True)
class Info:
    """Describe a run; without one, list every data source, network, process, grid and rule.

    Args:
        path: a run, a checkpoint or a model folder.
    """

    path: Positional[str] = ""


COMMAND = Info


def run(settings: Info) -> int:
    """Print; returns the exit status."""
    print(_describe(Path(settings.path)) if settings.path else _list())
    return 0


def columns(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A title and aligned rows; the last column may be long.

    >>> print(columns("fruit", [["fig", "3", "small"], ["banana", "12", "long"]]))
    fruit
      fig     3   small
      banana  12  long
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([title, *lines])


def _list() -> str:
    from ..baselines import GAMES
    from ..data import FORMATS
    from ..denoise import TARGETS
    from ..nets import PRESETS
    from ..process import GRIDS, PROCESSES, TIMES
    from ..train import WEIGHTINGS
    from .config import presets

    def first_line(thing: object) -> str:
        line = (thing.__doc__ or "").strip().splitlines()[0]
        return re.sub(r":\w+:`~?([^`]*)`", r"\1", line)

    nets = [
        [name, kind, ", ".join(f"{key}={value}" for key, value in options.items())]
        for name, (kind, options) in PRESETS.items()
    ]
    processes = [
        [name, ", ".join(f"{p.name}={p.default}" for p in signature(make).parameters.values()), first_line(make)]
        for name, make in PROCESSES.items()
    ]
    families = [["diffusion", "A denoiser, sampled by any rule below.", "--net, --process, --target"]]
    families += [[name, first_line(kind), _options(kind)] for name, kind in GAMES.items()]
    return "\n\n".join(
        [
            columns("data (--data)", [[name, about] for name, about in FORMATS.items()]),
            columns("models (--model) and their options (--net-options)", families),
            columns("networks (--net), their sizes and arguments (--net-options)", nets),
            columns(
                "processes (--process) and their settings, as in vp:beta_max=10; all have shift, as in flow:shift=-1.4",
                processes,
            ),
            columns("targets (--target)", [[", ".join(TARGETS)]]),
            columns("laws of training times (--times)", [[", ".join(TIMES)]]),
            columns("weightings of the loss (--weighting)", [[", ".join(WEIGHTINGS)]]),
            columns("grids (--grid)", [[name, first_line(make)] for name, make in GRIDS.items()]),
            *_rules(),
            columns("presets (--config)", [[", ".join(presets())]]),
        ]
    )


def _rules() -> list[str]:
    """The rules in three lists: by the probability flow in one call a step, in several, and with noise."""
    from ..sampling import RULES

    lists: dict[str, list[list[str]]] = {"one": [], "several": [], "noise": []}
    for name, entry in RULES.items():
        calls = f"{entry.calls} a step" + (f" and {entry.extra}" if entry.extra else "")
        if entry.stochastic:
            lists["noise"].append([name, calls, entry.about])
        elif entry.calls == 1:
            lists["one"].append([name, f"order {entry.order}", entry.about])
        else:
            lists["several"].append([name, f"order {entry.order}", calls, entry.about])
    lists["one"].insert(0, ["tuned", "fitted", "the plan that `trilemma tune` fitted to a run, best in few steps"])
    return [
        columns("rules (--rule) without noise, one call of the denoiser a step", lists["one"]),
        columns("rules (--rule) without noise, several calls a step", lists["several"]),
        columns("rules (--rule) with noise: right in law, not path by path", lists["noise"]),
    ]


def _options(kind: type) -> str:
    """The keyword options of a family, short enough for a row."""
    names = [p.name for p in signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return ", ".join(names)


def _describe(path: Path) -> str:
    from ..baselines import family
    from ..train.checkpoint import checkpoints, read_json

    rows, info, plans = _denoiser(path) if family(path) == "diffusion" else _game(path)
    if info:
        classes = ", ".join(info["class_names"]) or "none"
        rows.append(["data", f"{info['data']}: {info['items']} images of {'x'.join(map(str, info['shape']))}"])
        rows.append(["classes", classes])
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        rows += _progress(metrics)
        rows.append(["checkpoints", ", ".join(kept.name for kept in checkpoints(path / "checkpoints"))])
        starts = read_json(path / "command.json")
        rows += [["started" if i == 0 else "again", f"{s['time']}  {s['command']}"] for i, s in enumerate(starts)]
    return columns(str(path), rows + plans)


def _denoiser(path: Path) -> tuple[list[list[str]], dict[str, Any], list[list[str]]]:
    """Rows about the model, what it was saved with, rows about its tuned plans."""
    from ..train import load_model
    from .tuned import describe, read, stale

    model, info = load_model(path)
    parameters = sum(p.numel() for p in model.parameters())
    rows = [["network", f"{type(model.net).__name__}, {parameters / 1e6:.2f}M parameters"]]
    rows.append(["denoiser", model.extra_repr()])
    plans = []
    for plan in read(path):
        old = "  (for other weights than these)" if stale(plan, model) else ""
        plans.append(["tuned", f"{plan['steps']} steps: {describe(plan)}{old}"])
    return rows, info, plans


def _game(path: Path) -> tuple[list[list[str]], dict[str, Any], list[list[str]]]:
    """The same about a model of another family, which has no plans."""
    from ..baselines import load_game

    game, info = load_game(path)
    sizes = {name: sum(p.numel() for p in player) / 1e6 for name, player in game.players().items()}
    known = {key: value for key, value in game.config.items() if key not in ("shape", "classes")}
    rows = [["model", f"{game.family}: " + ", ".join(f"{name} {size:.2f}M parameters" for name, size in sizes.items())]]
    rows.append(["options", ", ".join(f"{key}={value}" for key, value in known.items())])
    rows.append(["calls", f"{game.calls} of the network a sample"])
    return rows, info, []


def _progress(metrics: Path) -> list[list[str]]:
    """Where a run stands, from the last hundred lines of its record."""
    import json

    rows = []
    for line in metrics.read_text().splitlines()[-100:]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # cut short by a crash
    if not rows:
        return [["progress", "no update yet"]]
    loss, rate = (sum(row[key] for row in rows) / len(rows) for key in ("loss", "images_per_second"))
    return [
        ["progress", f"step {rows[-1]['step']}, loss {loss:.4f}, {rate:.0f} images a second (last {len(rows)} updates)"]
    ]
