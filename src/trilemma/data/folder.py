"""Any folder of images; sub-folders are classes."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .._optional import require
from .dataset import DataSet

__all__ = ["decode", "read_folder"]

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"])
_KINDS = {1: "grey", 3: "colour"}


def read_folder(
    path: str | Path, *, resize: int | None = None, channels: int | None = None, on_error: str = "refuse"
) -> DataSet:
    """Read every image in a folder, in the order of the file names.

    Images that lie in sub-folders belong to the class named by the first of them. All images of a set share one size
    and one number of channels: either they do on disk, or ``resize`` and ``channels`` make them.

    Args:
        path: the folder; files that are not images by their suffix, and hidden files, are passed over.
        resize: cut the largest centred square from each image and resample it to this side, in pixels.
        channels: 1 for grey, 3 for colour; as on disk by default. Transparent pixels are shown on white.
        on_error: what to do with an image that cannot be read, or whose size or channels differ from those of most:
            ``"refuse"`` with its name, or ``"skip"`` it and list it in ``skipped``.

    Returns:
        uint8 images, with labels where there are sub-folders.

    Raises:
        ValueError: fewer than two images, images both beside and inside sub-folders, or an image to refuse.
        FileNotFoundError: there is no such folder.
        ImportError: Pillow is not installed.
    """
    path = Path(path)
    if on_error not in ("refuse", "skip"):
        raise ValueError(f"on_error={on_error!r} is not 'refuse' or 'skip'")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} is not 1 (grey) or 3 (colour)")
    if resize is not None and resize < 1:
        raise ValueError(f"resize={resize} must be a side in pixels, at least 1")
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    files = sorted(_image_files(path), key=lambda file: file.relative_to(path).parts)
    if not files:
        raise ValueError(f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))} in it and its sub-folders)")
    places = [file.relative_to(path).parts for file in files]
    loose = sum(len(place) == 1 for place in places)
    if 0 < loose < len(files):
        raise ValueError(
            f"{path} has {loose} images beside sub-folders that hold {len(files) - loose}: "
            "move them into a sub-folder (a class), or all images into one folder (no classes)"
        )
    require("PIL.Image", extra="data")
    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(lambda file: _try(file, resize, channels), files))

    skipped: list[str] = []

    def refuse_or_skip(file: Path, why: str) -> None:
        if on_error == "refuse":
            raise ValueError(f"{file}: {why}; mend or remove it, or leave such images out with on_error='skip'")
        skipped.append(f"{file.relative_to(path)}: {why}")

    good: list[tuple[int, NDArray[np.uint8]]] = []
    for i, result in enumerate(decoded):
        if isinstance(result, str):
            refuse_or_skip(files[i], result)
        else:
            good.append((i, result))
    if good:
        usual, count = Counter(image.shape for _, image in good).most_common(1)[0]
        for i, image in good:
            if image.shape != usual:
                fix = f"resize={min(usual[:2])}" if image.shape[:2] != usual[:2] else "channels=1 or channels=3"
                refuse_or_skip(
                    files[i],
                    f"it is {_say(image.shape)}, but {count} images are {_say(usual)} ({fix} makes them alike)",
                )
        good = [(i, image) for i, image in good if image.shape == usual]
    if len(good) < 2:
        reason = f" ({skipped[0]})" if skipped else ""
        raise ValueError(
            f"{path} holds {len(good)} usable image{'s' * (len(good) != 1)}; at least two are needed{reason}"
        )

    images = torch.from_numpy(np.stack([image for _, image in good]).transpose(0, 3, 1, 2).copy())
    if loose:
        return DataSet(images, source=str(path), skipped=tuple(skipped))
    names = sorted({places[i][0] for i, _ in good})
    labels = torch.tensor([names.index(places[i][0]) for i, _ in good])
    return DataSet(images, labels, tuple(names), source=str(path), skipped=tuple(skipped))


def decode(image: Any, *, resize: int | None = None, channels: int | None = None) -> NDArray[np.uint8]:
    """Turn an opened PIL image into pixels.

    Args:
        image: a ``PIL.Image.Image``; its first frame is taken.
        resize: cut the largest centred square and resample it to this side.
        channels: 1 or 3; as stored by default.

    Returns:
        ``(H, W, channels)`` uint8.

    Raises:
        ValueError: a pixel format without a fixed scale (32-bit integers or floats).
    """
    pil = require("PIL.Image", extra="data")
    image = require("PIL.ImageOps", extra="data").exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed scale; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        image = pil.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    grey = image.mode in ("1", "L", "LA", "La") if channels is None else channels == 1
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    image = (
        image.convert("RGB").convert("L")
        if grey and image.mode not in ("1", "L")
        else image.convert("L" if grey else "RGB")
    )
    if resize is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((resize, resize), pil.Resampling.LANCZOS, box=box) if side != resize else image.crop(box)
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _try(file: Path, resize: int | None, channels: int | None) -> NDArray[np.uint8] | str:
    """The pixels of one file, or why there are none."""
    pil = require("PIL.Image", extra="data")
    try:
        with pil.open(file) as image:
            image.load()
            return decode(image, resize=resize, channels=channels)
    except Exception as error:  # PIL's plug-ins raise many kinds; whatever it is, the file cannot be used
        if file.stat().st_size == 0:
            return "the file is empty"
        if isinstance(error, pil.UnidentifiedImageError):
            return "this is not an image that Pillow can read"
        return f"it cannot be read ({str(error).rstrip('.') or type(error).__name__})"


def _image_files(path: Path) -> Iterator[Path]:
    for folder, children, names in os.walk(path):
        children[:] = [child for child in children if not child.startswith((".", "__MACOSX"))]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)


def _say(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{_KINDS[channels]} {height}x{width}"
