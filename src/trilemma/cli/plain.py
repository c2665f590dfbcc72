"""What is written as JSON, which knows no NaN and no infinity."""

import math
from typing import Any

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """The same with null for every number that is not finite, however deep it stands; tuples become lists.

    >>> plain({"a": (1.0, float("nan")), "b": {"c": float("inf"), "d": "x"}})
    {'a': [1.0, None], 'b': {'c': None, 'd': 'x'}}
    """
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
