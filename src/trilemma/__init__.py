"""Train one denoiser and get everything from it.

    import trilemma as tl

    model = tl.Preconditioned(tl.UNet(dims=2, channels=1), tl.Flow(), "velocity")
    x = tl.sample(model, (64, 1, 8, 8), 20)             # 20 calls; any grid and rule in their place

The names below are loaded when they are first used, so that importing the package and asking the command line for help cost
nothing. The rest is reached by module: ``trilemma.numerics``, ``process``, ``nets``, ``denoise``, ``sampling``, ``train``,
``data``, ``evaluate``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .denoise import CFG as CFG
    from .denoise import Categorical as Categorical
    from .denoise import Covariances as Covariances
    from .denoise import Denoiser as Denoiser
    from .denoise import FiniteDenoiser as FiniteDenoiser
    from .denoise import Gaussian as Gaussian
    from .denoise import GaussianDenoiser as GaussianDenoiser
    from .denoise import Guided as Guided
    from .denoise import MixtureDenoiser as MixtureDenoiser
    from .denoise import Preconditioned as Preconditioned
    from .denoise import Rescheduled as Rescheduled
    from .denoise import Thresholded as Thresholded
    from .denoise import Within as Within
    from .health import check as check
    from .likelihood import log_likelihood as log_likelihood
    from .nets.dit import DiT as DiT
    from .nets.mlp import MLP as MLP
    from .nets.unet import UNet as UNet
    from .numerics.noise import Noise as Noise
    from .numerics.tableau import HEUN as HEUN
    from .numerics.tableau import RK4 as RK4
    from .process import EDM as EDM
    from .process import VE as VE
    from .process import VP as VP
    from .process import Cosine as Cosine
    from .process import Flow as Flow
    from .process import FromBetas as FromBetas
    from .process import GaussianProcess as GaussianProcess
    from .process import Shifted as Shifted
    from .process import Sigmoid as Sigmoid
    from .process import SubVP as SubVP
    from .process.grid import angular_grid as angular_grid
    from .process.grid import karras_grid as karras_grid
    from .process.grid import log_snr_grid as log_snr_grid
    from .process.grid import shifted_grid as shifted_grid
    from .process.grid import trailing_grid as trailing_grid
    from .process.grid import uniform_grid as uniform_grid
    from .sampling import Plan as Plan
    from .sampling import ProgressBar as ProgressBar
    from .sampling import Trajectory as Trajectory
    from .sampling import angular as angular
    from .sampling import churn as churn
    from .sampling import ddim as ddim
    from .sampling import ddpm as ddpm
    from .sampling import dpmpp_2m as dpmpp_2m
    from .sampling import exponential as exponential
    from .sampling import get_rule as get_rule
    from .sampling import run as run
    from .sampling import runge_kutta as runge_kutta
    from .sampling import sample as sample
    from .sampling.tune import tune as tune
    from .sampling.tune_sde import tune_sde as tune_sde
    from .train import TrainConfig as TrainConfig
    from .train import Trainer as Trainer

_HOMES = {
    "denoise": (
        "CFG Categorical Covariances Denoiser FiniteDenoiser Gaussian GaussianDenoiser Guided MixtureDenoiser Preconditioned "
        "Rescheduled Thresholded Within"
    ),
    "likelihood": "log_likelihood",
    "health": "check",
    "nets.dit": "DiT",
    "nets.mlp": "MLP",
    "nets.unet": "UNet",
    "numerics.noise": "Noise",
    "numerics.tableau": "HEUN RK4",
    "process": "Cosine EDM Flow FromBetas GaussianProcess Shifted Sigmoid SubVP VE VP",
    "process.grid": "angular_grid karras_grid log_snr_grid shifted_grid trailing_grid uniform_grid",
    "sampling.hooks": "ProgressBar Trajectory",
    "sampling.plan": "Plan",
    "sampling.wrap": "churn",
    "sampling.linear": "ddim ddpm dpmpp_2m exponential",
    "sampling.registry": "get_rule",
    "sampling.loop": "run",
    "sampling.draw": "sample",
    "sampling.angle": "angular",
    "sampling.tune": "tune",
    "sampling.tune_sde": "tune_sde",
    "sampling.flow": "runge_kutta",
    "train": "TrainConfig Trainer",
}
_MODULES = ("data", "denoise", "evaluate", "nets", "numerics", "process", "sampling", "train")
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module 'trilemma' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
