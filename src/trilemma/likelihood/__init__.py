"""Likelihood of any denoiser."""

from .flow import Likelihood as Likelihood
from .flow import log_likelihood as log_likelihood

__all__ = ["Likelihood", "log_likelihood"]
