"""Images to be measured, from wherever they are; those of a folder are decoded when they are needed, a batch at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Images", "open_images"]


@dataclass(frozen=True, eq=False)
class Images:
    """A set of images, all of one size.

    Args:
        name: what the user called it.
        n: how many.
        shape: ``(C, H, W)`` of one.
        pixels: the images at some indices, ``(n,)`` int64 -> ``(n, C, H, W)`` uint8.
        labels: ``(N,)`` int64 or ``None``.
        class_names: one a class; empty without labels.
    """

    name: str
    n: int
    shape: tuple[int, int, int]
    pixels: "Callable[[Tensor], Tensor]"
    labels: "Tensor | None" = None
    class_names: tuple[str, ...] = ()

    def subset(self, index: "Tensor") -> "Images":
        """The images at these indices."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, n=len(index), pixels=lambda some: self.pixels(index[some]), labels=labels)

    def __str__(self) -> str:
        channels, height, width = self.shape
        kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
        return f"{self.n} {kind} images of {height}x{width}"


def open_images(source: str) -> Images:
    """Find images; those of a folder are not decoded yet, but for the first.

    Args:
        source: whatever `trilemma.data.load` reads; ``@train``, ``@test`` or ``@all`` behind it names a split.

    Raises:
        ValueError: fewer than two images, or the source is not known.
        FileNotFoundError: there is no such path.
    """
    from ..data import load
    from ..data.pixels import to_uint8

    name, at, split = source.rpartition("@")
    if not at or split not in ("train", "test", "all"):
        name, split = source, "train"
    files = _files(Path(name)) if Path(name).is_dir() else []
    if files:
        return _folder(source, Path(name), files)
    data = load(name, split=split)
    return Images(
        source, len(data), data.shape, lambda index: to_uint8(data.images[index]), data.labels, data.class_names
    )


def _files(folder: Path) -> list[Path]:
    """The image files in a folder and its sub-folders, hidden ones left out, in the order of their names."""
    from ..data.folder import SUFFIXES

    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    shown = [path for path in inside if not any(part.startswith((".", "__MACOSX")) for part in path.parts)]
    return [folder / path for path in sorted(shown, key=lambda path: path.parts)]


def _folder(source: str, folder: Path, files: Sequence[Path]) -> Images:
    import torch

    if len(files) < 2:
        raise ValueError(f"{folder} holds {len(files)} image; at least two are needed")
    height, width, channels = shape = _decoded(files[0]).shape

    def decode(file: Path) -> Any:
        image = _decoded(file)
        if image.shape != shape:
            one, other = (f"{'grey' if s[2] == 1 else 'colour'} {s[0]}x{s[1]}" for s in (image.shape, shape))
            raise ValueError(
                f"{file} is {one}, but {files[0]} is {other}: a set that is measured has one kind of image"
            )
        return torch.from_numpy(image.transpose(2, 0, 1).copy())

    def pixels(index: "Tensor") -> "Tensor":
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(decode, [files[i] for i in index.tolist()])))

    places = [file.relative_to(folder).parts for file in files]
    if any(len(place) == 1 for place in places):
        return Images(source, len(files), (channels, height, width), pixels)
    names = sorted({place[0] for place in places})
    number = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([number[place[0]] for place in places])
    return Images(source, len(files), (channels, height, width), pixels, labels, tuple(names))


def _decoded(file: Path) -> Any:
    """The pixels of a file, ``(H, W, channels)`` uint8.

    Raises:
        ValueError: there are none; the file is named.
        ImportError: Pillow is not installed.
    """
    from .._optional import require
    from ..data.folder import decode

    pil = require("PIL.Image", extra="data")
    try:
        with pil.open(file) as image:
            return decode(image)
    except Exception as error:  # PIL's plug-ins raise many kinds; whatever it is, the file cannot be used
        why = str(error).rstrip(".") or type(error).__name__
        raise ValueError(f"{file} cannot be read as an image ({why}); mend it or take it away") from None
