"""Floor 0b: noise processes, time grids and laws of training times."""

from .betas import FromBetas, cosine_betas, linear_betas, zero_terminal_snr
from .gaussian import EDM, VE, VP, Cosine, Flow, GaussianProcess, Shifted, Sigmoid, SubVP
from .grid import GRIDS
from .registry import PROCESSES, process_from_config, process_to_config
from .times import TIMES, LogitNormal, LogNormalSigma, TimeLaw, Uniform

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
    "LogNormalSigma",
    "LogitNormal",
    "Shifted",
    "Sigmoid",
    "SubVP",
    "TimeLaw",
    "Uniform",
    "cosine_betas",
    "linear_betas",
    "process_from_config",
    "process_to_config",
    "zero_terminal_snr",
]
