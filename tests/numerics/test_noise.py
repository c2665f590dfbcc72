"""Noise: who depends on what, exactly; and that the numbers are independent and have the right law, statistically.

Every statistical test has a fixed seed and a false-alarm rate of at most 1e-4 in all, stated where it is set.
"""

import math

import numpy as np
import pytest
import torch

from trilemma.numerics.noise import Noise

RATE = 1e-5  # false-alarm rate of one comparison of a p-value


def ks(values, cdf):
    """p-value of the Kolmogorov-Smirnov test."""
    from scipy.stats import kstest

    return kstest(np.asarray(values).ravel(), cdf).pvalue


def draw(noise, kind, shape, **kwargs):
    return getattr(noise, kind)(shape, **kwargs)


kinds = pytest.mark.parametrize("kind", ["normal", "uniform"])


@kinds
@pytest.mark.parametrize("item", [(1,), (7,), (2, 3, 5), ()])
def test_an_item_does_not_know_its_batch(kind, item):
    noise = Noise([11, -5, 2**63 - 1, 0, 3], 5).at(4, 2)
    batch = draw(noise, kind, (5, *item))
    for i in range(5):
        assert torch.equal(draw(noise[[i]], kind, (1, *item))[0], batch[i])
    order = [3, 0, 4, 1, 2]
    assert torch.equal(draw(noise[order], kind, (5, *item)), batch[order])
    assert torch.equal(draw(noise[1:4], kind, (3, *item)), batch[1:4])
    again = Noise(torch.tensor([11, -5, 2**63 - 1, 0, 3])).at(4).at(2)
    assert torch.equal(draw(again, kind, (5, *item)), batch)


def test_integer_seeds_give_the_first_items_of_a_larger_batch():
    assert torch.equal(Noise(9, 3).normal((3, 4)), Noise(9, 8).normal((8, 4))[:3])
    assert not torch.equal(Noise(9, 3).seeds, Noise(10, 3).seeds)


def test_numbers_do_not_depend_on_how_an_item_is_folded():
    assert torch.equal(Noise(0, 2).normal((2, 3, 4)).flatten(1), Noise(0, 2).normal((2, 12)))


def test_drawing_is_pure():
    noise = Noise(0, 3)
    first, _ = noise.normal((3, 5)), noise.at(1).uniform((3, 5))
    assert torch.equal(noise.normal((3, 5)), first)


def test_generators_give_seeds_and_move_on():
    g = torch.Generator().manual_seed(5)
    first, second = Noise(g, 4), Noise(g, 4)
    assert torch.equal(first.seeds, Noise(torch.Generator().manual_seed(5), 4).seeds)
    assert not bool((first.seeds == second.seeds).any())


def test_precisions_agree():
    """float32 may lose what -2 ln u loses near u = 1: at most sqrt(2 * 2^-24) in a radius near 0."""
    noise = Noise(1, 100)
    exact = noise.normal((100, 3001), dtype=torch.float64)
    single = noise.normal((100, 3001))
    error = (single.double() - exact).abs()
    assert float(error.max()) < 2 * math.sqrt(2 * 2.0**-24)
    assert float(error.square().mean().sqrt()) < 3e-6
    assert torch.equal(noise.normal((100, 31), dtype=torch.bfloat16), noise.normal((100, 31)).bfloat16())
    assert noise.normal_like(exact[:, :3]).dtype == torch.float64


def test_uniform_stays_inside_the_open_interval():
    for dtype in (torch.float32, torch.float64):
        u = Noise(2, 1000).uniform((1000, 1000), dtype=dtype)
        assert float(u.min()) > 0
        assert float(u.max()) < 1


LAYOUTS = {
    "one item": lambda: (Noise([3]), (1, 100_001)),
    "neighbouring seeds": lambda: (Noise(range(50_000)), (50_000, 1)),
    "seeds that differ in the top bits": lambda: (Noise([k << 44 for k in range(50_000)]), (50_000, 1)),
    "items of one seed": lambda: (Noise(0, 50_000), (50_000, 1)),
    "odd items": lambda: (Noise(7, 3001), (3001, 33)),
}


@kinds
@pytest.mark.parametrize("layout", LAYOUTS)
def test_law(kind, layout):
    """Kolmogorov-Smirnov; 1e-5 a case, 10 cases."""
    noise, shape = LAYOUTS[layout]()
    values = draw(noise, kind, shape, dtype=torch.float64)
    assert ks(values, "norm" if kind == "normal" else "uniform") > RATE
    single = draw(noise, kind, shape)
    assert ks(single.double(), "norm" if kind == "normal" else "uniform") > RATE


@kinds
def test_law_across_positions(kind):
    """The first number of one item over 600 positions, along both levels; 1e-5 each."""
    noise = Noise([4])
    for place in (lambda p: noise.at(p), lambda p: noise.at(3, p), lambda p: noise.at(p, 3)):
        values = torch.cat([draw(place(p), kind, (1, 1))[0] for p in range(-100, 500)])
        assert ks(values.double(), "norm" if kind == "normal" else "uniform") > RATE


def test_moments_to_the_sixth():
    """z-scores of the means of z^k; each beyond 4.9 with probability 1e-6."""
    z = Noise(5, 1000).normal((1000, 1000), dtype=torch.float64).flatten()
    for power, mean, mean2 in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105), (5, 0, 945), (6, 15, 10395)):
        score = (float((z**power).mean()) - mean) / math.sqrt((mean2 - mean**2) / len(z))
        assert abs(score) < 4.9, f"moment {power}: {score}"


PAIRS = {
    "next seed": lambda: (Noise(range(0, 3000)), Noise(range(1, 3001))),
    "next integer seed": lambda: (Noise(0, 3000), Noise(1, 3000)),
    "negated seed": lambda: (Noise(range(1, 3001)), Noise(range(-1, -3001, -1))),
    "next position": lambda: (Noise(0, 3000).at(0), Noise(0, 3000).at(1)),
    "position and no position": lambda: (Noise(0, 3000), Noise(0, 3000).at(0)),
    "last position": lambda: (Noise(0, 3000).at(-1), Noise(0, 3000).at(0)),
    "deeper position": lambda: (Noise(0, 3000).at(1), Noise(0, 3000).at(1, 0)),
    "swapped position": lambda: (Noise(0, 3000).at(1, 2), Noise(0, 3000).at(2, 1)),
    "seed for position": lambda: (Noise(range(3000)).at(1), Noise(range(1, 3001)).at(0)),
}


STANDARD = (  # functions of a normal number with mean 0 and variance 1
    lambda z: z,
    lambda z: (z**2 - 1) / math.sqrt(2),
    lambda z: ((z.abs() < 1).double() - 0.6826894921) / 0.4654294248,
)


@pytest.mark.parametrize("pair", PAIRS)
def test_streams_are_independent(pair):
    """Correlations of z, z^2 and |z| < 1 between two streams, one of them also shifted: 9 scores, beyond 5.2 with 2e-6 in all."""
    first, second = (n.normal((3000, 65), dtype=torch.float64) for n in PAIRS[pair]())
    assert not bool((first == second).any(1).any())
    for shift in (0, 1, 33):
        a, b = first, second.roll(shift, 1)
        for f in STANDARD:
            score = float((f(a) * f(b)).mean()) * math.sqrt(a.numel())
            assert abs(score) < 5.2, f"shift {shift}: {score}"


@pytest.mark.parametrize("size", [2, 64, 65])
def test_elements_of_an_item_are_independent(size):
    """Each pair of elements over 20000 items: the largest of the correlations of z and of z^2; Bonferroni at 1e-5."""
    from scipy.stats import norm

    z = Noise(0, 20_000).normal((20_000, size), dtype=torch.float64)
    limit = norm.isf(RATE / size**2)
    for f in (z, (z**2 - 1) / math.sqrt(2)):
        scores = (f.T @ f / math.sqrt(len(f))).triu(1).abs()
        assert float(scores.max()) < 1.2 * limit  # z^2 has heavier tails than the normal limit


def test_pairs_fill_the_plane():
    """Radius and angle of the Box-Muller pair, which sits half an item apart: chi^2_2 and uniform; 1e-5 each."""
    z = Noise(1, 20_000).normal((20_000, 2), dtype=torch.float64)
    assert ks(z.square().sum(1) / 2, "expon") > RATE
    assert ks(torch.atan2(z[:, 1], z[:, 0]) / (2 * math.pi) + 0.5, "uniform") > RATE


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="give n"):
        Noise(0)
    with pytest.raises(ValueError, match="give n"):
        Noise(torch.Generator())
    with pytest.raises(ValueError, match="2 seeds were given for 3 items"):
        Noise([1, 2], 3)
    with pytest.raises(ValueError, match="int64"):
        Noise(torch.ones(3))
    with pytest.raises(ValueError, match="must begin with 3"):
        Noise(0, 3).normal((2, 3))
