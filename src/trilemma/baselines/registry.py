"""Families of models by name, and the way back from a folder to a model. Loading builds from JSON and executes no code."""

from inspect import signature
from pathlib import Path
from typing import Any

import torch

from .._names import lookup, unknown
from ..train.checkpoint import read_config, read_model
from ..train.game import Game
from .ddgan import DDGAN
from .flow import NormalizingFlow
from .gan import GAN
from .vae import VAE
from .vq import VQVAE

__all__ = ["GAMES", "build_game", "family", "load_game"]

GAMES: dict[str, type[Game]] = {"gan": GAN, "ddgan": DDGAN, "vae": VAE, "vq": VQVAE, "flow": NormalizingFlow}
"""Every family by its name, ``Game.family``."""


def build_game(name: str, **options: Any) -> Game:
    """Build an untrained model of a family.

    Args:
        name: a key of ``GAMES``.
        **options: arguments of its constructor, among them ``shape`` and ``classes``.

    Raises:
        ValueError: the family or an option is not known, and the nearest one is named, or an option is out of range.
    """
    kind = lookup("model", name, GAMES)
    known = list(signature(kind).parameters)
    for key in options:
        if key not in known:
            raise unknown(f"{name} option", key, known)
    return kind(**options)


def family(folder: Path | str) -> str:
    """What a model folder, a checkpoint or a run holds: a key of ``GAMES``, or ``diffusion``.

    Raises:
        FileNotFoundError: there is no model.
        CorruptError: no model there can be read.
    """
    config = read_config(folder)
    return str(config["game"]["name"]) if "game" in config else "diffusion"


def load_game(folder: Path | str, *, ema: bool | int = True) -> tuple[Game, dict[str, Any]]:
    """Load a model of one of the families from a model folder, a checkpoint, or the newest good checkpoint of a run.

    Args:
        folder: where it is.
        ema: take the averaged weights if there are any; a number takes that average, ``False`` the weights themselves.

    Returns:
        The model in evaluation mode, on the CPU, and the ``info`` it was saved with.

    Raises:
        FileNotFoundError: there is no model.
        CorruptError: no model there can be read.
        ValueError: it holds a denoiser.
    """
    config, weights = read_model(folder, ema=ema)
    if "game" not in config:
        raise ValueError(f"{folder} holds a denoiser; trilemma.train.load_model reads it")
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn, only to be replaced
        game = build_game(config["game"]["name"], **config["game"]["kwargs"])
    game.load_state_dict(weights)
    return game.eval(), config["info"]
