"""The protocol of a figure. Two figures may be compared where it is the same, and only there."""

from dataclasses import dataclass, fields

from .._version import __version__

__all__ = ["Stamp", "require_same"]


@dataclass(frozen=True)
class Stamp:
    """All that a figure depends on besides the samples.

    Args:
        extractor: name of the features.
        extractor_checksum: of its weights.
        reference: name of the real images.
        reference_checksum: of the real images, or of their features.
        resize: how images were brought to the extractor's size.
        n: number of samples.
        seed: of what the metrics draw.
        version: of this library.

    >>> Stamp("inception", "6726825d", "cifar10 train", "a1b2c3d4", "bilinear 299", 50_000, 0).n
    50000
    """

    extractor: str
    extractor_checksum: str
    reference: str
    reference_checksum: str
    resize: str
    n: int
    seed: int = 0
    version: str = __version__


def require_same(a: Stamp | None, b: Stamp | None) -> None:
    """Refuse to compare figures of different protocols.

    Raises:
        ValueError: a stamp is missing, or some field differs; the sentence names each with both of its values.

    >>> one = Stamp("pixels", "00", "digits", "11", "none", 100)
    >>> require_same(one, one)
    """
    if a is None or b is None:
        raise ValueError("a figure without a protocol stamp is compared with nothing; measure it with stamp=Stamp(...)")
    differ = [
        f"{field.name.replace('_', ' ')} ({getattr(a, field.name)} against {getattr(b, field.name)})"
        for field in fields(Stamp)
        if getattr(a, field.name) != getattr(b, field.name)
    ]
    if differ:
        raise ValueError(f"these figures were measured differently and are not compared: {', '.join(differ)}")
