"""Features as rows: checks, and pairs of rows in tiles of float64, so that memory grows neither with N^2 nor with a block by N.

(1)  |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, after the mean of one set is taken from both

Rounding of (1) is about 1e-16 of the squared size of the centred features: near-copies are told apart, which float32 cannot.
A tile is BLOCK by BLOCK pairs and fits into a processor's cache, which is also what makes it fast.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "Rows",
    "blocks",
    "centred",
    "checked",
    "finite",
    "nearest",
    "smallest",
    "squared_distances",
    "tiles",
]

BLOCK = 384  # rows at once: a tile takes 1.1 MiB


def finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite: a finite sum says so at once, any other sum makes it look at every value.

    >>> finite(torch.tensor([3e38, 3e38])), finite(torch.tensor([torch.inf, -torch.inf]))
    (True, False)
    """
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def checked(features: Tensor, *, least: int = 2, name: str = "samples") -> Tensor:
    """The features, if they are ``(N, D)``, finite, and at least ``least``.

    Raises:
        ValueError: they are not.

    >>> checked(torch.zeros(3, 2)).shape
    torch.Size([3, 2])
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"features of the {name} must be (N, D); got {tuple(features.shape)}")
    if len(features) < least:
        raise ValueError(f"{len(features)} {name} are too few; give at least {least}")
    if not finite(features):
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"features of {bad} of {len(features)} {name} have a NaN or infinity; leave those out")
    return features.detach().cpu()


@dataclass(frozen=True, eq=False)
class Rows:
    """Features less an origin, of which only those asked for are in float64.

    Args:
        features: ``(N, D)``, of any type.
        origin: ``(D,)`` float64, or ``None`` for zero.

    >>> Rows(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0]).double())[1:]
    tensor([[1.]], dtype=torch.float64)
    """

    features: Tensor
    origin: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, part: slice | Tensor) -> Tensor:
        x = self.features[part]
        return x.double() if self.origin is None else x.to(torch.float64, copy=True).sub_(self.origin)

    def subset(self, index: Tensor) -> "Rows":
        """These rows, still as they were given."""
        return Rows(self.features[index], self.origin)


def centred(x: Tensor, *others: Tensor) -> tuple[Rows, ...]:
    """All sets less the mean of the first, so that (1) loses nothing far from zero.

    Raises:
        ValueError: lengths of features differ.

    >>> centred(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]]))[1][:]
    tensor([[3.]], dtype=torch.float64)
    """
    for other in others:
        if other.shape[1:] != x.shape[1:]:
            raise ValueError(f"features have lengths {x.shape[1]} and {other.shape[1]}; both need the same extractor")
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for part in x.split(BLOCK):
        total += part.double().sum(0)
    return tuple(Rows(each, total / len(x)) for each in (x, *others))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``(N, M)`` squared distances, (1), of centred float64 rows.

    >>> squared_distances(torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[3.0, 4.0]]).double())
    tensor([[25.]], dtype=torch.float64)
    """
    return _expanded(x, y, torch.linalg.vecdot(x, x), torch.linalg.vecdot(y, y))


def _expanded(x: Tensor, y: Tensor, norms_x: Tensor, norms_y: Tensor) -> Tensor:
    return (norms_x[:, None] + norms_y).addmm_(x, y.T, alpha=-2).clamp_(min=0)  # (1)


def blocks(n: int, start: int = 0, *, block: int = BLOCK) -> Iterator[slice]:
    """Consecutive parts of ``start`` to ``n``.

    >>> list(blocks(5, block=2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for first in range(start, n, block):
        yield slice(first, min(first + block, n))


def tiles(x: Rows, y: Rows | None = None, *, block: int = BLOCK) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances of all pairs, at most ``block`` by ``block`` at a time.

    Args:
        x: ``(N, D)`` rows.
        y: ``(M, D)`` rows; or ``None`` for ``x`` itself: then the tiles on and above the diagonal, as those below are their
            transposes, and a row's distance to itself is infinite.
        block: rows and columns at once.

    Yields:
        Which rows, which columns, and their ``(rows, columns)`` squared distances, float64.

    >>> x = Rows(torch.tensor([[0.0], [2.0], [5.0]]))
    >>> [(rows.start, columns.start, d.tolist()) for rows, columns, d in tiles(x, block=2)]
    [(0, 0, [[inf, 4.0], [4.0, inf]]), (0, 2, [[25.0], [9.0]]), (2, 2, [[inf]])]
    """
    other = x if y is None else y
    norms = torch.cat([torch.linalg.vecdot(z, z) for z in (other[part] for part in blocks(len(other)))])
    for rows in blocks(len(x), block=block):
        here = x[rows]
        own = torch.linalg.vecdot(here, here)
        for columns in blocks(len(other), rows.start if y is None else 0, block=block):
            d = _expanded(here, other[columns], own, norms[columns])
            if y is None and columns == rows:
                d.diagonal().fill_(torch.inf)
            yield rows, columns, d


def nearest(x: Tensor, y: Tensor | None, k: int = 1, *, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest of ``y`` for each of ``x``.

    Args:
        x: ``(N, D)`` features.
        y: ``(M, D)`` features, or ``None`` for the others of ``x``.
        k: how many, below the number there are.
        block: rows and columns at once.

    Returns:
        Distances and indices into ``y``, each ``(N, k)``, nearest first.

    Raises:
        ValueError: ``k`` is below 1 or not below the number of rows, or features are not fit for it.

    Cost: O(N M D) time, half of it where ``y`` is ``None``; memory of what is returned.

    >>> distance, index = nearest(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [4.5]]))
    >>> index[:, 0].tolist(), distance[:, 0].tolist()
    ([0, 1], [1.0, 0.5])
    """
    sets = [checked(x, least=1)] + ([] if y is None else [checked(y, least=1, name="references")])
    others = len(sets[-1]) - (y is None)
    if not 1 <= k <= others:
        raise ValueError(f"the {k} nearest of {len(sets[-1])} do not exist; take k from 1 to {others}")
    squared, index = smallest(*reversed(centred(*reversed(sets))), k=k, block=block)
    return squared.sqrt(), index


def smallest(x: Rows, y: Rows | None = None, *, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest squared distances of each of ``x`` to ``y`` (or to the others of ``x``) in order, and where they are.

    >>> smallest(Rows(torch.tensor([[0.0], [2.0], [5.0]])), k=1)[0].T
    tensor([[4., 4., 9.]], dtype=torch.float64)
    """
    squared = torch.full((len(x), k), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(x), k, dtype=torch.int64)

    def merge(rows: slice, d: Tensor, start: int) -> None:
        better = (d.amin(1) < squared[rows, -1]).nonzero()[:, 0]  # fewer and fewer rows
        at = better + rows.start
        found = torch.cat([squared[at], d[better]], 1).topk(k, largest=False)
        known = index[at].gather(1, found.indices.clamp(max=k - 1))
        squared[at], index[at] = found.values, torch.where(found.indices < k, known, found.indices + (start - k))

    for rows, columns, d in tiles(x, y, block=block):
        merge(rows, d, columns.start)
        if y is None and columns != rows:
            merge(columns, d.T, rows.start)
    return squared, index
