"""What a trilemma report found, in sentences: each follows from the figures, and says so where no clear difference is.

Two figures differ clearly if their 95 % intervals are disjoint. Times, energies and distances to the training set have none.

(1)  quality   min(1, distance of real unseen data / distance of the samples)
(2)  coverage  min(1, coverage of the samples / coverage of real unseen data)
(3)  speed     1 - log(seconds / fastest) / log(slowest / fastest), within one report
"""

import math
import re
from collections.abc import Sequence
from html import escape, unescape
from typing import Any

__all__ = ["best_of_families", "calls", "findings", "joules", "names", "plain", "scores", "seconds", "told_apart"]

_GOOD = 0.8  # of what real data reach, for quality and coverage
_NEAR = 0.8  # of the distance of real data to the training set
_ALIKE = 1.1  # times that differ by less are not told apart
Row = dict[str, Any]


def told_apart(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether the intervals of two figures are disjoint.

    >>> told_apart({"low": 1.0, "high": 2.0}, {"low": 1.9, "high": 3.0})
    False
    """
    return a["low"] > b["high"] or b["low"] > a["high"]


def scores(row: Row, rows: Sequence[Row], floor: dict[str, Any]) -> tuple[float, float, float]:
    """Quality, speed and coverage of a row, each in [0, 1], by (1) to (3).

    >>> floor = {"fid": {"value": 1.0}, "coverage": {"value": 0.9}}
    >>> slow = {"seconds": 10.0, "metrics": {"fid": {"value": 2.0}, "coverage": {"value": 0.45}}}
    >>> fast = slow | {"seconds": 0.1}
    >>> scores(slow, [slow, fast], floor), scores(fast, [slow, fast], floor)
    ((0.5, 0.0, 0.5), (0.5, 1.0, 0.5))
    """
    times = [other["seconds"] for other in rows]
    span = math.log(max(times) / min(times))
    speed = 1 - math.log(row["seconds"] / min(times)) / span if span else 1.0
    metrics = row["metrics"]
    quality = min(1.0, floor["fid"]["value"] / max(metrics["fid"]["value"], 1e-12))
    return quality, speed, min(1.0, metrics["coverage"]["value"] / max(floor["coverage"]["value"], 1e-12))


def best_of_families(rows: Sequence[Row], floor: dict[str, Any]) -> list[Row]:
    """One row a family: the one whose weakest score is the strongest, then by the sum."""
    best: dict[str, tuple[tuple[float, float], Row]] = {}
    for row in rows:
        three = scores(row, rows, floor)
        key = min(three), sum(three)
        if row["family"] not in best or key > best[row["family"]][0]:
            best[row["family"]] = key, row
    return [row for _, row in best.values()]


def findings(figures: dict[str, Any]) -> list[str]:
    """Sentences as HTML; `plain` makes text of them."""
    rows = [{**row, "name": escape(row["name"]), "title": escape(row["title"])} for row in figures["rows"]]
    floor = figures["floor"]
    lines = [_quality(rows, floor), *_speed(rows), _coverage(rows, floor)]
    lines += [_verdict(rows, floor), *_copies(rows, figures["copies"]), *_bits(rows), *_energy(rows)]
    return [line for line in lines if line]


def _quality(rows: Sequence[Row], floor: dict[str, Any]) -> str:
    best = min(rows, key=lambda row: row["metrics"]["fid"]["value"])
    fid, real = best["metrics"]["fid"], floor["fid"]
    ratio = fid["value"] / real["value"]
    equal = [r["name"] for r in rows if r is not best and not told_apart(r["metrics"]["fid"], fid)]
    beside = f"; no clear difference from {names(equal)}" if equal else "; all others are clearly farther"
    return (
        f"<b>Quality.</b> {best['name']}{' comes nearest to the data' if len(rows) > 1 else ''}: Fréchet distance "
        f"{fid['text']}, {ratio:.{1 if ratio >= 10 else 2}f} times that of as many real unseen images, {real['text']}"
        f"{beside if len(rows) > 1 else ''}."
    )


def _speed(rows: Sequence[Row]) -> list[str]:
    best = min(rows, key=lambda row: row["metrics"]["fid"]["value"])
    equal = [row for row in rows if not told_apart(row["metrics"]["fid"], best["metrics"]["fid"])]
    quick = min(equal, key=lambda row: row["seconds"])
    slow = max(rows, key=lambda row: row["seconds"])
    ratio = slow["seconds"] / quick["seconds"]
    if ratio < _ALIKE:
        return []
    who = "is the fastest without a clear loss of quality: " if len(equal) > 1 else "takes "
    return [
        f"<b>Speed.</b> {quick['name']} {who}{seconds(quick)} a sample and {calls(quick)} of the network, "
        f"{ratio:.{0 if ratio >= 10 else 1}f} times faster than {slow['name']} ({seconds(slow)}, {calls(slow)})."
    ]


def _coverage(rows: Sequence[Row], floor: dict[str, Any]) -> str:
    best = max(rows, key=lambda row: row["metrics"]["coverage"]["value"])
    share = best["metrics"]["coverage"]
    worse = [r for r in rows if told_apart(r["metrics"]["coverage"], share)]
    behind = (
        "; no clear difference from the others"
        if not worse
        else "; clearly less: " + names([f"{r['name']} ({r['metrics']['coverage']['value']:.2f})" for r in worse])
    )
    return (
        f"<b>Coverage.</b> Of the neighbourhoods of real images, {best['name']} reaches "
        f"{'the largest share, ' if len(rows) > 1 else ''}{share['text']} "
        f"(real unseen images: {floor['coverage']['text']}){behind if len(rows) > 1 else ''}."
    )


def _verdict(rows: Sequence[Row], floor: dict[str, Any]) -> str:
    """What the best of each family has; for a single row there is no speed to speak of, and no trilemma."""
    if len(rows) == 1:
        return ""
    parts = []
    for row in best_of_families(rows, floor):
        found: dict[bool | None, list[str]] = {True: [], None: [], False: []}
        for name, enough in _standing(row, rows, floor).items():
            found[enough].append(name)
        said = [names(found[True])] if found[True] else []
        said += [f"perhaps {names(found[None])}"] if found[None] else []
        said += [f"not {names(found[False])}"] if found[False] else []
        text = (
            "all three" if len(found[True]) == 3 else "none of the three" if len(found[False]) == 3 else ", ".join(said)
        )
        parts.append(f"{row['name']} has {text}")
    return (
        f"<b>The trilemma.</b> {'; '.join(parts)}. Quality and coverage count from {_GOOD:.0%} of what real unseen images "
        "reach, and perhaps where the interval crosses that line; speed from the faster half of this report on a logarithmic "
        "scale."
    )


def _standing(row: Row, rows: Sequence[Row], floor: dict[str, Any]) -> dict[str, bool | None]:
    """Whether a row has quality, speed and coverage; ``None`` where its interval, moved to its value, crosses the line."""

    def enough(figure: dict[str, float], line: float, sign: int) -> bool | None:
        ahead, half = sign * (figure["value"] - line), (figure["high"] - figure["low"]) / 2
        return None if abs(ahead) < half else ahead >= 0

    _, speed, _ = scores(row, rows, floor)
    return {
        "quality": enough(row["metrics"]["fid"], floor["fid"]["value"] / _GOOD, -1),
        "speed": speed >= 0.5,
        "coverage": enough(row["metrics"]["coverage"], floor["coverage"]["value"] * _GOOD, 1),
    }


def _copies(rows: Sequence[Row], usual: float) -> list[str]:
    near = [r for r in rows if r["copies"] < _NEAR * usual]
    if not near:
        return [
            "<b>Copies.</b> No method's samples lie much nearer to the training set, pixel by pixel, than real unseen images "
            f"do: none below {_NEAR:g} of their median distance."
        ]
    said = names([f"{r['name']} ({r['copies'] / usual:.2f} of their median distance)" for r in near])
    return [
        f"<b>Copies.</b> Much nearer to the training set than real unseen images, pixel by pixel: {said}. They are copies, or "
        "smoother than real images; the pictures and the figures of copying tell which."
    ]


def _bits(rows: Sequence[Row]) -> list[str]:
    known: dict[str, Row] = {}
    for row in rows:
        if row.get("bits_per_dim"):
            known.setdefault(row["run"], row)
    if not known:
        return []
    ranked = sorted(known.values(), key=lambda row: row["bits_per_dim"]["value"])
    said = names([f"{row['title']} at most {row['bits_per_dim']['text']}" for row in ranked])
    equal = [r["title"] for r in ranked[1:] if not told_apart(r["bits_per_dim"], ranked[0]["bits_per_dim"])]
    none = list(dict.fromkeys(row["title"] for row in rows if row["run"] not in known))
    return [
        f"<b>Likelihood.</b> Bits per dimension of unseen images, fewer are better: {said}."
        + (f" No clear difference between {names([ranked[0]['title'], *equal])}." if equal else "")
        + (f" None for {names(none)}." if none else "")
    ]


def _energy(rows: Sequence[Row]) -> list[str]:
    least, most = (pick(rows, key=lambda row: row["joules"]) for pick in (min, max))
    how = (
        f"by {least['energy']}"
        if least["measured"]
        else f"not measured, since no counter can be read here: the seconds times {least['energy']} by --watts"
    )
    if len(rows) == 1:
        return [f"<b>Energy.</b> {joules(least)} a sample, {how}."]
    return [
        f"<b>Energy.</b> From {joules(least)} ({least['name']}) to {joules(most)} ({most['name']}) a sample, {how}."
    ]


def names(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def calls(row: Row) -> str:
    """Network evaluations of a sample, for people."""
    return f"{row['calls']} call{'s' if row['calls'] != 1 else ''}"


def seconds(row: Row) -> str:
    """Time of a sample, for people."""
    ms = 1e3 * row["seconds"]
    return f"{ms / 1e3:.2g} s" if ms >= 1000 else f"{ms:.3g} ms"


def joules(row: Row) -> str:
    """Energy of a sample, for people."""
    energy = row["joules"]
    return f"{energy:.3g} J" if energy >= 0.1 else f"{1e3 * energy:.3g} mJ"


def plain(html: str) -> str:
    """A sentence without its marks.

    >>> plain("<b>Speed.</b> a &lt; b")
    'Speed. a < b'
    """
    return unescape(re.sub("<[^>]*>", "", html))
