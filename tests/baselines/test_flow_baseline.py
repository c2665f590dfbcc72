"""Normalising flows: densities that integrate to one, exact integer likelihoods, inverses, a known law learnt."""

import math

import pytest
import torch

from trilemma.baselines.flow import NormalizingFlow
from trilemma.numerics.noise import Noise
from trilemma.train import TrainConfig, Trainer

pytest.importorskip("zuko")


def flow(shape=(2,), **options):
    torch.manual_seed(0)
    game = NormalizingFlow(shape, **{"levels": 0, "transforms": 3, "hidden": (16,), **options}).double()
    with torch.no_grad():
        for parameter in game.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return game.eval()


KINDS = [{"kind": "realnvp"}, {"kind": "spline"}, {"kind": "spline", "passes": 0}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_density_integrates_to_one(kind):
    game = flow(**kind)
    line = torch.linspace(-12, 12, 301, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    density = game.log_prob(points).exp().view(301, 301)
    assert abs(float(torch.trapezoid(torch.trapezoid(density, line), line)) - 1) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_density(kind):
    """The mean log-density of 4000 samples is the integral of p log p within 5 standard errors: once in 1.7 million."""
    game = flow(**kind)
    line = torch.linspace(-12, 12, 301, dtype=torch.float64)
    log_p = game.log_prob(torch.cartesian_prod(line, line)).view(301, 301)
    entropy = torch.trapezoid(torch.trapezoid(log_p.exp() * log_p, line), line)
    seen = game.log_prob(game.sample(4000, seeds=1))
    assert abs(float(seen.mean() - entropy)) < 5 * float(seen.std()) / 4000**0.5 + 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_masses_of_all_integers_sum_to_one(kind):
    """Two pixels of three levels: nine items, each integrated by 600 draws of r; 5 standard errors, once in 1.7 million."""
    game, n = flow((1, 1, 2), levels=3, **kind), 600
    level = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    items = torch.cartesian_prod(level, level).view(9, 1, 1, 2)
    total, error = 0.0, 0.0
    for i, item in enumerate(items):
        with torch.no_grad():
            p = game._log_prob(item.expand(n, -1, -1, -1), None, Noise(i, n)).exp()
        total, error = total + float(p.mean()), error + float(p.var()) / n
        if i == 4:  # many draws at once are the same average
            many = game.log_prob(item[None], draws=100, seeds=7).exp()
            assert abs(float(many - p.mean())) < 5 * float(p.std()) * (1 / 100 + 1 / n) ** 0.5
    # the margin leaves (1 - a) of the unit square to the integers: what a flow puts outside is lost
    v = torch.logit(torch.tensor([game.margin / 2, 1 - game.margin / 2], dtype=torch.float64))
    line = torch.linspace(float(v[0]), float(v[1]), 201, dtype=torch.float64)
    with torch.no_grad():
        inside = game._law(None, 1).log_prob(torch.cartesian_prod(line, line)).exp().view(201, 201)
    want = float(torch.trapezoid(torch.trapezoid(inside, line), line))
    assert abs(total - want) < 5 * error**0.5 + 1e-4


def test_more_draws_of_the_dequantisation_raise_the_bound():
    """The mean rise over 200 items is above 3 of its standard errors; a rise of nothing would be so once in 700."""
    game = flow((1, 2, 2), levels=4)
    x = torch.randint(0, 4, (200, 1, 2, 2), generator=torch.Generator().manual_seed(0)).double() * (2 / 3) - 1
    rise = game.log_prob(x, draws=32, seeds=1) - game.log_prob(x, seeds=2)
    assert rise.mean() > 3 * rise.std() / 200**0.5


def test_samples_of_integer_data_are_integers_and_their_own():
    game = flow((1, 2, 2), levels=5, classes=2)
    label = torch.tensor([0, 1, -1])
    x = game.sample(3, seeds=[4, 5, 6], label=label)
    assert x.shape == (3, 1, 2, 2)
    assert ((x + 1) * 2).sub(((x + 1) * 2).round()).abs().max() < 1e-9
    torch.testing.assert_close(game.sample(1, seeds=[5], label=label[1:2]), x[1:2])
    given, other = (game.log_prob(x, torch.full((3,), k)) for k in (0, 1))
    assert (given - other).abs().min() > 1e-6


def trained(folder, steps, stop=None):
    """Points of a normal law with correlation 0.8, whose entropy is known."""
    torch.manual_seed(0)
    game = NormalizingFlow((2,), kind="realnvp", levels=0, transforms=4, hidden=(32,))
    z = torch.randn(4096, 2, generator=torch.Generator().manual_seed(1))
    x = torch.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], 1)
    config = TrainConfig(
        steps=steps, batch=128, lr=5e-3, warmup=10, decay="cosine", ema=("power:0.1",), precision="fp32"
    )
    trainer = Trainer(game, x, config=config)
    trainer.resume(folder)
    for record in trainer.steps():
        if record.step == stop:
            break
    trainer.save(folder)
    return trainer


def test_a_flow_learns_a_known_law(tmp_path):
    trainer = trained(tmp_path, 200)
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2))
    x = torch.stack([z[:, 0], 0.8 * z[:, 0] + 0.6 * z[:, 1]], 1)
    law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    with trainer.averaged() as game:
        short = (law.log_prob(x).double() - game.log_prob(x)).mean()
    assert -0.005 < short < 0.02  # the divergence of the law from the flow, on other points


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 4, stop=2)
    parts = trained(tmp_path / "parts", 4)
    for one, two in zip(whole.model.state_dict().values(), parts.model.state_dict().values()):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"kind": "glow"}, "glow"), ({"levels": 1}, "levels=1"), ({"margin": 0.0}, "margin=0"), ({"shape": (1,)}, "1 element"),
     ({"transforms": 0}, "transforms=0"), ({"passes": 1}, "passes=1")],
)  # fmt: skip
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        flow(**options)


def test_items_that_do_not_fit_are_refused():
    game = flow((1, 2, 2), levels=4)
    with pytest.raises(ValueError, match="none of the 4 levels"):
        game.log_prob(torch.full((1, 1, 2, 2), 0.1))
    with pytest.raises(ValueError, match="shape"):
        game.log_prob(torch.zeros(1, 4))
    assert math.isfinite(float(game.log_prob(torch.ones(1, 1, 2, 2).double())))


def test_bits_per_dimension_are_those_of_a_law_of_integers():
    """2^-(D bits) over all images of two pixels of three levels adds up to 1 but for what the bound misses."""
    game = flow(levels=3)
    levels = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    bits = game.bits_per_dim(torch.cartesian_prod(levels, levels), draws=256)
    assert 0.95 < float((2 ** (-2 * bits)).sum()) < 1.05
    assert flow(levels=0).bits_per_dim(torch.zeros(3, 2, dtype=torch.float64)) is None
