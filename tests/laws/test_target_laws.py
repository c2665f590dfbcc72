"""Laws of every row of the target table on every process, and the published conversions."""

import pytest
import torch
from torch import nn

from oracles import F64, PROCESS_CASES, Mixture, scalar
from trilemma.denoise import TARGETS, Preconditioned
from trilemma.denoise.targets import coefficients, get_target
from trilemma.process import EDM, VP, Cosine, Flow

TIMES = torch.cat(
    [torch.logspace(-9, -2, 8, dtype=F64), torch.linspace(0.03, 0.97, 20, dtype=F64), torch.ones(1, dtype=F64)]
)


def singular(target, process):
    """What must be refused: x from eps or score without signal, and a velocity that is infinite at the data."""
    if target in ("eps", "score"):
        return float(process.alpha(scalar(1.0))) == 0
    if target == "velocity":  # sigma ~ sqrt(t): four times the time is twice the noise, and not four times
        return float(process.sigma(scalar(4e-9)) / process.sigma(scalar(1e-9))) < 3
    return False


PAIRS = [pytest.param(t, p, id=f"{t}-{name}") for t in TARGETS for name, p in PROCESS_CASES.items()]
GOOD = [pair for pair in PAIRS if not singular(*pair.values)]
BAD = [pair for pair in PAIRS if singular(*pair.values)]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Zero(nn.Module):
    def forward(self, x, c_time):
        return torch.zeros_like(x)


@pytest.mark.parametrize(("target", "process"), GOOD)
def test_clean_item_and_noise_come_back(target, process):
    n = len(TIMES)
    x, eps = rand(n, 3), rand(n, 3, seed=1)
    model = Preconditioned(Zero(), process, target, sigma_data=0.7)
    x_t = process.perturb(x, TIMES, eps)
    out = model.regression_target(x, eps, TIMES)
    c_skip, c_out, _, _ = model.coefficients(TIMES)
    found = c_skip[:, None] * x_t + c_out[:, None] * out
    alpha, sigma = process.alpha(TIMES)[:, None], process.sigma(TIMES)[:, None]
    amplified = 1e-14 * (1 + (c_skip[:, None] * x_t).abs() + (c_out[:, None] * out).abs())
    assert bool(((found - x).abs() <= 100 * amplified).all())
    noise = (x_t - alpha * found) / sigma
    assert bool(
        ((noise - eps).abs() <= 1e-12 * (1 + x_t.abs()) * (1 + alpha / sigma) * (1 + 1 / alpha.clamp(min=1e-3))).all()
    )


@pytest.mark.parametrize(("target", "process"), BAD)
def test_singular_combinations_are_refused(target, process):
    with pytest.raises(ValueError, match=f"'{target}'.*use"):
        get_target(target, process)
    with pytest.raises(ValueError, match=target):
        Preconditioned(Zero(), process, target)


def test_unknown_targets_name_the_nearest():
    with pytest.raises(ValueError, match="'velocity'"):
        get_target("velocty", Flow())


# the table of conversions to x0, as papers print it: Kingma and Gao 2023, appendix D; Salimans and Ho 2022; Lipman et al. 2023
TO_X0 = {
    "x0": lambda x, f, a, s, da, ds: f,
    "eps": lambda x, f, a, s, da, ds: (x - s * f) / a,
    "score": lambda x, f, a, s, da, ds: (x + s**2 * f) / a,
    "v": lambda x, f, a, s, da, ds: (a * x - s * f) / (a**2 + s**2),
    "velocity": lambda x, f, a, s, da, ds: (ds * x - s * f) / (a * ds - da * s),
}


@pytest.mark.parametrize("target", TO_X0)
@pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_published_conversions(target, process):
    t = torch.linspace(0.05, 0.95, 19, dtype=F64) + 0.5e-3  # off the kinks of chains
    x_t, f = rand(19), rand(19, seed=1)
    c_skip, c_out = coefficients(TARGETS[target], process, t, 1.0)
    expected = TO_X0[target](x_t, f, process.alpha(t), process.sigma(t), *process.rates(t))
    torch.testing.assert_close(c_skip * x_t + c_out * f, expected, rtol=1e-9, atol=1e-9)


def test_straight_flow_reads_x0_off_the_velocity():
    t, x_t, u = TIMES, rand(len(TIMES)), rand(len(TIMES), seed=1)
    c_skip, c_out = coefficients(TARGETS["velocity"], Flow(), t, 1.0)
    torch.testing.assert_close(c_skip * x_t + c_out * u, x_t - t * u)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_preconditioning_is_the_published_table(sigma_data):
    """Karras et al. 2022, table 1, with sigma the noise level; c_noise = ln(sigma)/4."""
    model = Preconditioned(Zero(), EDM(), "edm", sigma_data=sigma_data)
    t = torch.logspace(-4.5, 0, 30, dtype=F64)
    sigma, d = 80 * t, sigma_data
    c_skip, c_out, c_in, c_time = model.coefficients(t)
    torch.testing.assert_close(c_skip, d**2 / (sigma**2 + d**2))
    torch.testing.assert_close(
        c_out.abs(), sigma * d / (sigma**2 + d**2).sqrt()
    )  # its sign is a convention of the network
    torch.testing.assert_close(c_in, 1 / (sigma**2 + d**2).sqrt())
    torch.testing.assert_close(c_time, sigma.log() / 4)
    # eps in these units is the table's column for VP and iDDPM: c_skip = 1, c_out = -sigma
    c_skip, c_out = coefficients(TARGETS["eps"], EDM(), t, d)
    torch.testing.assert_close(c_skip, torch.ones_like(t))
    torch.testing.assert_close(c_out, -sigma)


@pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_network_sees_and_predicts_unit_variance(process):
    """At every level, for data of standard deviation 0.5: Var(c_in x_t) = 1; for edm, Var(F) = 1 and Cov(F, x_t) = 0."""
    model = Preconditioned(Zero(), process, "edm", sigma_data=0.5)
    one, zero = torch.ones(len(TIMES), 1, dtype=F64), torch.zeros(len(TIMES), 1, dtype=F64)
    p, q = (model.regression_target(x, e, TIMES)[:, 0] for x, e in ((one, zero), (zero, one)))
    alpha, sigma = process.alpha(TIMES), process.sigma(TIMES)
    _, c_out, c_in, _ = model.coefficients(TIMES)
    torch.testing.assert_close((c_in * alpha * 0.5) ** 2 + (c_in * sigma) ** 2, one[:, 0])
    torch.testing.assert_close((0.5 * p) ** 2 + q**2, one[:, 0])
    torch.testing.assert_close(0.25 * p * alpha + q * sigma, zero[:, 0], rtol=0, atol=1e-12)
    # the published weight times c_out^2 is 1: (sigma^2 + d^2) / (sigma d)^2 in units of sigma/alpha
    level2 = (sigma / alpha.clamp(min=1e-200)) ** 2
    torch.testing.assert_close(((level2 + 0.25) / (level2 * 0.25) * c_out**2)[:-1], one[:-1, 0])


class Perfect(nn.Module):
    """A network that knows the data: it undoes c_in, asks the oracle, and answers in units of the target."""

    def __init__(self, mixture, process, target, t, sigma_data):
        super().__init__()
        self.mixture, self.process, self.t = mixture, process, t
        self.p, self.q = TARGETS[target].row(process, t, sigma_data)
        self.sigma_data = sigma_data

    def forward(self, x, c_time):
        alpha, sigma = float(self.process.alpha(self.t)), float(self.process.sigma(self.t))
        x_t = x.double() * (alpha**2 * self.sigma_data**2 + sigma**2) ** 0.5
        mean = torch.tensor(self.mixture.denoise(x_t.numpy(), alpha, sigma))
        return self.p * mean + self.q * (x_t - alpha * mean) / sigma


@pytest.mark.parametrize(
    ("target", "process"), [pair for pair in GOOD if "shift" not in pair.id and "slow" not in pair.id]
)
def test_a_perfect_network_is_the_exact_denoiser(target, process):
    mixture = Mixture.example(components=3)
    for t in (scalar(1e-3), scalar(0.3), scalar(0.8)):
        model = Preconditioned(Perfect(mixture, process, target, t, 0.7), process, target, sigma_data=0.7)
        alpha, sigma = process.alpha(t), process.sigma(t)
        x_t = alpha * rand(6, 2) + sigma * rand(6, 2, seed=1)
        expected = torch.tensor(mixture.denoise(x_t.numpy(), float(alpha), float(sigma)))
        torch.testing.assert_close(model(x_t, t).mean, expected, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(model(x_t, t.expand(6)).mean, expected, rtol=1e-7, atol=1e-7)


class Bounded(nn.Module):
    def forward(self, x, c_time):
        assert bool((c_time.abs() <= 5).all())
        return torch.tanh(x) + torch.sin(c_time)[:, None]


@pytest.mark.parametrize(("target", "process"), GOOD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_are_finite_and_clean_items_are_kept(target, process, dtype):
    model = Preconditioned(Bounded(), process, target)
    x = rand(5, 2).to(dtype)
    start = model(x, torch.zeros((), dtype=dtype)).mean
    if target != "x0":  # which alone takes nothing from x_t
        torch.testing.assert_close(start, x)
    assert start.dtype == dtype
    assert bool(torch.isfinite(start).all())
    end = model(float(process.sigma(scalar(1.0))) * x, torch.ones(5, dtype=dtype)).mean
    assert bool(torch.isfinite(end).all())
    t = torch.tensor([0.0, 1e-6, 0.4, 0.9, 1.0], dtype=dtype)
    batch = model(x, t).mean
    for i in range(5):
        torch.testing.assert_close(batch[i : i + 1], model(x[i : i + 1], t[i]).mean, rtol=1e-4, atol=1e-5)


def test_conditions_are_checked_by_name():
    class Conditional(nn.Module):
        def forward(self, x, c_time, label=None):
            return x if label is None else x + label[:, None]

    model = Preconditioned(Conditional(), Cosine(), "v")
    x, t = rand(2, 3), scalar(0.4)
    assert model.cond_keys == {"label"}
    moved = model(x, t, label=torch.ones(2)).mean - model(x, t).mean
    torch.testing.assert_close(moved, model.coefficients(t)[1] * torch.ones(2, 3, dtype=F64))
    with pytest.raises(ValueError, match=r"'lable'.*'label'"):
        model(x, t, lable=torch.ones(2))
    with pytest.raises(ValueError, match="takes no conditions"):
        Preconditioned(Zero(), VP(), "v")(x, t, label=torch.ones(2))
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="sigma_data"):
            Preconditioned(Zero(), VP(), "v", sigma_data=bad)
