"""Is a sample where real images are, and is there a sample where each real image is: precision, recall, density, coverage.

B(z) is the closed ball about z that reaches to its k-th nearest neighbour in its own set, itself not counted.

(1)  precision = share of samples in some B(real);       recall = share of real images in some B(sample)
(2)  density = mean over samples of the number of B(real) they are in, over k
(3)  coverage = share of B(real) with a sample in it; of equal laws, E coverage = 1 - C(M - 1, k) / C(N + M - 1, k) -> 1 - 2^-k

The balls of all random halves are tested in the pass over the distances that tests those of the whole sets.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .estimate import Estimate, halves, of_halves, of_share
from .rows import Rows, centred, checked, smallest, tiles

__all__ = ["density_coverage", "expected_coverage", "precision_recall"]

_METHOD = "random halvings; covers the mean at this N"


def precision_recall(
    samples: Tensor,
    reference: Tensor,
    *,
    k: int = 3,
    halvings: int = 24,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[Estimate, Estimate]:
    """Precision and recall, (1), with intervals.

    Both are defined at their numbers of images, on which they depend a little for equal laws and more for distant ones:
    the interval covers their mean at these numbers. It is Wilson's where all are inside, or none.

    Args:
        samples: ``(N, D)`` features.
        reference: ``(M, D)`` features of real images.
        k: neighbour that a ball reaches to.
        halvings: random halvings for the interval; with 0 there is none, and it is (-inf, inf).
        seed: of the halvings.
        confidence: of the intervals.

    Raises:
        ValueError: too few vectors for ``k``, lengths differ, or a value is not finite.

    Cost: O((N^2 / 2 + N M + M^2 / 2) D) time; memory of a tile of pairs, and of k + 2 ``halvings`` numbers a vector.

    Source: Kynkaanniemi et al. 2019, arXiv 1904.06991, equations (1) and (2).

    >>> x = torch.arange(40.0)[:, None]
    >>> precision, recall = precision_recall(x[:20], x)
    >>> precision.value, recall.value
    (1.0, 0.575)
    """
    x, y = _both(samples, reference, k, halvings)
    of_x, of_y = _sides(x, y, halvings, seed)
    around_x, around_y = _Balls.of(x, k, of_x), _Balls.of(y, k, of_y)
    inside, around = (torch.zeros(halvings + 1, len(z), dtype=torch.int32) for z in (x, y))
    for i, j, squared in _pairs(y, x, around_y.reach, around_x.reach):
        inside.index_add_(1, j, around_y.hold(squared, i, of_x[:, j]))
        around.index_add_(1, i, around_x.hold(squared, j, of_y[:, i]))
    n = min(len(x), len(y))
    return _estimate(inside > 0, of_x, n, confidence, most=1.0), _estimate(around > 0, of_y, n, confidence, most=1.0)


def density_coverage(
    samples: Tensor,
    reference: Tensor,
    *,
    k: int = 5,
    halvings: int = 24,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[Estimate, Estimate]:
    """Density and coverage, (2) and (3), with intervals.

    Density may exceed 1. Coverage of equal laws is `expected_coverage`, below 1: compare it with that.

    Args:
        samples: ``(N, D)`` features.
        reference: ``(M, D)`` features of real images.
        k: neighbour that a ball reaches to.
        halvings: see `precision_recall`.
        seed: of the halvings.
        confidence: of the intervals.

    Raises:
        ValueError: see `precision_recall`.

    Cost: O((N M + M^2 / 2) D) time; memory as `precision_recall`.

    Source: Naeem et al. 2020, arXiv 2002.09797, equations (4) and (5), lemma 2.

    >>> x = torch.arange(40.0)[:, None]
    >>> density, coverage = density_coverage(x[:20], x, k=3)
    >>> density.value > 1, coverage.value
    (True, 0.55)
    """
    x, y = _both(samples, reference, k, halvings)
    of_x, of_y = _sides(x, y, halvings, seed)
    count, filled = _counts(x, y, k, of_x, of_y)
    n = min(len(x), len(y))
    return _estimate(count, of_x, n, confidence, unit=k), _estimate(filled > 0, of_y, n, confidence, most=1.0)


def expected_coverage(samples: int, reference: int, k: int = 5) -> float:
    """The mean coverage of equal laws: the k nearest of N + M - 1 others are not all real, (3).

    Args:
        samples: their number N.
        reference: number M of real images.
        k: neighbour that a ball reaches to.

    Source: Naeem et al. 2020, arXiv 2002.09797, lemma 2.

    >>> round(expected_coverage(100, 100), 5), round(expected_coverage(10**9, 10**9), 5)
    (0.97107, 0.96875)
    """
    ours = math.prod((reference - 1 - i) / (reference + samples - 1 - i) for i in range(k))
    return 1 - ours


@dataclass(frozen=True, eq=False)
class _Balls:
    """Balls about some vectors: row 0 among all of them, row r within each half of halving r.

    Args:
        radii: ``(R + 1, N)`` squared.
        sides: ``(R, N)`` bool, which half a vector is in.
    """

    radii: Tensor
    sides: Tensor

    @classmethod
    def of(cls, x: Rows, k: int, sides: Tensor) -> "_Balls":
        several = min(len(x) - 1, 4 * k + 24 if len(sides) else k)  # fewer than k of these in a half: once in a million
        squared, index = smallest(x, k=several)
        radii = [squared[:, k - 1]]
        for side in sides:
            rank = (side[index] == side[:, None]).cumsum(1)
            radii.append(squared.gather(1, (rank < k).sum(1, keepdim=True).clamp_(max=several - 1))[:, 0])
        return cls(torch.stack(radii), sides)

    @property
    def reach(self) -> Tensor:
        """``(N,)``: beyond it no ball about a vector matters."""
        return self.radii.amax(0)

    def hold(self, squared: Tensor, centre: Tensor, side: Tensor) -> Tensor:
        """Whether the ball of a centre holds a point at a squared distance, of its own half: ``(R + 1, pairs)`` int32.

        Args:
            squared: ``(pairs,)``.
            centre: ``(pairs,)`` int64.
            side: ``(R, pairs)`` bool, which half the point is in.
        """
        inside = squared <= self.radii[:, centre]
        inside[1:] &= self.sides[:, centre] == side
        return inside.int()


def _pairs(y: Rows, x: Rows, reach_y: Tensor, reach_x: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The few pairs within reach of either: which of ``y``, which of ``x``, and their squared distances."""
    for rows, columns, d in tiles(y, x):
        near = d <= reach_y[rows, None]
        if reach_x is not None:
            near |= d <= reach_x[columns]
        for i, j in (few.T for few in near.nonzero().split(1 << 14)):
            yield i + rows.start, j + columns.start, d[i, j]


def _counts(x: Rows, y: Rows, k: int, of_x: Tensor, of_y: Tensor) -> tuple[Tensor, Tensor]:
    """``(R + 1, N)``, how many balls about ``y`` hold each of ``x``; and ``(R + 1, M)``, how many of ``x`` each of them holds."""
    balls = _Balls.of(y, k, of_y)
    count, filled = (torch.zeros(len(of_x) + 1, len(z), dtype=torch.int32) for z in (x, y))
    for i, j, squared in _pairs(y, x, balls.reach):
        inside = balls.hold(squared, i, of_x[:, j])
        count.index_add_(1, j, inside)
        filled.index_add_(1, i, inside)
    return count, filled


def _both(samples: Tensor, reference: Tensor, k: int, halvings: int) -> tuple[Rows, Rows]:
    if k < 1:
        raise ValueError(f"a ball reaches to the k-th neighbour, k >= 1; got {k}")
    x, y = checked(samples), checked(reference, name="references")
    least = 2 * k + 4 if halvings else k + 1
    if min(len(x), len(y)) < least:
        raise ValueError(f"k = {k} needs at least {least} vectors in each set; got {len(x)} and {len(y)}")
    rows_y, rows_x = centred(y, x)
    return rows_x, rows_y


def _sides(x: Rows, y: Rows, halvings: int, seed: int) -> tuple[Tensor, Tensor]:
    return halves(len(x), halvings, seed=seed, stream=1), halves(len(y), halvings, seed=seed, stream=2)


def _estimate(
    rows: Tensor, sides: Tensor, n: int, confidence: float, *, unit: int = 1, most: float = math.inf
) -> Estimate:
    """The mean of row 0 in units of ``unit``; an interval from the means of the halves in the others."""
    value = float(rows[0].double().mean()) / unit
    if len(sides) == 0:
        return Estimate(value, -math.inf, math.inf, n, "no halvings, no interval", confidence)
    if most == 1 and value in (0, 1):  # no half varies, which does not say that the other kind never comes
        return replace(of_share(value, rows.shape[1], confidence=confidence), n=n)
    parts = torch.stack([(rows[1:] * side).sum(1) / (unit * side.sum(1)) for side in (sides, ~sides)], 1)
    return of_halves(value, parts, n=n, method=_METHOD, unbiased=False, least=0.0, most=most, confidence=confidence)
