"""A fitted schedule is a process, samples levels by the law that it claims, and lowers the variance of other items' bounds."""

import json

import pytest
import torch
from torch import nn

from oracles import F64, Mixture
from trilemma.denoise import Covariances, FiniteDenoiser, GaussianDenoiser, Preconditioned
from trilemma.likelihood.bound import elbo, eps_error
from trilemma.likelihood.schedule import fit_schedule
from trilemma.nets import MLP
from trilemma.numerics.noise import Noise
from trilemma.process import (
    EDM,
    VP,
    Flow,
    Learned,
    LogSNR,
    SubVP,
    process_from_config,
    process_from_entry,
    process_to_config,
)
from trilemma.process.times import Uniform
from trilemma.train import TrainConfig, Trainer
from trilemma.train.objectives import denoising_loss

CURVED = Learned((-9.0, -4.0, -1.0, 2.5, 6.0, 11.0), (0.02, 0.3, 1.0, 0.8, 0.2, 0.05))


def test_time_is_the_mass_of_the_density_above_a_level():
    """By quadrature of the definition, tail included; and the normalised density is -dt/dl."""
    knots, density = torch.tensor(CURVED.knots, dtype=F64), torch.tensor(CURVED.density, dtype=F64)
    levels = torch.linspace(-9, 11, 200_001, dtype=F64)
    i = torch.searchsorted(knots, levels).clamp(1, len(knots) - 1)
    p = density[i - 1] + (density[i] - density[i - 1]) * (levels - knots[i - 1]) / (knots[i] - knots[i - 1])
    below = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(p, levels)])
    total = below[-1] + 0.05 * 2  # the tail falls like e^(-l/2)
    torch.testing.assert_close(CURVED.time(levels), 1 - below / total, rtol=0, atol=1e-9)
    rate = CURVED.diffusion2(CURVED.time(levels)) / CURVED.sigma(CURVED.time(levels)).square()
    torch.testing.assert_close(1 / rate, p / total, rtol=1e-8, atol=1e-12)


def test_inverse_rates_and_tail_of_a_curved_schedule():
    t = torch.cat([torch.logspace(-12, -1, 40, dtype=F64), torch.linspace(0.1, 1, 77, dtype=F64)])
    torch.testing.assert_close(CURVED.time(CURVED.log_snr(t)), t, rtol=1e-11, atol=0)
    inner = t[(t > 1e-6) & (t < 0.999)]
    for rate, curve in zip(CURVED.rates(inner), (CURVED.alpha, CURVED.sigma)):
        h = 1e-5 * inner
        expected = (curve(inner + h) - curve(inner - h)) / (2 * h)
        torch.testing.assert_close(rate, expected, rtol=1e-5, atol=1e-6)
    start = CURVED.rates(torch.zeros(1, dtype=F64))
    assert float(start[1]) == pytest.approx(float(CURVED.sigma(torch.tensor(1e-9, dtype=F64))) / 1e-9)
    assert float(start[0]) == 0
    Preconditioned(nn.Identity(), CURVED, "velocity")  # sigma starts smoothly: every target is allowed


def test_levels_at_uniform_times_have_the_density():
    t = Uniform()(CURVED, 40_000, Noise(0, 1))
    share = float(((CURVED.log_snr(t) > -1) & (CURVED.log_snr(t) < 2.5)).double().mean())
    expected = float(CURVED.time(torch.tensor(-1.0, dtype=F64)) - CURVED.time(torch.tensor(2.5, dtype=F64)))
    assert abs(share - expected) < 1e-3


def test_saved_and_named_in_settings(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(process_to_config(CURVED)))
    assert process_from_entry(str(path)) == CURVED == process_from_config(process_to_config(CURVED))
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="does not hold a process"):
        process_from_entry(str(path))
    with pytest.raises(ValueError, match="increasing order"):
        Learned((1.0, 0.0), (1.0, 1.0))
    with pytest.raises(ValueError, match="must be positive"):
        Learned((0.0, 1.0), (1.0, 0.0))


def variance(model, x, schedule, low, high, seed, draws=40_000):
    """Of one draw f/p over items, levels and noise, and its mean: by sampling levels independently."""
    noise = Noise(seed, draws)
    x = x[(noise.at(0).uniform((draws,), dtype=F64) * len(x)).long()]
    u = noise.at(1).uniform((draws,), dtype=F64)
    if schedule is None:
        level, rate = high + u * (low - high), torch.full_like(u, high - low)
    else:
        a, b = schedule.time(torch.tensor([high, low], dtype=F64))
        t = a + u * (b - a)
        level, rate = schedule.log_snr(t), (b - a) * schedule.diffusion2(t) / schedule.sigma(t).square()
    eps = noise.at(2).normal((draws, 1, *x.shape[1:]), dtype=x.dtype)
    f = eps_error(model, x, level[:, None], eps, batch=8192)[:, 0] * rate / 2
    return float(f.var()), float(f.mean()), float(f.std()) / draws**0.5


def test_the_fitted_density_is_the_root_of_the_second_moment():
    """Data N(0, s^2) in one coordinate: eps - eps_hat is Gaussian of variance v = q at every level, so E f^2 = 3 q^2."""
    model = GaussianDenoiser(VP(), torch.zeros(1), Covariances.diagonal(torch.tensor([[0.5]])))
    x = model.draw(Noise(0, 4000))[0]
    fitted = fit_schedule(model, x, of="loss", ends=(-8.0, 8.0), levels=9, samples=4, batch=8192)
    level = torch.tensor(fitted.knots, dtype=F64)
    q = torch.sigmoid(level + torch.tensor(0.5, dtype=F64).log())
    expected = (q / q.max()).clamp(min=0.02)
    torch.testing.assert_close(torch.tensor(fitted.density, dtype=F64), expected, rtol=0.08, atol=0)


@pytest.fixture(scope="module")
def digits():
    """A small network trained on 8x8 digits, 17 levels of gray, and items that it never saw."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    order = Noise(5, 1).uniform((1, len(images)))[0].argsort()
    images = images[order]
    torch.manual_seed(0)
    model = Preconditioned(MLP(64, width=128, depth=2), VP(), "v", sigma_data=0.7)
    config = TrainConfig(steps=250, batch=128, lr=1e-3, weighting="v", times="low_discrepancy", precision="fp32")
    trainer = Trainer(model, images[:1400], config=config)
    for _ in trainer.steps():
        pass
    return model.eval(), images[:1400], images[1400:]


@pytest.mark.slow
def test_a_fitted_schedule_halves_the_variance_on_held_out_digits(digits):
    model, seen, held_out = digits
    bins = torch.linspace(-1, 1, 17)
    fitted = fit_schedule(model, seen[:256], bins=bins, samples=2, batch=2048)
    low, high = fitted.knots[0], fitted.knots[-1]
    plain, mean, error = variance(model, held_out, None, low, high, 1)
    better, same, other = variance(model, held_out, fitted, low, high, 2)
    assert abs(mean - same) < 4 * (error**2 + other**2) ** 0.5  # the bound itself is as it was
    assert better < plain / 2
    with torch.no_grad():
        bounds = [elbo(model, held_out[:64], bins=bins, schedule=s, samples=64) for s in (None, fitted)]
    gap = bounds[0].log_prob - bounds[1].log_prob
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / 8


def test_a_schedule_of_discrete_data_spends_its_time_where_they_are_told_apart():
    model = FiniteDenoiser(VP(), torch.tensor([[-1.0], [1.0]], dtype=F64))
    x = torch.tensor([[-1.0], [1.0]], dtype=F64).repeat(100, 1)
    fitted = fit_schedule(model, x, of="loss", ends=(-9.9, 10.0), samples=8, batch=8192)
    plain, mean, error = variance(model, x, None, -9.9, 10.0, 3)
    better, same, other = variance(model, x, fitted, -9.9, 10.0, 4)
    assert abs(mean - same) < 4 * (error**2 + other**2) ** 0.5
    assert better < plain / 2


def test_training_on_the_bound_estimates_the_diffusion_term():
    """The loss of weighting 'elbo' at uniform times, in nats, is the integral of the bound over the levels of the process."""
    mixture, process = Mixture.example(), Learned((-9.0, 0.0, 9.0), (0.3, 1.0, 0.3))
    model = Preconditioned(MLP(2, width=16, depth=1), process, "v").double()
    nn.init.normal_(model.net.out.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    x = mixture.torch(process).draw(Noise(0, 20_000))[0]
    t = Uniform()(process, len(x), Noise(1, 1))
    inside = t > process.time(torch.tensor(9.0, dtype=F64))
    with torch.no_grad():
        loss = 2 * denoising_loss(model, x, t, Noise(2, len(x)), weighting="elbo") * inside  # two coordinates
    bound = elbo(model, x[:2000], samples=16, ends=(-9.0, 9.0), batch=8192).diffusion
    error = (float(loss.var()) / len(x) + float(bound.value.var()) / 2000) ** 0.5
    assert abs(float(loss.mean() - bound.value.mean())) < 4.5 * error
    assert error < 0.05 * float(loss.mean())


def test_what_cannot_be_fitted_is_refused():
    model = GaussianDenoiser(Flow(), torch.zeros(1), Covariances.diagonal(torch.ones(1, 1)))
    with pytest.raises(ValueError, match="levels=1"):
        fit_schedule(model, torch.zeros(4, 1), levels=1)
    perfect = FiniteDenoiser(Flow(), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="no error at any level"):
        fit_schedule(perfect, torch.zeros(4, 1), of="loss")


@pytest.mark.parametrize("process", [VP(), SubVP(), EDM(5.0), Flow()], ids=lambda p: type(p).__name__)
def test_the_likelihood_weighting_is_the_bound_on_every_process(process):
    """ScoreFlow: a mean over times of density g^2/sigma^2, times the length of the interval, is the diffusion term."""
    model = Preconditioned(MLP(2, width=16, depth=1), process, "v").double()
    nn.init.normal_(model.net.out.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    x = Mixture.example().torch(process).draw(Noise(0, 10_000))[0]
    law = LogSNR(low=-8.0, high=8.0)
    low, high = law.ends(process)
    t = law(process, len(x), Noise(1, 1))
    with torch.no_grad():
        loss = 2 * (high - low) * denoising_loss(model, x, t, Noise(2, len(x)), weighting="likelihood")
    bound = elbo(model, x[:1000], samples=16, ends=(low, high), batch=8192).diffusion
    error = (float(loss.var()) / len(x) + float(bound.value.var()) / 1000) ** 0.5
    assert abs(float(loss.mean() - bound.value.mean())) < 4.5 * error
    assert error < 0.06 * float(loss.mean())


def test_both_forms_of_the_likelihood_weighting_train_the_same_bound():
    with pytest.raises(ValueError, match="wants uniform times"):
        Trainer(
            Preconditioned(MLP(2), VP(), "v"), torch.zeros(8, 2), config=TrainConfig(weighting="elbo", times="log_snr")
        )
    with pytest.raises(ValueError, match="in order"):
        LogSNR(low=3.0, high=1.0)
    with pytest.raises(ValueError, match="begins at log-SNR"):
        LogSNR(low=-20.0, high=-11.0).ends(VP())
