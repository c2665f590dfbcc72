"""What a trilemma report found, in sentences: every one follows from the figures, and says so where intervals are left aside.

(1)  quality   min(1, distance of real unseen data / distance of the samples)
(2)  coverage  min(1, coverage of the samples / coverage of real unseen data)
(3)  speed     1 - log(seconds / fastest) / log(slowest / fastest), within one report
"""

import math
import re
from collections.abc import Sequence
from html import escape, unescape
from typing import Any

__all__ = ["best_of_families", "findings", "joules", "plain", "scores", "seconds", "told_apart"]

GOOD = 0.8  # of what real data reach, for quality and coverage
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
    rows = [{**row, "name": escape(row["name"]), "run": escape(row["run"])} for row in figures["rows"]]
    floor, n = figures["floor"], figures["settings"]["n"]
    lines = [_quality(rows, floor, n), *_speed(rows), _coverage(rows, floor)]
    lines += [_verdict(rows, floor), *_copies(rows, figures["copies"]), *_bits(rows), *_energy(rows)]
    return [line for line in lines if line]


def _quality(rows: Sequence[Row], floor: dict[str, Any], n: int) -> str:
    best = min(rows, key=lambda row: row["metrics"]["fid"]["value"])
    equal = [r["name"] for r in rows if r is not best and not told_apart(r["metrics"]["fid"], best["metrics"]["fid"])]
    ratio = best["metrics"]["fid"]["value"] / floor["fid"]["value"]
    same = f"; with {n} samples it cannot be told apart from {_names(equal)}" if equal else ", ahead of all others"
    nearest = f"{best['name']} comes nearest to the data: " if len(rows) > 1 else f"{best['name']}: "
    return (
        f"<b>Quality.</b> {nearest}a Fréchet distance of {ratio:.2f} times that of real unseen data"
        f"{same if len(rows) > 1 else ''}."
    )


def _speed(rows: Sequence[Row]) -> list[str]:
    best = min(rows, key=lambda row: row["metrics"]["fid"]["value"])
    equal = [row for row in rows if not told_apart(row["metrics"]["fid"], best["metrics"]["fid"])]
    quick = min(equal, key=lambda row: row["seconds"])
    slow = max(rows, key=lambda row: row["seconds"])
    if quick is slow:
        return []
    ratio = slow["seconds"] / quick["seconds"]
    return [
        f"<b>Speed.</b> {quick['name']} is the fastest of those that cannot be told from the nearest: {seconds(quick)} a "
        f"sample and {quick['calls']} call{'s' if quick['calls'] != 1 else ''} of the network, "
        f"{ratio:.{0 if ratio >= 10 else 1}f} times faster than {slow['name']} "
        f"({seconds(slow)}, {slow['calls']} calls)."
    ]


def _coverage(rows: Sequence[Row], floor: dict[str, Any]) -> str:
    best = max(rows, key=lambda row: row["metrics"]["coverage"]["value"])
    worse = [r for r in rows if told_apart(r["metrics"]["coverage"], best["metrics"]["coverage"]) and r is not best]
    behind = (
        "; the others cannot be told apart from it"
        if not worse
        else "; clearly behind: " + _names([f"{r['name']} ({r['metrics']['coverage']['value']:.2f})" for r in worse])
    )
    return (
        f"<b>Coverage.</b> Of the neighbourhoods of real data, {best['name']} reaches "
        f"{'the largest share, ' if len(rows) > 1 else ''}{best['metrics']['coverage']['value']:.2f} "
        f"(real unseen data: {floor['coverage']['value']:.2f}){behind if len(rows) > 1 else ''}."
    )


def _verdict(rows: Sequence[Row], floor: dict[str, Any]) -> str:
    """By the values of the best of each family; for a single row there is no speed to speak of, and no trilemma."""
    if len(rows) == 1:
        return ""
    parts = []
    for row in best_of_families(rows, floor):
        quality, speed, coverage = scores(row, rows, floor)
        has = [
            name
            for name, score, enough in (("quality", quality, GOOD), ("speed", speed, 0.5), ("coverage", coverage, GOOD))
            if score >= enough
        ]
        lacks = [name for name in ("quality", "speed", "coverage") if name not in has]
        text = (
            "all three"
            if not lacks
            else f"{_names(has) or 'none of the three'}, not {_names(lacks)}"
            if has
            else "none of the three"
        )
        parts.append(f"{row['name']} has {text}")
    return (
        f"<b>The trilemma.</b> {'; '.join(parts)}. Quality and coverage count from {GOOD:.0%} of what real unseen data "
        "reach, speed from the faster half of this report on a logarithmic scale, all by their values; how sure these are, "
        "the intervals say."
    )


def _copies(rows: Sequence[Row], usual: float) -> list[str]:
    near = [r for r in rows if r["copies"] < 0.8 * usual]
    if not near:
        return ["<b>Copies.</b> No method's samples lie much nearer to the training set than real unseen data do."]
    said = _names([f"{r['name']} ({r['copies'] / usual:.2f} times their distance)" for r in near])
    return [
        f"<b>Copies.</b> Nearer to the training set than real unseen data, pixel by pixel: {said}. They are copies, or smoother "
        "than real images; the pictures and the figures of copying tell which."
    ]


def _bits(rows: Sequence[Row]) -> list[str]:
    known: dict[str, Row] = {}
    for row in rows:
        if row.get("bits_per_dim"):
            known.setdefault(row["run"], row)
    if not known:
        return []
    said = [
        f"{row['run']} at most {row['bits_per_dim']['value']:.3f} "
        f"[{row['bits_per_dim']['low']:.3f}, {row['bits_per_dim']['high']:.3f}]"
        for row in known.values()
    ]
    none = list(dict.fromkeys(row["run"] for row in rows if row["run"] not in known))
    return [
        f"<b>Likelihood.</b> Bits per dimension of unseen data: {_names(said)}."
        + (f" Without one: {_names(none)}." if none else "")
    ]


def _energy(rows: Sequence[Row]) -> list[str]:
    least, most = (pick(rows, key=lambda row: row["joules"]) for pick in (min, max))
    how = (
        "measured by " + least["energy"] if least["measured"] else f"not measured: {least['energy']}, times the seconds"
    )
    if len(rows) == 1:
        return [f"<b>Energy.</b> {joules(least)} a sample, {how}."]
    return [
        f"<b>Energy.</b> From {joules(least)} ({least['name']}) to {joules(most)} ({most['name']}) a sample, {how}."
    ]


def _names(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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
