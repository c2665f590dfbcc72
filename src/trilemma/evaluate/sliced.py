"""The sliced Wasserstein distance, squared: the mean over directions of the distance between two sorted projections.

(1)  SW^2 = E_u W^2(u.x, u.y), u uniform on the sphere; estimated with L directions
(2)  W^2 = integral over q in [0, 1] of (x(q) - y(q))^2, with x(q), y(q) the quantile functions, which are steps
"""

import torch
from torch import Tensor

from ..numerics.noise import Noise
from .estimate import Estimate, halves, of_halves
from .rows import checked

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(
    samples: Tensor,
    reference: Tensor,
    *,
    directions: int = 256,
    halvings: int = 8,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """The squared sliced 2-Wasserstein distance, (1), exact for each direction.

    Args:
        samples: ``(N, D)`` features.
        reference: ``(M, D)`` features.
        directions: number L of random projections, the same for the same seed and D.
        halvings: random halvings for bias and interval.
        seed: of directions and halvings.
        confidence: of the interval, which is that of the value at large N and over all directions.

    Returns:
        The squared distance in squared units of the features; from few samples it is too large.

    Raises:
        ValueError: fewer than eight vectors, lengths differ, or a value is not finite.

    Cost: O((N + M) L (D + log N + ``halvings``)) time, O(N + M) memory.

    Source: Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22, equation (5).

    >>> x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    >>> round(sliced_wasserstein(x + torch.tensor([2.0, 0.0]), x).value)        # |shift|^2 / D
    2
    """
    x, y = checked(samples, least=8), checked(reference, least=8, name="references")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features have lengths {x.shape[1]} and {y.shape[1]}; both need the same extractor")
    u = torch.nn.functional.normalize(
        Noise(seed, directions).at(0).normal((directions, x.shape[1]), dtype=torch.float64)
    )
    first, second = (halves(len(z), halvings, seed=seed, stream=i) for i, z in ((1, x), (2, y)))
    whole, parts = [], []
    for few in u.split(32):
        (xs, i), (ys, j) = ((z.double() @ few.T).T.sort(1) for z in (x, y))
        whole.append(_wasserstein(xs, ys))
        parts.append(
            torch.stack(
                [
                    torch.stack([_wasserstein(_kept(xs, a[i] == side), _kept(ys, b[j] == side)) for side in (1, 0)])
                    for a, b in zip(first, second)
                ]
            )
        )
    each, split = torch.cat(whole), torch.cat(parts, 2)  # (L,), (R, 2, L)
    unbiased = 2 * each - split.mean((0, 1))
    return of_halves(
        float(each.mean()),
        split.mean(2),
        n=min(len(x), len(y)),
        method="random halvings; covers the value at large N",
        unbiased=True,
        least=0.0,
        confidence=confidence,
        extra=float(unbiased.var()) / directions,
    )


def _kept(sorted_rows: Tensor, mask: Tensor) -> Tensor:
    """The items of each row that are in a half, still sorted: every row has equally many."""
    return sorted_rows[mask].view(len(sorted_rows), -1)


def _wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """(2) for each row of sorted ``(L, n)`` and ``(L, m)``."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (x - y).square().mean(1)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # in units of 1/(n m)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    i, j = starts // m, starts // n
    return (x[:, i] - y[:, j]).square() @ (ends - starts).double() / (n * m)
