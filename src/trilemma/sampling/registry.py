"""Every sampling rule by its name, with what it costs and where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .._names import lookup
from ..numerics.tableau import DORMAND_PRINCE, EULER, HEUN, MIDPOINT, RK4
from .angle import angular
from .flow import runge_kutta
from .langevin import annealed_langevin, corrector
from .linear import ddim, ddpm, dpmpp_2m, dpmpp_3m, exponential
from .loop import Rule
from .multistep import adams, deis, dpm_solver, gradient_estimation, ipndm
from .pndm import plms, pndm
from .sa import Constant, er_sde, sa_solver
from .singlestep import singlestep
from .stochastic import ancestral, euler_ancestral, euler_maruyama, gaussian_error, reverse_diffusion
from .unipc import unipc
from .wrap import brownian, churn, restart

__all__ = ["RULES", "RuleEntry", "get_rule"]


@dataclass(frozen=True)
class RuleEntry:
    """A row of the registry.

    Args:
        make: builds the rule, with published settings.
        order: order of convergence to the probability flow from pure noise; 0 for stochastic rules.
        calls: calls of the denoiser a step.
        about: one line with the source.
        needs_signal: whether it cannot start where alpha = 0.
        extra: calls of the first steps beyond those.
        by_time: whether its numbers depend on how the process counts time, not on the noise levels alone.
        beyond: whether its last step to t = 0 goes beyond x = D by what it knows of the past.
    """

    make: Callable[[], Rule]
    order: int
    calls: int
    about: str
    needs_signal: bool = False
    extra: int = 0
    by_time: bool = False
    beyond: bool = False

    @property
    def stochastic(self) -> bool:
        """Whether the rule draws noise."""
        return self.order == 0


RULES: dict[str, RuleEntry] = {
    "angular": RuleEntry(
        lambda: angular(), 4, 1, "Adams, corrected, in atan(sigma/(alpha sigma_data)); the default", beyond=True
    ),
    "angular_3": RuleEntry(lambda: angular(3), 3, 1, "the same of order 3", beyond=True),
    "angular_5": RuleEntry(lambda: angular(5), 5, 1, "the same of order 5", beyond=True),
    "ddpm": RuleEntry(lambda: ddpm, 0, 1, "ancestral sampling with the posterior's variance (Ho et al. 2020)"),
    "ddim": RuleEntry(lambda: ddim(0.0), 1, 1, "deterministic first order (Song et al. 2021)"),
    "ddim_half": RuleEntry(lambda: ddim(0.5), 0, 1, "DDIM with eta = 0.5 (Song et al. 2021)"),
    "dpmpp_2m": RuleEntry(lambda: dpmpp_2m, 2, 1, "DPM-Solver++(2M) as published (Lu et al. 2022)"),
    "dpmpp_3m": RuleEntry(lambda: dpmpp_3m, 2, 1, "DPM-Solver++(3M) as published; second order (Lu et al. 2022)"),
    "dpmpp_2m_sde": RuleEntry(
        lambda: exponential(2, 1.0, published=True), 0, 1, "SDE-DPM-Solver++(2M) as published (Lu et al. 2022)"
    ),
    "exponential_1": RuleEntry(lambda: exponential(1), 1, 1, "exponential Euler on x0; equals ddim"),
    "exponential_2": RuleEntry(lambda: exponential(2), 2, 1, "exponential Adams on x0, exact moments"),
    "exponential_3": RuleEntry(lambda: exponential(3), 3, 1, "exponential Adams on x0, exact moments"),
    "exponential_4": RuleEntry(lambda: exponential(4), 4, 1, "exponential Adams on x0, exact moments"),
    "exponential_2_eps": RuleEntry(
        lambda: exponential(2, prediction="eps"), 2, 1, "exponential Adams on eps, multistep DPM-Solver-2", True
    ),
    "exponential_3_eps": RuleEntry(lambda: exponential(3, prediction="eps"), 3, 1, "exponential Adams on eps", True),
    "exponential_4_eps": RuleEntry(lambda: exponential(4, prediction="eps"), 4, 1, "exponential Adams on eps", True),
    "exponential_2_sde": RuleEntry(lambda: exponential(2, 1.0), 0, 1, "the reverse equation, second order in the mean"),
    "seeds_1": RuleEntry(
        lambda: exponential(1, 1.0, prediction="eps"),
        0,
        1,
        "exponential Euler-Maruyama on eps (Gonzalez et al. 2023)",
        True,
    ),
    "dpm_solver_2": RuleEntry(
        lambda: singlestep(2, prediction="eps"), 2, 2, "DPM-Solver-2, singlestep on eps (Lu et al. 2022)", True
    ),
    "dpm_solver_3": RuleEntry(
        lambda: singlestep(3, prediction="eps"), 3, 3, "DPM-Solver-3, singlestep on eps (Lu et al. 2022)", True
    ),
    "dpmpp_2s": RuleEntry(lambda: singlestep(2), 2, 2, "DPM-Solver++(2S), singlestep on x0 (Lu et al. 2022)"),
    "dpmpp_3s": RuleEntry(lambda: singlestep(3), 3, 3, "DPM-Solver++(3S), singlestep on x0 (Lu et al. 2022)"),
    "dpmpp_sde": RuleEntry(
        lambda: singlestep(2, 1.0),
        0,
        2,
        "the reverse equation on x0 by singlesteps, k-diffusion's dpmpp_sde (Crowson 2022)",
    ),
    "seeds_2": RuleEntry(
        lambda: singlestep(2, 1.0, prediction="eps"), 0, 2, "SEEDS-2, singlestep on eps (Gonzalez et al. 2023)", True
    ),
    "seeds_3": RuleEntry(
        lambda: singlestep(3, 1.0, prediction="eps"), 0, 3, "SEEDS-3, singlestep on eps (Gonzalez et al. 2023)", True
    ),
    "consistency": RuleEntry(
        lambda: exponential(1, float("inf")), 0, 1, "denoise, add fresh noise, repeat (Song et al. 2023)"
    ),
    "euler": RuleEntry(lambda: runge_kutta(EULER), 1, 1, "Euler on the straight flow; equals ddim"),
    "midpoint": RuleEntry(lambda: runge_kutta(MIDPOINT), 2, 2, "midpoint on the straight flow"),
    "heun": RuleEntry(lambda: runge_kutta(HEUN), 2, 2, "Heun on the straight flow (Karras et al. 2022)"),
    "rk4": RuleEntry(lambda: runge_kutta(RK4), 4, 4, "the classical method on the straight flow"),
    "dopri5": RuleEntry(lambda: runge_kutta(DORMAND_PRINCE), 5, 7, "Dormand-Prince on the straight flow, fixed steps"),
    **{
        f"unipc_{p}": RuleEntry(partial(unipc, p), p + 1, 1, f"UniPC-{p} on x0, B_2 (Zhao et al. 2023)")
        for p in (1, 2, 3, 4)
    },
    **{
        f"unipc_{p}_bh1": RuleEntry(
            partial(unipc, p, variant="bh1"), p + 1, 1, f"UniPC-{p} on x0, B_1 (Zhao et al. 2023)"
        )
        for p in (1, 2, 3, 4)
    },
    "unipc_3_eps": RuleEntry(lambda: unipc(3, prediction="eps"), 4, 1, "UniPC-3 on eps, B_2 (Zhao et al. 2023)", True),
    **{
        f"deis_tab_{p}": RuleEntry(
            partial(deis, p),
            2,
            1,
            f"DEIS tAB{p}, started by Euler: second order (Zhang and Chen 2023)",
            True,
            by_time=True,
        )
        for p in (1, 2, 3)
    },
    **{
        f"deis_rhoab_{p}": RuleEntry(
            partial(adams, p + 1), 2, 1, f"DEIS rhoAB{p}, started by Euler: second order (Zhang and Chen 2023)", True
        )
        for p in (1, 2, 3)
    },
    "lms": RuleEntry(lambda: adams(4), 2, 1, "linear multistep of k-diffusion; equals deis_rhoab_3", True),
    **{
        f"ipndm_{p}": RuleEntry(
            partial(ipndm, p), 2, 1, f"DDIM with Adams-Bashforth's {p} weights of equal steps: second order", True
        )
        for p in (2, 3, 4)
    },
    "ipndm_v": RuleEntry(
        lambda: adams(4), 2, 1, "iPNDM with the weights of the steps taken; equals deis_rhoab_3", True
    ),
    "pndm": RuleEntry(
        pndm, 2, 1, "F-PNDM, Runge-Kutta start: second order (Liu et al. 2022)", True, extra=9, by_time=True
    ),
    "plms": RuleEntry(plms, 2, 1, "PNDM started by one improved Euler step (Rombach et al. 2022)", True, extra=1),
    "gradient_estimation": RuleEntry(
        lambda: gradient_estimation(2.0), 1, 1, "DDIM with 2 eps - last eps (Permenter and Yuan 2024)", True
    ),
    "dpm_solver_2m": RuleEntry(
        lambda: dpm_solver(2), 2, 1, "multistep DPM-Solver-2 on eps as published (Lu et al. 2022)", True
    ),
    "dpm_solver_3m": RuleEntry(
        lambda: dpm_solver(3), 2, 1, "multistep DPM-Solver-3 on eps as published; second order (Lu et al. 2022)", True
    ),
    "churn": RuleEntry(
        lambda: churn(runge_kutta(HEUN), 40.0, low=0.05, high=50.0, inflate=1.003),
        0,
        2,
        "EDM's stochastic sampler, ImageNet settings, Heun on the straight flow (Karras et al. 2022)",
    ),
    # the reverse equation with other noise
    "euler_maruyama": RuleEntry(
        lambda: euler_maruyama(),
        0,
        1,
        "the reverse equation in the time of the process (Song et al. 2021)",
        True,
        by_time=True,
    ),
    "reverse_diffusion": RuleEntry(
        lambda: reverse_diffusion(), 0, 1, "the forward chain turned round (Song et al. 2021)", True
    ),
    "ancestral_large": RuleEntry(
        lambda: ancestral("large"), 0, 1, "ancestral sampling with the variance of the forward step (Ho et al. 2020)"
    ),
    "ancestral_learned": RuleEntry(
        lambda: ancestral("learned"), 0, 1, "with the denoiser's own variance, as ddpm where it gives none"
    ),
    "analytic_ddpm": RuleEntry(
        lambda: ancestral(gaussian_error(1.0)),
        0,
        1,
        "with the best constant variance for Gaussian data (Bao et al. 2022)",
    ),
    "euler_ancestral": RuleEntry(lambda: euler_ancestral(1.0), 0, 1, "k-diffusion's; equals ddpm"),
    "predictor_corrector": RuleEntry(
        lambda: corrector(reverse_diffusion(), snr=0.16),
        0,
        2,
        "reverse diffusion, then a Langevin move, VE settings (Song et al. 2021)",
        True,
    ),
    "annealed_langevin": RuleEntry(
        lambda: annealed_langevin(0.062, 5), 0, 5, "noise-conditional score networks as of 2020 (Song and Ermon)", True
    ),
    "sa_solver": RuleEntry(
        lambda: sa_solver(), 0, 1, "stochastic Adams 3/4, noise in the middle levels (Xue et al. 2023)"
    ),
    "sa_solver_full": RuleEntry(
        lambda: sa_solver(2, 2, clock=Constant(1.0)), 0, 1, "stochastic Adams 2/2, tau = 1 everywhere (Xue et al. 2023)"
    ),
    "sa_solver_half": RuleEntry(
        lambda: sa_solver(2, 2, clock=Constant(0.5)),
        0,
        1,
        "stochastic Adams 2/2, tau = 0.5: the noise to take at few calls",
    ),
    "er_sde_1": RuleEntry(lambda: er_sde(1), 0, 1, "the extended reverse equation (Cui et al. 2023)"),
    "er_sde_2": RuleEntry(lambda: er_sde(2), 0, 1, "the extended reverse equation (Cui et al. 2023)"),
    "er_sde_3": RuleEntry(lambda: er_sde(3), 0, 1, "the extended reverse equation (Cui et al. 2023)"),
    "restart": RuleEntry(
        lambda: restart(exponential(2), low=0.3, high=1.1, steps=3, repeats=2),
        0,
        1,
        "twice back up by fresh noise in the middle levels (Xu et al. 2023, there around Heun)",
        extra=6,
    ),
    "exponential_2_path": RuleEntry(
        lambda: brownian(exponential(2, 1.0)), 0, 1, "exponential_2_sde along a Brownian path fixed by the seed"
    ),
}
"""Every rule by its name."""


def get_rule(name: str) -> Rule:
    """The rule of that name.

    Raises:
        ValueError: there is none; the nearest name is suggested.
    """
    return lookup("rule", name, RULES).make()
