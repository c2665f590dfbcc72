"""Settings: defaults, then a file, then flags; nothing unknown passes."""

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest
import yaml

from trilemma.cli.config import from_flat, parse, presets, read_yaml, to_flat
from trilemma.cli.demo import Demo
from trilemma.cli.info import Info
from trilemma.cli.sample import Sample
from trilemma.cli.train import Train
from trilemma.cli.tune import Tune

COMMANDS = [Train, Sample, Tune, Info, Demo]


@dataclass(frozen=True)
class Inner:
    """Inner.

    Args:
        rate: a number.
        pair: two numbers.
        names: words.
        mode: a choice.
    """

    rate: float = 0.1
    pair: tuple[float, float] | None = None
    names: tuple[str, ...] = ("a",)
    mode: Literal["x", "y"] = "x"


@dataclass(frozen=True)
class Outer:
    """Outer.

    Args:
        config: a file.
        inner: a group.
        count: a whole number.
        fast: a switch.
    """

    config: str | None = None
    inner: Inner = field(default_factory=Inner)
    count: int = 1
    fast: bool = False


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_flags_override_the_file_and_the_file_overrides_defaults(tmp_path):
    path = write(tmp_path / "a.yaml", rate=0.2, count=2, names=["p", "q"])
    settings = parse(Outer, ["--config", path, "--count", "3"], prog="t")
    assert (settings.count, settings.inner.rate, settings.inner.names, settings.inner.mode) == (3, 0.2, ("p", "q"), "x")
    again = parse(Outer, [f"--config={path}", "--names", "z", "--fast", "--pair", "1", "2"], prog="t")
    assert (again.inner.names, again.fast, again.inner.pair, again.count) == (("z",), True, (1.0, 2.0), 2)
    assert parse(Outer, [], prog="t") == Outer()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("rat: 1", "unknown setting 'rat'; did you mean 'rate'"),
        ("count: 1.5", "count is 1.5, which is not a whole number"),
        ("count: true", "not a whole number"),
        ("count: '3'", "not a whole number"),
        ("rate: fast", "rate is 'fast', which is not a number"),
        ("fast: 1", "not true or false"),
        ("mode: z", "not one of x, y"),
        ("names: a", "not a list, each text"),
        ("pair: [1, 2, 3]", "not a list of 2, each a number or null"),
        ("rate: 1\nrate: 2", "rate is there twice, again in line 2"),
        ("- 1", "one 'name: value' a line"),
        ("rate: [", "not YAML"),
    ],
)
def test_files_that_cannot_be_settings(tmp_path, text, why):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=why) as error:
        parse(Outer, ["--config", str(path)], prog="t")
    assert "a.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_yaml_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("rate: 1e-3\npair: [0, 255]\ncount: 10_000")
    settings = parse(Outer, ["--config", str(path)], prog="t")
    assert (settings.inner.rate, settings.inner.pair, settings.count) == (1e-3, (0.0, 255.0), 10_000)


def test_missing_files_and_presets():
    with pytest.raises(FileNotFoundError, match=r"no settings file nowhere\.yaml"):
        read_yaml("nowhere.yaml")
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        read_yaml("digit")


@pytest.mark.parametrize("command", COMMANDS)
def test_settings_survive_json(command):
    settings = command()
    assert from_flat(command, json.loads(json.dumps(to_flat(settings)))) == settings


@pytest.mark.parametrize("command", COMMANDS)
def test_names_are_unique_within_a_command(command):
    def count(cls):
        from dataclasses import fields, is_dataclass

        return sum(
            count(type(getattr(cls(), f.name))) if is_dataclass(getattr(cls(), f.name)) else 1 for f in fields(cls)
        )

    assert len(to_flat(command())) == count(command)


@pytest.mark.parametrize("name", presets())
def test_presets_are_valid_and_build_what_they_name(name):
    from trilemma._names import lookup
    from trilemma.cli.train import build_model
    from trilemma.data import DataSet
    from trilemma.process import TIMES
    from trilemma.train.objectives import weighting

    settings = from_flat(Train, read_yaml(name), source=name)
    side = settings.data.resize or (28 if name.endswith("-28") else 8)
    import torch

    from trilemma.train.game import Game

    channels = settings.data.channels or 1
    data = DataSet(
        torch.linspace(-1, 1, 4).reshape(4, 1, 1, 1).expand(4, channels, side, side).contiguous(),
        torch.arange(4) % 2,
        ("a", "b"),
    )
    model = build_model(settings.model, data, seed=0)
    if isinstance(model, Game):
        x = model.sample(2, label=torch.tensor([0, 1]))
    else:
        x = model(data.images[:2], torch.tensor(0.5), label=data.labels[:2]).mean
    assert x.shape == data.images[:2].shape
    assert bool(x.isfinite().all())
    lookup("law", settings.train.times.split(":")[0], TIMES)
    weighting(settings.train.weighting)


def test_resume_begins_from_what_the_run_was_started_with(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**to_flat(Train()), "steps": 77, "lr": 0.5}))
    settings = parse(Train, ["--out", str(tmp_path), "--resume", "--lr", "0.25"], prog="t")
    assert (settings.train.steps, settings.train.lr, settings.resume) == (77, 0.25, True)
    assert parse(Train, ["--out", str(tmp_path)], prog="t").train.steps == Train().train.steps
    assert parse(Train, ["--out", str(tmp_path / "none"), "--resume"], prog="t").train.steps == Train().train.steps
