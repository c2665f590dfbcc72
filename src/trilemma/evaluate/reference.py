"""What was measured before is kept by content: checksums of images and of weights, and features in the user's cache.

(1)  a checksum of tensors: sha256 over name, type, shape and bytes, little-endian, by name in order
(2)  a checksum of images: sha256 over (C, H, W) and the sha256 of each image's bytes, in order; so that several processes can
     share the work, and batches do not matter
(3)  the key of kept features: sha256 over the images' checksum, the extractor's name and checksum, and the resize

Two files with the same key hold the same features; nothing is ever out of date. A file holds the checksum (1) of what is in
it, and one that fails it is made again.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .features import Reading

__all__ = [
    "cache_folder",
    "digests",
    "digests_checksum",
    "feature_key",
    "images_checksum",
    "load_reading",
    "load_tensors",
    "save_reading",
    "save_tensors",
    "tensors_checksum",
]


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """(1), in hexadecimal.

    >>> a, b = torch.zeros(2), torch.ones(3)
    >>> tensors_checksum({"a": a, "b": b}) == tensors_checksum({"b": b, "a": a})
    True
    >>> tensors_checksum({"a": a}) == tensors_checksum({"a": a.reshape(2, 1)})
    False
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        array = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        total.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return total.hexdigest()


def digests(images: Tensor) -> Tensor:
    """The sha256 of each image: ``(n, 32)`` uint8.

    Args:
        images: uint8 ``(n, C, H, W)``.

    Raises:
        ValueError: another type or shape.
    """
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (n, C, H, W); got {images.dtype}, {tuple(images.shape)}")
    each = [list(hashlib.sha256(image.tobytes()).digest()) for image in images.cpu().contiguous().numpy()]
    return torch.tensor(each, dtype=torch.uint8).reshape(-1, 32)


def digests_checksum(shape: Sequence[int], rows: Tensor) -> str:
    """(2), in hexadecimal, from what several processes found.

    Args:
        shape: ``(C, H, W)`` of an image.
        rows: ``(N, 32)``, the `digests` of all images, in order.
    """
    return hashlib.sha256(f"{tuple(shape)}\n".encode() + rows.contiguous().numpy().tobytes()).hexdigest()


def images_checksum(batches: Iterable[Tensor]) -> str:
    """(2), in hexadecimal.

    Args:
        batches: uint8 ``(n, C, H, W)``, all of one size.

    Raises:
        ValueError: other types, images of several sizes, or none.

    >>> x = torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2)
    >>> images_checksum([x]) == images_checksum([x[:1], x[1:]])
    True
    """
    shapes, rows = set(), []
    for batch in batches:
        rows.append(digests(batch))
        shapes.add(tuple(batch.shape[1:]))
    if len(shapes) != 1:
        raise ValueError(f"images must be at least one and all of one size; got {sorted(shapes) or 'none'}")
    return digests_checksum(shapes.pop(), torch.cat(rows))


def feature_key(images: str, name: str, checksum: str, resize: str) -> str:
    """(3), in hexadecimal: 40 digits, fit for a file's name.

    Args:
        images: checksum of the images.
        name: of the extractor.
        checksum: of the extractor.
        resize: of the extractor.
    """
    return hashlib.sha256(json.dumps([images, name, checksum, resize]).encode()).hexdigest()[:40]


def cache_folder(given: str | Path | None = None) -> Path | None:
    """Where features are kept.

    Args:
        given: the folder, or "none" to keep nothing; else TRILEMMA_CACHE says so, else it is ``trilemma`` in XDG_CACHE_HOME or
            in ``~/.cache``.

    Returns:
        The folder, which may not exist yet, or ``None``.

    >>> cache_folder("none") is None
    True
    """
    named = str(given or os.environ.get("TRILEMMA_CACHE") or "")
    if named == "none":
        return None
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trilemma"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    """Write tensors with their checksum, so that the file is whole or absent; its folder is made.

    Args:
        path: the file.
        tensors: what to write.
        about: JSON data kept beside them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        metadata = {"checksum": tensors_checksum(tensors), "about": json.dumps(dict(about))}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """What `save_tensors` wrote, checked; the inverse.

    Raises:
        ValueError: the file is damaged, or something else wrote it.
        FileNotFoundError: there is none.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        about = json.loads(metadata["about"])
        damaged = metadata["checksum"] != tensors_checksum(tensors)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if damaged:
        raise ValueError(f"{path} is not what was written")
    return tensors, about


def load_reading(folder: Path | None, key: str) -> Reading | None:
    """Features kept under a key; ``None`` where there are none.

    Raises:
        ValueError: the file is damaged; the message ends with what will be done about it.
    """
    if folder is None:
        return None
    try:
        tensors, _ = load_tensors(_path(folder, key))
        return Reading(tensors["features"], tensors.get("logits"))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{error}; these features are computed again") from None


def save_reading(folder: Path | None, key: str, reading: Reading) -> None:
    """Keep features under a key.

    Raises:
        OSError: the folder cannot be written to.
    """
    if folder is not None:
        logits = {} if reading.logits is None else {"logits": reading.logits}
        save_tensors(_path(folder, key), {"features": reading.features} | logits, {"key": key})


def _path(folder: Path, key: str) -> Path:
    return folder / "features" / f"{key}.safetensors"
