"""Variational bounds against densities and probabilities that are known, and against what the sampler really draws."""

import itertools
import math

import numpy as np
import pytest
import torch

from oracles import F64, Mixture, scalar
from trilemma.denoise import (
    Covariances,
    Denoiser,
    FiniteDenoiser,
    Gaussian,
    GaussianDenoiser,
    Preconditioned,
    Rescheduled,
)
from trilemma.likelihood import Control, discrete_bound, elbo
from trilemma.likelihood.bound import eps_error
from trilemma.likelihood.terms import bin_nll, softmax_nll
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VE, VP, Cosine, Flow, Learned, SubVP
from trilemma.sampling.stochastic import measure_error

PROCESSES = [VP(), SubVP(), VE(), EDM(), Flow(), Cosine(), Learned()]
every = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def gaussian(process, *variances):
    return GaussianDenoiser(process, torch.zeros(len(variances)), Covariances.diagonal(torch.tensor([variances])))


@every
def test_white_data_are_known_without_any_draw(process):
    """Data N(0, I): the denoiser is the one that is subtracted, so one lattice of eight draws gives the density."""
    x = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 3.0]], dtype=F64)
    bound = elbo(gaussian(process, 1.0, 1.0, 1.0), x, samples=8, control=Control.isotropic(1.0, 3))
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(bound.log_prob, exact, rtol=0, atol=2e-4)
    assert float(bound.diffusion.stderr.max()) < 1e-9


def test_a_wrapped_model_still_says_the_scale_of_its_data():
    """An untrained network in EDM's preconditioning is the denoiser of N(0, sigma_data^2); so on another process, too."""
    model = Preconditioned(lambda x, c_time: torch.zeros_like(x), Flow(), "edm", sigma_data=0.3)
    bound = elbo(Rescheduled(model, VP()), torch.tensor([[0.3, -0.2]], dtype=F64), samples=8)
    assert float(bound.diffusion.stderr) < 1e-6
    exact = torch.distributions.Normal(0.0, 0.3).log_prob(torch.tensor([0.3, -0.2])).sum()
    assert abs(float(bound.log_prob - exact)) < 2e-3  # the ends


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["VP", "Flow"])
@pytest.mark.parametrize("high", [14.0, 8.0])
def test_ends_leave_out_no_more_than_stated(process, high):
    """The end at the data costs O(e^-2b): variance 0.25 has precision 4, and 4 e^-8 would show, its square does not."""
    model = gaussian(
        process, 0.25, 0.25
    )  # sigma_data is 0.5 by default: the difference is 0, and only the ends are left
    x = torch.tensor([[0.3, -0.2]], dtype=F64)
    bound = elbo(model, x, samples=8, ends=(-9.9, high))
    exact = torch.distributions.Normal(0.0, 0.5).log_prob(x[0]).sum()
    assert abs(float(bound.log_prob - exact)) < 2e-4 + 2 * 16 * math.exp(-2 * high)


@every
def test_exact_denoisers_have_the_density_of_the_mixture(process):
    """Pointwise: at points of the data and at points of another law, where the same model is as exact."""
    mixture = Mixture.example()
    x = torch.cat([mixture.torch(process).draw(Noise(0, 24))[0], 1.5 * Noise(1, 24).normal((24, 2), dtype=F64)])
    bound = elbo(mixture.torch(process), x, samples=512, batch=8192)
    gap = bound.log_prob - torch.tensor(mixture.log_prob(x))
    error = float(bound.stderr.square().sum().sqrt()) / len(x)
    assert error < 0.08
    assert abs(float(gap.mean())) < 4.5 * error  # false alarm 1e-5
    z = gap / bound.stderr  # t with 7 degrees of freedom
    assert float(z.abs().max()) < 12
    assert 0.6 < float(z.square().mean()) < 3  # mean 7/5


class Halfway(Denoiser):
    """A linear denoiser that believes the data to be N(0, 1) and takes only ``share`` of the step."""

    def __init__(self, process, share):
        super().__init__()
        self.process, self.share = process, share

    def gain(self, tau):
        return self.share / (1 + tau)

    def forward(self, x_t, t):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        gain = self.share * alpha / (alpha**2 + sigma**2)
        return Gaussian(gain.reshape(-1, 1) * x_t if gain.ndim else gain * x_t)


@pytest.mark.parametrize("share", [0.9, 0.6])
def test_the_bound_of_a_wrong_model_is_below_the_density_of_what_it_draws(share):
    """The reverse equation of a linear denoiser draws a Gaussian, whose variance is propagated here in 2e5 steps."""
    low, high = -9.0, 9.0
    model = Halfway(Flow(), share)
    tau = np.exp(np.linspace(-low, -high, 200_001))  # (sigma/alpha)^2
    v = tau[0]
    for t, s in itertools.pairwise(tau):
        v = v * (1 - (1 - model.gain(t)) * (t - s) / t) ** 2 + (t - s)
    v = model.gain(tau[-1]) ** 2 * v + tau[-1]
    x = torch.tensor([[0.0], [0.7], [2.5]], dtype=F64)
    bound = elbo(model, x, samples=4096, ends=(low, high), batch=4096)
    exact = -0.5 * (x[:, 0] ** 2 / v + math.log(2 * math.pi * v))
    assert bool((bound.log_prob < exact + 4.5 * bound.stderr).all())
    assert bool(
        (bound.log_prob + 4.5 * bound.stderr < exact)[1:].all()
    )  # strictly, where the model would take another path
    # the error of the denoiser is known: the bound by quadrature of its definition
    levels = torch.linspace(low, high, 20_001, dtype=F64)
    gain = share / (1 + torch.exp(-levels))
    dim_part, x_part = gain**2, levels.exp() * (1 - gain) ** 2
    known = torch.trapezoid(dim_part + x_part * x**2, levels) / 2
    torch.testing.assert_close(bound.diffusion.value, known, rtol=0, atol=4.5 * float(bound.diffusion.stderr.max()))


def corners(dim):
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=dim)), dtype=F64)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=["VP", "EDM", "Flow"])
def test_probability_of_discrete_data(process):
    """Four corners of a square at height 0, with probabilities 1/7 and 2/7; the decoder has to tell three values apart."""
    points = corners(2)[[0, 0, 1, 1, 2, 3, 3]]
    points = torch.cat([points, torch.zeros(7, 1, dtype=F64)], 1)
    x = points[[0, 4]].repeat_interleave(100, 0)
    bound = elbo(FiniteDenoiser(process, points), x, bins=torch.tensor([-1.0, 0.0, 1.0]), samples=256, batch=8192)
    found = bound.log_prob.view(2, 100)
    error = found.std(1) / 10
    assert float(error.max()) < 0.05
    gap = found.mean(1) - torch.tensor([2 / 7, 1 / 7], dtype=F64).log()
    assert bool((gap < 4 * error).all())
    assert bool((gap > -0.02 - 4 * error).all())  # 0.02 for the values that three sigma do not tell apart


def test_the_softmax_decoder_is_a_law_over_the_values():
    """Its probabilities of all values at one x_t sum to one: each is asked with the noise that leads to the same x_t."""
    process, values, t = VP(), torch.tensor([-1.0, -0.2, 0.9]), scalar(0.1)
    alpha, sigma = process.alpha(t), process.sigma(t)
    total = 0.0
    for value in values.double():
        eps = (0.4 - alpha * value) / sigma
        total += math.exp(-float(softmax_nll(process, value.reshape(1, 1), t, values, eps.reshape(1, 1))))
    assert abs(total - 1) < 1e-6


@pytest.mark.parametrize("std", [1e-3, 0.3, 50.0])
def test_the_gaussian_decoder_is_a_law_over_the_values(std):
    values, mean = torch.tensor([-1.0, -0.2, 0.9]).double(), scalar(-0.17)
    nll = [
        bin_nll(v.reshape(1, 1), mean.reshape(1, 1), scalar(std**2).reshape(1, 1), values.float())
        for v in values.float().double()
    ]
    assert abs(sum(math.exp(-float(value)) for value in nll) - 1) < 1e-6
    assert all(math.isfinite(float(value)) for value in nll)  # 1000 standard deviations away


def test_standard_errors_are_honest():
    """One point 300 times with other seeds: the spread is what is stated, by its mean square, to 4 sigma of a chi-square."""
    mixture = Mixture.example()
    x = torch.tensor([[0.2, -0.1]], dtype=F64).expand(300, 2)
    for times, samples in (("low_discrepancy", 64), ("antithetic", 32), ("independent", 32)):
        bound = elbo(mixture.torch(VP()), x, samples=samples, times=times, batch=8192)
        ratio = float(bound.log_prob.var() / bound.stderr.square().mean())
        assert 0.65 < ratio < 1.5, (times, ratio)


def test_spread_times_beat_independent_ones():
    """On data for which the integrand depends on little but the level: thrice the variance at least."""
    model, x = gaussian(VP(), *[0.04] * 64), torch.zeros(64, 64, dtype=F64)
    error = {
        t: elbo(model, x, samples=64, times=t, batch=4096).diffusion.stderr.square().mean()
        for t in ("low_discrepancy", "independent")
    }
    assert error["independent"] > 3 * error["low_discrepancy"]


def test_items_do_not_depend_on_their_neighbours():
    model = Mixture.example().torch(Flow())
    x, seeds = model.draw(Noise(0, 5))[0], [3, 1, 4, 1, 5]
    together = elbo(model, x, samples=16, seeds=seeds)
    alone = elbo(model, x[2:3], samples=16, seeds=seeds[2:3], batch=3)
    torch.testing.assert_close(together.log_prob[2:3], alone.log_prob, rtol=1e-9, atol=1e-9)
    ts = torch.linspace(1, 0, 6, dtype=F64)
    together, alone = discrete_bound(model, x, ts, seeds=seeds), discrete_bound(model, x[2:3], ts, seeds=[4], batch=1)
    torch.testing.assert_close(together.steps.value[2:3], alone.steps.value, rtol=1e-9, atol=1e-9)


def test_steps_of_the_smaller_variance_are_differences_of_the_snr():
    """VDM's form of the same bound, (SNR_s - SNR_t) E|x - D|^2 / 2, with the error of Gaussian data in closed form."""
    s2, process = 0.3, VP()
    ts = torch.linspace(1, 0, 9, dtype=F64)
    x = torch.tensor([[0.4]], dtype=F64).expand(400, 1)
    bound = discrete_bound(gaussian(process, s2), x, ts, samples=16)
    assert torch.equal(bound.ts, ts[:-1])
    snr = process.log_snr(ts[:-1]).exp()
    gain = snr * s2 / (1 + snr * s2)
    error = (1 - gain) ** 2 * 0.16 + gain**2 / snr  # E|x - D|^2 at x = 0.4
    expected = (snr[1:] - snr[:-1]) * error[:-1] / 2
    found, spread = bound.steps.value.mean(0), bound.steps.value.std(0) / 20
    assert bool(((found - expected).abs() < 4.5 * spread).all())
    decoder = 0.5 * (math.log(2 * math.pi / float(snr[-1])) + float(snr[-1] * error[-1]))
    assert abs(float(bound.reconstruction.value.mean()) - decoder) < 4.5 * float(bound.reconstruction.value.std()) / 20


def test_more_steps_are_better_and_the_limit_is_the_density():
    mixture = Mixture.example()
    model = mixture.torch(VP())
    x = model.draw(Noise(2, 256))[0]
    exact = torch.tensor(mixture.log_prob(x)).mean()
    gaps = {}
    for n in (8, 24, 72):
        ts = model.process.time(torch.linspace(-9.9, 9, n + 1, dtype=F64))
        gaps[n] = float(exact - discrete_bound(model, x, ts, samples=2).log_prob.mean())
    assert gaps[8] > 1.5 * gaps[24] > 1.5**2 * gaps[72]
    assert -0.15 < gaps[72] < 1.2


def test_the_optimal_variance_is_the_best_of_all():
    """Analytic-DPM's variance against DDPM's two, step by step: means over the same items and noise."""
    mixture = Mixture.example()
    model = mixture.torch(VP())
    x, ts = model.draw(Noise(3, 512))[0], VP().time(torch.linspace(-9, 8, 13, dtype=F64))
    curve = measure_error(model, x, ts, Noise(9, 512))
    steps = {v: discrete_bound(model, x, ts, variance=v).steps.value.mean(0) for v in ("small", "large", curve)}
    assert bool((steps[curve] < steps["small"] + 1e-3).all())
    assert bool((steps[curve] < steps["large"] + 1e-3).all())
    assert float(steps[curve].sum()) < min(0.6 * float(steps["small"].sum()), 0.995 * float(steps["large"].sum()))


class WithVariance(Denoiser):
    """The exact law of Gaussian data, variance included."""

    def __init__(self, model, s2):
        super().__init__()
        self.model, self.s2, self.process = model, s2, model.process

    def forward(self, x_t, t):
        mean = self.model(x_t, t).mean
        return Gaussian(mean, torch.full_like(mean, float(self.s2 / (1 + self.s2 * self.process.log_snr(t).exp()))))


def test_the_variance_of_the_denoiser_is_used_and_loses_nothing_on_gaussian_data():
    model = WithVariance(gaussian(VP(), 0.5), 0.5)
    x = torch.tensor([[0.1], [1.0]], dtype=F64).repeat_interleave(500, 0)
    bound = discrete_bound(model, x, torch.linspace(1, 0, 5, dtype=F64), variance="learned", batch=1000)
    found = bound.log_prob.view(2, 500)
    exact = torch.distributions.Normal(0.0, 0.5**0.5).log_prob(x[::500, 0])
    error = found.std(1) / 500**0.5
    assert float(error.max()) < 0.05
    assert bool(((found.mean(1) - exact).abs() < 4.5 * error + 1e-3).all())


def test_images_on_bins_by_steps():
    """A finite set of two images: at most log 1/2, and near it where the steps are short."""
    data = torch.tensor([[-1.0, 1.0, 0.0, 1.0], [1.0, 1.0, -1.0, 0.0]], dtype=F64)
    ts = Flow().time(torch.linspace(-12, 9, 200, dtype=F64))
    bound = discrete_bound(
        FiniteDenoiser(Flow(), data), data.repeat(64, 1), ts, bins=torch.tensor([-1.0, 0.0, 1.0]), samples=2
    )
    mean, error = float(bound.log_prob.mean()), float(bound.log_prob.std()) / 128**0.5
    assert math.log(0.5) - 0.12 - 4 * error < mean < math.log(0.5) + 4 * error


def test_eps_error_is_the_error_of_eps():
    mixture = Mixture.example()
    process = SubVP()
    x, eps = torch.tensor([[0.3, -0.8]], dtype=F64), torch.tensor([[[0.5, 1.5]]], dtype=F64)
    t = process.time(scalar(0.7))
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    x_t = alpha * x + sigma * eps[:, 0]
    guess = (x_t - alpha * torch.tensor(mixture.denoise(x_t, alpha, sigma))) / sigma
    found = eps_error(mixture.torch(process), x, scalar(0.7).reshape(1, 1), eps)
    torch.testing.assert_close(found[0], (eps[0] - guess).square().sum(1), rtol=1e-9, atol=0)


def test_what_cannot_be_is_refused():
    model, x = gaussian(VP(), 1.0), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="samples=12 must be a positive multiple of 8"):
        elbo(model, x, samples=12)
    with pytest.raises(ValueError, match="antithetic"):
        elbo(model, x, times="antithetik")
    with pytest.raises(ValueError, match="begins at -10"):
        elbo(model, x, ends=(-12.0, 5.0))
    with pytest.raises(ValueError, match=r"reaches log-SNR -5, .* begins at -10"):
        elbo(model, x, schedule=Learned((-5.0, 9.0), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"0\.3 away from the nearest of 3 values"):
        elbo(model, x + 0.3, bins=torch.tensor([-1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="gives none"):
        discrete_bound(model, x, torch.tensor([1.0, 0.5, 0.0]), variance="learned")
    with pytest.raises(ValueError, match="where alpha = 0"):
        discrete_bound(gaussian(Flow(), 1.0), x, torch.tensor([1.0, 0.0]))
