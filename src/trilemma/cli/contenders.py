"""The ways to make samples that a report compares: every rule of a denoiser, and every other generator as it is."""

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..evaluate.cost import Cost, Meter
from ..evaluate.reference import tensors_checksum
from ..numerics.noise import Noise
from ..sampling import ProgressBar, sample
from ..train.game import Game
from .sample import Calls, Sample, fast_numbers, way

if TYPE_CHECKING:
    from ..denoise import Preconditioned
    from ..sampling import Rule
    from .report import Report

__all__ = ["Contender", "Drawn", "Run", "contenders", "parse_rule", "read_run", "title"]

_GRIDS = {"ddpm": "uniform", "angular": "angular", "tuned": "angular"}  # the rest steps evenly in log-SNR
_NAMES = {"ddpm": "DDPM", "ddim": "DDIM", "dpmpp_2m": "DPM-Solver++(2M)", "angular": "default", "tuned": "tuned"}
_LONG_ENOUGH = 0.5  # seconds of work that are timed, so that a sampler of one call is not lost in the clock
_WARM = 5.0  # seconds of a first time beside which what is done only once (kernels loaded, memory found) is little


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples of one contender and what they cost.

    Args:
        images: ``(N, C, H, W)`` in model units, clipped to [-1, 1].
        calls: network evaluations that one sample took.
        cost: of one sample, but for the peak of memory, which is that of a batch.
    """

    images: Tensor
    calls: int
    cost: Cost


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to make samples.

    Args:
        run: the trained model.
        name: for people.
        weights: a checksum of all that decides the samples but their seeds.
        make: from seeds, labels on the device and the title of a progress bar, "" for none, to images and the network
            evaluations each took.
    """

    run: "Run"
    name: str
    weights: str
    make: Callable[[Tensor, Tensor | None, str], tuple[Tensor, int]]

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return next(self.run.model.parameters()).device

    def draw(self, n: int, labels: Tensor | None, *, seed: int, batch: int, watts: float) -> Drawn:
        """``n`` samples in batches, each metered. What is over soon is done again, and its first time forgotten.

        Args:
            n: number of samples.
            labels: classes ``(n,)``, left aside by a model without classes.
            seed: of the noise; a sample depends on it, its place and its label alone.
            batch: samples at once.
            watts: see :class:`~trilemma.evaluate.cost.Meter`.
        """
        parts = torch.arange(n).split(batch)
        seeds = Noise(seed, n).seeds

        def once(title: str) -> tuple[Tensor, int, Cost]:
            made, costs = [], []
            for i, index in enumerate(parts):
                mine = labels[index].to(self.device) if labels is not None and self.run.classes else None
                count = f" ({i + 1} of {len(parts)})" if len(parts) > 1 else ""
                with Meter(self.device, watts=watts) as meter:
                    images, calls = self.make(seeds[index], mine, title and f"{title}{count}")
                made.append(images.float().cpu())
                costs.append(meter.cost)
            return torch.cat(made), calls, reduce(operator.add, costs)

        images, calls, cost = once(self.name)
        if cost.seconds < _WARM:
            costs = [once("")[2]]
            while sum(c.seconds for c in costs) < _LONG_ENOUGH:
                costs.append(once("")[2])
            total = reduce(operator.add, costs)
            cost = replace(total, seconds=total.seconds / len(costs), joules=total.joules / len(costs))
        return Drawn(images.clamp(-1, 1), calls, replace(cost, seconds=cost.seconds / n, joules=cost.joules / n))


def parse_rule(entry: str) -> tuple[str, int]:
    """``name:steps`` as a rule and its number of steps.

    Raises:
        ValueError: no such rule, or no number of steps that it can take.

    >>> parse_rule("ddim:50")
    ('ddim', 50)
    """
    from .._names import lookup
    from ..sampling import RULES

    name, _, steps = entry.partition(":")
    lookup("rule", name, dict.fromkeys([*RULES, "tuned"]))
    if not steps.isdecimal() or int(steps) < 1:
        raise ValueError(f"{entry!r} should read rule:steps, as in ddim:50")
    if name == "tuned" and int(steps) < 2:
        raise ValueError(f"{entry!r} cannot be tuned: one step is x = D; take at least 2")
    return name, int(steps)


def title(run: str, runs: Sequence[str]) -> str:
    """The last part of a run's path, or as many as tell it from the other runs.

    >>> title("a/digits", ["a/digits", "b/digits"]), title("a/vae", ["a/digits", "a/vae"])
    ('a/digits', 'vae')
    """
    parts, *others = (Path(one).resolve().parts for one in (run, *(other for other in runs if other != run)))
    count = next((k for k in range(1, len(parts)) if all(parts[-k:] != other[-k:] for other in others)), len(parts))
    return "/".join(parts[-count:])


@dataclass(frozen=True, eq=False)
class Run:
    """A trained run, read and found fit to be sampled as is asked for.

    Args:
        path: its folder.
        title: for people.
        family: diffusion, gan, vae, ...
        shape: of an image.
        classes: number of labels, 0 for none.
        model: on the device where it works.
    """

    path: str
    title: str
    family: str
    shape: tuple[int, ...]
    classes: int
    model: "Preconditioned | Game"


def read_run(path: str, settings: "Report") -> Run:
    """Read a run, and find all that keeps it from being sampled by the rules; nothing is tuned or drawn.

    Args:
        path: folder of a trained model of any family.
        settings: ``runs``, ``rules``, ``guidance`` and ``device``.

    Raises:
        ValueError: the run, a rule or the device cannot be used.
        FileNotFoundError: there is no such run.
    """
    from ..baselines import family, load_game
    from ..train import load_model
    from .sample import pick_device, refuse_unlabelled

    device, name, kind = pick_device(settings.device), title(path, settings.runs), family(path)
    if kind != "diffusion":
        game = load_game(path)[0].to(device)
        return Run(path, name, kind, game.shape, game.classes, game)
    model, info = load_model(path)
    if "shape" not in info:
        raise ValueError(f"{path} does not say the shape of its images, so it was not trained by this program")
    classes = len(info["class_names"]) if "label" in model.cond_keys else 0
    if settings.guidance != 1:
        if not classes:
            raise ValueError(f"guidance={settings.guidance:g} needs labels, and {path} knows none")
        refuse_unlabelled(info)
    for rule, steps in map(parse_rule, settings.rules):
        if rule != "tuned":
            _way(path, model, rule, steps, settings.guidance)
    return Run(path, name, kind, tuple(info["shape"]), classes, model.to(device))


def contenders(run: Run, settings: "Report") -> list[Contender]:
    """Every way to sample a run: by each rule if it holds a denoiser, else the one way it has.

    Args:
        run: see `read_run`.
        settings: ``rules`` and ``guidance``; a tuned plan that is missing or stale is tuned first.
    """
    if isinstance(run.model, Game):
        return [_game(run, run.model)]
    return [_denoiser(run, run.model, *parse_rule(rule), settings.guidance) for rule in settings.rules]


def _way(path: str, model: "Preconditioned", rule: str, steps: int, guidance: float) -> "tuple[Tensor, Rule]":
    """The times and the rule."""
    return way(Sample(path, rule=rule, steps=steps, grid=_GRIDS.get(rule, "log_snr"), guidance=guidance), model)


def _denoiser(run: Run, model: "Preconditioned", rule: str, steps: int, guidance: float) -> Contender:
    from ..denoise import CFG
    from .tuned import fingerprint, load_plan

    how = rule
    if rule == "tuned":
        _tuned(run.path, model, steps, guidance)
        how = load_plan(run.path, steps, guidance)[0].to_json()
    grid, bound = _way(run.path, model, rule, steps, guidance)
    denoiser, device = model if guidance == 1 else CFG(model, guidance), next(model.parameters()).device

    def make(seeds: Tensor, labels: Tensor | None, title: str) -> tuple[Tensor, int]:
        counter = Calls(model.net)
        cond = {} if labels is None else {"label": labels}
        with fast_numbers(device), ProgressBar(title) if title else nullcontext() as bar:
            x = sample(denoiser, (len(seeds), *run.shape), grid, bound, seeds=seeds, cond=cond, hook=bar)
        return x, counter.stop()

    guided = "" if guidance == 1 else f", guidance {guidance:g}"
    return Contender(
        run=run,
        name=f"{run.title}: {_NAMES.get(rule, rule)} {steps}{guided}",
        weights=f"{fingerprint(model)} {how} {guidance:g} {grid.tolist()}",
        make=make,
    )


def _tuned(path: str, model: "Preconditioned", steps: int, guidance: float) -> None:
    """See to it that the run has a plan of that many steps for these weights."""
    from .tune import Tune
    from .tune import run as tune
    from .tuned import read, stale

    mine = [r for r in read(path) if (r["steps"], r["guidance"]) == (steps, guidance) and not stale(r, model)]
    if not mine:
        tune(Tune(path, steps=(steps,), guidance=guidance, device=str(next(model.parameters()).device)))


def _game(run: Run, game: Game) -> Contender:
    device = next(game.parameters()).device

    def make(seeds: Tensor, labels: Tensor | None, title: str) -> tuple[Tensor, int]:
        with fast_numbers(device):
            return game.sample(len(seeds), seeds=seeds, label=labels), game.calls

    return Contender(
        run=run,
        name=run.title,
        weights=f"{game.family} {game.config} {tensors_checksum(game.state_dict())}",
        make=make,
    )
