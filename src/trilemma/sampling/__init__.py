"""Floor 2: sampling.

What shares its name with its module is reached there: ``unipc``, ``pndm``, ``singlestep``, ``adaptive``, ``parallel``,
``invert``, ``tune``, ``tune_sde``.
"""

from .angle import angle, angular, angular_plan
from .draw import sample
from .embedded import dpm_solver_adaptive, gotta_go_fast
from .flow import flow_field, runge_kutta
from .grids import ays_grid, gits_grid, watson_grid
from .hooks import Preview, ProgressBar, Trajectory, together
from .langevin import annealed_langevin, corrector
from .linear import ddim, ddpm, dpmpp_2m, dpmpp_3m, exponential
from .loop import Denoise, Hook, Progress, Rule, Step, run
from .multistep import deis, dpm_solver, gradient_estimation, ipndm
from .plan import Plan
from .registry import RULES, get_rule
from .sa import er_sde, sa_solver
from .stochastic import ancestral, euler_maruyama, reverse_diffusion
from .v3 import dpm_solver_v3, model_statistics
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
    "ays_grid",
    "brownian",
    "churn",
    "corrector",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver",
    "dpm_solver_adaptive",
    "dpm_solver_v3",
    "dpmpp_2m",
    "dpmpp_3m",
    "er_sde",
    "euler_maruyama",
    "exponential",
    "flow_field",
    "get_rule",
    "gits_grid",
    "gotta_go_fast",
    "gradient_estimation",
    "ipndm",
    "model_statistics",
    "restart",
    "reverse_diffusion",
    "run",
    "runge_kutta",
    "sa_solver",
    "sample",
    "together",
    "watson_grid",
]
