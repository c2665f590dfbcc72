"""Names that users type: look them up, or say which were meant."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

__all__ = ["lookup", "unknown"]

T = TypeVar("T")


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist.

    >>> unknown("grid", "karas", ["karras", "uniform"])
    ValueError("unknown grid 'karas'; did you mean 'karras'? There are: karras, uniform")
    """
    known = sorted(known)
    near = get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return ValueError(f"unknown {kind} {name!r}{hint} There are: {', '.join(known)}")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of a registry.

    Raises:
        ValueError: there is none of that name; the nearest one is suggested.

    >>> lookup("number", "one", {"one": 1})
    1
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
