"""A set of images with optional labels, as every source of this package returns it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["DataSet"]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images in one tensor, their labels, and where they came from.

    Args:
        images: ``(N, C, H, W)``; uint8 in [0, 255], or float32 in [-1, 1].
        labels: ``(N,)`` int64 in ``[0, classes)``, or ``None``.
        class_names: one name a class; empty exactly when ``labels`` is ``None``.
        source: what was read, for people.
        skipped: one line for each item that was left out, with the reason.

    Raises:
        ValueError: the parts do not fit together.

    >>> data = DataSet(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1), source="two pixels")
    >>> data.model_units().flatten()
    tensor([-1.,  1.])
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    source: str = ""
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise ValueError(
                f"images must be (N, C, H, W), uint8 or float32; got {tuple(self.images.shape)}, {self.images.dtype}"
            )
        if (self.labels is None) != (not self.class_names):
            raise ValueError("labels and class_names come together: give both or neither")
        if self.labels is not None:
            if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
                raise ValueError(
                    f"labels must be ({len(self.images)},) int64; got {tuple(self.labels.shape)}, {self.labels.dtype}"
                )
            if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes:
                low, high = int(self.labels.min()), int(self.labels.max())
                raise ValueError(
                    f"labels must lie in [0, {self.classes}) for {self.classes} class names; got {low} to {high}"
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def classes(self) -> int:
        """The number of classes; 0 without labels."""
        return len(self.class_names)

    def __str__(self) -> str:
        channels, height, width = self.shape
        kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
        classes = f", {self.classes} classes" if self.classes else ""
        skipped = f" ({len(self.skipped)} skipped)" if self.skipped else ""
        return f"{self.source}: {len(self)} {kind} images of {height}x{width}{classes}{skipped}"

    def model_units(self, index: slice | Tensor | Sequence[int] | None = None) -> Tensor:
        """The images, or those at ``index``, as float32 in [-1, 1].

        Args:
            index: anything that indexes the first axis; all images by default.

        Returns:
            ``(n, C, H, W)`` float32; a view where nothing had to be converted.
        """
        images = self.images if index is None else self.images[index]
        return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images

    def subset(self, index: slice | Tensor | Sequence[int]) -> "DataSet":
        """The same set, reduced to the items at ``index``."""
        labels = None if self.labels is None else self.labels[index]
        return replace(self, images=self.images[index], labels=labels, skipped=())

    def split(self, held_out: int | float, *, seed: int = 0) -> tuple["DataSet", "DataSet"]:
        """Divide at random into a part to train on and a part to test on, each with the same share of every class.

        Args:
            held_out: size of the second part, as a count or as a share in (0, 1).
            seed: same seed, same division.

        Returns:
            Two sets, both in the order of this one.

        Raises:
            ValueError: one part would be empty.

        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> data = DataSet(torch.zeros(8, 1, 2, 2), labels, ("a", "b"))
        >>> [part.labels.tolist() for part in data.split(0.5)]
        [[0, 0, 1, 1], [0, 0, 1, 1]]
        """
        count = round(held_out * len(self)) if isinstance(held_out, float) else held_out
        if not 0 < count < len(self):
            raise ValueError(f"held_out={held_out} leaves nothing on one side of {len(self)} images")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        if self.labels is not None:
            # Walk through all classes at once, each at its own pace: every prefix of the walk has them in proportion.
            labels = self.labels[order]
            rank = torch.zeros(len(self), dtype=torch.float64)
            for label in labels.unique():
                members = labels == label
                n = int(members.sum())
                rank[members] = (torch.arange(n, dtype=torch.float64) + 0.5) / n
            order = order[torch.argsort(rank, stable=True)]
        test = torch.zeros(len(self), dtype=torch.bool)
        test[order[:count]] = True
        return self.subset((~test).nonzero().flatten()), self.subset(test.nonzero().flatten())
