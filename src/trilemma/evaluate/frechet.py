"""The Frechet distance between two Gaussians, squared: what FID is, whatever the features.

(1)  d^2 = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2)
(2)  tr (C1^(1/2) C2 C1^(1/2))^(1/2) = sum of the singular values of C1^(1/2) C2^(1/2)
"""

import torch
from torch import Tensor

from .moments import Moments

__all__ = ["frechet_distance"]


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance between the Gaussians with these moments, equation (1).

    The trace of the root is taken from the singular values (2) of a product of symmetric roots: real by construction,
    never negative, and exact for singular covariances, where a general matrix root fails.

    Args:
        a: moments of one set of features.
        b: moments of the other.

    Returns:
        The distance, at least 0. Estimated from few images it is too large, by about the same amount for equal
        numbers: compare with the distance between two real sets of the same sizes.

    Raises:
        ValueError: feature lengths differ, or a set has fewer than two vectors.

    Cost: O(D^3), no model call.

    Source: Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions", equation (4);
    Heusel et al. 2017, arXiv 1706.08500, equation (6).

    >>> unit = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> frechet_distance(Moments.of(unit), Moments.of(3 * unit + 1))
    5.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have lengths {len(a.mean)} and {len(b.mean)}; both need the same classifier")
    first, second = a.covariance, b.covariance
    overlap = torch.linalg.svdvals(_root(first) @ _root(second)).sum()  # (2)
    squared = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * overlap
    return max(0.0, float(squared))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix, eigenvalues at the level of rounding taken for zero."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return (vectors * torch.where(values > rounding, values, 0).sqrt()) @ vectors.T
