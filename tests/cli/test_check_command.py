"""``trilemma check`` on a run of a few steps: it says so, keeps what it saw, and its exit status tells scripts."""

import json

import pytest

from trilemma.cli.main import main


@pytest.fixture(scope="module")
def young(tmp_path_factory):
    """A run of four updates with two checkpoints."""
    path = tmp_path_factory.mktemp("runs") / "young"
    words = ["--out", str(path), "--net", "unet", "--net-options", "widths=[8,8]", "blocks=1", "attention=[]"]
    flags = ["--steps", "4", "--batch", "16", "--sample-every", "0", "--save-every", "2", "--device", "cpu"]
    assert main(["train", *words, *flags]) == 0
    return path


def test_a_run_that_hardly_began(young, capsys):
    assert main(["check", str(young), "--items", "64", "--draws", "64", "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    kept = json.loads((young / "health" / "health.json").read_text())
    assert kept["healthy"] is False
    names = {finding["name"] for finding in kept["findings"]}
    assert names & {"half-trained", "labels", "time"}  # after four steps the time is not heard yet
    assert all(f"fault: {name}" in text for name in names)
    assert len(kept["levels"]) == 9
    assert (young / "health" / "levels.png").stat().st_size > 5000


def test_what_is_missing_is_said(tmp_path, young, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "no model" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", str(young), "--items", "3"])
    assert "items=3 must be at least 64" in capsys.readouterr().err
