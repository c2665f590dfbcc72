"""Log-likelihood by the flow: other denoisers than exact ones, its three errors, what it counts, and the class of an item."""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import t as student

from oracles import F64, Mixture, scalar
from trilemma.denoise import (
    CFG,
    Covariances,
    Denoiser,
    FiniteDenoiser,
    Gaussian,
    GaussianDenoiser,
    Preconditioned,
    Rescheduled,
    Thresholded,
)
from trilemma.likelihood import class_posterior, log_likelihood
from trilemma.likelihood.field import Field
from trilemma.likelihood.solve import _gregory
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Cosine, Flow
from trilemma.sampling.angle import norm_at, time_at_angle

TWO = Mixture.example()
X = torch.tensor([[0.3, -0.2], [1.0, 0.4], [-0.8, 0.9], [0.1, 1.2]], dtype=F64)


class Foreign(Denoiser):
    """Nothing but the contract; counts the items that it is asked about."""

    def __init__(self, process, mean, keys=()):
        super().__init__()
        self.process, self.answer, self.cond_keys, self.items = process, mean, frozenset(keys), 0

    def forward(self, x_t, t, **cond):
        self.items += len(x_t)
        return Gaussian(self.answer(x_t, t, **cond))


def foreign(denoiser, process=None):
    return Foreign(process or denoiser.process, lambda x, t, **cond: denoiser(x, t, **cond).mean)


def exact(denoiser):
    """Its law of x_1, as a prior of one's own."""
    return lambda x_1: denoiser.log_prob(x_1, 1.0)


class Labelled(Denoiser):
    """A mixture whose components have names; without a label, all of it."""

    cond_keys = frozenset({"label"})

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.parts = [Mixture([1.0], TWO.means[k : k + 1], TWO.covs[k : k + 1]).torch(process) for k in range(4)]
        self.all = TWO.torch(process)

    def forward(self, x_t, t, label=None):
        if label is None:
            return self.all(x_t, t)
        each = torch.stack([part(x_t, t).mean for part in self.parts], 1)
        return Gaussian(each[torch.arange(len(x_t)), label])


# Denoisers that are no mixtures


def test_a_linear_flow_with_turns():
    """D = G x_t with a matrix G that is not symmetric, on a process with signal left at t = 1. The flow is linear; its matrix
    comes from SciPy in the time sigma: dx/dsigma = (x - G x) / sigma where G acts at sigma as (I + sigma^2 A)^-1."""
    a = np.array([[3.0, 1.5], [-0.5, 2.0]])
    top, d = 4.0, 0.5

    def mean(x, t):
        s2 = (top * t.to(F64)).reshape(-1, 1, 1) ** 2
        inverse = torch.linalg.inv(torch.eye(2, dtype=F64) + s2 * torch.tensor(a))
        return (inverse @ x[..., None])[..., 0]

    def slope(s, flat):
        return ((np.eye(2) - np.linalg.inv(np.eye(2) + s**2 * a)) @ flat.reshape(2, 2) / s).ravel()

    phi = solve_ivp(slope, (1e-7, top), np.eye(2).ravel(), rtol=1e-11, atol=1e-12).y[:, -1].reshape(2, 2)
    end, var = X.numpy() @ phi.T, top**2 + d**2
    truth = -0.5 * (end**2).sum(1) / var - math.log(2 * math.pi * var) + math.log(abs(np.linalg.det(phi)))
    found = log_likelihood(Foreign(EDM(top), mean), X, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.x_1, torch.tensor(end), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.log_prob, torch.tensor(truth), rtol=0, atol=1e-6)
    parts = found.log_prob - found.log_prior
    torch.testing.assert_close(parts, scalar(math.log(abs(np.linalg.det(phi)))).expand(4), rtol=0, atol=1e-6)


class Net(torch.nn.Module):
    """Wrong at every noise level, also where there is none, and smooth."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a, self.b = (torch.nn.Parameter(torch.randn(*s, generator=g) / 2) for s in ((2, 6), (6, 2)))

    def forward(self, x, c_time):
        return torch.tanh(x @ self.a + c_time[:, None]) @ self.b


def net():
    return Preconditioned(Net(), EDM(20.0), "edm", sigma_data=0.7)


@functools.cache
def by_scipy():
    """Log-densities of X under ``net``, in log(sigma) from sigma = 1e-6 up, the divergence row by row of the Jacobian."""
    model = net().double()

    def slope(log_sigma, flat):
        x = torch.tensor(flat.reshape(3, 4)[:2].T.copy(), requires_grad=True)
        value = x - model(x, scalar(math.exp(log_sigma) / 20)).mean
        trace = sum(torch.autograd.grad(value[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
        return torch.cat([value.detach().T, trace[None]]).numpy().ravel()

    start = np.concatenate([X.numpy().T, np.zeros((1, 4))]).ravel()
    end = solve_ivp(slope, (math.log(1e-6), math.log(20.0)), start, method="DOP853", rtol=1e-7, atol=1e-8).y[:, -1]
    end, var = end.reshape(3, 4), 400 + 0.49
    return torch.tensor(end[2] - 0.5 * (end[:2] ** 2).sum(0) / var - math.log(2 * math.pi * var))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 2e-5), (torch.float32, 3e-4)])
def test_a_network_that_does_not_vanish_at_the_data(dtype, bound):
    found = log_likelihood(net().to(dtype), X, rtol=1e-6, atol=1e-6)
    assert float((found.log_prob - by_scipy()).abs().max()) < bound


def test_wrapped_denoisers():
    """On another process the law is the same; a clamp beyond the data changes nothing, one among them does."""
    model, truth = TWO.torch(VP()), torch.tensor(TWO.log_prob(X))
    other = Rescheduled(model, Cosine())
    torch.testing.assert_close(log_likelihood(other, X).log_prob, truth, rtol=0, atol=2e-3)
    wide = log_likelihood(Thresholded(TWO.torch(Flow()), 50.0), X)
    torch.testing.assert_close(wide.log_prob, truth, rtol=0, atol=1e-4)
    narrow = log_likelihood(Thresholded(TWO.torch(Flow()), 0.5), X[1:2], steps=32)
    assert abs(float(narrow.log_prob - truth[1])) > 0.1


def test_conditions_and_guidance():
    model, label = Labelled(Flow()), torch.tensor([0, 1, 2, 1])
    truth = torch.stack(
        [torch.tensor(Mixture([1.0], TWO.means[k : k + 1], TWO.covs[k : k + 1]).log_prob(X)) for k in range(4)], 1
    )
    mine = truth[torch.arange(4), label]
    found = log_likelihood(model, X, rtol=1e-5, atol=1e-5, cond={"label": label}, batch=3)
    torch.testing.assert_close(found.log_prob, mine, rtol=0, atol=1e-3)
    plain = log_likelihood(CFG(model, 0.0), X, steps=96, cond={"label": label})
    torch.testing.assert_close(plain.log_prob, torch.tensor(TWO.log_prob(X)), rtol=0, atol=1e-3)
    guided = log_likelihood(CFG(model, 2.0), X, steps=48, cond={"label": label})
    assert float((guided.log_prob - mine).abs().min()) > 0.02


# Its three errors


def test_the_score_that_carries_errors_is_that_of_the_density():
    """grad log p(y), y = x_t / r, by automatic differentiation of the closed form."""
    model, theta = TWO.torch(Flow()), torch.tensor([0.2, 0.6, 1.0, 1.5], dtype=F64)
    field = Field(model, {}, 0.5, lambda product, y, items, index: y.flatten(1)[:, :1], F64, 4, X.device)
    y = X.clone().requires_grad_()
    t = time_at_angle(model.process, theta, 0.5)
    log_p = torch.stack(
        [model.log_prob((y * norm_at(model.process, t, 0.5)[:, None])[i : i + 1], t[i]) for i in range(4)]
    )
    (expected,) = torch.autograd.grad(log_p.sum(), y)
    v, _ = field(theta, X, torch.arange(4))
    torch.testing.assert_close(field.score(theta, X, v), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("steps", "degree"), [(8, 4), (9, 3), (40, 4)])
def test_gregory_integrates_polynomials(steps, degree):
    x = torch.arange(steps + 1, dtype=F64)
    for k in range(degree + 1):
        assert float(_gregory(steps, degree) @ x**k) == pytest.approx(steps ** (k + 1) / (k + 1), rel=1e-12)


def test_the_solver_knows_its_error():
    """Fixed grid: order four, and an estimate within a factor of three of the truth for most items. Adaptive: no item is off
    by more than ten times what it says."""
    x = torch.tensor(np.random.default_rng(0).normal(size=(40, 2)))
    model, truth = TWO.torch(Flow()), torch.tensor(TWO.log_prob(x))
    errors = []
    for steps in (32, 64):
        found = log_likelihood(model, x, steps=steps)
        errors.append((found.log_prob - truth).abs())
        ratio = errors[-1] / found.solver_error
        assert 0.1 < float(ratio.median()) < 3
        assert float(ratio.quantile(0.9)) < 5
    assert float(errors[1].mean()) < float(errors[0].mean()) / 2**3
    for tol in (1e-3, 1e-5):
        found = log_likelihood(model, x, rtol=tol, atol=tol)
        assert float(((found.log_prob - truth).abs() / found.solver_error).max()) < 10
        assert float((found.log_prob - truth).abs().mean()) < 20 * tol


def test_loose_tolerances_do_not_step_over_what_they_should_see():
    """Sixteen items in 32 dimensions. Steps as long as their own estimate liked were off by 0.11, and stated 0.036."""
    model = Mixture.example(4, 32, seed=2, spread=0.1).torch(Flow())
    x = model.draw(Noise(0, 16))[0]
    found = log_likelihood(model, x, rtol=1e-3, atol=1e-3)
    error = (found.log_prob - model.log_prob(x)).abs()
    assert float(error.mean()) < min(0.02, 2 * float(found.solver_error.mean()))


def test_the_mismatch_of_the_prior_is_what_the_prior_costs():
    """A Gaussian with a mean and unequal variances on a process that ends early: N(0, r^2) is off by some tenths of a nat,
    and by a tenth of that and less once the estimate is added. Mixtures, planted behind the bare contract, likewise."""
    data = GaussianDenoiser(EDM(6.0), torch.tensor([0.8, -0.5]), Covariances.diagonal(torch.tensor([[0.6, 0.1]])))
    x = torch.tensor([[1.5, -0.5], [0.0, 0.1], [2.0, -1.0]], dtype=F64)
    for model, spot, share in ((data, x, 0.1), (TWO.torch(EDM(6.0)), 2 * X, 0.35)):
        truth = model.log_prob(spot)
        found = log_likelihood(foreign(model), spot, rtol=1e-7, atol=1e-7)
        off = (truth - found.log_prob).abs()
        left = (truth - found.log_prob - found.prior_mismatch).abs()
        assert float(off.mean()) > 0.02
        assert float(left.mean()) < share * float(off.mean())
    own = log_likelihood(foreign(data), x, rtol=1e-7, atol=1e-7, prior=exact(data))
    torch.testing.assert_close(own.log_prob, data.log_prob(x), rtol=0, atol=1e-5)
    assert bool(own.prior_mismatch.isnan().all())
    assert log_likelihood(foreign(TWO.torch(Flow())), X, steps=16).prior_mismatch.tolist() == [0] * 4


def six():
    """A mixture in six dimensions whose coordinates depend on each other."""
    return Mixture.example(3, 6, seed=2, spread=0.7).torch(Flow())


@pytest.mark.parametrize(
    ("trace", "probes", "share"),
    [("hutchinson", 16, 0.667), ("hutch++", 4, 0.609), ("fresh", 16, 0.667), ("orthogonal", 16, 0.667)],
)
def test_the_standard_error_covers(trace, probes, share):
    """500 repetitions: the truth is within one standard error in 66.7 % for 16 probes and 60.9 % for 4 (Student; 68.3 % for
    many). Within 5 %, 2.4 binomial deviations. The mean is unbiased, |z| < 4.9."""
    model, n = six(), 500
    x = model.means[:1].reshape(1, 6) + 0.3
    truth = log_likelihood(model, x, steps=16).log_prob
    found = log_likelihood(model, x.expand(n, 6), steps=16, trace=trace, probes=probes, seeds=3)
    error = found.log_prob - truth
    assert abs(float((error.abs() < found.stderr).double().mean()) - share) < 0.05
    assert abs(float(error.mean() / error.std())) * math.sqrt(n) < 4.9
    torch.testing.assert_close(found.samples.std(1) / probes**0.5, found.stderr)


@pytest.mark.parametrize("probes", [2, 4, 16])
def test_intervals_of_few_probes_cover(probes):
    """1000 repetitions cover in 95 %, within 3.5 binomial deviations; 1.96 standard errors of 2 would in 70, of 4 in 85 %."""
    model, n = six(), 1000
    x = model.means[:1].reshape(1, 6) + 0.3
    truth = log_likelihood(model, x, steps=16).log_prob
    found = log_likelihood(model, x.expand(n, 6), steps=16, trace="fresh", probes=probes, seeds=4)
    low, high = found.interval()
    assert abs(float(((low < truth) & (truth < high)).double().mean()) - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / n)
    reach = student.ppf(0.84, probes - 1)
    torch.testing.assert_close(found.interval(0.68)[1] - found.log_prob, reach * found.stderr)


def test_intervals_without_spread():
    model, x = six(), six().means[:2].reshape(2, 6) + 0.2
    exact = log_likelihood(model, x, steps=16)
    assert all(torch.equal(end, exact.log_prob) for end in exact.interval())
    one = log_likelihood(model, x, steps=16, trace="hutchinson")
    assert all(bool(end.isnan().all()) for end in one.interval())
    with pytest.raises(ValueError, match="between 0 and 1, got 95"):
        exact.interval(95)


def test_probes_that_change_have_less_noise():
    model, n = six(), 300
    x = model.means[:1].reshape(1, 6).expand(n, 6) + 0.3
    spread = {
        trace: float(log_likelihood(model, x, steps=32, trace=trace).log_prob.std())
        for trace in ("hutchinson", "fresh", "orthogonal")
    }
    assert spread["fresh"] < spread["hutchinson"] / 3
    assert spread["orthogonal"] < spread["fresh"] / 1.5


def test_one_probe_states_no_error_and_adaptive_paths_share_theirs():
    model, x = six(), six().means[:2].reshape(2, 6) + 0.2
    one = log_likelihood(model, x, trace="hutchinson", rtol=1e-4, atol=1e-4)
    assert bool(one.stderr.isnan().all())
    many = log_likelihood(model, x, trace="hutchinson", probes=64, rtol=1e-4, atol=1e-4)
    assert int(many.calls.max()) < 1.3 * int(one.calls.max())  # one path
    assert float(((many.log_prob - model.log_prob(x)) / many.stderr).abs().max()) < 4.9
    assert log_likelihood(model, x, steps=16).stderr.tolist() == [0, 0]


# What it counts, and that items do not know each other


def test_items_that_have_arrived_cost_nothing():
    """Every evaluation of every item is counted by the denoiser itself; a hard item does not make the others pay."""
    x = torch.cat([X, torch.tensor([[6.0, -6.0]], dtype=F64)])
    model = foreign(TWO.torch(Flow()))
    found = log_likelihood(model, x, rtol=1e-5, atol=1e-5)
    assert model.items == int(found.calls.sum())
    assert int(found.calls.max()) > int(found.calls.min())
    assert torch.equal(found.vjps, 2 * found.calls)


@pytest.mark.parametrize(("steps", "trace"), [(None, "hutchinson"), (24, "orthogonal")])
def test_an_item_alone_is_the_item_in_the_batch(steps, trace):
    model, seeds = TWO.torch(VP()), [5, 6, 7, 8]
    options = {"steps": steps, "trace": trace, "probes": 3, "rtol": 1e-4, "atol": 1e-4}
    whole = log_likelihood(model, X, seeds=seeds, **options)
    parts = log_likelihood(model, X, seeds=seeds, batch=3, **options)
    turned = log_likelihood(model, X.flip(0), seeds=seeds[::-1], **options)
    alone = log_likelihood(model, X[2:3], seeds=[7], **options)
    torch.testing.assert_close(parts.samples, whole.samples, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.samples.flip(0), whole.samples, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone.samples, whole.samples[2:3], rtol=1e-9, atol=1e-9)
    assert float((alone.samples - whole.samples[:1]).abs().min()) > 1e-3


# The class


@pytest.mark.slow
def test_the_posterior_of_classes_is_bayes_rule():
    model, weights = Labelled(Flow()), [0.1, 0.2, 0.3, 0.4]
    joint = np.stack([Mixture([1.0], TWO.means[k : k + 1], TWO.covs[k : k + 1]).log_prob(X) for k in range(4)], 1)
    joint = joint + np.log(weights)
    truth = torch.tensor(joint - np.logaddexp.reduce(joint, 1, keepdims=True))
    found = class_posterior(model, X, range(4), weights=weights, likelihood=functools.partial(log_likelihood, steps=64))
    torch.testing.assert_close(found.log_prob, truth, rtol=0, atol=2e-3)
    assert torch.equal(found.best, truth.argmax(1))
    noisy = functools.partial(log_likelihood, steps=32, trace="orthogonal", probes=16)
    rough = class_posterior(model, X, range(4), weights=weights, likelihood=noisy)
    likely = truth > math.log(0.02)
    error = (rough.log_prob - truth)[likely].abs()
    assert bool((error < 4.9 * rough.stderr[likely] + 2e-3).all())
    assert float(rough.stderr.max()) < 0.1
    one = class_posterior(model, X, range(4), likelihood=functools.partial(log_likelihood, steps=8, trace="hutchinson"))
    assert bool(one.stderr.isnan().all())
    assert float(found.stderr.abs().max()) == 0


def test_batches_are_told():
    told = []
    log_likelihood(TWO.torch(Flow()), X, steps=8, batch=3, hook=lambda *given: told.append(given))
    assert told == [(1, 2), (2, 2)]


def test_mistakes_are_named():
    model = TWO.torch(Flow())
    blind = Foreign(Flow(), lambda x, t: model(x, t).mean.detach())
    cases = [
        ("no_grad", lambda: log_likelihood(blind, X)),
        ("fixed grid", lambda: log_likelihood(model, X, trace="orthogonal")),
        ("hutchinson", lambda: log_likelihood(model, X, trace="hutchinsen")),
        ("probes=0", lambda: log_likelihood(model, X, trace="hutchinson", probes=0)),
        ("8 steps", lambda: log_likelihood(model, X, steps=2)),
        ("tolerances", lambda: log_likelihood(model, X, rtol=0, atol=0)),
        ("batch", lambda: log_likelihood(model, X, batch=0)),
        (r"prior .* got shape \(4, 1\)", lambda: log_likelihood(model, X, prior=lambda x_1: x_1[:, :1])),
        ("floating point", lambda: log_likelihood(model, X.long())),
        ("shape", lambda: log_likelihood(model, X[0, :])),
        ("no conditions", lambda: log_likelihood(model, X, cond={"label": torch.zeros(4)})),
        ("weights", lambda: class_posterior(Labelled(Flow()), X, [0, 1], weights=[1.0, 0.0])),
        ("label", lambda: class_posterior(Labelled(Flow()), X, [0], cond={"label": torch.zeros(4).long()})),
    ]
    for words, call in cases:
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.slow
def test_points_have_no_density():
    with pytest.raises(ArithmeticError, match="density"):
        log_likelihood(FiniteDenoiser(Flow(), X), X[:1] + 0.1, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [None, 16])
def test_weights_that_are_no_numbers_are_named_soon(steps):
    """The first item is well, the second meets NaN."""
    two = TWO.torch(Flow())
    model = Foreign(Flow(), lambda x, t: torch.where(x.abs() > 5, math.nan, two(x, t).mean))
    with pytest.raises(ArithmeticError, match=r"item 1 of its batch .* not finite"):
        log_likelihood(model, torch.tensor([[0.1, 0.2], [9.0, 0.0]], dtype=F64), steps=steps)
    assert model.items < 300
