"""The Frechet distance between two Gaussians, squared: what FID is, whatever the features; its bias and its interval.

(1)  d^2 = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr (C1^(1/2) C2 C1^(1/2))^(1/2)
(2)  tr (C1^(1/2) C2 C1^(1/2))^(1/2) = sum of the singular values of C1^(1/2) C2^(1/2)
(3)                                  = sum of the roots of the eigenvalues of L^T C2 L, with C1 = L L^T
(4)  T = L^-T (L^T C2 L)^(1/2) L^-1, the symmetric map that takes C1 to C2; its inverse takes C2 to C1
(5)  what one more vector x of the first set adds to N d^2, its influence:
     2 (m1 - m2).(x - m1) + (x - m1)^T (I - T) (x - m1) - tr((I - T) C1);   of the second set: with T^-1 for T
(6)  from N vectors d^2 is too large by c/N + c'/N^2 + ...: of N, N/2 and N/4 vectors,
     d^2_infinity = (8 d^2_N - 6 d^2_(N/2) + d^2_(N/4)) / 3
(7)  variance = sum of influences^2 / N^2, both sets, less the spread over random halvings given the data
"""

import torch
from torch import Tensor

from .estimate import Estimate, of_variance, shuffles
from .moments import Moments
from .rows import checked

__all__ = ["frechet_distance", "frechet_estimates"]

_COLUMNS = 256  # of a product at once


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance between the Gaussians with these moments, equation (1).

    The trace of the root is real and never negative by construction: from (3) where the covariances are regular, and
    otherwise from the singular values (2) of a product of roots, where a general matrix root fails.

    Args:
        a: moments of one set of features.
        b: moments of the other.

    Returns:
        The distance, at least 0. Estimated from few images it is too large, by about the same amount for equal
        numbers: compare with the distance between two real sets of the same sizes.

    Raises:
        ValueError: feature lengths differ, or a set has fewer than two vectors.

    Cost: O(D^3), no model call.

    Error: at the level of rounding for covariances as features have them; 1e-6 of tr C_1 + tr C_2 where their scales differ by
    more than ten orders of magnitude and variances below 4 D eps of the largest, which count as 0, matter.

    Source: Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions", equation (4);
    Heusel et al. 2017, arXiv 1706.08500, equation (6).

    >>> unit = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> frechet_distance(Moments.of(unit), Moments.of(3 * unit + 1))
    5.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have lengths {len(a.mean)} and {len(b.mean)}; both need the same classifier")
    first, second = a.covariance, b.covariance
    squared = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * _overlap(first, second)
    return max(0.0, float(squared))


def frechet_estimates(
    samples: Tensor, reference: Tensor, *, halvings: int = 8, seed: int = 0, confidence: float = 0.95
) -> tuple[Estimate, Estimate]:
    """The Frechet distance of two sets of features as published, and its extrapolation to infinitely many, (6).

    Both have the same interval, that of the value at large N; the published figure is too large and often lies above it.

    Args:
        samples: ``(N, D)`` features.
        reference: ``(M, D)`` features.
        halvings: random halvings (and quarterings) that the extrapolation is averaged over.
        seed: of the halvings.
        confidence: of the interval.

    Returns:
        The distance of N and M vectors, and the distance at infinity, which may be a little below 0 where it is 0.

    Raises:
        ValueError: fewer than 16 vectors in a set, lengths differ, or a value is not finite.

    Cost: 6 ``halvings`` + 3 matrix decompositions, O(D^3) each; memory O(D^2), whatever N. N + M in place of D where it is less.

    Differs: the paper fits a line in 1/N to 15 sizes with samples from a Sobol sequence; here sizes halve, the term in
    1/N^2 is removed as well, and every vector is used at every size.

    Source: Chong and Forsyth 2020, arXiv 1911.07023, section 4; (5): Bickel, Goetze and van Zwet 1997 (jackknife);
    derivative of (1): Takatsu 2011, Osaka J. Math. 48, 1005.

    >>> z = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)).split(200)
    >>> fid, infinity = frechet_estimates(*z)
    >>> fid.value > infinity.value, fid.low <= 0 <= fid.high
    (True, True)
    """
    x, y = _in_their_span(checked(samples, least=16), checked(reference, least=16, name="references"))
    a, b = Moments.of(x), Moments.of(y)
    value = frechet_distance(a, b)
    orders = zip(*(shuffles(len(f), halvings, seed=seed, stream=i) for i, f in ((1, x), (2, y))))
    half, quarter = torch.empty(halvings, dtype=torch.float64), torch.empty(halvings, dtype=torch.float64)
    for r, order in enumerate(orders):
        ours, theirs = ([Moments.of(f[i]) for i in shuffled.tensor_split(4)] for f, shuffled in zip((x, y), order))
        quarter[r] = sum(frechet_distance(p, q) for p, q in zip(ours, theirs)) / 4
        half[r] = sum(frechet_distance(ours[i] + ours[i + 1], theirs[i] + theirs[i + 1]) for i in (0, 2)) / 2
    infinity = float(8 * value - 6 * half.mean() + quarter.mean()) / 3  # (6)
    least = min(len(x), len(y))
    spread = float(half.var())
    variance = (
        max(_influence_variance(x, y, a, b) - spread, spread / 2) + float((6 * half - quarter).var()) / 9 / halvings
    )  # (7)
    rank = int(torch.linalg.matrix_rank(a.covariance + b.covariance, hermitian=True))
    note = (
        ""
        if least > 4 * rank
        else (
            f"{least} vectors are few for features of rank {rank}: the distance is mostly bias"
            if least <= rank
            else f"{least} vectors are fewer than four times the rank {rank} of the features: the interval is rough"
        )
    )
    method = "influence functions and random halvings; covers the value at large N"
    settings = {"n": least, "method": method, "confidence": confidence, "note": note}
    return (
        of_variance(value, variance, centre=infinity, least=0.0, **settings),  # type: ignore[arg-type]
        of_variance(infinity, variance, **settings),  # type: ignore[arg-type]
    )


def _in_their_span(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in the space that both sets lie in, where they are fewer vectors than features: (1) does not see a rotation."""
    if x.shape[1] != y.shape[1] or len(x) + len(y) >= x.shape[1]:
        return x, y
    both = torch.cat([x, y]).double()
    both = torch.linalg.qr((both - both.mean(0)).T, mode="r").R.T
    return both[: len(x)], both[len(x) :]


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """(3); or (2), from the smaller square of the product, or from itself where rounding would show in roots of small values."""
    factor, failed = torch.linalg.cholesky_ex(first)
    if not bool(failed):
        values = torch.linalg.eigvalsh(_congruent(factor, second))
        if _regular(values):
            return values.clamp(min=0).sqrt().sum()
    product = _factor(first).T @ _factor(second)
    product = product if product.shape[0] <= product.shape[1] else product.T
    values = torch.linalg.eigvalsh(product @ product.T)
    return values.clamp(min=0).sqrt().sum() if _regular(values) else torch.linalg.svdvals(product).sum()


def _regular(values: Tensor) -> bool:
    """Whether the sum of the roots of ascending eigenvalues, each known to 1e-14 of the largest, is known to 1e-9."""
    rounding = 1e-14 * values[-1:]
    roots = values.maximum(rounding).sqrt()
    return bool((rounding / roots).sum() <= 2e-9 * roots.sum())


def _congruent(factor: Tensor, covariance: Tensor) -> Tensor:
    """L^T C L on and below the diagonal, all that eigenvalues are computed from: a third of the products, as L is triangular."""
    product = torch.zeros_like(covariance)
    for start in range(0, len(covariance), _COLUMNS):
        rest, band = slice(start, None), slice(start, start + _COLUMNS)
        product[rest, band] = factor[rest, rest].T @ (covariance[rest, rest] @ factor[rest, band])
    return product


def _factor(covariance: Tensor) -> Tensor:
    """``(D, rank)`` F, C = F F^T, the root but for a rotation that (2) does not see: Cholesky's, with pivots in blocks.

    Of each block only what is large is taken, so that nothing is divided by what rounding may have made; what is left in the
    end is at the level of rounding and taken for zero. Cost: O(D rank^2).
    """
    left = covariance.diagonal()
    rounding = 4 * len(left) * torch.finfo(left.dtype).eps * left.max()
    factor = covariance[:, :0]
    while factor.shape[1] < len(left) and left.max() > rounding:
        pivots = left.topk(min(_COLUMNS, len(left))).indices
        columns = covariance[:, pivots] - factor @ factor[pivots].T
        values, vectors = torch.linalg.eigh(columns[pivots])
        some = values > (0.01 * values[-1]).clamp(min=rounding / 2)
        factor = torch.cat([factor, columns @ (vectors[:, some] / values[some].sqrt())], 1)
        left = covariance.diagonal() - factor.square().sum(1)
    return factor


def _influence_variance(x: Tensor, y: Tensor, a: Moments, b: Moments) -> float:
    """Squared influences (5) over the squared number, summed over both sets."""
    level = (a.covariance.trace() + b.covariance.trace()) / len(a.mean)
    dead = (1e-10 * level).clamp(min=1e-30)  # features that do not vary have no inverse
    ridge = dead * torch.eye(len(a.mean), dtype=torch.float64)
    first, second = a.covariance + ridge, b.covariance + ridge
    factor = torch.linalg.cholesky(first)
    values, vectors = torch.linalg.eigh(_congruent(factor, second))
    roots = values.clamp(min=values[-1] * 1e-20).sqrt()
    lifted = factor @ vectors
    dropped = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
    there, back = (dropped * roots) @ dropped.T, (lifted / roots) @ lifted.T  # (4) and its inverse
    shift = a.mean - b.mean
    return _squares(x, a, shift, there) + _squares(y, b, -shift, back)


def _squares(x: Tensor, own: Moments, shift: Tensor, transport: Tensor) -> float:
    """Those of one set."""
    total = 0.0
    weight = torch.eye(len(own.mean), dtype=torch.float64) - transport
    middle = (weight * own.scatter).sum() / own.n
    for part in x.split(4096):
        d = part.double() - own.mean
        influence = 2 * d @ shift + ((d @ weight) * d).sum(1) - middle  # (5)
        total += float(influence.square().sum())
    return total / own.n**2
