"""IDX files, the format of MNIST and its relatives, plain or gzipped.

A file is ``0 0 type rank``, then ``rank`` big-endian 32-bit sizes, then the values, big-endian.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .arrays import from_arrays
from .dataset import DataSet

__all__ = ["read_idx", "read_idx_images"]

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_STEMS = {"train": "train", "test": "t10k"}


def read_idx(path: str | Path) -> NDArray[np.generic]:
    """Read one IDX file.

    Args:
        path: the file; read through gzip where it starts as such.

    Returns:
        The array, in native byte order.

    Raises:
        ValueError: the file is not IDX, is damaged, or is shorter or longer than its header says.

    Source: Y. LeCun, "The MNIST database", section "The IDX file format".
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES:
        raise ValueError(f"{path} is not an IDX file: it starts with {raw[:4].hex(' ') or 'nothing'}")
    rank, start = raw[3], 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"{path} ends within its IDX header")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    kind = np.dtype(_TYPES[raw[2]])
    expected = start + math.prod(shape) * kind.itemsize
    if len(raw) != expected:
        raise ValueError(f"{path} has {len(raw)} bytes where its header, shape {shape}, promises {expected}")
    return np.frombuffer(raw, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def read_idx_images(path: str | Path, *, split: str = "train") -> DataSet:
    """Read images, and labels where they lie beside them, from IDX files under MNIST's names.

    Args:
        path: a folder with ``train-images-idx3-ubyte`` or ``t10k-...`` (``.gz`` or not), or one images file; its
            labels are looked for under the same name with ``labels-idx1`` for ``images-idx3``.
        split: ``"train"``, ``"test"`` or ``"all"``, for a folder.

    Raises:
        ValueError: a file is damaged, or images and labels do not match in number.
        FileNotFoundError: no images file is there.
    """
    path = Path(path)
    if path.is_dir():
        stems = list(_STEMS.values()) if split == "all" else [_STEMS[split]]
        files = [_find(path, f"{stem}-images", "idx3") for stem in stems]
        missing = next((stem for stem, file in zip(stems, files) if file is None), None)
        if missing is not None:
            raise FileNotFoundError(f"{path} has no {missing}-images-idx3-ubyte (or .gz)")
        images_files = [file for file in files if file is not None]
    else:
        images_files = [path]
    images, labels = [], []
    for file in images_files:
        images.append(read_idx(file))
        if images[-1].ndim not in (3, 4):
            raise ValueError(f"{file} has shape {images[-1].shape}: these are not images (labels need no mention)")
        beside = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
        beside = next((b for b in (beside, beside.with_suffix(""), Path(f"{beside}.gz")) if b.is_file()), file)
        if beside != file:
            labels.append(read_idx(beside))
    joined = np.concatenate(labels) if len(labels) == len(images) else None
    return from_arrays(np.concatenate(images), joined, source=str(path))


def _find(folder: Path, stem: str, kind: str) -> Path | None:
    """The file ``stem-kind-ubyte``, with a dot for the second dash or ``.gz`` at the end, if there is one."""
    names = [f"{stem}{dash}{kind}-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)
