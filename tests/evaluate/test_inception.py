"""The Inception network against a second one, written from the published names with unfused normalisation and slow pooling."""

import math
import pickle
import re

import pytest
import torch
from torch.nn import functional as F

from trilemma.evaluate.inception import LAYERS, NAMES, Inception, find_weights, fold, read_weights, resize_tf1
from trilemma.evaluate.pretrained import inception


@pytest.mark.parametrize(
    ("height", "width", "side"), [(2, 3, 7), (8, 8, 299), (13, 5, 4), (31, 30, 29), (6, 6, 6), (1, 1, 3)]
)
def test_resize_is_tensorflows(height, width, side):
    """Pixel i reads at i n/n', without half pixels; what is beyond the last pixel is the last pixel."""
    x = torch.rand(1, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = resize_tf1(x, side)
    rows = range(side) if side < 50 else range(0, side, 37)
    for i in rows:
        for j in rows:
            y, z = i * height / side, j * width / side
            top, left = math.floor(y + 1e-6), math.floor(z + 1e-6)
            down, right = min(top + 1, height - 1), min(left + 1, width - 1)
            p, q = y - top, z - left
            expected = (1 - p) * ((1 - q) * x[..., top, left] + q * x[..., top, right]) + p * (
                (1 - q) * x[..., down, left] + q * x[..., down, right]
            )
            assert torch.allclose(got[..., i, j], expected, atol=1e-5)


def test_resize_by_two_repeats_its_edge():
    """[a, (a+b)/2, b, b]: the well known fault of TensorFlow 1's resize, which both of torch's kinds do not have."""
    x = torch.tensor([2.0, 6.0]).reshape(1, 1, 1, 2)
    assert resize_tf1(x, 4)[0, 0, 0].tolist() == [2, 4, 6, 6]
    same = torch.rand(1, 3, 5, 5)
    assert torch.equal(resize_tf1(same, 5), same)


def random_file():
    """Weights under the published names, with normalisation far from the identity."""
    draw = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = Inception().state_dict()
    out = {"fc.weight": torch.randn(1008, 2048, generator=draw) / 45, "fc.bias": torch.randn(1008, generator=draw)}
    for key, value in shapes.items():
        if key.endswith(".weight") and key != "fc.weight":
            name = key.removesuffix(".weight")
            out[f"{name}.conv.weight"] = torch.randn(value.shape, generator=draw) * math.sqrt(
                2 / math.prod(value.shape[1:])
            )
            uniform = torch.rand(4, len(value), generator=draw)
            out[f"{name}.bn.weight"], out[f"{name}.bn.bias"] = uniform[0] + 0.5, uniform[1] - 0.5
            out[f"{name}.bn.running_mean"], out[f"{name}.bn.running_var"] = uniform[2] - 0.5, uniform[3] + 0.5
            out[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    return out


def second(stored, images):
    """Every layer's features and the logits, from the table of the paper and TensorFlow's two departures from it."""
    x = resize_tf1(images.float(), 299) / 128 - 1
    out = {}

    def layer(x, name, **how):
        bn = [stored[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(F.conv2d(x, stored[f"{name}.conv.weight"], **how), *bn, eps=0.001).clamp(min=0)

    def average(x):
        """A mean over the pixels that are there: sums by unfolding, divided by how many were inside."""
        n, c, h, w = x.shape
        total = F.unfold(x.reshape(n * c, 1, h, w), 3, padding=1).sum(1).reshape(n, c, h, w)
        return total / F.unfold(torch.ones(1, 1, h, w), 3, padding=1).sum(1).reshape(h, w)

    def maximum(x):
        h, w = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1), value=-math.inf)
        return torch.stack([padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]).amax(0)

    def down(x):
        return maximum(x)[:, :, 1:-1:2, 1:-1:2]

    def line(x, block, *steps):
        for name, pad in steps:
            x = layer(x, f"{block}.{name}", padding=pad)
        return x

    x = layer(x, "Conv2d_1a_3x3", stride=2)
    x = layer(layer(x, "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
    x = down(x)
    out["64"] = x.mean((2, 3))
    x = down(layer(layer(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"))
    out["192"] = x.mean((2, 3))
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = torch.cat(
            [
                line(x, b, ("branch1x1", 0)),
                line(x, b, ("branch5x5_1", 0), ("branch5x5_2", 2)),
                line(x, b, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1), ("branch3x3dbl_3", 1)),
                line(average(x), b, ("branch_pool", 0)),
            ],
            1,
        )
    b = "Mixed_6a"
    double = line(x, b, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
    x = torch.cat([layer(x, f"{b}.branch3x3", stride=2), layer(double, f"{b}.branch3x3dbl_3", stride=2), down(x)], 1)
    row, column = (0, 3), (3, 0)
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        first = line(x, b, ("branch1x1", 0))
        if b == "Mixed_6d":
            out["spatial"] = first[:, :7].flatten(1)
        names = [f"branch7x7dbl_{i}" for i in range(1, 6)]
        x = torch.cat(
            [
                first,
                line(x, b, ("branch7x7_1", 0), ("branch7x7_2", row), ("branch7x7_3", column)),
                line(x, b, *zip(names, (0, column, row, column, row))),
                line(average(x), b, ("branch_pool", 0)),
            ],
            1,
        )
    out["768"] = x.mean((2, 3))
    b = "Mixed_7a"
    three = layer(line(x, b, ("branch3x3_1", 0)), f"{b}.branch3x3_2", stride=2)
    seven = line(x, b, ("branch7x7x3_1", 0), ("branch7x7x3_2", row), ("branch7x7x3_3", column))
    x = torch.cat([three, layer(seven, f"{b}.branch7x7x3_4", stride=2), down(x)], 1)
    for b, pool in (("Mixed_7b", average), ("Mixed_7c", maximum)):
        three, double = line(x, b, ("branch3x3_1", 0)), line(x, b, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
        x = torch.cat(
            [
                line(x, b, ("branch1x1", 0)),
                line(three, b, ("branch3x3_2a", (0, 1))),
                line(three, b, ("branch3x3_2b", (1, 0))),
                line(double, b, ("branch3x3dbl_3a", (0, 1))),
                line(double, b, ("branch3x3dbl_3b", (1, 0))),
                line(pool(x), b, ("branch_pool", 0)),
            ],
            1,
        )
    out["2048"] = x.mean((2, 3))
    out["logits"] = out["2048"] @ stored["fc.weight"].T
    return out


@pytest.fixture(scope="module")
def stored():
    return random_file()


@pytest.fixture(scope="module")
def file(stored, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / NAMES[0]
    torch.save(stored, path)
    return path


@torch.no_grad()
def test_every_layer_is_that_of_a_second_network(stored, file):
    net = read_weights(file, sha256=None)
    images = torch.randint(0, 256, (1, 3, 32, 41), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = second(stored, images)
    found = {layer: net(images, layer)[0] for layer in LAYERS}
    found["2048"], found["logits"] = net(images)
    for name, other in expected.items():
        assert other.std() > 0.05 * other.abs().max()  # else agreement would say little
        assert (found[name] - other).abs().max() < 2e-6 * other.abs().max(), name
    assert {name: value.shape[1] for name, value in found.items() if name != "logits"} == LAYERS


def test_folding_leaves_out_nothing(stored):
    folded = fold(stored)
    with torch.device("meta"):
        assert {k: v.shape for k, v in folded.items()} == {k: v.shape for k, v in Inception().state_dict().items()}


def test_the_extractor_shows_grey_as_colour_and_keeps_the_protocol(file, monkeypatch):
    monkeypatch.setattr("trilemma.evaluate.pretrained.read_weights", lambda path: read_weights(path, sha256=None))
    see = inception("192", weights=file)
    grey = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    a, b = see.read(grey), see.read(((grey.expand(-1, 3, -1, -1) + 1) * 127.5).round().byte())
    assert torch.equal(a.features, b.features)
    assert a.logits is None
    assert see.name == "inception-192"
    with pytest.raises(ValueError, match="not 2 channels"):
        see.read(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match="did you mean '2048'"):
        inception("2084")


def test_files_that_are_not_the_weights(stored, file, tmp_path):
    with pytest.raises(ValueError, match=r"sha256 \w{8}\.\.\., and the standard weights have 6726825d"):
        read_weights(file)
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": stored["fc.weight"]}, other)
    with pytest.raises(ValueError, match="does not hold the weights"):
        read_weights(other, sha256=None)
    torch.save({**stored, "Mixed_5b.branch1x1.conv.weight": torch.zeros(2, 2, 1, 1)}, other)
    with pytest.raises(ValueError, match="does not hold the weights"):
        read_weights(other, sha256=None)
    other.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of weights"):
        read_weights(other, sha256=None)
    mark = tmp_path / "executed"

    class Malice:
        def __reduce__(self):
            return (mark.touch, ())

    torch.save({"fc.weight": Malice()}, other, pickle_module=pickle)
    with pytest.raises(ValueError, match="not a file of weights"):
        read_weights(other, sha256=None)
    assert not mark.exists()


def test_where_weights_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("TRILEMMA_INCEPTION", raising=False)
    where = re.escape(str(tmp_path / "cache" / "weights"))
    with pytest.raises(FileNotFoundError, match=f"release fid_weights of mseitzer/pytorch-fid.*put it into {where}"):
        find_weights()
    hub = tmp_path / "torch" / "hub" / "checkpoints" / NAMES[1]
    for place in (hub, tmp_path / "cache" / "weights" / NAMES[0]):  # each goes before the one before it
        place.parent.mkdir(parents=True)
        place.touch()
        assert find_weights() == place
    monkeypatch.setenv("TRILEMMA_INCEPTION", str(tmp_path / "mine.pth"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"no file {tmp_path / 'mine.pth'}")):
        find_weights()
    (tmp_path / "mine.pth").touch()
    assert find_weights() == tmp_path / "mine.pth"
    with pytest.raises(FileNotFoundError, match=r"other\.pth"):
        find_weights(tmp_path / "other.pth")
