"""The Inception network of FID: version 3 as trained in 2015, with the weights everybody's FID is measured with.

(1)  resize as TensorFlow 1 did: pixel i of n' reads at i n/n', between the pixels on either side of that place; the last
     pixels are repeated, and the grid is not centred
(2)  x in [-1, 1) from bytes: (x - 128) / 128
(3)  a layer is relu(conv(x)), with the batch normalisation y -> g (y - m) / sqrt(v + 0.001) + b folded into it:
     w <- w g / sqrt(v + 0.001),  bias = b - m g / sqrt(v + 0.001)
(4)  averages over 3x3 count only pixels inside the image; the last block takes the maximum in place of the average

Features are spatial means after the first and the second reduction (64, 192), before the third (768) and at the end (2048);
"spatial" are the first 7 maps of the first branch of TensorFlow's mixed_6, 7 x 17 x 17 numbers. Logits have no bias.

Source: Szegedy et al. 2016, arXiv 1512.00567 (the network); Heusel et al. 2017, arXiv 1706.08500 (its use, "2048"); Salimans et
al. 2016, arXiv 1606.03498 (logits); Nash et al. 2021, arXiv 2103.03841 ("spatial").
"""

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .reference import cache_folder

__all__ = ["LAYERS", "SHA256", "Inception", "find_weights", "fold", "read_weights", "resize_tf1"]

LAYERS = {"64": 64, "192": 192, "768": 768, "2048": 2048, "spatial": 2023}  # name -> length
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")  # one file, two names
SIDE = 299
EPS = 1e-3

Conv = tuple[str, int, int, int]  # name in the file, maps, height and width of the kernel
Path_ = tuple["str | Conv | tuple[Conv, Conv]", ...]  # pooling, layers, a fork whose ends are joined


def _a(pooled: int) -> tuple[Path_, ...]:
    """35x35: 1x1, 5x5 and two 3x3."""
    return (
        (("branch1x1", 64, 1, 1),),
        (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)),
        (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)),
        ("average", ("branch_pool", pooled, 1, 1)),
    )


def _c(maps: int) -> tuple[Path_, ...]:
    """17x17: 7x7 and two 7x7, each as a row and a column."""
    return (
        (("branch1x1", 192, 1, 1),),
        (("branch7x7_1", maps, 1, 1), ("branch7x7_2", maps, 1, 7), ("branch7x7_3", 192, 7, 1)),
        (
            ("branch7x7dbl_1", maps, 1, 1),
            ("branch7x7dbl_2", maps, 7, 1),
            ("branch7x7dbl_3", maps, 1, 7),
            ("branch7x7dbl_4", maps, 7, 1),
            ("branch7x7dbl_5", 192, 1, 7),
        ),
        ("average", ("branch_pool", 192, 1, 1)),
    )


def _e(pooling: str) -> tuple[Path_, ...]:
    """8x8: rows beside columns."""
    return (
        (("branch1x1", 320, 1, 1),),
        (("branch3x3_1", 384, 1, 1), (("branch3x3_2a", 384, 1, 3), ("branch3x3_2b", 384, 3, 1))),
        (
            ("branch3x3dbl_1", 448, 1, 1),
            ("branch3x3dbl_2", 384, 3, 3),
            (("branch3x3dbl_3a", 384, 1, 3), ("branch3x3dbl_3b", 384, 3, 1)),
        ),
        (pooling, ("branch_pool", 192, 1, 1)),
    )


_B: tuple[Path_, ...] = (
    ("half", ("branch3x3", 384, 3, 3)),
    (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), "half", ("branch3x3dbl_3", 96, 3, 3)),
    ("maximum of 2",),
)
_D: tuple[Path_, ...] = (
    (("branch3x3_1", 192, 1, 1), "half", ("branch3x3_2", 320, 3, 3)),
    (
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, 1, 7),
        ("branch7x7x3_3", 192, 7, 1),
        "half",
        ("branch7x7x3_4", 192, 3, 3),
    ),
    ("maximum of 2",),
)
_BLOCKS: dict[str, tuple[Path_, ...]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _B,
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _D,
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("maximum"),
}
_STEM = {  # name: maps in, maps out, kernel, stride, padding
    "Conv2d_1a_3x3": (3, 32, 3, 2, 0),
    "Conv2d_2a_3x3": (32, 32, 3, 1, 0),
    "Conv2d_2b_3x3": (32, 64, 3, 1, 1),
    "Conv2d_3b_1x1": (64, 80, 1, 1, 0),
    "Conv2d_4a_3x3": (80, 192, 3, 1, 0),
}


def _pool(x: Tensor, kind: str) -> Tensor:
    """(4)."""
    if kind == "average":
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return functional.max_pool2d(x, 3, 1, 1) if kind == "maximum" else functional.max_pool2d(x, 3, 2)


class Block(nn.Module):
    """Paths side by side, joined along the maps.

    Args:
        inputs: maps of the input.
        paths: each a pooling and layers, in order; the layer after the word "half" has stride 2 and no padding.
    """

    def __init__(self, inputs: int, paths: tuple[Path_, ...]) -> None:
        super().__init__()
        self.paths = paths
        self.maps = 0
        for path in paths:
            maps, stride = inputs, 1
            for op in path:
                if isinstance(op, str):
                    stride = 2 if op == "half" else 1
                    continue
                ends = [op] if isinstance(op[0], str) else list(op)
                for name, out, height, width in ends:
                    padding = (0, 0) if stride == 2 else (height // 2, width // 2)
                    self.add_module(name, nn.Conv2d(maps, out, (height, width), stride, padding))
                maps, stride = sum(end[1] for end in ends), 1
            self.maps += maps

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` -> ``(N, maps, H', W')``."""
        return torch.cat([self._follow(path, x) for path in self.paths], 1)

    def _follow(self, path: Path_, x: Tensor) -> Tensor:
        for op in path:
            if isinstance(op, str):
                x = x if op == "half" else _pool(x, op)
            elif isinstance(op[0], str):
                x = functional.relu(self.get_submodule(op[0])(x))  # (3)
            else:
                x = torch.cat([functional.relu(self.get_submodule(end[0])(x)) for end in op], 1)
        return x


class Inception(nn.Module):
    """The network, with batch normalisation folded into its layers by (3). Its weights come from `read_weights`.

    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in Inception().parameters())
    23832736
    """

    def __init__(self) -> None:
        super().__init__()
        for name, (inputs, out, kernel, stride, padding) in _STEM.items():
            self.add_module(name, nn.Conv2d(inputs, out, kernel, stride, padding))
        maps = 192
        for name, paths in _BLOCKS.items():
            block = Block(maps, paths)
            self.add_module(name, block)
            maps = block.maps
        self.fc = nn.Linear(maps, 1008, bias=False)

    def forward(self, pixels: Tensor, layer: str = "2048") -> tuple[Tensor, Tensor | None]:
        """Features and logits.

        Args:
            pixels: ``(N, 3, H, W)``, 0 to 255.
            layer: one of `LAYERS`; nothing behind it is computed.

        Returns:
            ``(N, D)`` features, and ``(N, 1008)`` logits without bias for ``"2048"``, else ``None``.

        Cost: 5.7 GFLOP an image for ``"2048"``, whatever its size.
        """
        x = (resize_tf1(pixels.to(self.fc.weight.dtype), SIDE) - 128) / 128  # (1), (2)
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            x = functional.relu(self.get_submodule(name)(x))
        x = _pool(x, "maximum of 2")
        if layer == "64":
            return x.mean((2, 3)), None
        for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            x = functional.relu(self.get_submodule(name)(x))
        x = _pool(x, "maximum of 2")
        if layer == "192":
            return x.mean((2, 3)), None
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d" and layer == "spatial":
                return x[:, :7].flatten(1), None
            if name == "Mixed_6e" and layer == "768":
                return x.mean((2, 3)), None
        features = x.mean((2, 3))
        return features, self.fc(features)


def resize_tf1(x: Tensor, side: int) -> Tensor:
    """Images to a square of the given side by (1).

    Args:
        x: ``(N, C, H, W)``, floating.
        side: in pixels.

    Returns:
        ``(N, C, side, side)``; ``x`` itself where it has that size.

    Differs: from ``interpolate`` with either ``align_corners``, and from antialiased resizing; FID's published figures have this
        one in them.

    Source: ``tf.compat.v1.image.resize_bilinear`` with its default ``align_corners=False, half_pixel_centers=False``.

    >>> resize_tf1(torch.tensor([0.0, 3.0]).reshape(1, 1, 1, 2), 3)[0, 0, 0]
    tensor([0., 2., 3.])
    """
    for axis in (3, 2):
        n = x.shape[axis]
        # in float32, as it was done there: the place decides which pixels are read
        place = torch.arange(side, dtype=torch.float32, device=x.device) * torch.tensor(n / side, dtype=torch.float32)
        low = place.long()
        share = (place - low).to(x.dtype)
        if axis == 2:
            share = share[:, None]
        first = x.index_select(axis, low)
        x = first + (x.index_select(axis, (low + 1).clamp(max=n - 1)) - first) * share
    return x


def find_weights(given: str | Path | None = None) -> Path:
    """The file of the standard weights.

    Args:
        given: where it is; else TRILEMMA_INCEPTION says so, or it lies in ``weights`` of the user's cache or among the
            checkpoints of torch.hub, where two public programs for FID put it.

    Raises:
        FileNotFoundError: it is at none of these places; the message says where to get it and where to put it.
    """
    named = given or os.environ.get("TRILEMMA_INCEPTION")
    cache = cache_folder()
    home = Path("~/.cache/trilemma").expanduser() if cache is None else cache
    folders = [home / "weights", Path(torch.hub.get_dir()) / "checkpoints"]
    places = [Path(named).expanduser()] if named else [folder / name for folder in folders for name in NAMES]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        (f"there is no file {named} with" if named else "this machine does not have")
        + f" the weights of FID's Inception network: get {NAMES[0]} (96 MB) from the release fid_weights of mseitzer/pytorch-fid "
        f"on GitHub, or the same file as {NAMES[1]} from release v0.2.0 of toshas/torch-fidelity, and put it into "
        f"{home / 'weights'}, or name it by --weights or in TRILEMMA_INCEPTION; --extractor classifier needs no download"
    )


def read_weights(path: str | Path, *, sha256: str | None = SHA256) -> Inception:
    """The network with the weights of a file.

    Args:
        path: as published for PyTorch; nothing in it is executed.
        sha256: of the file; ``None`` takes any file, whose figures are then those of other features.

    Returns:
        In evaluation mode, on the CPU, float32.

    Raises:
        ValueError: the file is another one, or holds no such weights.
    """
    path = Path(path)
    if sha256 is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            raise ValueError(
                f"{path} has sha256 {found[:8]}..., and the standard weights have {sha256[:8]}...: it is damaged or another "
                "file; get it again"
            )
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not a file of weights: {str(error).splitlines()[0]}") from None
    with torch.device("meta"):
        net = Inception()
    try:
        net.load_state_dict(fold(stored), assign=True)
    except (RuntimeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path} does not hold the weights of FID's Inception network: {reason}") from None
    return net.requires_grad_(False).eval()


def fold(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names and batch normalisation to the names and weights of `Inception`, by (3) in float64.

    Args:
        stored: ``NAME.conv.weight``, ``NAME.bn.weight``, ``.bias``, ``.running_mean``, ``.running_var``, and ``fc.weight``.
    """
    out = {"fc.weight": stored["fc.weight"].float()}
    for key, value in stored.items():
        if key.endswith(".conv.weight"):
            name = key.removesuffix(".conv.weight")
            gain, bias, mean, var = (
                stored[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            gain = gain / (var + EPS).sqrt()
            out[f"{name}.weight"] = (value.double() * gain[:, None, None, None]).float()
            out[f"{name}.bias"] = (bias - mean * gain).float()
    return out
