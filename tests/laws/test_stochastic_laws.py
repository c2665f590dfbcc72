"""The law of the samples of every stochastic rule, propagated exactly: no Monte Carlo anywhere in this file.

For Gaussian data a sampler is affine in its start and in every noise it draws; oracles.law_of reads off all coefficients.
"""

import math

import pytest
import torch

from oracles import F64, FAST, HIGH, Basis, law_of, log_snr_times, lowest, registry, scalar
from trilemma.denoise import Gaussian
from trilemma.numerics.tableau import HEUN
from trilemma.process import EDM, VP, Flow
from trilemma.sampling import RULES, churn, ddim, ddpm, exponential, run, runge_kutta
from trilemma.sampling.sa import Band, Constant, Extended, er_sde, sa_solver
from trilemma.sampling.stochastic import euler_maruyama
from trilemma.sampling.wrap import brownian

# E[x | x_t] has less variance than x, so noising it afresh ("consistency sampling" with a denoiser that is no consistency
# function) does not keep the marginals however fine the grid is; its own law is tested below. The noise of EDM's churn is
# inflated on purpose (S_noise), so it is tested with 1. Langevin moves of a fixed size, and the fixed number of steps inside a
# restart, leave an error that no grid removes: their own laws are tested beside their own files (predictor_corrector is not even
# affine, since its size follows the norms of the item).
BIASED = {"consistency", "churn", "annealed_langevin", "predictor_corrector", "restart"}
# not exact for constant D: more noise than q(x_s | x_t, x) has
WIDE = {"ancestral_large", "analytic_ddpm"}
# approximations of the drift itself: the mean, exact for all others, is of first order too
DRIFTING = {"euler_maruyama", "reverse_diffusion", "euler_maruyama(0.7)"}
UNBIASED = {name: entry.make() for name, entry in RULES.items() if entry.stochastic and name not in BIASED}
EXTRA = {
    "churn without inflation": churn(runge_kutta(HEUN), 3.0),
    "churn of first order": churn(exponential(1), 3.0, low=0.1, high=10.0),
    "exponential(1, 0.3)": exponential(1, 0.3),
    "exponential(1, 2)": exponential(1, 2.0),
    "exponential(3, 1)": exponential(3, 1.0),
    "exponential(2, 1, eps)": exponential(2, 1.0, prediction="eps"),
    "ddim(0.2)": ddim(0.2),
    "euler_maruyama(0.7)": euler_maruyama(0.7),
    "er_sde(2, eta = 0.5)": er_sde(2, clock=Constant(0.5)),
    "er_sde(3, s^2.5)": er_sde(3, clock=Constant(1.5**0.5)),
    "sa_solver(1, 2)": sa_solver(1, 2, clock=Constant(1.0)),
    "sa_solver(4, 4), narrow": sa_solver(4, 4, clock=Band(2.0, 0.5, 2.0)),
    "a path of ddpm": brownian(ddpm),
    "a path of eta = 2": brownian(exponential(1, 2.0), 2.0),
    "a path of sa_solver": brownian(sa_solver(3, 4), clock=Band()),
    "a path of er_sde": brownian(er_sde(3), clock=Extended()),
}


def reads_a_path(name):
    """Its steps share draws."""
    return "path" in name


def variance_errors(rule, process, var, steps, again=False, drifts=False):
    out, shifts = [], []
    for n in steps:
        ts = log_snr_times(process, lowest(process), HIGH, n)
        mean, v = law_of(rule, process, ts, 0.7, var, again)
        alpha, sigma = float(process.alpha(ts[-1])), float(process.sigma(ts[-1]))
        shifts.append(abs(mean / (0.7 * alpha) - 1))
        assert drifts or shifts[-1] < 1e-9
        out.append(abs(v / (alpha**2 * var + sigma**2) - 1))
    if drifts:
        assert shifts[1] < 0.02
        assert shifts[1] < max(0.6 * shifts[0], 1e-9)
    return out


@pytest.mark.parametrize("name", [*UNBIASED, *EXTRA])
@pytest.mark.parametrize("process", registry("vp", "flow"))
def test_the_law_of_the_data_is_the_limit(name, process):
    """Variance of data N(0.7, v) from much noise to little: right in the limit, at first order at least."""
    rule = {**UNBIASED, **EXTRA}[name]
    for var in (0.04, 1.0):
        coarse, fine = variance_errors(rule, process, var, (40, 80), reads_a_path(name), name in DRIFTING)
        assert fine < 0.2
        assert math.log2(coarse / fine) > 0.75 or fine < 1e-4


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "exponential_2_sde", "sa_solver_full"])
def test_two_values_make_the_second_order(name):
    """Lu et al. 2022 and Xue et al. 2023: the deterministic part is of second order, and for Gaussian data so is the variance."""
    coarse, fine = variance_errors(RULES[name].make(), Flow(), 0.3, (80, 160))
    assert math.log2(coarse / fine) > 1.75


@pytest.mark.parametrize("process", registry(*FAST))
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, entry in RULES.items()
        if not (entry.needs_signal or entry.beyond) and name not in {"churn"} | WIDE
    ],
)
def test_a_single_point_is_sampled_exactly_in_any_number_of_steps(name, process):
    """Then D is that point whatever x_t is, and every method that is exact for constant D has exact marginals."""
    for ts in ([1.0, 0.3], [1.0, 0.9, 0.5, 0.01], [0.8, 0.6, 0.55, 0.1, 0.05]):
        ts = torch.tensor(ts, dtype=F64)
        mean, var = law_of(RULES[name].make(), process, ts, -1.3, 0.0, reads_a_path(name))
        assert mean == pytest.approx(-1.3 * float(process.alpha(ts[-1])), rel=1e-9)
        assert var == pytest.approx(float(process.sigma(ts[-1])) ** 2, rel=1e-8)


def test_the_marginals_hold_at_every_step_of_ancestral_sampling():
    """DDPM on a single point: all states together have the law of the forward process, Cov = alpha_t/alpha_s sigma_s^2."""
    process, ts = VP(), torch.linspace(1, 0.2, 5, dtype=F64)
    items = 6
    states = [torch.zeros(items, 1, dtype=F64)]
    states[0][1] = 1
    step = RULES["ddpm"].make()(process, ts)
    basis = Basis(items)
    for i in range(4):
        x, _ = step(lambda x, t: Gaussian(torch.zeros_like(x)), states[-1], i, None, basis.at(i))
        states.append(x)
    joint = torch.cat(states, 1)[1:]  # coefficients of (x_1 / 1, xi_0, ..., xi_3) in every state
    joint[0] *= process.sigma(ts[0])
    alpha, sigma = process.alpha(ts), process.sigma(ts)
    early = torch.maximum(
        torch.arange(5)[:, None], torch.arange(5)
    )  # of two times of the grid, the one nearer to the data
    late = torch.minimum(torch.arange(5)[:, None], torch.arange(5))
    torch.testing.assert_close(joint.T @ joint, alpha[late] / alpha[early] * sigma[early] ** 2)


def test_noising_the_denoised_loses_variance_as_computed_by_hand():
    """v' = alpha'^2 k^2 v + sigma'^2 with k = alpha V / (alpha^2 V + sigma^2): the law of consistency sampling on N(0, V)."""
    process, ts, var = EDM(), torch.tensor([1.0, 0.1, 0.02, 0.005, 0.0], dtype=F64), 4.0
    v = var + 6400.0
    for t, s in zip(80 * ts[:-1], 80 * ts[1:]):
        v = (var / (var + float(t) ** 2)) ** 2 * v + float(s) ** 2
    assert law_of(RULES["consistency"].make(), process, ts, 0.0, var)[1] == pytest.approx(v, rel=1e-12)


def test_less_noise_is_closer_to_the_flow():
    """As eta goes to 0 the affine map of exponential(1, eta) becomes that of the probability flow, at rate eta^2."""
    process, ts = Flow(), log_snr_times(Flow(), -6.0, 3.0, 15)
    variances = [law_of(exponential(2, eta), process, ts, 0.0, 0.5)[1] for eta in (0.0, 1e-3, 2e-3)]
    first, second = variances[1] - variances[0], variances[2] - variances[0]
    assert abs(first) < 1e-4
    assert second / first == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("inflate", [1.0, 1.01])
def test_churn_raises_the_level_as_published(inflate):
    """Karras et al. 2022, algorithm 2, in one step on data N(0, v): the variance after the raise, then Euler's contraction.

    gamma = min(S_churn/N, sqrt(2) - 1), and the noise added has standard deviation S_noise sqrt(sigma_hat^2 - sigma^2)."""
    process, ts, var = EDM(), torch.tensor([10 / 80, 4 / 80], dtype=F64), 2.0
    for amount, gamma in ((0.1, 0.1), (5.0, math.sqrt(2) - 1)):
        hat = 10 * (1 + gamma)
        v = var + 100 + inflate**2 * (hat**2 - 100)
        factor = 1 + (4 - hat) * hat / (var + hat**2)  # x + (s' - s) (x - D)/s with D = v x/(v + s^2)
        found = law_of(churn(exponential(1), amount, inflate=inflate), process, ts, 0.0, var)[1]
        assert found == pytest.approx(v * factor**2, rel=1e-9)
    for low, high in ((11.0, 50.0), (0.0, 9.0)):  # outside of [S_tmin, S_tmax]: no noise at all
        plain = law_of(exponential(1), process, ts, 0.0, var)[1]
        assert law_of(churn(exponential(1), 5.0, low=low, high=high), process, ts, 0.0, var)[1] == plain


def test_churn_does_not_raise_beyond_the_first_time():
    """At t = 1 there is nothing higher: the first step is the inner rule's."""
    for process in (EDM(), Flow(), VP()):
        ts = torch.tensor([1.0, 0.4], dtype=F64)
        assert law_of(churn(exponential(1), 1.0), process, ts, 0.2, 0.5) == law_of(
            exponential(1), process, ts, 0.2, 0.5
        )


def test_the_oracle_itself():
    """law_of against the closed form of a DDIM step on Gaussian data (literature: R.2), and its guard against reused noise."""
    ts = torch.tensor([10 / 80, 4 / 80], dtype=F64)
    v = (1 + (4 - 10) * 10 / (2.0 + 100)) ** 2 * (2.0 + 100)
    assert law_of(ddim(0.0), EDM(), ts, 0.0, 2.0)[1] == pytest.approx(v, rel=1e-12)

    def reused(process, ts):
        def step(denoise, x, i, carry, noise):
            return x + noise.normal_like(x) + noise.normal_like(x), carry

        return step

    with pytest.raises(AssertionError, match="drawn twice"):
        law_of(reused, EDM(), ts, 0.0, 1.0)
    assert float(run(ddim(0.0)(EDM(), ts), lambda x, t: Gaussian(x), torch.ones(1, 1), 1, Basis(2))) == pytest.approx(1)
    assert scalar(1.0).dtype == F64
