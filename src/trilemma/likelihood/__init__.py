"""Likelihood of any denoiser."""

from .anomaly import ErrorProfile as ErrorProfile
from .anomaly import auroc as auroc
from .anomaly import likelihood_scores as likelihood_scores
from .bits import BitsPerDim as BitsPerDim
from .bits import best_level as best_level
from .bits import bits_per_dim as bits_per_dim
from .bound import elbo as elbo
from .control import Control as Control
from .dequantise import TruncatedNormal as TruncatedNormal
from .dequantise import Uniform as Uniform
from .encode import Latent as Latent
from .encode import decode as decode
from .encode import encode as encode
from .encode import round_trip as round_trip
from .flow import Likelihood as Likelihood
from .flow import log_likelihood as log_likelihood
from .interpolate import interpolate as interpolate
from .interpolate import slerp as slerp
from .posterior import ClassPosterior as ClassPosterior
from .posterior import class_posterior as class_posterior
from .schedule import fit_schedule as fit_schedule
from .steps import StepBound as StepBound
from .steps import discrete_bound as discrete_bound
from .terms import Bound as Bound
from .variational import Variational as Variational
from .variational import train_dequantiser as train_dequantiser

__all__ = [
    "BitsPerDim",
    "Bound",
    "ClassPosterior",
    "Control",
    "ErrorProfile",
    "Latent",
    "Likelihood",
    "StepBound",
    "TruncatedNormal",
    "Uniform",
    "Variational",
    "auroc",
    "best_level",
    "bits_per_dim",
    "class_posterior",
    "decode",
    "discrete_bound",
    "elbo",
    "encode",
    "fit_schedule",
    "interpolate",
    "likelihood_scores",
    "log_likelihood",
    "round_trip",
    "slerp",
    "train_dequantiser",
]
