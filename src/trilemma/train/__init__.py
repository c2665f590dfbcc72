"""Training: objectives, the trainer, weight averages, checkpoints, runs. Loads torch only when something of it is used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import TrainConfig

if TYPE_CHECKING:
    from .checkpoint import CorruptError, load_model, save_model
    from .distributed import World, setup
    from .monitor import DivergedError
    from .objectives import WEIGHTINGS, denoising_loss
    from .run import RunDir
    from .trainer import Record, Trainer

__all__ = [
    "WEIGHTINGS",
    "CorruptError",
    "DivergedError",
    "Record",
    "RunDir",
    "TrainConfig",
    "Trainer",
    "World",
    "denoising_loss",
    "load_model",
    "save_model",
    "setup",
]

_HOMES = {
    "CorruptError": "checkpoint",
    "load_model": "checkpoint",
    "save_model": "checkpoint",
    "World": "distributed",
    "setup": "distributed",
    "DivergedError": "monitor",
    "WEIGHTINGS": "objectives",
    "denoising_loss": "objectives",
    "RunDir": "run",
    "Record": "trainer",
    "Trainer": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
