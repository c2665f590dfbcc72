"""Real handwritten digits that come with scikit-learn: nothing to download."""

import torch

from .._optional import require
from .dataset import DataSet

__all__ = ["digits"]

HELD_OUT = 297  # leaves 1500 to train on
SPLIT_SEED = 0


def digits(split: str = "train") -> DataSet:
    """Read the 1797 grey 8x8 digits of scikit-learn.

    A value counts the inked pixels in a 4x4 block of the original bitmap, 0 to 16, and is mapped to [-1, 1].

    Args:
        split: ``"train"`` (1500), ``"test"`` (297) or ``"all"``; fixed, with the same share of every class.

    Returns:
        Images ``(N, 1, 8, 8)`` float32 in [-1, 1]; ten classes.

    Raises:
        ImportError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test set.

    >>> print(digits("test"))
    digits (test): 297 grey images of 8x8, 10 classes
    """
    raw = require("sklearn.datasets", extra="data").load_digits()
    images = torch.from_numpy(raw.images).float().div_(8).sub_(1)[:, None]
    labels = torch.from_numpy(raw.target).long()
    whole = DataSet(images, labels, tuple("0123456789"), source="digits")
    if split == "all":
        return whole
    train, test = whole.split(HELD_OUT, seed=SPLIT_SEED)
    part = train if split == "train" else test
    return DataSet(part.images, part.labels, part.class_names, source=f"digits ({split})")
