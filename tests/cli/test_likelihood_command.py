"""``trilemma likelihood``: the figures of the library, whole output, and wrong input in one sentence."""

import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.cli.items import open_run
from trilemma.cli.likelihood import LikelihoodOf
from trilemma.cli.main import main
from trilemma.data import load
from trilemma.denoise import Preconditioned
from trilemma.likelihood import TruncatedNormal, bits_per_dim, log_likelihood
from trilemma.nets import build
from trilemma.process import VP
from trilemma.train import load_model, save_model

QUICK = ["--n", "4", "--steps", "8"]


def test_bits_are_those_of_the_library(tiny_run, tmp_path, capsys):
    out = tmp_path / "found"
    words = [*QUICK, "--samples", "2", "--tau", "2.5", "--seed", "3", "--batch", "3", "--out", str(out)]
    assert main(["likelihood", str(tiny_run), *words]) == 0
    made = json.loads((out / "likelihood.json").read_text())
    data, (model, _) = load("digits", split="test"), load_model(tiny_run)
    k = (data.images[:4] * 8 + 8).round().long()
    ours = bits_per_dim(
        model, k, values=17, samples=2, dequantise=TruncatedNormal(2.5), seeds=3, steps=8, trace="orthogonal",
        cond={"label": data.labels[:4]},
    )  # fmt: skip
    torch.testing.assert_close(torch.tensor(made["per_image"]), ours.per_image.float(), rtol=1e-4, atol=1e-4)
    assert made["value"] == pytest.approx(ours.value, rel=1e-4)
    assert (made["values"], made["trace"], made["probe_stderr"]) == (17, "orthogonal", None)
    assert f"bits/dim     {made['value']:.4f}" in capsys.readouterr().out
    with Image.open(out / "images.png") as shown:
        shown.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


def test_points_have_a_field(tmp_path, fails, capsys):
    torch.manual_seed(0)
    model = Preconditioned(build("mlp", features=2, width=16), VP())
    save_model(model, tmp_path / "model", info={"shape": [2]})
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.save(tmp_path / "points.npy", points)
    out = tmp_path / "found"
    words = ["--data", str(tmp_path / "points.npy"), "--steps", "8", "--batch", "2", "--out", str(out)]
    assert main(["likelihood", str(tmp_path / "model"), *words]) == 0
    assert re.search(r"likelihood: .*/3 \[", capsys.readouterr().err)  # a bar of points, too: three batches
    made = json.loads((out / "likelihood.json").read_text())
    exact = log_likelihood(
        load_model(tmp_path / "model")[0], torch.tensor(points, dtype=torch.float32), steps=8
    ).log_prob
    np.testing.assert_allclose(made["points"], exact.numpy(), atol=1e-4)
    assert made["stderr"] == pytest.approx(float(exact.std()) / math.sqrt(5), rel=1e-4)
    with Image.open(out / "field.png") as shown:
        shown.verify()
    np.save(tmp_path / "points.npy", points[:, :1])
    assert "(N, 2) numbers are needed" in fails("likelihood", tmp_path / "model", *words[:2])
    assert "give them as a .npy file" in fails("likelihood", tmp_path / "model")


def test_one_image_has_no_interval(tiny_run, tmp_path, capsys):
    """What is not known is null in the record, and said in words; the file is JSON for everybody."""
    out = tmp_path / "found"
    assert main(["likelihood", str(tiny_run), "--n", "1", "--steps", "8", "--out", str(out)]) == 0

    def strict(constant):
        raise AssertionError(constant)

    made = json.loads((out / "likelihood.json").read_text(), parse_constant=strict)
    assert made["interval"] == [None, None]
    assert made["stderr"] is made["gap"] is None
    assert "not known" in capsys.readouterr().out


def test_a_device_without_float64_is_refused(tiny_run, monkeypatch, fails):
    monkeypatch.setattr("trilemma.cli.items.pick_device", lambda name: torch.device("cpu" if name == "cpu" else "mps"))
    assert "has no float64, which likelihoods need; take cpu" in fails("likelihood", tiny_run, "--device", "mps")
    assert open_run(LikelihoodOf(str(tiny_run)), "likelihoods").device.type == "cpu"  # auto


def test_wrong_input_is_one_sentence(tiny_run, tmp_path, fails):
    for words, why in (
        (["--guidance", "2"], "not for likelihoods"),
        (["--trace", "exakt"], "did you mean 'exact'"),
        (["--dequantise", "normal"], "unknown dequantise"),
        (["--tau", "0", "--dequantise", "uniform"], "tau=0 chooses a level for truncated_normal only"),
        (["--tau", "50"], "tau=50 must lie between"),
        (["--steps", "4"], "steps=4 must be 8 or more"),
        (["--samples", "0"], "samples=0 must be at least 1"),
        (["--values", "9"], "not made of 9 equally spaced values"),
        (["--steps", "0", "--trace", "orthogonal", "--n", "2"], "needs a fixed grid"),
        (["--label", "eleven"], "unknown class 'eleven'"),
        (["--device", "gpu9"], "cannot be used here"),
        (["--split", "tset"], "is not 'train', 'test' or 'all'"),
    ):
        assert why in fails("likelihood", tiny_run, *words), words
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(size=(3, 8, 8)))
    bad = ["--data", tmp_path / "x.npy", "--split", "train", "--label", "none"]
    assert "no grid of up to 256 values" in fails("likelihood", tiny_run, *bad)
    assert not list(tiny_run.glob("*likelihood*"))  # nothing half written
