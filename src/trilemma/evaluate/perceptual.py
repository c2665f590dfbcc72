"""How different two pictures look to a network: LPIPS, by any network's maps and the published weights of its channels.

(1)  y = f / |f|,  the maps f of one layer with unit norm over the channels at every place
(2)  d = sum over layers of the mean over places of  sum_c w_c (y_c - y'_c)^2
"""

import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["perceptual_distance", "read_channel_weights"]

_EPS = 1e-8  # of the squared norm


def perceptual_distance(
    a: Tensor,
    b: Tensor,
    maps: Callable[[Tensor], Sequence[Tensor]],
    *,
    weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """The distance (2) of each pair of pictures; gradients pass through to both.

    Args:
        a: ``(N, C, H, W)`` as ``maps`` takes them.
        b: the same shape.
        maps: pictures to ``(N, C_l, H_l, W_l)`` for each layer: the stages of a trained classifier
            (`Classifier.maps`), or the five rectified layers of AlexNet or VGG for figures that others have too.
        weights: ``(C_l,)`` for each layer, as of `read_channel_weights`; 1 without them, the uncalibrated distance.

    Returns:
        ``(N,)``, 0 for equal pictures; `of_mean` makes an `Estimate` of them.

    Raises:
        ValueError: shapes differ, or the weights are not those of these layers.

    Cost: two passes of the network.

    Differs: 1e-8 is added to the squared norm, not 1e-10 to the norm, so that gradients are small where all maps are dead.

    Source: Zhang et al. 2018, arXiv 1801.03924, equation (1).

    >>> x, y = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1), torch.tensor([0.0, 3.0]).reshape(1, 2, 1, 1)
    >>> perceptual_distance(x, y, lambda z: [z]).tolist()
    [2.0]
    """
    if a.shape != b.shape or a.ndim != 4 or a.numel() == 0:
        raise ValueError(f"need two equal shapes (N, C, H, W), none 0; got {tuple(a.shape)} and {tuple(b.shape)}")
    ours, theirs = maps(a), maps(b)
    channels = [layer.shape[1] for layer in ours]
    if weights is None:
        weights = [layer.new_ones(layer.shape[1]) for layer in ours]
    if [w.numel() for w in weights] != channels:
        raise ValueError(f"the layers have {channels} channels and the weights {[w.numel() for w in weights]}")
    each = [
        ((_unit(x) - _unit(y)).square() * w.to(x).reshape(-1, 1, 1)).sum(1).mean((1, 2))
        for x, y, w in zip(ours, theirs, weights)
    ]
    return torch.stack(each).sum(0)


def read_channel_weights(path: str | Path) -> list[Tensor]:
    """The weights of channels as LPIPS publishes them, a file each for AlexNet, VGG and SqueezeNet.

    Args:
        path: a file such as ``alex.pth`` of version 0.1; nothing in it is executed.

    Returns:
        ``(C_l,)`` for each layer, from the first to the last.

    Raises:
        ValueError: the file holds something else.
        FileNotFoundError: there is none.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        found = {int(re.fullmatch(r"lin(\d+)\.model\.1\.weight", name)[1]): w for name, w in stored.items()}  # type: ignore[index]
        weights = [found[layer].reshape(-1).float() for layer in range(len(found))]
    except (RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no weights of LPIPS ({type(error).__name__})") from None
    if not weights or not all(bool((w >= 0).all()) for w in weights):
        raise ValueError(f"{path} holds no weights of LPIPS: there are none, or one is negative")
    return weights


def _unit(maps: Tensor) -> Tensor:
    """(1)."""
    return maps * (maps.square().sum(1, keepdim=True) + _EPS).rsqrt()
