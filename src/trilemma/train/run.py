"""The folder of a run, which says by itself what was done.

config.json      every setting, resolved
command.json     one entry a start: the command, when, and the versions of what it ran on
metrics.jsonl    one line an update
checkpoints/     step_00000500/, ...: see ``checkpoint``
samples/         pictures by step
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .checkpoint import checkpoints, read_json, write_file
from .distributed import World
from .trainer import Record, Trainer

__all__ = ["RunDir"]


class RunDir:
    """Opens the folder of a run; only the first process writes.

    Args:
        path: the folder.
        config: the resolved settings, JSON data.
        resume: go on with the run that is there, if there is one.
        world: this process among others.
        command: the words of the command line; those of this program without it.

    Raises:
        ValueError: a run is there and ``resume`` is not set.

    >>> import tempfile
    >>> run = RunDir(Path(tempfile.mkdtemp()) / "run", config={"lr": 0.1}, command=["train", "digits"])
    >>> sorted(path.name for path in run.path.iterdir())
    ['checkpoints', 'command.json', 'config.json', 'metrics.jsonl', 'samples']
    """

    def __init__(
        self,
        path: Path | str,
        *,
        config: Mapping[str, Any],
        resume: bool = False,
        world: World | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.metrics = self.path / "metrics.jsonl"
        self._writes = world is None or world.main
        if not self._writes:
            return
        starts = self.path / "command.json"
        if starts.exists() and not resume:
            done = checkpoints(self.checkpoints)
            raise ValueError(
                f"{self.path} already holds a run ({done[0].name if done else 'no checkpoint yet'}); "
                "resume it, or choose another folder"
            )
        for folder in (self.checkpoints, self.samples):
            folder.mkdir(parents=True, exist_ok=True)
        self.metrics.touch()
        words = [Path(sys.argv[0]).name, *sys.argv[1:]] if command is None else command
        start = {
            "command": shlex.join(words),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "processes": 1 if world is None else world.size,
            "device": "cpu" if world is None else str(world.device),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: version(name) for name in ("trilemma", "torch", "numpy", "safetensors")},
        }
        write_file(self.path / "config.json", config)
        write_file(starts, [*(read_json(starts) if starts.exists() else []), start])

    def log(self, record: Record, **more: float) -> None:
        """Append a line to ``metrics.jsonl``, in one write."""
        if self._writes:
            row = asdict(record)
            figures = row.pop("figures")
            line = json.dumps({**row, **figures, **more}) + "\n"
            descriptor = os.open(self.metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def save(self, trainer: Trainer, *, keep: int = 3) -> Path:
        """Write a checkpoint; all processes must call it."""
        return trainer.save(self.checkpoints, keep=keep)

    def resume(self, trainer: Trainer) -> Path | None:
        """Go on from the newest intact checkpoint, or from the beginning, and drop the metrics of what will be done again."""
        path = trainer.resume(self.checkpoints)
        if self._writes:
            kept = [row for row in self.rows() if row["step"] <= trainer.step]
            temporary = self.metrics.with_name(f".{self.metrics.name}.part")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            os.replace(temporary, self.metrics)
        return path

    def rows(self) -> list[dict[str, Any]]:
        """What ``metrics.jsonl`` holds; a last line that was cut short is left out."""
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows
