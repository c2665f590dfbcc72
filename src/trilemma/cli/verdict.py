"""The page of a trilemma report: findings, two drawings, one table, sheets of samples, nearest training images."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from .findings import best_of_families, calls, findings, joules, names, scores, seconds
from .page import figure, image, page, table, tiles
from .plots import Point, pareto, triangle

__all__ = ["tell"]

_FAMILIES = {
    "diffusion": "diffusion",
    "gan": "GAN",
    "vae": "VAE",
    "ddgan": "denoising-diffusion GAN",
    "vq": "VQ-VAE",
    "flow": "normalising flow",
}
_COLOURS = (0, 1, 2, 3, 5, 6)


def tell(figures: dict[str, Any], pictures: dict[str, Tensor], *, home: str = "") -> str:
    """The report as one HTML document.

    Args:
        figures: what report.json holds.
        pictures: samples by the name of their row, ``(N, C, H, W)`` in model units; ``real`` for unseen real images, and
            ``nearest: NAME`` for the training images nearest to the first samples.
        home: HTML to go on to, such as a link.
    """
    families = list(dict.fromkeys(row["family"] for row in figures["rows"]))
    colours = {family: _COLOURS[i % len(_COLOURS)] for i, family in enumerate(families)}
    body = [
        "<h1>The generative learning trilemma, measured</h1>",
        f'<p class="lead">{_lead(figures, families)}</p>',
        _tiles(figures),
        "<h2>What was found</h2>",
        "<ul>" + "".join(f"<li>{line}</li>" for line in findings(figures)) + "</ul>",
        home,
        _drawings(figures, colours),
        _sheets(figures, pictures),
        _copies(figures, pictures),
        _table(figures),
        _made(figures),
    ]
    return page("trilemma: quality, coverage and speed", [part for part in body if part])


def _lead(figures: dict[str, Any], families: Sequence[str]) -> str:
    kinds = names([_FAMILIES.get(family, family) for family in families])
    rows, n = figures["rows"], figures["settings"]["n"]
    ways = "One way" if len(rows) == 1 else f"{len(rows)} ways"
    unseen = "Unseen" if figures["data"]["fresh"] else "What is called unseen on this page"
    return (
        f"{ways} to make images of the same kind, by {escape(kinds)}: {n} samples each, judged alike for quality, "
        f"coverage and cost against {escape(figures['data']['reference'])}. {unseen}: {escape(figures['data']['unseen'])}."
    )


def _tiles(figures: dict[str, Any]) -> str:
    rows, floor = figures["rows"], figures["floor"]
    near = min(rows, key=lambda row: row["metrics"]["fid"]["value"])
    wide = max(rows, key=lambda row: row["metrics"]["coverage"]["value"])
    quick = min(rows, key=lambda row: row["seconds"])
    least = min(rows, key=lambda row: row["joules"])
    ratio = near["metrics"]["fid"]["value"] / floor["fid"]["value"]
    return tiles(
        [
            (f"{ratio:.2f} ×", f"the Fréchet distance of real unseen images: {near['name']}, nearest to the data"),
            (
                f"{wide['metrics']['coverage']['value']:.0%}",
                f"of the data's neighbourhoods reached: {wide['name']}, the widest; real unseen images reach "
                f"{floor['coverage']['value']:.0%}",
            ),
            (seconds(quick), f"a sample: {quick['name']}, the fastest"),
            (
                joules(least),
                f"a sample, {'by a counter' if least['measured'] else 'estimated'}: {least['name']}, the least",
            ),
        ]
    )


def _drawings(figures: dict[str, Any], colours: dict[str, int]) -> str:
    rows, floor = figures["rows"], figures["floor"]
    points = [
        Point(
            row["name"],
            1e3 * row["seconds"],
            row["metrics"]["fid"]["value"],
            row["metrics"]["fid"]["low"],
            row["metrics"]["fid"]["high"],
            colours[row["family"]],
        )
        for row in rows
    ]
    plane = pareto(
        points,
        x="milliseconds a sample",
        y="Fréchet distance",
        floor=floor["fid"]["value"],
        floor_name="real unseen images",
        legend=[(_FAMILIES.get(family, family), colour) for family, colour in colours.items()],
    )
    best = best_of_families(rows, floor)
    shapes = [(row["name"], scores(row, rows, floor), colours[row["family"]]) for row in best]
    three = triangle(("quality", "speed", "coverage"), shapes)
    return (
        "<h2>Quality against cost</h2><p>Each dot is a way to make samples; the bar is its 95 % interval, of the value for ever "
        "more samples: it can lie below the dot, since the distance is too large at few. Along the thin line nothing is both "
        "nearer to the data and faster, by the values. Times have no interval.</p>"
        + figure(plane, "Fréchet distance against time", "both axes logarithmic; lower left is better")
        + "<h2>The triangle</h2><p>The best of each family, by its weakest score, on three scales from 0, in the middle, to 1. "
        "Quality: the distance of real unseen images over that of the samples. Speed: from the slowest row of this report, 0, to "
        "the fastest, 1, by the logarithm of the seconds. Coverage: the covered share over that of real unseen images. Scores "
        "are values, without intervals.</p>"
        + figure(
            three, "Quality, speed, coverage", "a full triangle has all three; the numbers below are in this order"
        )
    )


def _scale(images: Tensor, columns: int) -> int:
    return max(1, 440 // (columns * images.shape[-1]))


def _sheets(figures: dict[str, Any], pictures: dict[str, Tensor]) -> str:
    cards = []
    for name, note in [
        ("real", escape(figures["data"]["unseen"])),
        *((r["name"], _note(r)) for r in figures["rows"]),
    ]:
        shown = pictures[name][:60]
        sheet = image(shown, columns=10, scale=_scale(shown, 10), smooth=True, alt=f"samples: {name}")
        cards.append(figure(sheet, "Real, unseen" if name == "real" else name, note))
    asked = " Models that know classes were asked for those of the real images." if figures["data"]["labelled"] else ""
    return (
        f"<h2>Samples</h2><p>The first ones of each, not chosen.{asked}</p>"
        '<label class="switch"><input type="checkbox" id="raw"> show pixels as they are, not smoothed</label>'
        f'<div class="row">{"".join(cards)}</div>'
    )


def _note(row: dict[str, Any]) -> str:
    return f"{calls(row)} of the network, {seconds(row)} a sample<br>Fréchet distance {row['metrics']['fid']['text']}"


def _copies(figures: dict[str, Any], pictures: dict[str, Tensor]) -> str:
    cards = []
    for row in figures["rows"]:
        nearest = pictures.get(f"nearest: {row['name']}")
        if nearest is None:
            continue
        count = min(12, len(nearest))
        pairs = torch.stack([pictures[row["name"]][:count], nearest[:count]]).flatten(0, 1)
        sheet = image(pairs, columns=count, scale=_scale(pairs, count), smooth=True, alt=f"nearest: {row['name']}")
        cards.append(figure(sheet, row["name"], f"median distance {row['copies']:.3f} a pixel"))
    return (
        "<h2>New, or copies?</h2><p>Samples above, and below each one the training image nearest to it. Distances are root mean "
        f"squares over pixels, where black to white is 2, without intervals; the median of real unseen images is "
        f"{figures['copies']:.3f}.</p>" + f'<div class="row">{"".join(cards)}</div>'
    )


_SIGNS = {"higher": "↑", "lower": "↓"}
_FIRST = ("fid", "inception_score", "precision", "recall", "coverage")  # quality and coverage at a glance


def _table(figures: dict[str, Any]) -> str:
    rows, about = figures["rows"], figures["about"]
    first, rest = [n for n in _FIRST if n in about], [n for n in about if n not in _FIRST]

    def cells(metrics: dict[str, Any], wanted: Sequence[str]) -> list[str]:
        return [metrics[name]["text"].replace(" at large N]", "]†") if name in metrics else "–" for name in wanted]

    def heads(wanted: Sequence[str]) -> list[str]:
        return [
            f"{name.replace('_', ' ')} {_SIGNS.get(about[name]['better'], about[name]['better'])}" for name in wanted
        ]

    cost = [
        [
            row["name"],
            str(row["calls"]),
            seconds(row),
            joules(row) + ("" if row["measured"] else " *"),
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
            *cells(row["metrics"], first),
            f"≤ {row['bits_per_dim']['text']}" if row.get("bits_per_dim") else "–",
        ]
        for row in rows
    ]
    floor = ["real unseen images", *["–"] * 4, *cells(figures["floor"], first), "–"]
    header = ["", "calls ↓", "time ↓", "energy ↓", "memory ↓", *heads(first), "bits/dim ↓"]
    more = [[row["name"], *cells(row["metrics"], rest)] for row in rows]
    others = table(["", *heads(rest)], [["real unseen images", *cells(figures["floor"], rest)], *more], marked=[0])
    notes = [
        f"Calls of the network, time and energy are those of one sample, in batches of "
        f"{min(figures['settings']['batch'], figures['settings']['n'])}; memory is the peak of the whole process, or of the "
        "graphics card. These have no interval; brackets are 95 % intervals. ↑ more is better, ↓ less is better.",
        "† the figure is biased at this number of samples, the interval is that of its value for ever more."
        if any("†" in cell for line in (floor, *cost, *more) for cell in line)
        else "",
        ""
        if all(row["measured"] for row in rows)
        else f"* not measured, since no counter can be read: the seconds times {rows[0]['energy']} by --watts.",
        f"Bits per dimension of the first {figures['settings']['bits']} unseen images, upper bounds; – where a model has none."
        if any(row.get("bits_per_dim") for row in rows)
        else "",
    ]
    told = "".join(f"<li><b>{escape(n.replace('_', ' '))}</b>: {escape(a['says'])}</li>" for n, a in about.items())
    return (
        "<h2>All figures</h2>"
        + table(header, [floor, *cost], marked=[0])
        + (others if rest else "")
        + "".join(f"<p>{escape(note)}</p>" for note in notes if note)
        + f"<ul>{told}</ul>"
    )


def _made(figures: dict[str, Any]) -> str:
    protocol = json.dumps(figures["stamp"], indent=1, ensure_ascii=False)
    machine = json.dumps(figures["machine"], indent=1, ensure_ascii=False)
    return (
        f"<h2>How this was made</h2><p>Protocol: figures of another protocol are not to be compared "
        f"with these.</p><pre>{escape(protocol)}</pre><pre>{escape(machine)}</pre><pre>{escape(figures['command'])}</pre>"
    )
