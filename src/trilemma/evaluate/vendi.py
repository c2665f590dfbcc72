"""The Vendi score: how many different samples there are, in effect, with no reference.

(1)  K_ij = z_i.z_j of features z at unit norm; eigenvalues l of K/n sum to one, and are those of S = sum z z^T / n
(2)  score of order q: exp of the Renyi entropy, (sum l^q)^(1/(1 - q)); q = 1: exp(-sum l log l); q = infinity: 1 / max l
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .estimate import Estimate, of_halves, shuffles
from .rows import checked

__all__ = ["vendi_score"]


def vendi_score(
    samples: Tensor, *, order: float = 1.0, halvings: int = 16, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """The Vendi score of features under the cosine kernel, (2).

    Args:
        samples: ``(N, D)`` features, scaled to unit norm here.
        order: q >= 0; small orders count rare kinds, large ones the common.
        halvings: random halvings for bias and interval.
        seed: of the halvings.
        confidence: of the interval, which is that of the value at large N.

    Returns:
        The score, from 1 (all point the same way) to min(N, D).

    Raises:
        ValueError: a negative order, fewer than eight vectors, a vector that is zero, or a value that is not finite.

    Cost: O(N D^2 + D^3) for each halving; memory O(D^2), as S adds up over batches.

    Differs: the paper's is of order 1, by eigenvalues of the N x N matrix; those of S are the same.

    Source: Friedman and Dieng 2023, arXiv 2210.02410, equation (2); orders: Pasarkar and Dieng 2023, arXiv 2310.12952.

    >>> round(vendi_score(torch.eye(5).repeat(20, 1)).value, 9)
    5.0
    """
    if not order >= 0:
        raise ValueError(f"a Vendi score has an order of at least 0; got {order}")
    x = checked(samples, least=8)
    if bool((x == 0).all(1).any()):
        raise ValueError("a feature vector is zero and has no direction; leave it out")
    rank = shuffles(len(x), halvings, seed=seed)
    parts, quarters = [], []
    for shuffled in rank:
        index = shuffled.tensor_split(4)
        number = [len(i) for i in index]
        moment = [_second_moment(x[i]) for i in index]
        quarters.append([_score(s / n, order) for s, n in zip(moment, number)])
        pairs = ((moment[i] + moment[i + 1], number[i] + number[i + 1]) for i in (0, 2))
        parts.append([_score(s / n, order) for s, n in pairs])
    return of_halves(
        _score(_second_moment(x) / len(x), order),
        torch.tensor(parts, dtype=torch.float64),
        quarters=torch.tensor(quarters, dtype=torch.float64),
        n=len(x),
        method="random halvings; covers the value at large N",
        unbiased=True,
        least=1.0,
        most=float(x.shape[1]),
        confidence=confidence,
    )


def _second_moment(x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(4096):
        z = normalize(part.double())
        total.addmm_(z.T, z)
    return total


def _score(moment: Tensor, order: float) -> float:
    """(2) from S, eigenvalues at the level of rounding taken for zero."""
    values = torch.linalg.eigvalsh(moment)
    values = values[values > len(values) * torch.finfo(values.dtype).eps * values[-1]]
    if order == 1:
        return float(torch.special.entr(values).sum().exp())
    if math.isinf(order):
        return float(1 / values.max())
    return float(values.pow(order).sum() ** (1 / (1 - order)))
