"""Singlestep rules against the formulas of their papers, written out again (literature: C.6, C.8, D.6, D.7), and their noise."""

import math

import pytest
import torch

from oracles import F64, Basis, law_of, log_snr_times, scalar
from trilemma.denoise import Gaussian
from trilemma.numerics.tableau import EULER
from trilemma.process import EDM, VP, Flow, SubVP
from trilemma.sampling import Plan, exponential, get_rule, runge_kutta
from trilemma.sampling.singlestep import fast_orders, singlestep
from trilemma.sampling.stages import Staged

processes = pytest.mark.parametrize("process", [VP(), Flow(), SubVP(), EDM()], ids=["vp", "flow", "sub_vp", "edm"])
X = torch.tensor([[0.3], [-1.2], [2.0]], dtype=F64)


def denoise(x, t):
    """Anything that is not linear in x and depends on t."""
    return Gaussian(torch.sin(2 * x + 3 * t) - 0.2 * x)


class Given:
    """Noise with known values: draw k is z_k."""

    Z = torch.tensor([0.7, -1.3, 0.4], dtype=F64)

    def __init__(self, k=None):
        self.k = k

    def at(self, k):
        return Given(k)

    def normal_like(self, x):
        return torch.full_like(x, float(self.Z[self.k]))


class Textbook:
    """The curves at lambda_s + r h, and eps and x0 there, as the papers write them."""

    def __init__(self, process, low, high):
        self.process, self.low, self.h = process, low, high - low

    def at(self, r):
        t = self.process.time(scalar(2 * (self.low + r * self.h)))
        return t, float(self.process.alpha(t)), float(self.process.sigma(t))

    def x0(self, x, r):
        return denoise(x, self.at(r)[0]).mean

    def eps(self, x, r):
        t, alpha, sigma = self.at(r)
        return (x - alpha * denoise(x, t).mean) / sigma


def ours(name, process, low, high):
    ts = process.time(torch.tensor([2 * low, 2 * high], dtype=F64))
    return get_rule(name)(process, ts)(denoise, X, 0, None, Given())[0]


SPANS = [(-2.0, -1.3), (-0.5, 0.7), (0.5, 2.5)]
spans = pytest.mark.parametrize("span", SPANS)


@processes
@spans
def test_dpm_solver_2_and_3(process, span):
    """Lu et al. 2022 (2206.00927), algorithms 1 and 2, with phi_1 = e^h - 1 and phi_2 = (e^h - 1)/h - 1."""
    b = Textbook(process, *span)
    h, (_, a0, _), (_, a1, s1) = b.h, b.at(0), b.at(1)
    eps = b.eps(X, 0)

    r = 0.5
    _, a, s = b.at(r)
    u = a / a0 * X - s * math.expm1(r * h) * eps
    expected = a1 / a0 * X - s1 * math.expm1(h) * eps - s1 / (2 * r) * math.expm1(h) * (b.eps(u, r) - eps)
    torch.testing.assert_close(ours("dpm_solver_2", process, *span), expected, rtol=1e-9, atol=1e-9)

    r1, r2 = 1 / 3, 2 / 3
    _, a, s = b.at(r1)
    u1 = a / a0 * X - s * math.expm1(r1 * h) * eps
    _, a, s = b.at(r2)
    d1 = b.eps(u1, r1) - eps
    u2 = a / a0 * X - s * math.expm1(r2 * h) * eps - s * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = b.eps(u2, r2) - eps
    expected = a1 / a0 * X - s1 * math.expm1(h) * eps - s1 / r2 * (math.expm1(h) / h - 1) * d2
    torch.testing.assert_close(ours("dpm_solver_3", process, *span), expected, rtol=1e-9, atol=1e-9)


@processes
@spans
def test_dpm_solver_pp_2s_and_3s(process, span):
    """Lu et al. 2022 (2211.01095), algorithm 1; third order from the authors' code with psi_2 = (e^-h - 1)/h + 1."""
    b = Textbook(process, *span)
    h, (_, _, s0), (_, a1, s1) = b.h, b.at(0), b.at(1)
    d = b.x0(X, 0)

    r = 0.5
    _, a, s = b.at(r)
    u = s / s0 * X - a * math.expm1(-r * h) * d
    mixed = (1 - 1 / (2 * r)) * d + 1 / (2 * r) * b.x0(u, r)
    expected = s1 / s0 * X - a1 * math.expm1(-h) * mixed
    torch.testing.assert_close(ours("dpmpp_2s", process, *span), expected, rtol=1e-9, atol=1e-9)

    r1, r2 = 1 / 3, 2 / 3
    _, a, s = b.at(r1)
    u1 = s / s0 * X - a * math.expm1(-r1 * h) * d
    _, a, s = b.at(r2)
    psi2 = math.expm1(-r2 * h) / (r2 * h) + 1
    u2 = s / s0 * X - a * math.expm1(-r2 * h) * d + r2 / r1 * a * psi2 * (b.x0(u1, r1) - d)
    psi2 = math.expm1(-h) / h + 1
    expected = s1 / s0 * X - a1 * math.expm1(-h) * d + 1 / r2 * a1 * psi2 * (b.x0(u2, r2) - d)
    torch.testing.assert_close(ours("dpmpp_3s", process, *span), expected, rtol=1e-9, atol=1e-9)


@processes
@spans
def test_seeds_2(process, span):
    """Gonzalez et al. 2023, literature C.8, with c = 1/2; the middle takes z_1, the end both."""
    b = Textbook(process, *span)
    h, (_, a0, _), (_, a1, s1), z = b.h, b.at(0), b.at(1), Given.Z
    eps = b.eps(X, 0)
    _, a, s = b.at(0.5)
    u = a / a0 * X - 2 * s * math.expm1(h / 2) * eps + s * math.sqrt(math.expm1(h)) * z[0]
    expected = a1 / a0 * X - 2 * s1 * math.expm1(h) * b.eps(u, 0.5)
    expected = expected + s1 * (math.sqrt(math.exp(2 * h) - math.exp(h)) * z[0] + math.sqrt(math.expm1(h)) * z[1])
    torch.testing.assert_close(ours("seeds_2", process, *span), expected, rtol=1e-9, atol=1e-9)


@processes
@spans
def test_dpmpp_sde(process, span):
    """Literature C.6 in sigma/alpha: an ancestral step to the middle, then one with D' = D_2 (r = 1/2) to the end."""
    b = Textbook(process, *span)
    h, (_, a0, s0), (_, a1, s1), z = b.h, b.at(0), b.at(1), Given.Z
    levels = [s0 / a0, 0.0, s1 / a1]
    _, a, s = b.at(0.5)
    levels[1] = s / a

    def ancestral(x, level, next_level, d, noise):
        up = math.sqrt(next_level**2 * (level**2 - next_level**2) / level**2)
        down = math.sqrt(next_level**2 - up**2)
        return down / level * x + (1 - down / level) * d + up * noise

    u = ancestral(X / a0, levels[0], levels[1], b.x0(X, 0), z[0])
    # the noise of the whole step in units of its size: parts of a Brownian path under the decay e^-lambda, (3)
    whole = (math.exp(-h / 2) * math.sqrt(-math.expm1(-h)) * z[0] + math.sqrt(-math.expm1(-h)) * z[1]) / math.sqrt(
        -math.expm1(-2 * h)
    )
    expected = a1 * ancestral(X / a0, levels[0], levels[2], b.x0(a * u, 0.5), whole)
    torch.testing.assert_close(ours("dpmpp_sde", process, *span), expected, rtol=1e-9, atol=1e-9)


@processes
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_the_noise_of_a_step_is_that_of_one_brownian_path(process, order, eta, prediction):
    """With eps = 0 (or D = 0) all states of a step are a Brownian motion of x/alpha (an Ornstein-Uhlenbeck motion of x/sigma).

    Independent increments of variance eta^2 (s_k^2/a_k^2 - s_l^2/a_l^2), which sum to eta^2 s_t^2 (e^(2h) - 1) / a_t^2; or
    Cov = e^(-eta^2 (l_p - l_k)) (1 - e^(-2 eta^2 (l_k - l_0))) for states k before p.
    """
    low, h = -0.4, 1.1
    ts = process.time(torch.tensor([2 * low, 2 * (low + h)], dtype=F64))
    on_eps, seen = prediction == "eps", []

    def nothing(x, t):
        seen.append(x / (process.alpha(t) if on_eps else process.sigma(t)))
        return Gaussian(x / process.alpha(t) if on_eps else torch.zeros_like(x))

    rule = singlestep(order, eta, prediction=prediction)
    end, _ = rule(process, ts)(nothing, torch.zeros(2 + order, 1, dtype=F64), 0, None, Basis(2 + order))
    seen.append(end / (process.alpha(ts[1]) if on_eps else process.sigma(ts[1])))
    states = torch.cat(seen[1:], 1)[2:]  # weights of the draws in every state, (draws, states)
    lam = low + h * torch.arange(1, order + 1, dtype=F64) / order
    early, late = torch.minimum(lam[:, None], lam), torch.maximum(lam[:, None], lam)
    if on_eps:
        expected = eta**2 * (math.exp(-2 * low) - torch.exp(-2 * early))
        s1, a1 = process.sigma(ts[1]), process.alpha(ts[1])
        assert float(expected[-1, -1]) == pytest.approx(float(eta**2 * s1**2 * math.expm1(2 * h) / a1**2))
    else:
        expected = torch.exp(-(eta**2) * (late - early)) * (1 - torch.exp(-2 * eta**2 * (early - low)))
    torch.testing.assert_close(states.T @ states, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_first_order_is_the_plan_of_first_order(eta, prediction):
    """singlestep(1) = exponential(1) = (without noise) Euler on the straight flow, and so is any step of infinite length."""
    ts = torch.tensor([0.95, 0.6, 0.3, 0.1, 0.0], dtype=F64)
    plan: Plan = exponential(1, eta, prediction=prediction)(VP(), ts)
    for order in (1, 2, 3):
        steps = singlestep(order, eta, prediction=prediction)(VP(), ts).steps
        for i in range(4) if order == 1 else [3]:
            numbers = torch.stack([plan.a[i, 0], plan.b[i, 0], plan.c[i]])
            torch.testing.assert_close(steps[i][1][-1], numbers, rtol=1e-12, atol=1e-14)
    straight = torch.tensor([1.0, 0.4], dtype=F64)  # from pure noise
    first = singlestep(3)(Flow(), straight).steps[0][1][-1][:2]
    torch.testing.assert_close(first, runge_kutta(EULER)(Flow(), straight).steps[0][1][-1], rtol=1e-12, atol=1e-14)
    fresh = singlestep(2, 1.0)(Flow(), straight).steps[0][1][-1]
    torch.testing.assert_close(fresh, torch.tensor([0.0, 0.6, 0.4], dtype=F64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["dpmpp_sde", "seeds_2", "seeds_3"])
def test_the_variance_is_of_second_order(name):
    """Of data N(0, 0.04), propagated exactly: with noise that is consistent over the stages, twice the steps leave a quarter."""
    errors = []
    for n in (80, 160):
        ts = log_snr_times(VP(), -7.5, 3.0, n)
        alpha, sigma = float(VP().alpha(ts[-1])), float(VP().sigma(ts[-1]))
        errors.append(law_of(get_rule(name), VP(), ts, 0.0, 0.04)[1] / (0.04 * alpha**2 + sigma**2) - 1)
    assert math.log2(errors[0] / errors[1]) > 1.75


def test_orders_of_dpm_solver_fast():
    """As many calls as were asked for; a step of each order is the rule of that order."""
    for calls in range(1, 40):
        orders = fast_orders(calls)
        assert sum(orders) == calls
        assert len(orders) == (calls // 3 + 1 if calls > 2 else 1)  # K of the paper
    orders = fast_orders(12)
    ts = log_snr_times(VP(), -6.0, 4.0, len(orders))
    mixed = singlestep(orders, prediction="eps")(VP(), ts)
    for i, order in enumerate(orders):
        pure = singlestep(order, prediction="eps")(VP(), ts)
        assert torch.equal(mixed.steps[i][1], pure.steps[i][1])
    with pytest.raises(ValueError, match=r"5 orders .* 4 steps"):
        singlestep(orders)(VP(), ts[:-1])


def test_options_that_make_no_sense_are_refused():
    for word, bad in (
        ("order", {"order": 4}),
        ("order", {"order": ()}),
        ("eta", {"eta": -1.0}),
        ("'v'", {"prediction": "v"}),
    ):
        with pytest.raises(ValueError, match=word):
            singlestep(**bad)
    with pytest.raises(ValueError, match="calls"):
        fast_orders(0)


def test_a_table_is_the_step():
    """Staged does what its numbers say: by hand, with a draw that is used in a stage and in the result."""
    table = torch.tensor([[1.0, 0, 0, 0], [0.5, 2.0, 0, 3.0], [0.0, 1.0, -1.0, 0.25]], dtype=F64)
    step = Staged([(torch.tensor([0.5, 0.2], dtype=F64), table)])
    z = float(Given.Z[0])
    d1 = denoise(X, scalar(0.5)).mean
    d2 = denoise(0.5 * X + 2 * d1 + 3 * z, scalar(0.2)).mean
    torch.testing.assert_close(step(denoise, X, 0, None, Given())[0], d1 - d2 + 0.25 * z, rtol=1e-14, atol=1e-14)
