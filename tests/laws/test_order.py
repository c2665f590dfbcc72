"""Observed order of every deterministic rule: the error on an exact mixture when the steps of a log-SNR-uniform grid are halved.

The truth is SciPy's, in units where all processes are one (see oracles.flow_truth), so nothing of trilemma is trusted here but
the rule and the process under test.
"""

import math
from dataclasses import dataclass

import pytest
import torch

from oracles import F64, HIGH, LOW, PROCESS_CASES, flow_truth, log_snr_times, lowest, registry, scalar
from trilemma.numerics.ode import integrate_adaptive
from trilemma.process import EDM, VP, Flow, GaussianProcess
from trilemma.sampling import RULES, flow_field, sample
from trilemma.sampling.flow import scale_at, time_at, u_at

DETERMINISTIC = [name for name, entry in RULES.items() if not entry.stochastic]


@dataclass(frozen=True)
class Exploding(GaussianProcess):
    """Another process with x/alpha for x_t: the same times and noise levels, no decay."""

    base: GaussianProcess

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return self.base.sigma(t) / self.base.alpha(t)


def errors(rule, process, steps, low, high):
    mixture, start, end = flow_truth(low, high)
    model, out = mixture.torch(process), []
    for n in steps:
        ts = log_snr_times(process, low, high, n)
        x = sample(model, start.shape, ts, rule, x=start * process.alpha(ts[0]))
        out.append(float((x / process.alpha(ts[-1]) - end).norm()))
    return out


def order_of(name, process, low, high):
    entry = RULES[name]
    n = {1: 64, 2: 32}.get(entry.calls, 16)
    coarse, fine = errors(entry.make(), process, (n, 2 * n), low, high)
    return math.log2(coarse / fine)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("process", registry("vp", "flow"))
def test_from_noise_to_data(name, process):
    assert order_of(name, process, lowest(process), HIGH) >= RULES[name].order - 0.25


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_from_the_middle(name):
    """A start where the denoiser already bends, as after encoding: a rule of one call a step cannot start better than h^3."""
    entry = RULES[name]
    order = min(entry.order, 3) if entry.calls == 1 else entry.order
    assert order_of(name, EDM(), -2.0, 3.0) >= order - 0.25


@pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_the_flow_of_every_process_is_the_same(process):
    """flow_field under integrate_adaptive against SciPy in other coordinates."""
    mixture, start, end = flow_truth(-2.0, 3.0)
    model = mixture.torch(process)
    ts = process.time(torch.tensor([-2.0, 3.0], dtype=F64))
    u, scale = u_at(process, ts), scale_at(process, ts)
    field = flow_field(process, lambda x, t: model(x, t))
    s = integrate_adaptive(
        field, start * process.alpha(ts[0]) / scale[0], float(u[0]), float(u[1]), rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(s.y * scale[1] / process.alpha(ts[1]), end, rtol=0, atol=3e-5)
    torch.testing.assert_close(time_at(process, u), ts, rtol=1e-10, atol=1e-12)


def test_a_rule_gives_one_answer_on_all_processes():
    """At equal log-SNRs all the numbers of a rule are the same in units of x/alpha; so are its samples.

    A rule that works in the time of the process gives one answer where the times are equal too.
    """
    mixture, start, _ = flow_truth()
    for name in DETERMINISTIC:
        ends = []
        for process in (VP(), Exploding(VP()), Exploding(VP())) if RULES[name].by_time else (EDM(), VP(), Flow()):
            ts = log_snr_times(process, LOW, HIGH, 10)
            x = sample(mixture.torch(process), start.shape, ts, RULES[name].make(), x=start * process.alpha(ts[0]))
            ends.append(x / process.alpha(ts[-1]))
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(ends[2], ends[0], rtol=1e-7, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_gaussian_data_from_noise_to_the_end(name):
    """Over the whole way, exactly 0 included, x ends at m + (x_1 - alpha m) s / sqrt(alpha^2 s^2 + sigma^2) (literature: R.2)."""
    from trilemma.denoise import Covariances, GaussianDenoiser
    from trilemma.process.grid import log_snr_grid

    process, m, s = VP(), 0.7, 0.5
    model = GaussianDenoiser(process, torch.tensor([m]), Covariances.diagonal(torch.tensor([[s**2]])))
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    alpha, sigma = process.alpha(scalar(1.0)), process.sigma(scalar(1.0))
    exact = m + (x - alpha * m) * s / (alpha**2 * s**2 + sigma**2).sqrt()
    error = {n: sample(model, (9, 1), log_snr_grid(process, n), RULES[name].make(), x=x) - exact for n in (25, 100)}
    assert float(error[100].abs().max()) < (0.04 if RULES[name].order == 1 else 5e-3)
    # the last step, from sigma/alpha = 0.004 to 0, leaves 3.8e-5 of every rule
    assert float(error[100].abs().max()) < 0.5 * float(error[25].abs().max()) + 4e-5
