"""Floor 0b: noise processes, time grids and laws of training times."""

from .betas import FromBetas, cosine_betas, linear_betas, zero_terminal_snr
from .gaussian import GaussianProcess, Shifted
from .grid import GRIDS
from .learned import Learned
from .named import EDM, VE, VP, Cosine, Flow, Sigmoid, SubVP
from .registry import PROCESSES, process_from_config, process_from_entry, process_to_config
from .times import TIMES, GeometricLevels, LogitNormal, LogNormalSigma, LogSNR, TimeLaw, Uniform

__all__ = [
    "EDM",
    "GRIDS",
    "PROCESSES",
    "TIMES",
    "VE",
    "VP",
    "Cosine",
    "Flow",
    "FromBetas",
    "GaussianProcess",
    "GeometricLevels",
    "Learned",
    "LogNormalSigma",
    "LogSNR",
    "LogitNormal",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "TimeLaw",
    "Uniform",
    "cosine_betas",
    "linear_betas",
    "process_from_config",
    "process_from_entry",
    "process_to_config",
    "zero_terminal_snr",
]
