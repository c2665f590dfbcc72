"""``trilemma sample``: pictures, an array and a record of how they were made, from a trained run."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..denoise import Denoiser, Preconditioned
    from ..sampling import Rule
    from ..train.game import Game
    from .tune import Tune

__all__ = ["COMMAND", "Calls", "Sample", "fast_numbers", "open_model", "pick_labels", "refuse_unlabelled", "run"]


@dataclass(frozen=True)
class Sample:
    """Draw images from a trained run; rule, steps, grid and guidance are for denoisers.

    Writes grid.png, samples.npz (images as uint8, labels) and sample.json. Image i depends on --seed and i only, not on
    --n, --batch or the device's number of threads.

    Args:
        path: a run, a checkpoint or a model folder.
        config: a preset or a YAML file with any of these settings; flags override it.
        n: number of images.
        rule: how to step; `trilemma info` lists all rules; `tuned` for the plan that `trilemma tune` made for this run.
        steps: steps of the rule, each of one or more calls of the denoiser.
        grid: how the steps are spread over time; `trilemma info` lists all grids. Not for `tuned`, whose
            plans have their own.
        label: the classes to draw, by name or number, in turn; all of them without it; none for no class.
        guidance: strength of classifier-free guidance; 1 is none, 0 ignores the label. Needs a run with label_dropout > 0.
        seed: of the noise.
        out: folder to write into; without it `drawn` in PATH, or the first free drawn-2, drawn-3, ....
        device: auto, cpu, cuda, cuda:1, mps.
        batch: images at once.
        precision: of the network: bf16, fp32, or auto for what is fast on the device.
        ema: use the averaged weights.
    """

    path: Positional[str] = "runs/digits"
    config: str | None = None
    n: int = 64
    rule: str = "angular"
    steps: int = 20
    grid: str = "angular"
    label: tuple[str, ...] = ()
    guidance: float = 1.0
    seed: int = 0
    out: str | None = None
    device: str = "auto"
    batch: int = 256
    precision: str = "auto"
    ema: bool = True

    def __post_init__(self) -> None:
        for name in ("n", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision={self.precision!r} is not auto, bf16 or fp32")
        if self.rule == "tuned" and self.grid != "angular":
            raise ValueError(f"a tuned plan has times of its own; leave out --grid {self.grid}, or name another rule")


COMMAND = Sample


def run(settings: Sample) -> int:
    """Draw samples; returns the exit status."""
    import numpy as np
    import torch

    from .._version import __version__
    from ..baselines import family
    from ..data.pixels import save_picture, to_uint8
    from ..numerics.noise import Noise

    _check_names(settings)
    pick_device(settings.device)
    kind = family(settings.path)
    drawer = _denoised(settings) if kind == "diffusion" else _played(settings, kind)
    info, labels, device = drawer.info, drawer.labels, drawer.device
    names = [] if labels is None else info["class_names"]
    seeds = Noise(settings.seed, settings.n).seeds
    parts: list[Tensor] = []
    used = 0
    start = time.perf_counter()
    for index in torch.arange(settings.n).split(settings.batch):
        with fast_numbers(device, settings.precision):
            x, calls = drawer.draw(seeds[index], None if labels is None else labels[index].to(device))
        parts.append(x.float().cpu())
        used += calls
    seconds = time.perf_counter() - start
    images = torch.cat(parts)

    out = Path(settings.out or free_folder(Path(settings.path) / "drawn"))
    out.mkdir(parents=True, exist_ok=True)
    save_picture(out / "grid.png", images, columns=len(names) if 1 < len(names) <= 20 and not settings.label else None)
    arrays: dict[str, Any] = {"images": to_uint8(images).permute(0, 2, 3, 1).numpy()}
    if labels is not None:
        arrays |= {"labels": labels.numpy(), "class_names": np.array(names)}
    np.savez_compressed(out / "samples.npz", **arrays)
    record = {
        **asdict(settings),
        **drawer.record,
        "trained_on": info["data"],
        "calls": used,
        "seconds": round(seconds, 3),
        "device": str(device),
        "versions": {"trilemma": __version__, "torch": torch.__version__, "python": sys.version.split()[0]},
    }
    (out / "sample.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{settings.n} images in {seconds:.1f} s and {used} calls of the network: {out / 'grid.png'}")
    return 0


@dataclass(frozen=True, eq=False)
class _Drawer:
    """A model that draws: seeds ``(n,)`` and labels to images and calls of the network; and what the record says of it."""

    draw: "Callable[[Tensor, Tensor | None], tuple[Tensor, int]]"
    info: dict[str, Any]
    labels: "Tensor | None"
    device: "torch.device"
    record: dict[str, Any]


def _denoised(settings: Sample) -> _Drawer:
    """By a denoiser and a rule."""
    from ..sampling import ProgressBar, sample

    model, denoiser, info, labels = open_model(settings, settings.n)
    grid, rule = way(settings, model)

    def draw(seeds: "Tensor", label: "Tensor | None") -> "tuple[Tensor, int]":
        cond, calls = {} if label is None else {"label": label}, Calls(model.net)
        with ProgressBar(f"{settings.rule}, {len(seeds)} images") as bar:
            x = sample(denoiser, (len(seeds), *info["shape"]), grid, rule, seeds=seeds, hook=bar, cond=cond)
        return x, calls.stop()

    record = {"process": str(model.process), **({"grid": "the plan's own"} if settings.rule == "tuned" else {})}
    return _Drawer(draw, info, labels, next(model.parameters()).device, record)


def _played(settings: Sample, kind: str) -> _Drawer:
    """By a model of another family.

    Raises:
        ValueError: settings that are for denoisers.
    """
    for name in ("rule", "steps", "grid", "guidance"):
        if getattr(settings, name) != getattr(Sample(), name):
            raise ValueError(
                f"{name} is for denoisers, and {settings.path} holds a model of the family {kind}; leave it out"
            )
    game, info, labels = open_game(settings, settings.n)

    def draw(seeds: "Tensor", label: "Tensor | None") -> "tuple[Tensor, int]":
        return game.sample(len(seeds), seeds=seeds, label=label), game.calls

    record = {"model": kind, **dict.fromkeys(("rule", "steps", "grid", "guidance"))}
    return _Drawer(draw, info, labels, next(game.parameters()).device, record)


def open_game(settings: Sample, n: int) -> "tuple[Game, dict[str, Any], Tensor | None]":
    """The trained model of another family than diffusion, on its device, what it was saved with, and ``n`` labels.

    Raises:
        ValueError: the device or the classes cannot be had.
        FileNotFoundError: there is no model.
    """
    from ..baselines import load_game

    device = pick_device(settings.device)
    game, info = load_game(settings.path, ema=settings.ema)
    labels = pick_labels(settings.label, info["class_names"] if game.classes else [], n)
    if labels is not None and "none" in settings.label:
        refuse_unlabelled(info)
    return game.to(device), info, labels


def _check_names(settings: Sample) -> None:
    """Find a rule or a grid that does not exist before anything is loaded.

    Raises:
        ValueError: the nearest one is named.
    """
    from .._names import lookup
    from ..process import GRIDS
    from ..sampling import RULES

    lookup("rule", settings.rule, dict.fromkeys([*RULES, "tuned"]))
    lookup("grid", settings.grid, GRIDS)


def open_model(settings: "Sample | Tune", n: int) -> "tuple[Preconditioned, Denoiser, dict[str, Any], Tensor | None]":
    """The trained model of a command, on its device.

    Args:
        settings: path, device, label, guidance, ema.
        n: number of items to label.

    Returns:
        The model, the same guided, what it was saved with, and labels, shape ``(n,)``, or ``None`` if it knows no classes.

    Raises:
        ValueError: the device, the classes or the guidance cannot be had.
        FileNotFoundError: there is no model.
    """
    from ..denoise import CFG
    from ..train import load_model

    device = pick_device(settings.device)
    model, info = load_model(settings.path, ema=settings.ema)
    if "shape" not in info:
        raise ValueError(f"{settings.path} does not say the shape of its images, so it was not trained by this program")
    labels = pick_labels(settings.label, info["class_names"] if "label" in model.cond_keys else [], n)
    if settings.guidance != 1 and labels is None:
        raise ValueError(f"guidance={settings.guidance:g} needs labels, and there are none here")
    if labels is not None and (settings.guidance != 1 or "none" in settings.label):
        refuse_unlabelled(info)
    model.to(device)
    return model, model if settings.guidance == 1 else CFG(model, settings.guidance), info, labels


def way(settings: Sample, model: "Preconditioned") -> "tuple[Tensor, Rule]":
    """The times and the rule; those in the angle for the model's own ``sigma_data``, as in `trilemma.sample`."""
    from ..process import GRIDS
    from ..process.grid import angular_grid
    from ..sampling import get_rule
    from ..sampling.angle import Angular
    from .tuned import flags, load_plan, stale

    if settings.rule == "tuned":
        plan, record = load_plan(settings.path, settings.steps, settings.guidance)
        if stale(record, model):
            again = f"trilemma tune {settings.path} {flags(settings.steps, settings.guidance)}"
            print(f"this plan was tuned for other weights of this model; for these: {again}", file=sys.stderr)
        return plan.ts, plan.rule
    rule = get_rule(settings.rule)
    if isinstance(rule, Angular):
        rule = replace(rule, sigma_data=model.sigma_data)
    if settings.grid == "angular":
        return angular_grid(model.process, settings.steps, sigma_data=model.sigma_data), rule
    return GRIDS[settings.grid](model.process, settings.steps), rule


def pick_device(name: str) -> "torch.device":
    """The device of that name; for ``auto`` the fastest kind that is there.

    Raises:
        ValueError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name!r} cannot be used here ({reason}); take auto or cpu") from None
    return device


def pick_labels(wanted: tuple[str, ...], names: list[str], n: int) -> "Tensor | None":
    """Labels for ``n`` images: the wanted classes in turn, or all of them.

    Args:
        wanted: names or numbers of classes; ``("none",)`` for images without a label.
        names: the classes of the model.
        n: number of images.

    Returns:
        ``(n,)`` int64, -1 for no label; ``None`` if the model knows no classes.

    Raises:
        ValueError: a class that does not exist.

    >>> pick_labels(("dog", "0"), ["cat", "dog"], 3)
    tensor([1, 0, 1])
    """
    import torch

    from .._names import unknown

    if not names:
        if wanted not in ((), ("none",)):
            raise ValueError(f"label={' '.join(wanted)} was given, but this model knows no classes")
        return None
    numbers = {name: i for i, name in enumerate(names)}
    numbers = {str(i): i for i in range(len(names))} | numbers | {"none": -1}
    for name in wanted:
        if name not in numbers:
            raise unknown("class", name, [*names, "none"])
    chosen = torch.tensor([numbers[name] for name in wanted] or list(range(len(names))))
    return chosen[torch.arange(n) % len(chosen)]


def refuse_unlabelled(info: dict[str, Any]) -> None:
    """Refuse to ask a model for images without a label, as guidance does, if it never saw one in training.

    Args:
        info: what the model was saved with.

    Raises:
        ValueError: its run had ``label_dropout`` 0.
    """
    if info.get("label_dropout") == 0:
        raise ValueError(
            "guidance and label none ask the model for images without a label, and this one never saw any: it was trained "
            "with label_dropout=0; train it with --label-dropout 0.1, or sample with --guidance 1 and classes"
        )


def fast_numbers(device: "torch.device", precision: str = "auto") -> AbstractContextManager[Any]:
    """Autocast to bf16 where it is asked for, or where it pays."""
    import torch

    from ..nets import recommended_precision

    chosen = recommended_precision(device) if precision == "auto" else precision
    return torch.autocast(device.type, torch.bfloat16, enabled=chosen == "bf16")


class Calls:
    """Counts the calls of a network from now on, until `stop`."""

    def __init__(self, net: "torch.nn.Module") -> None:
        self.calls = 0
        self._handle = net.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1

    def stop(self) -> int:
        """Stop counting; returns the count."""
        self._handle.remove()
        return self.calls


def free_folder(folder: Path) -> Path:
    """A folder that does not exist yet: this one, or with the first free number behind it."""
    number = 1
    while (candidate := folder if number == 1 else folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return candidate
