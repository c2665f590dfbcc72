import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill.py"


@pytest.mark.timeout(300)
def test_a_run_survives_sigkill(tmp_path):
    """A small version of the benchmark, which kills twenty times."""
    spec = importlib.util.spec_from_file_location("kill", BENCHMARK)
    kill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill)
    outcome = kill.survive(tmp_path, kills=3, steps=120, save_every=5)
    assert outcome.kills == 3
    assert outcome.inspections >= 3
