"""``trilemma decode``: latents back to items."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor

    from .items import Opened

__all__ = ["COMMAND", "Decode", "run"]


@dataclass(frozen=True)
class Decode:
    """Decode latents that `trilemma encode` wrote, or standard normal numbers `z` of your own in a safetensors file.

    Writes grid.png, samples.npz (images as uint8; the numbers themselves as `x`) and decode.json.

    Args:
        path: the run that encoded.
        latents: the file.
        config: a preset or a YAML file with any of these settings; flags override it.
        label: decode as of this class, or none for no class; without it as the items were encoded.
        steps: calls of the network; 0 for as many as led there.
        out: folder to write into; without it `decoded` in PATH, or the first free decoded-2, ....
        device: auto, cpu, cuda, cuda:1.
        batch: items at once; 0 for the batches of encoding.
        ema: use the averaged weights.
    """

    path: Positional[str] = "runs/digits"
    latents: Positional[str] = "latents.safetensors"
    config: str | None = None
    label: str | None = None
    steps: int = 0
    out: str | None = None
    device: str = "auto"
    batch: int = 0
    ema: bool = True

    def __post_init__(self) -> None:
        if self.batch < 0 or self.steps < 0 or 0 < self.steps < 4:
            raise ValueError(f"steps={self.steps} must be 4 or more or 0, and batch={self.batch} not negative")


COMMAND = Decode


def read_latents(path: Path, opened: "Opened") -> "dict[str, Tensor]":
    """The content of a file of latents.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it does not fit the model.
        CorruptError: it is no safetensors file.
    """
    import torch

    from ..train.checkpoint import read_tensors

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; write one with: trilemma encode")
    found = read_tensors(path)
    if "z" not in found:
        raise ValueError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}, and no latents, z")
    z, n = found["z"], len(found["z"]) if found["z"].ndim else 0
    if tuple(z.shape[1:]) != opened.shape or n == 0 or not z.is_floating_point() or not bool(z.isfinite().all()):
        raise ValueError(
            f"{path}: z is {z.dtype} of shape {tuple(z.shape)}; finite (N, {', '.join(map(str, opened.shape))}) is needed"
        )
    labels = found.get("labels")
    if labels is not None and (labels.shape != (n,) or labels.dtype != torch.int64):
        raise ValueError(f"{path}: labels are {labels.dtype} of shape {tuple(labels.shape)}, for {n} latents")
    if labels is not None and not -1 <= int(labels.min()) <= int(labels.max()) < max(1, len(opened.classes)):
        raise ValueError(
            f"{path}: labels go up to {int(labels.max())}, but the model knows {len(opened.classes)} classes"
        )
    return found


def run(settings: Decode) -> int:
    """Decode, save, report; returns the exit status."""
    import numpy as np
    import torch

    from ..data.pixels import to_uint8
    from ..likelihood import Latent, decode
    from ..likelihood.encode import LEVELS
    from .encode import steps_bar
    from .items import conditions, open_run, pictures, whole_folder
    from .tuned import fingerprint

    opened = open_run(settings, "decodings")
    found = read_latents(Path(settings.latents), opened)
    z, carry = found["z"], found.get("carry")
    n, steps = len(z), settings.steps or int(found.get("steps", torch.tensor(50)))
    levels = tuple(found["levels"].tolist()) if "levels" in found else LEVELS
    if carry is not None and settings.steps not in (0, int(found["steps"])):
        raise ValueError(
            f"{settings.latents} is reversible and goes back by {int(found['steps'])} steps; leave out --steps"
        )
    if "weights" in found and int(found["weights"]) != int(fingerprint(opened.model), 16):
        print("these latents were made by other weights than these: what comes back differs", file=sys.stderr)
    labels = conditions(opened, found.get("labels"), settings.label, n)
    batch = settings.batch or int(found.get("batch", torch.tensor(64)))
    chunks, parts = torch.arange(n).split(batch), []
    with steps_bar(len(chunks) * steps, "decoding") as bar:
        for items in chunks:
            latent = Latent(z[items], None if carry is None else carry[items], steps, levels)
            cond: dict[str, Any] = {} if labels is None else {"label": labels[items]}
            parts.append(
                decode(opened.model, latent, dtype=torch.float32, cond=cond, hook=lambda _: bar.update()).cpu()
            )
    x = torch.cat(parts)
    with whole_folder(settings.out, Path(settings.path) / "decoded") as (part, out):
        arrays: dict[str, Any] = {"x": x.numpy()}
        if pictures(part / "grid.png", x, columns=min(10, n)):
            arrays = {"images": to_uint8(x).permute(0, 2, 3, 1).numpy(), **arrays}
        if labels is not None:
            arrays |= {"labels": labels.numpy(), "class_names": np.array(opened.classes)}
        np.savez_compressed(part / "samples.npz", **arrays)
        record = {**asdict(settings), "steps": steps, "batch": batch, "reversible": carry is not None}
        (part / "decode.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{n} items in {out}")
    return 0
