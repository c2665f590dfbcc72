"""Other families of generative models, trained by the same trainer and measured alike; a family is a `train.game.Game`."""

from .registry import GAMES, build_game, family, load_game

__all__ = ["GAMES", "build_game", "family", "load_game"]
