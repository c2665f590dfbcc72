"""``trilemma tune``: for each number of steps the best plan for this very model, kept beside it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional
from tyro.constructors import PrimitiveConstructorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoise import Denoiser, Preconditioned

__all__ = ["COMMAND", "Tune", "run"]


def _numbers(words: Sequence[str]) -> tuple[int, ...]:
    """``5,8`` or ``5 8`` as numbers."""
    parts = [part for word in words for part in word.split(",") if part]
    for part in parts:
        if not part.lstrip("-").isdecimal():
            raise ValueError(f"{part!r} is not a whole number; write --steps 5,8,10")
    return tuple(map(int, parts))


Budgets = Annotated[
    tuple[int, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="N,N,...",
        instance_from_str=_numbers,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    ),
]


@dataclass(frozen=True)
class Tune:
    """Find the best way to sample a trained run in few steps.

    Solves the run's model finely for some images, tries every published rule and grid on them, then fits a plan of its own, and
    judges all on images that had no part in it. Writes PATH/tuned/STEPS.json, each plan as soon as it is done, for `trilemma
    sample PATH --rule tuned --steps STEPS`, and a picture of error against steps.

    Args:
        path: a run, a checkpoint or a model folder.
        config: a preset or a YAML file with any of these settings; flags override it.
        steps: numbers of steps to tune for, at least 2 each; a step is one call of the denoiser.
        label: the classes to tune for, by name or number, in turn; all of them without it; none for no class.
        guidance: strength of classifier-free guidance that will be sampled with; each has plans of its own.
        again: tune again what was tuned for the same weights before.
        pilots: images to tune on; a third of them judges. More take longer and are surer: 192 with a budget of 120000 took
            twice as long on the demo's model, for an eighth less error at 8 steps.
        budget: calls of the denoiser, times images, after which the search for a better grid stops; the rest is not cut short.
        seed: of the pilots' noise.
        device: auto, cpu, cuda, cuda:1, mps.
        batch: images at once.
        ema: use the averaged weights.
    """

    path: Positional[str] = "runs/digits"
    config: str | None = None
    steps: Budgets = (5, 8, 10, 20)
    label: tuple[str, ...] = ()
    guidance: float = 1.0
    again: bool = False
    pilots: int = 96
    budget: int = 40_000
    seed: int = 0
    device: str = "auto"
    batch: int = 64
    ema: bool = True

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("steps is empty; write --steps 5,8,10")
        for steps in self.steps:
            if steps < 2:
                raise ValueError(f"steps={steps} cannot be tuned: it must be at least 2, since one step is x = D")
        if self.pilots < 6:
            raise ValueError(f"pilots={self.pilots} must be at least 6, to fit and to judge; 96 are a good number")
        for name in ("batch", "budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


COMMAND = Tune

_LEGEND = """
error: between an image of the plan and the exact one from the same noise; root mean square over its numbers in [-1, 1], mean
over images that had no part in tuning. default: error of `--rule angular`. published: of the best published rule and grid.
better: published / error. calls: of the denoiser, times images."""


def run(settings: Tune) -> int:
    """Tune, save, report; returns the exit status."""
    from .._optional import require
    from ..train.checkpoint import write_file
    from .info import columns
    from .sample import open_model
    from .tuned import describe, fingerprint, flags, path_of, picture, read, table

    require("matplotlib", extra="train")  # before the work, not after it
    model, denoiser, info, labels = open_model(settings, settings.pilots)
    here = (fingerprint(model), settings.guidance, list(settings.label))
    plans = [row for row in read(settings.path) if (row["weights"], row["guidance"], row["labels"]) == here]
    kept, wanted = {row["steps"]: row for row in plans}, sorted(set(settings.steps))
    todo = [steps for steps in wanted if settings.again or steps not in kept]
    for steps in sorted(set(wanted) - set(todo)):
        print(f"{steps} steps: tuned before (--again tunes anew), {describe(kept[steps])}")
    drawing = path_of(settings.path, "error.png", settings.guidance)
    drawing.parent.mkdir(exist_ok=True)
    for made in _tuned(settings, todo, model, denoiser, info["shape"], labels):
        kept[made["steps"]] = made
        write_file(path_of(settings.path, f"{made['steps']}.json", settings.guidance), made)
    rows = [kept[steps] for steps in sorted(kept)]
    picture(rows, drawing)
    print()
    print(columns(f"{settings.path} at guidance {settings.guidance:g}", table(rows)))
    print(_LEGEND)
    how = flags(wanted[0], settings.guidance)
    print(f"\n{drawing} shows the errors; sample with: trilemma sample {settings.path} --rule tuned {how}")
    return 0


def _tuned(
    settings: Tune,
    todo: list[int],
    model: "Preconditioned",
    denoiser: "Denoiser",
    shape: Sequence[int],
    labels: "Tensor | None",
) -> Iterator[dict[str, Any]]:
    """The record of every budget as soon as it is tuned, under one bar with the time left for all."""
    import torch
    from tqdm.auto import tqdm

    from .._version import __version__
    from ..sampling.tune import tune
    from .tuned import describe, record

    device = next(model.parameters()).device
    fixed = {steps: settings.pilots * _fine(steps) + 2500 * steps for steps in todo}  # calls times items, a guess
    work = {steps: max(settings.budget, calls) for steps, calls in fixed.items()}
    bar = tqdm(total=sum(work.values()), unit=" calls", unit_scale=True, leave=False, disable=not todo)

    def count(_: object, args: "tuple[Tensor, ...]") -> None:
        bar.update(len(args[0]))

    handle = denoiser.register_forward_pre_hook(count)
    try:
        for i, steps in enumerate(todo, start=1):
            bar.set_description(f"{steps} steps, {i} of {len(todo)}")
            start = time.perf_counter()
            tuned = tune(
                denoiser,
                (settings.pilots, *shape),
                steps,
                seeds=settings.seed,
                cond={} if labels is None else {"label": labels.to(device)},
                fine=_fine(steps),
                budget=settings.budget,
                batch=settings.batch,
            )
            made = record(
                tuned,
                model,
                guidance=settings.guidance,
                labels=list(settings.label),
                pilots=settings.pilots,
                seed=settings.seed,
                seconds=round(time.perf_counter() - start, 1),
                device=str(device),
                versions={"trilemma": __version__, "torch": torch.__version__},
            )
            yield made
            bar.total = bar.n * sum(work.values()) / sum(work[n] for n in todo[:i])  # the rest by what it took so far
            with bar.external_write_mode():
                print(f"{steps} steps: {describe(made)}", flush=True)
    finally:
        handle.remove()
        bar.close()


def _fine(steps: int) -> int:
    """Steps of the reference, which is of fourth order."""
    return max(200, 4 * steps)
