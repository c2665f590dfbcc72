"""Features as rows: checks, and pairs of rows in blocks of float64, so that memory does not grow with N^2.

(1)  |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, after the mean of one set is taken from both

Rounding of (1) is about 1e-16 of the squared size of the centred features: near-copies are told apart, which float32 cannot.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["BLOCK", "centred", "checked", "gaps", "nearest", "squared_distances"]

BLOCK = 1024  # rows at once


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
    if not bool(features.isfinite().all()):
        bad = int((~features.isfinite()).any(1).sum())
        raise ValueError(f"features of {bad} of {len(features)} {name} have a NaN or infinity; leave those out")
    return features.detach().cpu()


def centred(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All sets in float64 less the mean of the first, so that (1) loses nothing far from zero.

    Raises:
        ValueError: lengths of features differ.

    >>> centred(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]]))[1]
    tensor([[3.]], dtype=torch.float64)
    """
    for other in others:
        if other.shape[1:] != x.shape[1:]:
            raise ValueError(f"features have lengths {x.shape[1]} and {other.shape[1]}; both need the same extractor")
    mean = x.double().mean(0)
    return tuple(each.double() - mean for each in (x, *others))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``(N, M)`` squared distances, (1), of centred float64 rows.

    >>> squared_distances(torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[3.0, 4.0]]).double())
    tensor([[25.]], dtype=torch.float64)
    """
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2).clamp_(min=0)


def gaps(x: Tensor, y: Tensor | None = None, *, block: int = BLOCK) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of ``x`` to all of ``y``, ``block`` rows of ``x`` at a time.

    Args:
        x: ``(N, D)`` rows, float64 and centred.
        y: ``(M, D)`` rows, or ``None`` for ``x`` itself, where a row's distance to itself is infinite.
        block: rows at once.

    Yields:
        Which rows, and their ``(rows, M)`` squared distances.

    >>> x = torch.tensor([[0.0], [2.0]]).double()
    >>> [d.tolist() for _, d in gaps(x)]
    [[[inf, 4.0], [4.0, inf]]]
    """
    for start in range(0, len(x), block):
        part = slice(start, min(start + block, len(x)))
        distances = squared_distances(x[part], x if y is None else y)
        if y is None:
            distances.diagonal(start).fill_(torch.inf)
        yield part, distances


def nearest(x: Tensor, y: Tensor | None, k: int = 1, *, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The ``k`` nearest of ``y`` for each of ``x``.

    Args:
        x: ``(N, D)`` features.
        y: ``(M, D)`` features, or ``None`` for the others of ``x``.
        k: how many, below the number there are.
        block: rows at once.

    Returns:
        Distances and indices into ``y``, each ``(N, k)``, nearest first.

    Raises:
        ValueError: ``k`` is below 1 or not below the number of rows, or features are not fit for it.

    Cost: O(N M D) time, O(block M) memory.

    >>> distance, index = nearest(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [4.5]]))
    >>> index[:, 0].tolist(), distance[:, 0].tolist()
    ([0, 1], [1.0, 0.5])
    """
    sets = [checked(x, least=1)] + ([] if y is None else [checked(y, least=1, name="references")])
    others = len(sets[-1]) - (y is None)
    if not 1 <= k <= others:
        raise ValueError(f"the {k} nearest of {len(sets[-1])} do not exist; take k from 1 to {others}")
    found = [d.topk(k, largest=False) for _, d in gaps(*reversed(centred(*reversed(sets))), block=block)]
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])
