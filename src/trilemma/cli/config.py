"""Settings of a command: one frozen dataclass; its defaults, then a YAML file, then flags, each overriding the one before.

Groups of settings are nested dataclasses, but every name is unique within a command, so files and flags are flat: ``lr: 1e-3``
in a file is ``--lr 1e-3`` on the command line. Free of torch, so that ``--help`` answers at once.
"""

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .._names import unknown

__all__ = ["from_flat", "parse", "presets", "read_yaml", "to_flat"]

T = TypeVar("T")
_PRESETS = Path(__file__).parent / "presets"


def parse(command: type[T], argv: Sequence[str], *, prog: str) -> T:
    """Read a command line.

    Args:
        command: the dataclass; with a field ``config``, ``--config`` names a preset or a YAML file, and with ``resume`` and
            ``out``, ``--resume`` begins from what the run in that folder was started with.
        argv: what follows the command's name.
        prog: how help calls the command.

    Raises:
        ValueError: a setting in the file is unknown or cannot have its value.
        SystemExit: a flag is wrong (status 2), or help was asked for (status 0).
    """
    import tyro

    names = _leaves(command)
    source = _flag(argv, "--config") if "config" in names else None
    if source is None and "--resume" in argv and "resume" in names:
        written = Path(_flag(argv, "--out") or to_flat(command())["out"]) / "config.json"
        source = str(written) if written.exists() else None
    default = command() if source is None else from_flat(command, read_yaml(source), source=source)
    return tyro.cli(command, args=list(argv), prog=prog, default=default, config=(tyro.conf.OmitArgPrefixes,))


def presets() -> list[str]:
    """The names of the presets that come with the package.

    >>> "digits" in presets()
    True
    """
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def read_yaml(source: str) -> dict[str, Any]:
    """The settings in a preset or a YAML file; JSON is YAML too.

    Args:
        source: the name of a preset, or a path.

    Raises:
        ValueError: no such preset, not YAML, not a mapping, or a key that is there twice.
        FileNotFoundError: no such file.

    >>> read_yaml("digits")["data"]
    'digits'
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml", ".json"):
        if source not in presets():
            raise unknown("preset", source, presets())
        path = _PRESETS / f"{source}.yaml"
    elif not path.is_file():
        raise FileNotFoundError(f"there is no settings file {path}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Strict)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} must hold settings, one 'name: value' a line")
    return values


def from_flat(command: type[T], values: Mapping[str, Any], *, source: str = "the settings") -> T:
    """Build a command's settings from flat names and plain values.

    Args:
        command: the dataclass.
        values: name -> value, as YAML gives them; names not given keep their defaults.
        source: where they come from, for errors.

    Raises:
        ValueError: a name is unknown (the nearest is named), or a value does not fit its type.
    """
    leaves = _leaves(command)
    settings: Any = command()
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in leaves:
            raise ValueError(f"{source}: {unknown('setting', key, leaves)}")
        path, kind = leaves[name]
        try:
            settings = _set(settings, path, _convert(value, kind))
        except TypeError:
            raise ValueError(f"{source}: {key} is {value!r}, which is not {_spell(kind)}") from None
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    return settings


def to_flat(settings: Any) -> dict[str, Any]:
    """All settings by flat name, as plain values that YAML and JSON can hold; undoes `from_flat`."""
    out: dict[str, Any] = {}
    for name, (path, _) in _leaves(type(settings)).items():
        value = settings
        for part in path:
            value = getattr(value, part)
        out[name] = list(value) if isinstance(value, tuple) else value
    return out


class _Strict(yaml.SafeLoader):
    """YAML in which a key may be there only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"{key} is there twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _leaves(command: type) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Flat name -> path of attributes and type."""
    hints = get_type_hints(command, include_extras=True)
    out: dict[str, tuple[tuple[str, ...], Any]] = {}
    for field in fields(command):
        kind = hints[field.name]
        kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if is_dataclass(kind) and isinstance(kind, type):
            out |= {name: ((field.name, *path), leaf) for name, (path, leaf) in _leaves(kind).items()}
        else:
            out[field.name] = ((field.name,), kind)
    return out


def _set(settings: Any, path: tuple[str, ...], value: Any) -> Any:
    head, *rest = path
    return replace(settings, **{head: _set(getattr(settings, head), tuple(rest), value) if rest else value})


def _convert(value: Any, kind: Any) -> Any:
    """A YAML value as the type of its setting; TypeError where it does not fit."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for choice in args:
            try:
                return _convert(value, choice)
            except TypeError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple and isinstance(value, list):
        if args[-1] is Ellipsis:
            return tuple(_convert(item, args[0]) for item in value)
        if len(args) == len(value):
            return tuple(_convert(item, arg) for item, arg in zip(value, args))
    elif kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            raise TypeError from None
    elif kind is int and isinstance(value, bool):
        raise TypeError
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise TypeError


def _spell(kind: Any) -> str:
    """A type in words."""
    origin, args = get_origin(kind), get_args(kind)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin is tuple:
        return (
            "a list, each " + _spell(args[0])
            if args[-1] is Ellipsis
            else f"a list of {len(args)}, each {_spell(args[0])}"
        )
    return words[kind]


def _flag(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag, given as ``--name value`` or ``--name=value``."""
    for i, word in enumerate(argv):
        if word == name and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
    return None
