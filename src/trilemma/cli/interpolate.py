"""``trilemma interpolate``: the way between items, or between seeds, along great circles of latents."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor

    from .items import Opened

__all__ = ["COMMAND", "Interpolate", "run"]


@dataclass(frozen=True)
class Interpolate:
    """Draw the way between items of data, or between samples, one row a pair.

    Writes grid.png, samples.npz and interpolate.json. Between items of two classes each image is of the class of the nearer end.

    Args:
        path: a run, a checkpoint or a model folder.
        config: a preset or a YAML file with any of these settings; flags override it.
        between: pairs of items by their numbers in the data, as in 3,17 5,9.
        seeds: pairs of seeds in their place, as in 1,2.
        columns: images of a row, both ends included.
        data: what `trilemma train` takes as data.
        split: train, test or all.
        label: the class of all images, or none for no class. Pairs of seeds take the classes in turn without it.
        steps: calls of the network each way.
        out: folder to write into; without it `between` in PATH, or the first free between-2, ....
        device: auto, cpu, cuda, cuda:1.
        ema: use the averaged weights.
    """

    path: Positional[str] = "runs/digits"
    config: str | None = None
    between: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    columns: int = 10
    data: str = "digits"
    split: str = "test"
    label: str | None = None
    steps: int = 50
    out: str | None = None
    device: str = "auto"
    ema: bool = True

    def __post_init__(self) -> None:
        for name, low in (("columns", 2), ("steps", 4)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")
        for pair in self.between + self.seeds:
            _pair(pair)


COMMAND = Interpolate


def _pair(text: str) -> tuple[int, int]:
    """Two numbers.

    >>> _pair("3,17")
    (3, 17)
    """
    words = text.split(",")
    if len(words) != 2 or not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"{text!r} is no pair of whole numbers; write it as 3,17")
    return int(words[0]), int(words[1])


def run(settings: Interpolate) -> int:
    """Interpolate, save, report; returns the exit status."""
    import numpy as np
    import torch

    from ..data.pixels import to_uint8
    from ..likelihood import decode, slerp
    from .encode import steps_bar
    from .items import open_run, pictures, whole_folder

    if bool(settings.between) == bool(settings.seeds):
        raise ValueError("say what to go between: pairs of items, as in --between 3,17, or of seeds, as in --seeds 1,2")
    opened = open_run(settings, "interpolations")
    pairs = torch.tensor([_pair(pair) for pair in settings.between or settings.seeds])  # (R, 2)
    with steps_bar((3 if settings.between else 1) * settings.steps, "interpolating") as bar:
        z, labels = (_between if settings.between else _seeds)(settings, opened, pairs, bar)
        weights = torch.linspace(0, 1, settings.columns, dtype=torch.float64)
        path = slerp(z[0], z[1], weights).transpose(0, 1)  # (R, W, ...)
        nearer = (weights > 0.5).long()
        cond = {} if labels is None else {"label": labels.T[:, nearer].flatten()}
        x = decode(opened.model, path.flatten(0, 1), steps=settings.steps, cond=cond, hook=lambda _: bar.update()).cpu()
    with whole_folder(settings.out, Path(settings.path) / "between") as (part, out):
        arrays: dict[str, Any] = {"x": x.numpy()}
        if pictures(part / "grid.png", x, columns=settings.columns):
            arrays = {"images": to_uint8(x).permute(0, 2, 3, 1).numpy(), **arrays}
        np.savez_compressed(part / "samples.npz", **arrays)
        (part / "interpolate.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")
    print(f"{len(pairs)} rows of {settings.columns}, each from its first item to its second: {out}")
    return 0


def _between(
    settings: Interpolate, opened: "Opened", pairs: "Tensor", bar: Any
) -> "tuple[list[Tensor], Tensor | None]":
    """Latents of both ends of pairs of items, and the labels of both, shape ``(2, R)``.

    Raises:
        ValueError: there are not so many items.
    """
    import torch

    from ..likelihood import encode
    from .items import conditions, read_items

    x, own = read_items(opened, settings.data, settings.split, None)
    if int(pairs.max()) >= len(x):
        raise ValueError(f"there is no item {int(pairs.max())}: {settings.data} has {len(x)}, counted from 0")
    labels = conditions(opened, own, settings.label, len(x))
    ends = []
    for side in pairs.T:
        cond = {} if labels is None else {"label": labels[side]}
        ends.append(encode(opened.model, x[side], steps=settings.steps, cond=cond, hook=lambda _: bar.update()).z)
    return ends, None if labels is None else torch.stack([labels[side] for side in pairs.T])


def _seeds(settings: Interpolate, opened: "Opened", pairs: "Tensor", bar: Any) -> "tuple[list[Tensor], Tensor | None]":
    """The noise from which ``sample`` starts for these seeds, one an item, and labels of both ends, shape ``(2, R)``."""
    import torch

    from ..numerics.noise import Noise
    from .items import class_of

    z = [Noise(side.tolist()).at(-1).normal((len(side), *opened.shape)) for side in pairs.T]
    asked = class_of(opened, settings.label)
    if not opened.classes:
        return z, None
    one = torch.arange(len(pairs)) % len(opened.classes) if asked is None else torch.full((len(pairs),), asked)
    return z, torch.stack([one, one])
