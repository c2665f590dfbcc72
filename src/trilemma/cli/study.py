"""What the demo measures of a trained denoiser of labelled images: samples by several rules, quality, speed, copying."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import DataSet
from ..denoise import CFG, FiniteDenoiser, Preconditioned
from ..evaluate import Classifier, Estimate, Proportion, class_agreement, frechet_estimates
from ..evaluate.estimate import of_mean
from ..numerics.noise import Noise
from ..process import GRIDS
from ..sampling import ProgressBar, Trajectory, get_rule, sample
from .sample import Calls, fast_numbers

__all__ = [
    "Drawn",
    "Judge",
    "Method",
    "copying",
    "denoising_errors",
    "draw",
    "forward_pictures",
    "known",
    "reverse_pictures",
]


@dataclass(frozen=True)
class Method:
    """A way to sample.

    Args:
        name: for people.
        rule: an entry of the registry of rules.
        steps: how many.
        grid: an entry of the registry of grids.
        guidance: strength of classifier-free guidance.
    """

    name: str
    rule: str
    steps: int
    grid: str = "log_snr"
    guidance: float = 1.0


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples by one method, what they cost and how good they are.

    Args:
        method: how they were made.
        images: ``(N, C, H, W)`` in model units, clipped to [-1, 1].
        calls: calls of the network for the whole batch.
        seconds: wall time.
        frechet: distance to the training images; its interval is that of its value for ever more samples.
        agreement: share of the samples that show the class asked for.
    """

    method: Method
    images: Tensor
    calls: int
    seconds: float
    frechet: Estimate
    agreement: Proportion

    def record(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {
            "name": self.method.name,
            "rule": self.method.rule,
            "grid": self.method.grid,
            "steps": self.method.steps,
            "guidance": self.method.guidance,
            "samples": len(self.images),
            "calls": self.calls,
            "seconds": round(self.seconds, 3),
            "frechet_distance": self.frechet.value,
            "frechet_distance_95": (self.frechet.low, self.frechet.high),
            "class_agreement": self.agreement.value,
            "class_agreement_95": self.agreement.interval(),
        }


class Judge:
    """Scores samples by a classifier's features against the training images.

    Args:
        classifier: trained on ``train``.
        train: the reference.
        held_out: real images that neither the classifier nor the denoiser has seen.

    Attributes:
        floor: the Frechet distance of the held-out images to the training images.
        accuracy: the classifier's agreement with the labels of the held-out images.
    """

    def __init__(self, classifier: Classifier, train: DataSet, held_out: DataSet) -> None:
        assert held_out.labels is not None
        self.classifier = classifier
        self.reference = classifier.read(train.model_units()).features
        self.floor, self.accuracy = self(held_out.model_units(), held_out.labels)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Estimate, Proportion]:
        """Frechet distance and class agreement of images with the labels that were asked for."""
        seen = self.classifier.read(images)
        distance, _ = frechet_estimates(seen.features, self.reference)
        return distance, class_agreement(seen.predictions, labels)


def draw(
    model: Preconditioned, method: Method, labels: Tensor, judge: Judge, *, shape: Sequence[int], seed: int
) -> Drawn:
    """Sample one image for each label, in one batch, and score them."""
    device = next(model.parameters()).device
    denoiser = model if method.guidance == 1 else CFG(model, method.guidance)
    calls = Calls(model.net)
    with fast_numbers(device), ProgressBar(method.name) as bar:
        start = time.perf_counter()
        images = sample(
            denoiser,
            (len(labels), *shape),
            GRIDS[method.grid](model.process, method.steps),
            get_rule(method.rule),
            seeds=seed,
            hook=bar,
            cond={"label": labels.to(device)},
        )
        images = images.float().clamp(-1, 1).cpu()
        seconds = time.perf_counter() - start
    return known(method, images, labels, judge, calls=calls.stop(), seconds=seconds)


def known(method: Method, images: Tensor, labels: Tensor, judge: Judge, *, calls: int, seconds: float) -> Drawn:
    """Score samples that are there already."""
    return Drawn(method, images, calls, seconds, *judge(images, labels))


def forward_pictures(model: Preconditioned, images: Tensor, times: Sequence[float], *, seed: int) -> Tensor:
    """Noisy versions of each image, one a time, with the same noise along a row: ``(len(images) * len(times), ...)``."""
    eps = Noise(seed, len(images)).normal_like(images)
    process = model.process
    rows = [process.perturb(images, torch.tensor(t, dtype=torch.float64), eps) for t in times]
    return torch.stack(rows, 1).flatten(0, 1)


def reverse_pictures(
    model: Preconditioned, labels: Tensor, *, shape: Sequence[int], columns: int, seed: int
) -> tuple[Tensor, Tensor, list[float]]:
    """The states and the guesses of x along the probability flow.

    Args:
        model: the denoiser.
        labels: one for each row.
        shape: of an image.
        columns: how many moments, evenly spread over the steps.
        seed: of the noise.

    Returns:
        States ``(rows, columns, ...)``, the denoiser's guesses at the same moments, and the times.
    """
    device = next(model.parameters()).device
    path = Trajectory()
    noise = model.process.prior((len(labels), *shape), Noise(seed, len(labels)).at(-1)).to(device)
    with fast_numbers(device):
        sample(
            model,
            tuple(noise.shape),
            GRIDS["log_snr"](model.process, 4 * columns),
            get_rule("dpmpp_2m"),
            x=noise,
            hook=path,
            cond={"label": labels.to(device)},
        )
    states, times = [noise, *path.x[:-1]], [1.0, *path.t[:-1]]  # at which the guesses were made
    shown = torch.linspace(0, len(states) - 1, columns).round().long().tolist()
    before, guesses = (torch.stack([row[i] for i in shown], 1).float().cpu() for row in (states, path.x0))
    return before, guesses, [times[i] for i in shown]


def denoising_errors(
    model: Preconditioned, train: DataSet, held_out: DataSet, log_snrs: Sequence[float], *, seed: int
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Root mean square error of a pixel of E[x | x_t], by noise level.

    Three lines: the model on images it was trained on, the model on held-out images, and, on held-out images, the best
    that can be done by remembering: the exact denoiser of the training images of the right class.

    Args:
        model: the denoiser.
        train: as many of these are used as there are held-out images.
        held_out: images not trained on.
        log_snrs: the noise levels.
        seed: of the noise.

    Returns:
        Name -> log-SNR, error, and the ends of its 95 % interval over the images.
    """
    assert train.labels is not None
    assert held_out.labels is not None
    device = next(model.parameters()).device
    process = model.process
    memory = {
        int(label): FiniteDenoiser(process, train.model_units(train.labels == label).double())
        for label in held_out.labels.unique()
    }
    seen = train.subset(slice(0, len(held_out)))
    out: dict[str, list[tuple[float, float, float, float]]] = {"seen": [], "held_out": [], "memory": []}
    for i, level in enumerate(log_snrs):
        t = process.time(torch.tensor(level, dtype=torch.float64))
        for name, data in (("seen", seen), ("held_out", held_out)):
            assert data.labels is not None
            x = data.model_units()
            x_t = process.perturb(x, t, Noise(seed, len(x)).at(i))
            with torch.no_grad(), fast_numbers(device):
                guess = model(x_t.to(device), t, label=data.labels.to(device)).mean.float().cpu()
            out[name].append((level, *_root_mean_square(guess - x)))
            if name == "held_out":
                recalled = torch.empty_like(x)
                for label, exact in memory.items():
                    mine = data.labels == label
                    recalled[mine] = exact(x_t[mine], t).mean
                out["memory"].append((level, *_root_mean_square(recalled - x)))
    return out


def _root_mean_square(errors: Tensor) -> tuple[float, float, float]:
    """Of all numbers of ``(N, ...)``, and its interval over the N items."""
    mean = of_mean(errors.double().square().flatten(1).mean(1))
    return mean.value**0.5, max(0.0, mean.low) ** 0.5, mean.high**0.5


def copying(images: Tensor, train: Tensor, held_out: Tensor) -> tuple[float, float, Tensor]:
    """How near samples come to training images, beside how near real unseen images come.

    Returns:
        The median distance of a sample to its nearest training image, the same for held-out images (both root mean square
        by pixel), and the nearest training image of each sample.
    """

    def nearest(x: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.cdist(x.flatten(1), train.flatten(1)) / x[0].numel() ** 0.5).min(1)

    distance, index = nearest(images)
    return float(distance.median()), float(nearest(held_out)[0].median()), train[index]
