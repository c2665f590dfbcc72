"""Laws of every law of training times."""

import math

import pytest
import torch

from oracles import F64, scalar
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, TIMES, VP, Cosine, Flow, GeometricLevels, LogitNormal, LogNormalSigma, Uniform

every = pytest.mark.parametrize(
    "name", [name for name in TIMES if name != "geometric"]
)  # that one is discrete: see below
N = 1000
DKW = math.sqrt(math.log(2 / 1e-6) / (2 * N))  # sup |F_n - F| exceeds this with probability 1e-6 (Massart 1990)
P = torch.linspace(0.01, 0.99, 99, dtype=F64)


@every
def test_quantiles_are_increasing_times(name):
    u = torch.cat([torch.logspace(-15, -3, 13, dtype=F64), P, 1 - torch.logspace(-3, -15, 13, dtype=F64)])
    t = TIMES[name]().quantile(Flow(), u)
    assert bool((t.diff() > 0).all()) or bool((t.diff() < 0).all())
    assert float(t.min()) > 0
    assert float(t.max()) < 1


@every
def test_draws_follow_the_quantiles(name):
    """Dvoretzky-Kiefer-Wolfowitz band, false alarm 1e-6; one draw from each of many batches, so that items are independent."""
    law, process = TIMES[name](), VP()
    t = torch.cat([law(process, 3, Noise([seed]))[seed % 3][None] for seed in range(N)])
    share = (t[:, None] <= law.quantile(process, P)).double().mean(0)
    assert float((share - P).abs().max()) < DKW
    assert t.dtype == F64


@every
def test_low_discrepancy_puts_one_time_in_every_bin(name):
    law = TIMES[name]()
    edges = law.quantile(Flow(), torch.linspace(0, 1, 65, dtype=F64)[1:-1]).sort().values
    for seed in range(20):
        counts = torch.bincount(torch.bucketize(law(Flow(), 64, Noise([seed])), edges), minlength=64)
        if law.low_discrepancy:
            assert counts.tolist() == [1] * 64
        else:  # 64 independent draws miss a bin but for one case in 10^26
            assert int(counts.max()) > 1


def test_published_laws():
    """The densities that the papers write, by their quantiles 0.1587, 0.5 and 0.8413: the mean and one standard deviation."""
    u = torch.special.ndtr(scalar(0.0) + torch.tensor([-1.0, 0.0, 1.0], dtype=F64))
    t = LogitNormal()(Flow(), 1, Noise([0])), LogitNormal(mean=0.5, std=2.0).quantile(Flow(), u)
    torch.testing.assert_close(torch.logit(t[1]), torch.tensor([-1.5, 0.5, 2.5], dtype=F64))
    for process in (Flow(), Cosine(), VP()):  # ln sigma ~ N(-1.2, 1.2^2), Karras et al. 2022, table 1
        times = LogNormalSigma().quantile(process, u)
        log_level = (process.sigma(times) / process.alpha(times)).log()
        torch.testing.assert_close(log_level, torch.tensor([-2.4, -1.2, 0.0], dtype=F64))
    assert LogNormalSigma(mean=20.0).quantile(VP(), u).tolist() == [1, 1, 1]
    torch.testing.assert_close(Uniform().quantile(VP(), u), u)


@every
def test_batches_differ_and_come_again(name):
    law = TIMES[name]()
    first, second = law(Flow(), 5, Noise([1]).at(0)), law(Flow(), 5, Noise([1]).at(1))
    assert not bool((first == second).any())
    assert torch.equal(first, law(Flow(), 5, Noise([1]).at(0)))


@pytest.mark.parametrize("process", [EDM(), VP(), Flow()], ids=["edm", "vp", "flow"])
def test_geometric_levels_are_those_of_the_paper(process):
    """Song and Ermon 2019: sigma_1 = 1, ..., sigma_10 = 0.01 with one ratio, each with probability 1/10."""
    law = GeometricLevels()
    t = law(process, 1000, Noise([4]))
    level = (process.sigma(t) / process.alpha(t)).log10()
    steps = level * -4.5  # 0, 1, ..., 9
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-8)
    assert torch.bincount(steps.round().long()).tolist() == [100] * 10  # spread evenly
    assert torch.equal(t, law(process, 1000, Noise([4])))
    alone = GeometricLevels(low_discrepancy=False)(process, 20000, Noise([5]))
    counts = torch.bincount((-4.5 * (process.sigma(alone) / process.alpha(alone)).log10()).round().long())
    assert len(counts) == 10
    assert float((counts - 2000).square().sum() / 2000) < 36  # chi-square of 9 degrees: false alarm 4e-5
    with pytest.raises(ValueError, match="whole count"):
        GeometricLevels(count=2.5)
