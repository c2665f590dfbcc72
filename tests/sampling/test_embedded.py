"""Published samplers with step control against their algorithms, written out again for one item (literature: C.10, D.6)."""

import math
from itertools import pairwise

import pytest
import torch

from oracles import F64, Mixture, flow_truth, scalar
from trilemma.denoise import Denoiser, Gaussian
from trilemma.numerics.brownian import BrownianPath, tick_of
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow, SubVP
from trilemma.sampling.embedded import dpm_solver_adaptive, gotta_go_fast


class Bent(Denoiser):
    """Elementwise, not linear; counts calls."""

    def __init__(self, process):
        super().__init__()
        self.process, self.calls = process, 0

    def forward(self, x_t, t):
        self.calls += 1
        alpha = self.process.alpha(t.double()).to(x_t)
        return Gaussian(torch.tanh(2 * x_t * (alpha[:, None] if alpha.ndim else alpha)))


def rms(x):
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("process", [VP(), SubVP(), EDM()], ids=["vp", "sub_vp", "edm"])
def test_dpm_solver_adaptive_is_the_published_one(process, order, prediction):
    """Lu et al. 2022, appendix C, and the authors' code: every step, every rejection, for one item."""
    model, rtol, atol, end = Bent(process), 0.02, 0.005, 0.01
    x = start = process.prior((1, 5), Noise(3, 1), like=torch.empty(0, dtype=F64))
    lam, goal, h = float(process.log_snr(scalar(1.0)) / 2), -math.log(end), 0.4
    before, taken, refused = x, 0, 0
    while lam < goal:
        h = min(h, goal - lam)
        t = [process.time(scalar(2 * (lam + r * h))) for r in (0.0, 1 / 3, 1 / 2, 2 / 3, 1.0)]
        a, s = (dict(zip("0abc1", [float(curve(u)) for u in t])) for curve in (process.alpha, process.sigma))
        times = dict(zip("0abc1", t))
        if prediction == "eps":  # phi of the paper
            base = lambda p, H: a[p] / a["0"] * x - s[p] * math.expm1(H) * m0  # noqa: B023
            phi1, phi2, scale = math.expm1, lambda H: math.expm1(H) / H - 1, lambda p: -s[p]  # noqa: B023
        else:
            base = lambda p, H: s[p] / s["0"] * x - a[p] * math.expm1(-H) * m0  # noqa: B023
            phi1, phi2 = lambda H: -math.expm1(-H), lambda H: math.expm1(-H) / H + 1
            scale = lambda p: a[p]  # noqa: B023

        def value(y, p, a=a, s=s, times=times):
            d = model(y, times[p]).mean
            return (y - a[p] * d) / s[p] if prediction == "eps" else d

        m0 = value(x, "0")
        if order == 2:
            low = base("1", h)
            high = low + scale("1") * phi1(h) / (2 * 0.5) * (value(base("b", h / 2), "b") - m0)
        else:
            d1 = value(base("a", h / 3), "a") - m0
            low = base("1", h) + scale("1") * phi1(h) / (2 / 3) * d1
            d2 = value(base("c", 2 * h / 3) + scale("c") * 2 * phi2(2 * h / 3) * d1, "c") - m0
            high = base("1", h) + scale("1") * 1.5 * phi2(h) * d2
        error = rms((high - low) / torch.maximum(scalar(atol), rtol * torch.maximum(low.abs(), before.abs())))
        if error <= 1:
            x, before, lam, taken = high, low, lam + h, taken + 1
        else:
            refused += 1
        h = 0.9 * h * error ** (-1 / order)
    expected = model(x, process.time(scalar(-2 * math.log(end)))).mean
    model.calls = 0
    done = dpm_solver_adaptive(
        model, (1, 5), order=order, prediction=prediction, rtol=rtol, atol=atol, x=start, end=end, first_step=0.4
    )
    torch.testing.assert_close(done.x, expected, rtol=1e-7, atol=1e-7)
    assert (int(done.accepted[0]), int(done.rejected[0])) == (taken, refused)
    assert done.calls == model.calls == order * (taken + refused) + 1


@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("order", [2, 3])
def test_the_error_follows_the_tolerance(order, prediction):
    """On an exact mixture, against SciPy: a hundredfold smaller tolerance, a far smaller error, at a bounded cost."""
    mixture, start, _ = flow_truth()
    from scipy.integrate import solve_ivp

    level = math.exp(7.5 / 2)
    field = lambda u, y: (y.reshape(6, 2) - mixture.denoise(y.reshape(6, 2), 1.0, math.exp(u))).ravel()
    end = solve_ivp(field, (math.log(level), math.log(1e-6)), start.numpy().ravel(), "DOP853", rtol=1e-11, atol=1e-11).y
    exact, process = torch.tensor(end[:, -1].reshape(6, 2)), VP()
    t = process.time(scalar(-7.5))
    errors, calls = [], []
    for tolerance in (1e-2, 1e-4):
        s = dpm_solver_adaptive(
            mixture.torch(process), (6, 2), order=order, prediction=prediction, rtol=tolerance, atol=tolerance,
            x=start * process.alpha(t), start=float(t), end=1e-4,
        )  # fmt: skip
        errors.append((s.x - exact).square().mean(1).sqrt())
        calls.append(s.calls)
    assert bool((errors[1] < 30 * 1e-4).all()), errors[1]
    assert float(errors[1].max()) < float(errors[0].max()) / 8
    assert calls[1] < calls[0] * 100 ** (1 / order) * 1.5


@pytest.mark.parametrize("sampler", [dpm_solver_adaptive, gotta_go_fast])
def test_an_item_does_not_know_its_batch(sampler):
    model = Bent(VP())
    options = {"rtol": 0.5, "atol": 0.2} if sampler is gotta_go_fast else {}
    whole = sampler(model, (3, 2), seeds=[4, 8, -1], **options)
    assert whole.calls == model.calls
    for i, seed in enumerate([4, 8, -1]):
        alone = sampler(model, (1, 2), seeds=[seed], **options)
        torch.testing.assert_close(alone.x[0], whole.x[i], rtol=1e-5, atol=1e-5)
        assert alone.accepted[0] == whole.accepted[i]
        assert alone.rejected[0] == whole.rejected[i]


def increment(path, late, early, like):
    top, bottom = tick_of(math.log(late)), tick_of(math.log(early))
    return path.increment(path.at(bottom, like), path.at(top, like), top - bottom)


def test_gotta_go_fast_is_the_published_one():
    """Jolicoeur-Martineau et al. 2021, algorithm 1, for one item, with its noise read off the path that belongs to the seed."""
    process, rtol, atol, end = VP(), 0.1, 0.05, 0.02
    model, path = Bent(process), BrownianPath(Noise([6]))
    x = start = process.prior((1, 3), Noise([2]), like=torch.empty(0, dtype=F64))
    t, h, before, taken, refused = 1.0, 0.05, x, 0, 0

    def drift_and_g(y, t):
        at = scalar(t)
        f, g2 = float(process.drift(at)), float(process.diffusion2(at))
        score = (float(process.alpha(at)) * model(y, at).mean - y) / float(process.sigma(at)) ** 2
        return f * y - g2 * score, math.sqrt(g2)

    while t > end:
        h = min(h, t - end)
        z = increment(path, t, t - h, x)
        drift, g = drift_and_g(x, t)
        low = x - h * drift + math.sqrt(h) * g * z
        drift, g = drift_and_g(low, t - h)
        other = x - h * drift + math.sqrt(h) * g * z
        high = (low + other) / 2
        error = rms((low - high) / torch.maximum(scalar(atol), rtol * torch.maximum(low.abs(), before.abs())))
        if error <= 1:
            x, before, t, taken = high, low, t - h, taken + 1
        else:
            refused += 1
        h = 0.9 * h * error**-0.9
    expected = model(x, scalar(end)).mean
    done = gotta_go_fast(model, (1, 3), rtol=rtol, atol=atol, seeds=[6], x=start, end=end, first_step=0.05)
    torch.testing.assert_close(
        done.x, expected, rtol=1e-5, atol=1e-5
    )  # times differ by roundings, ticks by one at most
    assert (int(done.accepted[0]), int(done.rejected[0])) == (taken, refused)
    assert refused > 2


@pytest.mark.slow
def test_the_seed_fixes_the_path_whatever_is_rejected():
    """Other first steps and tolerances, so other rejections: the sample stays, near the one of 300 equal steps on that path."""
    process, end = VP(), 0.05
    model = Mixture.example(components=2, dim=1).torch(process)
    start = process.prior((1, 1), Noise([9]), like=torch.empty(0, dtype=F64))
    x, path = start, BrownianPath(Noise([5]))
    ts = torch.linspace(0, math.log(end), 301, dtype=F64).exp().tolist()
    for t, s in pairwise(ts):
        at = scalar(t)
        f, g2, alpha, sigma = (c(at) for c in (process.drift, process.diffusion2, process.alpha, process.sigma))
        score = (alpha * model(x, at).mean - x) / sigma**2
        x = x - (t - s) * (f * x - g2 * score) + (g2 * (t - s)).sqrt() * increment(path, t, s, x)
    exact = model(x, scalar(end)).mean
    found = [
        gotta_go_fast(model, (1, 1), rtol=tol, atol=tol, seeds=[5], x=start, end=end, first_step=h)
        for tol, h in ((0.03, 0.001), (0.03, 0.5), (0.1, 0.01))
    ]
    other = gotta_go_fast(model, (1, 1), rtol=0.1, atol=0.1, seeds=[6], x=start, end=end)
    assert int(found[1].rejected) > int(found[0].rejected)
    for one in found:
        assert float((one.x - exact).abs()) < 0.1
    assert float((other.x - exact).abs()) > 0.1


@pytest.mark.parametrize(
    ("word", "sampler", "bad"),
    [
        ("order", dpm_solver_adaptive, {"order": 1}),
        ("'v'", dpm_solver_adaptive, {"prediction": "v"}),
        ("tolerances", dpm_solver_adaptive, {"rtol": 0.0, "atol": 0.0}),
        ("end", gotta_go_fast, {"end": 0.0}),
        ("first step", gotta_go_fast, {"first_step": 0.0}),
    ],
)
def test_bad_input_is_refused(word, sampler, bad):
    with pytest.raises(ValueError, match=word):
        sampler(Bent(VP()), (2, 2), **bad)


@pytest.mark.parametrize("sampler", [dpm_solver_adaptive, gotta_go_fast])
def test_the_limit_of_calls_is_for_what_is_left_to_do(sampler):
    """As many calls as the steps take are enough; one attempt fewer is not, and an item is named that has not finished."""
    tolerance = 0.2 if sampler is gotta_go_fast else 0.01
    options = {"rtol": tolerance, "atol": tolerance, "seeds": [4, 8, 15]}
    done = sampler(Bent(VP()), (3, 2), **options)
    steps = done.calls - 1  # the last call is that at the end
    assert torch.equal(sampler(Bent(VP()), (3, 2), max_calls=steps, **options).x, done.x)
    tries = done.accepted + done.rejected
    with pytest.raises(ArithmeticError, match=r"item \d ") as error:
        sampler(Bent(VP()), (3, 2), max_calls=steps - 3, **options)
    assert tries[int(str(error.value).split()[1])] == tries.max()  # all try at once, so those with most finish last
    assert tries.min() < tries.max()


@pytest.mark.parametrize("sampler", [dpm_solver_adaptive, gotta_go_fast])
def test_no_start_without_signal(sampler):
    with pytest.raises(ValueError, match="alpha"):
        sampler(Bent(Flow()), (2, 2))
    with pytest.raises(ArithmeticError, match="item 0"):
        sampler(Bent(VP()), (1, 2), max_calls=10, rtol=1e-5, atol=1e-5)
