"""Every linear rule against the formula of its paper, written out again from the paper (literature: C.1, C.5-C.8, D.1, D.7).

A plan is asked what it does with any past: states and denoised states are random numbers, and its next state is compared.
"""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from oracles import F64, PROCESS_CASES, Mixture, f64, flow_truth, log_snr_times, scalar
from trilemma.numerics.noise import Noise
from trilemma.numerics.tableau import EULER
from trilemma.process import EDM, PROCESSES, VP, Cosine, Flow, FromBetas, SubVP, cosine_betas
from trilemma.process.grid import karras_grid, log_snr_grid, trailing_grid
from trilemma.sampling import RULES, churn, ddim, ddpm, dpmpp_2m, dpmpp_3m, exponential, runge_kutta, sample

CHAINS = {"ddpm": FromBetas(), "iddpm": FromBetas(cosine_betas())}
every = pytest.mark.parametrize("process", [make() for make in PROCESSES.values()], ids=PROCESSES)


def uneven(process, steps=9):
    """Times with log-SNR steps of very different length, between finite ends."""
    even = torch.linspace(-6, 5, steps + 1, dtype=F64)
    return process.time(even + 0.35 * torch.sin(2.3 * even))


class Curves:
    def __init__(self, process, ts):
        self.alpha, self.sigma = process.alpha(ts).numpy(), process.sigma(ts).numpy()
        self.lam = np.log(self.alpha / self.sigma)


def past(steps, seed=0):
    """Random states x_0 ... and denoised states D_0 ... of one trajectory."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=steps + 1), rng.normal(size=steps + 1)


def of_plan(plan, i, x, d):
    """What row i makes of the past."""
    a, b = plan.a[i].numpy(), plan.b[i].numpy()
    return sum(a[k] * x[i - k] for k in range(len(a)) if k <= i) + sum(b[j] * d[i - j] for j in range(len(b)) if j <= i)


def lagrange_integral(weight, low, high, nodes, j):
    """Integral on [low, high] of the weight times the j-th Lagrange polynomial, by 60 Gauss-Legendre points."""
    z, w = np.polynomial.legendre.leggauss(60)
    at = (high - low) / 2 * z + (high + low) / 2
    basis = np.ones_like(at)
    for k in range(len(nodes)):
        if k != j:
            basis *= (at - nodes[k]) / (nodes[j] - nodes[k])
    return float((high - low) / 2 * (w * weight(at) * basis).sum())


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_ddpm_is_the_posterior_of_the_textbook(chain):
    """Ho et al. 2020, equations (6) and (7), at all 1000 steps, from the betas alone."""
    beta = np.array(chain.betas)
    bar = np.exp(np.cumsum(np.log1p(-beta)))
    before = np.concatenate([[1.0], bar[:-1]])
    plan = ddpm(chain, trailing_grid(chain, 1000))
    one_minus = -np.expm1(np.cumsum(np.log1p(-beta)))
    before_minus = np.concatenate([[0.0], one_minus[:-1]])
    np.testing.assert_allclose(
        plan.a[:, 0].numpy()[::-1], np.sqrt(1 - beta) * before_minus / one_minus, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(plan.b[:, 0].numpy()[::-1], np.sqrt(before) * beta / one_minus, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(plan.c.numpy()[::-1], np.sqrt(before_minus / one_minus * beta), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_ddim_is_the_published_one(chain, eta):
    """Song et al. 2021, equations (12) and (16), on 20 of 1000 steps."""
    ts = trailing_grid(chain, 20)
    plan, (x, d) = ddim(eta)(chain, ts), past(20)
    bar = np.concatenate([[1.0], np.cumprod(1 - np.array(chain.betas))])[(ts.numpy() * 1000).round().astype(int)]
    for i in range(20):
        t, s = bar[i], bar[i + 1]
        sigma = eta * math.sqrt((1 - s) / (1 - t)) * math.sqrt(1 - t / s)
        eps = (x[i] - math.sqrt(t) * d[i]) / math.sqrt(1 - t)
        expected = math.sqrt(s) * d[i] + math.sqrt(max(1 - s - sigma**2, 0)) * eps
        assert of_plan(plan, i, x, d) == pytest.approx(expected, rel=1e-7, abs=1e-7)
        assert float(plan.c[i]) == pytest.approx(sigma, rel=1e-9, abs=1e-12)


@every
def test_first_order_by_four_names(process):
    """DDIM(0) = exponential(1) = DPM-Solver-1 = Euler in (u, w), from exactly t = 1 to exactly t = 0."""
    for ts in (uneven(process), log_snr_grid(process, 12), torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=F64)):
        first, second = ddim(0.0)(process, ts), exponential(1)(process, ts)
        torch.testing.assert_close(first.a, second.a, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(first.b, second.b, rtol=1e-10, atol=1e-13)
        assert not bool(first.c.any())
        assert not bool(second.c.any())
        model = Mixture.example().torch(process)
        x = process.prior((4, 2), Noise(0, 4), t=float(ts[0]), like=torch.zeros(1, dtype=F64))
        by_plan, by_euler = (sample(model, (4, 2), ts, rule, x=x) for rule in (exponential(1), runge_kutta(EULER)))
        torch.testing.assert_close(by_euler, by_plan, rtol=1e-8, atol=1e-8)
    ts = uneven(process)
    plan, (x, d), c = exponential(1)(process, ts), past(9), Curves(process, ts)
    for i in range(9):  # Lu et al. 2022, equation (3.7)
        h = c.lam[i + 1] - c.lam[i]
        eps = (x[i] - c.alpha[i] * d[i]) / c.sigma[i]
        expected = c.alpha[i + 1] / c.alpha[i] * x[i] - c.sigma[i + 1] * math.expm1(h) * eps
        assert of_plan(plan, i, x, d) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@every
def test_ddim_of_one_is_ddpm(process):
    for ts in (uneven(process), log_snr_grid(process, 12), torch.tensor([1.0, 0.7, 0.2, 0.0], dtype=F64)):
        first, second = ddim(1.0)(process, ts), ddpm(process, ts)
        torch.testing.assert_close(first.a, second.a, rtol=1e-10, atol=0)
        torch.testing.assert_close(first.b, second.b, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(first.c, second.c, rtol=1e-12, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.99, 1.0])
def test_ddim_keeps_its_digits_in_short_and_in_long_steps(eta):
    """sqrt(sigma_s^2 - c^2) / sigma_t in 50 digits; c is nearly all of sigma_s in a long step with eta = 1."""
    with localcontext(prec=50):
        for h in (1e-9, 1e-6, 1e-3, 0.1, 1.0, 5.0, 15.0, 30.0):
            ts = f64(0.5, 0.5 * math.exp(-h))
            plan = ddim(eta)(EDM(), ts)
            ratio = Decimal(float(ts[1])) / Decimal(float(ts[0]))  # e^(-h); sigma is proportional to t, and alpha is 1
            a = ratio * (1 - Decimal(eta) ** 2 * (1 - ratio**2)).sqrt()
            assert float(Decimal(float(plan.a[0, 0])) / a - 1) == pytest.approx(0, abs=1e-13)
            assert float(Decimal(float(plan.b[0, 0])) - (1 - a)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_little_noise_is_the_probability_flow(order):
    """The numbers move by eta^2, the noise is eta sigma sqrt(2 h) to first order in eta."""
    process = Cosine()
    ts = uneven(process)
    flow = exponential(order)(process, ts)
    rows = slice(order, None) if order > 2 else slice(None)  # a deterministic rule of order 3 or 4 starts otherwise
    for eta in (1e-3, 1e-5):
        plan = exponential(order, eta)(process, ts)
        assert float((plan.a - flow.a)[rows].abs().max()) < 20 * eta**2
        assert float((plan.b - flow.b)[rows].abs().max()) < 200 * eta**2
        h = process.log_snr(ts).diff() / 2
        torch.testing.assert_close(plan.c, eta * process.sigma(ts[1:]) * (2 * h).sqrt(), rtol=1e-2 * eta / 1e-3, atol=0)


@every
def test_dpm_solver_pp_2m(process):
    """Lu et al. 2022, algorithm 2; literature D.7."""
    ts = uneven(process)
    plan, (x, d), c = dpmpp_2m(process, ts), past(9), Curves(process, ts)
    for i in range(9):
        h = c.lam[i + 1] - c.lam[i]
        mixed = d[i]
        if i > 0:
            r = (c.lam[i] - c.lam[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * d[i] - 1 / (2 * r) * d[i - 1]
        expected = c.sigma[i + 1] / c.sigma[i] * x[i] - c.alpha[i + 1] * math.expm1(-h) * mixed
        assert of_plan(plan, i, x, d) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@every
def test_dpm_solver_pp_3m(process):
    """The authors' multistep third order; literature D.7, with psi_1 = e^-h - 1, psi_2 = psi_1/h + 1, psi_3 = psi_2/h - 1/2."""
    ts = uneven(process)
    plan, (x, d), c = dpmpp_3m(process, ts), past(9), Curves(process, ts)
    for i in range(2, 9):
        h, h0, h1 = (c.lam[i + 1 - k] - c.lam[i - k] for k in range(3))
        r0, r1 = h0 / h, h1 / h
        d1_0, d1_1 = (d[i] - d[i - 1]) / r0, (d[i - 1] - d[i - 2]) / r1
        d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1)
        d2 = (d1_0 - d1_1) / (r0 + r1)
        psi1 = math.expm1(-h)
        psi2 = psi1 / h + 1
        psi3 = psi2 / h - 0.5
        a = c.alpha[i + 1]
        expected = c.sigma[i + 1] / c.sigma[i] * x[i] - a * psi1 * d[i] + a * psi2 * d1 - a * psi3 * d2
        assert of_plan(plan, i, x, d) == pytest.approx(expected, rel=1e-7, abs=1e-9)
    second = dpmpp_2m(process, ts)  # the first two steps are those of the lower orders
    torch.testing.assert_close(plan.b[:2, :2], second.b[:2], rtol=1e-12, atol=1e-14)


@every
def test_exact_second_order(process):
    """x0: (1 - e^-h) D_0 + (h - 1 + e^-h) (D_0 - D_1) / h_0; eps: literature D.6's integrals with the slope of eps."""
    ts = uneven(process)
    c, (x, d) = Curves(process, ts), past(9)
    on_x0, on_eps = exponential(2)(process, ts), exponential(2, prediction="eps")(process, ts)
    eps = (x - c.alpha * d) / c.sigma
    for i in range(1, 9):
        h, before = c.lam[i + 1] - c.lam[i], c.lam[i] - c.lam[i - 1]
        keep = -math.expm1(-h)
        expected = c.sigma[i + 1] / c.sigma[i] * x[i] + c.alpha[i + 1] * (
            keep * d[i] + (h - keep) * (d[i] - d[i - 1]) / before
        )
        if (keep + 2 * (h - keep) / before) <= 10 * keep:  # beyond that the order is lowered, see below
            assert of_plan(on_x0, i, x, d) == pytest.approx(expected, rel=1e-8, abs=1e-9)
        grow = math.expm1(h)
        slope = (eps[i] - eps[i - 1]) / before
        expected = c.alpha[i + 1] / c.alpha[i] * x[i] - c.sigma[i + 1] * (grow * eps[i] + (grow - h) * slope)
        if (keep + 2 * (1 - math.exp(-h) * (1 + h)) / before) <= 10 * keep:
            assert of_plan(on_eps, i, x, d) == pytest.approx(expected, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("process", [SubVP(), Flow()], ids=["sub_vp", "flow"])
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 1.5])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_any_order_is_the_predictor_of_sa_solver(order, tau, process):
    """Xue et al. 2023 (literature C.7), on equal steps, by quadrature of its integrals:

    x_t = e^(-tau^2 h) (s_t/s_s) x + (1 + tau^2) s_t e^(-tau^2 l_t) sum_j D_j int e^((1 + tau^2) l) ell_j(l) dl
          + s_t sqrt(1 - e^(-2 tau^2 h)) z
    """
    ts = log_snr_times(process, -6.0, 4.0, 12)
    plan, (x, d), c = exponential(order, tau)(process, ts), past(12), Curves(process, ts)
    for i in range(order, 12):
        low, high = c.lam[i], c.lam[i + 1]
        h, nodes = high - low, [c.lam[i - j] for j in range(order)]
        expected = math.exp(-(tau**2) * h) * c.sigma[i + 1] / c.sigma[i] * x[i]
        for j in range(order):
            share = lagrange_integral(lambda u, high=high: np.exp((1 + tau**2) * (u - high)), low, high, nodes, j)
            expected += (1 + tau**2) * c.sigma[i + 1] * math.exp(high) * share * d[i - j]
        assert of_plan(plan, i, x, d) == pytest.approx(expected, rel=1e-7, abs=1e-8)
        assert float(plan.c[i]) == pytest.approx(
            c.sigma[i + 1] * math.sqrt(-math.expm1(-2 * tau**2 * h)), rel=1e-9, abs=1e-15
        )


@pytest.mark.parametrize("process", [VP(), EDM(), SubVP()], ids=["vp", "edm", "sub_vp"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_eps_rules_integrate_the_polynomial_through_eps(order, process):
    """Zhang and Chen 2023 in the variable lambda: x_t/alpha_t = x_s/alpha_s - sum_j eps_j int e^-l ell_j(l) dl."""
    ts = log_snr_times(process, -6.0, 4.0, 12)
    plan, (x, d), c = exponential(order, prediction="eps")(process, ts), past(12), Curves(process, ts)
    eps = (x - c.alpha * d) / c.sigma
    for i in range(order, 12):
        nodes = [c.lam[i - j] for j in range(order)]
        expected = x[i] / c.alpha[i]
        for j in range(order):
            expected -= eps[i - j] * lagrange_integral(lambda u: np.exp(-u), c.lam[i], c.lam[i + 1], nodes, j)
        assert of_plan(plan, i, x, d) == pytest.approx(c.alpha[i + 1] * expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("prediction", ["x0", "eps"])
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_polynomials_are_sampled_exactly(order, eta, prediction):
    """If D (or eps) is a polynomial in lambda of degree below the order along the whole way, then so is the mean, start included,
    for the orders that restart from the beginning; elsewhere from the step on at which the past is long enough."""
    process = VP()
    ts = log_snr_times(process, -1.5, 1.0, 10)  # short steps, for which no order is lowered
    plan, c = exponential(order, eta, prediction=prediction)(process, ts), Curves(process, ts)
    rng = np.random.default_rng(1)
    poly = np.polynomial.Polynomial(rng.normal(size=order) / 3 ** np.arange(order))
    z, w = np.polynomial.legendre.leggauss(60)

    def moved(x, i, k):
        """From time i to k by the variation of constants: equations (1) and (2) of Lu et al. / Zhang and Chen without noise."""
        low, high = c.lam[i], c.lam[k]
        at = (high - low) / 2 * z + (high + low) / 2
        e2 = 1 + eta**2
        if prediction == "x0":
            force = (high - low) / 2 * (w * np.exp(e2 * (at - high)) * poly(at)).sum() * e2
            return c.sigma[k] / c.sigma[i] * math.exp(-(eta**2) * (high - low)) * x + c.alpha[k] * force
        force = (high - low) / 2 * (w * np.exp(-at) * poly(at)).sum() * e2
        return c.alpha[k] * (x / c.alpha[i] - force)

    x = [0.4]
    values = poly(c.lam)
    restarts = eta == 0 and order > 2
    for i in range(10):
        d = values if prediction == "x0" else (np.array([*x, *np.zeros(11 - len(x))]) - c.sigma * values) / c.alpha
        x.append(of_plan(plan, i, np.array(x), d))
        if i >= order - 1:
            start = 0 if restarts else i
            assert x[-1] == pytest.approx(moved(x[start], start, i + 1), rel=1e-7, abs=1e-7)


@every
def test_sde_dpm_solver_pp_2m(process):
    """Lu et al. 2022 and literature C.6, midpoint form, eta = 1, in units of x/alpha as its code has them."""
    ts = uneven(process)
    plan, (x, d), c = RULES["dpmpp_2m_sde"].make()(process, ts), past(9), Curves(process, ts)
    level = c.sigma / c.alpha
    for i in range(9):
        h = math.log(level[i] / level[i + 1])
        hat = 2 * h
        bar = level[i + 1] / level[i] * math.exp(-h) * x[i] / c.alpha[i] - math.expm1(-hat) * d[i]
        if i > 0:
            r = math.log(level[i - 1] / level[i]) / h
            bar -= 0.5 * math.expm1(-hat) * (d[i] - d[i - 1]) / r
        assert of_plan(plan, i, x, d) == pytest.approx(c.alpha[i + 1] * bar, rel=1e-7, abs=1e-9)
        assert float(plan.c[i]) == pytest.approx(c.sigma[i + 1] * math.sqrt(-math.expm1(-2 * h)), rel=1e-9)


@every
def test_seeds_1(process):
    """Gonzalez et al. 2023; literature C.8: (alpha_t/alpha_s) x - 2 sigma_t (e^h - 1) eps + sigma_t sqrt(e^2h - 1) z."""
    ts = uneven(process)
    plan, (x, d), c = RULES["seeds_1"].make()(process, ts), past(9), Curves(process, ts)
    for i in range(9):
        h = c.lam[i + 1] - c.lam[i]
        eps = (x[i] - c.alpha[i] * d[i]) / c.sigma[i]
        expected = c.alpha[i + 1] / c.alpha[i] * x[i] - 2 * c.sigma[i + 1] * math.expm1(h) * eps
        assert of_plan(plan, i, x, d) == pytest.approx(expected, rel=1e-7, abs=1e-9)
        assert float(plan.c[i]) == pytest.approx(c.sigma[i + 1] * math.sqrt(math.expm1(2 * h)), rel=1e-9)


@every
def test_ancestral_sampling_in_units_of_sigma(process):
    """k-diffusion's Euler-ancestral with its up and down levels (literature C.1), eta = 1, is ddpm: in law and in the mean."""
    ts = uneven(process)
    plan, (x, d), c = ddpm(process, ts), past(9), Curves(process, ts)
    level = c.sigma / c.alpha
    for i in range(9):
        up2 = level[i + 1] ** 2 * (level[i] ** 2 - level[i + 1] ** 2) / level[i] ** 2
        down = math.sqrt(level[i + 1] ** 2 - up2)
        bar = x[i] / c.alpha[i]
        expected = bar + (down - level[i]) * (bar - d[i]) / level[i]
        assert of_plan(plan, i, x, d) == pytest.approx(c.alpha[i + 1] * expected, rel=1e-7, abs=1e-9)
        assert float(plan.c[i]) == pytest.approx(c.alpha[i + 1] * math.sqrt(up2), rel=1e-9)


@pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_consistency_sampling_forgets_all_but_the_answer(process):
    """Song et al. 2023, algorithm 1: x_s = alpha_s D + sigma_s z."""
    ts = torch.tensor([1.0, 0.6, 0.2, 0.05, 0.0], dtype=F64)
    plan = RULES["consistency"].make()(process, ts)
    assert not bool(plan.a.any())
    torch.testing.assert_close(plan.b[:, 0], process.alpha(ts[1:]), rtol=1e-14, atol=0)
    torch.testing.assert_close(plan.c, process.sigma(ts[1:]), rtol=1e-14, atol=0)
    model = Mixture.example().torch(process)
    x, noise = sample(model, (3, 2), ts, RULES["consistency"].make(), seeds=[4, 5, 6]), Noise([4, 5, 6])
    state = process.prior((3, 2), noise.at(-1))
    for i in range(4):
        state = process.perturb(model(state, ts[i]).mean, ts[i + 1], noise.at(i))
    torch.testing.assert_close(x, state, rtol=1e-5, atol=1e-5)


def test_churn_is_algorithm_2_of_edm():
    """Karras et al. 2022, algorithm 2, with Euler steps, which are the same in all coordinates; same noise."""
    model, ts = Mixture.example().torch(EDM()), karras_grid(EDM(), 10)
    rule = churn(exponential(1), 8.0, low=0.05, high=20.0, inflate=1.007)
    noise, sigma = Noise(0, 4), [80 * float(t) for t in ts]
    x = state = EDM().prior((4, 2), noise.at(-1), like=torch.zeros(1, dtype=F64))
    for i in range(10):
        gamma = min(8.0 / 10, math.sqrt(2) - 1) if 0.05 <= sigma[i] <= 20.0 else 0.0
        hat = sigma[i] * (1 + gamma)
        z = noise.at(i, 0).normal_like(state)
        state = state + math.sqrt(hat**2 - sigma[i] ** 2) * 1.007 * z
        slope = (state - model(state, scalar(hat / 80)).mean) / hat
        state = state + (sigma[i + 1] - hat) * slope
    torch.testing.assert_close(sample(model, (4, 2), ts, rule, x=x), state, rtol=1e-9, atol=1e-9)


def test_no_churn_is_the_inner_rule():
    model, ts = Mixture.example().torch(VP()), log_snr_times(VP(), -8.0, 3.0, 8)
    for name in ("heun", "ddim", "rk4"):
        inner = RULES[name].make()
        first, second = (sample(model, (3, 2), ts, rule) for rule in (inner, churn(inner, 0.0)))
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_a_chain_is_sampled_as_the_textbook_does():
    """All of Ho et al. 2020, algorithm 2, in eps, 1000 steps: the same samples from the same noise."""
    chain, noise = FromBetas(), Noise(0, 4)
    model = Mixture.example().torch(chain)
    x = start = noise.at(-1).normal((4, 2), dtype=F64)
    beta = np.array(chain.betas)
    bar = np.cumprod(1 - beta)
    mixture, _, _ = flow_truth()
    for i, k in enumerate(range(999, -1, -1)):
        a, s = math.sqrt(bar[k]), math.sqrt(1 - bar[k])
        eps = (x.numpy() - a * mixture.denoise(x.numpy(), a, s)) / s
        mean = (x.numpy() - beta[k] / s * eps) / math.sqrt(1 - beta[k])
        std = math.sqrt((1 - bar[k - 1]) / (1 - bar[k]) * beta[k]) if k > 0 else 0.0
        x = torch.tensor(mean) + std * noise.at(i).normal_like(x)
    start = start * float(chain.sigma(scalar(1.0)))  # sample() starts from sigma(1) z, the paper from z
    ours = sample(model, (4, 2), trailing_grid(chain, 1000), ddpm, x=start)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-4)


def test_euler_maruyama_is_the_limit_of_ddpm():
    """Song et al. 2021, equation (6), on the reverse of VP: one short step agrees to second order in its length."""
    process, t, dt = VP(), 0.4, 1e-4
    plan = ddpm(process, torch.tensor([t, t - dt], dtype=F64))
    x, d = 0.7, -0.2
    f, g2 = float(process.drift(scalar(t))), float(process.diffusion2(scalar(t)))
    score = (float(process.alpha(scalar(t))) * d - x) / float(process.sigma(scalar(t))) ** 2
    expected = x - dt * (f * x - g2 * score)
    ours = float(plan.a[0, 0]) * x + float(plan.b[0, 0]) * d
    assert abs(ours - expected) < 100 * dt**2
    assert float(plan.c[0]) == pytest.approx(math.sqrt(g2 * dt), rel=1e-3)


def test_options_that_make_no_sense_are_refused():
    for bad, word in (
        (dict(order=5), "order"),
        (dict(order=0), "order"),
        (dict(eta=-0.1), "eta"),
        (dict(eta=math.nan), "eta"),
        (dict(prediction="v"), "'v'"),
        (dict(order=2, eta=math.inf), "inf"),
        (dict(prediction="eps", eta=math.inf), "inf"),
        (dict(order=4, published=True), "published"),
        (dict(order=2, prediction="eps", published=True), "published"),
    ):
        with pytest.raises(ValueError, match=word):
            exponential(**bad)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="eta"):
            ddim(eta)
    with pytest.raises(ValueError, match="alpha = 0"):
        exponential(2, prediction="eps")(Flow(), torch.tensor([1.0, 0.5, 0.0], dtype=F64))
    with pytest.raises(ValueError, match="churn"):
        churn(ddim(0.0), -1.0)
