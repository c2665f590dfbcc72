"""Images in numpy files: one array in a ``.npy``, named arrays in a ``.npz``. Pickled objects are never loaded."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .dataset import DataSet

__all__ = ["from_arrays", "read_arrays", "to_nchw"]

# Names under which images and labels are usually stored, by split; the first that is there wins.
_IMAGES = {
    "train": ("train_images", "images_train", "x_train", "train_x", "X_train"),
    "test": ("test_images", "images_test", "x_test", "test_x", "X_test"),
    "all": ("images", "image", "x", "X", "data", "samples", "arr_0"),
}
_LABELS = {
    "train": ("train_labels", "labels_train", "y_train", "train_y"),
    "test": ("test_labels", "labels_test", "y_test", "test_y"),
    "all": ("labels", "label", "y", "target", "targets", "arr_1"),
}
_COLOURS = (1, 3, 4)


def to_nchw(array: NDArray[np.generic], layout: str | None = None, *, name: str = "the array") -> Tensor:
    """Bring an image array to ``(N, C, H, W)``, refusing to guess where two readings are possible.

    Args:
        array: ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``.
        layout: ``"NCHW"`` or ``"NHWC"`` for four axes; read from the sizes by default, where one reading has
            1, 3 or 4 channels and the other has not.
        name: what to call it in an error.

    Returns:
        ``(N, C, H, W)``, contiguous, in the dtype of the array.

    Raises:
        ValueError: the number of axes or the layout cannot be right, or both layouts could be.

    >>> to_nchw(np.zeros((5, 32, 32, 3), np.uint8)).shape
    torch.Size([5, 3, 32, 32])
    """
    if layout not in (None, "NCHW", "NHWC"):
        raise ValueError(f"layout={layout!r} is not one of 'NCHW', 'NHWC' or None")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        if layout is None:
            first, last = array.shape[1] in _COLOURS, array.shape[3] in _COLOURS
            if first == last:
                why = "both axes could be" if first else "neither axis 1 nor axis 3 looks like"
                raise ValueError(f"{name} has shape {array.shape}: {why} the channels; say layout='NCHW' or 'NHWC'")
            layout = "NCHW" if first else "NHWC"
        if layout == "NHWC":
            array = array.transpose(0, 3, 1, 2)
    else:
        raise ValueError(f"{name} has shape {array.shape}; images need 3 axes (N, H, W) or 4 (N, C, H, W)")
    return torch.from_numpy(np.ascontiguousarray(array))


def from_arrays(
    images: NDArray[np.generic],
    labels: NDArray[np.generic] | None = None,
    *,
    class_names: tuple[str, ...] = (),
    layout: str | None = None,
    value_range: tuple[float, float] | None = None,
    on_error: str = "refuse",
    source: str = "arrays",
) -> DataSet:
    """Check arrays and make a data set of them.

    Args:
        images: see `to_nchw`; uint8 in [0, 255], bool, or float in [0, 1] or [-1, 1].
        labels: ``(N,)`` whole numbers from 0, or ``None``.
        class_names: names of the classes; the numbers themselves by default.
        layout: see `to_nchw`.
        value_range: the values that become -1 and 1, for arrays on any other scale.
        on_error: ``"refuse"`` or ``"skip"`` images with a NaN or infinity.
        source: what to call it.

    Raises:
        ValueError: wrong type, scale, layout or labels, or a value that is not finite under ``"refuse"``.

    >>> from_arrays(np.full((2, 4, 4), 0.5)).images.unique()
    tensor([0.])
    """
    x = to_nchw(images, layout, name=source)
    if x.numel() == 0:
        raise ValueError(f"{source} has shape {tuple(images.shape)}: there is no image in it")
    skipped: tuple[str, ...] = ()
    y = None if labels is None else _whole_numbers(labels, len(x), source)
    if x.dtype == torch.bool:
        x = x.to(torch.uint8) * 255
    if x.dtype == torch.uint8 and value_range is None:
        if int(x.max()) <= 1 and images.dtype != np.bool_:
            raise ValueError(f"{source}: uint8 values are all 0 or 1; if 1 is white, say value_range=(0, 1)")
    else:
        x = x.float()
        bad = (~x.isfinite()).flatten(1).any(1)
        if bad.any():
            places = bad.nonzero().flatten().tolist()
            if on_error == "refuse":
                raise ValueError(
                    f"{source}: image {places[0]} has a NaN or infinity ({len(places)} such images in all); "
                    "mend them or leave them out with on_error='skip'"
                )
            skipped = tuple(f"image {i}: a NaN or infinity" for i in places)
            x, y = x[~bad], None if y is None else y[~bad]
            if len(x) == 0:
                raise ValueError(f"{source}: every image has a NaN or infinity")
        x = _rescale(x, value_range, source)
    names = class_names
    if y is not None and not names:
        names = tuple(str(i) for i in range(int(y.max()) + 1))
    return DataSet(x, y, names if y is not None else (), source=source, skipped=skipped)


def read_arrays(
    path: str | Path,
    *,
    split: str = "train",
    layout: str | None = None,
    value_range: tuple[float, float] | None = None,
    on_error: str = "refuse",
) -> DataSet:
    """Read images from a ``.npy`` or ``.npz`` file.

    In a ``.npz`` the arrays are found by name: ``images``, ``x``, ``data`` with ``labels``, ``y``, ``target``, or the
    same with a split, as ``train_images`` or ``x_test``; an optional ``class_names`` names the classes.

    Args:
        path: the file.
        split: ``"train"``, ``"test"`` or ``"all"``; a file without splits is all training data.
        layout: see `to_nchw`.
        value_range: see `from_arrays`.
        on_error: see `from_arrays`.

    Raises:
        ValueError: not a numpy file, pickled objects inside, or no array with a known name.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            if split == "test":
                raise ValueError(f"{path} has no test split; use split='train', or DataSet.split for one of your own")
            arrays = {"images": stored}
        else:
            with stored:
                arrays = _choose(stored, split, path)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be read as a numpy file: {error}") from None
    except ValueError as error:
        if "pickle" in str(error):
            raise ValueError(
                f"{path} is not a plain numpy file (pickled Python objects are never loaded); "
                "save it again as an array of numbers"
            ) from None
        raise
    names = tuple(str(name) for name in arrays.get("class_names", ()))
    labels = arrays.get("labels")
    return from_arrays(
        arrays["images"],
        labels,
        class_names=names if labels is not None else (),
        layout=layout,
        value_range=value_range,
        on_error=on_error,
        source=str(path),
    )


def _choose(stored: "np.lib.npyio.NpzFile", split: str, path: Path) -> dict[str, NDArray[np.generic]]:
    """Find images, labels and class names for one split among the arrays of a ``.npz``."""

    def first(names: tuple[str, ...]) -> NDArray[np.generic] | None:
        return next((stored[name] for name in names if name in stored.files), None)

    found: dict[str, NDArray[np.generic] | None] = {"images": first(_IMAGES["all"]), "labels": first(_LABELS["all"])}
    if found["images"] is not None and split == "test":
        raise ValueError(f"{path} has no test split; use split='train', or DataSet.split for one of your own")
    if found["images"] is None:
        parts = [(first(_IMAGES[s]), first(_LABELS[s])) for s in (("train", "test") if split == "all" else (split,))]
        images = [part[0] for part in parts if part[0] is not None]
        labels = [part[1] for part in parts if part[1] is not None]
        if images:
            found["images"] = np.concatenate(images)
            found["labels"] = np.concatenate(labels) if len(labels) == len(images) else None
    if found["images"] is None:
        if len(stored.files) != 1:
            raise ValueError(
                f"{path} holds {', '.join(stored.files) or 'nothing'}; none of these is a name for {split} images: "
                "call the array 'images' (and 'labels')"
            )
        found["images"] = stored[stored.files[0]]
    if "class_names" in stored.files:
        found["class_names"] = stored["class_names"]
    return {key: value for key, value in found.items() if value is not None}


def _whole_numbers(labels: NDArray[np.generic], n: int, source: str) -> Tensor:
    """Labels as ``(n,)`` int64 from 0, or a ValueError."""
    labels = labels.squeeze(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (n,):
        raise ValueError(f"{source}: labels of shape {labels.shape} do not fit {n} images; one number each is needed")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{source}: labels are {labels.dtype}; whole numbers from 0 are needed")
    y = torch.from_numpy(labels.astype(np.int64))
    if int(y.min()) < 0:
        raise ValueError(f"{source}: a label is {int(y.min())}; labels count from 0")
    return y


def _rescale(x: Tensor, value_range: tuple[float, float] | None, source: str) -> Tensor:
    """Float images to [-1, 1], from a stated range or from one of the two that cannot be mistaken."""
    low, high = float(x.min()), float(x.max())
    if value_range is None:
        if low >= 0 and high <= 1:
            value_range = (0.0, 1.0)
        elif low >= -1 and high <= 1:
            return x
        else:
            raise ValueError(
                f"{source}: values go from {low:g} to {high:g}, which is neither [0, 1] nor [-1, 1]; "
                "say which values are black and white, for example value_range=(0, 255)"
            )
    bottom, top = value_range
    if not bottom < top:
        raise ValueError(f"value_range={value_range} must be (low, high) with low < high")
    if low < bottom or high > top:
        raise ValueError(f"{source}: values go from {low:g} to {high:g}, outside value_range={value_range}")
    return (x - bottom) * (2 / (top - bottom)) - 1
