"""One thread and no network, in every test, and what the tests of the commands share. Answers to compare with: oracles.py."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRILEMMA_CACHE"] = "none"  # features of one test are not read by another

import pytest
import torch

torch.set_num_threads(1)

TINY = ["--net", "unet", "--net-options", "widths=[8,8]", "blocks=1", "attention=[]", "--batch", "8"]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run of four updates on digits; nobody writes into it."""
    from trilemma.cli.main import main

    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--out", str(out), *TINY, "--steps", "4", "--sample-every", "0"]) == 0
    return out


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; returns its one sentence, or what the parser says in its box."""
    from trilemma.cli.main import main

    def sentence(*words):
        capsys.readouterr()
        parsed = True
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            parsed, status = False, stop.code
        assert status == 2
        said = capsys.readouterr().err
        if not parsed:
            return " ".join(said.replace("│", " ").split())
        *before, last = said.replace("\r", "\n").splitlines()
        assert last.startswith("trilemma: ")
        assert all("%|" in line or not line.strip() for line in before)  # nothing but progress
        return last

    return sentence
