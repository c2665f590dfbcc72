"""``trilemma train``: data, a network and a process make a denoiser; everything about the run stays in one folder."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..train.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ..data import DataSet
    from ..denoise import Preconditioned
    from ..train import RunDir, Trainer, World
    from ..train.game import Game

__all__ = ["COMMAND", "DataOptions", "ModelOptions", "Train", "build_model", "fit", "load_data", "run"]


@dataclass(frozen=True)
class DataOptions:
    """What to learn.

    Args:
        data: digits, a folder of images (sub-folders are classes), FILE.npz, FILE.npy, idx:PATH, or hf:NAME.
        resize: cut the centred square of each image and resample it to this side (folders, hf:).
        channels: 1 for grey, 3 for colour (folders, hf:); as stored without it.
        layout: NCHW or NHWC, for arrays that could be either.
        value_range: the values that stand for black and white, for arrays on an unusual scale.
        on_error: refuse an image that cannot be used, or skip it and say so.
    """

    data: str = "digits"
    resize: int | None = None
    channels: int | None = None
    layout: str | None = None
    value_range: tuple[float, float] | None = None
    on_error: str = "refuse"


@dataclass(frozen=True)
class ModelOptions:
    """What learns it.

    Args:
        model: the family: diffusion, gan, ddgan or another that `trilemma info` lists. The others have no net, process, target,
            sigma_data and learned_variance.
        net: a network or one of its sizes; `trilemma info` lists them.
        net_options: arguments of the network, or of the family, as in: widths=[32,64] attention=[1] dropout=0.1
        process: the noise process, alone or with settings, as in vp:beta_max=10,shift=-1.4; `trilemma info` lists both. All
            have shift, which is added to the log-SNR: -1.4 makes up for images of twice the side.
        target: what the network predicts: x0, eps, score, v, velocity or edm.
        sigma_data: standard deviation of the data in model units; measured without it.
        learned_variance: let it also say how uncertain it is about each pixel, by a second head of the network with a tenth of
            the loss (iDDPM's hybrid): what `trilemma sample --rule ancestral_learned` draws with.
        conditional: teach it the labels, where the data has some.
    """

    model: str = "diffusion"
    net: str = "unet-tiny"
    net_options: tuple[str, ...] = ()
    process: str = "flow"
    target: str = "edm"
    sigma_data: float | None = None
    learned_variance: bool = False
    conditional: bool = True


@dataclass(frozen=True)
class Train:
    """Train a denoiser, or a model of another family, on images.

    Everything is kept in one folder: settings, command, metrics, sample grids, checkpoints. Ctrl-C saves and stops;
    --resume goes on, with the settings of the run unless flags change them. On several devices:
    torchrun --nproc-per-node 2 -m trilemma.cli train ...

    Args:
        config: a preset or a YAML file with any of these settings; flags override it.
        data: what to learn.
        model: what learns it.
        train: how it learns.
        out: folder of the run.
        resume: go on with the run in --out, if there is one.
        device: auto, cpu, cuda, cuda:1, mps.
        sample_every: updates between two pictures of samples; 0 for none.
        save_every: updates between two checkpoints; the end is always saved.
        keep: how many of the newest checkpoints stay.
    """

    config: str | None = None
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainConfig = field(default_factory=TrainConfig)
    out: str = "runs/digits"
    resume: bool = False
    device: str = "auto"
    sample_every: int = 1000
    save_every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        for name, low in (("sample_every", 0), ("save_every", 1), ("keep", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")


COMMAND = Train


def run(settings: Train) -> int:
    """Train; returns the exit status."""
    trainer, main = fit(settings, load_data(settings.data))
    finished = trainer.step >= settings.train.steps
    if main:
        print(f"\n{'done' if finished else 'stopped'} at step {trainer.step}; everything is in {settings.out}")
        print(f"go on:   trilemma train --out {settings.out} --resume" + (" --steps N" if finished else ""))
        print(f"sample:  trilemma sample {settings.out}")
    return 0 if finished else 130


def fit(settings: Train, data: "DataSet") -> "tuple[Trainer, bool]":
    """Train on data in a run folder, to the end or until Ctrl-C, which saves.

    Returns:
        The trainer, and whether this process is the one that speaks.

    Raises:
        ValueError: settings that do not fit the data, or a folder that holds another run.
    """
    from ..train import RunDir, Trainer, setup
    from .config import to_flat

    if not settings.model.conditional:
        data = replace(data, labels=None, class_names=())
    with ExitStack() as stack:
        try:
            world = stack.enter_context(setup(settings.device))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        model = build_model(settings.model, data, seed=settings.train.seed)
        trainer = Trainer(
            model, (data.images, data.labels), config=settings.train, world=world, info=describe_data(data)
        )
        folder = RunDir(settings.out, config=to_flat(settings), resume=settings.resume, world=world)
        resumed = folder.resume(trainer) if settings.resume else None
        if world.main:
            _greet(settings, data, trainer, resumed)
        _train(settings, trainer, folder, data, world)
        return trainer, world.main


def load_data(options: DataOptions) -> "DataSet":
    """Read the data, and name on stderr what was skipped."""
    from ..data import load
    from .config import to_flat

    given = to_flat(options)
    value_range = given.pop("value_range")
    data = load(given.pop("data"), value_range=tuple(value_range) if value_range else None, **given)
    for line in data.skipped:
        print(f"skipped {line}", file=sys.stderr)
    return data


def build_model(options: ModelOptions, data: "DataSet", *, seed: int) -> "Preconditioned | Game":
    """The untrained model for this data; its first weights depend on the seed alone.

    Raises:
        ValueError: an unknown name or argument, or images that do not fit the network.
    """
    import torch
    import yaml

    from ..denoise import LearnedVariance, Preconditioned
    from ..nets import build
    from ..process import process_from_entry

    arguments: dict[str, Any] = {}
    for entry in options.net_options:
        name, found, value = entry.partition("=")
        if not found:
            raise ValueError(f"net_options has {entry!r}, which should read name=value, as in widths=[32,64]")
        try:
            arguments[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"net_options: what follows the = in {entry!r} is not YAML") from None
    if options.model != "diffusion":
        return _build_game(options, data, arguments, seed=seed)
    given: dict[str, Any] = {"channels": data.shape[0], "classes": data.classes}
    if options.learned_variance:
        given["out_channels"] = 2 * data.shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            net = build(options.net, **{**given, **arguments})
        except TypeError as error:
            raise ValueError(f"net_options {options.net_options} do not fit {options.net}: {error}") from error
    process = process_from_entry(options.process)
    measured = float(data.model_units(slice(0, 10_000)).std())
    sigma_data = measured if options.sigma_data is None else options.sigma_data
    kind = LearnedVariance if options.learned_variance else Preconditioned
    return kind(net, process, options.target, sigma_data=sigma_data)


def _build_game(options: ModelOptions, data: "DataSet", arguments: dict[str, Any], *, seed: int) -> "Game":
    import torch

    from .._names import lookup
    from ..baselines import GAMES, build_game

    lookup("model", options.model, dict.fromkeys([*GAMES, "diffusion"]))
    for name in ("net", "process", "target", "sigma_data", "learned_variance"):
        if getattr(options, name) != getattr(ModelOptions(), name):
            raise ValueError(
                f"{name} is for diffusion; leave it out, and give what {options.model} takes to net_options"
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return build_game(options.model, **{"shape": data.shape, "classes": data.classes, **arguments})
        except TypeError as error:
            raise ValueError(f"net_options {options.net_options} do not fit {options.model}: {error}") from error


def describe_data(data: "DataSet") -> dict[str, Any]:
    """What a model should remember of its data, as JSON data."""
    return {"data": data.source, "shape": list(data.shape), "class_names": list(data.class_names), "items": len(data)}


def _greet(settings: Train, data: "DataSet", trainer: "Trainer", resumed: Path | None) -> None:
    from ..train.game import Game

    model, where = trainer.model, f"on {trainer.world.size} x {trainer.world.device}"
    print(data)
    if isinstance(model, Game):
        sizes = {name: sum(p.numel() for p in player) / 1e6 for name, player in model.players().items()}
        print(f"{settings.model.model}: " + ", ".join(f"{name} {size:.2f}M" for name, size in sizes.items()), end=" ")
        print(f"parameters, {where}")
    else:
        parameters = sum(p.numel() for p in model.net.parameters())
        net, target = settings.model.net, settings.model.target
        print(f"{net} with {parameters / 1e6:.2f}M parameters, {model.process}, target {target}, {where}")
    if resumed is not None:
        print(f"going on from {resumed}")


def _train(settings: Train, trainer: "Trainer", folder: "RunDir", data: "DataSet", world: "World") -> None:
    """Run the updates, with records, pictures and checkpoints; returns early if asked to stop."""
    from tqdm import tqdm

    from ..data.pixels import save_picture

    last = settings.train.steps
    smooth = None
    with _asked_to_stop() as asked, tqdm(total=last, initial=trainer.step, disable=not world.main, unit="step") as bar:
        for record in trainer.steps():
            folder.log(record)
            smooth = record.loss if smooth is None else 0.98 * smooth + 0.02 * record.loss
            bar.update()
            bar.set_postfix_str(f"loss {smooth:.4f}, {record.images_per_second:.0f} images/s", refresh=False)
            stop = _any_rank(asked.is_set(), world)
            final = record.step == last
            if final or stop or record.step % settings.save_every == 0:
                folder.save(trainer, keep=settings.keep)
            if settings.sample_every and (final or record.step % settings.sample_every == 0):
                pictures = _preview(trainer, data)
                if world.main:
                    save_picture(folder.samples / f"step_{record.step:08d}.png", pictures, columns=10)
            if stop:
                return


def _preview(trainer: "Trainer", data: "DataSet") -> "Tensor":
    """A hundred samples of the averaged weights, ten columns, classes in turn; the same seeds every time."""
    import torch

    from ..sampling import sample
    from ..train.game import Game
    from .sample import fast_numbers

    device = trainer.world.device
    cond = {"label": torch.arange(100, device=device) % data.classes} if data.classes else {}
    with trainer.averaged() as model, fast_numbers(device):
        if isinstance(model, Game):
            return model.sample(100, **cond).float().cpu()
        return sample(model, (100, *data.shape), 20, cond=cond).float().cpu()


def _any_rank(flag: bool, world: "World") -> bool:
    """Whether the flag is set on any process: all of them stop after the same update."""
    import torch

    return flag if world.size == 1 else bool(world.sum(torch.tensor(float(flag), device=world.device)))


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a run stops between two updates; the second Ctrl-C stops at once."""
    asked = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("\nfinishing this update and saving; once more to stop at once", file=sys.stderr)

    here = threading.current_thread() is threading.main_thread()  # Python lets no other thread handle signals
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
