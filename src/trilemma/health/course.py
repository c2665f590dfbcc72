"""What the folder of a run says about its training: checkpoints and the record of the loss."""

import json
from pathlib import Path

import torch

from ..train.checkpoint import CorruptError, average_name, checkpoints, read_tensors
from .rules import Finding

__all__ = ["frozen_average", "still_falling"]


def frozen_average(run: Path) -> Finding | None:
    """Averaged weights that are the same in the two newest checkpoints, although the weights have moved.

    Args:
        run: the folder of the run, or of its checkpoints.

    Returns:
        The finding; nothing if the average moves, or there are not two checkpoints with one.
    """
    found = checkpoints(run / "checkpoints") or checkpoints(run)
    if len(found) < 2:
        return None
    try:
        new, old = (
            {name: read_tensors(path / name) for name in ("model.safetensors", average_name(0))} for path in found[:2]
        )
    except CorruptError:
        return None
    still = {
        name: all(torch.equal(value, old[name][key]) for key, value in tensors.items() if key in old[name])
        for name, tensors in new.items()
    }
    if not still[average_name(0)] or still["model.safetensors"]:
        return None
    what = f"the averaged weights of {found[0].name} and {found[1].name} are the same, and the weights are not"
    return Finding(
        "average", "fault", what, "Check that the average is updated at every step; use --no-ema until then."
    )


def still_falling(run: Path) -> Finding | None:
    """A mean loss that in the last quarter of the record still falls by more than 5 % and four standard errors.

    Args:
        run: the folder of the run, with ``metrics.jsonl``.
    """
    losses = _losses(run / "metrics.jsonl")
    part = len(losses) // 8
    if part < 20:
        return None
    before, after = (torch.tensor(losses[k : k + part or None]) for k in (len(losses) - 2 * part, len(losses) - part))
    fall = float(1 - after.mean() / before.mean())
    error = float((before.var() / part + after.var() / part).sqrt() / before.mean())
    if fall < 0.05 or fall < 4 * error:
        return None
    what = f"the loss fell by {fall:.0%} from the last but one eighth of the run to the last"
    return Finding(
        "unfinished", "note", what, "More steps will still help: trilemma train --out RUN --resume --steps N."
    )


def _losses(path: Path) -> list[float]:
    """The record of the loss; a last line that was cut short is left out."""
    losses: list[float] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            losses.append(float(json.loads(line)["loss"]))
        except (ValueError, KeyError, TypeError):
            break
    return losses
