"""What may look at images, by name: networks trained here, elsewhere or not at all.

Which one to take. The classifier, trained on the user's own labels, knows what the images are of. Inception, DINOv2 and CLIP
know photographs, and make figures that others have too; they need weights. Random features need neither labels nor weights, are
the same on every machine, and still rank noise, blur and missing classes (Naeem et al. 2020 recommend them for images unlike
photographs): they are the default without labels, in place of a self-supervised network, whose weights would differ from one
training to the next, so that no two figures could be compared. Pixels are for the smallest images and for teaching.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._names import unknown
from ..numerics.noise import Noise
from .features import Classifier, Extractor, to_bytes, to_units, train_classifier
from .inception import LAYERS
from .pretrained import clip, dinov2, inception
from .reference import load_tensors, save_tensors, tensors_checksum

__all__ = [
    "EXTRACTORS",
    "Subject",
    "check_weights",
    "from_classifier",
    "load_classifier",
    "make_extractor",
    "pixels",
    "random_features",
    "save_classifier",
    "train_on",
]


@dataclass(frozen=True, eq=False)
class Subject:
    """What there is to make an extractor of: the images to come, and labelled real ones.

    Args:
        shape: ``(C, H, W)`` of an image.
        images: real images, for the classifier: ``(N, C, H, W)``, uint8 or in model units.
        labels: theirs, ``(N,)`` int64 from 0.
        weights: a file or folder of weights, for networks that are not made here.
        seed: of the classifier's training and of random features.
        device: where to compute.
    """

    shape: tuple[int, int, int]
    images: Tensor | None = None
    labels: Tensor | None = None
    weights: str | Path | None = None
    seed: int = 0
    device: torch.device | str = "cpu"


def pixels() -> Extractor:
    """The pixels themselves, in [-1, 1], one after the other."""
    return Extractor("pixels", tensors_checksum({}), "none", lambda x: (to_units(x).flatten(1), None))


def random_features(shape: tuple[int, int, int], *, seed: int = 0, device: torch.device | str = "cpu") -> Extractor:
    """A network of `Classifier`'s form that never learned anything: 64 features.

    Weights are uniform with variance 2 / inputs (He et al. 2015), of numbers that are whole multiples of a power of two times
    one constant, so that their checksum is the same on every machine.

    Args:
        shape: ``(C, H, W)`` of an image.
        seed: another one, other features.
        device: where to compute.

    Source: Naeem et al. 2020, arXiv 2002.09797, section 5 (random embeddings).

    >>> random_features((1, 8, 8)).checksum == random_features((1, 8, 8)).checksum
    True
    """
    with torch.device("meta"):
        net = Classifier(shape[0], 2, size=min(shape[1:]))
    weights = {}
    for i, (name, value) in enumerate(net.state_dict().items()):
        if value.ndim > 1:
            uniform = Noise(seed, 1).at(i).uniform((1, value.numel())).reshape(value.shape)
            weights[name] = (uniform * 2 - 1) * math.sqrt(6 / value[0].numel())
        else:  # batch normalisation by weight and variance 1, bias and mean 0 changes nothing
            one = name.endswith(("weight", "running_var"))
            weights[name] = torch.full(value.shape, float(one), dtype=value.dtype, device="cpu")
    net.load_state_dict(weights, assign=True)
    net.eval().requires_grad_(False).to(device)

    def see(x: Tensor) -> tuple[Tensor, None]:
        return net.features(to_units(x)), None

    return Extractor("random", tensors_checksum(weights), "none", see, device)


def from_classifier(classifier: Classifier, name: str = "classifier") -> Extractor:
    """The last layer before the logits of a trained `Classifier`, on the device where it is."""
    classifier.eval()

    def see(x: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(to_units(x))
        return features, classifier.head(features)

    return Extractor(name, tensors_checksum(classifier.state_dict()), "none", see, classifier.head.weight.device)


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write a classifier so that `load_classifier` reads it anywhere, with the same checksum."""
    convolution = classifier.trunk[0]
    assert isinstance(convolution, nn.Conv2d)
    strides = sum(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in classifier.trunk)
    about = {
        "kind": "classifier",
        "channels": convolution.in_channels,
        "classes": classifier.head.out_features,
        "size": 4 * 2**strides,
        "width": convolution.out_channels,
        "features": classifier.neck.out_features,
    }
    save_tensors(path, classifier.state_dict(), about)


def load_classifier(path: str | Path) -> Classifier:
    """The inverse of `save_classifier`.

    Raises:
        ValueError: the file is damaged or holds something else.
        FileNotFoundError: there is none.
    """
    tensors, about = load_tensors(Path(path))
    if about.pop("kind", None) != "classifier":
        raise ValueError(f"{path} holds no classifier that `trilemma evaluate` trained")
    how: dict[str, Any] = about
    with torch.device("meta"):
        net = Classifier(how.pop("channels"), how.pop("classes"), **how)
    net.load_state_dict(tensors, assign=True)
    return net.eval()


def train_on(subject: Subject, *, classes: int | None = None) -> Classifier:
    """A `Classifier` of a subject's labels, of its images as bytes.

    Args:
        subject: its images, labels, seed and device.
        classes: how many there are; by default as many as the labels name.

    Raises:
        ValueError: there are no labels.
    """
    if subject.images is None or subject.labels is None:
        raise ValueError("a classifier learns from labels, and the real images have none; use random, or inception")
    return train_classifier(
        to_units(to_bytes(subject.images)),
        subject.labels,
        classes=int(subject.labels.max()) + 1 if classes is None else classes,
        seed=subject.seed,
        device=subject.device,
    )


def _classifier(subject: Subject) -> Extractor:
    if subject.weights is None:
        return from_classifier(train_on(subject))
    classifier = load_classifier(subject.weights).to(subject.device)
    wanted = _channels(classifier)
    if wanted != subject.shape[0]:
        raise ValueError(f"{subject.weights} was trained on images of {wanted} channels, these have {subject.shape[0]}")
    return from_classifier(classifier)


def _channels(classifier: Classifier) -> int:
    first = classifier.trunk[0]
    assert isinstance(first, nn.Conv2d)
    return first.in_channels


def _inception(layer: str, subject: Subject) -> Extractor:
    return inception(layer, weights=subject.weights, device=subject.device)


EXTRACTORS: dict[str, Callable[[Subject], Extractor]] = {
    "classifier": _classifier,
    "random": lambda s: random_features(s.shape, seed=s.seed, device=s.device),
    "pixels": lambda s: pixels(),
    **{f"inception-{layer}".removesuffix("-2048"): partial(_inception, layer) for layer in LAYERS},
    "dinov2": lambda s: dinov2(weights=s.weights, device=s.device),
    "clip": lambda s: clip(weights=s.weights, device=s.device),
}


def check_weights(name: str, weights: str | Path | None) -> None:
    """See that weights are for an extractor that reads some.

    Raises:
        ValueError: it has none to read.

    >>> check_weights("inception", "weights.pth")
    >>> check_weights("pixels", "weights.pth")
    Traceback (most recent call last):
        ...
    ValueError: pixels reads no weights; leave out weights.pth, or name the extractor that it is for
    """
    if weights is not None and name in ("random", "pixels"):
        raise ValueError(f"{name} reads no weights; leave out {weights}, or name the extractor that it is for")


def make_extractor(name: str, subject: Subject) -> Extractor:
    """An extractor by its name.

    Args:
        name: one of `EXTRACTORS`.
        subject: what it may be made of.

    Raises:
        ValueError: no such name (the nearest is named), weights for one that reads none, or it cannot be made of this.
        FileNotFoundError: its weights are not here.
        ImportError: it needs a package that is not installed.

    >>> make_extractor("random", Subject((3, 32, 32))).name
    'random'
    """
    if name not in EXTRACTORS:
        raise unknown("extractor", name, EXTRACTORS)
    check_weights(name, subject.weights)
    return EXTRACTORS[name](subject)
