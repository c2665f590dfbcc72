"""``trilemma demo``: from nothing to a report in a few minutes."""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import DataSet
    from ..train import Trainer
    from .study import Drawn, Method

__all__ = ["COMMAND", "Demo", "Results", "run"]


@dataclass(frozen=True)
class Demo:
    """Learn real handwritten digits, sample them in several ways, and write a report to look at.

    Writes report.html, which needs nothing but a browser, report.json with every figure, pictures of the samples, and the
    trained run itself, which `trilemma sample` and `trilemma train --resume` take further. A second start in the same
    folder goes on from where the first one was.

    Args:
        out: folder of the run and of the report.
        steps: updates of the denoiser.
        chain: steps of ancestral sampling (DDPM).
        n: samples by each method, and real digits that they are compared with; 20 to 297.
        classifier_steps: updates of the classifier that judges the samples.
        seed: of everything.
        device: auto, cpu, cuda, cuda:1, mps.
    """

    out: str = "runs/demo"
    steps: int = 600
    chain: int = 1000
    n: int = 297
    classifier_steps: int = 300
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "chain", "classifier_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 20 <= self.n <= 297:
            raise ValueError(f"n={self.n} must lie between 20 (every class is there) and 297 (all that are held out)")


COMMAND = Demo


@dataclass(frozen=True, eq=False)
class Results:
    """All that the report shows.

    Args:
        figures: every number, as JSON data.
        drawn: the samples of each method by its key.
        pictures: the other pictures by name.
    """

    figures: dict[str, Any]
    drawn: dict[str, "Drawn"]
    pictures: dict[str, "Tensor"]


def run(settings: Demo) -> int:
    """Train, measure, write; returns the exit status."""
    from ..data import load
    from ..train import load_model
    from ..train.checkpoint import checkpoints
    from .config import from_flat, read_yaml
    from .sample import refuse_unlabelled
    from .story import tell
    from .train import Train, fit

    begun = time.perf_counter()
    if checkpoints(Path(settings.out) / "checkpoints"):  # perhaps of another run, which the demo could not guide
        refuse_unlabelled(load_model(settings.out)[1])
    plan = from_flat(Train, read_yaml("digits"), source="digits")
    plan = replace(
        plan,
        out=settings.out,
        resume=True,
        device=settings.device,
        train=replace(plan.train, steps=settings.steps, seed=settings.seed),
    )
    train, held_out = load("digits"), load("digits", split="test").subset(slice(0, settings.n))
    trainer, _ = fit(plan, train)
    if trainer.step < settings.steps:
        print(f"\nstopped at step {trainer.step}; the same command goes on from there")
        return 130
    results = _study(settings, trainer, train, held_out)
    results.figures["seconds"]["whole_command"] = round(time.perf_counter() - begun, 1)
    out = Path(settings.out)
    _write(out, results)
    (out / "report.html").write_text(tell(results), encoding="utf-8")
    _summary(out, results)
    return 0


def _methods(chain: int) -> "dict[str, Method]":
    """What the report compares, by the key that its figures have in report.json."""
    from .study import Method

    return {
        "ddpm": Method(f"DDPM, {chain} steps", "ddpm", chain, "uniform"),
        "ddim": Method("DDIM, 50 steps", "ddim", 50),
        "dpmpp_2m": Method("DPM-Solver++(2M), 10 steps", "dpmpp_2m", 10),
        "guidance_0": Method("Guidance 0", "dpmpp_2m", 20, guidance=0.0),
        "guidance_1": Method("Guidance 1", "dpmpp_2m", 20),
        "guidance_3": Method("Guidance 3", "dpmpp_2m", 20, guidance=3.0),
    }


def _study(settings: Demo, trainer: "Trainer", train: "DataSet", held_out: "DataSet") -> Results:
    """Everything that the report shows, from a trained denoiser."""
    import torch

    from ..evaluate import train_classifier
    from .study import Judge, Method, copying, denoising_errors, draw, forward_pictures, reverse_pictures

    start = time.perf_counter()
    print("\nteaching a classifier the same digits, to judge the samples")
    assert train.labels is not None
    assert held_out.labels is not None
    classifier = train_classifier(
        train.images, train.labels, classes=train.classes, steps=settings.classifier_steps, seed=settings.seed
    )
    judge = Judge(classifier, train, held_out)
    judging = time.perf_counter() - start

    start = time.perf_counter()
    seed, shape, labels = settings.seed, train.shape, held_out.labels
    drawn, sweep = {}, []
    with trainer.averaged() as model:
        for key, method in _methods(settings.chain).items():
            drawn[key] = draw(model, method, labels, judge, shape=shape, seed=seed)
            _line(drawn[key], judge.floor)
        for rule in ("ddpm", "ddim", "dpmpp_2m"):
            for steps in (3, 5, 10, 20, 50):
                sweep.append(
                    draw(model, Method(f"{rule}, {steps} steps", rule, steps), labels, judge, shape=shape, seed=seed)
                )
        times = [i / 10 for i in range(11)]
        some = torch.stack([held_out.images[labels == label][0] for label in (0, 2, 3, 5, 8)])
        states, guesses, moments = reverse_pictures(model, torch.arange(2, 6), shape=shape, columns=11, seed=seed)
        pictures = {
            "real": held_out.images,
            "labels": labels,
            "forward": forward_pictures(model, some, times, seed=seed),
            "states": states,
            "guesses": guesses,
        }
        errors = denoising_errors(model, train, held_out, [float(level) for level in range(-8, 11)], seed=seed)
        levels = {
            name: model.process.log_snr(torch.tensor(ts, dtype=torch.float64)).tolist()
            for name, ts in {"forward": times, "reverse": moments}.items()
        }
    distance, usual, pictures["nearest"] = copying(drawn["ddim"].images, train.images, held_out.images)
    rows = [json.loads(line) for line in (Path(settings.out) / "metrics.jsonl").read_text().splitlines()]
    figures = {
        "settings": asdict(settings),
        "data": {"source": "scikit-learn digits", "train": len(train), "held_out": len(held_out)},
        "model": {
            "network": type(model.net).__name__,
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "denoiser": model.extra_repr(),
            "updates": trainer.step,
        },
        "floor": {
            "frechet_distance": judge.floor,
            "class_agreement": judge.accuracy.value,
            "class_agreement_95": judge.accuracy.interval(),
        },
        "methods": {key: result.record() for key, result in drawn.items()},
        "sweep": [result.record() for result in sweep],
        "loss": [(row["step"], row["loss"]) for row in rows],
        "loss_by_noise": errors,
        "log_snr": levels,
        "copying": {"samples": distance, "held_out": usual},
        "seconds": {
            "training": round(sum(row["seconds"] for row in rows), 1),
            "classifier": round(judging, 1),
            "sampling": round(time.perf_counter() - start, 1),
        },
        "machine": {
            "device": str(trainer.world.device),
            "threads": torch.get_num_threads(),
            "processors": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "trilemma": __version__,
        },
    }
    return Results(figures, drawn, pictures)


def _line(result: "Drawn", floor: float) -> None:
    print(
        f"  {result.method.name:28s} {result.calls:5d} calls {result.seconds:6.1f} s   "
        f"Frechet distance {result.frechet:.3f} ({result.frechet / floor:.2f} x real)   "
        f"agreement {result.agreement.value:.3f}"
    )


def _write(out: Path, results: Results) -> None:
    """The figures as JSON and the main samples as pictures."""
    from ..data.pixels import save_picture

    (out / "report.json").write_text(json.dumps(results.figures, indent=1) + "\n")
    for key, result in results.drawn.items():
        save_picture(out / "samples" / f"{key}.png", result.images[:100], columns=10)


def _summary(out: Path, results: Results) -> None:
    figures = results.figures
    floor = figures["floor"]["frechet_distance"]
    chain, guided = figures["methods"]["ddpm"], figures["methods"]["guidance_3"]
    print(
        f"\nDDPM: Frechet distance {chain['frechet_distance'] / floor:.2f} x that of real held-out digits; "
        f"guidance 3: {guided['class_agreement']:.1%} of the samples are the digit asked for"
    )
    print(f"in {figures['seconds']['whole_command']:.0f} s; open {out / 'report.html'}")
