"""Mean and covariance of features, gathered block by block in float64 and merged across processes.

(1)  with n, m, S of one part (S = sum of (x - m)(x - m)^T) and n', m', S' of another, d = m' - m, N = n + n':
     m <- m + d n'/N,    S <- S + S' + d d^T n n'/N
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import finite

__all__ = ["Moments"]

_ROWS, _COLUMNS = 512, 128  # of a product at once, at least, in float64: they stay in a processor's cache


@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and scatter of vectors; a value, so that parts add: ``Moments.of(a) + Moments.of(b)``.

    Args:
        n: number of vectors.
        mean: ``(D,)`` float64.
        scatter: ``(D, D)`` float64, the sum of ``(x - mean)(x - mean)^T``.

    >>> x = torch.tensor([[0.0], [2.0], [4.0]])
    >>> both = Moments.of(x[:1]) + Moments.of(x[1:])
    >>> both.n, both.mean.item(), both.covariance.item()
    (3, 2.0, 4.0)
    """

    n: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of ``(N, D)`` features.

        Raises:
            ValueError: not two axes, no row, or a value that is not finite.

        Cost: O(N D^2) time, of which the half above the diagonal is computed; memory O(D^2), whatever N.
        """
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"features must be (N, D) with N >= 1; got {tuple(features.shape)}")
        x = features.detach().cpu()
        if not finite(x):
            raise ValueError("features have a NaN or infinity")
        n, dims = x.shape
        width = max(_COLUMNS, dims // 8)
        mean, scatter = torch.zeros(dims, dtype=torch.float64), torch.zeros(dims, dims, dtype=torch.float64)
        for part in x.split(_ROWS):
            mean += part.double().sum(0)
        mean /= n
        for part in x.split(_ROWS):
            z = part.to(torch.float64, copy=True).sub_(mean)
            for start in range(0, dims, width):
                band = slice(start, start + width)
                scatter[band, start:].addmm_(z[:, band].T, z[:, start:])
        for start in range(0, dims, width):  # the other half, in blocks too: a transpose as a whole is slow
            band, rest = slice(start, start + width), slice(start + width, None)
            scatter[band, band] = scatter[band, band].triu() + scatter[band, band].triu(1).T
            scatter[rest, band] = scatter[band, rest].T
        return cls(n, mean, scatter)

    def __add__(self, other: "Moments") -> "Moments":
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features of length {len(self.mean)} and {len(other.mean)} do not add")
        n = self.n + other.n
        d = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(d, d) * (self.n * other.n / n)
        return Moments(n, self.mean + d * (other.n / n), scatter)  # (1)

    @property
    def covariance(self) -> Tensor:
        """``(D, D)``, unbiased.

        Raises:
            ValueError: a single vector has none.
        """
        if self.n < 2:
            raise ValueError("the covariance of a single vector is not defined; give at least two")
        return self.scatter / (self.n - 1)
