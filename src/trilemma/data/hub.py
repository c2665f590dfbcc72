"""Images from Hugging Face `datasets`, where that package is installed."""

from typing import Any

import numpy as np
import torch

from .._optional import require
from .dataset import DataSet
from .folder import decode

__all__ = ["read_hub"]


def read_hub(
    name: str,
    *,
    split: str = "train",
    resize: int | None = None,
    channels: int | None = None,
    on_error: str = "refuse",
) -> DataSet:
    """Read a data set with an image column through `datasets`.

    The first column of type ``Image`` gives the images, the first of type ``ClassLabel`` the labels.

    Args:
        name: what ``datasets.load_dataset`` takes, with an optional configuration after a colon: ``"ylecun/mnist"``.
        split: ``"train"``, ``"test"`` or ``"all"`` (train and test).
        resize: see `trilemma.data.folder.read_folder`.
        channels: see `trilemma.data.folder.read_folder`; by default as in the first image.
        on_error: ``"refuse"`` or ``"skip"`` images that cannot be decoded or whose size differs from the first.

    Raises:
        ValueError: no image column, or an image to refuse.
        ImportError: `datasets` is not installed.
    """
    datasets = require("datasets", extra="datasets")
    repository, _, config = name.partition(":")
    table = datasets.load_dataset(repository, config or None, split="train+test" if split == "all" else split)
    kinds = {column: type(feature).__name__ for column, feature in table.features.items()}
    image_column = next((column for column, kind in kinds.items() if kind == "Image"), None)
    label_column = next((column for column, kind in kinds.items() if kind == "ClassLabel"), None)
    if image_column is None:
        raise ValueError(f"hf:{name} has no image column, only {kinds}")

    pictures: list[Any] = []
    labels: list[int] = []
    skipped: list[str] = []
    for i in range(len(table)):
        try:
            row = table[i]
            pixels = decode(row[image_column], resize=resize, channels=channels)
        except Exception as error:  # whatever a decoder raises, this row cannot be used
            why = f"it cannot be read ({error})"
        else:
            channels = pixels.shape[2] if channels is None else channels
            if not pictures or pixels.shape == pictures[0].shape:
                pictures.append(pixels)
                labels.append(row[label_column] if label_column else 0)
                continue
            why = f"it is {pixels.shape} where the first is {pictures[0].shape}; resize=... makes them alike"
        if on_error == "refuse":
            raise ValueError(f"hf:{name}, row {i}: {why}; or leave such rows out with on_error='skip'")
        skipped.append(f"row {i}: {why}")
    if len(pictures) < 2:
        raise ValueError(f"hf:{name} has {len(pictures)} usable images in split {split!r}; at least two are needed")
    images = torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())
    names = tuple(table.features[label_column].names) if label_column else ()
    return DataSet(
        images, torch.tensor(labels) if names else None, names, source=f"hf:{name} ({split})", skipped=tuple(skipped)
    )
