"""Pieces of a self-contained HTML report: pictures and charts are inside the page, nothing is fetched."""

import base64
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor

from ..data.pixels import picture, png

__all__ = ["Axis", "Line", "chart", "figure", "image", "page", "short", "table", "tiles"]

_INTERVAL, _SMALL = re.compile(r" (\[[^]]*\]†?)"), r" <small>\1</small>"
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5c6575; --line: #d9dee7; --page: #f6f7f9; --card: #ffffff;
  --c0: #2f6fde; --c1: #d9622b; --c2: #2a9d6f; --c3: #9b59c9; --c4: #8a93a3; --c5: #c2a012; --c6: #0f9bb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #323a48; --page: #14171d;
  --card: #1c212a; --c0: #6fa3ff; --c1: #ff9663; --c2: #5fd3a4; --c3: #c99bf0; --c4: #8a93a3; --c5: #e6c84a; --c6: #58cfe0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 34px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 22px; margin: 52px 0 6px; }
p { max-width: 72ch; margin: 6px 0 14px; }
.lead { font-size: 18px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 26px 0; }
.tile, figure, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 16px 18px; }
.tile b { display: block; font-size: 28px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 14px; line-height: 1.35; display: block; margin-top: 4px; }
.row { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; margin: 16px 0; }
figure { margin: 0 0 16px; padding: 12px; width: fit-content; max-width: 100%; overflow-x: auto; }
.row figure { margin: 0; }
figcaption { font-size: 14px; color: var(--soft); margin-bottom: 8px; line-height: 1.4; }
figcaption b { color: var(--ink); font-size: 15px; display: block; }
img { display: block; image-rendering: pixelated; max-width: none; border-radius: 3px; }
body:not(:has(#raw:checked)) img.smooth { image-rendering: auto; }
.labels { display: flex; font-size: 12px; color: var(--soft); font-variant-numeric: tabular-nums; }
.labels span { text-align: center; }
.switch { font-size: 14px; color: var(--soft); display: inline-flex; gap: 8px; align-items: center; cursor: pointer; }
.scroll { overflow-x: auto; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--card); font-size: 14px; }
th, td { padding: 7px 8px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; vertical-align: bottom; white-space: normal; }
td small { display: block; color: var(--soft); font-size: 12px; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 130px; }
tr.mark td { color: var(--soft); }
ul { padding-left: 20px; max-width: 76ch; } li { margin: 8px 0; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; } svg .grid { stroke: var(--line); }
svg .axis { stroke: var(--soft); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px; overflow-x: auto;
  font-size: 13px; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole HTML document; light or dark as the reader's system is.

    Args:
        title: plain text.
        body: pieces of HTML, in order.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def image(images: Tensor, *, columns: int, scale: int, gap: int = 1, smooth: bool = False, alt: str = "") -> str:
    """Small images on one grid, stored as they are and enlarged by the browser by a whole factor.

    Args:
        images: ``(N, C, H, W)`` in model units.
        columns: images a row.
        scale: screen pixels for one pixel.
        gap: pixels between images.
        smooth: let the browser interpolate, unless the reader asks for the pixels (a box with the id ``raw``).
        alt: what to read where pictures are not shown.
    """
    sheet = picture(images, columns=columns, gap=gap, background=60)
    height, width = sheet.shape[:2]
    data = base64.b64encode(png(sheet)).decode()
    size = f'width="{width * scale}" height="{height * scale}"'
    kind = ' class="smooth"' if smooth else ""
    return f'<img{kind} {size} alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def figure(content: str, title: str, note: str = "") -> str:
    """A card with a title, a note and what is shown; ``note`` and ``content`` are HTML."""
    return f"<figure><figcaption><b>{escape(title)}</b>{note}</figcaption>{content}</figure>"


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """Large figures, each with a line that says what it is."""
    cells = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in items)
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Sequence[int] = ()) -> str:
    """A table of plain text; rows in ``marked`` are set back, as references are. An interval stands small below its figure."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td>{_INTERVAL.sub(_SMALL, escape(cell))}</td>" for cell in row)
        lines.append(f"<tr{' class=mark' if i in marked else ''}>{cells}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        name: in the legend.
        points: ``(x, y)`` pairs, in order; a pair with a NaN is left out.
        dashed: for references.
        dots: mark each point and show its values under the pointer.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    dots: bool = True


def chart(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    y_zero: bool = False,
    width: int = 640,
    height: int = 320,
) -> str:
    """A line chart as inline SVG.

    Args:
        lines: at most five.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
        y_zero: begin a linear vertical axis at 0.
        width: in pixels.
        height: in pixels.
    """
    kept = [[p for p in line.points if all(map(math.isfinite, p))] for line in lines]
    xs, ys = ([p[axis] for points in kept for p in points] for axis in (0, 1))
    left, right, top, bottom = 58, 14, 14 + 18 * len(lines), 46
    across = Axis(xs, left, width - right, log=log_x)
    up = Axis(ys + [0.0] if y_zero and not log_y else ys, height - bottom, top, log=log_y)
    out = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(y)}">'
    ]
    for value in up.ticks():
        at = up(value)
        out.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in across.ticks():
        at = across(value)
        out.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{height - bottom}" y2="{height - bottom + 5}"/>'
        )
        out.append(f'<text x="{at:.1f}" y="{height - bottom + 19}" text-anchor="middle">{short(value)}</text>')
    out.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{height - bottom}" y2="{height - bottom}"/>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">{escape(x)}</text>')
    middle = (top + height - bottom) / 2
    out.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    for i, (line, points) in enumerate(zip(lines, kept)):
        colour, dash = f"var(--c{4 if line.dashed else i})", ' stroke-dasharray="6 5"' if line.dashed else ""
        style = f'fill="none" stroke-width="2.2" style="stroke: {colour}"{dash}'
        where = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)
        out.append(f'<polyline points="{where}" {style}/>')
        if line.dots:
            for a, b in points:
                tip = f"<title>{escape(line.name)}: {short(b)} at {short(a)}</title>"
                out.append(
                    f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="3.4" style="fill: {colour}">{tip}</circle>'
                )
        key = 16 + 18 * i
        out.append(f'<line x1="{left + 4}" x2="{left + 30}" y1="{key - 4}" y2="{key - 4}" {style}/>')
        out.append(f'<text x="{left + 38}" y="{key}">{escape(line.name)}</text>')
    return "".join(out) + "</svg>"


class Axis:
    """Values to pixels, with round ticks.

    Args:
        values: what must have room on the axis.
        start: pixel at its lower end.
        end: pixel at its upper end.
        log: logarithmic.
    """

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self.log, self.start, self.end = log, start, end
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        room = 0.04 * (high - low) or 0.5
        self.low, self.high = (low if low == 0 else low - room), high + room

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        at = math.log10(value) if self.log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values on the axis."""
        if self.log:
            steps = (1, 2, 5) if self.high - self.low < 2.2 else (1,)
            every = (s * 10.0**k for k in range(math.floor(self.low), math.ceil(self.high) + 1) for s in steps)
            return [value for value in every if self.low <= math.log10(value) <= self.high]
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
        return [step * k for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def short(value: float) -> str:
    """A number in at most six characters."""
    if 100 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.0e}"
