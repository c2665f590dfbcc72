"""The Inception Score from a classifier's logits, streaming, with the jackknife.

(1)  IS = exp(mean KL(p_i || p)) = exp(H(p) - mean H(p_i)),   p = mean p_i,   H(p) = - sum p log p
(2)  without item i: p_(-i) = (n p - p_i) / (n - 1), so that all n leave-one-out values cost one pass
(3)  jackknife: bias (n - 1)(mean T_(-i) - T), variance (n - 1)/n sum (T_(-i) - mean)^2
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .estimate import Estimate, of_variance
from .rows import checked

__all__ = ["ClassSums", "inception_score", "inception_score_splits"]


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
        p, entropy = _probabilities(_checked(logits, least=1))
        return cls(len(p), p.sum(0), float(entropy.sum()))

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

    Cost: O(N classes) time, two passes; memory of one block.

    Source: Salimans et al. 2016, arXiv 1606.03498, section 4; the splits: Barratt and Sharma 2018, arXiv 1801.01973.

    >>> inception_score(50 * torch.eye(4).repeat(10, 1)).value
    4.0
    """
    logits = _checked(logits, least=20)
    sums = _sums(logits)
    without = torch.cat([_without(sums, part) for part in logits.split(4096)])
    n, mean = sums.n, float(without.mean())
    split, deviation = inception_score_splits(logits)
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
    n = len(checked(logits, least=max(1, splits)))
    edges = [i * n // splits for i in range(splits + 1)]
    scores = torch.tensor([_sums(logits[i:j]).score for i, j in pairwise(edges)], dtype=torch.float64)
    return float(scores.mean()), float(scores.std(correction=0))


def _checked(logits: Tensor, *, least: int) -> Tensor:
    x = checked(logits, least=least)
    if x.shape[1] < 2:
        raise ValueError("logits of a single class say nothing; the score needs at least two")
    return x


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.to(torch.float64, copy=True)
    x -= x.amax(1, keepdim=True)
    p = x.exp()
    total = p.sum(1)
    p /= total[:, None]
    return p, total.log() - torch.linalg.vecdot(p, x)  # H = log sum e^x - sum p x


def _sums(logits: Tensor) -> ClassSums:
    parts = [ClassSums.of(part) for part in logits.split(4096)]
    return sum(parts[1:], parts[0])


def _without(sums: ClassSums, logits: Tensor) -> Tensor:
    """``(rows,)``: the score without each of these rows, (2)."""
    p, entropy = _probabilities(logits)
    rest = ((sums.probability - p) / (sums.n - 1)).clamp_(min=0)
    return (torch.special.entr(rest).sum(1) - (sums.entropy - entropy) / (sums.n - 1)).exp()
