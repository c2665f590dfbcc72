"""Floor 2: sampling."""

from .flow import flow_field, runge_kutta
from .hooks import Preview, ProgressBar, Trajectory, together
from .linear import ddim, ddpm, dpmpp_2m, dpmpp_3m, exponential
from .loop import Denoise, Hook, Progress, Rule, Step, run, sample
from .plan import Plan
from .registry import RULES, get_rule
from .wrap import churn

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
    "churn",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_3m",
    "exponential",
    "flow_field",
    "get_rule",
    "run",
    "runge_kutta",
    "sample",
    "together",
]
