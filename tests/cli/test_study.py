"""The demo's measurements, on cases whose answers are known."""

import pytest
import torch

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
    assert [error for _, error in errors["held_out"]] == pytest.approx([0.5, 0.5])  # |0 - x|
    assert [error for _, error in errors["memory"]] == pytest.approx([0.0, 0.0], abs=1e-6)  # one image a class
    assert [level for level, _ in errors["seen"]] == [-4.0, 4.0]


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
