"""Likelihood of any denoiser."""

from .flow import Likelihood as Likelihood
from .flow import log_likelihood as log_likelihood
from .posterior import ClassPosterior as ClassPosterior
from .posterior import class_posterior as class_posterior

__all__ = ["ClassPosterior", "Likelihood", "class_posterior", "log_likelihood"]
