"""The path is one function of time with the law of a Brownian motion, whatever is asked of it.

The law is not sampled: with unit vectors for draws (oracles.Basis) Z shows its coefficients, and all covariances are exact.
"""

import math

import pytest
import torch

from oracles import F64, Basis
from trilemma.numerics.brownian import BrownianPath, tick_of
from trilemma.numerics.noise import Noise

VS = [-200.3, -31.0, -7.25, -7.2499, -1.1, -1.0, 0.0, 1e-6, 0.3, 2.0, 2.00001, 17.7, 250.0]


def coefficients(vs):
    """Z at every time of ``vs`` as a row of coefficients of independent standard normal draws."""
    basis = Basis(2, again=True)
    for v in vs:
        BrownianPath(basis).at(tick_of(v), torch.zeros(2, 1, dtype=F64))
    items = len(basis.draws) + 2
    path = BrownianPath(Basis(items, basis.draws, again=True))
    return torch.stack([path.at(tick_of(v), torch.zeros(items, 1, dtype=F64))[2:, 0] for v in vs])


def test_all_covariances_are_those_of_a_brownian_motion():
    """Cov[W(c), W(c')] = min(c, c'), so that of Z = W / sqrt(c) is e^(-|v - v'|/2), at the rounded times."""
    z = coefficients(VS)
    v = torch.tensor([tick_of(v) / 2**20 for v in VS], dtype=F64)
    torch.testing.assert_close(z @ z.T, torch.exp(-(v[:, None] - v).abs() / 2), rtol=0, atol=1e-12)


def test_increments_are_normal_independent_and_add_up():
    """(W(c3) - W(c1)) = (W(c3) - W(c2)) + (W(c2) - W(c1)), in units of their standard deviations."""
    vs = [-2.0, -1.3, -1.25, 0.4, 3.0]
    z, ticks = coefficients(vs), [tick_of(v) for v in vs]
    path = BrownianPath(Noise(0, 1))
    xi = [path.increment(z[i], z[i + 1], ticks[i + 1] - ticks[i]) for i in range(4)]
    gram = torch.stack(xi) @ torch.stack(xi).T
    torch.testing.assert_close(gram, torch.eye(4, dtype=F64), rtol=0, atol=1e-11)
    c = [math.exp(t / 2**20) for t in ticks]
    whole = path.increment(z[0], z[2], ticks[2] - ticks[0])
    parts = math.sqrt(c[1] - c[0]) * xi[0] + math.sqrt(c[2] - c[1]) * xi[1]
    torch.testing.assert_close(math.sqrt(c[2] - c[0]) * whole, parts, rtol=1e-9, atol=1e-11)


def test_an_item_is_the_same_alone_and_in_any_type():
    like = torch.empty(3, 2, 2)
    path = BrownianPath(Noise([5, 7, -1]).at(4))
    whole = path.at(tick_of(0.7), like)
    assert torch.equal(BrownianPath(Noise([7]).at(4)).at(tick_of(0.7), like[:1])[0], whole[1])
    torch.testing.assert_close(path.at(tick_of(0.7), like.double()).float(), whole, rtol=0, atol=2e-6)
    assert len(set(whole.flatten().tolist())) == 12


def test_the_numbers_drawn_have_that_law_too():
    """A chi-square test of 4 increments of 4000 items; false alarm 1e-4."""
    from scipy.stats import chi2

    path, like = BrownianPath(Noise(3, 4000)), torch.empty(4000, 1, dtype=F64)
    ticks = [tick_of(v) for v in (-3.0, -2.9, 0.0, 0.01, 4.0)]
    z = [path.at(t, like) for t in ticks]
    xi = torch.cat([path.increment(z[i], z[i + 1], ticks[i + 1] - ticks[i]) for i in range(4)], 1)
    total = float(xi.square().sum())
    assert 2 * min(chi2.cdf(total, 16000), chi2.sf(total, 16000)) > 1e-4
    correlation = xi.T @ xi / 4000 - torch.eye(4, dtype=F64)
    assert float(correlation.abs().max()) < 4.5 * math.sqrt(2 / 4000)


def test_cost_and_reach():
    """At most 31 draws; times of few binary digits are nearer to the root."""

    class Counting(Basis):
        def normal_like(self, x):
            self.draws[len(self.draws)] = self.position
            return torch.zeros_like(x)

        def at(self, *position):
            return Counting(2, self.draws, position)

    for v, most in ((0.0, 3), (64.0, 5), (math.pi, 31), (-254.123456789, 31)):
        count = Counting(2)
        BrownianPath(count).at(tick_of(v), torch.zeros(2, 1))
        assert len(count.draws) <= most
    with pytest.raises(ValueError, match=r"within 255 of 0, got 300\.0"):
        tick_of(300.0)
