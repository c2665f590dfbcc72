"""SA-Solver and ER-SDE-Solver against their papers' formulas, written densely and integrated by SciPy."""

import math

import numpy as np
import pytest
import torch

from oracles import F64, flow_truth, log_snr_times, scalar
from trilemma.process import EDM, VP, Flow
from trilemma.sampling import ddpm, exponential, sample
from trilemma.sampling.sa import Band, Constant, Extended, er_sde, sa_solver

PROCESSES = [EDM(), VP(), Flow()]


def uneven(process, steps=8):
    even = torch.linspace(-6, 5, steps + 1, dtype=F64)
    return process.time(even + 0.35 * torch.sin(2.3 * even))


def curves(process, ts):
    alpha, sigma = process.alpha(ts).numpy(), process.sigma(ts).numpy()
    return alpha, sigma, np.log(alpha / sigma)


def lagrange(lam, nodes, j):
    out = np.ones_like(lam)
    for k, node in enumerate(nodes):
        if k != j:
            out = out * (lam - node) / (nodes[j] - node)
    return out


def quad(f, low, high):
    z, w = np.polynomial.legendre.leggauss(80)
    return float((high - low) / 2 * (w * f((high - low) / 2 * z + (high + low) / 2)).sum())


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (3, 4), (2, 0), (3, 2)])
@pytest.mark.parametrize("process", PROCESSES, ids=["edm", "vp", "flow"])
def test_sa_solver_is_the_published_algorithm(process, predictor, corrector):
    """Xue et al. 2023, algorithm 1, kept as two states (predicted and corrected) with any D and xi, tau = 0.8."""
    ts, tau, rng = uneven(process), 0.8, np.random.default_rng(1)
    _, sigma, lam = curves(process, ts)
    n = len(ts) - 1
    d, xi = rng.normal(size=n + 1), rng.normal(size=n)

    def adams(x, i, which):
        """x from t_i to t_{i+1} with the D of these indices."""
        nodes = [lam[k] for k in which]
        h = lam[i + 1] - lam[i]
        total = math.exp(-(tau**2) * h) * sigma[i + 1] / sigma[i] * x
        total += sigma[i + 1] * math.sqrt(-math.expm1(-2 * tau**2 * h)) * xi[i]
        for j, k in enumerate(which):
            weight = quad(lambda u, j=j: np.exp((1 + tau**2) * u) * lagrange(u, nodes, j), lam[i], lam[i + 1])
            total += (1 + tau**2) * sigma[i + 1] * math.exp(-(tau**2) * lam[i + 1]) * weight * d[k]
        return total

    predicted, corrected, before = [0.4], 0.4, 0.4
    for i in range(n):
        if i and corrector:  # D_i is known: take the last step again
            corrected = adams(before, i - 1, range(i, max(-1, i - corrector), -1))
        elif i:
            corrected = predicted[-1]
        before = corrected
        predicted.append(adams(corrected, i, range(i, max(-1, i - predictor), -1)))
    plan, x = sa_solver(predictor, corrector, clock=Constant(tau))(process, ts), 0.4
    for i in range(n):
        row = plan.b[i].tolist()
        x = float(plan.a[i, 0]) * x + sum(w * d[i - j] for j, w in enumerate(row) if w) + float(plan.c[i]) * xi[i]
        assert x == pytest.approx(predicted[i + 1], rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("clock", "phi"),
    [
        (Extended(), lambda s: s * (np.exp(s**0.3) + 10)),
        (Constant(1.0), lambda s: s**2),
        (Constant(math.sqrt(1.5)), lambda s: s**2.5),
        (Constant(0.0), lambda s: s),
    ],
    ids=["extended", "s^2", "s^2.5", "ode"],
)
def test_er_sde_is_the_published_algorithm(order, clock, phi):
    """Cui et al. 2023, algorithms 1 to 3, in x/alpha and s = sigma/alpha (literature: C.9), for any past D."""
    for process in PROCESSES:
        ts, rng = uneven(process), np.random.default_rng(2)
        alpha, sigma, _ = curves(process, ts)
        s, d = sigma / alpha, rng.normal(size=len(ts))
        plan = er_sde(order, clock=clock)(process, ts)
        for i in range(len(ts) - 1):
            r, x = phi(s[i + 1]) / phi(s[i]), 0.7
            mean = r * x + (1 - r) * d[i]
            if i >= 1 and order >= 2:
                first = (d[i] - d[i - 1]) / (s[i] - s[i - 1])
                # the integrals over log s, where a quadrature of few points is exact
                whole = quad(lambda v: np.exp(v) / phi(np.exp(v)), math.log(s[i + 1]), math.log(s[i]))
                mean += (s[i + 1] - s[i] + phi(s[i + 1]) * whole) * first
                if i >= 2 and order == 3:
                    before = (d[i - 1] - d[i - 2]) / (s[i - 1] - s[i - 2])
                    second = 2 * (first - before) / (s[i] - s[i - 2])
                    whole = quad(
                        lambda v, i=i, s=s: np.exp(v) * (np.exp(v) - s[i]) / phi(np.exp(v)),
                        math.log(s[i + 1]),
                        math.log(s[i]),
                    )
                    mean += ((s[i + 1] - s[i]) ** 2 / 2 + phi(s[i + 1]) * whole) * second
            found = float(plan.a[i, 0]) * alpha[i] * x + sum(
                w * d[i - j] for j, w in enumerate(plan.b[i].tolist()) if w
            )
            assert found / alpha[i + 1] == pytest.approx(mean, rel=1e-8, abs=1e-9)
            variance = (float(plan.c[i]) / alpha[i + 1]) ** 2
            assert variance == pytest.approx(s[i + 1] ** 2 - (s[i] * r) ** 2, rel=1e-7, abs=1e-12 * s[i] ** 2)


def order_of(rule, low=-7.5, high=3.0, steps=64):
    mixture, start, end = flow_truth(low, high)
    model, error = mixture.torch(EDM()), []
    for n in (steps, 2 * steps):
        ts = log_snr_times(EDM(), low, high, n)
        error.append(float((sample(model, start.shape, ts, rule, x=start) - end).norm()))
    return math.log2(error[0] / error[1])


def test_orders_without_noise():
    """As claimed: predictor + 1 with a corrector that is as good, limited by it; ER-SDE stays at two."""
    for predictor, corrector, order in ((1, 2, 2), (2, 2, 2), (2, 3, 3), (3, 4, 4), (2, 0, 2)):
        assert order_of(sa_solver(predictor, corrector, clock=Constant(0.0))) > order - 0.25
    for order in (1, 2, 3):
        assert order_of(er_sde(order, clock=Constant(0.0))) > min(order, 2) - 0.25
    assert order_of(er_sde(3, clock=Constant(0.0))) < 2.6


def test_the_first_orders_are_old_friends():
    for process in PROCESSES:
        ts = torch.cat([uneven(process), scalar(0.0)[None]])
        for plan in (er_sde(1, clock=Constant(1.0))(process, ts), sa_solver(1, 0, clock=Constant(1.0))(process, ts)):
            for name in "abc":
                torch.testing.assert_close(getattr(plan, name), getattr(ddpm(process, ts), name), rtol=1e-9, atol=1e-12)
        plan, known = sa_solver(2, 0, clock=Constant(0.6))(process, ts), exponential(2, 0.6)(process, ts)
        torch.testing.assert_close(plan.b, known.b, rtol=1e-9, atol=1e-12)


def test_a_band_draws_no_noise_outside():
    """The levels of steps with noise; a step over an edge draws for its part inside."""
    ts = log_snr_times(EDM(), -6.0, 8.0, 28)
    clock = Band(1.0, 0.05, 1.0)
    plan, level = sa_solver(clock=clock)(EDM(), ts), 80 * ts
    for i in range(28):
        inside = max(0.0, math.log(min(float(level[i]), 1.0) / max(float(level[i + 1]), 0.05)))
        expected = float(level[i + 1]) * math.sqrt(-math.expm1(-2 * inside))
        assert float(plan.c[i]) == pytest.approx(expected, rel=1e-7, abs=1e-12)


def test_what_is_refused():
    with pytest.raises(ValueError, match="got 5 and 4"):
        sa_solver(5)
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, got 4"):
        er_sde(4)
    with pytest.raises(ValueError, match="a band needs"):
        Band(1.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="eta must be"):
        Constant(math.inf)
    with pytest.raises(ValueError, match="power must"):
        Extended(0.0)
