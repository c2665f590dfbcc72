"""One thread, no network, and nothing else: every test says itself what it needs. The answers to compare with are in oracles.py."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _global_random_state_is_left_alone():
    """No part of the library may draw from, or seed, the generator of torch; tests do not either."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random state of torch was touched"
