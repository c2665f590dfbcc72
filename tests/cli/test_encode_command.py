"""``trilemma encode``, ``decode`` and ``interpolate``: what goes in comes out, and wrong input is one sentence."""

import numpy as np
import torch
from safetensors.torch import save_file

from trilemma.cli.main import main
from trilemma.data import load
from trilemma.sampling import sample
from trilemma.train import load_model


def test_reversible_latents_come_back_bit_for_bit(tiny_run, tmp_path, capsys, fails):
    file, out = tmp_path / "z.safetensors", tmp_path / "back"
    words = ["--n", "5", "--batch", "3", "--steps", "12", "--reversible", "--out", str(file)]
    assert main(["encode", str(tiny_run), *words]) == 0
    assert "0.0e+00 at most" in capsys.readouterr().out
    assert main(["decode", str(tiny_run), str(file), "--out", str(out)]) == 0
    data = load("digits", split="test")
    with np.load(out / "samples.npz") as found:
        assert np.array_equal(found["x"], data.model_units(slice(0, 5)).numpy())
        assert found["labels"].tolist() == data.labels[:5].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "z.safetensors"]  # nothing half written
    assert "is there already" in fails("decode", tiny_run, file, "--out", out)
    assert "leave out --steps" in fails("decode", tiny_run, file, "--steps", "9")


def test_seeds_are_those_of_sampling(tiny_run, tmp_path):
    """The ends of a row are what `sample` draws from the same seeds, up to the errors of two solvers."""
    out = tmp_path / "row"
    words = ["--seeds", "4,9", "--columns", "3", "--label", "3", "--steps", "60", "--out", str(out)]
    assert main(["interpolate", str(tiny_run), *words]) == 0
    model, _ = load_model(tiny_run)
    ends = sample(model, (2, 1, 8, 8), 100, seeds=[4, 9], cond={"label": torch.full((2,), 3)})
    with np.load(out / "samples.npz") as found:
        x = torch.from_numpy(found["x"])
    assert len(x) == 3
    assert float((x[[0, 2]] - ends).abs().max()) < 0.05
    assert float((x[1] - ends).abs().amax((1, 2, 3)).min()) > 0.1


def test_rows_begin_and_end_with_the_items(tiny_run, tmp_path):
    out = tmp_path / "rows"
    words = ["--between", "3,17", "5,9", "--columns", "4", "--out", str(out)]
    assert main(["interpolate", str(tiny_run), *words]) == 0
    items = load("digits", split="test").model_units()
    with np.load(out / "samples.npz") as found:
        x = torch.from_numpy(found["x"]).reshape(2, 4, 1, 8, 8)
    torch.testing.assert_close(x[:, 0], items[[3, 5]], rtol=0, atol=2e-3)
    torch.testing.assert_close(x[:, 3], items[[17, 9]], rtol=0, atol=2e-3)


def test_wrong_input_is_one_sentence(tiny_run, tmp_path, fails):
    file = tmp_path / "z.safetensors"
    for words, why in (
        (["encode", tmp_path / "none"], "holds no model"),
        (["encode", tiny_run, "--steps", "3"], "steps=3 must be at least 4"),
        (["encode", tiny_run, "--out", "z.pt"], "must end in .safetensors"),
        (["encode", tiny_run, "--out", tmp_path / "no" / "z.safetensors"], "there is no folder"),
        (["encode", tiny_run, "--data", "digit"], "did you mean 'digits'"),
        (["encode", tiny_run, "--label", "12", "--out", file], "unknown class '12'"),
        (["decode", tiny_run, file], "there is no file"),
        (["interpolate", tiny_run], "say what to go between"),
        (["interpolate", tiny_run, "--between", "3"], "'3' is no pair"),
        (["interpolate", tiny_run, "--between", "3,999"], "there is no item 999"),
        (["interpolate", tiny_run, "--between", "1,2", "--seeds", "1,2"], "say what to go between"),
        (["interpolate", tiny_run, "--seeds", "1,2", "--columns", "1"], "columns=1 must be at least 2"),
    ):
        assert why in fails(*words), words
    np.save(tmp_path / "big.npy", np.zeros((3, 16, 16), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None])
    err = fails("encode", tiny_run, "--data", tmp_path / "big.npy", "--split", "train")
    assert "images of 1x16x16" in err
    for tensors, why in (
        ({"x": torch.zeros(2)}, "no latents, z"),
        ({"z": torch.zeros(2, 3)}, "(N, 1, 8, 8) is needed"),
        ({"z": torch.full((1, 1, 8, 8), float("nan"))}, "finite"),
        ({"z": torch.zeros(1, 1, 8, 8)}, "--label none, or the class"),
        ({"z": torch.zeros(1, 1, 8, 8), "labels": torch.tensor([70])}, "labels go up to 70"),
    ):
        save_file(tensors, file)
        assert why in fails("decode", tiny_run, file), why
    file.write_bytes(b"not tensors")
    assert "cannot be read" in fails("decode", tiny_run, file)
    assert not list(tiny_run.glob("*decoded*"))
