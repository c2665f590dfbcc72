"""The Inception Score from a classifier's logits, streaming, with the jackknife.

(1)  IS = exp(mean KL(p_i || p)) = exp(H(p) - mean H(p_i)),   p = mean p_i,   H(p) = - sum p log p
(2)  without item i: p_(-i) = (n p - p_i) / (n - 1), so that all n leave-one-out values cost one pass
(3)  jackknife: bias (n - 1)(mean T_(-i) - T), variance (n - 1)/n sum (T_(-i) - mean)^2
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .estimate import Estimate, of_variance
from .rows import checked

__all__ = ["ClassSums", "inception_score", "inception_score_splits"]

_VALUES = 1 << 15  # of a block, in float64: it stays in a processor's cache


@dataclass(frozen=True, eq=False)
class ClassSums:
    """What the score needs of a set: number, summed probabilities, summed entropies; parts add.

    Args:
        n: number of images.
        probability: ``(classes,)`` float64, the sum of p_i.
        entropy: the sum of H(p_i).

    >>> one = ClassSums.of(torch.tensor([[0.0, 50.0]]))
    >>> two = ClassSums.of(torch.tensor([[50.0, 0.0]]))
    >>> round((one + two).score, 6)
    2.0
    """

    n: int
    probability: Tensor
    entropy: float

    @classmethod
    def of(cls, logits: Tensor) -> "ClassSums":
        """The sums of ``(N, classes)`` logits.

        Raises:
            ValueError: not two axes, no row, one class, or a value that is not finite.
        """
        logits = _checked(logits, least=1)
        probability, entropy = torch.zeros(logits.shape[1], dtype=torch.float64), 0.0
        for _, weights, total, own in _blocks(logits):
            probability += (1 / total) @ weights
            entropy += float(own.sum())
        return cls(len(logits), probability, entropy)

    def __add__(self, other: "ClassSums") -> "ClassSums":
        return ClassSums(self.n + other.n, self.probability + other.probability, self.entropy + other.entropy)

    @property
    def score(self) -> float:
        """(1)."""
        p = self.probability / self.n
        return float((torch.special.entr(p).sum() - self.entropy / self.n).exp())


def inception_score(logits: Tensor, *, confidence: float = 0.95) -> Estimate:
    """The Inception Score of a whole set, (1), with its jackknife interval.

    Args:
        logits: ``(N, classes)``.
        confidence: of the interval, which is that of the value at large N.

    Returns:
        The score, from 1 (one class, or never sure) to the number of classes (sure, and all alike often). Its note has
        the mean and standard deviation of ten splits, which is what papers print.

    Raises:
        ValueError: fewer than 20 rows, or logits that are not finite.

    Cost: O(N classes) time, two passes; memory of one block and of a number an image.

    Source: Salimans et al. 2016, arXiv 1606.03498, section 4; the splits: Barratt and Sharma 2018, arXiv 1801.01973.

    >>> inception_score(50 * torch.eye(4).repeat(10, 1)).value
    4.0
    """
    logits = _checked(logits, least=20)
    parts = _splits(logits, 10)
    sums = sum(parts[1:], parts[0])
    without = _without(sums, logits)
    n, mean = sums.n, float(without.mean())
    split, deviation = _summary(parts)
    return of_variance(
        sums.score,
        float((without - mean).square().sum()) * (n - 1) / n,  # (3)
        centre=n * sums.score - (n - 1) * mean,
        n=n,
        method="jackknife; covers the value at large N",
        least=1.0,
        most=float(logits.shape[1]),
        confidence=confidence,
        note=f"{split:.4g} ± {deviation:.2g} in ten splits",
    )


def inception_score_splits(logits: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation of the score over consecutive parts, as published.

    Args:
        logits: ``(N, classes)`` in the order of the samples; shuffle them first if they are ordered by class.
        splits: how many; parts differ by at most one in size.

    Raises:
        ValueError: fewer rows than splits.

    Source: Salimans et al. 2016, arXiv 1606.03498, appendix (their code); the standard deviation is that of the parts,
    not the error of their mean.

    >>> inception_score_splits(50 * torch.eye(4).repeat(10, 1))
    (4.0, 0.0)
    """
    return _summary(_splits(checked(logits, least=max(1, splits)), splits))


def _splits(logits: Tensor, splits: int) -> list[ClassSums]:
    edges = [i * len(logits) // splits for i in range(splits + 1)]
    return [ClassSums.of(logits[i:j]) for i, j in pairwise(edges)]


def _summary(parts: list[ClassSums]) -> tuple[float, float]:
    scores = torch.tensor([part.score for part in parts], dtype=torch.float64)
    return float(scores.mean()), float(scores.std(correction=0))


def _checked(logits: Tensor, *, least: int) -> Tensor:
    x = checked(logits, least=least)
    if x.shape[1] < 2:
        raise ValueError("logits of a single class say nothing; the score needs at least two")
    return x


def _blocks(logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Which rows; w with p_i = w_i / t_i; t; and the entropies H(p_i) = log t - sum w x / t, for x less its largest."""
    rows = max(1, _VALUES // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = slice(start, min(start + rows, len(logits)))
        x = logits[part].to(torch.float64, copy=True)
        x -= x.amax(1, keepdim=True)
        weights = x.exp()
        total = weights.sum(1)
        yield part, weights, total, total.log() - torch.linalg.vecdot(weights, x) / total


def _without(sums: ClassSums, logits: Tensor) -> Tensor:
    """``(N,)``: the score without each row, (2), where H(r / m) = log m - sum r log r / m for r = n p - p_i that sum to m."""
    scores, rest = torch.empty(len(logits), dtype=torch.float64), sums.n - 1
    for part, weights, total, own in _blocks(logits):
        r = (sums.probability - weights / total[:, None]).clamp_(min=torch.finfo(torch.float64).tiny)
        entropy = math.log(rest) - torch.linalg.vecdot(r, r.log()) / rest
        scores[part] = (entropy - (sums.entropy - own) / rest).exp()
    return scores
