"""Backbones and sizes by name, and the way back from a network to the name and arguments that build it.

========== ========== ========================================================
preset     parameters made for
========== ========== ========================================================
mlp-small  0.29 M     points in the plane
unet-tiny  0.84 M     8x8 digits
unet-small 3.67 M     28x28 and 32x32 images on a processor
unet-base  23.46 M    32x32 images on a GPU
dit-tiny   1.25 M     8x8 digits
dit-small  7.32 M     28x28 and 32x32 images
dit-base   129.38 M   the width and depth of the published DiT-B
========== ========== ========================================================
"""

from inspect import signature
from typing import Any, cast

from torch import nn

from .._names import unknown
from .dit import DiT
from .mlp import MLP
from .unet import UNet

NETS: dict[str, type[nn.Module]] = {"mlp": MLP, "unet": UNet, "dit": DiT}

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp-small": ("mlp", {"features": 2, "width": 128, "depth": 4}),
    "unet-tiny": ("unet", {"channels": 1, "widths": [64, 64], "blocks": [2, 1], "attention": [1]}),
    "unet-small": ("unet", {"widths": [32, 128, 128], "blocks": [1, 2, 2], "attention": [2]}),
    "unet-base": ("unet", {"widths": [128, 256, 256], "blocks": 3, "attention": [1], "dropout": 0.1}),
    "dit-tiny": ("dit", {"channels": 1, "patch": 2, "width": 128, "depth": 4, "heads": 4}),
    "dit-small": ("dit", {"patch": 2, "width": 256, "depth": 6, "heads": 4}),
    "dit-base": ("dit", {"patch": 2, "width": 768, "depth": 12, "heads": 12}),
}


def build(name: str, **overrides: Any) -> nn.Module:
    """Build a backbone by its name or the name of a preset; keyword arguments override the preset's.

    Args:
        name: a key of ``NETS`` or ``PRESETS``.
        **overrides: arguments of the backbone's constructor.

    Raises:
        ValueError: the name, or an argument, is not known; the nearest one is named.

    >>> build("unet-tiny", classes=10).config["widths"]
    [64, 64]
    """
    if name not in NETS and name not in PRESETS:
        raise unknown("network", name, {**NETS, **PRESETS})
    kind, kwargs = PRESETS.get(name, (name, {}))
    known = list(signature(NETS[kind]).parameters)
    for key in overrides:
        if key not in known:
            raise unknown(f"{name} argument", key, known)
    return NETS[kind](**{**kwargs, **overrides})


def describe(net: nn.Module) -> dict[str, Any]:
    """Give the JSON-serialisable ``{"name": ..., "kwargs": {...}}`` that rebuilds a backbone of this registry.

    >>> spec = describe(build("unet-tiny"))
    >>> spec["name"], describe(build(spec["name"], **spec["kwargs"])) == spec
    ('unet', True)
    """
    for name, kind in NETS.items():
        if type(net) is kind:
            return {"name": name, "kwargs": {**cast(dict[str, Any], net.config)}}
    raise ValueError(f"{type(net).__name__} is not a registered network; add it to NETS to save it by name")
