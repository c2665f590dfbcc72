"""95 % intervals cover the large-N value: a fast count; the full table is that of benchmarks/metrics.py.

Of 60 repetitions at least 51 must hit. At a true 95 % fewer than 51 are hit with probability 2e-4, at 92 % with 2 %; at 75 %
(intervals a factor 1.7 too short) 51 or more with 6 %.
"""

import pytest
import torch

from trilemma.evaluate import (
    density_coverage,
    frechet_estimates,
    inception_score,
    kernel_distance,
    nearer_than_held_out,
    precision_recall,
    sliced_wasserstein,
    vendi_score,
)

REPETITIONS, LEAST, N, D = 60, 51, 200, 6
SHIFT, SCALE = 0.4, 1.3
TRAIN = torch.randn(150, D, generator=torch.Generator().manual_seed(99))
WEIGHTS = 2 * torch.randn(D, 8, generator=torch.Generator().manual_seed(98))


def normal(n, draw, shift=0.0, scale=1.0):
    return torch.randn(n, D, generator=draw) * scale + shift


def moved(n, draw):
    return normal(n, draw, SHIFT, SCALE)


CASES = {  # metric of (x, y, seed), how samples are drawn, large-N value or None for the mean over repetitions
    "frechet": (lambda x, y, s: frechet_estimates(x, y, seed=s)[0], moved, D * (SHIFT**2 + (SCALE - 1) ** 2)),
    "frechet, equal": (lambda x, y, s: frechet_estimates(x, y, seed=s)[1], normal, 0.0),
    "kernel, equal": (lambda x, y, s: kernel_distance(x, y), normal, 0.0),
    "sliced": (lambda x, y, s: sliced_wasserstein(x, y, seed=s, directions=64), moved, SHIFT**2 + (SCALE - 1) ** 2),
    "vendi": (lambda x, y, s: vendi_score(x, seed=s), moved, lambda draw: vendi_score(moved(100_000, draw)).value),
    "inception": (
        lambda x, y, s: inception_score(x @ WEIGHTS),
        moved,
        lambda draw: inception_score(moved(200_000, draw) @ WEIGHTS).value,
    ),
    "precision": (lambda x, y, s: precision_recall(x, y, seed=s)[0], moved, None),
    "coverage": (lambda x, y, s: density_coverage(x, y, seed=s)[1], moved, None),
    "nearer": (lambda x, y, s: nearer_than_held_out(x, TRAIN, y), normal, 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_intervals_cover(name):
    metric, samples, truth = CASES[name]
    draw = torch.Generator().manual_seed(0)
    if callable(truth):
        truth = truth(draw)
    found = [metric(samples(N, draw), normal(N, draw), seed) for seed in range(REPETITIONS)]
    if truth is None:
        truth = sum(e.value for e in found) / REPETITIONS
    assert sum(e.low <= truth <= e.high for e in found) >= LEAST
