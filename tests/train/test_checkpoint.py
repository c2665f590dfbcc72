import json
import os

import pytest
import torch
from torch import nn

from trilemma.denoise import Preconditioned
from trilemma.nets import MLP, build
from trilemma.process import EDM, VP, FromBetas, Shifted, linear_betas
from trilemma.train import checkpoint
from trilemma.train.checkpoint import CorruptError, load_model, save_model

FILES = {"state.json": {"step": 1}, "model.safetensors": {"w": torch.arange(5.0)}}


def steps(folder, *numbers):
    for number in numbers:
        checkpoint.write_folder(folder / f"step_{number:08d}", FILES)


def test_a_crash_while_writing_leaves_nothing_to_see(tmp_path, monkeypatch):
    steps(tmp_path, 1)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_flush", crash)
    with pytest.raises(KeyboardInterrupt):
        steps(tmp_path, 2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000001"]
    monkeypatch.undo()
    steps(tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == ["step_00000001", "step_00000003"]  # and the rest is cleared away


def test_a_crash_while_replacing_a_file_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.write_file(tmp_path / "config.json", {"version": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_file(tmp_path / "config.json", {"version": 2})
    assert checkpoint.read_json(tmp_path / "config.json") == {"version": 1}


@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "manifest"])
@pytest.mark.parametrize("name", list(FILES))
def test_damage_is_found_and_the_checkpoint_before_is_taken(tmp_path, name, damage):
    steps(tmp_path, 1, 2)
    victim = tmp_path / "step_00000002" / ("manifest.json" if damage == "manifest" else name)
    content = bytearray(victim.read_bytes())
    if damage == "delete":
        victim.unlink()
    elif damage == "flip":
        content[-2] ^= 1
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[:-3])
    with pytest.raises(CorruptError, match=str(victim.name)):
        checkpoint.verify(victim.parent)
    with pytest.warns(UserWarning, match="step_00000002 is damaged"):
        taken = checkpoint.newest(tmp_path, lambda path: (checkpoint.verify(path), path)[1])
    assert taken.name == "step_00000001"


def test_when_nothing_is_intact_every_damage_is_told(tmp_path):
    steps(tmp_path, 1, 2)
    for path in checkpoint.checkpoints(tmp_path):
        (path / "state.json").write_text("{")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CorruptError, match=r"(?s)step_00000002.*step_00000001"),
    ):
        checkpoint.newest(tmp_path, checkpoint.verify)


def test_old_checkpoints_are_pruned_and_steps_are_ordered_as_numbers(tmp_path):
    steps(tmp_path, 9, 10, 100_000_000, 99)
    (tmp_path / "step_notes").mkdir()
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_100000000", "step_00000099"]
    assert (tmp_path / "step_notes").exists()


@pytest.mark.parametrize(
    "process",
    [EDM(40.0), VP(0.2, 15.0), FromBetas(linear_betas(50)), Shifted(VP(), -1.0)],
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("target", ["edm", "v"])
def test_a_saved_model_is_the_same_function(tmp_path, process, target):
    net = build("unet-tiny", classes=3, widths=[8, 16], head_width=8)
    model = Preconditioned(net, process, target, sigma_data=0.3).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_model(model, tmp_path / "new" / "model", info={"classes": ["a", "b", "c"]})
    again, info = load_model(tmp_path / "new" / "model")
    assert info == {"classes": ["a", "b", "c"]}
    assert again.process == process
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7], dtype=torch.float64)
    label = torch.tensor([2, -1])
    assert torch.equal(again(x, t, label=label).mean, model(x, t, label=label).mean)
    assert not again.training


def test_nothing_is_pickled(tmp_path):
    save_model(Preconditioned(MLP(2, width=8, depth=1), EDM()), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    json.loads((tmp_path / "config.json").read_text())
    header = (tmp_path / "model.safetensors").read_bytes()
    json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


def test_a_network_of_ones_own_is_given_back_by_hand(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(2))

        def forward(self, x, c_time):
            return self.weight * x

    model = Preconditioned(Own(), EDM())
    save_model(model, tmp_path)
    with pytest.raises(ValueError, match="net="):
        load_model(tmp_path)
    again, _ = load_model(tmp_path, net=Own())
    assert torch.equal(again.net.weight, model.net.weight)


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 4)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CorruptError, match=r"config\.json"):
        load_model(tmp_path)
