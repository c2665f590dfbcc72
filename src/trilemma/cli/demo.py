"""``trilemma demo``: from nothing to two pages in a few minutes."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import DataSet
    from ..evaluate import Classifier
    from ..train import Trainer
    from .report import Compared
    from .study import Drawn, Method

__all__ = ["COMMAND", "Demo", "Results", "run"]


@dataclass(frozen=True)
class Demo:
    """Learn real handwritten digits in three ways, and measure what each is good for: quality, coverage, speed.

    Trains a denoiser, a VAE and a GAN, and writes two pages that need nothing but a browser: report.html, the three compared
    (the generative learning trilemma), and story.html, what one denoiser does and how. Beside them report.json and story.json
    with every figure, pictures of the samples, and the runs themselves in diffusion, vae and gan, which `trilemma sample` and
    `trilemma train --resume` take further. A second start in the same folder goes on from where the first one was.

    Args:
        out: folder of the runs and of the pages.
        steps: updates of the denoiser.
        vae_steps: updates of the VAE.
        gan_steps: updates of the GAN.
        chain: steps of ancestral sampling (DDPM).
        tuned: steps of the plan that is tuned for the denoiser, at least 2; 0 for none.
        n: samples by each method, and real digits that they are compared with; 20 to 297.
        bits: digits whose likelihood is taken.
        classifier_steps: updates of the classifier that judges the samples.
        seed: of everything.
        device: auto, cpu, cuda, cuda:1, mps.
    """

    out: str = "runs/demo"
    steps: int = 400
    vae_steps: int = 400
    gan_steps: int = 200
    chain: int = 250
    tuned: int = 8
    n: int = 297
    bits: int = 32
    classifier_steps: int = 300
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "vae_steps", "gan_steps", "chain"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.tuned < 2 and self.tuned != 0:
            raise ValueError(f"tuned={self.tuned} must be at least 2, or 0 for none")
        if self.classifier_steps < 10:
            raise ValueError(f"classifier_steps={self.classifier_steps} must be at least 10")
        if not 20 <= self.n <= 297:
            raise ValueError(f"n={self.n} must lie between 20 (every class is there) and 297 (all that are held out)")


COMMAND = Demo


@dataclass(frozen=True, eq=False)
class Results:
    """All that the story shows.

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
    from ..train.checkpoint import checkpoints

    begun = time.perf_counter()
    out = Path(settings.out)
    if checkpoints(out / "checkpoints"):
        raise ValueError(
            f"{out} is itself a run; the demo keeps three of them in its folder: name another one by --out"
        )
    train, held_out = load("digits"), load("digits", split="test").subset(slice(0, settings.n))
    denoiser: Trainer | None = None
    for family, preset, steps in (
        ("diffusion", "digits", settings.steps),
        ("vae", "vae-digits", settings.vae_steps),
        ("gan", "gan-digits", settings.gan_steps),
    ):
        trainer, finished = _train(settings, family, preset, steps, train)
        denoiser = denoiser or trainer
        if not finished:
            print(f"\nstopped at step {trainer.step} of {out / family}; the same command goes on from there")
            return 130
    assert denoiser is not None
    classifier = _classifier(settings, train)
    _tune(settings)
    compared = _compare(settings)
    results = _study(settings, denoiser, classifier, train, held_out)
    results.figures["seconds"]["whole_command"] = round(time.perf_counter() - begun, 1)
    _write(out, compared, results)
    _summary(out, compared, results)
    return 0


def _train(settings: Demo, family: str, preset: str, steps: int, train: "DataSet") -> "tuple[Trainer, bool]":
    """Train one of the models in its folder, or go on with it; returns its trainer and whether it came to the end."""
    from .config import from_flat, read_yaml
    from .train import Train, fit

    plan = from_flat(Train, read_yaml(preset), source=preset)
    plan = replace(
        plan,
        out=str(Path(settings.out) / family),
        resume=True,
        device=settings.device,
        train=replace(plan.train, steps=steps, seed=settings.seed),
    )
    print(f"\n{family}")
    trainer, _ = fit(plan, train)
    return trainer, trainer.step >= steps


def _classifier(settings: Demo, train: "DataSet") -> "Classifier":
    """The judge of all samples, kept in the folder."""
    from ..evaluate import train_classifier
    from ..evaluate.extractors import load_classifier, save_classifier

    path = Path(settings.out) / f"classifier-{settings.classifier_steps}-{settings.seed}.safetensors"
    if not path.exists():
        print("\nteaching a classifier the same digits, to judge the samples")
        assert train.labels is not None
        classifier = train_classifier(
            train.images, train.labels, classes=train.classes, steps=settings.classifier_steps, seed=settings.seed
        )
        save_classifier(classifier, path)
    return load_classifier(path)


def _tune(settings: Demo) -> None:
    """A plan of few steps, on few pilots: less than half of what `trilemma tune` takes by default."""
    from ..train import load_model
    from .tune import Tune
    from .tune import run as tune
    from .tuned import read, stale

    path = str(Path(settings.out) / "diffusion")
    if settings.tuned and not any(
        r["steps"] == settings.tuned and not stale(r, load_model(path)[0]) for r in read(path)
    ):
        print(f"\ntuning a plan of {settings.tuned} steps for the denoiser")
        tune(Tune(path, steps=(settings.tuned,), pilots=48, budget=15_000, seed=settings.seed, device=settings.device))


def _compare(settings: Demo) -> "Compared":
    """The three models and the ways to sample the denoiser, measured alike."""
    from .report import Report, compare

    out = Path(settings.out)
    weights = out / f"classifier-{settings.classifier_steps}-{settings.seed}.safetensors"
    print("\nmeasuring quality, coverage and cost")
    report = Report(
        tuple(str(out / family) for family in ("diffusion", "vae", "gan")),
        rules=(
            f"ddpm:{settings.chain}",
            "ddim:50",
            "dpmpp_2m:10",
            *([f"tuned:{settings.tuned}"] if settings.tuned else []),
        ),
        weights=str(weights),
        n=settings.n,
        bits=settings.bits,
        seed=settings.seed,
        out=settings.out,
        device=settings.device,
    )
    return compare(report, command=f"trilemma demo --out {settings.out}")


_DRAWN = {"ddpm": "diffusion: DDPM {chain}", "ddim": "diffusion: DDIM 50", "dpmpp_2m": "diffusion: DPM-Solver++(2M) 10"}


def _methods(chain: int) -> "dict[str, Method]":
    """What the story compares, by the key that its figures have in story.json."""
    from .study import Method

    return {
        "ddpm": Method(f"DDPM, {chain} steps", "ddpm", chain, "uniform"),
        "ddim": Method("DDIM, 50 steps", "ddim", 50),
        "dpmpp_2m": Method("DPM-Solver++(2M), 10 steps", "dpmpp_2m", 10),
        "guidance_0": Method("Guidance 0", "dpmpp_2m", 20, guidance=0.0),
        "guidance_1": Method("Guidance 1", "dpmpp_2m", 20),
        "guidance_3": Method("Guidance 3", "dpmpp_2m", 20, guidance=3.0),
    }


def _study(
    settings: Demo, trainer: "Trainer", classifier: "Classifier", train: "DataSet", held_out: "DataSet"
) -> Results:
    """Everything that the story shows, from a trained denoiser; what the report has drawn is not drawn again."""
    import torch

    from .jury import kept_samples
    from .report import machine
    from .study import Judge, Method, copying, denoising_errors, draw, forward_pictures, known, reverse_pictures

    assert held_out.labels is not None
    judge = Judge(classifier, train, held_out)
    print("\nsampling the denoiser in more ways, for its story")
    start = time.perf_counter()
    seed, shape, labels = settings.seed, train.shape, held_out.labels
    drawn, sweep = {}, []
    with trainer.averaged() as model:
        for key, method in _methods(settings.chain).items():
            if name := _DRAWN.get(key):
                images, row = kept_samples(settings.out, name.format(chain=settings.chain))
                drawn[key] = known(
                    method, images, labels, judge, calls=row["calls"], seconds=row["seconds"] * len(images)
                )
            else:
                drawn[key] = draw(model, method, labels, judge, shape=shape, seed=seed)
            _line(drawn[key], judge.floor.value)
        for rule in ("ddpm", "ddim", "dpmpp_2m"):
            for steps in (3, 5, 10, 20):
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
            name: model.process.log_snr(torch.tensor(ts, dtype=torch.float64)).clamp(-40, 40).tolist()
            for name, ts in {"forward": times, "reverse": moments}.items()
        }
    distance, usual, pictures["nearest"] = copying(drawn["ddim"].images, train.images, held_out.images)
    rows = [json.loads(line) for line in (Path(settings.out) / "diffusion" / "metrics.jsonl").read_text().splitlines()]
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
            "frechet_distance": judge.floor.value,
            "frechet_distance_95": (judge.floor.low, judge.floor.high),
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
            "sampling": round(time.perf_counter() - start, 1),
        },
        "machine": machine(str(trainer.world.device)),
    }
    return Results(figures, drawn, pictures)


def _line(result: "Drawn", floor: float) -> None:
    print(
        f"  {result.method.name:28s} {result.calls:5d} calls {result.seconds:6.1f} s   "
        f"Frechet distance {result.frechet} ({result.frechet.value / floor:.2f} x real)   "
        f"agreement {result.agreement.value:.3f}"
    )


def _write(out: Path, compared: "Compared", results: Results) -> None:
    """Both pages, both sets of figures, and pictures of the samples."""
    from ..data.pixels import save_picture
    from ..train.checkpoint import write_file
    from .report import write, write_page
    from .story import tell as story
    from .verdict import tell as verdict

    link = '<p>How the denoiser works, step by step: <a href="story.html">one denoiser, sampled in many ways</a>.</p>'
    write(out, compared, verdict(compared.figures, compared.pictures, home=link))
    write_file(out / "story.json", results.figures)
    for key, result in results.drawn.items():
        save_picture(out / "samples" / f"story-{key}.png", result.images[:100], columns=10)
    write_page(out / "story.html", story(results))


def _summary(out: Path, compared: "Compared", results: Results) -> None:
    from .findings import findings, plain

    print("\n" + "\n".join(plain(line) for line in findings(compared.figures)))
    print(
        f"\nin {results.figures['seconds']['whole_command']:.0f} s; open {out / 'report.html'} and {out / 'story.html'}"
    )
