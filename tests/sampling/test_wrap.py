"""Rules around rules: one Brownian path for all grids, and restarts whose law is computed by hand."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from oracles import F64, Mixture, law_of, log_snr_times
from trilemma.denoise import Covariances, Gaussian, GaussianDenoiser
from trilemma.numerics.noise import Noise
from trilemma.numerics.tableau import HEUN
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import karras_grid, log_snr_grid
from trilemma.sampling import ddim, ddpm, exponential, run, runge_kutta, sample
from trilemma.sampling.sa import Band, Constant, Extended, er_sde, sa_solver
from trilemma.sampling.stochastic import euler_maruyama, reverse_diffusion
from trilemma.sampling.wrap import brownian, restart

GRIDS = (20, 60, 180)


def ends(rule, process, model, counts, items=16):
    """Samples of the same seeds at several numbers of steps."""
    return [
        sample(model, (items, 2), log_snr_times(process, -8.0, 4.0, n), rule, seeds=range(items)).double()
        for n in counts
    ]


@pytest.mark.parametrize(
    "rule",
    [
        brownian(ddpm),
        brownian(exponential(2, 0.5), 0.5),
        brownian(sa_solver(2, 2, clock=Band()), clock=Band()),
        brownian(er_sde(2), clock=Extended()),
    ],
    ids=["ddpm", "exponential", "sa", "er_sde"],
)
def test_the_same_seed_gives_the_same_sample_on_every_grid(rule):
    """Strong convergence on a Gaussian: order 1 at least, from 20 over 60 to 180 steps."""
    model = GaussianDenoiser(VP(), torch.tensor([0.5, -1.0]), Covariances.diagonal(torch.tensor([[0.3, 0.02]])))
    x = ends(rule, VP(), model, GRIDS)
    gaps = [float((x[i] - x[i + 1]).norm()) for i in range(2)]
    assert math.log(gaps[0] / gaps[1], 3) > 0.75
    assert float((x[1] - x[2]).abs().max()) < 0.1


def test_without_a_path_it_does_not():
    model = Mixture.example().torch(VP())
    x = ends(ddpm, VP(), model, GRIDS)
    assert float((x[1] - x[2]).square().mean().sqrt()) > 0.3


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(brownian(exponential(2, 1.0)), id="exponential"),
        pytest.param(brownian(er_sde(3), clock=Extended()), id="er_sde", marks=pytest.mark.slow),
    ],
)
def test_on_a_mixture_and_on_grids_that_share_no_times(rule):
    """20, 50 and 200 steps, Karras' levels: items in the same place, but for those near the border of two modes."""
    process = EDM()
    model = Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.05 * np.eye(2)] * 2).torch(process)
    x = [sample(model, (32, 2), karras_grid(process, n), rule, seeds=range(32)) for n in (20, 50, 200)]
    near, far = ((x[i] - x[2]).norm(dim=1).median() for i in (1, 0))
    assert float(near) < 0.05
    assert float(near) < 0.6 * float(far)


def test_half_the_steps_read_sums_of_the_increments():
    """With D = 0 the state is e^(-v/2) sigma W exactly, so all grids agree to rounding at the times they share."""
    for process, rule in ((Flow(), brownian(ddpm)), (VP(), brownian(exponential(1, 0.4), 0.4))):
        model = GaussianDenoiser(process, torch.zeros(2), Covariances.diagonal(torch.zeros(1, 2)))
        fine = log_snr_times(process, -6.0, 3.0, 64)
        x = process.prior((3, 2), Noise(1, 3), t=float(fine[0]), like=torch.zeros(1, dtype=F64))
        out = [sample(model, (3, 2), ts, rule, x=x) for ts in (fine, fine[::2], fine[::16], fine[[0, 3, 40, 64]])]
        for other in out[1:]:
            torch.testing.assert_close(other, out[0], rtol=1e-4, atol=1e-5)  # a tick of the clock, 1e-6, squared


def test_noise_at_infinite_log_snr():
    """From exactly t = 1 of Flow to exactly 0, and the first increment is all of W."""
    model = GaussianDenoiser(Flow(), torch.zeros(2), Covariances.diagonal(torch.ones(1, 2)))
    x = [sample(model, (4, 2), log_snr_grid(Flow(), n), brownian(ddpm), seeds=range(4)) for n in (30, 120)]
    assert float((x[0] - x[1]).square().mean().sqrt()) < 0.25  # two samples that share nothing: 1.41
    ts = torch.tensor([1.0, 0.3], dtype=F64)
    assert law_of(brownian(ddpm), Flow(), ts, 0.2, 0.5, again=True)[1] == pytest.approx(
        law_of(ddpm, Flow(), ts, 0.2, 0.5)[1], rel=1e-9
    )


def test_the_increments_of_a_run_are_independent():
    """The whole law, through law_of, is that of the rule without a path, on uneven grids and at both ends of the noise."""
    for ts in ([0.999, 0.7, 0.69999, 0.2, 1e-4], [0.5, 0.2]):
        ts = torch.tensor(ts, dtype=F64)
        for rule, path in ((ddpm, brownian(ddpm)), (er_sde(2), brownian(er_sde(2), clock=Extended()))):
            plain, seeded = law_of(rule, VP(), ts, 0.3, 0.7), law_of(path, VP(), ts, 0.3, 0.7, again=True)
            assert seeded == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        (exponential(2, 0.5), {"eta": 0.5}),
        (exponential(2, 0.5), {"clock": Constant(0.5)}),
        (ddim(0.3), {"eta": 0.3}),
        (sa_solver(2, 2, clock=Band(0.8)), {"clock": Band(0.8)}),
        (er_sde(2, clock=Extended(0.4)), {"clock": Extended(0.4)}),
        (reverse_diffusion(), {"eta": 1.0}),
    ],
)
def test_the_clock_is_that_of_the_rule(rule, given):
    """Without being told, and the amounts of noise are those of the plan for rules of the family."""
    assert brownian(rule) == brownian(rule, **given)
    ts = log_snr_times(VP(), -6.0, 4.0, 7)
    one, two = (
        run(r(VP(), ts), bent, torch.ones(2, 3), 7, Noise(5, 2)) for r in (brownian(rule), brownian(rule, **given))
    )
    assert torch.equal(one, two)
    if rule not in (ddim(0.3), reverse_diffusion()):  # theirs to first order only
        log_snr, clock = VP().log_snr(ts), brownian(rule).clock
        gap = clock(log_snr[1:]) - clock(log_snr[:-1])
        torch.testing.assert_close(
            rule(VP(), ts).c, VP().sigma(ts[1:]) * (1 - (-gap).exp()).sqrt(), rtol=1e-9, atol=1e-12
        )


def bent(x, t):
    return Gaussian(torch.tanh(x))


def test_what_brownian_refuses():
    ts = torch.tensor([0.9, 0.5, 0.1], dtype=F64)
    with pytest.raises(ValueError, match="gives a Plan"):
        brownian(runge_kutta(HEUN))(VP(), ts)
    with pytest.raises(ValueError, match="step 0 draws noise while the clock goes from"):
        brownian(reverse_diffusion(), 0.0)(VP(), ts)
    for rule, other in (
        (ddpm, {"eta": 0.0}),
        (exponential(2, 0.5), {"eta": 0.5001}),
        (euler_maruyama(), {"eta": 0.5}),
        (er_sde(2), {"clock": Extended(0.3, 11.0)}),
        (sa_solver(), {"eta": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"draws the noise of .* not of .*; give brownian no eta or clock"):
            brownian(rule, **other)(VP(), log_snr_times(VP(), -6.0, 4.0, 5))
    with pytest.raises(ValueError, match="not both"):
        brownian(ddpm, 1.0, clock=Band())
    x = VP().prior((3, 1), Noise(0, 3), t=0.9, like=torch.empty(0, dtype=F64))
    plain, seeded = (
        sample(Mixture.example(dim=1).torch(VP()), (3, 1), ts, rule, x=x) for rule in (ddim(), brownian(ddim(0.0), 0.0))
    )
    assert torch.equal(plain, seeded)  # no noise, nothing to read
    with pytest.raises(ValueError, match="within 255 of 0"):
        brownian(exponential(1, 20.0), 20.0)(VP(), ts)
    law = law_of(euler_maruyama(), VP(), ts, 0.3, 0.7)
    assert law_of(brownian(euler_maruyama()), VP(), ts, 0.3, 0.7, again=True) == pytest.approx(law, rel=1e-9)


@pytest.mark.parametrize("inflate", [1.0, 1.003])
def test_restart_is_the_published_algorithm_on_gaussian_data(inflate):
    """Xu et al. 2023, algorithm 1, with Euler steps: down to the level nearest t_min, K times up by noise and down, then on."""
    process, var, ts = EDM(), 0.5, torch.tensor([8.0, 3.0, 1.1, 0.5, 0.1], dtype=F64) / 80

    def down(v, levels):
        for s, t in pairwise(levels):
            v = (1 + (t - s) * s / (var + s**2)) ** 2 * v
        return v

    v = down(var + 64, [8.0, 3.0, 1.1])
    inside = [(2.5 ** (1 / 7) + j / 3 * (1.1 ** (1 / 7) - 2.5 ** (1 / 7))) ** 7 for j in range(4)]
    for _ in range(2):
        v = down(v + inflate**2 * (2.5**2 - 1.1**2), inside)
    v = down(v, [1.1, 0.5, 0.1])
    rule = restart(exponential(1), low=1.0, high=2.5, steps=3, repeats=2, inflate=inflate)
    assert law_of(rule, process, ts, 0.0, var)[1] == pytest.approx(v, rel=1e-9)


def test_restart_on_any_process_is_that_on_ve():
    ts = log_snr_times(VP(), -6.0, 3.0, 9)
    level = VP().sigma(ts) / VP().alpha(ts)
    rule = restart(runge_kutta(HEUN), low=0.5, high=2.0)
    mean, v = law_of(rule, VP(), ts, 0.7, 0.4)
    other = law_of(rule, EDM(), level / 80, 0.7, 0.4)
    alpha = float(VP().alpha(ts[-1]))
    assert mean / alpha == pytest.approx(other[0], rel=1e-9)
    assert v / alpha**2 == pytest.approx(other[1], rel=1e-9)


def test_restarts_forget_errors():
    """A wrong start is contracted by every restart, towards the true law, as the paper's theorem says."""
    process, ts, var = EDM(), log_snr_times(EDM(), -2.0, 4.0, 60), 0.3

    def wrong(process, ts):
        inner = exponential(2)(process, ts)
        return lambda denoise, x, i, carry, noise: inner(
            denoise, 1.05 * x if i == 0 and float(ts[0]) > 0.03 else x, i, carry, noise
        )

    true = var + (80 * float(ts[-1])) ** 2
    error = [
        abs(law_of(restart(wrong, low=0.3, high=2.0, steps=40, repeats=k), process, ts, 0.0, var)[1] / true - 1)
        for k in (0, 1, 2, 4)
    ]
    assert error[0] > 0.05
    assert error[1] < 0.5 * error[0]
    assert error[3] < 0.01


def test_where_there_is_no_room_nothing_is_restarted():
    ts = torch.tensor([0.9, 0.05, 0.0], dtype=F64)  # sigma/alpha 72, 4, 0: nothing below 0.3 but the end
    assert law_of(restart(ddim(), low=0.06, high=0.3), EDM(), ts, 0.1, 0.2) == law_of(ddim(), EDM(), ts, 0.1, 0.2)
    with pytest.raises(ValueError, match="0 < low < high"):
        restart(ddim(), low=0.0)


def test_several_intervals_are_several_wraps():
    """Calls of Euler's method: every interval is repeated once a passage, in either order of wrapping."""
    ts, first, second = log_snr_times(EDM(), -6.0, 6.0, 24), {"low": 1.0, "high": 2.0}, {"low": 0.1, "high": 0.3}
    for outer, inner in ((first, second), (second, first)):
        calls = []

        def denoise(x, t, calls=calls):
            calls.append(80 * float(t))
            return Gaussian(torch.zeros_like(x))

        rule = restart(restart(exponential(1), steps=4, repeats=3, **inner), steps=5, repeats=2, **outer)
        run(rule(EDM(), ts), denoise, torch.ones(1, 1, dtype=F64), 24, Noise(0, 1))
        assert len(calls) == 24 + 4 * 3 + 5 * 2
        assert sum(abs(level - outer["high"]) < 1e-9 for level in calls) == 2
        assert sum(abs(level - inner["high"]) < 1e-9 for level in calls) == 3
