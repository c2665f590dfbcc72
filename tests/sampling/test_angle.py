"""The angular rules: textbook Adams on equal steps, predict-evaluate-correct done plainly, exact on Gaussians, and safe."""

import math

import pytest
import torch

from oracles import F64, Mixture
from trilemma.denoise import Covariances, Denoiser, Gaussian, GaussianDenoiser
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import angular_grid
from trilemma.sampling import angle, angular, sample

D = 0.7  # sigma_data


def field(model, d):
    """dy/dtheta = v on EDM's process, from E[x | x_t] alone."""

    def v(y, theta):
        c, s = math.cos(theta), math.sin(theta)
        t = torch.tensor(d * s / c / model.process.sigma_max, dtype=F64)
        return (c * y - model(y * d / c, t).mean / d) / s

    return v


def test_predict_evaluate_correct_as_written_in_the_textbook():
    """Adams-Bashforth 3 with Adams-Moulton 3 (two steps) on equal steps of theta, state by state, in y and v alone."""
    model = Mixture.example().torch(EDM())
    v = field(model, D)
    h, n = -0.11, 8
    theta = [1.3 + i * h for i in range(n + 1)]
    y0 = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    corrected, predicted, values = y0, y0, []
    for i in range(n):
        values.append(v(predicted, theta[i]))
        if i == 1:
            corrected = corrected + h / 2 * (values[1] + values[0])
        elif i > 1:
            corrected = corrected + h / 12 * (5 * values[i] + 8 * values[i - 1] - values[i - 2])
        f = values[::-1]
        if i == 0:
            predicted = corrected + h * f[0]
        elif i == 1:
            predicted = corrected + h / 2 * (3 * f[0] - f[1])
        else:
            predicted = corrected + h / 12 * (23 * f[0] - 16 * f[1] + 5 * f[2])
    ts = D * torch.tensor(theta, dtype=F64).tan() / 80
    x = sample(model, (5, 2), ts, angular(3, sigma_data=D), x=y0 * D / math.cos(theta[0]))
    torch.testing.assert_close(x, predicted * D / math.cos(theta[-1]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("process", [VP(), Flow(), EDM()], ids=["vp", "flow", "edm"])
@pytest.mark.parametrize("steps", [3, 7, 40])
def test_exact_on_data_of_that_deviation(order, process, steps):
    """N(0, d^2): x_t / sqrt(alpha^2 d^2 + sigma^2) does not move, however few the steps; the end is at data, not near it."""
    model = GaussianDenoiser(process, torch.zeros(3), Covariances.diagonal(torch.full((1, 3), D**2, dtype=F64)))
    ts = angular_grid(process, steps, sigma_data=D)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    out = sample(model, (4, 3), ts, angular(order, sigma_data=D), x=x)
    scale = torch.hypot(process.alpha(ts[0]) * D, process.sigma(ts[0])) / D
    if order > 1:
        torch.testing.assert_close(out, x / scale, rtol=1e-9, atol=1e-9)
    else:  # its last step is x = D, which shrinks x by cos(theta)^2 of the last time above 0
        last = math.cos(float(angle(process, ts[-2], D)))
        torch.testing.assert_close(out, x / scale * last, rtol=1e-9, atol=1e-9)


class Bounded(Denoiser):
    def __init__(self, process):
        super().__init__()
        self.process = process

    def forward(self, x_t, t):
        return Gaussian(torch.tanh(2 * x_t))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_one_step_and_long_last_steps_end_on_the_denoised_state(order):
    for process in (VP(), Flow(), EDM()):
        x = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
        ts = torch.tensor([1.0, 0.0], dtype=F64)
        out = sample(Bounded(process), (6, 2), ts, angular(order), x=x)
        assert torch.equal(out, torch.tanh(2 * x))


def test_angle():
    """45 degrees where signal and noise are equally strong; 90 where there is no signal."""
    t = Flow().time(torch.tensor(-2 * math.log(D), dtype=F64))  # sigma = alpha d
    assert float(angle(Flow(), t, D)) == pytest.approx(math.pi / 4, abs=1e-12)
    assert float(angle(Flow(), torch.tensor(1.0), D)) == pytest.approx(math.pi / 2)


def levels(steps, **settings):
    """log(sigma / (alpha sigma_data)) of the inner times on Flow, highest first."""
    t = angular_grid(Flow(), steps, sigma_data=D, **settings)[1:-1]
    return (t / ((1 - t) * D)).log()


@pytest.mark.parametrize(("spread", "centre"), [(0.3, 0.0), (0.6, -1.0), (1.5, 0.7)])
def test_the_grid_has_the_density_that_it_says(spread, centre):
    """Its median is the centre, it is symmetric about it, and halving a share in its tail moves the level by log(2) / spread."""
    assert float(levels(2, spread=spread, centre=centre)) == pytest.approx(centre, abs=1e-3)
    many = levels(512, spread=spread, centre=centre)
    torch.testing.assert_close(many - centre, -(many - centre).flip(0), rtol=0, atol=2e-3)
    assert float(many[-2] - many[-1]) == pytest.approx(math.log(2) / spread, rel=0.01)


@pytest.mark.parametrize(("steps", "spread"), [(12, 0.5), (13, 0.6), (24, 0.6), (25, 0.5)])
def test_the_grid_is_narrower_for_a_middling_number_of_steps(steps, spread):
    assert torch.equal(levels(steps), levels(steps, spread=spread, centre=-0.1))
    other = {0.5: 0.6, 0.6: 0.5}[spread]
    assert (
        float(levels(steps)[0] - levels(steps, spread=other)[0]) * (other - spread) > 0
    )  # less spread reaches further


@pytest.mark.parametrize("order", [0, 6])
def test_orders(order):
    with pytest.raises(ValueError, match=f"order must be 1 to 5, got {order}"):
        angular(order)
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        angular(2, sigma_data=0.0)


def test_order_two_converges_late():
    """Its errors cancel on coarse grids (64 steps: 17 times less than without the corrector), so the law suite is too early."""
    from oracles import HIGH, flow_truth, log_snr_times, lowest

    process = VP()
    low = lowest(process)
    mixture, start, end = flow_truth(low, HIGH)
    error = []
    for n in (64, 256, 512):
        ts = log_snr_times(process, low, HIGH, n)
        x = sample(mixture.torch(process), start.shape, ts, angular(2), x=start * process.alpha(ts[0]))
        error.append(float((x / process.alpha(ts[-1]) - end).norm()))
    assert math.log2(error[1] / error[2]) >= 1.75
    assert error[0] < 1e-3


def test_the_default_takes_high_orders_only_where_steps_resolve_the_data():
    for steps, order in ((5, 2), (12, 2), (13, 3), (18, 3), (19, 4), (100, 4)):
        ts = angular_grid(VP(), steps)
        assert angular()(VP(), ts) == angular(order)(VP(), ts)


def test_sample_takes_a_number_of_steps():
    """The grid and the rule for the deviation that the model inside a wrapper knows."""
    from trilemma.denoise import Guided, Preconditioned

    model = Preconditioned(torch.nn.Identity(), Flow(), sigma_data=D)
    model.net.forward = lambda x, c_time: torch.tanh(x)
    ts = angular_grid(Flow(), 7, sigma_data=D)
    for denoiser in (model, Guided(model, model, 2.0)):
        expected = sample(denoiser, (3, 2), ts, angular(2, sigma_data=D), seeds=[4, 5, 6])
        assert torch.equal(sample(denoiser, (3, 2), 7, seeds=[4, 5, 6]), expected)
