"""Files that are whole or absent: models as safetensors and JSON, checkpoints as folders that appear at once.

Nothing here is ever unpickled. A model folder holds

    config.json         the network, the process, the target: enough to build the model
    model.safetensors   its weights
    ema.safetensors     their first average, ``ema.1.safetensors`` the second, ... (if there are any)

and a checkpoint is a model folder that also holds the optimiser, the state of the run and ``manifest.json`` with the size and
the checksum of every file. It is written under a hidden name, flushed to the disk and renamed, so that whoever looks sees
either no checkpoint or a whole one, whenever the power goes.
"""

import json
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..denoise import LearnedVariance, Preconditioned
from ..nets import NETS, build, describe
from ..process import process_from_config, process_to_config
from .distributed import gather
from .game import Game

__all__ = [
    "CorruptError",
    "checkpoints",
    "load_model",
    "model_config",
    "newest",
    "prune",
    "read_config",
    "read_json",
    "read_model",
    "read_tensors",
    "save_model",
    "verify",
    "write_file",
    "write_folder",
]

T = TypeVar("T")
Content = Mapping[str, Any] | list[Any]  # tensors if the file's name ends in .safetensors, JSON data otherwise
MANIFEST = "manifest.json"


class CorruptError(RuntimeError):
    """A file is not what was written: cut short, changed, or missing."""


def write_file(path: Path, content: Content) -> None:
    """Write tensors or JSON so that ``path`` holds either what it held before or all of the new content."""
    temporary = path.with_name(f".{path.name}.part")
    _write(temporary, content, tensors=path.suffix == ".safetensors")
    os.replace(temporary, path)
    _flush(path.parent)


def write_folder(folder: Path, files: Mapping[str, Content]) -> None:
    """Write a folder of files with its manifest so that it appears whole, at once.

    Args:
        folder: one of that name is replaced.
        files: name -> content.

    >>> import tempfile, torch
    >>> folder = Path(tempfile.mkdtemp()) / "step_1"
    >>> write_folder(folder, {"state.json": {"step": 1}, "model.safetensors": {"w": torch.ones(2)}})
    >>> verify(folder)
    >>> sorted(path.name for path in folder.iterdir())
    ['manifest.json', 'model.safetensors', 'state.json']
    """
    for stale in folder.parent.glob(".step_*"):  # what a killed run left; only one process writes here
        shutil.rmtree(stale)
    temporary = folder.parent / f".{folder.name}"
    temporary.mkdir(parents=True)
    for name, content in files.items():
        _write(temporary / name, content, tensors=name.endswith(".safetensors"))
    manifest = {name: {"bytes": (temporary / name).stat().st_size, "crc32": _crc32(temporary / name)} for name in files}
    _write(temporary / MANIFEST, manifest, tensors=False)
    _flush(temporary)
    if folder.exists():
        remove(folder)
    temporary.rename(folder)
    _flush(folder.parent)


def verify(folder: Path, names: Collection[str] | None = None) -> None:
    """Check the files of a checkpoint, or those of the given names, against its manifest.

    Raises:
        CorruptError: a file is missing or differs; it is named.
    """
    manifest = read_json(folder / MANIFEST)
    for name in manifest if names is None else names:
        path, written = folder / name, manifest[name]
        try:
            found = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        except OSError as error:
            raise CorruptError(f"{path} cannot be read: {error}") from error
        if found != written:
            raise CorruptError(f"{path} is not what was written: it has {found}, not {written}")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first; hidden, that is unfinished, ones are not seen."""
    found = (path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit())
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints; each vanishes at once."""
    for path in checkpoints(folder)[keep:]:
        remove(path)


def remove(folder: Path) -> None:
    """Delete a folder so that nobody sees it half empty."""
    hidden = folder.with_name(f".{folder.name}.old")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CorruptError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorruptError(f"{path} cannot be read: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The content of a safetensors file, on the CPU.

    Raises:
        CorruptError: it is missing or not safetensors.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptError(f"{path} cannot be read: {error}") from error


def model_config(model: Preconditioned | Game, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What ``config.json`` holds: how to build the model, and ``info`` about where it comes from.

    The network's part is ``None`` if it is not in the registry; then :func:`load_model` must be given the network.
    """
    if isinstance(model, Game):
        return {"format": 1, "game": {"name": model.family, "kwargs": model.config}, "info": dict(info or {})}
    return {
        "format": 1,
        "net": describe(model.net) if type(model.net) in NETS.values() else None,
        "process": process_to_config(model.process),
        "target": model.target.name,
        "sigma_data": model.sigma_data,
        "learned_variance": isinstance(model, LearnedVariance),
        "info": dict(info or {}),
    }


def save_model(model: Preconditioned | Game, folder: Path | str, *, info: Mapping[str, Any] | None = None) -> None:
    """Save a model as ``config.json`` and ``model.safetensors``.

    Args:
        model: the denoiser, or the game.
        folder: made if need be; other files in it stay.
        info: JSON data to keep with it, such as the shape and class names of the data.
    """
    folder = Path(folder)
    config = model_config(model, info)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "model.safetensors", gather(model.state_dict().items()))
    write_file(folder / "config.json", config)


def load_model(
    folder: Path | str, *, ema: bool | int = True, net: nn.Module | None = None
) -> tuple[Preconditioned, dict[str, Any]]:
    """Load a model from a model folder, a checkpoint, or the newest good checkpoint of a run.

    Args:
        folder: where it is.
        ema: take the averaged weights if there are any; a number takes that average, ``False`` the weights themselves.
        net: the network to load into, for one that is not in ``trilemma.nets.NETS``.

    Returns:
        The model in evaluation mode, on the CPU, and the ``info`` it was saved with.

    Raises:
        FileNotFoundError: there is no model.
        CorruptError: no model there can be read.

    >>> import tempfile
    >>> from trilemma.nets import MLP
    >>> from trilemma.process import Flow
    >>> folder = tempfile.mkdtemp()
    >>> save_model(Preconditioned(MLP(2, width=8, depth=1), Flow(), "velocity"), folder, info={"data": "toy"})
    >>> model, info = load_model(folder)
    >>> model.process, info
    (Flow(), {'data': 'toy'})
    """
    config, weights = read_model(folder, ema=ema)
    if "game" in config:
        name = config["game"]["name"]
        raise ValueError(
            f"{folder} holds a model of the family {name!r}, not a denoiser, and this needs a denoiser; "
            "trilemma.baselines.load_game and `trilemma sample` take it"
        )
    if net is None:
        if config["net"] is None:
            raise ValueError(f"the network in {folder} is not in trilemma.nets.NETS; build it and pass it as net=")
        with torch.random.fork_rng(devices=[]):  # the first weights are drawn, only to be replaced
            net = build(config["net"]["name"], **config["net"]["kwargs"])
    kind = LearnedVariance if config.get("learned_variance") else Preconditioned
    model = kind(
        net,
        process_from_config(config["process"]),
        config["target"],
        sigma_data=config["sigma_data"],
    )
    model.load_state_dict(weights)
    return model.eval(), config["info"]


def read_model(folder: Path | str, *, ema: bool | int = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a model is built from: the content of ``config.json`` and the weights. Arguments and errors of `load_model`."""
    return _found(folder, lambda path: _read(path, ema))


def read_config(folder: Path | str) -> dict[str, Any]:
    """The content of ``config.json`` of a model folder, a checkpoint, or the newest good checkpoint of a run."""
    config: dict[str, Any] = _found(folder, lambda path: read_json(path / "config.json"))
    return config


def newest(folder: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of the newest checkpoint in a folder that is intact; damaged ones are warned of and passed over.

    Raises:
        CorruptError: ``read`` raised it for every checkpoint.
    """
    damage = []
    for path in checkpoints(folder):
        try:
            return read(path)
        except CorruptError as error:
            damage.append(str(error))
            warnings.warn(f"checkpoint {path} is damaged, trying the one before: {error}", stacklevel=3)
    raise CorruptError(f"no checkpoint in {folder} is intact: {'; '.join(damage) or 'there is none'}")


def _found(folder: Path | str, read: Callable[[Path], T]) -> T:
    folder = Path(folder)
    if (folder / "model.safetensors").exists():
        return read(folder)
    runs = [path for path in (folder, folder / "checkpoints") if checkpoints(path)]
    if not runs:
        raise FileNotFoundError(f"{folder} holds no model: no model.safetensors and no checkpoints/step_*")
    return newest(runs[0], read)


def _read(folder: Path, ema: bool | int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    manifest = folder / MANIFEST
    there = set(read_json(manifest)) if manifest.exists() else {path.name for path in folder.iterdir()}
    name = "model.safetensors" if ema is False else average_name(int(ema) if ema is not True else 0)
    if name not in there:
        if ema is not True:
            raise ValueError(f"{folder} holds no {name}; it has: {', '.join(sorted(there))}")
        name = "model.safetensors"
    if manifest.exists():
        verify(folder, ("config.json", name))
    return read_json(folder / "config.json"), read_tensors(folder / name)


def average_name(index: int) -> str:
    """The file of an average: ``ema.safetensors``, ``ema.1.safetensors``, ..."""
    return f"ema.{index}.safetensors" if index else "ema.safetensors"


def _write(path: Path, content: Content, *, tensors: bool) -> None:
    if tensors:
        save_file(dict(content), path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    _flush(path)


def _flush(path: Path) -> None:
    """Wait until the disk has the file, or the names in the folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
