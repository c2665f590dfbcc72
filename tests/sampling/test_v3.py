"""DPM-Solver-v3: exact where its linearisation is, the two solvers that are special cases of it, statistics, and order."""

import math

import pytest
import torch

from oracles import F64, HIGH, LOW, Mixture, flow_truth, log_snr_times
from trilemma.denoise import Covariances, GaussianDenoiser
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import log_snr_grid
from trilemma.sampling import exponential, sample
from trilemma.sampling.v3 import Statistics, dpm_solver_v3, model_statistics


def constant(linear, slope, offset=0.0, shape=(2,)):
    return Statistics(-6.0, 6.0, *(torch.full((4, *shape), value, dtype=F64) for value in (linear, slope, offset)))


def items_of(mixture, count):
    rng = torch.Generator().manual_seed(0)
    which = torch.multinomial(torch.tensor(mixture.weights), count, replacement=True, generator=rng)
    roots = torch.linalg.cholesky(torch.tensor(mixture.covs))[which]
    return torch.tensor(mixture.means)[which] + (roots @ torch.randn(count, 2, 1, generator=rng, dtype=F64))[..., 0]


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=["vp", "edm", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_gaussian_data_are_exact_at_any_number_of_steps(process, order):
    """The deviation from alpha m grows like sqrt(alpha^2 v + sigma^2), in one step as in ten."""
    m, v = torch.tensor([0.7, -0.3], dtype=F64), torch.tensor([0.25, 2.0], dtype=F64)
    model = GaussianDenoiser(process, m, Covariances.diagonal(v[None]))
    items = m + v.sqrt() * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    statistics = model_statistics(model, items)
    x = torch.tensor([[1.0, -2.0], [0.3, 0.4]], dtype=F64)
    for steps in (1, 2, 3, 10):
        ts = log_snr_times(process, -8.0, 4.0, steps)
        alpha, sigma = process.alpha(ts), process.sigma(ts)
        spread = (alpha[:, None] ** 2 * v + sigma[:, None] ** 2).sqrt()
        exact = alpha[-1] * m + (x - alpha[0] * m) * spread[-1] / spread[0]
        for corrector in (False, True):
            out = sample(model, (2, 2), ts, dpm_solver_v3(statistics, order, corrector=corrector), x=x)
            torch.testing.assert_close(out, exact, rtol=0, atol=1e-6)


def test_the_statistics_of_gaussian_data_are_those_of_algebra():
    """l = rho^2/(v + rho^2), f = -l m for every y, so s = 0 and b = -m dl/dlambda = 2 m v rho^2 / (v + rho^2)^2."""
    m, v = 0.7, 0.25
    model = GaussianDenoiser(VP(), torch.tensor([m]), Covariances.diagonal(torch.tensor([[v]])))
    items = m + math.sqrt(v) * torch.randn(16, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    lam = torch.linspace(-4.5, 5.5, 21, dtype=F64)
    linear, slope, offset = model_statistics(model, items).at(lam.tolist())
    rho2 = torch.exp(-2 * lam)[:, None]
    torch.testing.assert_close(linear, rho2 / (v + rho2), rtol=0, atol=1e-8)
    torch.testing.assert_close(offset, 2 * m * v * rho2 / (v + rho2) ** 2, rtol=0, atol=1e-6)
    assert not slope.any()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("linear", "slope", "prediction"), [(1.0, 0.0, "x0"), (0.0, -1.0, "eps")])
def test_special_statistics_are_dpm_solver(order, linear, slope, prediction):
    """With l = 1, s = 0 the polynomial is fitted to D, with l = 0, s = -1 to eps, and all integrals are exact."""
    process, (mixture, start, _) = VP(), flow_truth()
    model, ts = mixture.torch(process), log_snr_times(process, LOW, HIGH, 8)
    rules = dpm_solver_v3(constant(linear, slope), order, corrector=False), exponential(order, prediction=prediction)
    ends = [sample(model, start.shape, ts, rule, x=start * process.alpha(ts[0])) for rule in rules]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("order", "corrector", "expected"), [(1, False, 1), (2, False, 2), (2, True, 3), (3, True, 3)])
def test_order_on_a_mixture(order, corrector, expected):
    """The statistics of 256 items are no exact linearisation, and need not be: they change the constant only."""
    process, (mixture, start, end) = EDM(), flow_truth()
    model = mixture.torch(process)
    statistics = model_statistics(model, items_of(mixture, 256), nodes=64)
    errors = []
    for steps in (64, 128) if corrector else (128, 256):
        ts = log_snr_times(process, LOW, HIGH, steps)
        errors.append(
            float(
                (
                    sample(model, start.shape, ts, dpm_solver_v3(statistics, order, corrector=corrector), x=start) - end
                ).norm()
            )
        )
    assert math.log2(errors[0] / errors[1]) >= expected - 0.25


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_the_whole_way_ends_at_the_denoised_state(process):
    """From t = 1, where alpha may be 0, to t = 0, in float32."""
    model = Mixture.example().torch(process)
    statistics = model_statistics(model, items_of(Mixture.example(), 256).float(), nodes=64)
    last = []
    grid = log_snr_grid(process, 40)
    out = sample(model, (5, 2), grid, dpm_solver_v3(statistics), hook=lambda p: last.append(p.x0))
    assert torch.equal(out, last[-1])
    assert out.dtype == torch.float32
    fine = sample(model, (5, 2), log_snr_grid(process, 200), exponential(3))
    assert float((out - fine).norm() / fine.norm()) < 0.02


def test_what_it_refuses():
    with pytest.raises(ValueError, match="cover log-SNRs"):
        dpm_solver_v3(constant(1.0, 0.0))(EDM(), EDM().time(torch.tensor([-5.0, 14.0], dtype=F64)))
    with pytest.raises(ValueError, match="order"):
        dpm_solver_v3(constant(1.0, 0.0), 5)
    model = Mixture.example().torch(VP())
    with pytest.raises(ValueError, match="low < high"):
        model_statistics(model, torch.zeros(1, 2), low=3.0, high=2.0)
