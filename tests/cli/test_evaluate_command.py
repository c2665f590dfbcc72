"""``trilemma evaluate``: its figures are the library's, on one process and on two; what cannot be measured is refused whole."""

import json
import re
import socket
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.cli import evaluate as command
from trilemma.cli.images import open_images
from trilemma.cli.main import main
from trilemma.data import load
from trilemma.data.pixels import to_uint8
from trilemma.evaluate import measure
from trilemma.evaluate.extractors import random_features
from trilemma.evaluate.reference import images_checksum, load_tensors

TEST = load("digits", split="test")
FAST = ["--extractor", "random", "--metrics", "fid,precision"]


@pytest.fixture
def quick(monkeypatch):
    """The classifier trained for ten steps; returns how often one was trained."""
    from trilemma.evaluate import extractors

    trained, train = [], extractors.train_classifier

    def few(images, labels, **how):
        trained.append(len(images))
        return train(images, labels, **how, steps=10, width=4)

    monkeypatch.setattr(extractors, "train_classifier", few)
    return trained


@pytest.fixture
def samples(tmp_path):
    """As `trilemma sample` writes them: noisy digits with the classes that they were asked for."""
    noise = torch.randn(TEST.images.shape, generator=torch.Generator().manual_seed(0))
    images = to_uint8(TEST.images + 0.3 * noise)
    path = tmp_path / "samples.npz"
    names = np.array(TEST.class_names)
    np.savez(path, images=images.permute(0, 2, 3, 1).numpy(), labels=TEST.labels.numpy(), class_names=names)
    return path


@pytest.fixture
def folder(tmp_path):
    """The first 24 test digits as files, a folder a class."""
    out = tmp_path / "folder"
    for i, (image, label) in enumerate(zip(to_uint8(TEST.images[:24]), TEST.labels)):
        (out / f"{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(out / f"{label}" / f"{i:02}.png")
    (out / ".hidden.png").write_bytes(b"nothing")
    (out / "notes.txt").write_text("nothing")
    return out


def evaluate(*words):
    return main(["evaluate", *map(str, words)])


def result(out):
    return json.loads((out / "evaluation.json").read_text())


def fails(capsys, tmp_path, *words):
    before = {path for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert evaluate(*words, "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert {path for path in tmp_path.rglob("*")} == before  # nothing is left, nothing half-written
    said = [line for line in err if line.startswith("trilemma: ")]
    assert len(said) == 1
    return said[0]


def test_figures_are_those_of_the_library(samples, tmp_path, capsys):
    out = tmp_path / "out"
    assert evaluate(samples, "digits", *FAST, "--seed", 3, "--out", out) == 0
    shown = capsys.readouterr().out
    real, made = load("digits"), load(str(samples))
    see = random_features((1, 8, 8), seed=3)
    expected = measure(see.read(made.images), see.read(real.images), metrics=["fid", "precision"], seed=3)
    got = result(out)
    for name, estimate in expected.items():
        found = got["metrics"][name]
        assert [found[k] for k in ("value", "low", "high")] == pytest.approx(
            [estimate.value, estimate.low, estimate.high]
        )
        assert re.search(rf"{name}\s+{re.escape(str(estimate).split()[0])}\s", shown)
    stamp = got["stamp"]
    assert (stamp["extractor"], stamp["extractor_checksum"]) == ("random", see.checksum)
    assert (stamp["n"], stamp["seed"], stamp["reference"]) == (297, 3, "digits")
    assert stamp["reference_checksum"] == images_checksum([to_uint8(real.images)])
    assert got["samples"]["checksum"] == images_checksum([made.images])
    assert see.checksum[:8] in shown
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "neighbours.png", "samples.png"]
    for name in ("samples", "neighbours"):
        with Image.open(out / f"{name}.png") as image:
            image.verify()


def test_json_goes_to_the_screen_and_nothing_else(samples, tmp_path, capsys):
    assert evaluate(samples, "digits", *FAST, "--json", "--out", tmp_path / "out") == 0
    assert json.loads(capsys.readouterr().out) == result(tmp_path / "out")


def test_without_a_name_for_the_folder_the_first_free_one_beside_the_samples_is_taken(samples, tmp_path):
    for name in ("evaluation", "evaluation-2"):
        assert evaluate(samples, "digits", "--extractor", "pixels", "--metrics", "precision") == 0
        assert (tmp_path / name / "evaluation.json").exists()
    (tmp_path / "evaluation" / "mine.txt").touch()
    again = ["--out", tmp_path / "evaluation", "--n", 100]
    assert evaluate(samples, "digits", "--extractor", "pixels", "--metrics", "precision", *again) == 0
    assert result(tmp_path / "evaluation")["stamp"]["n"] == 100
    assert (tmp_path / "evaluation" / "mine.txt").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_folder_is_its_array(folder, tmp_path):
    """Classes from its sub-folders, hidden and other files passed over, whatever the batch."""
    images = open_images(str(folder))
    order = sorted(range(24), key=lambda i: (str(int(TEST.labels[i])), i))
    assert torch.equal(images.pixels(torch.arange(24)), to_uint8(TEST.images[order]))
    assert [images.class_names[i] for i in images.labels] == [str(int(TEST.labels[i])) for i in order]
    some = images.subset(torch.tensor([20, 3]))
    assert torch.equal(some.pixels(torch.tensor([1])), to_uint8(TEST.images[order[3]])[None])
    assert some.labels.tolist() == images.labels[[20, 3]].tolist()
    np.savez(tmp_path / "same.npz", images=to_uint8(TEST.images[order])[:, 0].numpy())
    for batch, source in [(5, folder), (64, tmp_path / "same.npz")]:
        assert evaluate(source, "digits", *FAST, "--batch", batch, "--out", tmp_path / str(batch)) == 0
    a, b = (result(tmp_path / name) for name in ("5", "64"))
    assert a["samples"]["checksum"] == b["samples"]["checksum"]
    assert a["metrics"]["fid"]["value"] == pytest.approx(b["metrics"]["fid"]["value"], rel=1e-4)


def test_classes_are_matched_by_name_and_only_for_the_classifier(samples, tmp_path, quick, capsys):
    asked = ["--metrics", "class_agreement", "--cache", tmp_path / "cache"]
    assert evaluate(samples, "digits", *asked, "--out", tmp_path / "a") == 0
    # the same classes under other numbers
    names = [str(9 - i) for i in range(10)]
    other = tmp_path / "other.npz"
    np.savez(other, images=load(str(samples)).images[:, 0].numpy(), labels=9 - TEST.labels.numpy(), class_names=names)
    assert evaluate(other, "digits", *asked, "--out", tmp_path / "b") == 0
    np.save(tmp_path / "labels.npy", TEST.labels.numpy()[::-1])
    words = ["--labels", tmp_path / "labels.npy", "--out", tmp_path / "c"]
    assert evaluate(samples, "digits", *asked, *words) == 0
    a, b, c = (result(tmp_path / name)["metrics"]["class_agreement"]["value"] for name in "abc")
    assert a == b > c
    assert quick == [1500]  # once: kept by the content of what it learned from
    assert evaluate(samples, "digits", *asked, "--seed", 1, "--out", tmp_path / "d") == 0
    assert quick == [1500, 1500]
    np.savez(other, images=load(str(samples)).images[:, 0].numpy(), labels=TEST.labels.numpy() + 1)
    assert "class 10" in fails(capsys, tmp_path, other, "digits", *asked)


def test_features_of_real_images_are_kept_and_damage_is_told_of(samples, tmp_path, capsys, monkeypatch):
    seen = []
    real = command._rows
    monkeypatch.setattr(command, "_rows", lambda images, *rest: seen.append(rest[2]) or real(images, *rest))
    words = [samples, "digits@test", *FAST, "--cache", tmp_path / "cache", "--out", tmp_path / "out"]

    def looks():
        seen.clear()
        assert evaluate(*words) == 0
        return [label for label in seen if label == "random looks at digits@test"]

    assert len(looks()) == 1
    first = result(tmp_path / "out")["metrics"]
    assert looks() == []
    assert result(tmp_path / "out")["metrics"] == first
    (path,) = (tmp_path / "cache" / "features").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    capsys.readouterr()
    assert len(looks()) == 1
    assert re.search(r"safetensors cannot be read: .*computed again", capsys.readouterr().err)
    assert looks() == []
    assert result(tmp_path / "out")["metrics"] == first
    # one pixel of one real image is another, and so is everything
    images = to_uint8(TEST.images)[:, 0].numpy().copy()
    images[9, 4, 4] ^= 1
    np.save(tmp_path / "digits@test.npy", images)
    words[1] = tmp_path / "digits@test.npy"
    assert evaluate(*words) == 0
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2


def test_held_out_images_say_what_real_ones_reach(samples, tmp_path, capsys):
    words = ["--extractor", "pixels", "--metrics", "fid,fld", "--held-out", "digits", "--out", tmp_path / "out"]
    assert evaluate(samples, "digits@test", *words) == 0
    got = result(tmp_path / "out")
    assert "held out" in capsys.readouterr().out
    assert list(got["metrics"]) == ["fid", "fld"]
    assert list(got["held_out_metrics"]) == ["fid"]
    assert got["held_out_metrics"]["fid"]["value"] < got["metrics"]["fid"]["value"]
    assert got["held_out"]["n"] == 1500


def test_few_samples_are_measured_with_a_warning(samples, tmp_path, capsys):
    words = ["--extractor", "pixels", "--metrics", "fid", "--n", "40", "--out", tmp_path / "out"]
    assert evaluate(samples, "digits@test", *words) == 0
    assert re.search(r"fid: 40 vectors are few for features of rank \d+", capsys.readouterr().out)


def spoiled(folder, kind):
    """A folder or file that cannot be measured, and what is said of it."""
    if kind == "empty":
        (folder.parent / "empty").mkdir()
        return folder.parent / "empty", "holds no images"
    if kind == "one image":
        out = folder.parent / "one"
        out.mkdir()
        Image.new("L", (8, 8)).save(out / "a.png")
        return out, "holds 1 image; at least two"
    if kind == "mixed sizes":
        Image.new("L", (9, 8)).save(folder / "9" / "z.png")
        return folder, r"z.png is grey 8x9, but .* is grey 8x8"
    if kind == "mixed colours":
        Image.new("RGB", (8, 8)).save(folder / "9" / "z.png")
        return folder, r"z.png is colour 8x8, but .* is grey 8x8"
    if kind == "corrupt":
        (folder / "9" / "z.png").write_bytes((folder / "0" / "00.png").read_bytes()[:60])
        return folder, r"z.png cannot be read as an image \(.*truncated"
    if kind == "colour against grey":
        out = folder.parent / "colour"
        out.mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8)).save(out / f"{i}.png")
        return out, "3 colour images of 8x8 and digits holds 1500 grey images of 8x8"
    if kind == "NaN":
        images = TEST.images[:20, 0].numpy().copy()
        images[7, 2, 2] = np.nan
        np.savez(folder.parent / "nan.npz", images=images)
        return folder.parent / "nan.npz", "image 7 has a NaN"
    np.save(folder.parent / "few.npy", TEST.images[:5, 0].numpy())
    return folder.parent / "few.npy", "5 samples are too few; give at least 16"


KINDS = ["empty", "one image", "mixed sizes", "mixed colours", "corrupt", "colour against grey", "NaN", "too few"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_measured_is_said_in_a_sentence(folder, tmp_path, capsys, kind):
    source, why = spoiled(folder, kind)
    assert re.search(why, fails(capsys, tmp_path, source, "digits", *FAST))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--extractor", "incepton"], "did you mean 'inception'"),
        (["--metrics", "fidd"], "did you mean 'fid'"),
        (["--metrics", "fld"], "--held-out"),
        (["--n", "298"], "n=298 samples were asked for"),
        (["--extractor", "inception"], "fid_weights of mseitzer/pytorch-fid"),
        (["--extractor", "random", "--weights", "w.pth"], "random reads no weights; leave out w.pth"),
        (["--extractor", "pixels", "--weights", "w.pth"], "pixels reads no weights; leave out w.pth"),
        (["--labels", "LABELS"], "297 whole numbers from 0"),
        (["--labels", "missing.npy"], "missing.npy"),
    ],
)
def test_settings_that_cannot_be(samples, tmp_path, capsys, monkeypatch, words, why):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRILEMMA_INCEPTION", raising=False)
    np.save(tmp_path / "labels.npy", np.arange(5))
    words = [word.replace("LABELS", str(tmp_path / "labels.npy")) for word in words]
    assert why in fails(capsys, tmp_path, samples, "digits", *words)


def test_a_folder_that_cannot_be_is_found_before_the_work(samples, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "_open", lambda settings: pytest.fail("work was begun"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert evaluate(samples, "digits", *FAST, "--out", out) == 2
        assert f"{tmp_path / 'file'} is a file; name a folder by --out" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "why"), [(["--n", "1"], "n=1 must"), (["--batch", "0"], "batch=0 must")])
def test_numbers_that_cannot_be(words, why, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate(*words)
    assert why in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.slow
def test_two_processes_find_what_one_does(samples, tmp_path, monkeypatch):
    """Under torchrun, down to the last bit; batches are dealt unevenly; the classifier that one kept is read by two."""
    from trilemma.evaluate import extractors

    monkeypatch.setattr(extractors, "train_classifier", partial(extractors.train_classifier, steps=10))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port), "-m", "trilemma.cli"]
    words = ["evaluate", samples, "digits@test", "--cache", tmp_path / "cache", "--batch", "100", "--device", "cpu"]
    words = [*map(str, words), "--held-out", "digits@test", "--metrics", "fid,precision", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    (features,) = (tmp_path / "cache" / "features").iterdir()  # of the reference, which is held out too
    kept, _ = load_tensors(features)
    features.unlink()
    done = subprocess.run(
        [sys.executable, *run, *words, str(tmp_path / "two")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("protocol:") == 1  # one of them speaks
    again, _ = load_tensors(features)
    assert again.keys() == kept.keys() == {"features", "logits"}
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    two, one = (result(tmp_path / name) for name in ("two", "one"))
    assert [r["processes"] for r in (two, one)] == [2, 1]
    for key in ("metrics", "held_out_metrics", "stamp", "samples", "reference"):
        assert two[key] == one[key]
