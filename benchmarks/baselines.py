"""Baselines and the recipes of others on the same data, judged alike: is a baseline of ours a straw man?

    python benchmarks/baselines.py --r3gan PATH                       # digits
    python benchmarks/baselines.py --data ../shared/data/mnist.npz --presets gan-28 --r3gan PATH
    python benchmarks/baselines.py --presets vae-digits vq-digits flow-digits --peers vae --out PAGE   # --unlabelled too

Each preset of ours trains to its end on one thread, by the processor's clock, which other work changes less than
the wall's (``--runs`` takes what `trilemma train` has trained instead); each peer gets the seconds of the first preset, or
``--seconds``. All samples are judged by one small classifier, trained on
the training images: the Frechet distance of its features between samples and training images (as many samples as there are
held-out images, whose own distance is the floor, and ``--samples``), and how often the sample shows the class asked for. The
pictures go to ``--pictures``. A peer that is not there is named as such. Results stay in ``--store`` and are not computed again.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import common  # puts src on the path
from peers.gans import dcgan, r3gan
from peers.pytorch_gan import acgan, cgan, wgan_gp
from peers.vaes import convolutional, fully_connected
from trilemma.baselines import load_game
from trilemma.cli.config import from_flat, read_yaml
from trilemma.cli.study import Judge
from trilemma.cli.train import Train, build_model
from trilemma.data import DataSet, load
from trilemma.data.pixels import save_picture
from trilemma.evaluate import train_classifier
from trilemma.train import Trainer

PAGE = Path(__file__).parent / "results" / "baselines.md"
PEERS = ["dcgan", "wgan-gp", "cgan", "acgan", "r3gan", "r3gan-rates", "vae"]
Draw = Callable[[Tensor, int], Tensor]  # labels and a seed to images


def ours(preset: str, train: DataSet, *, labelled: bool = True) -> tuple[Draw, int, float, int]:
    """A preset, trained to its end: how to draw, updates, processor seconds, parameters of what draws."""
    settings = from_flat(Train, read_yaml(preset), source=preset)
    if not labelled:
        train = DataSet(train.images, source=train.source)
    game = build_model(settings.model, train, seed=settings.train.seed)
    trainer = Trainer(game, (train.images, train.labels), config=settings.train)
    begin = time.process_time()
    for _ in trainer.steps():
        pass
    seconds = time.process_time() - begin

    def draw(labels: Tensor, seed: int) -> Tensor:
        with trainer.averaged() as averaged:
            return averaged.sample(len(labels), seeds=seed, label=labels if labelled else None)

    return draw, trainer.step, seconds, sum(p.numel() for p in trainer.game.averaged().values())


def trained(run: Path) -> tuple[Draw, int, float, int]:
    """A run of `trilemma train`, of a model that is no denoiser; its seconds are not known."""
    game, _ = load_game(run)
    updates = max(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))

    def draw(labels: Tensor, seed: int) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [game.sample(len(part), seeds=seed + i, label=part) for i, part in enumerate(labels.split(250))]
            )

    return draw, updates, math.nan, sum(p.numel() for p in game.averaged().values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, or a file with images; the last 5000 are held out")
    parser.add_argument("--presets", nargs="*", default=["gan-digits", "ddgan-digits"])
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="trained runs to judge, by their folders")
    parser.add_argument(
        "--unlabelled", action="store_true", help="train the presets without labels too, as the peers are"
    )
    parser.add_argument("--peers", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--r3gan", type=Path, help="a checkout of R3GAN")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--seconds", type=float, help="of the peers; those of the first preset without it")
    parser.add_argument("--pictures", type=Path, default=Path(tempfile.gettempdir()) / "baselines")
    parser.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "baselines.json")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = data_of(options.data)
    images = train.model_units()
    classifier = train_classifier(images, train.labels, classes=train.classes)
    judge = Judge(classifier, train, held_out)
    rows: dict[str, dict] = json.loads(options.store.read_text()) if options.store.exists() else {}

    def judged(name: str, make: Callable[[], tuple[Draw, int, float, int]], *, classes: bool = True) -> dict:
        if name in rows:
            return rows[name]
        draw, updates, seconds, parameters = make()
        labels = torch.arange(options.samples) % train.classes
        many, few = draw(labels, 1).clamp(-1, 1), draw(held_out.labels, 2).clamp(-1, 1)
        options.pictures.mkdir(parents=True, exist_ok=True)
        save_picture(options.pictures / f"{name.replace(' ', '_')}.png", many[:100], columns=10)
        row = {"updates": updates, "seconds": seconds, "parameters": parameters}
        row |= {"few": judge(few, held_out.labels)[0].value, "many": judge(many, labels)[0].value}
        row["agreement"] = judge(many, labels)[1].value if classes else None
        rows[name] = row
        options.store.write_text(json.dumps(rows))
        print(name, row, flush=True)
        return row

    for run in options.runs:
        judged(f"ours {run.name}", lambda run=run: trained(run))
    for preset in options.presets:
        judged(f"ours {preset}", lambda preset=preset: ours(preset, train))
        if options.unlabelled:
            judged(
                f"ours {preset} without labels",
                lambda preset=preset: ours(preset, train, labelled=False),
                classes=False,
            )
    seconds = options.seconds or rows[f"ours {options.presets[0]}"]["seconds"]

    def peer(make, **more):
        done = make(images, train.labels, seconds, **more)
        return done.draw, done.updates, done.seconds, done.parameters

    if "vae" in options.peers:
        judged("VAE of the PyTorch examples", lambda: peer(fully_connected), classes=False)
        judged("Vanilla VAE of PyTorch-VAE", lambda: peer(convolutional), classes=False)
        tuned = {"latents": 16, "weight": 0.0025, "lr": 2e-3}
        judged("Vanilla VAE, tuned", lambda: peer(convolutional, **tuned), classes=False)
    if "dcgan" in options.peers:
        judged("DCGAN", lambda: peer(dcgan), classes=False)
    if "wgan-gp" in options.peers:
        judged("WGAN-GP of PyTorch-GAN", lambda: peer(wgan_gp), classes=False)
    if "cgan" in options.peers:
        judged("CGAN of PyTorch-GAN", lambda: peer(cgan))
    if "acgan" in options.peers:
        judged("AC-GAN of PyTorch-GAN", lambda: peer(acgan))
    missing = []
    if not {"r3gan", "r3gan-rates"} & set(options.peers):
        pass
    elif options.r3gan and options.r3gan.exists():
        wide = {"checkout": options.r3gan, "widths": (64, 32) if train.shape[1] == 8 else (128, 64, 32)}
        if "r3gan" in options.peers:
            judged("R3GAN as published", lambda: peer(r3gan, **wide))
        if "r3gan-rates" in options.peers:
            judged("R3GAN with our rates", lambda: peer(r3gan, **wide, lr=(2e-3, 0.0), gamma=(1.0, 0.1)))
    else:
        missing.append("R3GAN was not at hand; clone https://github.com/brownvc/R3GAN and give --r3gan PATH.")
    write(options, rows, judge, len(held_out), missing)


def data_of(name: str) -> tuple[DataSet, DataSet]:
    if name == "digits":
        return load("digits"), load("digits", split="test")
    whole = load(name)
    return whole.subset(slice(0, len(whole) - 5000)), whole.subset(slice(len(whole) - 5000, len(whole)))


def write(options: argparse.Namespace, rows: dict[str, dict], judge: Judge, count: int, missing: list[str]) -> None:
    """The page of this data set."""
    table = common.table(
        [
            "model",
            "updates",
            "CPU s",
            "parameters",
            f"Frechet, {count}",
            "over the floor",
            f"Frechet, {options.samples}",
            "class",
        ],
        [
            [
                name,
                row["updates"],
                f"{row['seconds']:.0f}" if math.isfinite(row["seconds"]) else "",
                f"{row['parameters'] / 1e6:.2f}M",
                f"{row['few']:.3f}",
                f"{row['few'] / judge.floor.value:.2f}",
                f"{row['many']:.3f}",
                "" if row["agreement"] is None else f"{row['agreement']:.3f}",
            ]
            for name, row in rows.items()
        ],
    )
    floor = (
        f"{options.data.rpartition('/')[2]}: the {count} held-out images are at {judge.floor.value:.3f} (the floor)."
    )
    common.document("Baselines", "benchmarks/baselines.py", ("trilemma",), [floor, "", *table, *missing], options.out)


if __name__ == "__main__":
    main()
