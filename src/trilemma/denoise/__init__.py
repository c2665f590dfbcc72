"""Floor 1: denoisers, what they predict, and guidance."""

from .denoiser import Denoiser, Preconditioned, Rescheduled
from .exact import Covariances, FiniteDenoiser, GaussianDenoiser, MixtureDenoiser
from .guidance import CFG, Guided, Thresholded, Unconditional, Within
from .posterior import Categorical, Gaussian
from .targets import TARGETS
from .variance import LearnedVariance

__all__ = [
    "CFG",
    "TARGETS",
    "Categorical",
    "Covariances",
    "Denoiser",
    "FiniteDenoiser",
    "Gaussian",
    "GaussianDenoiser",
    "Guided",
    "LearnedVariance",
    "MixtureDenoiser",
    "Preconditioned",
    "Rescheduled",
    "Thresholded",
    "Unconditional",
    "Within",
]
