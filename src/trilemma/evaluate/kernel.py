"""Kernel distances between two sets of features: KID, CMMD, any Gaussian kernel, and the energy distance.

(1)  MMD^2 = E k(x, x') - 2 E k(x, y) + E k(y, y'), unbiased without the diagonals:
     sum_(i != j) k(x_i, x_j) / (n (n - 1)) - 2 sum k(x_i, y_j) / (n m) + sum_(i != j) k(y_i, y_j) / (m (m - 1))
(2)  cubic k(x, y) = (x.y / D + 1)^3;   Gaussian k = exp(-|x - y|^2 / 2 s^2);   energy k = -|x - y|
(3)  influence of x_i: a_i = 2 (mean_(j != i) k(x_i, x_j) - mean_j k(x_i, y_j)), less its mean; b_j likewise
(4)  second-order part: Q = 2 h_xx / n^2 + 2 h_yy / m^2 + 4 h_xy / (n m), with h the mean square of k less its row and column
     means; sum a_i^2 / n^2 + sum b_j^2 / m^2 has twice this part in it
(5)  variance = sum a_i^2 / n^2 + sum b_j^2 / m^2 - Q, which is Q for equal laws, where (3) vanishes at large N
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from .estimate import Estimate, of_variance
from .rows import Rows, blocks, centred, checked, squared_distances

__all__ = [
    "clip_distance",
    "cubic",
    "energy",
    "gaussian",
    "kernel_distance",
    "kernel_distance_subsets",
    "median_bandwidth",
]

Kernel = Callable[[Tensor, Tensor], Tensor]


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """The kernel of KID, (2), of all pairs of rows.

    >>> cubic(torch.ones(1, 4), torch.ones(1, 4))
    tensor([[8.]])
    """
    return torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1]).pow_(3)


def gaussian(bandwidth: float) -> Kernel:
    """The Gaussian kernel of standard deviation ``bandwidth``, (2).

    >>> round(float(gaussian(1.0)(torch.zeros(1, 1), torch.ones(1, 1))), 4)
    0.6065
    """
    if not bandwidth > 0:
        raise ValueError(f"a kernel of bandwidth {bandwidth} sees nothing; give a positive one")
    return lambda x, y: squared_distances(x, y).mul_(-0.5 / bandwidth**2).exp_()


def energy(x: Tensor, y: Tensor) -> Tensor:
    """Minus the distance, (2); with it (1) is the energy distance 2 E|x - y| - E|x - x'| - E|y - y'|.

    Source: Szekely and Rizzo 2013, J. Stat. Plan. Inference 143, 1249; Sejdinovic et al. 2013, arXiv 1207.6076.

    >>> energy(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([[-5.]])
    """
    return squared_distances(x, y).sqrt_().neg_()


def median_bandwidth(features: Tensor, *, most: int = 2000) -> float:
    """The median distance between two vectors, a usual bandwidth; of the first ``most``.

    Take it from the reference and keep it: it is part of the protocol.

    Raises:
        ValueError: half of all pairs or more are equal.

    >>> median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]))
    2.0
    """
    x = centred(checked(features[:most]))[0][:]
    distances = squared_distances(x, x)
    above = torch.triu_indices(len(x), len(x), 1)
    median = float(distances[above[0], above[1]].median().sqrt())
    if median == 0:
        raise ValueError("at least half of all pairs of features are equal; a median bandwidth is not defined")
    return median


def kernel_distance(
    samples: Tensor,
    reference: Tensor,
    kernel: Kernel = cubic,
    *,
    size: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """The squared maximum mean discrepancy, (1), unbiased, with its interval; KID with the cubic kernel.

    All pairs are used up to ``size`` vectors a set. Larger sets are cut into random parts of at most ``size``, whose
    distances are averaged: still unbiased, and the cost grows with N only.

    Args:
        samples: ``(N, D)`` features.
        reference: ``(M, D)`` features.
        kernel: of all pairs of rows, ``(n, D), (m, D) -> (n, m)``.
        size: most vectors of one part.
        seed: of the parts.
        confidence: of the interval, which is that of the value at large N.

    Returns:
        The distance; for equal laws it is below 0 as often as above.

    Raises:
        ValueError: fewer than four vectors in a set, lengths differ, or a value is not finite.

    Cost: O((N + M)^2 D), at most O((N + M) ``size`` D); memory of a tile of pairs and of a few numbers a vector.

    Source: Gretton et al. 2012, JMLR 13, 723, lemma 6; Binkowski et al. 2018, arXiv 1801.01401; (5): Sutherland et al.
    2017, arXiv 1611.04488, appendix A.

    >>> z = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)).split(200)
    >>> kid = kernel_distance(*z)
    >>> kid.low < 0 < kid.high
    True
    """
    sums = _parts(samples, reference, kernel, size, seed)
    value = sum(part.unbiased for part in sums) / len(sums)
    variance = sum(part.variance for part in sums) / len(sums) ** 2
    return of_variance(
        value,
        variance,
        n=min(len(samples), len(reference)),
        method="influences of the U-statistic; covers the value at large N",
        confidence=confidence,
    )


def kernel_distance_subsets(
    samples: Tensor,
    reference: Tensor,
    kernel: Kernel = cubic,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Mean and standard deviation of (1) over random subsets, as KID is published.

    Args:
        samples: ``(N, D)`` features.
        reference: ``(M, D)`` features.
        kernel: see `kernel_distance`.
        subsets: how many pairs of subsets; within one, no vector comes twice.
        size: vectors of a subset.
        seed: of the subsets.

    Raises:
        ValueError: a subset is larger than its set.

    Source: Binkowski et al. 2018, arXiv 1801.01401, section 4; the deviation is that of the subsets, not of their mean.

    >>> z = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)).split(200)
    >>> mean, deviation = kernel_distance_subsets(*z, subsets=5, size=100)
    >>> abs(mean) < deviation
    True
    """
    x, y = _both(samples, reference, kernel)
    if size > min(len(x), len(y)):
        raise ValueError(f"subsets of {size} do not fit into sets of {len(x)} and {len(y)}; give a smaller size")
    draw = torch.Generator().manual_seed(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for s in range(subsets):
        i, j = (torch.randperm(len(z), generator=draw)[:size] for z in (x, y))
        values[s] = _Sums.of(x.subset(i), y.subset(j), kernel).unbiased
    return float(values.mean()), float(values.std(correction=0))


def clip_distance(
    samples: Tensor, reference: Tensor, *, bandwidth: float = 10.0, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """CMMD: 1000 times the biased Gaussian MMD^2 of unit-norm features, CLIP's as published.

    Args:
        samples: ``(N, D)`` features, scaled to unit norm here.
        reference: ``(M, D)`` features.
        bandwidth: of the kernel.
        seed: of the parts of large sets.
        confidence: of the interval, which is that of the value at large N.

    Raises:
        ValueError: see `kernel_distance`.

    Source: Jayasumana et al. 2024, arXiv 2401.09603, section 4 (their code keeps the diagonals of (1)).

    >>> z = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)).split(200)
    >>> clip_distance(*z).low
    0.0
    """
    x, y = (torch.nn.functional.normalize(checked(z, least=4).double()) for z in (samples, reference))
    sums = _parts(x, y, gaussian(bandwidth), 10_000, seed)
    value, centre = (sum(s) / len(sums) for s in ([p.biased for p in sums], [p.unbiased for p in sums]))
    variance = sum(part.variance for part in sums) / len(sums) ** 2
    return of_variance(
        1000 * value,
        1e6 * variance,
        centre=1000 * centre,
        n=min(len(samples), len(reference)),
        method="influences of the U-statistic; covers the value at large N",
        least=0.0,
        confidence=confidence,
    )


@dataclass(frozen=True)
class _Sums:
    """The values (1) and variance (5) of one pair of sets."""

    unbiased: float
    biased: float
    variance: float

    @classmethod
    def of(cls, x: Rows, y: Rows, kernel: Kernel) -> "_Sums":
        n, m = len(x), len(y)
        xx, xx2, diagonal_x = _within(x, kernel)
        yy, yy2, diagonal_y = _within(y, kernel)
        row, column, xy2 = _across(x, y, kernel)
        mean_xx, mean_yy, mean_xy = float(xx.mean()), float(yy.mean()), float(row.mean())
        a, b = 2 * (xx - row), 2 * (yy - column)
        linear = float(a.var(correction=0)) / n + float(b.var(correction=0)) / m  # (3)
        h_xx = xx2 - 2 * float(xx.square().mean()) + mean_xx**2
        h_yy = yy2 - 2 * float(yy.square().mean()) + mean_yy**2
        h_xy = xy2 - float(row.square().mean()) - float(column.square().mean()) + mean_xy**2
        second = max(0.0, 2 * h_xx / n**2 + 2 * h_yy / m**2 + 4 * h_xy / (n * m))  # (4)
        unbiased = mean_xx - 2 * mean_xy + mean_yy
        biased = mean_xx * (n - 1) / n + diagonal_x / n - 2 * mean_xy + mean_yy * (m - 1) / m + diagonal_y / m
        return cls(unbiased, biased, max(linear - second, second / 2))


def _both(samples: Tensor, reference: Tensor, kernel: Kernel) -> tuple[Rows, Rows]:
    """Both sets, checked; centred where the kernel does not see it, so that distances lose nothing far from zero."""
    x, y = checked(samples, least=4), checked(reference, least=4, name="references")
    y_centred, x_centred = centred(y, x)
    return (Rows(x), Rows(y)) if kernel is cubic else (x_centred, y_centred)


def _parts(samples: Tensor, reference: Tensor, kernel: Kernel, size: int, seed: int) -> list[_Sums]:
    x, y = _both(samples, reference, kernel)
    count = -(-max(len(x), len(y)) // size)
    if count == 1:
        return [_Sums.of(x, y, kernel)]
    if min(len(x), len(y)) < 4 * count:
        raise ValueError(
            f"sets of {len(x)} and {len(y)} cannot be cut into {count} parts of {size}; give a larger size"
        )
    order = [
        Noise(seed, 1).at(i).uniform((1, len(z)), dtype=torch.float64)[0].argsort().tensor_split(count)
        for i, z in enumerate((x, y))
    ]
    return [_Sums.of(x.subset(i), y.subset(j), kernel) for i, j in zip(*order)]


def _within(x: Rows, kernel: Kernel) -> tuple[Tensor, float, float]:
    """Row means without the diagonal, mean square without it, mean of the diagonal."""
    n = len(x)
    sums, squares, diagonal = torch.zeros(n, dtype=torch.float64), 0.0, 0.0
    for rows in blocks(n):
        here = x[rows]
        for columns in blocks(n, rows.start):  # on and above the diagonal: k is symmetric
            k = kernel(here, here if columns == rows else x[columns])
            if columns == rows:
                diagonal += float(k.diagonal().sum())
                k.diagonal().zero_()
            else:
                sums[columns] += k.sum(0)
            sums[rows] += k.sum(1)
            squares += (1 + (columns != rows)) * float(torch.linalg.vector_norm(k)) ** 2
    return sums / (n - 1), squares / (n * (n - 1)), diagonal / n


def _across(x: Rows, y: Rows, kernel: Kernel) -> tuple[Tensor, Tensor, float]:
    """Row means, column means and mean square."""
    n, m = len(x), len(y)
    row, column, squares = torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64), 0.0
    for rows in blocks(n):
        here = x[rows]
        for columns in blocks(m):
            k = kernel(here, y[columns])
            row[rows] += k.sum(1)
            column[columns] += k.sum(0)
            squares += float(torch.linalg.vector_norm(k)) ** 2
    return row / m, column / n, squares / (n * m)
