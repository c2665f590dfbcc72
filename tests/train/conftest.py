import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_networks():
    """Networks draw their first weights from torch's generator: seed it for the test, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
