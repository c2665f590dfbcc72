import subprocess
import sys

import pytest

from trilemma.train.config import TrainConfig, parse_entry


def test_warm_up_is_linear_and_reaches_the_peak():
    config = TrainConfig(lr=1.0, warmup=4)
    assert [config.learning_rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_is_halfway_at_half_time_and_ends_at_zero():
    config = TrainConfig(steps=110, lr=1.0, warmup=10, decay="cosine")
    assert config.learning_rate(10) == 1.0
    assert config.learning_rate(60) == pytest.approx(0.5)
    assert config.learning_rate(110) == pytest.approx(0.0, abs=1e-15)


def test_rsqrt_halves_when_the_run_is_four_times_its_start():
    config = TrainConfig(steps=10_000, lr=1.0, warmup=0, decay="rsqrt", decay_start=500)
    assert config.learning_rate(500) == 1.0
    assert config.learning_rate(2000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"batch": 10, "accumulate": 3}, "accumulate=3"),
        ({"flip": 1.5}, "flip=1.5"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"steps": 0}, "steps=0"),
        ({"diverge": 1.0}, "diverge=1.0"),
        ({"ema": ("power:wide",)}, "power:wide"),
    ],
)
def test_impossible_values_are_named(values, word):
    with pytest.raises(ValueError, match=word):
        TrainConfig(**values)


def test_entries():
    assert parse_entry("sigmoid:-3") == ("sigmoid", (-3.0,))


def test_config_needs_no_torch():
    """The command line must not import torch before it has read its arguments."""
    code = (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('trilemma')\n"
        "package.__path__ = importlib.util.find_spec('trilemma').submodule_search_locations\n"
        "sys.modules.update(trilemma=package, torch=None)\n"  # importing torch now fails
        "import trilemma.train\n"
        "trilemma.train.TrainConfig()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
