"""The page of a trilemma report: findings, two drawings, one table, sheets of samples, nearest training images."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from .findings import best_of_families, findings, joules, scores, seconds
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
    names = [_FAMILIES.get(family, family) for family in families]
    rows, n = figures["rows"], figures["settings"]["n"]
    said = ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
    ways = "One way" if len(rows) == 1 else f"{len(rows)} ways"
    unseen = "Unseen" if figures["data"]["fresh"] else "What is called unseen on this page"
    return (
        f"{ways} to make images of the same kind, by {escape(said)}: {n} samples each, judged alike for quality, "
        f"coverage and cost against {escape(figures['data']['reference'])}. {unseen}: {escape(figures['data']['unseen'])}."
    )


def _tiles(figures: dict[str, Any]) -> str:
    rows, floor = figures["rows"], figures["floor"]
    near = min(rows, key=lambda row: row["metrics"]["fid"]["value"])
    wide = max(rows, key=lambda row: row["metrics"]["coverage"]["value"])
    quick = min(rows, key=lambda row: row["seconds"])
    ratio = near["metrics"]["fid"]["value"] / floor["fid"]["value"]
    return tiles(
        [
            (f"{ratio:.2f} ×", f"the Fréchet distance of real unseen images: {near['name']}, nearest to the data"),
            (
                f"{wide['metrics']['coverage']['value']:.0%}",
                f"of the data's neighbourhoods reached: {wide['name']}, the widest",
            ),
            (seconds(quick), f"a sample: {quick['name']}, the fastest"),
            (
                joules(min(rows, key=lambda row: row["joules"])),
                f"a sample, the least: {min(rows, key=lambda row: row['joules'])['name']}",
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
    )
    best = best_of_families(rows, floor)
    shapes = [(row["name"], scores(row, rows, floor), colours[row["family"]]) for row in best]
    three = triangle(("quality", "speed", "coverage"), shapes)
    return (
        "<h2>Quality against cost</h2><p>Each dot is a way to make samples; the bar is its 95 % interval, of the value for ever "
        "more samples: it can lie below the dot, since the distance is too large at few. Along the thin line nothing is both "
        "nearer to the data and faster.</p>"
        + figure(plane, "Fréchet distance against time", "lower left is better")
        + "<h2>The triangle</h2><p>The best of each family on three scales from 0, in the middle, to 1. Quality: the distance of "
        "real unseen images over that of the samples. Coverage: the covered share over that of real unseen images. Speed: from "
        "the slowest to the fastest row of this report, by the logarithm of the seconds.</p>"
        + figure(three, "Quality, speed, coverage", "a full triangle has all three")
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
    return (
        "<h2>Samples</h2><p>The first ones of each, not chosen.</p>"
        '<label class="switch"><input type="checkbox" id="raw"> show pixels as they are, not smoothed</label>'
        f'<div class="row">{"".join(cards)}</div>'
    )


def _note(row: dict[str, Any]) -> str:
    calls = f"{row['calls']} call{'s' if row['calls'] != 1 else ''} of the network"
    return f"{calls}, {seconds(row)} a sample<br>Fréchet distance {row['metrics']['fid']['text']}"


def _copies(figures: dict[str, Any], pictures: dict[str, Tensor]) -> str:
    cards = []
    for row in figures["rows"]:
        nearest = pictures.get(f"nearest: {row['name']}")
        if nearest is None:
            continue
        count = min(12, len(nearest))
        pairs = torch.stack([pictures[row["name"]][:count], nearest[:count]]).flatten(0, 1)
        sheet = image(pairs, columns=count, scale=_scale(pairs, count), smooth=True, alt=f"nearest: {row['name']}")
        cards.append(figure(sheet, row["name"], f"{row['copies']:.3f} a pixel, median"))
    return (
        "<h2>New, or copies?</h2><p>Samples above, and below each one the training image nearest to it. Real unseen images lie "
        f"{figures['copies']:.3f} a pixel (median) from theirs.</p>" + f'<div class="row">{"".join(cards)}</div>'
    )


def _table(figures: dict[str, Any]) -> str:
    metrics = list(figures["about"])
    header = ["", "calls", "time", "energy", "memory", *metrics, "bits/dim"]
    floor = ["real unseen", "", "", "", "", *(figures["floor"].get(name, {}).get("text", "") for name in metrics), ""]
    lines = [
        [
            row["name"],
            str(row["calls"]),
            seconds(row),
            joules(row) + ("" if row["measured"] else " *"),
            f"{row['peak_bytes'] / 2**20:.0f} MB",
            *(row["metrics"].get(name, {}).get("text", "") for name in metrics),
            _bits(row),
        ]
        for row in figures["rows"]
    ]
    stars = (
        [] if all(row["measured"] for row in figures["rows"]) else [f"* not measured: {figures['rows'][0]['energy']}"]
    )
    about = "".join(f"<li><b>{escape(name)}</b>: {escape(text)}</li>" for name, text in figures["about"].items())
    return (
        "<h2>All figures</h2><p>Time and energy are those of one sample in batches of "
        f"{min(figures['settings']['batch'], figures['settings']['n'])}, memory the peak of the whole process, or of the "
        "graphics card. Brackets are 95 % intervals.</p>"
        + table(header, [floor, *lines], marked=[0])
        + f"<p>{escape('; '.join(stars))}</p><ul>{about}</ul>"
    )


def _bits(row: dict[str, Any]) -> str:
    bits = row.get("bits_per_dim")
    return "" if not bits else f"≤ {bits['text']}"


def _made(figures: dict[str, Any]) -> str:
    protocol = json.dumps(figures["stamp"], indent=1, ensure_ascii=False)
    machine = json.dumps(figures["machine"], indent=1, ensure_ascii=False)
    return (
        f"<h2>How this was made</h2><p>Protocol: figures of another protocol are not to be compared "
        f"with these.</p><pre>{escape(protocol)}</pre><pre>{escape(machine)}</pre><pre>{escape(figures['command'])}</pre>"
    )
