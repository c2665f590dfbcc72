"""The commands on models of other families than diffusion."""

import json

import numpy as np
import pytest
import torch

from trilemma.baselines import GAMES, load_game
from trilemma.cli.config import from_flat, presets, read_yaml
from trilemma.cli.main import main
from trilemma.cli.train import Train, build_model, load_data
from trilemma.data import load

TINY = {
    "gan": ["widths=[4,8]", "latents=8"],
    "ddgan": ["widths=[8,16]", "critic_widths=[4,8]", "latents=8", "steps=2"],
}


def words(out, model, *more):
    common = [
        "train",
        "--model",
        model,
        "--net-options",
        *TINY[model],
        "--batch",
        "8",
        "--warmup",
        "0",
        "--precision",
        "fp32",
    ]
    return [str(word) for word in (*common, "--device", "cpu", "--out", out, *more)]


@pytest.mark.parametrize("model", sorted(TINY))
def test_train_resume_sample_and_info(model, tmp_path, capsys):
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert main(words(once, model, "--steps", "3", "--sample-every", "3")) == 0
    assert main(words(twice, model, "--steps", "2")) == 0
    assert main(["train", "--out", str(twice), "--resume", "--steps", "3"]) == 0
    for a, b in zip(load_game(once)[0].state_dict().values(), load_game(twice)[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (once / "samples/step_00000003.png").exists()
    rows = [json.loads(line) for line in (once / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "loss_discriminator" in rows[0]

    capsys.readouterr()
    assert main(["info", str(once)]) == 0
    assert f"{model}: discriminator" in capsys.readouterr().out
    for n, batch, out in ((6, 4, tmp_path / "a"), (3, 3, tmp_path / "b")):
        assert (
            main(["sample", str(once), "--n", str(n), "--batch", str(batch), "--device", "cpu", "--out", str(out)]) == 0
        )
    a, b = (np.load(tmp_path / name / "samples.npz") for name in "ab")
    assert a["images"].shape == (6, 8, 8, 1)
    assert a["labels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.abs(a["images"][:3].astype(int) - b["images"]).max() <= 1  # rounding of a convolution in another batch
    record = json.loads((tmp_path / "a/sample.json").read_text())
    assert record["model"] == model
    assert record["rule"] is None
    assert record["calls"] == 2 * load_game(once)[0].calls


def test_wrong_use_is_one_sentence(tmp_path, capsys, fails):
    run = tmp_path / "run"
    assert main(words(run, "gan", "--steps", "1", "--label-dropout", "0")) == 0
    assert "rule is for denoisers" in fails("sample", run, "--rule", "ddpm")
    assert "guidance is for denoisers" in fails("sample", run, "--guidance", "2")
    assert "label_dropout=0" in fails("sample", run, "--label", "none")
    assert "not a denoiser" in fails("tune", run)
    for command, purpose in (("likelihood", "likelihoods"), ("encode", "encodings"), ("interpolate", "interpolations")):
        err = fails(command, run, *(["--seeds", "1,2"] if command == "interpolate" else []))
        assert f"holds a model of the family gan; {purpose} need a denoiser" in err
    other = tmp_path / "other"
    assert "did you mean 'gan'" in fails("train", "--model", "gam", "--out", other)
    assert "target is for diffusion" in fails("train", "--model", "gan", "--target", "eps", "--out", other)
    assert "did you mean 'widths'" in fails("train", "--model", "gan", "--net-options", "width=3", "--out", other)
    assert not (other / "command.json").exists()


@pytest.mark.parametrize("name", [name for name in presets() if name.partition("-")[0] in GAMES])
def test_presets_build_and_say_what_they_reach(name):
    settings = from_flat(Train, read_yaml(name), source=name)
    side = int(name.rpartition("-")[2]) if name[-1].isdigit() else 8
    data = load_data(settings.data) if settings.data.data == "digits" else load("digits")
    if side != 8:
        data = data.subset(slice(0, 10))
        images = torch.nn.functional.interpolate(data.images, (side, side))
        data = type(data)(images, data.labels, data.class_names, source="digits, enlarged")
    game = build_model(settings.model, data, seed=0)
    assert game.family == name.partition("-")[0] == settings.model.model
    assert game.sample(2).shape == (2, *data.shape)
