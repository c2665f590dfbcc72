"""Intervals against known laws, halvings against enumeration, stamps that refuse."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from trilemma.evaluate import Estimate, Proportion, Stamp, compare, require_same
from trilemma.evaluate.estimate import halves, of_halves, of_mean, of_proportion, shuffles
from trilemma.numerics.student import quantile

STAMP = Stamp("pixels", "00", "digits", "11", "none", 100, 0)


def test_figures_print_to_the_digit_that_is_known():
    assert str(Estimate(12.31, 11.86, 12.79, 9, "m")) == "12.3 [11.9, 12.8]"
    assert str(Estimate(1234.5, 1100.0, 1300.0, 9, "m")) == "1234 [1100, 1300]"
    assert str(Estimate(0.00123, 0.0011, 0.0014, 9, "m")) == "0.00123 [0.00110, 0.00140]"
    assert str(Estimate(0.468, 0.36, 0.58, 9, "m")) == "0.47 [0.36, 0.58]"
    assert str(Estimate(5.0, 5.0, 5.0, 9, "m")) == "5.0000 [5.0000, 5.0000]"
    assert str(Estimate(3.0, 1.0, 2.0, 9, "m")).endswith("at large N]")
    with pytest.raises(ValueError, match="none"):
        Estimate(1.0, 2.0, 1.0, 9, "m")


def test_variance_of_halvings_is_exact_for_a_mean_and_for_a_pair_statistic():
    """Over all halvings, (1) is s^2/n for a mean, and unbiased for a degenerate pair statistic, by enumeration of the data."""
    x = torch.tensor([0.3, -1.0, 2.0, 0.5, 1.7, -0.2], dtype=torch.float64)
    sides = [torch.tensor([i in chosen for i in range(6)]) for chosen in combinations(range(6), 3)]
    parts = torch.stack([torch.stack([x[s].mean(), x[~s].mean()]) for s in sides])
    within = (parts[:, 0] - parts[:, 1]).square().mean() / 4
    assert float(within) == pytest.approx(float(x.var()) / 6)
    found = of_halves(float(x.mean()), parts, n=6, method="m", unbiased=True)
    assert (found.high - found.low) / 2 == pytest.approx(quantile(0.95, len(sides)) * float((x.var() / 6) ** 0.5))
    # signs +-1, T = product over pairs: variance of T over all 2^6 data is known to be 1 / number of pairs
    total = 0.0
    for code in range(64):
        z = torch.tensor([1.0 if code >> i & 1 else -1.0 for i in range(6)], dtype=torch.float64)
        t = torch.stack([torch.stack([pairs(z[s]), pairs(z[~s])]) for s in sides])
        middle = t.mean(1)
        total += float((t[:, 0] - t[:, 1]).square().mean() / 4 - middle.var(correction=0))
    assert total / 64 == pytest.approx(1 / 15)


def pairs(z):
    return (z.sum() ** 2 - len(z)) / (len(z) * (len(z) - 1))


def test_extrapolation_removes_what_it_says():
    """T_n = 7 + 3/n - 40/n^2, n = 80: two sizes leave the last term, three nothing."""

    def biased(n):
        return 7 + 3 / n - 40 / n**2

    parts, quarters = torch.full((4, 2), biased(40.0)), torch.full((4, 4), biased(20.0))
    three = of_halves(biased(80.0), parts, n=80, method="m", unbiased=True, quarters=quarters)
    assert three.low == pytest.approx(7, abs=1e-6)
    two = of_halves(biased(80.0), parts, n=80, method="m", unbiased=True)
    assert two.low == pytest.approx(7 + 40 / 80**2 * 2, abs=1e-6)
    as_it_is = of_halves(biased(80.0), parts, n=80, method="m", unbiased=False)
    assert as_it_is.low == as_it_is.value


def test_halvings_are_halves_of_random_orders():
    sides, orders = halves(9, 50, seed=3), shuffles(9, 50, seed=3)
    assert torch.equal(sides.sum(1), torch.full((50,), 4))
    for side, order in zip(sides, orders):
        assert set(order[:4].tolist()) == set(side.nonzero()[:, 0].tolist())
    assert not torch.equal(sides, halves(9, 50, seed=3, stream=1))
    # each item is in the first half about 4/9 of 50 times; five standard deviations: false alarm 1e-5
    assert float((sides.double().mean(0) - 4 / 9).abs().max()) < 5 * (4 / 9 * 5 / 9 / 50) ** 0.5
    with pytest.raises(ValueError, match="at least 4"):
        halves(3, 2, seed=0)


def test_means_and_shares():
    found = of_mean(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.high - 3 == pytest.approx(2.77645 * math.sqrt(2.5 / 5), abs=0.01)
    share = of_proportion(Proportion(0, 10))
    assert share.low == 0 == share.value
    assert share.high == pytest.approx(1.96**2 / (10 + 1.96**2), rel=1e-3)
    for bad in (torch.tensor([1.0]), torch.tensor([1.0, math.nan]), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="two finite values"):
            of_mean(bad)


def test_figures_of_different_protocols_are_not_compared():
    a = Estimate(3.0, 2.0, 4.0, 100, "m", metric="fid", stamp=STAMP)
    b = Estimate(1.0, 0.25, 1.75, 100, "m", metric="fid", stamp=STAMP)
    found = compare(a, b)
    assert (found.value, (found.low + found.high) / 2) == (2.0, 2.0)
    assert found.high - found.value == pytest.approx(1.25)
    changes = {
        "extractor": "inception",
        "extractor_checksum": "01",
        "reference": "mnist",
        "reference_checksum": "12",
        "resize": "299",
        "n": 99,
        "seed": 1,
        "version": "0",
    }
    for name, value in changes.items():
        other = replace(STAMP, **{name: value})
        with pytest.raises(ValueError, match=name.replace("_", " ")) as caught:
            compare(a, replace(b, stamp=other))
        assert str(value) in str(caught.value)
        assert str(getattr(STAMP, name)) in str(caught.value)
    with pytest.raises(ValueError, match="without a protocol stamp"):
        compare(a, replace(b, stamp=None))
    with pytest.raises(ValueError, match="kid"):
        compare(a, replace(b, metric="kid"))
    require_same(STAMP, replace(STAMP))
