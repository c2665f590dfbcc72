"""Linear multistep rules against the formulas of their papers, written out again, and against what makes them exact."""

import math

import numpy as np
import pytest
import torch

from oracles import F64, PROCESS_CASES, Mixture, f64, log_snr_times
from trilemma.process import EDM, VP, Flow, FromBetas
from trilemma.process.grid import karras_grid, uniform_grid
from trilemma.sampling import RULES, ddim, sample
from trilemma.sampling.multistep import BASHFORTH, adams, deis, dpm_solver, gauss_legendre, gradient_estimation, ipndm
from trilemma.sampling.pndm import plms, pndm
from trilemma.sampling.unipc import unipc

processes = pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)


def uneven(process, steps=9):
    """Times with log-SNR steps of very different length, between finite ends."""
    even = torch.linspace(-6, 5, steps + 1, dtype=F64)
    return process.time((even + 0.35 * torch.sin(2.3 * even)).clamp(min=float(process.log_snr(f64(1.0))[0])))


class Curves:
    def __init__(self, process, ts):
        self.alpha, self.sigma = process.alpha(ts).numpy(), process.sigma(ts).numpy()
        self.rho, self.lam = self.sigma / self.alpha, np.log(self.alpha / self.sigma)


def run_plan(plan, x, d):
    """The states that a plan makes of a start and given denoised states."""
    xs = [x]
    for i in range(plan.steps):
        a, b = plan.a[i].numpy(), plan.b[i].numpy()
        terms = [a[k] * xs[i - k] for k in range(len(a)) if k <= i] + [b[j] * d[i - j] for j in range(len(b)) if j <= i]
        xs.append(sum(terms))
    return np.array(xs)


def published_unipc(c, x, d, order, variant, on_eps):
    """UniPC as its authors' code has it: a linear system for every step (literature: D.8), no order lowered at the end."""
    n, value, xs, correct = len(c.lam) - 1, [], [x], None
    for i in range(n):
        value.append((x - c.alpha[i] * d[i]) / c.sigma[i] if on_eps else d[i])  # at the predicted state, and kept
        if correct is not None:
            x = correct(value[i] - value[i - 1])
        p = min(i + 1, order)
        h = c.lam[i + 1] - c.lam[i]
        hh = h if on_eps else -h
        r = np.array([(c.lam[i - m] - c.lam[i]) / h for m in range(1, p)] + [1.0])
        differences = np.array([(value[i - m] - value[i]) / r[m - 1] for m in range(1, p)])
        b_h, q, rhs = (hh if variant == "bh1" else math.expm1(hh)), math.expm1(hh) / hh - 1, []
        for k in range(1, p + 1):
            rhs.append(q * math.factorial(k) / b_h)
            q = q / hh - 1 / math.factorial(k + 1)
        matrix = np.array([r ** (k - 1) for k in range(1, p + 1)])
        solved = np.linalg.solve(matrix, rhs) if p > 1 else np.array([0.5])
        predict = np.linalg.solve(matrix[:-1, :-1], rhs[:-1]) if p > 2 else np.full(p - 1, 0.5)
        scale, other = (
            (c.sigma[i + 1], c.alpha[i + 1] / c.alpha[i]) if on_eps else (c.alpha[i + 1], c.sigma[i + 1] / c.sigma[i])
        )
        base, size = other * x - scale * math.expm1(hh) * value[i], scale * b_h
        known = base - size * (differences @ solved[:-1])

        def correct(jump, known=known, weight=size * solved[-1]):
            return known - weight * jump

        x = base - size * (differences @ predict)
        xs.append(x)
    return np.array(xs)


@processes
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_unipc_is_the_published_one(process, order, variant, prediction):
    ts = log_snr_times(process, max(-6.0, float(process.log_snr(f64(1.0))[0])), 5.0, 9)
    ts[2:6] += (ts[1:5] - ts[2:6]) * f64(0.3, -0.2, 0.25, 0.1)  # of different lengths
    rng = np.random.default_rng(order)
    x, d = rng.normal(), rng.normal(size=9)
    ours = run_plan(unipc(order, variant=variant, prediction=prediction)(process, ts), x, d)
    theirs = published_unipc(Curves(process, ts), x, d, order, variant, prediction == "eps")
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8 * np.abs(theirs).max())


def test_the_variants_differ_where_they_should():
    """B(h) cancels as soon as three values are used: the rows of unipc(4) differ in the first steps alone."""
    ts = log_snr_times(VP(), -6.0, 5.0, 8)
    one, two = unipc(4, variant="bh1")(VP(), ts), unipc(4)(VP(), ts)
    same = [bool(torch.allclose(one.b[i], two.b[i], rtol=1e-13, atol=0)) for i in range(8)]
    assert same == [True, False, False, True, True, True, True, True]


@processes
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_and_deis_integrate_polynomials_exactly(process, order):
    """eps = u^k with k < order and u the noise level or the time: every step with a full past is the integral of eps drho."""
    from scipy.integrate import quad

    ts = uneven(process).clamp(max=0.999)
    ts = ts[torch.cat([ts.new_tensor([-1.0]), ts.diff()]) < 0]
    c = Curves(process, ts)
    for rule, in_time in ((adams(order), False), (deis(order - 1), True)):
        plan, chain = rule(process, ts), in_time and isinstance(process, FromBetas)
        for power in range(order):

            def eps(t, rho, power=power, in_time=in_time):
                return (t if in_time else rho / c.rho[0]) ** power

            values = eps(ts.numpy(), c.rho)
            for i in range(order - 1, plan.steps):
                if chain:  # piece by piece: the time of a chain has kinks
                    cuts = np.linspace(float(ts[i]), float(ts[i + 1]), 20001)
                    rho = Curves(process, torch.tensor(cuts)).rho
                    exact = (eps((cuts[1:] + cuts[:-1]) / 2, None) * np.diff(rho)).sum()
                else:
                    exact = quad(
                        lambda lam: -math.exp(-lam) * eps(float(process.time(f64(2 * lam))[0]), math.exp(-lam)),
                        c.lam[i],
                        c.lam[i + 1],
                        epsabs=0,
                        epsrel=1e-11,
                    )[0]
                y = np.array([0.7, -0.4, 1.1, 0.2])  # any past; the state counts once
                xs, ds = [], []
                for j in range(order):
                    k = i - j
                    xs.append(c.alpha[k] * y[j])
                    ds.append((xs[j] - c.sigma[k] * values[k]) / c.alpha[k])
                out = sum(float(plan.a[i, j]) * xs[j] + float(plan.b[i, j]) * ds[j] for j in range(order))
                loose = 1e-5 if chain else 1e-9
                assert out / c.alpha[i + 1] - y[0] == pytest.approx(exact, rel=loose, abs=loose * c.rho[i])


def test_equal_steps_make_all_of_them_one():
    """On EDM's uniform grid time and noise level are proportional and all steps equal: three families, the same numbers."""
    ts = uniform_grid(EDM(), 9)[:-1]
    for order in (1, 2, 3, 4):
        full = slice(order - 1, None)
        reference = ipndm(order)(EDM(), ts)
        for rule in (adams(order), deis(order - 1)):
            plan = rule(EDM(), ts)
            torch.testing.assert_close(plan.b, reference.b, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(plan.a[full], reference.a[full], rtol=1e-10, atol=1e-12)
    uneven_ts = karras_grid(EDM(), 9)
    torch.testing.assert_close(adams(4)(EDM(), uneven_ts).b, deis(3)(EDM(), uneven_ts).b, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(ipndm(4)(EDM(), uneven_ts).b, adams(4)(EDM(), uneven_ts).b, rtol=1e-2)


@processes
def test_first_order_of_all_of_them_is_ddim(process):
    ts = torch.tensor([0.9, 0.5, 0.3, 0.07, 0.0], dtype=F64)
    one = ddim()(process, ts)
    for rule in (adams(1), deis(0), ipndm(1), dpm_solver(1), gradient_estimation(1.0)):
        plan = rule(process, ts)
        torch.testing.assert_close(plan.a[:, 0], one.a[:, 0], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(plan.b[:, 0], one.b[:, 0], rtol=1e-9, atol=1e-12)
        assert not plan.a[:, 1:].any()
        assert not plan.b[:, 1:].any()


def test_bashforth_weights_are_exact_for_polynomials():
    """On [0, 1] with nodes 0, -1, -2, ...: the integral of s^k."""
    for order, weights in enumerate(BASHFORTH, 1):
        for k in range(order):
            assert sum(w * (-j) ** k for j, w in enumerate(weights)) == pytest.approx(1 / (k + 1), abs=1e-13)


@processes
@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_gradient_estimation_is_the_published_one(process, gamma):
    """smalldiffusion's loop in sigma/alpha (literature: none; Permenter and Yuan 2024, algorithm 2)."""
    ts = torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1, 0.02], dtype=F64)
    c, rng = Curves(process, ts), np.random.default_rng(0)
    z, d, last = 0.4, rng.normal(size=5), None
    expected = []
    for i in range(5):
        eps = (z - d[i]) / c.rho[i]
        z = z - (c.rho[i] - c.rho[i + 1]) * (eps if last is None else gamma * eps + (1 - gamma) * last)
        last = eps
        expected.append(z * c.alpha[i + 1])
    ours = run_plan(gradient_estimation(gamma)(process, ts), 0.4 * c.alpha[0], d)[1:]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


@processes
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_is_the_published_one(process, order):
    """Multistep DPM-Solver on eps from the divided differences of its code (literature: D.6, D.7 with the signs of eps)."""
    ts = torch.tensor([0.9, 0.7, 0.55, 0.3, 0.1, 0.02], dtype=F64)
    c, rng = Curves(process, ts), np.random.default_rng(1)
    x, d = 0.4, rng.normal(size=5)
    ours, eps = run_plan(dpm_solver(order)(process, ts), x, d), []
    for i in range(5):
        eps.append((x - c.alpha[i] * d[i]) / c.sigma[i])
        h, sigma = c.lam[i + 1] - c.lam[i], c.sigma[i + 1]
        phi_1 = math.expm1(h)
        new = c.alpha[i + 1] / c.alpha[i] * x - sigma * phi_1 * eps[i]
        if i:
            r0 = (c.lam[i] - c.lam[i - 1]) / h
            d1_0 = (eps[i] - eps[i - 1]) / r0
            if i == 1 or order == 2:
                new -= sigma * phi_1 / 2 * d1_0
            else:
                r1 = (c.lam[i - 1] - c.lam[i - 2]) / h
                d1_1 = (eps[i - 1] - eps[i - 2]) / r1
                phi_2 = phi_1 / h - 1
                new -= sigma * phi_2 * (d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1))
                new -= sigma * (phi_2 / h - 0.5) * (d1_0 - d1_1) / (r0 + r1)
        x = new
        assert ours[i + 1] == pytest.approx(x, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("start", ["plms", "pndm"])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_pndm_is_the_published_one(start, steps):
    """Liu et al. 2022, algorithms 1 and 2, with their transfer phi (equation 11) in alpha-bar, on a chain."""
    chain = FromBetas()
    model = Mixture.example().torch(chain)
    ts = torch.tensor([1000, 880, 760, 640, 520, 400, 280, 160, 40], dtype=F64)[-steps - 1 :] / 1000
    start_x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    bars = np.concatenate([[1.0], np.cumprod(1 - np.array(chain.betas))])

    def bar(t):
        return bars[round(float(t) * 1000)]

    def eps(x, t):
        return (x - math.sqrt(bar(t)) * model(x, t).mean) / math.sqrt(1 - bar(t))

    def phi(x, e, t, s):
        a, b = bar(t), bar(s)
        below = math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))
        return math.sqrt(b / a) * x - (b - a) / below * e

    x, past = start_x, []
    for i in range(steps):
        t, s = ts[i], ts[i + 1]
        e = eps(x, t)
        past.append(e)
        if start == "pndm" and i < 3:
            middle = (t + s) / 2
            e2 = eps(phi(x, e, t, middle), middle)
            e3 = eps(phi(x, e2, t, middle), middle)
            e4 = eps(phi(x, e3, t, s), s)
            e = (e + 2 * e2 + 2 * e3 + e4) / 6
        elif start == "plms" and i == 0:
            e = (e + eps(phi(x, e, t, s), s)) / 2
        elif i == 1:
            e = (3 * past[-1] - past[-2]) / 2
        elif i == 2:
            e = (23 * past[-1] - 16 * past[-2] + 5 * past[-3]) / 12
        else:
            e = (55 * past[-1] - 59 * past[-2] + 37 * past[-3] - 9 * past[-4]) / 24
        x = phi(x, e, t, s)
    ours = sample(model, (5, 2), ts, {"plms": plms, "pndm": pndm}[start](), x=start_x)
    torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


def test_names_that_mean_the_same_are_the_same():
    for name in ("lms", "ipndm_v", "deis_rhoab_3"):
        assert RULES[name].make() == adams(4)
    assert RULES["deis_tab_2"].make() == deis(2)


@pytest.mark.parametrize("rule", [adams(2), deis(1), ipndm(2), dpm_solver(2), plms(), unipc(2, prediction="eps")])
def test_where_there_is_no_signal_they_say_so(rule):
    with pytest.raises(ValueError, match="alpha = 0"):
        rule(Flow(), uniform_grid(Flow(), 4))
    rule(Flow(), uniform_grid(Flow(), 4)[1:])


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: adams(5), "order"), (lambda: adams(0), "order"), (lambda: deis(4), "order"), (lambda: ipndm(0), "order"),
        (lambda: dpm_solver(4), "order"), (lambda: unipc(5), "order"), (lambda: unipc(2, variant="b1"), "variant"),
        (lambda: unipc(2, prediction="v"), "prediction"), (lambda: gradient_estimation(math.nan), "gamma"),
    ],
)  # fmt: skip
def test_other_options_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize("count", [1, 3, 64])
def test_the_quadrature_is_exact_for_polynomials_of_degree_2_count_minus_1(count):
    """The integral of u^k over [0, 1] is 1/(k + 1); the first that is not exact is k = 2 count, found once for all callers."""
    points, weights = gauss_legendre(count)
    for k in range(2 * count):
        assert float((weights * points**k).sum()) == pytest.approx(1 / (k + 1), rel=1e-13)
    if count < 64:
        assert float((weights * points ** (2 * count)).sum()) != pytest.approx(1 / (2 * count + 1), rel=1e-5)
    assert gauss_legendre(count)[0] is points
