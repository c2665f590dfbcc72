"""Round trips through files made here, and one clear sentence for everything that can be wrong with them."""

import gzip
import struct
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data import DataSet, load
from trilemma.data.arrays import from_arrays, to_nchw
from trilemma.data.idx import read_idx


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def write_idx(path, array, code=0x08):
    body = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)


def write_images(folder, arrays, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:03d}{suffix}")


# ---------------------------------------------------------------- digits and splits


def test_digits_are_the_real_ones_and_the_split_loses_none():
    from sklearn.datasets import load_digits

    raw = load_digits()
    train, test, whole = (load("digits", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test)) == (1500, 297)
    assert torch.equal((whole.images[:, 0] + 1) * 8, torch.from_numpy(raw.images).float())
    assert whole.labels.tolist() == raw.target.tolist()
    both = torch.cat([train.images, test.images]).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.images.flatten(1).tolist()))
    expected = whole.labels.bincount() * 297 / 1797
    assert ((test.labels.bincount() - expected).abs() < 1).all()


def test_split_is_stratified_fixed_by_its_seed_and_keeps_pairs(rng):
    labels = torch.tensor([0] * 70 + [1] * 30)
    images = labels.reshape(-1, 1, 1, 1).to(torch.uint8).expand(-1, 1, 2, 2) * 100
    data = DataSet(images, labels, ("a", "b"))
    train, test = data.split(0.1, seed=3)
    assert (len(train), len(test)) == (90, 10)
    assert test.labels.bincount().tolist() == [7, 3]
    assert torch.equal(test.images[:, 0, 0, 0].long(), test.labels * 100)
    assert torch.equal(data.split(10, seed=3)[1].images, test.images)
    with pytest.raises(ValueError, match="held_out=100"):
        data.split(100)


def test_model_units_and_uint8_are_inverse():
    from trilemma.data.pixels import to_uint8

    every = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    data = DataSet(every)
    assert torch.equal(to_uint8(data.model_units()), every)
    assert data.model_units().min() == -1
    assert data.model_units().max() == 1
    assert data.images.dtype == torch.uint8  # conversion did not write into the stored images
    assert data.model_units([3]).shape == (1, 1, 1, 1)


def test_data_set_refuses_parts_that_do_not_fit():
    x = torch.zeros(3, 1, 2, 2)
    for args, why in [
        ((x.double(),), "float64"),
        ((x[0],), "N, C, H, W"),
        ((x, torch.zeros(3, dtype=torch.int64)), "come together"),
        ((x, torch.zeros(2, dtype=torch.int64), ("a",)), r"\(3,\)"),
        ((x, torch.tensor([0, 1, 2]), ("a", "b")), "0 to 2"),
    ]:
        with pytest.raises(ValueError, match=why):
            DataSet(*args)


# ---------------------------------------------------------------- arrays


def test_npz_round_trip_with_splits_labels_and_names(tmp_path, rng):
    train, test = rng.integers(0, 256, (6, 5, 4, 3), np.uint8), rng.integers(0, 256, (4, 5, 4, 3), np.uint8)
    y_train, y_test = np.array([0, 1, 2, 0, 1, 2], np.uint8), np.array([2, 1, 0, 0], np.uint8)
    path = tmp_path / "a.npz"
    names = np.array(["cat", "dog", "eel"])
    np.savez(path, train_images=train, train_labels=y_train, test_images=test, test_labels=y_test, class_names=names)
    data = load(str(path))
    assert data.images.dtype == torch.uint8
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), train)
    assert data.labels.tolist() == y_train.tolist()
    assert data.class_names == ("cat", "dog", "eel")
    assert np.array_equal(load(str(path), split="test").images.permute(0, 2, 3, 1).numpy(), test)
    assert load(str(path), split="all").labels.tolist() == [*y_train, *y_test]


def test_npy_of_floats_in_unit_range(tmp_path, rng):
    x = rng.random((3, 1, 5, 5))
    np.save(tmp_path / "x.npy", x)
    data = load(str(tmp_path / "x.npy"))
    assert data.labels is None
    assert torch.allclose(data.images, torch.from_numpy(2 * x - 1).float())


def test_floats_already_in_model_units_stay(rng):
    x = rng.uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32)
    assert torch.equal(from_arrays(x).images, torch.from_numpy(x))


def test_value_range_maps_any_scale():
    x = np.array([0, 8, 16], np.int64).reshape(3, 1, 1)
    assert from_arrays(x, value_range=(0, 16)).images.flatten().tolist() == [-1, 0, 1]
    with pytest.raises(ValueError, match="0 to 16, outside"):
        from_arrays(x, value_range=(0, 8))


@pytest.mark.parametrize(
    ("shape", "layout", "result"),
    [
        ((2, 8, 9), None, (2, 1, 8, 9)),
        ((2, 3, 8, 9), None, (2, 3, 8, 9)),
        ((2, 8, 9, 3), None, (2, 3, 8, 9)),
        ((2, 3, 9, 3), "NHWC", (2, 3, 3, 9)),
        ((2, 3, 9, 3), "NCHW", (2, 3, 9, 3)),
    ],
)
def test_layout_is_read_where_it_can_be(shape, layout, result):
    array = np.arange(np.prod(shape)).reshape(shape)
    out = to_nchw(array, layout)
    assert out.shape == result
    if shape[-1] == 3 and result[1] == 3 and layout != "NCHW":
        assert out[1, 2, 0, 1] == array[1, 0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"images": np.zeros((2, 3, 9, 3), np.uint8)}, "both axes could be the channels; say layout"),
        ({"images": np.zeros((2, 8, 9, 7), np.uint8)}, "neither axis"),
        ({"images": np.zeros((2, 8), np.uint8)}, "3 axes"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "no image"),
        ({"images": np.full((1, 8, 8), 7, np.uint8)}, "at least two"),
        ({"images": np.full((2, 8, 8), 7.0)}, r"value_range=\(0, 255\)"),
        ({"images": np.ones((2, 8, 8), np.uint8)}, r"value_range=\(0, 1\)"),
        ({"images": np.zeros((2, 8, 8)), "labels": np.zeros(3, int)}, "do not fit 2"),
        ({"images": np.zeros((2, 8, 8)), "labels": np.array([0, -1])}, "count from 0"),
        ({"images": np.zeros((2, 8, 8)), "labels": np.zeros(2)}, "whole numbers"),
        ({"weights": np.zeros(3), "other": np.zeros(2)}, "weights, other"),
    ],
)
def test_arrays_that_cannot_be_images(tmp_path, arrays, why):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=why):
        load(str(tmp_path / "a.npz"))


def test_nan_is_named_or_skipped(tmp_path):
    x = np.zeros((4, 2, 2), np.float32)
    x[2, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="image 2 has a NaN"):
        load(str(tmp_path / "a.npz"))
    data = load(str(tmp_path / "a.npz"), on_error="skip")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.skipped == ("image 2: a NaN or infinity",)


def test_pickles_and_garbage_are_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "g.npz").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "e.npy").write_bytes(b"")
    for name, why in [("o.npy", "pickled"), ("g.npz", "numpy file"), ("e.npy", "numpy file")]:
        with pytest.raises(ValueError, match=why):
            load(str(tmp_path / name))


# ---------------------------------------------------------------- IDX


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_round_trip(tmp_path, rng, end):
    sets = {stem: (rng.integers(0, 256, (n, 7, 6), np.uint8), rng.integers(0, 3, n, np.uint8)) for stem, n in
            [("train", 5), ("t10k", 3)]}  # fmt: skip
    for stem, (x, y) in sets.items():
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte{end}", x)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{end}", y)
    for source in (str(tmp_path), f"idx:{tmp_path}"):
        train, test = load(source), load(source, split="test")
        assert np.array_equal(train.images[:, 0].numpy(), sets["train"][0])
        assert np.array_equal(test.images[:, 0].numpy(), sets["t10k"][0])
        assert test.labels.tolist() == sets["t10k"][1].tolist()
    alone = load(str(tmp_path / f"train-images-idx3-ubyte{end}"))
    assert alone.labels.tolist() == sets["train"][1].tolist()
    assert len(load(str(tmp_path), split="all")) == 8


def test_idx_reads_every_type_big_endian(tmp_path):
    for code, kind in [(0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")]:
        values = np.array([[1, -2], [3, 100]], dtype=kind)
        write_idx(tmp_path / "v", values, code)
        assert np.array_equal(read_idx(tmp_path / "v"), values)


def test_damaged_idx(tmp_path):
    whole = tmp_path / "whole-idx3-ubyte"
    write_idx(whole, np.zeros((2, 4, 4), np.uint8))
    raw = whole.read_bytes()
    for body, why in [
        (raw[:-1], "promises 48"),
        (raw + b"\0", "promises 48"),
        (raw[:9], "ends within"),
        (b"\x89PNG", "not an IDX"),
        (b"", "nothing"),
        (gzip.compress(raw)[:-9], "damaged gzip"),
    ]:
        path = tmp_path / "bad-idx3-ubyte"
        path.write_bytes(body)
        with pytest.raises(ValueError, match=why):
            load(str(path))
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        load(str(tmp_path), split="test")


# ---------------------------------------------------------------- folders


def test_folder_with_classes_is_sorted_and_exact(tmp_path, rng):
    pictures = {name: rng.integers(0, 256, (n, 6, 5, 3), np.uint8) for name, n in [("dog", 2), ("ant", 3)]}
    for name, arrays in pictures.items():
        write_images(tmp_path / name, arrays)
    (tmp_path / "ant" / "notes.txt").write_text("passed over")
    (tmp_path / "ant" / "._000.png").write_bytes(b"passed over")
    data = load(str(tmp_path))
    assert data.class_names == ("ant", "dog")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.concatenate([pictures["ant"], pictures["dog"]]))


def test_flat_folder_has_no_labels(tmp_path, rng):
    write_images(tmp_path, rng.integers(0, 256, (3, 4, 4), np.uint8))
    data = load(str(tmp_path))
    assert data.labels is None
    assert data.shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(b"hello"), "not an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "cannot be read"),
        (lambda path: Image.new("L", (5, 4)).save(path), r"grey 4x5, but 3 images are grey 4x4 \(resize=4"),
        (lambda path: Image.new("RGB", (4, 4)).save(path), r"colour 4x4, but 3 images are grey 4x4 \(channels=1"),
        (lambda path: Image.new("F", (4, 4)).save(path, "TIFF"), "mode F"),
    ],
)
def test_odd_images_are_named_then_skipped(tmp_path, rng, spoil, why):
    write_images(tmp_path, rng.integers(0, 256, (4, 4, 4), np.uint8))
    spoil(tmp_path / "001.png")
    with pytest.raises(ValueError, match=why) as error:
        load(str(tmp_path))
    assert "001.png" in str(error.value)
    assert "on_error='skip'" in str(error.value)
    data = load(str(tmp_path), on_error="skip")
    assert len(data) == 3
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith("001.png: ")


def test_resize_takes_the_centre_and_channels_convert(tmp_path):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 200  # the centred square
    write_images(tmp_path, [wide, np.full((8, 8), 200, np.uint8)])
    data = load(str(tmp_path), resize=4, channels=3)
    assert data.shape == (3, 4, 4)
    assert (data.images == 200).all()


def test_transparency_sixteen_bits_palette_and_rotation(tmp_path):
    clear = np.zeros((3, 3, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    Image.fromarray(clear).save(tmp_path / "a.png")
    Image.fromarray(np.full((3, 3), 65535, np.uint16)).save(tmp_path / "b.png")
    Image.new("P", (3, 3), 0).save(tmp_path / "c.png")
    data = load(str(tmp_path), channels=3)
    assert data.images[0, :, 0, 0].tolist() == [10, 20, 30]
    assert (data.images[0, :, 1] == 255).all()  # transparent shows white
    assert (data.images[1] == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    folder = tmp_path / "turned"
    folder.mkdir()
    for name in "ab":
        Image.new("L", (3, 5)).save(folder / f"{name}.png", exif=exif)
    assert load(str(folder)).shape == (1, 3, 5)


def test_folders_that_cannot_be_used(tmp_path, rng):
    picture = rng.integers(0, 256, (2, 4, 4), np.uint8)
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", picture[:1])
    write_images(tmp_path / "both" / "a", picture)
    write_images(tmp_path / "both", picture)
    write_images(tmp_path / "bad", picture)
    for path in (tmp_path / "bad").iterdir():
        path.write_bytes(b"x")
    for name, why in [("empty", "no images"), ("one", "at least two"), ("both", "beside sub-folders")]:
        with pytest.raises(ValueError, match=why):
            load(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"0 usable images.*not an image"):
        load(str(tmp_path / "bad"), on_error="skip")


# ---------------------------------------------------------------- names and options


def test_unknown_sources_suggest_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flowers").mkdir()
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        load("digit")
    with pytest.raises(ValueError, match="did you mean 'flowers'"):
        load("flower")
    with pytest.raises(FileNotFoundError, match="nor a folder"):
        load("nowhere/at/all")
    with pytest.raises(ValueError, match="hf:NAME"):
        load("qqqq")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(ValueError, match="no format that is known"):
        load("a.csv")


def test_options_that_do_not_apply_are_refused(tmp_path):
    with pytest.raises(ValueError, match="resize=32 does not apply to the digits"):
        load("digits", resize=32)
    with pytest.raises(ValueError, match="split='val'"):
        load("digits", split="val")
    with pytest.raises(ValueError, match="on_error='ignore'"):
        load("digits", on_error="ignore")


# ---------------------------------------------------------------- Hugging Face datasets, its interface stood in for


def fake_datasets(monkeypatch, rows, features):
    class Table(list):
        pass

    table = Table(rows)
    table.features = features
    calls = []
    module = types.ModuleType("datasets")
    module.load_dataset = lambda name, config, *, split: calls.append((name, config, split)) or table
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_hub_data_set(monkeypatch, rng):
    kinds = {"Image": type("Image", (), {})(), "ClassLabel": type("ClassLabel", (), {"names": ["no", "yes"]})()}
    arrays = rng.integers(0, 256, (3, 4, 4, 3), np.uint8)
    rows = [{"picture": Image.fromarray(a), "answer": i % 2} for i, a in enumerate(arrays)]
    features = {"picture": kinds["Image"], "answer": kinds["ClassLabel"]}
    calls = fake_datasets(monkeypatch, rows, features)
    data = load("hf:some/set:small", split="all")
    assert calls == [("some/set", "small", "train+test")]
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), arrays)
    assert data.labels.tolist() == [0, 1, 0]
    assert data.class_names == ("no", "yes")
    rows[1]["picture"] = Image.new("RGB", (5, 4))
    fake_datasets(monkeypatch, rows, features)
    with pytest.raises(ValueError, match="row 1"):
        load("hf:some/set")
    assert load("hf:some/set", on_error="skip").labels.tolist() == [0, 0]
    fake_datasets(monkeypatch, rows, {"answer": kinds["ClassLabel"]})
    with pytest.raises(ValueError, match="no image column"):
        load("hf:some/set")


def test_hub_names_the_extra_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"trilemma\[datasets\]"):
        load("hf:some/set")
