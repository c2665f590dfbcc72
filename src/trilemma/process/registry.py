"""Names of processes, their entries in settings, and their way to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

from .._names import lookup, unknown
from .betas import FromBetas, cosine_betas, linear_betas, zero_terminal_snr
from .gaussian import GaussianProcess, Shifted
from .learned import Learned
from .named import EDM, VE, VP, Cosine, Flow, Sigmoid, SubVP

__all__ = ["PROCESSES", "process_from_config", "process_from_entry", "process_to_config"]


def _ddpm() -> FromBetas:
    """DDPM's chain of a thousand steps, betas linear from 1e-4 to 0.02."""
    return FromBetas(linear_betas())


def _iddpm() -> FromBetas:
    """The cosine schedule of improved DDPM, a chain of a thousand steps."""
    return FromBetas(cosine_betas())


def _learned() -> Learned:
    """A schedule before it is learned, log-SNR linear from 13 to -10; a fitted one is a file, ``schedule.json``."""
    return Learned()


def _ddpm_zero_snr() -> FromBetas:
    """DDPM's chain, stretched so that its last step leaves no signal."""
    return FromBetas(zero_terminal_snr(linear_betas()))


PROCESSES: dict[str, Callable[..., GaussianProcess]] = {
    "vp": VP,
    "sub_vp": SubVP,
    "ve": VE,
    "edm": EDM,
    "flow": Flow,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "learned": _learned,
    "ddpm": _ddpm,
    "iddpm": _iddpm,
    "ddpm_zero_snr": _ddpm_zero_snr,
}
"""Every process by its name, with the published settings."""

_CLASSES = {cls.__name__: cls for cls in (VP, SubVP, VE, EDM, Flow, Cosine, Sigmoid, FromBetas, Shifted, Learned)}


def process_from_entry(entry: str) -> GaussianProcess:
    """The process of an entry in a configuration, ``name`` or ``name:setting=number,setting=number``.

    An entry that ends in ``.json`` is a file that holds what :func:`process_to_config` gives, such as a fitted schedule. Every
    other has, besides its own settings, ``shift``, which is added to its log-SNR (:class:`Shifted`).

    Raises:
        ValueError: the name or a setting is unknown (the nearest is named), a value is no number or out of range, or the file
            holds no process.

    >>> process_from_entry("vp:beta_max=10")
    VP(beta_min=0.1, beta_max=10.0)
    >>> process_from_entry("flow:shift=-1.4")
    Shifted(base=Flow(), shift=-1.4)
    """
    if entry.endswith(".json"):
        try:
            return process_from_config(json.loads(Path(entry).read_text()))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{entry} does not hold a process: {error}") from None
    name, _, rest = entry.partition(":")
    make = lookup("process", name, PROCESSES)
    known = [*signature(make).parameters, "shift"]
    settings: dict[str, float] = {}
    for part in rest.split(",") if rest else ():
        key, _, value = part.strip().partition("=")
        try:
            settings[key] = float(value)
        except ValueError:
            raise ValueError(
                f"{entry!r} should read name or name:setting=number,setting=number, as in 'vp:beta_max=10'"
            ) from None
        if key not in known:
            raise unknown(f"{name} setting", key, known)
    shift = settings.pop("shift", 0.0)
    process = make(**settings)
    return Shifted(process, shift) if shift else process


def process_to_config(process: GaussianProcess) -> dict[str, Any]:
    """A process as JSON data: its class and its settings.

    >>> process_to_config(EDM())
    {'class': 'EDM', 'sigma_max': 80.0}
    """
    out: dict[str, Any] = {"class": type(process).__name__}
    for field in fields(process):
        value = getattr(process, field.name)
        out[field.name] = process_to_config(value) if isinstance(value, GaussianProcess) else value
    return out


def process_from_config(config: dict[str, Any]) -> GaussianProcess:
    """The process that :func:`process_to_config` described.

    Raises:
        ValueError: the class is unknown, or a setting does not belong to it.

    >>> process_from_config({"class": "EDM", "sigma_max": 40.0})
    EDM(sigma_max=40.0)
    """
    settings = dict(config)
    name = settings.pop("class", None)
    if name not in _CLASSES:
        raise unknown("process", name, _CLASSES)
    allowed = {field.name for field in fields(_CLASSES[name])}
    if extra := set(settings) - allowed:
        raise ValueError(f"{name} has no setting {sorted(extra)[0]!r}; it has {', '.join(sorted(allowed)) or 'none'}")
    for key, value in settings.items():
        if isinstance(value, dict):
            settings[key] = process_from_config(value)
        elif isinstance(value, list):  # JSON has no tuples
            settings[key] = tuple(value)
    return _CLASSES[name](**settings)
