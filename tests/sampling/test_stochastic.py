"""First-order stochastic rules against the formulas of their papers, written out again, and against closed forms."""

import math

import numpy as np
import pytest
import torch

from oracles import F64, Mixture, law_of, log_snr_times, scalar
from trilemma.denoise import Denoiser, Gaussian
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, PROCESSES, VE, VP, Flow, FromBetas
from trilemma.process.grid import log_snr_grid, trailing_grid
from trilemma.sampling import ddim, ddpm, sample
from trilemma.sampling.stochastic import (
    ErrorCurve,
    ancestral,
    euler_ancestral,
    euler_maruyama,
    gaussian_error,
    measure_error,
    reverse_diffusion,
)

TS = torch.tensor([0.9, 0.6, 0.55, 0.2, 0.1], dtype=F64)


def of_row(plan, i, x, d):
    """Mean and standard deviation of the next state."""
    return float(plan.a[i, 0]) * x + float(plan.b[i, 0]) * d, float(plan.c[i])


def score(process, t, x, d):
    return (float(process.alpha(t)) * d - x) / float(process.sigma(t)) ** 2


def test_euler_maruyama_on_vp_is_that_of_score_sde():
    """dx = -beta/2 x dt + sqrt(beta) dw, reversed: x + (beta/2 x + beta score) dt + sqrt(beta dt) z, beta(t) = 0.1 + 19.9 t."""
    plan = euler_maruyama()(VP(), TS)
    for i, (x, d) in enumerate([(0.3, -1.0), (2.0, 0.5), (-1.0, 0.1), (0.7, 0.7)]):
        beta, dt = 0.1 + 19.9 * float(TS[i]), float(TS[i] - TS[i + 1])
        mean, std = of_row(plan, i, x, d)
        assert mean == pytest.approx(x + (beta / 2 * x + beta * score(VP(), TS[i], x, d)) * dt, rel=1e-9)
        assert std == pytest.approx(math.sqrt(beta * dt), rel=1e-12)
    assert euler_maruyama(mean=True)(VP(), TS).c[-1] == 0
    assert bool((euler_maruyama(mean=True)(VP(), TS).c[:-1] > 0).all())


def test_euler_maruyama_without_noise_is_eulers_method_on_the_flow():
    """dx/dt = f x - g^2/2 score is alpha' D + sigma' eps."""
    for process in (Flow(), EDM(), VP()):
        plan = euler_maruyama(0.0)(process, TS)
        for i, (x, d) in enumerate([(0.3, -1.0), (2.0, 0.5)]):
            rate = [float(v) for v in process.rates(TS[i])]
            eps = (x - float(process.alpha(TS[i])) * d) / float(process.sigma(TS[i]))
            mean, std = of_row(plan, i, x, d)
            assert mean == pytest.approx(x - float(TS[i] - TS[i + 1]) * (rate[0] * d + rate[1] * eps), rel=1e-9)
            assert std == 0


def test_reverse_diffusion_is_published_for_both_kinds_of_process():
    """VP: x_{k-1} = (2 - sqrt(1 - beta_k)) x + beta_k score + sqrt(beta_k) z. VE: x + (s_k^2 - s_{k-1}^2) score + sqrt(...) z."""
    chain = FromBetas()
    plan = reverse_diffusion()(chain, trailing_grid(chain, 1000))
    x, d = 0.8, -0.3
    for i in range(999):
        k = 1000 - i
        beta, t = chain.betas[k - 1], scalar(k / 1000)
        mean, std = of_row(plan, i, x, d)
        assert mean == pytest.approx((2 - math.sqrt(1 - beta)) * x + beta * score(chain, t, x, d), rel=1e-8)
        assert std == pytest.approx(math.sqrt(beta), rel=1e-9)
    plan, s = reverse_diffusion()(VE(), TS), VE().sigma(TS)
    for i in range(4):
        mean, std = of_row(plan, i, x, d)
        gap = float(s[i] ** 2 - s[i + 1] ** 2)
        assert mean == pytest.approx(x + gap * score(VE(), TS[i], x, d), rel=1e-9)
        assert std == pytest.approx(math.sqrt(gap), rel=1e-9)


def test_the_large_variance_is_beta_and_the_mean_that_of_ddpm():
    chain = FromBetas()
    grid = trailing_grid(chain, 1000)
    plan, small = ancestral("large")(chain, grid), ddpm(chain, grid)
    assert torch.equal(plan.a, small.a)
    assert torch.equal(plan.b, small.b)
    np.testing.assert_allclose(plan.c.numpy()[:-1] ** 2, chain.betas[:0:-1], rtol=1e-9)
    assert plan.c[-1] == 0
    assert ancestral()(chain, grid) == small


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_euler_ancestral_is_that_of_k_diffusion(eta):
    """sigma_up and sigma_down in units of sigma/alpha (literature: C.1), an Euler step to the second and noise of the first."""
    for process in (EDM(), VP(), Flow()):
        plan = euler_ancestral(eta)(process, TS)
        s, alpha = (process.sigma(TS) / process.alpha(TS)).tolist(), process.alpha(TS).tolist()
        for i in range(4):
            up = min(s[i + 1], eta * math.sqrt(s[i + 1] ** 2 * (s[i] ** 2 - s[i + 1] ** 2) / s[i] ** 2))
            down = math.sqrt(s[i + 1] ** 2 - up**2)
            x, d = 1.7, -0.6  # x/alpha and D
            mean, std = of_row(plan, i, x * alpha[i], d)
            assert mean / alpha[i + 1] == pytest.approx(x + (down - s[i]) * (x - d) / s[i], rel=1e-9)
            assert std / alpha[i + 1] == pytest.approx(up, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_best_variance_is_exact_for_gaussian_data_in_any_number_of_steps(name, steps):
    """(5) with Var[x | x_t] = v sigma^2/(alpha^2 v + sigma^2): every x_s has exactly the law alpha_s^2 v + sigma_s^2."""
    process, var = PROCESSES[name](), 0.3
    ts = torch.linspace(1.0, 0.05, steps + 1, dtype=F64)
    mean, found = law_of(ancestral(gaussian_error(math.sqrt(var))), process, ts, 0.7, var)
    alpha, sigma = float(process.alpha(ts[-1])), float(process.sigma(ts[-1]))
    assert mean == pytest.approx(0.7 * alpha, rel=1e-9)
    assert found == pytest.approx(alpha**2 * var + sigma**2, rel=1e-9)
    assert law_of(ancestral(), process, ts, 0.7, var)[1] < found * (1 - 1e-6)


class TwoVariances(Denoiser):
    """The exact posterior of two independent Gaussian coordinates."""

    def __init__(self, process, var):
        super().__init__()
        self.process, self.var = process, var

    def forward(self, x_t, t):
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        total = alpha**2 * self.var + sigma**2
        return Gaussian(alpha * self.var / total * x_t, (self.var * sigma**2 / total).expand_as(x_t))


def test_a_learned_variance_is_used_coordinate_by_coordinate():
    """Exact laws of both coordinates in two steps, which no common variance gives; 20000 items, false alarm 1e-5 a coordinate."""
    process, var = Flow(), torch.tensor([0.01, 4.0], dtype=F64)
    ts, n = torch.tensor([1.0, 0.5, 0.2], dtype=F64), 20000
    x = sample(
        TwoVariances(process, var), (n, 2), ts, ancestral("learned"), x=process.prior((n, 2), Noise(1, n)).double()
    )
    ratio = x.var(0) / (0.64 * var + 0.04)
    assert float((ratio - 1).abs().max()) < 4.5 * math.sqrt(2 / n)
    end = torch.tensor([1.0, 0.5, 0.0], dtype=F64)
    last = sample(TwoVariances(process, var), (n, 2), end, ancestral("learned")).var(0)[1]
    assert float(last) == pytest.approx(16 * 0.25 / 1.25, rel=4.5 * math.sqrt(2 / n))  # x = D at 0, which is narrower


def test_the_error_of_a_denoiser_is_measured():
    """Of Gaussian data: s^2 sigma^2 / (alpha^2 s^2 + sigma^2), within 5 standard errors of 40000 numbers, and between points."""
    process, s = VP(), 0.5
    model = Mixture([1.0], [[0.0, 0.0]], [0.25 * np.eye(2)]).torch(process)
    x = s * Noise(0, 20000).normal((20000, 2), dtype=F64)
    ts = log_snr_times(process, -6.0, 6.0, 40)
    curve = measure_error(model, x, torch.cat([ts, scalar(0.0)[None]]), Noise(1, 20000))
    log_snr = process.log_snr(ts)
    exact = s**2 / (1 + s**2 * log_snr.exp())
    at = torch.linspace(-6, 6, 83, dtype=F64)
    assert len(curve.var) == 41
    torch.testing.assert_close(curve(log_snr), exact, rtol=5 * math.sqrt(2 / 40000), atol=0)
    torch.testing.assert_close(curve(at), s**2 / (1 + s**2 * at.exp()), rtol=0.05, atol=0)
    torch.testing.assert_close(gaussian_error(s)(log_snr), exact)
    assert ErrorCurve((0.0,), (0.5,))(at[:2]).tolist() == pytest.approx([0.5, 0.5])


def test_what_is_refused():
    with pytest.raises(ValueError, match="variance must be 'small'"):
        ancestral("beta")
    with pytest.raises(ValueError, match="at least 0, got -1"):
        euler_maruyama(-1)
    with pytest.raises(ValueError, match="sigma_data must be"):
        gaussian_error(0.0)
    for rule in (euler_maruyama(), reverse_diffusion()):
        with pytest.raises(ValueError, match="alpha = 0"):
            rule(Flow(), log_snr_grid(Flow(), 3))
    assert euler_ancestral is ddim
