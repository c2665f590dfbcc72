import pytest
import torch
from torch.utils.data import Dataset

from trilemma.train.batches import Batches

CPU = torch.device("cpu")


def drawn(batches, spans):
    return [x for x, _ in batches.stream(iter(spans), CPU)]


def test_every_epoch_is_a_permutation_and_no_two_are_alike():
    batches = Batches(torch.arange(50.0), seed=3)
    epochs = [batches.indices(50 * e, 50 * (e + 1)) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(50))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_a_position_holds_the_same_item_however_it_is_reached():
    whole = Batches(torch.arange(7.0), seed=0).indices(0, 40)
    for cut in (1, 3, 8):
        batches = Batches(torch.arange(7.0), seed=0)
        parts = [batches.indices(at, min(at + cut, 40)) for at in range(0, 40, cut)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(Batches(torch.arange(7.0), seed=0).indices(30, 40), whole[30:])  # as after a restart
    assert not torch.equal(Batches(torch.arange(7.0), seed=1).indices(0, 40), whole)


def test_bytes_become_model_units_and_labels_follow_their_items():
    items = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1)
    x, label = next(Batches((items, torch.arange(3)), seed=0).stream(iter([(0, 3)]), CPU))
    torch.testing.assert_close(x[label.argsort()].flatten(), torch.tensor([-1.0, -0.6, 1.0]))


class Squares(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index % 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_map_style_dataset_gives_the_same_stream_as_a_tensor(workers):
    spans = [(0, 4), (4, 8), (8, 12)]
    state = torch.get_rng_state()
    from_dataset = list(Batches(Squares(), seed=5, workers=workers).stream(iter(spans), CPU))
    from_tensor = drawn(Batches(torch.arange(11.0)[:, None], seed=5), spans)
    for (x, label), y in zip(from_dataset, from_tensor, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(label, y.flatten().long() % 3)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness was used


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (torch.zeros(0, 2), "empty"),
        (torch.tensor([[0.0], [float("nan")], [float("inf")]]), "2 of 3"),
        ((torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64)), r"\(3,\)"),
        ((torch.zeros(3, 1), torch.zeros(3)), "int64"),
        (iter([1, 2, 3]), "iterator"),
    ],
)
def test_unusable_data_are_refused(data, word):
    with pytest.raises(ValueError, match=word):
        Batches(data, seed=0)
