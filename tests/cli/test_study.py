"""The demo's measurements, on cases whose answers are known."""

import pytest
import torch

from trilemma.cli.findings import plain
from trilemma.cli.lessons import lessons
from trilemma.cli.page import Line, chart
from trilemma.cli.study import copying, denoising_errors
from trilemma.data import DataSet
from trilemma.denoise import Preconditioned
from trilemma.process import Flow


class Silent(torch.nn.Module):
    """A network that says 0: with target x0 the guess is 0 everywhere."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, c_time, label=None):
        return torch.zeros_like(x)


def test_copying_tells_copies_from_new_images():
    train = torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 1, 2, 2).contiguous()
    mine, usual, nearest = copying(train[[1, 3]], train, train[:3] + 0.25)
    assert mine == 0
    assert usual == pytest.approx(0.25)
    assert torch.equal(nearest, train[[1, 3]])


def test_denoising_errors_of_known_denoisers():
    x = torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous()
    data = DataSet(x, torch.tensor([0, 1]), ("low", "high"))
    model = Preconditioned(Silent(), Flow(), "x0")
    errors = denoising_errors(model, data, data, [-4.0, 4.0], seed=0)
    assert [error for _, error, _, _ in errors["held_out"]] == pytest.approx([0.5, 0.5])  # |0 - x|
    assert [error for _, error, _, _ in errors["memory"]] == pytest.approx([0.0, 0.0], abs=1e-6)  # one image a class
    assert [level for level, *_ in errors["seen"]] == [-4.0, 4.0]


def test_chart_puts_values_where_they_belong():
    import re

    drawn = chart([Line("l", [(1, 1), (10, 10), (100, 100), (5, float("nan"))])], x="x", y="y", log_x=True, log_y=True)
    points = re.search(r'points="([^"]*)"', drawn)[1].split()
    xs, ys = zip(*(map(float, point.split(",")) for point in points))
    assert len(points) == 3
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)
    assert ys[0] > ys[2]
    assert "<title>l: 10 at 10</title>" in drawn
    assert chart([Line("flat", [(0, 1), (1, 1)])], x="x", y="y").count("<polyline") == 1


def method(distance, agreement=0.9, *, half=0.1, **more):
    return {
        "frechet_distance": distance,
        "frechet_distance_95": (distance - half, distance + half),
        "class_agreement": agreement,
        "class_agreement_95": (agreement - 0.02, agreement + 0.02),
        "seconds": 1.0,
        **more,
    }


def told(**changed):
    """The sentences by their titles; the floor is at 1, and all is clear unless changed."""
    methods = {
        "ddpm": method(1.5, calls=250, seconds=10.0),
        "ddim": method(2.0, calls=50),
        "dpmpp_2m": method(1.2, calls=10),
        "guidance_0": method(1.5, 0.1),
        "guidance_1": method(1.2, 0.8),
        "guidance_3": method(2.0, 0.99),
    }
    figures = {
        "floor": method(1.0),
        "methods": methods | {key: changed.pop(key) for key in list(changed) if key in methods},
        "sweep": [
            method(d, rule=rule, calls=calls)
            for rule, distances in {"ddpm": (9, 8), "ddim": (5, 1.15), "dpmpp_2m": (1.15, 1)}.items()
            for d, calls in zip(distances, (3, 20))
        ],
        "loss_by_noise": {"held_out": [(-8, 0.6, 0.55, 0.65), (2, 0.2, 0.19, 0.21)], "memory": [(2, 0.3, 0.29, 0.31)]},
        "copying": {"samples": 0.25, "held_out": 0.26},
    }
    return {line.split(".")[0]: line for line in map(plain, lessons(figures | changed))}


def test_lessons_say_what_is_clear():
    clear = told()
    assert "10 calls: nearer than DDPM with 250" in clear["Speed"]
    assert "(10 times faster)" in clear["Speed"]
    assert clear["Speed"].endswith("ancestral (DDPM) more than 20, DDIM 20, DPM-Solver++(2M) 3.")
    assert "no clear difference" not in clear["Guidance"]
    assert "less varied than real ones" in clear["Guidance"]
    assert "Learning, not remembering" in clear
    assert len(clear) == 4
    assert "farther than DDPM" in told(dpmpp_2m=method(1.8, calls=10))["Speed"]
    remembered = {"held_out": [(2, 0.4, 0.39, 0.41)], "memory": [(2, 0.3, 0.29, 0.31)]}
    assert "Remembering, not learning" in told(loss_by_noise=remembered)


def test_lessons_call_no_difference_what_the_intervals_leave_open():
    assert "no clear difference from DDPM" in told(dpmpp_2m=method(1.4, calls=10))["Speed"]
    guided = told(guidance_3=method(1.3, 0.82))["Guidance"]
    assert "to 82.0%, no clear difference, and" in guided
    assert "to 1.30: no clear difference." in guided
    level = {"held_out": [(2, 0.28, 0.27, 0.295)], "memory": [(2, 0.3, 0.29, 0.31)]}
    assert "Learning or remembering? No clear difference" in told(loss_by_noise=level)
    assert not any("floor?" in title for title in told(dpmpp_2m=method(0.9, calls=10)))  # below it, and not clearly
    assert any("floor?" in title for title in told(dpmpp_2m=method(0.7, calls=10)))


def test_errors_by_noise_have_intervals_over_the_images():
    """Of the guess 0 the squared errors are those of the images, 0.25 and 1, each constant: mean 0.625, t of one degree."""
    x = torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous()
    data = DataSet(x, torch.tensor([0, 1]), ("low", "high"))
    ((_, error, low, high),) = denoising_errors(Preconditioned(Silent(), Flow(), "x0"), data, data, [0.0], seed=0)[
        "seen"
    ]
    assert error == pytest.approx(0.625**0.5)
    assert low == 0
    assert high == pytest.approx((0.625 + 12.706 * 0.375) ** 0.5, rel=0.1)
