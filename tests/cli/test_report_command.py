"""``trilemma report`` on small runs: what is drawn, what is drawn again, how it is timed, and what is refused before any work."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trilemma.baselines import build_game
from trilemma.cli import contenders as contending
from trilemma.cli import jury
from trilemma.cli.contenders import Contender, Run, title
from trilemma.cli.findings import plain
from trilemma.cli.main import main
from trilemma.data import load
from trilemma.data.pixels import to_uint8
from trilemma.evaluate import cost
from trilemma.evaluate.reference import images_checksum
from trilemma.train.checkpoint import save_model

FAST = ["--extractor", "pixels", "--metrics", "precision", "--bits", "0", "--n", "40", "--device", "cpu"]
NAMES = [str(i) for i in range(10)]


def gan(folder, seed=0, classes=10, data="digits", side=8):
    """A run with an untrained GAN."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        game = build_game("gan", shape=(1, side, side), classes=classes, widths=(4, 8), latents=8)
    info = {"shape": [1, side, side], "class_names": NAMES[:classes]}
    save_model(game, folder / "checkpoints" / "step_00000001", info=info)
    (folder / "config.json").write_text(json.dumps({"data": data}))
    return folder


@pytest.fixture
def few(tmp_path):
    """A hundred digits to learn from, forty that are unseen."""
    arrays = {}
    for split, n in (("train", 100), ("test", 40)):
        data = load("digits", split=split)
        arrays |= {
            f"{split}_images": to_uint8(data.images[:n])[:, 0].numpy(),
            f"{split}_labels": data.labels[:n].numpy(),
        }
    np.savez(tmp_path / "few.npz", **arrays)
    return str(tmp_path / "few.npz")


@pytest.fixture
def drawn(monkeypatch):
    """Names of what was drawn, and no time spent on timing."""
    names, draw = [], Contender.draw

    def watched(self, *args, **how):
        names.append(self.name)
        return draw(self, *args, **how)

    monkeypatch.setattr(Contender, "draw", watched)
    monkeypatch.setattr(contending, "_LONG_ENOUGH", 0.0)
    return names


def report(out, *words):
    return main(["report", *map(str, words), "--out", str(out)])


def rows(out):
    return json.loads((out / "report.json").read_text())["rows"]


def test_runs_of_one_name_with_and_without_classes_stand_side_by_side(tmp_path, drawn, few):
    """And what was drawn is taken again only where nothing that it depends on has changed."""
    a, b = gan(tmp_path / "a" / "gan", data=few), gan(tmp_path / "b" / "gan", seed=1, classes=0, data=few)
    out = tmp_path / "out"
    words = [a, b, *FAST, "--metrics", "precision,kid", "--batch", "16"]
    assert report(out, *words) == 0
    first = rows(out)
    assert [row["name"] for row in first] == drawn == ["a/gan", "b/gan"]
    assert all(list(row["metrics"]) == ["fid", "coverage", "precision", "kid"] for row in first)
    assert first[0]["metrics"]["fid"] != first[1]["metrics"]["fid"]
    page = plain((out / "report.html").read_text())
    assert all(row["metrics"]["kid"]["text"] in page for row in first)
    kept = [np.load(out / "rows" / f"{name}-gan.npz")["images"] for name in "ab"]
    assert [len(images) for images in kept] == [40, 40]
    assert not np.array_equal(*kept)

    def again(*changed):
        drawn.clear()
        assert report(out, *words, *changed) == 0
        return list(drawn)

    assert again() == []
    assert rows(out) == first
    assert again("--seed", 1) == ["a/gan", "b/gan"]
    assert again() == ["a/gan", "b/gan"]
    other = tmp_path / "other.npz"  # as many unseen images, but others
    np.savez(other, images=to_uint8(load("digits", split="test").images[40:80])[:, 0].numpy())
    assert again("--held-out", other) == ["a/gan", "b/gan"]
    again()
    gan(b, seed=2, classes=0, data=few)
    assert again() == ["b/gan"]
    (out / "rows" / "a-gan.npz").write_bytes(b"half")
    assert again() == ["a/gan"]


def test_without_unseen_images_the_report_says_so_and_leaves_out_what_needs_them(tmp_path, drawn, capsys):
    data = tmp_path / "data.npz"
    np.savez(data, images=to_uint8(load("digits").images[:100])[:, 0].numpy())
    run = gan(tmp_path / "gan", classes=0, data=str(data))
    words = [run, "--extractor", "pixels", "--metrics", "precision,fld,nearer_than_held_out", "--bits", "4"]
    assert report(tmp_path / "out", *words, "--device", "cpu") == 0
    assert "which the runs have seen" in capsys.readouterr().err
    (row,) = rows(tmp_path / "out")
    assert list(row["metrics"]) == ["fid", "coverage", "precision"]
    assert row["bits_per_dim"] is None
    assert (
        "What is called unseen on this page: a half of the training images"
        in (tmp_path / "out" / "report.html").read_text()
    )


def test_a_part_of_the_training_images_is_measured_against_and_copies_are_found_in_all(
    tmp_path, drawn, few, monkeypatch
):
    """The 'model' draws the first training images: some of them are not among the 30, and yet found to be copies."""
    first = load(few).model_units(slice(0, 40))
    monkeypatch.setattr(
        contending, "contenders", lambda run, settings: [fake(lambda s, label, title: (first[: len(s)], 1))]
    )
    seen = []
    out, words = tmp_path / "out", [gan(tmp_path / "gan", data=few), *FAST]
    for reference in (30, 0):
        assert report(out, *words, "--reference", reference) == 0
        made = json.loads((out / "report.json").read_text())
        seen.append(made["stamp"]["reference_checksum"])
        assert made["rows"][0]["copies"] == 0
        assert made["data"]["reference"].startswith("30 random ones of ") == (reference == 30)
    everything = images_checksum([to_uint8(load(few).images)])
    assert seen[0] != seen[1] == everything


def test_a_classifier_is_trained_once(tmp_path, drawn, few, monkeypatch):
    from trilemma.evaluate import extractors

    trained, train = [], extractors.train_classifier

    def quickly(images, labels, **how):
        trained.append(len(images))
        return train(images, labels, **how, steps=10, width=4)

    monkeypatch.setattr(extractors, "train_classifier", quickly)
    run, out = gan(tmp_path / "gan", data=few), tmp_path / "out"
    words = [run, "--metrics", "class_agreement,fld", "--bits", "0", "--device", "cpu"]
    for _ in range(2):
        assert report(out, *words) == 0
        assert (len(trained), len(drawn)) == (1, 1)
    assert list(rows(out)[0]["metrics"]) == ["fid", "coverage", "class_agreement", "fld"]
    assert "fld" in json.loads((out / "report.json").read_text())["about"]


def fake(make):
    run = Run("r", "fake", "gan", (1, 8, 8), 0, torch.nn.Linear(1, 1))
    return Contender(run=run, name="fake", weights="w", make=make)


def test_the_first_time_and_what_is_done_between_batches_do_not_count(tmp_path, monkeypatch):
    """A clock that make alone moves: 4 seconds at first, as if a library was loaded, then 0.1; a counter of 7 joules a turn."""
    monkeypatch.setattr(cost, "_RAPL", tmp_path)
    now, times = [0.0], []
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("7000000")

    def turn():
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(str(int(4e6 * len(times) % 7e6)))

    def make(seeds, labels, title):
        times.append(len(seeds))
        now[0] += 4.0 if len(times) == 1 else 0.1
        turn()
        return torch.zeros(len(seeds), 1, 8, 8), 3

    turn()
    found = fake(make).draw(10, None, seed=0, batch=4, watts=65.0)
    assert times[:3] == [4, 4, 2]
    assert found.calls == 3
    assert found.cost.seconds == pytest.approx(0.3 / 10)
    assert found.cost.joules == pytest.approx(3 * 4 / 10)  # each batch less than a turn, all three more
    assert found.cost.measured
    assert len(times) == 3 + 2 * 3  # until half a second is timed


def test_what_takes_long_is_timed_once(monkeypatch):
    now, times = [0.0], []
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def make(seeds, labels, title):
        times.append(len(seeds))
        now[0] += 10.0
        return torch.zeros(len(seeds), 1, 8, 8), 3

    assert fake(make).draw(10, None, seed=0, batch=5, watts=65.0).cost.seconds == 2.0
    assert len(times) == 2


def test_titles_are_as_long_as_they_must_be():
    runs = ["x/a/run", "x/b/run", "x/b/other"]
    assert [title(run, runs) for run in runs] == ["a/run", "b/run", "other"]
    assert title("run/", ["run/"]) == "run"


def fails(capsys, out, *words):
    capsys.readouterr()
    assert report(out, *words) == 2
    assert not out.is_dir() or not any(out.iterdir())  # nothing is begun
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("trilemma: ")
    return said


def test_what_cannot_be_compared_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    run, mnist = gan(tmp_path / "gan"), gan(tmp_path / "mnist", data="idx:mnist")
    monkeypatch.setattr(jury, "make_extractor", lambda *_: pytest.fail("work was begun"))
    (tmp_path / "file").write_text("no run")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for words, why in [
        ([], "name the runs"),
        ([run, tmp_path / "missing"], "missing holds no model"),
        ([run, tmp_path / "file"], "file holds no model"),
        ([tmp_path / "empty"], "empty holds no model"),
        ([run, mnist], "was trained on digits and .*mnist on idx:mnist"),
        ([run, "--metrics", "fidd"], "did you mean 'fid'"),
        ([run, "--extractor", "incepton"], "did you mean 'inception'"),
        ([run, "--rules", "dim:5"], "did you mean 'ddim'"),
        ([run, "--rules", "ddim"], "should read rule:steps"),
        ([run, "--n", "298"], "n=298 samples cannot be held against 297"),
        ([run, "--held-out", "digits"], "are the same images"),
    ]:
        assert re.search(why, fails(capsys, out, *words)), words
    assert "file is a file" in fails(capsys, tmp_path / "file" / "out", run)
    for words, why in [
        ([run, f"{run}/."], "a run is named twice"),
        ([run, "--rules", "ddim:5", "ddim:5"], "a rule is named twice"),
        ([run, "--bits", "1"], "bits=1 images have no interval"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            report(out, *words)
        assert why in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_later_runs_are_looked_at_before_the_first_is_tuned(tiny_run, tmp_path, capsys, monkeypatch):
    def begun(*_):
        pytest.fail("work was begun")

    monkeypatch.setattr("trilemma.cli.tune.run", begun)
    monkeypatch.setattr(jury, "make_extractor", begun)
    out, plans = tmp_path / "out", ["--data", "digits", "--rules", "tuned:5"]
    broken = gan(tmp_path / "broken")
    (broken / "checkpoints" / "step_00000001" / "model.safetensors").write_bytes(b"half")
    for words, why in [
        ([gan(tmp_path / "wide", side=16), *plans], r"wide makes images of shape \(1, 16, 16\), those of digits"),
        ([gan(tmp_path / "three", classes=3), *plans], "three knows 3 classes, digits .* has 10"),
        ([gan(tmp_path / "hidden"), *plans, "tuned:1"], "'tuned:1' cannot be tuned"),
        ([tmp_path / "missing", *plans], "missing holds no model"),
        ([broken, *plans], "broken.*model.safetensors"),
    ]:
        assert re.search(why, fails(capsys, out, tiny_run, *words)), words


def test_samples_that_are_no_numbers_are_named(tmp_path, capsys, monkeypatch):
    broken = fake(lambda seeds, labels, title: (torch.full((len(seeds), 1, 8, 8), torch.nan), 1))
    monkeypatch.setattr(contending, "contenders", lambda run, settings: [broken])
    monkeypatch.setattr(contending, "_LONG_ENOUGH", 0.0)
    assert report(tmp_path / "out", gan(tmp_path / "gan"), *FAST) == 2
    assert "fake makes samples with a NaN" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.json"))
