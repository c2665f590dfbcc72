"""What looks at images: rounding, weights that are the same everywhere, public networks' input, and that features rank damage."""

import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from trilemma.data import load
from trilemma.evaluate import Moments, frechet_distance, train_classifier
from trilemma.evaluate.extractors import (
    EXTRACTORS,
    Subject,
    from_classifier,
    load_classifier,
    make_extractor,
    pixels,
    random_features,
    save_classifier,
)
from trilemma.evaluate.features import to_bytes
from trilemma.evaluate.pretrained import clip, dinov2
from trilemma.evaluate.reference import save_tensors


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def seeing(name, data, steps):
    if name == "classifier":
        return from_classifier(train_classifier(data.images, data.labels, classes=10, steps=steps, width=8))
    return make_extractor(name, Subject(data.shape))


def test_samples_and_real_images_are_rounded_alike():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    units = levels.double() / 127.5 - 1
    assert torch.equal(to_bytes(units), levels)
    assert torch.equal(to_bytes(units + 0.49 / 127.5), levels)
    assert torch.equal(to_bytes(units - 0.49 / 127.5), levels)
    assert to_bytes(torch.tensor([-7.0, 7.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]
    assert torch.allclose(pixels().read(levels).features.flatten().double(), units.flatten(), atol=1e-7)
    for x, why in [(torch.zeros(2, 3), "uint8 or in model units"), (levels.long(), "int64"), (units / 0, "NaN")]:
        with pytest.raises(ValueError, match=why):
            to_bytes(x)
    with pytest.raises(ValueError, match="no images"):
        pixels().read(levels[:0])


@pytest.mark.parametrize("name", ["random", "pixels", "classifier"])
def test_features_of_an_image_are_its_own(digits, name):
    see = seeing(name, digits, steps=10)
    together = see.read(digits.images[:30], batch=7)
    alone = see.read(digits.images[12:13])
    assert torch.allclose(together.features[12:13], alone.features, atol=1e-5)
    assert (together.logits is None) == (name != "classifier")
    assert torch.equal(see.read(to_bytes(digits.images[:30]), batch=7).features, together.features)


def test_random_weights_need_no_library_of_mathematics():
    """Each is a whole multiple of 2^-23 times a correctly rounded root, as arithmetic everywhere has it: so is the checksum."""
    see = random_features((3, 16, 16))
    net = see.see.__closure__[0].cell_contents
    seen = 0
    for weight in net.parameters():
        if weight.ndim > 1:
            bound = torch.tensor(math.sqrt(6 / weight[0].numel()))
            grid = (weight.double() / bound.double() * 2**23).round() / 2**23
            assert torch.equal((grid.float() * bound), weight)
            assert grid.abs().max() < 1
            assert grid.square().mean() == pytest.approx(1 / 3, abs=4 / weight.numel() ** 0.5)  # 4 deviations or more
            seen += 1
    assert seen >= 5
    with torch.no_grad():
        x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        first = F.conv2d(x, net.trunk[0].weight, padding=1)
        assert torch.allclose(net.trunk[1](first), first, rtol=1e-4)  # normalisation is the identity
    assert random_features((3, 16, 16), seed=1).checksum != see.checksum
    assert random_features((1, 16, 16)).checksum != see.checksum


@pytest.mark.parametrize("name", ["random", "pixels", "classifier"])
def test_more_damage_is_more_distance(digits, name):
    """Noise and blur of three strengths, and classes that are missing, in the order of what was done."""
    see = seeing(name, digits, steps=120)
    test = load("digits", split="test")
    reference = Moments.of(see.read(digits.images).features)

    def distance(images):
        return frechet_distance(Moments.of(see.read(images).features), reference)

    noise = torch.randn(test.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = [distance(test.images + s * noise) for s in (0, 0.2, 0.4, 0.8)]
    blurred = [distance(torch.lerp(test.images, F.avg_pool2d(test.images, 3, 1, 1), w)) for w in (0, 0.3, 0.6, 1)]
    missing = [distance(test.images[test.labels < k]) for k in (10, 7, 4, 1)]
    for row in (noisy, blurred, missing):
        assert row == sorted(row)
        assert row[-1] > 3 * row[0]


def test_a_classifier_is_read_as_it_was_written(digits, tmp_path):
    model = train_classifier(digits.images, digits.labels, classes=10, steps=10, width=4, features=12)
    path = tmp_path / "classifier.safetensors"
    save_classifier(model, path)
    a, b = from_classifier(model), from_classifier(load_classifier(path))
    assert a.checksum == b.checksum
    mine, its = a.read(digits.images[:50]), b.read(digits.images[:50])
    assert torch.equal(mine.logits, its.logits)
    assert torch.equal(mine.features, model.read(to_bytes(digits.images[:50]).float() / 127.5 - 1).features)
    assert make_extractor("classifier", Subject((1, 8, 8), weights=path)).checksum == a.checksum
    with pytest.raises(ValueError, match="images of 1 channels, these have 3"):
        make_extractor("classifier", Subject((3, 8, 8), weights=path))
    save_tensors(path, {"x": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="no classifier"):
        load_classifier(path)
    with pytest.raises(ValueError, match="steps=9"):
        train_classifier(digits.images, digits.labels, classes=10, steps=9)
    with pytest.raises(ValueError, match="real images have none"):
        make_extractor("classifier", Subject((1, 8, 8), digits.images))


def test_names(monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        make_extractor("incepton", Subject((3, 8, 8)))
    assert {"classifier", "random", "pixels", "inception", "inception-64", "inception-spatial", "dinov2", "clip"} < set(
        EXTRACTORS
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "trilemma\[features\]"'):
        make_extractor("dinov2", Subject((3, 8, 8)))


class Patches(nn.Module):
    """Stands for a network of transformers: remembers what it was shown, answers with numbers that tell tokens apart."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
        self.dropout = nn.Dropout(0.5)

    def forward(self, pixel_values):
        self.shown = pixel_values
        tokens = self.dropout(pixel_values.mean((2, 3)) @ self.weight)
        return SimpleNamespace(
            last_hidden_state=torch.stack([tokens, tokens + 100], 1), image_embeds=3 * tokens, pooler_output=None
        )


@pytest.fixture
def transformers(monkeypatch):
    fake, nets = ModuleType("transformers"), {}

    class Loader:
        def __init__(self, kind):
            self.kind = kind

        def from_pretrained(self, source):
            if source == "missing":
                raise OSError("We couldn't connect\nand so on")
            nets[self.kind] = source
            return Patches().train()

    for kind in ("Dinov2Model", "CLIPVisionModelWithProjection"):
        setattr(fake, kind, Loader(kind))
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return nets


def by_pillow(images, side, mode):
    """``(N, C, H, W)`` to ``(N, 3, side, side)`` by Pillow's bicubic filter, a channel at a time, in its bytes or floats."""
    kind = {"L": np.uint8, "F": np.float32}[mode]
    out = [
        [
            np.asarray(Image.fromarray(c.numpy().astype(kind)).resize((side, side), Image.Resampling.BICUBIC))
            for c in image
        ]
        for image in images
    ]
    return torch.from_numpy(np.array(out)).expand(-1, 3, -1, -1).double()


@pytest.mark.parametrize("shape", [(2, 3, 32, 20), (1, 1, 8, 8), (1, 3, 500, 300)])
def test_public_networks_are_shown_what_they_learned_from(transformers, shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dino, other = dinov2(), clip()
    assert transformers == {
        "Dinov2Model": "facebook/dinov2-large",
        "CLIPVisionModelWithProjection": "openai/clip-vit-large-patch14-336",
    }
    net = dino.see.__closure__[0].cell_contents
    tokens = dino.read(images).features
    mean, deviation = (torch.tensor(m)[:, None, None] for m in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    gap = ((net.shown * deviation + mean) * 255 - by_pillow(images, 224, "L")).abs().round(decimals=3)
    assert (
        gap.max() <= 2
    )  # Pillow's weights have 22 bits: a tie is rounded the other way here and there, in either pass
    assert (gap > 0).float().mean() < 0.01
    assert torch.allclose(tokens, net.shown.mean((2, 3)) @ net.weight, atol=1e-6)  # the class token, dropout off

    net = other.see.__closure__[0].cell_contents
    found = other.read(images).features
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    assert ((net.shown * deviation + mean) * 255 - by_pillow(images, 336, "F")).abs().max() < 1e-2
    direction = net.shown.mean((2, 3)) @ net.weight
    assert torch.allclose(found, direction / direction.norm(dim=1, keepdim=True), atol=1e-6)


def test_weights_that_are_not_there_are_named(transformers):
    with pytest.raises(FileNotFoundError, match=r"hf download missing.*--weights \(We couldn't connect\)"):
        dinov2(weights="missing")
    with pytest.raises(ValueError, match="4 channels"):
        clip().read(torch.zeros(1, 4, 8, 8))
