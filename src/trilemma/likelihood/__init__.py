"""Likelihood of any denoiser."""

from .bound import Bound as Bound
from .bound import discrete_bound as discrete_bound
from .bound import elbo as elbo
from .flow import Likelihood as Likelihood
from .flow import log_likelihood as log_likelihood
from .posterior import ClassPosterior as ClassPosterior
from .posterior import class_posterior as class_posterior
from .schedule import fit_schedule as fit_schedule

__all__ = [
    "Bound",
    "ClassPosterior",
    "Likelihood",
    "class_posterior",
    "discrete_bound",
    "elbo",
    "fit_schedule",
    "log_likelihood",
]
