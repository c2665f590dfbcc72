"""How often a sample is what was asked for, with an interval.

(1)  Wilson's interval for k of n at z standard deviations, p = k/n:
     (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)
"""

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Proportion", "class_agreement"]


@dataclass(frozen=True)
class Proportion:
    """``count`` of ``n``.

    >>> Proportion(9, 10).value
    0.9
    """

    count: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.n or self.n == 0:
            raise ValueError(f"{self.count} of {self.n} is not a proportion")

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.count / self.n

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Where the true share lies, by (1); 95 % at the default ``z``.

        Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.
        """
        p, n = self.value, self.n
        centre = p + z**2 / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        scale = 1 + z**2 / n
        return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def class_agreement(predictions: Tensor, asked: Tensor) -> Proportion:
    """The share of samples that a classifier takes for the class that was asked for.

    Read it beside the same figure for real held-out images, which is the classifier's accuracy.

    Args:
        predictions: ``(N,)`` int64, the classifier's choice for each sample.
        asked: ``(N,)`` int64, the label each sample was made with.

    Raises:
        ValueError: lengths differ or are 0.

    >>> import torch
    >>> class_agreement(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1])).count
    2
    """
    if predictions.shape != asked.shape or predictions.ndim != 1 or len(asked) == 0:
        raise ValueError(f"need two (N,) tensors, N >= 1; got {tuple(predictions.shape)} and {tuple(asked.shape)}")
    return Proportion(int((predictions.cpu() == asked.cpu()).sum()), len(asked))
