"""The two drawings of the trilemma: what quality costs, and the triangle of quality, coverage and speed. Inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .page import Axis, short

__all__ = ["Point", "front", "pareto", "triangle"]


@dataclass(frozen=True)
class Point:
    """One way to make samples in a plane of cost and quality.

    Args:
        name: beside the dot.
        x: cost of a sample.
        y: distance to the data; less is better.
        low: lower end of the interval of ``y``.
        high: upper end.
        colour: number of the family.
    """

    name: str
    x: float
    y: float
    low: float
    high: float
    colour: int


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in both, from cheap to dear.

    >>> a, b, c = (Point(n, x, y, y, y, 0) for n, x, y in (("a", 1, 9), ("b", 2, 3), ("c", 3, 4)))
    >>> [point.name for point in front([c, b, a])]
    ['a', 'b']
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if not kept or point.y < kept[-1].y:
            kept.append(point)
    return kept


def pareto(
    points: Sequence[Point],
    *,
    x: str,
    y: str,
    floor: float | None = None,
    floor_name: str = "",
    legend: Sequence[tuple[str, int]] = (),
    width: int = 900,
    height: int = 440,
) -> str:
    """Distance against cost, both logarithmic, with intervals and the line of the best.

    Args:
        points: the ways to make samples; those with a value that has no logarithm are left out.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        floor: a dashed line, what real data reach.
        floor_name: its name.
        legend: names of the families and their colours.
        width: in pixels.
        height: in pixels.
    """
    shown = [p for p in points if all(math.isfinite(v) and v > 0 for v in (p.x, p.y))]
    heights = [v for p in shown for v in (p.y, p.low, p.high) if math.isfinite(v) and v > 0.2 * p.y]
    left, right, top, bottom = 62, 190, 40 if legend else 16, 48
    across = Axis([p.x for p in shown], left, width - right, log=True)
    up = Axis(heights + ([floor] if floor else []), height - bottom, top, log=True)
    out = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(y)}">'
    ]
    for value in up.ticks():
        at = up(value)
        out.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
    base = height - bottom
    for value in across.ticks():
        at = across(value)
        out.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{base}" y2="{base + 5}"/>')
        out.append(f'<text x="{at:.1f}" y="{base + 19}" text-anchor="middle">{short(value)}</text>')
    out.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{escape(x)}</text>')
    middle = (top + base) / 2
    out.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    if floor:
        at = up(floor)
        dash = 'stroke-width="2" stroke-dasharray="6 5" style="stroke: var(--c4)"'
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}" {dash}/>')
        out.append(f'<text x="{width - right + 6}" y="{at + 4:.1f}">{escape(floor_name)}</text>')
    best = front(shown)
    line = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in best)
    out.append(f'<polyline points="{line}" fill="none" stroke-width="1.5" class="axis" opacity="0.6"/>')
    for i, (name, number) in enumerate(legend):
        at = left + 4 + sum(_wide(earlier) + 34 for earlier, _ in legend[:i])
        out.append(f'<rect x="{at:.0f}" y="6" width="12" height="12" rx="6" style="fill: var(--c{number})"/>')
        out.append(f'<text x="{at + 18:.0f}" y="16">{escape(name)}</text>')
    dots = [(across(p.x), up(p.y)) for p in shown]
    for point, (a, b), (c, d) in zip(shown, dots, _labels(dots, [p.name for p in shown], (left, top, width, base))):
        colour = f"var(--c{point.colour})"
        low, high = (min(max(v, min(heights)), max(heights)) for v in (point.low, point.high))
        out.append(
            f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{up(low):.1f}" y2="{up(high):.1f}" stroke-width="1.5" '
            f'style="stroke: {colour}" opacity="0.55"/>'
        )
        tip = f"<title>{escape(point.name)}: {short(point.y)} [{short(point.low)}, {short(point.high)}]</title>"
        out.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" style="fill: {colour}">{tip}</circle>')
        out.append(f'<text x="{c:.1f}" y="{d:.1f}">{escape(point.name)}</text>')
        if abs(d - 4 - b) > _LINE:  # far from its dot
            end = c - 3 if c > a else c + _wide(point.name) + 3
            out.append(f'<line class="grid" x1="{a:.1f}" y1="{b:.1f}" x2="{end:.1f}" y2="{d - 4:.1f}"/>')
    return "".join(out) + "</svg>"


_LINE = 14.0  # pixels from a line of text to the next
_DOT = 7.0  # pixels that nothing is written in, around a dot


def _wide(text: str) -> float:
    """About how many pixels a label takes."""
    return 6.4 * len(text)


def _labels(
    dots: Sequence[tuple[float, float]], names: Sequence[str], frame: tuple[float, float, float, float]
) -> list[tuple[float, float]]:
    """Where labels begin, so that none lies on another one, on a dot or outside: beside its dot, or as near as can be.

    Args:
        dots: places of the dots.
        names: their labels.
        frame: left, top, right and bottom of what can be written on.
    """
    left, top, right, bottom = frame
    taken = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in dots]

    def box(x: float, y: float, name: str) -> tuple[float, float, float, float]:
        return x, y - 10, x + _wide(name), y + 3

    put = []
    for (x, y), name in zip(dots, names):
        lines = [k * _LINE / 2 for k in range(31)]
        tries = [
            (start, y + 4 + sign * down) for down in lines for start in (x + 9, x - 9 - _wide(name)) for sign in (1, -1)
        ]
        free = [
            (a, b)
            for a, b in tries
            if a >= left
            and a + _wide(name) <= right
            and top + 10 <= b <= bottom - 3
            and not _hit(box(a, b, name), taken)
        ]
        put.append(free[0] if free else tries[0])
        taken.append(box(*put[-1], name))
    return put


def _hit(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> bool:
    """Whether a rectangle overlaps with one of the others."""
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def triangle(
    corners: tuple[str, str, str], shapes: Sequence[tuple[str, tuple[float, float, float], int]], *, size: int = 420
) -> str:
    """Each way to make samples as a triangle whose corners reach as far as it is good.

    Args:
        corners: what is at the top, right and left.
        shapes: name, three scores in [0, 1], and the colour.
        size: in pixels.
    """
    centre, radius = (size / 2, 0.56 * size), 0.42 * size
    directions = [(math.sin(2 * math.pi * k / 3), -math.cos(2 * math.pi * k / 3)) for k in range(3)]

    def polygon(scores: Sequence[float]) -> str:
        at = ((centre[0] + radius * s * d[0], centre[1] + radius * s * d[1]) for s, d in zip(scores, directions))
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in at)

    tall = int(0.86 * size) + 22 * len(shapes)
    out = [f'<svg viewBox="0 0 {size} {tall}" width="{size}" height="{tall}" role="img" aria-label="trilemma">']
    for ring in (0.25, 0.5, 0.75, 1.0):
        out.append(f'<polygon points="{polygon([ring] * 3)}" fill="none" class="grid"/>')
    for corner, (x, y), anchor in zip(corners, directions, ("middle", "end", "start")):
        out.append(
            f'<line class="grid" x1="{centre[0]}" y1="{centre[1]}" x2="{centre[0] + radius * x:.1f}" '
            f'y2="{centre[1] + radius * y:.1f}"/>'
        )
        where = centre[0] + radius * x * (1 if anchor == "middle" else 1.12)
        down = -10 if anchor == "middle" else 22
        out.append(
            f'<text x="{where:.1f}" y="{centre[1] + radius * y + down:.1f}" text-anchor="{anchor}">{escape(corner)}</text>'
        )
    for i, (name, scores, colour) in enumerate(shapes):
        fill = f'style="stroke: var(--c{colour}); fill: var(--c{colour})" fill-opacity="0.10" stroke-width="2.2"'
        tip = ", ".join(f"{corner} {score:.2f}" for corner, score in zip(corners, scores))
        out.append(f'<polygon points="{polygon(scores)}" {fill}><title>{escape(name)}: {escape(tip)}</title></polygon>')
        key = 0.86 * size + 22 * i + 6
        out.append(f'<rect x="12" y="{key - 10:.0f}" width="16" height="10" style="fill: var(--c{colour})"/>')
        out.append(f'<text x="36" y="{key:.0f}">{escape(name)}: {" / ".join(f"{s:.2f}" for s in scores)}</text>')
    return "".join(out) + "</svg>"
