"""Every weighting against its published form on the x0 or eps error, on every process and target, in float64."""

import math

import pytest
import torch
from numpy.polynomial.legendre import leggauss
from torch import nn

from trilemma.denoise import TARGETS, Covariances, GaussianDenoiser, Preconditioned
from trilemma.process import EDM, PROCESSES, VP, Cosine, Flow
from trilemma.train.objectives import WEIGHTINGS, denoising_loss, loss_weight, weighting

SIGMA_DATA = 0.5
SHAPE = (6, 2, 3)


class Scale(nn.Module):
    """A linear network with one coefficient per item."""

    def __init__(self, k):
        super().__init__()
        self.k = nn.Parameter(k)

    def forward(self, x, c_time):
        return self.k[:, None] * x


def models(net):
    for name, process in PROCESSES.items():
        for target in TARGETS:
            try:
                yield f"{name}-{target}", Preconditioned(net, process(), target, sigma_data=SIGMA_DATA)
            except ValueError:
                continue  # singular on this process, and refused


IDS = [name for name, _ in models(nn.Identity())]


def model_of(name, net):
    return next(model for key, model in models(net) if key == name)


@pytest.mark.parametrize("name", IDS)
def test_the_minimiser_is_the_posterior_mean_whatever_the_target_and_the_weighting(name):
    """Four items with the second moments of a Gaussian law of x and eps: the loss of a linear network sees nothing else."""
    s = 0.7
    x = s * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64)
    eps = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    for time in (0.03, 0.4, 0.85):
        t = torch.full((4,), time, dtype=torch.float64)
        model = model_of(name, Scale(torch.zeros(4, dtype=torch.float64)))
        truth = GaussianDenoiser(
            model.process,
            torch.zeros(1, dtype=torch.float64),
            Covariances.diagonal(torch.full((1, 1), s**2, dtype=torch.float64)),
        )
        gain = truth(torch.ones(4, 1, dtype=torch.float64), t).mean.flatten()
        c_skip, c_out, c_in, _ = model.coefficients(t)
        best = (gain - c_skip) / (c_out * c_in)
        for which in WEIGHTINGS:
            with torch.no_grad():
                model.net.k.copy_(best)
            loss = denoising_loss(model, x, t, eps, weighting=which).sum()
            (slope,) = torch.autograd.grad(loss, model.net.k)
            with torch.no_grad():
                model.net.k.add_(0.1)
            worse = denoising_loss(model, x, t, eps, weighting=which).sum()
            (scale,) = torch.autograd.grad(worse, model.net.k)
            assert abs(float(slope.sum())) <= 1e-9 * abs(float(scale.sum()))
            assert worse > loss


def errors(model, x, eps, t):
    """Squared errors of x0 and of eps, from what the denoiser says; and SNR and -dl/dt by differences."""
    process = model.process
    alpha, sigma = process.alpha(t), process.sigma(t)
    with torch.no_grad():
        x0 = model(process.perturb(x, t, eps), t).mean
    on_x = (x0 - x).square().flatten(1).mean(1)
    h = 1e-6
    return (
        on_x,
        on_x * (alpha / sigma).square(),
        (alpha / sigma).square(),
        (process.log_snr(t - h) - process.log_snr(t + h)) / (2 * h),
    )


PUBLISHED = {
    "x0": lambda on_x, on_eps, snr, rate: on_x,
    "eps": lambda on_x, on_eps, snr, rate: on_eps,
    "v": lambda on_x, on_eps, snr, rate: on_x + on_eps,
    "min_snr": lambda on_x, on_eps, snr, rate: snr.clamp(max=5) * on_x,
    "min_snr:1": lambda on_x, on_eps, snr, rate: snr.clamp(max=1) * on_x,
    "p2": lambda on_x, on_eps, snr, rate: on_eps / (1 + snr),
    "p2:2,0.5": lambda on_x, on_eps, snr, rate: on_eps / (2 + snr).sqrt(),
    "sigmoid": lambda on_x, on_eps, snr, rate: rate * on_eps / (1 + snr * math.exp(-2)),
    "sigmoid:-3": lambda on_x, on_eps, snr, rate: rate * on_eps / (1 + snr * math.exp(3)),
    "elbo": lambda on_x, on_eps, snr, rate: rate * on_eps / 2,
    "likelihood": lambda on_x, on_eps, snr, rate: on_eps / 2,
}


@pytest.mark.parametrize("name", IDS)
def test_losses_are_the_published_ones(name):
    assert {entry.split(":")[0] for entry in PUBLISHED} | {"unit"} == set(WEIGHTINGS)
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(SHAPE, dtype=torch.float64, generator=generator) for _ in range(2))
    k = torch.randn(SHAPE[0], dtype=torch.float64, generator=generator)

    class Net(nn.Module):
        def forward(self, x, c_time):
            return k[:, None, None] * x.sin()

    model = model_of(name, Net())
    t = torch.tensor([0.0203, 0.1237, 0.3004, 0.5513, 0.7706, 0.9602], dtype=torch.float64)
    on_x, on_eps, snr, rate = errors(model, x, eps, t)
    for entry, published in PUBLISHED.items():
        expected = published(on_x, on_eps, snr, rate)
        torch.testing.assert_close(denoising_loss(model, x, t, eps, weighting=entry), expected, rtol=1e-4, atol=0)


def test_unit_is_edms_weighting_for_edms_target_and_l_simple_for_eps():
    x, eps = (torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    t = torch.tensor([1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0], dtype=torch.float64)

    class Net(nn.Module):
        def forward(self, x, c_time):
            return x.tanh()

    edm = Preconditioned(Net(), EDM(), "edm", sigma_data=SIGMA_DATA)
    sigma = edm.process.sigma(t)
    expected = errors(edm, x, eps, t)[0] * (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    torch.testing.assert_close(denoising_loss(edm, x, t, eps), expected, rtol=1e-10, atol=0)
    simple = Preconditioned(edm.net, VP(), "eps")
    torch.testing.assert_close(denoising_loss(simple, x, t, eps), errors(simple, x, eps, t)[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("process", [VP(), Flow(), Cosine(), EDM()], ids=str)
def test_elbo_integrates_to_the_closed_form_on_a_gaussian(process):
    """Half the integral over SNR of s^2 / (1 + s^2 SNR), the error of the best denoiser, is half a logarithm."""
    s, low, high = 0.7, 0.05, 0.9
    nodes, weights = (torch.as_tensor(v) for v in leggauss(60))
    t = low + (high - low) * (nodes + 1) / 2
    model = Preconditioned(Scale(torch.zeros(60, dtype=torch.float64)), process, "edm", sigma_data=s)
    ones = torch.ones(60, 1, dtype=torch.float64)  # with sigma_data = s the best network answers zero
    signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]  # four items with the second moments of the law
    loss = sum(denoising_loss(model, a * s * ones, t, b * ones, weighting="elbo").detach() for a, b in signs) / 4
    integral = float((loss * weights).sum() * (high - low) / 2)
    ends = process.log_snr(torch.tensor([low, high], dtype=torch.float64)).exp()
    exact = 0.5 * math.log((1 + s**2 * float(ends[0])) / (1 + s**2 * float(ends[1])))
    assert integral == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("name", IDS)
def test_weights_are_finite_and_positive_up_to_both_ends(name):
    model = model_of(name, nn.Identity())
    t = torch.tensor([0.0, 1e-300, 2**-53, 1e-6, 0.5, 1 - 2**-53, 1.0], dtype=torch.float64)
    for which in WEIGHTINGS:
        weight = loss_weight(model, t, which)
        assert bool(torch.isfinite(weight).all()), which
        assert bool((weight >= 0).all()), which


def test_unknown_weightings_are_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="min_snr"):
        weighting("minsnr")
    with pytest.raises(ValueError, match="arguments"):
        weighting("sigmoid:1,2")
