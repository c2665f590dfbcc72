"""The report: what it says follows from the figures, what it draws is where the figures are, and it is whole."""

import re

import pytest
import torch

from trilemma.cli.findings import best_of_families, findings, plain, scores
from trilemma.cli.plots import Point, front, pareto, triangle
from trilemma.cli.verdict import tell


def estimate(value, half, low=None):
    return {
        "value": value,
        "low": value - half if low is None else low,
        "high": value + half,
        "text": f"{value:g}",
        "note": "",
        "method": "",
    }


def row(name, family, *, fid, coverage, ms, calls=1, half=0.1, copies=0.3, **more):
    return {
        "name": name,
        "run": f"runs/{family}",
        "title": family,
        "family": family,
        "n": 100,
        "calls": calls,
        "seconds": ms / 1e3,
        "joules": 0.065 * ms,
        "energy": "65 W, stated",
        "measured": False,
        "peak_bytes": 2**28,
        "copies": copies,
        "metrics": {"fid": estimate(fid, half), "coverage": estimate(coverage, 0.03)},
        **more,
    }


@pytest.fixture
def figures():
    """Diffusion is good and slow, or good and not so slow; the GAN is fast and narrow; the VAE is fast and poor."""
    return {
        "settings": {"n": 100, "batch": 50, "bits": 8},
        "command": "trilemma report a b c",
        "data": {"reference": "digits: 1500", "unseen": "test split", "fresh": True, "labelled": True},
        "stamp": {"extractor": "classifier"},
        "floor": {"fid": estimate(1.0, 0.1), "coverage": estimate(0.95, 0.02)},
        "copies": 0.3,
        "about": {
            "fid": {"says": "a distance", "better": "lower"},
            "coverage": {"says": "a share", "better": "higher"},
        },
        "machine": {"device": "cpu"},
        "rows": [
            row("DDPM", "diffusion", fid=1.10, coverage=0.94, ms=1000, calls=1000),
            row("tuned", "diffusion", fid=1.05, coverage=0.93, ms=8, calls=8),
            row("GAN", "gan", fid=1.9, coverage=0.6, ms=0.1, copies=0.1),
            row("VAE <b>", "vae", fid=6.0, coverage=0.5, ms=0.1),
        ],
    }


def test_findings_follow_from_the_figures(figures):
    said = [plain(line) for line in findings(figures)]
    start = {line.split(".")[0]: line for line in said}
    assert "tuned comes nearest to the data: Fréchet distance 1.05, 1.05 times" in start["Quality"]
    assert "no clear difference from DDPM." in start["Quality"]
    assert "tuned is the fastest without a clear loss of quality" in start["Speed"]
    assert "125 times faster than DDPM" in start["Speed"]
    assert "clearly less: GAN (0.60) and VAE <b> (0.50)" in start["Coverage"]
    assert "tuned has all three" in start["The trilemma"]
    assert "GAN has speed, not quality and coverage" in start["The trilemma"]
    assert "pixel by pixel: GAN (0.33 of their median distance)" in start["Copies"]
    assert "not measured, since no counter can be read here: the seconds times 65 W, stated" in start["Energy"]
    assert "Likelihood" not in start


def test_findings_change_when_the_figures_do(figures):
    rows = figures["rows"]
    rows[0]["metrics"]["fid"] = estimate(2.0, 0.1)  # now clearly behind
    rows[2]["copies"] = 0.29
    rows[3]["bits_per_dim"] = estimate(2.0, 0.1)
    start = {line.split(".")[0]: line for line in map(plain, findings(figures))}
    assert "all others are clearly farther" in start["Quality"]
    assert "No method's samples lie much nearer" in start["Copies"]
    assert start["Likelihood"].endswith("vae at most 2. None for diffusion and gan.")


def test_what_the_intervals_leave_open_is_called_open(figures):
    tuned, gan, vae = figures["rows"][1:]
    tuned["metrics"]["fid"] = estimate(1.3, 0.1)  # the line is at 1.25
    tuned["metrics"]["coverage"] = estimate(0.7, 0.1)  # and here at 0.76
    figures["rows"] = [tuned, gan, vae]
    vae["bits_per_dim"], gan["bits_per_dim"] = estimate(2.0, 0.1), estimate(1.9, 0.05)
    start = {line.split(".")[0]: line for line in map(plain, findings(figures))}
    assert "tuned has perhaps quality and coverage, not speed;" in start["The trilemma"]
    assert "GAN has speed, not quality and coverage" in start["The trilemma"]
    assert "gan at most 1.9 and vae at most 2. No clear difference between gan and vae." in start["Likelihood"]
    vae["metrics"]["coverage"] = estimate(0.69, 0.1)
    gan["metrics"]["coverage"] = estimate(0.61, 0.1)
    (coverage,) = (line for line in map(plain, findings(figures)) if line.startswith("Coverage"))
    assert "no clear difference from the others" in coverage


@pytest.mark.parametrize("index", range(4))
def test_one_row_is_compared_with_nothing(figures, index):
    """No best, no fastest, no others: a single way to sample has only its own figures."""
    figures["rows"] = [figures["rows"][index] | {"copies": 0.3}]
    said = " ".join(map(plain, findings(figures)))
    for word in ("nearest", "others", "fastest", "largest", "From", "has all three", "trilemma"):
        assert word not in said
    images = torch.zeros(4, 1, 4, 4)
    name = figures["rows"][0]["name"]
    page = tell(figures, {"real": images, name: images, f"nearest: {name}": images})
    assert "One way to make images" in page
    assert "nan" not in page.lower().replace("nansi", "")


def test_rows_may_have_other_figures_than_the_first(figures):
    """Only a model of classes can be asked for some, so that its row alone has class_agreement."""
    figures["rows"][2]["metrics"]["class_agreement"] = estimate(0.875, 0.01)
    figures["about"]["class_agreement"] = {"says": "a share of samples", "better": "higher"}
    images = torch.zeros(4, 1, 4, 4)
    pictures = {"real": images} | {r["name"]: images for r in figures["rows"]}
    page = tell(figures, pictures)
    assert page.count("<td>0.875</td>") == 1
    assert "a share of samples" in page


def test_a_page_says_what_stands_for_unseen_images(figures):
    figures["data"] |= {"unseen": "a half of the training images", "fresh": False}
    images = torch.zeros(4, 1, 4, 4)
    page = tell(figures, {"real": images} | {r["name"]: images for r in figures["rows"]})
    assert "What is called unseen on this page: a half of the training images" in page
    assert "no model has seen" not in page


def test_scores_are_relative_to_real_images_and_to_the_slowest(figures):
    rows, floor = figures["rows"], figures["floor"]
    assert scores(rows[0], rows, floor) == pytest.approx((1 / 1.10, 0.0, 0.94 / 0.95))
    assert scores(rows[1], rows, floor)[1] == pytest.approx(1 - torch.log10(torch.tensor(80.0)).item() / 4)
    assert scores(rows[2], rows, floor)[1] == 1
    better = row("x", "x", fid=0.5, coverage=0.99, ms=1)
    assert scores(better, [*rows, better], floor)[::2] == (1.0, 1.0)  # never above 1
    assert [r["name"] for r in best_of_families(rows, floor)] == ["tuned", "GAN", "VAE <b>"]


def test_the_front_leaves_out_what_is_beaten_in_both():
    points = [
        Point(str(i), x, y, y, y, 0) for i, (x, y) in enumerate([(1, 9), (1, 8), (2, 8.5), (3, 2), (4, 2), (5, 1)])
    ]
    assert [p.name for p in front(points)] == ["1", "3", "5"]


def test_pareto_puts_points_and_intervals_where_they_belong():
    drawn = pareto(
        [Point("a", 1, 1, 0.8, 1.2, 0), Point("b", 10, 10, 9, 11, 1), Point("c", 100, 100, 90, 110, 0)], x="x", y="y"
    )
    xs, ys = zip(*((float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)))
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)
    low, high = map(float, re.search(r'y1="([\d.]+)" y2="([\d.]+)" stroke-width="1.5"', drawn).groups())
    assert high < ys[0] < low
    assert "nan" not in pareto([Point("only", 1, 1, 1, 1, 0), Point("broken", 1, float("nan"), 1, 1, 0)], x="x", y="y")


def test_labels_lie_on_nothing_else():
    """On no other label and on no dot, by the widths that the drawing takes for granted."""
    points = [Point(f"a long name {i}", 1 + 0.01 * (i % 3), 1 + 0.02 * i, 1, 1.2, 0) for i in range(8)]
    points.append(Point("elsewhere", 100, 9, 8, 10, 1))
    drawn = pareto(points, x="x", y="y", legend=[("GAN", 0), ("VAE", 1)])
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    texts = [
        (float(x), float(y), name)
        for x, y, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">([^<]*)</text>', drawn)
        if name in {p.name for p in points}
    ]
    assert len(texts) == len(dots) == 9
    for i, (x, y, name) in enumerate(texts):
        for a, b, other in texts[:i]:
            assert abs(y - b) >= 12 or x + 6 * len(name) < a or a + 6 * len(other) < x
        assert not any(x < a < x + 6 * len(name) and y - 9 < b < y for a, b in dots)
    assert ">GAN</text>" in drawn
    assert ">VAE</text>" in drawn


def test_a_full_triangle_is_the_outer_ring_and_a_score_is_a_length():
    drawn = triangle(("q", "s", "c"), [("full", (1, 1, 1), 0), ("half", (0.5, 0.0, 1), 1)])
    rings = [
        [tuple(map(float, corner.split(","))) for corner in points.split()]
        for points in re.findall(r'points="([^"]*)"', drawn)
    ]
    outer, full, half = rings[3], rings[4], rings[5]
    assert full == outer
    centre = [sum(c) / 3 for c in zip(*outer)]
    assert half[1] == pytest.approx(centre, abs=0.1)
    assert half[2] == pytest.approx(outer[2], abs=0.1)
    assert half[0][1] == pytest.approx((centre[1] + outer[0][1]) / 2, abs=0.1)


def test_the_page_is_self_contained_and_escaped(figures):
    images = torch.zeros(4, 1, 4, 4)
    pictures = {"real": images} | {r["name"]: images for r in figures["rows"]}
    pictures |= {f"nearest: {r['name']}": images for r in figures["rows"]}
    page = tell(figures, pictures)
    assert "VAE &lt;b&gt;" in page
    assert "VAE <b>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("data:image/png") == 5 + 4
    assert "&quot;extractor&quot;: &quot;classifier&quot;" in page
