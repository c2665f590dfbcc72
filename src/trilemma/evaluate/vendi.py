"""The Vendi score: how many different samples there are, in effect, with no reference.

(1)  K_ij = z_i.z_j of features z at unit norm; eigenvalues l of K/n sum to one, and are those of S = sum z z^T / n
(2)  score of order q: exp of the Renyi entropy, V = (sum l^q)^(1/(1 - q)); q = 1: exp(-sum l log l); q = infinity: 1 / max l
(3)  influence of z: z^T G z less its mean, G = sum_k (dV/dl_k) u_k u_k^T with the eigenvectors u_k of S;
     dV/dl = V q/(1 - q) l^(q - 1) / sum l^q;   q = 1: -V log l;   q = infinity: -V^2 for the largest alone
(4)  variance = L + Q: Q, of second order, is the spread over random halvings given the data, and
     sum of influences^2 / n^2 = L + 2 Q
(5)  near its largest value V_max the score is V_max less a square, so that L is proportional to V_max - V. The interval holds
     all V with (V^ - V)^2 <= z^2 (Q + L (V_max - V) / (V_max - V^)), the variance being that at V, as in Wilson's for shares

An interval with the variance at the estimate V^ would be short where V^ is too large by chance: its ends and its middle vary
together (correlation -0.9 for eight features of nearly equal spread). z is Student's for as many degrees of freedom as there are
halvings: the normal quantile leaves intervals of 300 vectors short, (4) by up to 6 % of the middle's standard deviation, and
that of 16 degrees is found to make up for it.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..numerics.student import quantile
from .estimate import Estimate, shuffles
from .rows import BLOCK, checked

__all__ = ["vendi_score"]


def vendi_score(
    samples: Tensor, *, order: float = 1.0, halvings: int = 16, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """The Vendi score of features under the cosine kernel, (2).

    Args:
        samples: ``(N, D)`` features, scaled to unit norm here. Vectors that are zero have no direction: they count as one
            kind of their own, unlike all others, and the note says how many there are.
        order: q >= 0; small orders count rare kinds, large ones the common.
        halvings: random halvings (and quarterings) for bias and interval.
        seed: of the halvings.
        confidence: of the interval, which is that of the value at large N.

    Returns:
        The score, from 1 (all point the same way) to min(N, D); one more where some are zero and others are not.

    Raises:
        ValueError: a negative order, fewer than eight vectors, or a value that is not finite.

    Cost: O(N D^2 + D^3) for each halving; memory O(D^2), as S adds up over batches, and a number an image.

    Differs: the paper's is of order 1, by eigenvalues of the N x N matrix; those of S are the same.

    Source: Friedman and Dieng 2023, arXiv 2210.02410, equation (2); orders: Pasarkar and Dieng 2023, arXiv 2310.12952.

    >>> round(vendi_score(torch.eye(5).repeat(20, 1)).value, 9)
    5.0
    """
    if not order >= 0:
        raise ValueError(f"a Vendi score has an order of at least 0; got {order}")
    x = checked(samples, least=8)
    n, zeros = len(x), int((x == 0).all(1).sum())
    half, quarter = torch.empty(halvings, dtype=torch.float64), torch.empty(halvings, dtype=torch.float64)
    for r, shuffled in enumerate(shuffles(n, halvings, seed=seed)):
        index = shuffled.tensor_split(4)
        moments = [_second_moment(x[i], zeros > 0) for i in index]
        quarter[r] = sum(_score(s / len(i), order) for s, i in zip(moments, index)) / 4
        pairs = ((moments[i] + moments[i + 1]) / (len(index[i]) + len(index[i + 1])) for i in (0, 2))
        half[r] = sum(_score(s, order) for s in pairs) / 2
    whole = _second_moment(x, zeros > 0) / n
    value = _score(whole, order)
    limits = (8 * value - 6 * half + quarter) / 3  # without the biases in 1/N and 1/N^2
    middle, drawn = float(limits.mean()), float(limits.var()) / halvings
    second = float(half.var())
    first = max(0.0, _influence_variance(x, whole, value, order, zeros > 0) - 2 * second)  # (4)
    low, high = _below(float(len(whole)), middle, first, second + drawn, quantile(confidence, halvings))
    return Estimate(
        value,
        max(low, 1.0),
        max(high, 1.0),
        n,
        "influence functions and random halvings; covers the value at large N",
        confidence,
        note=f"{zeros} of {n} features are zero and count as one kind of their own" if zeros else "",
    )


def _below(most: float, middle: float, first: float, second: float, z: float) -> tuple[float, float]:
    """Both ends of (5), middle - u with the roots of u^2 = z^2 (second + first (1 + u / gap)), and none above ``most``."""
    gap = most - middle
    lean = z * z * first / (2 * gap) if gap > 0 else 0.0
    half = math.sqrt(lean * lean + z * z * (first + second))
    return min(most, middle - lean - half), min(most, middle - lean + half)


def _units(x: Tensor, zeros: bool) -> Tensor:
    """Vectors of unit norm in float64; where some are zero, in a space with a direction more, which is theirs."""
    z = normalize(x.double(), eps=torch.finfo(torch.float64).tiny)
    return torch.cat([z, (x == 0).all(1, keepdim=True).double()], 1) if zeros else z


def _second_moment(x: Tensor, zeros: bool) -> Tensor:
    dims = x.shape[1] + zeros
    total = torch.zeros(dims, dims, dtype=torch.float64)
    for part in x.split(BLOCK):
        z = _units(part, zeros)
        total.addmm_(z.T, z)
    return total


def _score(moment: Tensor, order: float) -> float:
    """(2) from S."""
    return _of_values(_without_rounding(torch.linalg.eigvalsh(moment)), order)


def _without_rounding(values: Tensor) -> Tensor:
    """Ascending eigenvalues without those at the level of rounding, which are taken for zero."""
    return values[values > len(values) * torch.finfo(values.dtype).eps * values[-1]]


def _of_values(values: Tensor, order: float) -> float:
    if order == 1:
        return float(torch.special.entr(values).sum().exp())
    if math.isinf(order):
        return float(1 / values.max())
    return float(values.pow(order).sum() ** (1 / (1 - order)))


def _influence_variance(x: Tensor, moment: Tensor, score: float, order: float, zeros: bool) -> float:
    """Squared influences (3) over the squared number."""
    values, vectors = torch.linalg.eigh(moment)
    values = _without_rounding(values)
    vectors = vectors[:, -len(values) :]
    if order == 1:
        slopes = -score * values.log()
    elif math.isinf(order):
        slopes = -(score**2) * (values == values[-1]).double()
    else:
        slopes = score * order / (1 - order) * values.pow(order - 1) / values.pow(order).sum()
    mean, total = float(slopes @ values), 0.0
    for part in x.split(BLOCK):
        total += float(((_units(part, zeros) @ vectors).square() @ slopes - mean).square().sum())
    return total / len(x) ** 2
