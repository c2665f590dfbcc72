"""Backbones: ``net(x, c_time, label=None)`` returns the shape of x. Torch only; nothing here knows of diffusion."""

from .dit import DiT
from .mlp import MLP
from .precision import memory_format, recommended_precision
from .registry import NETS, PRESETS, build, describe
from .unet import UNet

__all__ = ["MLP", "NETS", "PRESETS", "DiT", "UNet", "build", "describe", "memory_format", "recommended_precision"]
