"""What is kept by content: checksums against hashlib, damage of every kind, and no half-written file."""

import hashlib

import pytest
import torch

from trilemma.evaluate import Reading
from trilemma.evaluate.reference import (
    cache_folder,
    digests,
    digests_checksum,
    feature_key,
    images_checksum,
    load_reading,
    load_tensors,
    save_reading,
    save_tensors,
    tensors_checksum,
)

IMAGES = torch.randint(0, 256, (5, 2, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
KEY = feature_key("images", "pixels", "weights", "none")


def reading(logits=True):
    draw = torch.Generator().manual_seed(1)
    return Reading(torch.randn(6, 3, generator=draw), torch.randn(6, 2, generator=draw) if logits else None)


def test_the_checksum_of_images_is_what_the_module_says():
    each = b"".join(hashlib.sha256(bytes(image.flatten().tolist())).digest() for image in IMAGES)
    assert images_checksum([IMAGES]) == hashlib.sha256(b"(2, 3, 4)\n" + each).hexdigest()
    assert images_checksum(IMAGES.split(2)) == images_checksum([IMAGES])
    assert digests_checksum((2, 3, 4), digests(IMAGES)) == images_checksum([IMAGES])
    # a view of other strides has the same pixels; another shape of the same bytes, order or pixel has not
    assert images_checksum([IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)]) == images_checksum([IMAGES])
    changed = IMAGES.clone()
    changed[4, 1, 2, 3] ^= 1
    for other in (IMAGES.reshape(5, 3, 2, 4), IMAGES.flip(0), changed, IMAGES[:4]):
        assert images_checksum([other]) != images_checksum([IMAGES])
    with pytest.raises(ValueError, match="all of one size"):
        images_checksum([IMAGES, IMAGES[..., :3]])
    with pytest.raises(ValueError, match="none"):
        images_checksum([])
    with pytest.raises(ValueError, match="uint8"):
        images_checksum([IMAGES.float()])


def test_the_checksum_of_tensors_is_little_endian_and_sees_one_bit():
    x = torch.tensor([1.5, -2.0])
    expected = hashlib.sha256(b"a torch.float32 (2,)\n" + bytes.fromhex("0000c03f" + "000000c0")).hexdigest()
    assert tensors_checksum({"a": x}) == expected
    assert tensors_checksum({"a": x, "b": x}) != tensors_checksum({"a": x, "c": x})
    assert tensors_checksum({"a": x.nextafter(torch.tensor(9.0))}) != expected
    assert tensors_checksum({"a": x.double()}) != expected
    assert tensors_checksum({"a": torch.stack([x, x], 1)[:, 0]}) == expected
    assert len(tensors_checksum({"a": x.bfloat16()})) == 64


def test_every_part_of_a_key_counts():
    parts = ("images", "pixels", "weights", "none")
    for i in range(4):
        assert feature_key(*(part + "x" * (j == i) for j, part in enumerate(parts))) != KEY
    assert feature_key("a", "bc", "d", "e") != feature_key("ab", "c", "d", "e")


@pytest.mark.parametrize("logits", [True, False])
def test_what_is_kept_is_what_was_read(tmp_path, logits):
    made = reading(logits)
    assert load_reading(tmp_path, KEY) is None
    save_reading(tmp_path, KEY, made)
    found = load_reading(tmp_path, KEY)
    assert torch.equal(found.features, made.features)
    assert (found.logits is None) == (not logits)
    if logits:
        assert torch.equal(found.logits, made.logits)
    assert load_reading(tmp_path, KEY.replace(KEY[0], "-")) is None
    save_reading(None, KEY, made)
    assert load_reading(None, KEY) is None
    assert not list(tmp_path.rglob(".*"))  # nothing unfinished is left


def damage(kind, path):
    data = bytearray(path.read_bytes())
    if kind == "a bit":
        data[-3] ^= 4
    path.write_bytes({"cut": data[:-5], "empty": b"", "nonsense": b"x" * 99}.get(kind, data))


@pytest.mark.parametrize("kind", ["a bit", "cut", "empty", "nonsense"])
def test_a_damaged_file_is_told_of_and_made_again(tmp_path, kind):
    made = reading()
    save_reading(tmp_path, KEY, made)
    (path,) = tmp_path.rglob("*.safetensors")
    damage(kind, path)
    with pytest.raises(ValueError, match=f"{KEY}.*computed again"):
        load_reading(tmp_path, KEY)
    save_reading(tmp_path, KEY, made)
    assert torch.equal(load_reading(tmp_path, KEY).features, made.features)


def test_a_file_that_something_else_wrote(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "features" / f"{KEY}.safetensors"
    path.parent.mkdir()
    save_file({"features": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_reading(tmp_path, KEY)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2)}, {"kind": "old"})

    def cut_short(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("trilemma.evaluate.reference.save_file", cut_short)
    with pytest.raises(OSError, match="no space"):
        save_tensors(path, {"x": torch.zeros(2)}, {"kind": "new"})
    tensors, about = load_tensors(path)
    assert (tensors["x"].tolist(), about) == ([1.0, 1.0], {"kind": "old"})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_cache_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "features").touch()  # a file where a folder should be; holds for root too
    with pytest.raises(OSError, match="features"):
        save_reading(tmp_path, KEY, reading())
    assert (tmp_path / "features").is_file()


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRILEMMA_CACHE", "none")
    assert cache_folder() is None
    assert cache_folder(tmp_path / "here") == tmp_path / "here"
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there"
    assert cache_folder("none") is None
    monkeypatch.delenv("TRILEMMA_CACHE")
    assert cache_folder() == tmp_path / "trilemma"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "trilemma"
