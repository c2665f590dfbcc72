"""The program as its users meet it: exit codes, one-sentence errors, and runs from end to end."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.cli import config, contenders, demo
from trilemma.cli.main import COMMANDS, main
from trilemma.data import load
from trilemma.process import VP, Shifted
from trilemma.train import load_model

PROGRAM = [sys.executable, "-m", "trilemma.cli"]
TINY = ["--net", "unet", "--net-options", "widths=[16,16]", "blocks=1", "attention=[]", "--batch", "8"]


def launch(*words, **kwargs):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*PROGRAM, *map(str, words)], capture_output=True, text=True, env=env, timeout=300, **kwargs)


# ---------------------------------------------------------------- help, names, errors


def test_help_and_parsing_import_neither_torch_nor_numpy():
    for words in (["--help"], ["train", "--help"], ["sample", "--help"], ["tune", "--help"], ["demo", "--help"]):
        code = (
            "import sys; from trilemma.cli.main import main\n"
            f"try: main({words})\nexcept SystemExit as stop: assert stop.code == 0\n"
            "assert not {'torch', 'numpy', 'PIL', 'sklearn'} & set(sys.modules), 'heavy import'"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "trilemma" in done.stdout


def test_help_names_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_every_setting_is_explained():
    for name in COMMANDS:
        text = launch(name, "--help").stdout
        options = [line for line in text.splitlines() if line.startswith("│ --")]
        assert options or name == "info"
        assert "(default: " in text


def test_wrong_words_exit_with_2_and_name_the_nearest():
    done = launch("trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'train'?" in done.stderr
    done = launch("train", "--stepz", 3)
    assert done.returncode == 2
    assert "--steps" in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_one_sentence_and_the_switch_shows_where(capsys, monkeypatch, tmp_path, fails):
    out = ["--out", tmp_path / "run"]
    assert "did you mean 'digits'" in fails("train", "--data", "digit", *out)
    assert "did you mean 'flow'" in fails("train", "--process", "flwo", *out)
    assert "did you mean 'beta_max'" in fails("train", "--process", "vp:beta_mx=10", *out)
    assert "did you mean 'unet-tiny'" in fails("train", "--net", "unet-tny", *out)
    assert "did you mean 'widths'" in fails("train", "--net", "unet", "--net-options", "width=[8]", *out)
    assert "name=value" in fails("train", "--net-options", "widths", *out)
    for flag, value in [("--save-every", "0"), ("--steps", "-3"), ("--lr", "fast"), ("--decay", "never")]:
        with pytest.raises(SystemExit, match="2"):
            main(["train", flag, value])
        err = capsys.readouterr().err
        assert value.lstrip("-") in err
        assert "Traceback" not in err
    assert "holds no model" in fails("sample", tmp_path / "nothing")
    assert "did you mean 'dpmpp_2m'" in fails("sample", tmp_path, "--rule", "dpmp_2m")
    assert "device='warp'" in fails("sample", tmp_path, "--device", "warp")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("TRILEMMA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="digit"):
        main(["train", "--data", "digit"])


def test_bugs_are_not_hidden(monkeypatch):
    from trilemma.cli import info

    def broken(settings):
        raise KeyError("a bug")

    monkeypatch.setattr(info, "run", broken)
    with pytest.raises(KeyError):
        main(["info"])


def test_info_lists_every_registry(capsys):
    from trilemma.nets import PRESETS
    from trilemma.process import GRIDS, PROCESSES
    from trilemma.sampling import RULES

    assert main(["info"]) == 0
    words = capsys.readouterr().out.split()
    assert {*PRESETS, *PROCESSES, *GRIDS, *RULES, "beta_max=20.0"} <= {word.strip(",") for word in words}


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["train", "--out", str(out), *TINY, "--steps", "6", "--save-every", "4", "--sample-every", "3"]
    assert main(words) == 0
    return out


def test_a_run_says_what_it_is(trained, capsys, fails):
    config = json.loads((trained / "config.json").read_text())
    assert (config["steps"], config["data"], config["net_options"][0]) == (6, "digits", "widths=[16,16]")
    assert [json.loads(line)["step"] for line in (trained / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert sorted(path.name for path in (trained / "samples").iterdir()) == ["step_00000003.png", "step_00000006.png"]
    assert [path.name for path in sorted((trained / "checkpoints").iterdir())] == ["step_00000004", "step_00000006"]
    assert main(["info", str(trained)]) == 0
    text = capsys.readouterr().out
    assert "step 6, loss" in text
    assert "digits (train): 1500 images of 1x8x8" in text
    assert "already holds a run" in fails("train", "--out", trained, *TINY)


def test_samples_come_with_their_record_and_can_be_read_back(trained, tmp_path, capsys):
    out = tmp_path / "drawn"
    words = [
        "sample",
        str(trained),
        "--n",
        "6",
        "--steps",
        "3",
        "--label",
        "3",
        "7",
        "--guidance",
        "2",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    data = load(str(out / "samples.npz"))
    assert (len(data), data.shape) == (6, (1, 8, 8))
    assert data.labels.tolist() == [3, 7, 3, 7, 3, 7]
    assert data.class_names == tuple("0123456789")
    record = json.loads((out / "sample.json").read_text())
    assert (record["calls"], record["rule"], record["guidance"]) == (6, "angular", 2.0)  # two calls a step
    with Image.open(out / "grid.png") as picture:
        picture.verify()


def test_an_image_depends_on_its_seed_alone(trained, tmp_path):
    words = ["sample", str(trained), "--steps", "2", "--rule", "ddpm", "--precision", "fp32", "--seed", "5"]
    for name, more in {"all": ["--n", "7"], "batched": ["--n", "7", "--batch", "3"], "few": ["--n", "4"]}.items():
        assert main([*words, *more, "--out", str(tmp_path / name)]) == 0
    sets = {name: load(str(tmp_path / name / "samples.npz")).images for name in ("all", "batched", "few")}
    assert torch.equal(sets["all"], sets["batched"])
    assert torch.equal(sets["all"][:4], sets["few"])


def test_samples_without_out_go_to_a_fresh_folder(trained, fails):
    for _ in range(2):
        assert main(["sample", str(trained), "--n", "2", "--steps", "1"]) == 0
    assert (trained / "drawn" / "grid.png").exists()
    assert (trained / "drawn-2" / "grid.png").exists()
    assert "unknown class '12'" in fails("sample", trained, "--label", "12")


def test_resume_goes_on_with_the_settings_of_the_run(trained, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    assert main(["train", "--out", str(copy), "--resume", "--steps", "8"]) == 0
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert json.loads((copy / "config.json").read_text())["net_options"][0] == "widths=[16,16]"


def test_a_process_with_settings_is_kept_by_the_run(tmp_path):
    out, entry = tmp_path / "run", "vp:beta_max=10,shift=-1.5"
    assert main(["train", "--out", str(out), *TINY, "--steps", "1", "--process", entry]) == 0
    assert main(["train", "--out", str(out), "--resume", "--steps", "2"]) == 0
    assert json.loads((out / "config.json").read_text())["process"] == entry
    process = Shifted(VP(beta_max=10.0), -1.5)
    assert load_model(out)[0].process == process
    assert main(["sample", str(out), "--n", "2", "--steps", "1"]) == 0
    assert json.loads((out / "drawn" / "sample.json").read_text())["process"] == str(process)


def test_training_without_labels_and_on_a_folder(tmp_path, capsys, fails):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "x.png").write_bytes(b"broken")
    out = tmp_path / "run"
    words = ["train", "--data", tmp_path / "photos", "--resize", "8", "--out", out, *TINY, "--steps", "2"]
    assert "x.png" in fails(*words)
    assert main([*map(str, words), "--on-error", "skip"]) == 0
    assert "skipped x.png" in capsys.readouterr().err
    assert main(["sample", str(out), "--n", "2", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    assert load(str(tmp_path / "s" / "samples.npz")).shape == (3, 8, 8)
    assert "knows no classes" in fails("sample", out, "--label", "1")
    assert "needs labels" in fails("sample", out, "--guidance", "2")
    digits = ["train", "--no-conditional", "--out", str(tmp_path / "plain"), *TINY, "--steps", "1"]
    assert main(digits) == 0
    assert main(["sample", str(tmp_path / "plain"), "--n", "2", "--steps", "1"]) == 0


def test_a_run_that_never_hid_a_label_is_not_asked_without_one(tmp_path, fails):
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *TINY, "--steps", "1", "--label-dropout", "0"]) == 0
    for path in (out, out / "checkpoints" / "step_00000001"):
        for words in (["--guidance", "2"], ["--guidance", "0"], ["--label", "3", "none"]):
            assert "never saw any: it was trained with label_dropout=0" in fails("sample", path, *words)
    assert "is itself a run" in fails("demo", "--out", out)
    assert main(["sample", str(out), "--n", "2", "--steps", "1", "--label", "3"]) == 0


@pytest.mark.slow
def test_interrupt_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    words = ["train", "--out", str(out), *TINY, "--steps", "100000", "--save-every", "100000", "--sample-every", "0"]
    running = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    metrics = out / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and metrics.stat().st_size > 0:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert f"trilemma train --out {out} --resume" in told
    done = len(metrics.read_text().splitlines())
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step_{done:08d}"]


# ---------------------------------------------------------------- the demo


@pytest.mark.slow
def test_demo_writes_a_report_that_is_whole_and_self_contained(tmp_path, capsys, monkeypatch):
    """With a small network, timed once, however short it is: how times are taken, other tests tell."""
    monkeypatch.setattr(contenders, "_WARM", 0.0)
    preset, small = config.read_yaml, {"net": "unet", "net_options": ["widths=[8,8]", "blocks=1", "attention=[]"]}
    monkeypatch.setattr(config, "read_yaml", lambda name: preset(name) | (small if name == "digits" else {}))
    studied, study = [], demo._study
    monkeypatch.setattr(demo, "_study", lambda *given: studied.append(study(*given)) or studied[-1])
    out = tmp_path / "demo"
    few = ["--steps", "2", "--vae-steps", "2", "--gan-steps", "2", "--chain", "3", "--tuned", "0", "--bits", "4"]
    words = ["demo", "--out", str(out), *few, "--classifier-steps", "10", "--n", "20"]
    assert main(words) == 0
    sections = {
        "story": "What was found|Samples|Guidance|Forward|Reverse|Quality against cost|The loss by noise level|"
        "New digits or copies?|All figures|How this was made",
        "report": "What was found|Quality against cost|The triangle|Samples|New, or copies?|All figures|How this was made",
    }
    for name, titles in sections.items():
        page = (out / f"{name}.html").read_text()
        for title in titles.split("|"):
            assert title in page, title
        assert page.count("<img ") == page.count('src="data:image/png;base64,')
        assert "http" not in page
        assert "<script" not in page
    assert 'href="story.html"' in (out / "report.html").read_text()
    figures = json.loads((out / "story.json").read_text())
    calls = {key: m["calls"] for key, m in figures["methods"].items()}
    assert calls == {"ddpm": 3, "ddim": 50, "dpmpp_2m": 10, "guidance_0": 20, "guidance_1": 20, "guidance_3": 40}
    assert figures["floor"]["frechet_distance"] > 0
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["family"] for row in rows] == ["diffusion"] * 3 + ["vae", "gan"]
    assert [row["calls"] for row in rows] == [3, 50, 10, 1, 1]
    assert [row["bits_per_dim"] is None for row in rows] == [False] * 4 + [True]
    # the story shows the very samples of the report, against digits that are not rounded to bytes
    assert figures["methods"]["ddim"]["frechet_distance"] == pytest.approx(rows[1]["metrics"]["fid"]["value"], rel=5e-3)
    assert len(list((out / "samples").glob("*.png"))) == len(rows) + len(calls)
    capsys.readouterr()
    drawn = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    monkeypatch.setattr(demo, "_study", lambda *given: studied[0])  # which takes half of the time
    assert main(words) == 0  # again: nothing is trained or drawn twice
    assert {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()} == drawn
    for family in ("diffusion", "vae", "gan"):
        assert len((out / family / "metrics.jsonl").read_text().splitlines()) == 2
