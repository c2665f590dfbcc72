"""Networks that others trained, as extractors: Inception of FID, DINOv2 and CLIP.

They know photographs. Grey images are shown to them three times, as red, green and blue. Resizing, after Parmar et al. 2022,
arXiv 2104.11222, moves figures by several points, so each network comes with the one that its published figures were made with.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._names import unknown
from .._optional import require
from .features import Extractor
from .inception import LAYERS, find_weights, read_weights
from .reference import tensors_checksum

__all__ = ["clip", "dinov2", "inception"]

DINOV2 = "facebook/dinov2-large"
CLIP = "openai/clip-vit-large-patch14-336"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of red, green, blue in [0, 1]
CLIPS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def inception(
    layer: str = "2048", *, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> Extractor:
    """The Inception network of FID with the standard weights.

    Args:
        layer: one of `trilemma.evaluate.inception.LAYERS`; logits, for the Inception Score, come with "2048" only.
        weights: see `trilemma.evaluate.inception.find_weights`.
        device: where to compute.

    Raises:
        ValueError: no such layer, or the file is not the standard one.
        FileNotFoundError: no file; the message says where to get it.
    """
    if layer not in LAYERS:
        raise unknown("layer", layer, LAYERS)
    net = read_weights(find_weights(weights))
    checksum = tensors_checksum(net.state_dict())
    net.to(device)

    def see(x: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = net(_colour(x), layer)
        return features, logits

    name = "inception" if layer == "2048" else f"inception-{layer}"
    return Extractor(name, checksum, "bilinear 299x299 as TensorFlow 1", see, device)


def dinov2(*, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """DINOv2 ViT-L/14: the class token after the last normalisation, 1024 features.

    Args:
        weights: a local folder as `save_pretrained` writes; by default those of `facebook/dinov2-large`.
        device: where to compute.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: the weights are not on this machine and cannot be fetched.

    Source: Oquab et al. 2023, arXiv 2304.07193; Stein et al. 2023, arXiv 2306.04675 (as features: resized to 224 with antialiased
    bicubic interpolation, rounded to bytes).
    """
    net = _pretrained("Dinov2Model", weights or DINOV2).to(device)

    def see(x: Tensor) -> tuple[Tensor, None]:
        return net(pixel_values=_square(x, 224, IMAGENET, rounded=True)).last_hidden_state[:, 0], None

    return Extractor("dinov2", tensors_checksum(net.state_dict()), "bicubic antialiased 224x224, rounded", see, device)


def clip(*, weights: str | Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """CLIP ViT-L/14 at 336 pixels: the projected image embedding at length 1, 768 features. What CMMD is defined on.

    Args:
        weights: a local folder as `save_pretrained` writes; by default those of `openai/clip-vit-large-patch14-336`.
        device: where to compute.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: the weights are not on this machine and cannot be fetched.

    Source: Radford et al. 2021, arXiv 2103.00020; Jayasumana et al. 2024, arXiv 2401.09603 (as features).
    """
    net = _pretrained("CLIPVisionModelWithProjection", weights or CLIP).to(device)

    def see(x: Tensor) -> tuple[Tensor, None]:
        seen = net(pixel_values=_square(x, 336, CLIPS, rounded=False)).image_embeds
        return functional.normalize(seen, dim=1), None

    return Extractor("clip", tensors_checksum(net.state_dict()), "bicubic antialiased 336x336", see, device)


def _colour(x: Tensor) -> Tensor:
    """Grey images three times over."""
    if x.shape[1] not in (1, 3):
        raise ValueError(f"this network sees grey or colour images, not {x.shape[1]} channels")
    return x.expand(-1, 3, -1, -1)


def _square(x: Tensor, side: int, moments: tuple[tuple[float, ...], tuple[float, ...]], *, rounded: bool) -> Tensor:
    """Bytes to a square by antialiased bicubic interpolation, then to mean 0 and deviation 1 as of ``moments``.

    Rows first, then columns; ``rounded`` to bytes after each, as Pillow does.
    """
    y = _colour(x).float()
    for size in ((y.shape[2], side), (side, side)):
        y = functional.interpolate(y, size, mode="bicubic", antialias=True)
        y = y.round().clamp(0, 255) if rounded else y
    mean, deviation = (torch.tensor(part, device=x.device)[:, None, None] for part in moments)
    return (y / 255 - mean) / deviation


def _pretrained(kind: str, source: str | Path) -> nn.Module:
    """A network of transformers, in evaluation mode."""
    transformers = require("transformers", extra="features")
    try:
        net: nn.Module = getattr(transformers, kind).from_pretrained(str(source))
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of {source} are neither on this machine nor can they be fetched: run `hf download {source}` where "
            f"there is a connection, or name a local folder of them by --weights ({str(error).splitlines()[0]})"
        ) from None
    return net.requires_grad_(False).eval()
