"""Laws of every noise process: two curves, and everything that must follow from them."""

import math

import pytest
import torch

from oracles import F64, PROCESS_CASES, f64, scalar
from trilemma.numerics.noise import Noise
from trilemma.numerics.ode import integrate
from trilemma.numerics.tableau import RK4
from trilemma.process import process_from_config, process_to_config

every = pytest.mark.parametrize("process", [pytest.param(p, id=name) for name, p in PROCESS_CASES.items()])

# in the middle between the points of a chain of 1000 (and of 10), where every process is smooth
TIMES = (torch.tensor([0, 1, 3, 10, 33, 101, 333, 501, 707, 901, 951], dtype=F64) + 0.5) / 1000
NEAR_ZERO = torch.logspace(-12, -3, 10, dtype=F64)


def slope(curve, t):
    """Fourth-order central difference over 2e-4 t, and the size of its rounding error."""
    h = 1e-4 * t
    f = [curve(t + k * h) for k in (-2, -1, 1, 2)]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h), 4e-16 * f[0].abs() / h


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_at_zero(process, dtype):
    zero = torch.zeros((), dtype=dtype)
    assert abs(process.alpha(zero) - 1) <= torch.finfo(dtype).eps
    assert process.sigma(zero) == 0
    assert process.log_snr(zero) == math.inf
    assert process.time(torch.tensor(math.inf, dtype=dtype)) == 0


@every
def test_log_snr_is_that_of_the_curves_and_strictly_decreasing(process):
    t = torch.cat([NEAR_ZERO, torch.linspace(0.001, 1, 4000, dtype=F64)[1:]])
    values = process.log_snr(t)
    assert bool((values.diff() < 0).all())
    expected = 2 * (process.alpha(t) / process.sigma(t)).log()
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
    assert bool((process.alpha(t).diff() <= 0).all())
    assert bool((process.sigma(t).diff() > 0).all())


@every
def test_time_inverts_log_snr_also_near_zero(process):
    t = torch.cat([NEAR_ZERO, TIMES, f64(0.99, 0.999, 1.0)])
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-10, atol=0)
    lowest = float(process.log_snr(scalar(1.0)))
    values = torch.linspace(max(lowest, -20.0), 45.0, 131, dtype=F64)
    found = process.time(values)
    rounding = 4e-16 * (process.diffusion2(found) / process.sigma(found) ** 2).nan_to_num(
        posinf=0
    )  # of the time itself
    assert bool(((process.log_snr(found) - values).abs() <= 1e-9 * (1 + values.abs()) + rounding).all())


@every
def test_levels_that_are_never_reached_give_the_last_time(process):
    lowest = float(process.log_snr(scalar(1.0)))
    levels = [-math.inf] if lowest == -math.inf else [lowest - 1e-3, lowest - 10, -800.0, -1e4, -math.inf]
    assert process.time(f64(*levels)).tolist() == [1.0] * len(levels)


@every
def test_rates_drift_and_diffusion_are_derivatives(process):
    for value, curve in zip(process.rates(TIMES), (process.alpha, process.sigma)):
        expected, rounding = slope(curve, TIMES)
        assert bool(((value - expected).abs() <= 1e-8 * expected.abs() + rounding).all())
    expected, rounding = slope(lambda t: process.alpha(t).log(), TIMES)
    rounding = rounding + 4e-16 / (1e-4 * TIMES)  # alpha itself is rounded before the logarithm
    assert bool(((process.drift(TIMES) - expected).abs() <= 1e-8 * expected.abs() + rounding).all())
    expected, rounding = slope(process.log_snr, TIMES)
    sigma2 = process.sigma(TIMES) ** 2
    error = (process.diffusion2(TIMES) + sigma2 * expected).abs()
    assert bool((error <= 1e-7 * sigma2 * expected.abs() + sigma2 * rounding).all())


@every
def test_the_forward_equation_has_the_marginals(process):
    """dm/dt = f m and dv/dt = 2 f v + g^2, from the law at k/1000 to that at (k+1)/1000, for all k up to 0.95 at once."""
    start = torch.arange(950, dtype=F64) / 1000

    def field(tau, state):
        m, v = state
        f, g2 = process.drift(start + tau), process.diffusion2(start + tau)
        return f * m, 2 * f * v + g2

    length = 1e-3 * (1 - 1e-9)  # stays before the end of the interval, where chains have a kink
    state = (process.alpha(start), process.sigma(start) ** 2)
    m, v = integrate(field, state, torch.linspace(0, length, 9, dtype=F64), RK4).y
    end = start + length
    torch.testing.assert_close(m, process.alpha(end), rtol=1e-9, atol=0)
    torch.testing.assert_close(v, process.sigma(end) ** 2, rtol=1e-8, atol=0)


@every
def test_variance_starts_at_the_rate_of_the_diffusion(process):
    """sigma^2 has all its digits near t = 0: sigma^2(t) = t g^2(t/2) to first order."""
    t = f64(1e-9, 1e-7, 1e-6)
    torch.testing.assert_close(process.sigma(t) ** 2, t * process.diffusion2(t / 2), rtol=1e-4, atol=0)


@every
def test_kernels_compose(process):
    end = 1.0 if float(process.alpha(scalar(1.0))) > 0 else 0.99
    r, s, t = f64(0.0, 1e-6, 0.1, 0.3, 0.5), f64(1e-6, 0.01, 0.2, 0.3, 0.7), f64(1e-3, 0.5, 0.9, 0.6, end)
    (a, first), (b, second), (c, both) = process.transition(r, s), process.transition(s, t), process.transition(r, t)
    torch.testing.assert_close(a * b, c, rtol=1e-12, atol=0)
    torch.testing.assert_close((b * first) ** 2 + second**2, both**2, rtol=1e-10, atol=0)


@every
def test_renoise_continues_perturb(process):
    """Noise to s, then to t >= s: the coefficients of x, eps and xi give the marginal at t. Each item has its own times."""
    s, t = f64(0.0, 0.0, 0.2, 0.4, 0.999, 1.0), f64(0.0, 1.0, 0.5, 0.4, 1.0, 1.0)
    one, zero = torch.ones(6, 1, dtype=F64), torch.zeros(6, 1, dtype=F64)

    def go(x, eps, xi):
        return process.renoise(process.perturb(x, s, eps), s, t, xi)[:, 0]

    x, eps, xi = go(one, zero, zero), go(zero, one, zero), go(zero, zero, one)
    torch.testing.assert_close(x, process.alpha(t), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(eps**2 + xi**2, process.sigma(t) ** 2, rtol=1e-10, atol=1e-13)
    assert xi[3] == 0  # from a time to itself nothing is added


@every
def test_noise_objects_and_noise_values_are_the_same_draw(process):
    noise, x = Noise(3, 4), torch.linspace(-1, 1, 12).reshape(4, 3)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    assert torch.equal(process.perturb(x, t, noise), process.perturb(x, t, noise.normal_like(x)))
    prior = process.prior((4, 3), noise, t=0.6, like=x.double())
    torch.testing.assert_close(prior, noise.normal((4, 3), dtype=F64) * process.sigma(scalar(0.6)), rtol=1e-14, atol=0)


@every
def test_configuration_round_trip(process):
    import json

    again = process_from_config(json.loads(json.dumps(process_to_config(process))))
    assert again == process
    assert hash(again) == hash(process)
    assert torch.equal(again.sigma(TIMES), process.sigma(TIMES))


@every
def test_shapes_and_types_follow_the_times(process):
    for t in (torch.rand(2, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(0.3).expand(4)):
        values = (process.alpha(t), process.sigma(t), process.log_snr(t), process.drift(t), process.diffusion2(t))
        for value, exact in zip(values, [f(t.double()) for f in (process.alpha, process.sigma, process.log_snr)]):
            assert value.dtype == t.dtype
            torch.testing.assert_close(value.double(), exact, rtol=2e-5, atol=2e-5)
        assert {v.shape for v in values} == {t.shape}
        assert process.time(process.log_snr(t)).dtype == t.dtype
