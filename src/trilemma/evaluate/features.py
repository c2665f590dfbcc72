"""What looks at images, and what it sees: extractors, their features, and a small classifier trained on the user's labels.

An extractor sees 8-bit pixels, whatever the images came as, so that samples and real images are rounded alike:

(1)  bytes = round(127.5 (x + 1)) clipped to [0, 255],  for x in model units

Distances between features compare images seen by the same extractor, to the last weight; they are not comparable with figures
from other features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classifier", "Extractor", "Reading", "to_bytes", "to_units", "train_classifier"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What an extractor sees in a set of images.

    Args:
        features: ``(N, D)``.
        logits: ``(N, classes)``; ``None`` from what is no classifier.

    Raises:
        ValueError: not one row for each image.

    >>> Reading(torch.zeros(2, 3), torch.tensor([[0.0, 1.0], [2.0, 1.0]])).predictions
    tensor([1, 0])
    """

    features: Tensor
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.features) if self.logits is None else len(self.logits)
        if self.features.ndim != 2 or rows != len(self.features):
            raise ValueError(
                f"features must be (N, D) and logits (N, classes); got {tuple(self.features.shape)}, N={rows}"
            )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def predictions(self) -> Tensor:
        """``(N,)`` int64: the likeliest class of each image.

        Raises:
            ValueError: there are no logits.
        """
        if self.logits is None:
            raise ValueError("these features come from no classifier, so there are no predictions; use a classifier")
        return self.logits.argmax(1)


def to_bytes(images: Tensor) -> Tensor:
    """Images as uint8, by (1); uint8 passes as it is.

    Args:
        images: ``(N, C, H, W)``, uint8 or floating in model units.

    Raises:
        ValueError: another shape or type, or a value that is not finite.

    >>> to_bytes(torch.tensor([-1.0, 0.0, 2.0]).reshape(1, 1, 1, 3)).flatten().tolist()
    [0, 128, 255]
    """
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"images must be (N, C, H, W), uint8 or in model units; got {images.dtype}, {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8:
        return images
    if not bool(images.isfinite().all()):
        raise ValueError("an image has a NaN or infinity, so it has no features; leave it out")
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_units(images: Tensor) -> Tensor:
    """Bytes in [-1, 1], the way back from (1).

    >>> to_units(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return images.float() / 127.5 - 1


@dataclass(frozen=True, eq=False)
class Extractor:
    """A way to see images, with all that a figure must say of it.

    Args:
        name: in `EXTRACTORS`, with what sets it apart.
        checksum: sha256 of its weights, in hexadecimal.
        resize: how bytes become its input.
        see: ``(n, C, H, W)`` uint8 on ``device`` -> features ``(n, D)`` and logits ``(n, classes)`` or ``None``.
        device: where it computes.
    """

    name: str
    checksum: str
    resize: str
    see: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    device: torch.device | str = "cpu"

    @torch.no_grad()
    def read(self, images: Tensor, *, batch: int = 64) -> Reading:
        """Features of many images, float32, on the CPU.

        Args:
            images: ``(N, C, H, W)``, uint8 or in model units, N >= 1.
            batch: images at once; what is kept of an image does not depend on the others.

        Raises:
            ValueError: no images, or one that has no pixels by `to_bytes`.

        >>> mean = Extractor("mean", "none", "none", lambda x: (x.float().mean((2, 3)), None))
        >>> mean.read(torch.zeros(2, 1, 4, 4)).features
        tensor([[128.],
                [128.]])
        """
        if len(images) == 0:
            raise ValueError("there are no images to read")
        seen = [self.see(to_bytes(part).to(self.device)) for part in images.split(batch)]
        features = torch.cat([part.float().cpu() for part, _ in seen])
        logits = [part.float().cpu() for _, part in seen if part is not None]
        return Reading(features, torch.cat(logits) if logits else None)


class Classifier(nn.Module):
    """A small convolutional classifier for images of any size, with a feature layer before the logits.

    Stages of two 3x3 convolutions halve the image until its shorter side is at most 4; features are the average over
    what is left, through one more linear layer.

    Args:
        channels: of the images.
        classes: number of labels.
        size: shorter side of the images, in pixels.
        width: channels of the first stage; doubled once.
        features: length of the feature vector.
    """

    def __init__(self, channels: int, classes: int, *, size: int, width: int = 32, features: int = 64) -> None:
        super().__init__()
        stages = max(1, math.ceil(math.log2(size / 4)))
        layers: list[nn.Module] = []
        inputs = channels
        for stage in range(stages):
            outputs = width * (1 if stage == 0 else 2)
            for stride in (1, 2):
                layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.neck = nn.Linear(4 * inputs, features)
        self.head = nn.Linear(features, classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        """``(N, C, H, W)`` in model units -> the maps after each rectifier, for `perceptual_distance`."""
        found = []
        for layer in list(self.trunk)[:-2]:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found

    def features(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` in model units -> ``(N, features)``."""
        return functional.relu(self.neck(self.trunk(x)))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` in model units -> logits ``(N, classes)``."""
        return self.head(self.features(x))

    @torch.no_grad()
    def read(self, images: Tensor, *, batch: int = 512) -> Reading:
        """Features and logits of many images, computed in evaluation mode and returned on the CPU.

        Args:
            images: ``(N, C, H, W)`` in model units; moved to the classifier's device batch by batch.
            batch: images at once.
        """
        was_training, device = self.training, self.head.weight.device
        self.eval()
        features = torch.cat([self.features(part.to(device)) for part in images.float().split(batch)])
        logits = self.head(features)
        self.train(was_training)
        return Reading(features.cpu(), logits.cpu())


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    steps: int = 300,
    batch: int = 128,
    lr: float = 3e-3,
    width: int = 32,
    features: int = 64,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Train a `Classifier` in seconds, the same for the same seed.

    AdamW under a one-cycle rate; images are shifted by up to an eighth of their side and get a little noise, so that
    the features do not hang on exact pixels.

    Args:
        images: ``(N, C, H, W)`` float in model units.
        labels: ``(N,)`` int64 in ``[0, classes)``.
        classes: number of labels, at least 2.
        steps: of the optimiser, at least 10.
        batch: images a step.
        lr: highest learning rate.
        width: see `Classifier`.
        features: see `Classifier`.
        seed: of the weights, the order and the noise; torch's global generator is left as it was.
        device: where to train; the classifier stays there.

    Raises:
        ValueError: shapes do not fit, fewer than two classes, steps below 10 or a batch below 2.

    >>> x = torch.linspace(-1, 1, 32).reshape(32, 1, 1, 1).expand(32, 1, 8, 8).contiguous()
    >>> y = (x[:, 0, 0, 0] > 0).long()
    >>> classifier = train_classifier(x, y, classes=2, steps=20, width=4)
    >>> bool((classifier.read(x).predictions == y).float().mean() > 0.9)
    True
    """
    if images.ndim != 4 or labels.shape != (len(images),) or len(images) == 0:
        raise ValueError(f"need images (N, C, H, W) and labels (N,); got {tuple(images.shape)}, {tuple(labels.shape)}")
    if classes < 2 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels from {low} to {high} do not make {classes} classes; at least two are needed")
    if steps < 10 or batch < 2:
        raise ValueError(f"steps={steps} and batch={batch} cannot train: at least 10 steps of 2 images are needed")
    _, channels, height, width_ = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(channels, classes, size=min(height, width_), width=width, features=features).to(device)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    shift = min(height, width_) // 8
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < min(batch, len(images)):
            order = torch.cat([order, torch.randperm(len(images), generator=draw)])
        index, order = order[:batch], order[batch:]
        x = _shifted(images[index].float(), shift, draw)
        x = x + 0.1 * torch.randn(x.shape, generator=draw)
        loss = functional.cross_entropy(model(x.to(device)), labels[index].to(device), label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _shifted(x: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """Each image moved by up to ``most`` pixels either way, its border repeated."""
    if most == 0:
        return x
    n, _, height, width = x.shape
    padded = functional.pad(x, (most, most, most, most), mode="replicate")
    down, right = torch.randint(0, 2 * most + 1, (2, n, 1), generator=draw)
    rows = (down + torch.arange(height))[:, :, None]
    columns = (right + torch.arange(width))[:, None, :]
    return padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
