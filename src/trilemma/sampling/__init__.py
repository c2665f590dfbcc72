"""Floor 2: sampling."""

from .angle import angle, angular, angular_plan
from .draw import sample
from .flow import flow_field, runge_kutta
from .hooks import Preview, ProgressBar, Trajectory, together
from .langevin import annealed_langevin, corrector
from .linear import ddim, ddpm, dpmpp_2m, dpmpp_3m, exponential
from .loop import Denoise, Hook, Progress, Rule, Step, run
from .plan import Plan
from .registry import RULES, get_rule
from .sa import er_sde, sa_solver
from .stochastic import ancestral, euler_maruyama, reverse_diffusion
from .wrap import brownian, churn, restart

__all__ = [
    "RULES",
    "Denoise",
    "Hook",
    "Plan",
    "Preview",
    "Progress",
    "ProgressBar",
    "Rule",
    "Step",
    "Trajectory",
    "ancestral",
    "angle",
    "angular",
    "angular_plan",
    "annealed_langevin",
    "brownian",
    "churn",
    "corrector",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_3m",
    "er_sde",
    "euler_maruyama",
    "exponential",
    "flow_field",
    "get_rule",
    "restart",
    "reverse_diffusion",
    "run",
    "runge_kutta",
    "sa_solver",
    "sample",
    "together",
]
