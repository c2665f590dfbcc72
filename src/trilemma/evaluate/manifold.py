"""Is a sample where real images are, and is there a sample where each real image is: precision, recall, density, coverage.

B(z) is the closed ball about z that reaches to its k-th nearest neighbour in its own set, itself not counted.

(1)  precision = share of samples in some B(real);       recall = share of real images in some B(sample)
(2)  density = mean over samples of the number of B(real) they are in, over k
(3)  coverage = share of B(real) with a sample in it; of equal laws, E coverage = 1 - C(M - 1, k) / C(N + M - 1, k) -> 1 - 2^-k

The balls of all random halves are tested in one pass over the distances, so that intervals cost little more than values.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .estimate import Estimate, halves, of_halves, of_share
from .rows import centred, checked, gaps

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

    Cost: O((N + M)^2 D) time; memory O(N + M) for each halving.

    Source: Kynkaanniemi et al. 2019, arXiv 1904.06991, equations (1) and (2).

    >>> x = torch.arange(40.0)[:, None]
    >>> precision, recall = precision_recall(x[:20], x)
    >>> precision.value, recall.value
    (1.0, 0.575)
    """
    x, y = _both(samples, reference, k, halvings)
    sides = _sides(x, y, halvings, seed)
    inside = _balls(y, x, k, sides[1], sides[0]).held
    around = _balls(x, y, k, sides[0], sides[1]).held
    return (
        _estimate(inside.double(), sides[0], min(len(x), len(y)), confidence, most=1.0),
        _estimate(around.double(), sides[1], min(len(x), len(y)), confidence, most=1.0),
    )


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

    Cost: see `precision_recall`.

    Source: Naeem et al. 2020, arXiv 2002.09797, equations (4) and (5), lemma 2.

    >>> x = torch.arange(40.0)[:, None]
    >>> density, coverage = density_coverage(x[:20], x, k=3)
    >>> density.value > 1, coverage.value
    (True, 0.55)
    """
    x, y = _both(samples, reference, k, halvings)
    sides = _sides(x, y, halvings, seed)
    balls = _balls(y, x, k, sides[1], sides[0])
    n = min(len(x), len(y))
    return (
        _estimate(balls.count / k, sides[0], n, confidence),
        _estimate(balls.filled.double(), sides[1], n, confidence, most=1.0),
    )


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
    """Row 0 for all items, row r for the halves of halving r, each within itself.

    Args:
        held: ``(R + 1, points)``, whether a point is in some ball.
        count: ``(R + 1, points)``, in how many.
        filled: ``(R + 1, centres)``, whether a point is in this ball.
    """

    held: Tensor
    count: Tensor
    filled: Tensor


def _both(samples: Tensor, reference: Tensor, k: int, halvings: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"a ball reaches to the k-th neighbour, k >= 1; got {k}")
    x, y = checked(samples), checked(reference, name="references")
    least = 2 * k + 4 if halvings else k + 1
    if min(len(x), len(y)) < least:
        raise ValueError(f"k = {k} needs at least {least} vectors in each set; got {len(x)} and {len(y)}")
    y, x = centred(y, x)
    return x, y


def _sides(x: Tensor, y: Tensor, halvings: int, seed: int) -> tuple[Tensor, Tensor]:
    return halves(len(x), halvings, seed=seed, stream=1), halves(len(y), halvings, seed=seed, stream=2)


def _squared_radii(x: Tensor, k: int, sides: Tensor) -> Tensor:
    """``(R + 1, N)``: to the k-th neighbour among all, and among those of the same half."""
    several = min(
        len(x) - 1, 4 * k + 24 if len(sides) else k
    )  # fewer than k of these in a half: about once in a million
    found = []
    for part, d in gaps(x):
        values, index = d.topk(several, largest=False)
        radii = [values[:, k - 1]]
        for side in sides:
            rank = (side[index] == side[part][:, None]).cumsum(1)
            radii.append(values.gather(1, (rank < k).sum(1, keepdim=True).clamp_(max=several - 1))[:, 0])
        found.append(torch.stack(radii))
    return torch.cat(found, 1)


def _balls(centres: Tensor, points: Tensor, k: int, of_centres: Tensor, of_points: Tensor) -> _Balls:
    radii = _squared_radii(centres, k, of_centres)
    widest = radii.max(0).values
    count = torch.zeros(len(radii), len(points), dtype=torch.float64)
    within = torch.zeros(len(radii), len(centres), dtype=torch.float64)
    for part, d in gaps(centres, points):
        near = (d <= widest[part, None]).nonzero()  # the few pairs that matter to any halving
        for row, column in (few.T for few in near.split(1 << 16)):
            centre = row + part.start
            inside = d[row, column] <= radii[:, centre]
            inside[1:] &= of_centres[:, centre] == of_points[:, column]
            count.index_add_(1, column, inside.double())
            within.index_add_(1, centre, inside.double())
    return _Balls(count > 0, count, within > 0)


def _estimate(rows: Tensor, sides: Tensor, n: int, confidence: float, most: float = math.inf) -> Estimate:
    """The mean of row 0; an interval from the means of the halves in the others."""
    value = float(rows[0].mean())
    if len(sides) == 0:
        return Estimate(value, -math.inf, math.inf, n, "no halvings, no interval", confidence)
    if most == 1 and value in (0, 1):  # no half varies, which does not say that the other kind never comes
        return replace(of_share(value, rows.shape[1], confidence=confidence), n=n)
    halved = rows[1:]
    parts = torch.stack([(halved * side).sum(1) / side.sum(1) for side in (sides, ~sides)], 1)
    return of_halves(value, parts, n=n, method=_METHOD, unbiased=False, least=0.0, most=most, confidence=confidence)
