"""Which items an update uses, and getting them.

Item ``g = step * batch + position`` of the stream is number ``g mod N`` of the permutation that belongs to (seed, ``g div N``):
every epoch sees every item once, and neither the number of processes nor a restart changes what an update sees.
"""

from collections.abc import Iterator, Sequence, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..numerics.noise import Noise

__all__ = ["Batches", "Data", "Labelled"]


@runtime_checkable
class Labelled(Protocol):
    """Images in memory with labels or ``None``, such as ``trilemma.data.DataSet``."""

    @property
    def images(self) -> Tensor:
        """Items ``(N, ...)``, in model units or uint8."""

    @property
    def labels(self) -> Tensor | None:
        """Classes ``(N,)``, or none."""


Data = Tensor | tuple[Tensor, Tensor | None] | Labelled | Dataset[Any]


class Batches:
    """The stream of training items.

    Args:
        data: items in memory as a tensor ``(N, ...)``, a pair (items, labels), or an object with ``images`` and ``labels``; or
            a map-style ``torch.utils.data.Dataset`` of items or (item, label). Items are float in model units, or uint8
            in [0, 255], which become [-1, 1]. Labels are int64 in ``[0, classes)``.
        seed: decides the order.
        workers: processes that load from a ``Dataset``.

    Raises:
        ValueError: no items, items that are not finite, or labels that do not fit.

    >>> batches = Batches(torch.arange(5.0), seed=0)
    >>> sorted(batches.indices(5, 10).tolist())                             # the second epoch
    [0, 1, 2, 3, 4]
    """

    def __init__(self, data: Data, *, seed: int, workers: int = 0) -> None:
        self._orders: dict[int, Tensor] = {}
        self._seed, self._workers = seed, workers
        self._dataset: Dataset[Any] | None = None
        self.items: Tensor | None = None
        self.labels: Tensor | None = None
        if isinstance(data, Tensor):
            self.items = data
        elif isinstance(data, tuple):
            self.items, self.labels = data
        elif isinstance(data, Labelled):
            self.items, self.labels = data.images, data.labels
        elif isinstance(data, Sized) and hasattr(data, "__getitem__"):
            self._dataset = data
        else:
            raise ValueError(
                f"data must be a tensor, (items, labels) or a map-style Dataset, got {type(data).__name__}"
            )
        source = self._dataset if self.items is None else self.items
        assert isinstance(source, Sized)
        self.count = len(source)
        if self.count == 0:
            raise ValueError("there is nothing to train on: the data set is empty")
        if self.items is not None and self.items.is_floating_point() and not self.items.isfinite().all():
            bad = int(
                (~self.items.flatten(1).isfinite().all(1) if self.items.ndim > 1 else ~self.items.isfinite()).sum()
            )
            raise ValueError(f"{bad} of {self.count} training items hold nan or infinity; remove them")
        if self.labels is not None and (self.labels.shape != (self.count,) or self.labels.dtype != torch.int64):
            raise ValueError(
                f"labels must be int64 of shape ({self.count},), got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            keys = Noise(self._seed, self.count).at(epoch).uniform((self.count,), dtype=torch.float64)
            self._orders[epoch] = keys.argsort(stable=True)
        return self._orders[epoch]

    def indices(self, start: int, stop: int) -> Tensor:
        """The numbers of the items at the positions ``start`` to ``stop - 1`` of the stream."""
        parts = []
        while start < stop:
            epoch, at = divmod(start, self.count)
            take = min(stop - start, self.count - at)
            parts.append(self._order(epoch)[at : at + take])
            start += take
        return torch.cat(parts)

    def stream(self, spans: Iterator[tuple[int, int]], device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Items and labels of one span of positions after the other.

        Args:
            spans: (start, stop) positions.
            device: where the items are wanted.
        """
        wanted = (self.indices(start, stop) for start, stop in spans)
        batches: Iterator[Any]
        if self._dataset is None:
            assert self.items is not None
            batches = (self._pick(self.items, self.labels, index) for index in wanted)
        else:
            sampler: Any = (
                index.tolist() for index in wanted
            )  # an endless list of batches is what DataLoader iterates over
            own = torch.Generator().manual_seed(self._seed)
            batches = iter(DataLoader(self._dataset, batch_sampler=sampler, num_workers=self._workers, generator=own))
        for batch in batches:
            x, label = batch if isinstance(batch, Sequence) else (batch, None)
            x = x.to(device, non_blocking=True)
            x = x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x.float()
            yield x, None if label is None else label.to(device, non_blocking=True)

    @staticmethod
    def _pick(items: Tensor, labels: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor | None]:
        index = index.to(items.device)
        return items[index], None if labels is None else labels[index.to(labels.device)]
