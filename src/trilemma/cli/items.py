"""What the commands on a trained run and given items share: the model, the items that fit it, their classes, whole output."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .sample import free_folder, pick_device, refuse_unlabelled

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoise import Preconditioned

__all__ = ["Opened", "class_of", "conditions", "open_run", "pictures", "read_items", "whole_folder"]


class RunSettings(Protocol):
    """Settings by which a run is opened."""

    @property
    def path(self) -> str:
        """The run."""

    @property
    def device(self) -> str:
        """Where to compute."""

    @property
    def ema(self) -> bool:
        """Averaged weights."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A trained denoiser on its device.

    Args:
        model: the denoiser.
        info: what it was saved with.
        shape: of one item.
        classes: names of the classes it knows.
        device: where it is.
    """

    model: "Preconditioned"
    info: dict[str, Any]
    shape: tuple[int, ...]
    classes: list[str]
    device: "torch.device"


def open_run(settings: RunSettings, purpose: str) -> Opened:
    """Load the denoiser of a run.

    Args:
        settings: path, device, ema.
        purpose: what it is for, for the error: a model of another family cannot do it.

    Raises:
        ValueError: the device cannot be had or has no float64, or the run holds no denoiser.
        FileNotFoundError: there is no model.
    """
    from ..baselines import family
    from ..train import load_model

    device = pick_device(settings.device)
    if device.type == "mps":  # which has no float64, in which paths are added up
        if settings.device != "auto":
            raise ValueError(f"device={settings.device!r} has no float64, which {purpose} need; take cpu")
        device = pick_device("cpu")
    kind = family(settings.path)
    if kind != "diffusion":
        raise ValueError(f"{settings.path} holds a model of the family {kind}; {purpose} need a denoiser")
    model, info = load_model(settings.path, ema=settings.ema)
    if "shape" not in info:
        raise ValueError(f"{settings.path} does not say the shape of its items, so it was not trained by this program")
    classes = list(info.get("class_names", [])) if "label" in model.cond_keys else []
    return Opened(model.to(device), info, tuple(info["shape"]), classes, device)


def read_items(opened: Opened, data: str, split: str, n: int | None) -> "tuple[Tensor, Tensor | None]":
    """The first ``n`` items of a source in model units, and their labels as the model counts them.

    Plain vectors come from a .npy file of shape ``(N, D)``; images from any source of `trilemma train`.

    Raises:
        ValueError: the items do not fit the model.
        FileNotFoundError: there is no such source.
    """
    import numpy as np
    import torch

    from ..data import load

    if len(opened.shape) == 1:
        path = Path(data)
        if path.suffix != ".npy":
            raise ValueError(
                f"this model is of points with {opened.shape[0]} coordinates; give them as a .npy file, not {data!r}"
            )
        try:
            array = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} is no plain array of numbers: {error}") from None
        if array.ndim != 2 or array.shape[1] != opened.shape[0] or array.dtype.kind not in "fiu":
            raise ValueError(
                f"{path} has shape {array.shape}, {array.dtype}; (N, {opened.shape[0]}) numbers are needed"
            )
        return torch.from_numpy(array[:n].astype(np.float32)), None
    found = load(data, split=split)
    if found.shape != opened.shape:
        have, want = ("x".join(map(str, shape)) for shape in (found.shape, opened.shape))
        raise ValueError(f"{found.source} has images of {have} (channels, height, width), but the model is of {want}")
    count = len(found) if n is None else min(n, len(found))
    labels = None
    if opened.classes and found.labels is not None:
        strange = sorted(set(found.class_names) - set(opened.classes))
        if strange:
            raise ValueError(
                f"{found.source} has the class {strange[0]!r}, which the model does not know; try --label none"
            )
        labels = torch.tensor([opened.classes.index(found.class_names[int(k)]) for k in found.labels[:count]])
    return found.model_units(slice(0, count)), labels


def class_of(opened: Opened, label: str | None) -> int | None:
    """The number of the class that was asked for, -1 for none; ``None`` if none was.

    Raises:
        ValueError: there is no such class, or the model never saw an item without one.
    """
    from .sample import pick_labels

    if label is None:
        return None
    number = pick_labels((label,), opened.classes, 1)
    if label == "none" and opened.classes:
        refuse_unlabelled(opened.info)
    return None if number is None else int(number)


def conditions(opened: Opened, own: "Tensor | None", label: str | None, n: int) -> "Tensor | None":
    """Labels of ``n`` items: the class that was asked for, or their own.

    Raises:
        ValueError: the model needs labels and there are none.
    """
    import torch

    asked = class_of(opened, label)
    if not opened.classes:
        return None
    if asked is not None:
        return torch.full((n,), asked)
    if own is None:
        raise ValueError(
            "the model knows classes and these items have none; say --label none, or the class of all of them"
        )
    return own[:n]


@contextmanager
def whole_folder(wanted: str | None, default: Path) -> Iterator[tuple[Path, Path]]:
    """A folder that appears whole or not at all: where to write, and what it will be called.

    Args:
        wanted: the folder that was asked for; it must not be there yet, or be empty.
        default: without it, this one or the first free number behind it.

    Raises:
        ValueError: it is there already.
    """
    out = free_folder(default) if wanted is None else Path(wanted)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; choose another --out, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield part, out
        part.chmod(0o777 & ~_umask())
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def pictures(path: Path, images: "Tensor", columns: int) -> bool:
    """Draw images, if these are images; returns whether."""
    from ..data.pixels import save_picture

    if images.ndim != 4 or images.shape[1] not in (1, 3):
        return False
    save_picture(path, images, columns=columns)
    return True
