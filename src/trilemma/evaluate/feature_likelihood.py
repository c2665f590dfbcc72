"""The feature likelihood divergence: how well samples explain held-out images, with no credit for copies.

(1)  p(x) = mean_j N(x; g_j, s_j^2 I), with a Gaussian about each sample
(2)  the s_j are those of largest likelihood of the training set, beside a background about its mean, by EM:
     w_ij = responsibility of g_j for x_i;   s_j^2 = sum_i w_ij |x_i - g_j|^2 / (D sum_i w_ij)
(3)  FLD = 100 (NLL(held out | samples) - NLL(held out | half of the training set, fitted to the other half)) / D

A sample that copies a training image gets a tiny s_j, which explains that image alone and no held-out one.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..numerics.noise import Noise
from .estimate import Estimate, halves, of_halves
from .rows import blocks, checked, squared_distances

__all__ = ["feature_likelihood_divergence"]

_NEAR = 0.9**2  # the background sees the training set a little nearer than it is, as published
_LOG_LEAST, _LOG_MOST = -40.0, 40.0  # of log s_j^2


def feature_likelihood_divergence(
    samples: Tensor,
    training: Tensor,
    held_out: Tensor,
    *,
    most: int = 10_000,
    rounds: int = 50,
    halvings: int = 8,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """FLD, (3): 0 for samples as good as training images, above for worse, far above for copies.

    Args:
        samples: ``(N, D)`` features.
        training: ``(M, D)`` features of the images that the model was trained on.
        held_out: ``(K, D)`` features of real images that it was not.
        most: samples and training images used, the first ones; the score depends on their number.
        rounds: of EM at most; it stops when the likelihood gains less than 1e-4 nats a dimension.
        halvings: random halvings of samples and held-out images for the interval.
        seed: of the halving of the training set, and of the halvings.
        confidence: of the interval, which is that of the mean at this N for this training set.

    Returns:
        The divergence in hundredths of a nat a dimension.

    Raises:
        ValueError: fewer than eight vectors in a set, lengths differ, or a value is not finite.

    Cost: O(rounds N M D (1 + ``halvings``/4)) time, memory of one block.

    Differs: EM for the variances in place of 50 steps of Adam, which it bounds from above in likelihood.

    Source: Jiralerspong et al. 2023, arXiv 2302.04440, equations (2) to (5), and the authors' code for the background.

    >>> z = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)).split(100)
    >>> good, copies = (feature_likelihood_divergence(s, z[1], z[2]).value for s in (z[0], z[1]))
    >>> good < 30 < copies
    True
    """
    x, t, h = (
        checked(z, least=8, name=name)[:limit].double()
        for z, name, limit in (
            (samples, "samples", most),
            (training, "training images", most),
            (held_out, "held-out images", len(held_out)),
        )
    )
    if not x.shape[1] == t.shape[1] == h.shape[1]:
        lengths = f"{x.shape[1]}, {t.shape[1]} and {h.shape[1]}"
        raise ValueError(f"features have lengths {lengths}; all need the same extractor")
    mean, scale = h.mean(0), h.std(0)
    used = scale > 0  # a feature that held-out images do not vary in has no scale
    if not bool(used.any()):
        raise ValueError("all held-out features are equal; a likelihood of them says nothing")
    x, t, h = (((z - mean) / scale)[:, used] for z in (x, t, h))
    dims = int(used.sum())
    first = Noise(seed, 1).at(3).uniform((1, len(t)), dtype=torch.float64)[0].argsort() < len(t) // 2
    base = -float(_log_likelihoods(h, t[first], _fit(t[first], t[~first], rounds)).mean())
    variances = _fit(x, t, rounds)
    whole = -float(_log_likelihoods(h, x, variances).mean())
    parts = []
    for a, b in zip(*(halves(len(z), halvings, seed=seed, stream=i) for i, z in ((1, x), (2, h)))):
        parts.append(
            [
                -float(_log_likelihoods(h[j], x[i], _fit(x[i], t, rounds, variances[i])).mean())
                for i, j in ((a, b), (~a, ~b))
            ]
        )
    return of_halves(
        100 * (whole - base) / dims,
        100 * (torch.tensor(parts, dtype=torch.float64) - base) / dims,
        n=min(len(x), len(h)),
        method="random halvings; covers the mean at this N for this training set",
        unbiased=False,
        confidence=confidence,
    )


def _strips(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of some of ``x`` to all of ``y``, which are at most ``most``; and which of ``x``."""
    for part in blocks(len(x)):
        yield part, squared_distances(x[part], y)


def _log_terms(squared: Tensor, log_variances: Tensor, dims: int) -> Tensor:
    """Logarithms of the Gaussians in (1) for squared distances and the log variance of each column."""
    return (squared * (-0.5 * (-log_variances).exp())).sub_(0.5 * dims * (log_variances + math.log(2 * math.pi)))


def _log_likelihoods(x: Tensor, centres: Tensor, log_variances: Tensor) -> Tensor:
    """(1) for each row of ``x``."""
    found = [_log_terms(d, log_variances, x.shape[1]).logsumexp(1) for _, d in _strips(x, centres)]
    return torch.cat(found) - math.log(len(centres))


def _fit(centres: Tensor, x: Tensor, rounds: int, start: Tensor | None = None) -> Tensor:
    """``(len(centres),)``: log variances by EM, (2), from those of each centre's nearest point or from ``start``."""
    dims = x.shape[1]
    if start is None:
        least = torch.cat([d.min(1).values for _, d in _strips(centres, x)])
        start = ((least + 1e-3) / dims).log()
    log_variances, background = start, torch.zeros((), dtype=torch.float64)
    far = _NEAR * (x - x.mean(0)).square().sum(1)
    before = -math.inf
    for _ in range(rounds):
        weight, squares = torch.zeros_like(log_variances), torch.zeros_like(log_variances)
        outer_weight = outer_squares = likelihood = 0.0
        for part, d in _strips(x, centres):
            terms = _log_terms(d, log_variances, dims).sub_(math.log(len(centres)))
            outer = _log_terms(far[part], background, dims)
            total = torch.logaddexp(terms.logsumexp(1), outer)
            terms.sub_(total[:, None]).exp_()
            weight += terms.sum(0)
            squares += (terms * d).sum(0)
            share = (outer - total).exp()
            outer_weight += float(share.sum())
            outer_squares += float(share @ far[part])
            likelihood += float(total.sum())
        seen = weight > 1e-12  # a sample that explains nothing keeps its variance
        new = (squares / (dims * weight)).log().clamp(_LOG_LEAST, _LOG_MOST)
        log_variances = torch.where(seen, new, log_variances)
        if outer_weight > 1e-12:
            background = torch.tensor(outer_squares / (dims * outer_weight), dtype=torch.float64).log()
        gain, before = (likelihood - before) / (len(x) * dims), likelihood
        if gain < 1e-4:
            break
    return log_variances
