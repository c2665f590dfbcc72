"""DPM-Solver-v3: exact where its linearisation is, the two solvers that are special cases of it, statistics, and order."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from oracles import F64, HIGH, LOW, Mixture, flow_truth, log_snr_times
from trilemma.denoise import Covariances, Denoiser, Gaussian, GaussianDenoiser
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import log_snr_grid
from trilemma.sampling import exponential, sample
from trilemma.sampling.v3 import Statistics, _points, dpm_solver_v3, model_statistics


def constant(linear, slope, offset=0.0, shape=(2,)):
    return Statistics(-6.0, 6.0, *(torch.full((4, *shape), value, dtype=F64) for value in (linear, slope, offset)))


@cache
def mixture_statistics(process):
    mixture = Mixture.example()
    return model_statistics(mixture.torch(process), items_of(mixture, 256).float(), nodes=64)


def items_of(mixture, count):
    rng = torch.Generator().manual_seed(0)
    which = torch.multinomial(torch.tensor(mixture.weights), count, replacement=True, generator=rng)
    roots = torch.linalg.cholesky(torch.tensor(mixture.covs))[which]
    return torch.tensor(mixture.means)[which] + (roots @ torch.randn(count, 2, 1, generator=rng, dtype=F64))[..., 0]


M, V = torch.tensor([0.7, -0.3], dtype=F64), torch.tensor([0.25, 2.0], dtype=F64)


@cache
def gaussian(process):
    """N(M, diag V), its statistics from 16 items."""
    model = GaussianDenoiser(process, M, Covariances.diagonal(V[None]))
    items = M + V.sqrt() * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return model, model_statistics(model, items)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=["vp", "edm", "flow"])
@pytest.mark.parametrize("order", [1, 3])
def test_gaussian_data_are_exact_at_any_number_of_steps(process, order):
    """The deviation from alpha m grows like sqrt(alpha^2 v + sigma^2), in one step as in ten."""
    model, statistics = gaussian(process)
    x = torch.tensor([[1.0, -2.0], [0.3, 0.4]], dtype=F64)
    for steps in (1, 2, 7):
        ts = log_snr_times(process, -8.0, 4.0, steps)
        alpha, sigma = process.alpha(ts), process.sigma(ts)
        spread = (alpha[:, None] ** 2 * V + sigma[:, None] ** 2).sqrt()
        exact = alpha[-1] * M + (x - alpha[0] * M) * spread[-1] / spread[0]
        for corrector in (False, True):
            out = sample(model, (2, 2), ts, dpm_solver_v3(statistics, order, corrector=corrector), x=x)
            torch.testing.assert_close(out, exact, rtol=0, atol=1e-6)


def test_the_statistics_of_gaussian_data_are_those_of_algebra():
    """l = rho^2/(v + rho^2), f = -l m for every y, so s = 0 and b = -m dl/dlambda = 2 m v rho^2 / (v + rho^2)^2."""
    _, statistics = gaussian(VP())
    lam = torch.linspace(-4.5, 5.5, 21, dtype=F64)
    linear, slope, offset = statistics.at(lam.tolist())
    rho2 = torch.exp(-2 * lam)[:, None]
    torch.testing.assert_close(linear, rho2 / (V + rho2), rtol=0, atol=1e-8)
    torch.testing.assert_close(offset, 2 * M * V * rho2 / (V + rho2) ** 2, rtol=0, atol=1e-6)
    assert not slope.any()


class Labelled(Denoiser):
    """Not linear, with a condition; remembers how many items it was given."""

    cond_keys = frozenset({"label"})

    def __init__(self, process):
        super().__init__()
        self.process, self.rows, self.drop = process, [], torch.nn.Dropout(0.1)

    def forward(self, x_t, t, *, label):
        self.rows.append(len(x_t))
        return Gaussian(torch.tanh(self.drop(x_t) * float(self.process.alpha(t)) + label[:, None]))


def test_items_in_batches_keep_their_conditions_and_their_noise():
    """By the definitions: l from tanh, s and b by numpy's least squares, f' by a difference along the flow."""
    model, label = Labelled(EDM()).eval(), torch.linspace(-1, 1, 10, dtype=F64)
    x, seeds = torch.randn(10, 1, generator=torch.Generator().manual_seed(0), dtype=F64), range(10)
    whole = model_statistics(model, x, nodes=8, seeds=seeds, cond={"label": label})
    assert set(model.rows) == {10}
    model.rows.clear()
    parts = model_statistics(model, x, nodes=8, seeds=seeds, cond={"label": label}, batch=4)
    assert set(model.rows) == {4, 2}
    for one, other in zip((whole.linear, whole.slope, whole.offset), (parts.linear, parts.slope, parts.offset)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    lam = _points(whole.low, whole.high, 8)[5]
    eps = Noise(seeds, 10).at(0).normal_like(x)

    def f(y, lam):
        """(1 - l) y - D, with the polynomial through the values of l."""
        return (1 - whole.at([lam])[0][0]) * y - torch.tanh(y + label[:, None])

    y = x + math.exp(-lam) * eps
    d = torch.tanh(y + label[:, None])
    torch.testing.assert_close(whole.linear[5], 1 - (1 - d**2).mean(0), rtol=1e-10, atol=1e-10)
    h = 1e-4
    df = (f(y + h * (d - y), lam + h) - f(y - h * (d - y), lam - h)) / (2 * h)
    slope, offset = np.polyfit(f(y, lam)[:, 0].numpy(), df[:, 0].numpy(), 1)
    assert float(whole.slope[5]) == pytest.approx(slope, rel=1e-4)
    assert float(whole.offset[5]) == pytest.approx(offset, rel=1e-4)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("linear", "slope", "prediction"), [(1.0, 0.0, "x0"), (0.0, -1.0, "eps")])
def test_special_statistics_are_dpm_solver(order, linear, slope, prediction):
    """With l = 1, s = 0 the polynomial is fitted to D, with l = 0, s = -1 to eps, and all integrals are exact."""
    process, (mixture, start, _) = VP(), flow_truth()
    model, ts = mixture.torch(process), log_snr_times(process, LOW, HIGH, 8)
    rules = dpm_solver_v3(constant(linear, slope), order, corrector=False), exponential(order, prediction=prediction)
    ends = [sample(model, start.shape, ts, rule, x=start * process.alpha(ts[0])) for rule in rules]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


def errors(order, corrector, low, counts):
    """With l of N(0.3, I) and s and b that fit nothing: statistics need be right only where little but noise is left."""
    process, (mixture, start, end) = EDM(), flow_truth(low, HIGH)
    rho2 = torch.tensor([math.exp(-2 * lam) for lam in _points(-6.0, 6.0, 48)], dtype=F64)[:, None].expand(-1, 2)
    statistics = Statistics(-6.0, 6.0, rho2 / (1 + rho2), -0.3 / (1 + rho2), 0.6 * rho2 / (1 + rho2) ** 2)
    rule, model = dpm_solver_v3(statistics, order, corrector=corrector), mixture.torch(process)
    grids = [log_snr_times(process, low, HIGH, steps) for steps in counts]
    return [float((sample(model, start.shape, ts, rule, x=start) - end).norm()) for ts in grids]


@pytest.mark.parametrize("corrector", [False, True], ids=["predictor", "corrector"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_order_is_the_one_claimed(order, corrector):
    """From noise, order and, with the corrector, order + 1."""
    coarse, fine = errors(order, corrector, LOW, (48, 96))
    assert math.log2(coarse / fine) == pytest.approx(order + corrector, abs=0.4)


@pytest.mark.parametrize(("corrector", "expected"), [(False, 2), (True, 3)], ids=["predictor", "corrector"])
def test_a_start_from_the_middle_costs_orders(corrector, expected):
    coarse, fine = errors(3, corrector, -2.0, (48, 96))
    assert math.log2(coarse / fine) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_the_whole_way_ends_at_the_denoised_state(process):
    """From t = 1, where alpha may be 0, to t = 0, in float32."""
    model = Mixture.example().torch(process)
    last, statistics = [], mixture_statistics(process)
    out = sample(model, (5, 2), log_snr_grid(process, 40), dpm_solver_v3(statistics), hook=lambda p: last.append(p.x0))
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
    with pytest.raises(ValueError, match="and 0"):
        model_statistics(model, torch.zeros(1, 2), batch=0)
    with pytest.raises(ValueError, match=r"\.eval\(\)"):
        model_statistics(Labelled(VP()), torch.zeros(1, 2), cond={"label": torch.zeros(1)})
    with pytest.raises(ValueError, match="each of 2 items"):
        model_statistics(Labelled(VP()).eval(), torch.zeros(2, 2), cond={"label": torch.zeros(1)})
