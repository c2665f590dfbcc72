"""Are samples copies of training images?

(1)  a sample g with nearest training image r is authentic where |g - r| > distance of r to its own nearest training image
(2)  it is a copy where it is nearer to r than a third of the distance to its second nearest
(3)  U / (n m) = share of pairs (sample, held-out image) where the sample is the nearer to the training set, ties half:
     1/2 without copying, 1 where every sample is nearer
(4)  C_T = - (U - n m / 2) / sqrt(n m (n + m + 1) / 12), far below 0 for copies; over cells: the mean of each cell's,
     weighted by its number of held-out images

The training set is given, not drawn: intervals are over samples (and held-out images) only, and exact for that.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..numerics.noise import Noise
from .agreement import Proportion
from .estimate import Estimate, of_proportion, of_share, of_variance
from .rows import centred, checked, nearest, squared_distances

__all__ = ["authenticity", "copied", "copy_score", "nearer_than_held_out", "share_copied"]


def authenticity(samples: Tensor, training: Tensor, *, confidence: float = 0.95) -> Estimate:
    """The share of authentic samples, (1); for new images of the training set's law it is about one half.

    Args:
        samples: ``(N, D)`` features.
        training: ``(M, D)`` features of the images that the model was trained on.
        confidence: of Wilson's interval.

    Raises:
        ValueError: lengths differ, a value is not finite, or there are fewer than two training images.

    Cost: O((N + M) M D) time, memory of a tile of pairs and of a few numbers a vector.

    Source: Alaa et al. 2022, arXiv 2102.08921, section 4.3 (in the features' space).

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> authenticity(torch.tensor([[0.1], [4.9], [9.0], [3.1]]), train).value
    0.25
    """
    distance, index = nearest(samples, training)
    own, _ = nearest(training, None)
    authentic = distance[:, 0] > own[index[:, 0], 0]
    return of_proportion(Proportion(int(authentic.sum()), len(authentic)), confidence=confidence)


def copied(samples: Tensor, training: Tensor, *, ratio: float = 1 / 3) -> Tensor:
    """Which samples are much nearer to one training image than to any other, (2).

    Training images that are there twice are no copies of each other here: remove duplicates first, or (2) overlooks their
    copies. `nearest` gives the images to show beside them.

    Args:
        samples: ``(N, D)`` features.
        training: ``(M, D)`` features.
        ratio: of the two distances, below which a sample counts as a copy.

    Returns:
        ``(N,)`` bool.

    Source: Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize" (the ratio of a third).

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> copied(torch.tensor([[0.1], [0.5], [2.9]]), train).tolist()
    [True, False, True]
    """
    distance, _ = nearest(samples, training, 2)
    return distance[:, 0] < ratio * distance[:, 1]


def share_copied(samples: Tensor, training: Tensor, *, ratio: float = 1 / 3, confidence: float = 0.95) -> Estimate:
    """The share of samples that are `copied`, with Wilson's interval.

    >>> train = torch.tensor([[0.0], [1.0], [3.0]])
    >>> share_copied(torch.tensor([[0.1], [0.5]]), train).value
    0.5
    """
    found = copied(samples, training, ratio=ratio)
    return of_proportion(Proportion(int(found.sum()), len(found)), confidence=confidence)


def nearer_than_held_out(samples: Tensor, training: Tensor, held_out: Tensor, *, confidence: float = 0.95) -> Estimate:
    """How often a sample is nearer to the training set than a held-out real image is, (3); C_T of (4) is in its note.

    Args:
        samples: ``(n, D)`` features.
        training: ``(M, D)`` features.
        held_out: ``(m, D)`` features of real images that were not trained on.
        confidence: of the interval, which is that of the share at large n and m.

    Raises:
        ValueError: fewer than two vectors in a set, lengths differ, or a value is not finite.

    Cost: O((n + m) M D) time, memory as `authenticity`.

    Differs: the paper reports (4) only, which grows with the root of n; the share does not.

    Source: Meehan et al. 2020, arXiv 2004.05675, section 3; interval: DeLong et al. 1988, Biometrics 44, 837.

    >>> train = torch.arange(10.0)[:, None]
    >>> nearer_than_held_out(train + 0.01, train, train + 0.3).value
    1.0
    """
    made, real = (
        nearest(checked(z, name=name), training)[0][:, 0]
        for z, name in ((samples, "samples"), (held_out, "held-out images"))
    )
    ours, theirs = _placements(made, real), 1 - _placements(real, made)
    n, m = len(made), len(real)
    value, note = float(ours.mean()), f"C_T = {-(float(ours.mean()) - 0.5) * _scale(n, m):.1f}"
    if value in (0, 1):  # complete separation: placements do not vary
        return replace(of_share(value, min(n, m), confidence=confidence), note=note)
    return of_variance(
        value,
        float(ours.var()) / n + float(theirs.var()) / m,
        n=min(n, m),
        method="placements of the Mann-Whitney statistic; covers the value at large N",
        least=0.0,
        most=1.0,
        confidence=confidence,
        note=note,
    )


def copy_score(samples: Tensor, training: Tensor, held_out: Tensor, *, cells: int = 1, seed: int = 0) -> float:
    """C_T, (4): the Z score of the test that samples are as far from the training set as held-out images are.

    Args:
        samples: ``(n, D)`` features.
        training: ``(M, D)`` features.
        held_out: ``(m, D)`` features.
        cells: parts of space, by k-means on the training set: copying in one region is not hidden by others.
        seed: of the first centres.

    Returns:
        Below -3: copying; above 3: samples lie farther out than real images.

    Raises:
        ValueError: no cell has samples, training and held-out images.

    Cost: O((n + m + M) M D) time.

    Differs: no continuity correction; cells without samples are left out whatever their share.

    Source: Meehan et al. 2020, arXiv 2004.05675, equations (2) and (3).

    >>> train = torch.arange(20.0)[:, None]
    >>> copy_score(train + 0.01, train, train + 0.3) < -3
    True
    """
    for z, name in ((samples, "samples"), (training, "training images"), (held_out, "held-out images")):
        checked(z, name=name)
    train, made, real = (rows[:] for rows in centred(training, samples, held_out))
    centres = _centres(train, cells, seed)
    homes = [squared_distances(z, centres).argmin(1) for z in (train, made, real)]
    total, weight = 0.0, 0
    for cell in range(cells):
        t, g, h = (z[home == cell] for z, home in zip((train, made, real), homes))
        if min(len(t), len(g), len(h)) == 0:
            continue
        share = _placements(nearest(g, t)[0][:, 0], nearest(h, t)[0][:, 0]).mean()
        total += len(h) * -float(share - 0.5) * _scale(len(g), len(h))
        weight += len(h)
    if weight == 0:
        raise ValueError(f"none of {cells} cells has samples, training and held-out images; take fewer cells")
    return total / weight


def _placements(x: Tensor, y: Tensor) -> Tensor:
    """For each of ``x`` the share of ``y`` above it, ties half."""
    ordered = y.sort().values
    below = torch.searchsorted(ordered, x, right=False)
    up_to = torch.searchsorted(ordered, x, right=True)
    return 1 - (below + up_to).double() / (2 * len(y))


def _scale(n: int, m: int) -> float:
    """Pairs over the standard deviation of U for equal laws, (4)."""
    return float((12 * n * m / (n + m + 1)) ** 0.5)


def _centres(x: Tensor, cells: int, seed: int, rounds: int = 20) -> Tensor:
    """Lloyd's k-means from random points."""
    start = Noise(seed, 1).uniform((1, len(x)), dtype=torch.float64)[0].argsort()[:cells]
    centres = x[start]
    for _ in range(rounds if cells > 1 else 0):
        home = squared_distances(x, centres).argmin(1)
        one = torch.nn.functional.one_hot(home, cells).double()
        number = one.sum(0)[:, None]
        centres = torch.where(number > 0, one.T @ x / number.clamp(min=1), centres)
    return centres
