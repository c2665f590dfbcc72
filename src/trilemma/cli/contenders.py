"""The ways to make samples that a report compares: every rule of a denoiser, and every other generator as it is."""

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..evaluate.cost import Cost, Meter
from ..evaluate.reference import tensors_checksum
from ..numerics.noise import Noise
from ..sampling import ProgressBar, sample
from .bits import of_denoiser, of_game
from .sample import Calls, Sample, fast_numbers

if TYPE_CHECKING:
    from ..denoise import Preconditioned
    from ..train.game import Game
    from .report import Report

__all__ = ["Contender", "Drawn", "contenders", "parse_rule", "title"]

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
        run: folder of the trained model.
        family: diffusion, gan, vae, ...: what kind of model it is.
        name: for people.
        weights: a checksum of all that decides the samples but their seeds.
        shape: of an image.
        classes: number of labels, 0 for none.
        device: where it works.
        bits: from images in model units, labels and a seed to bits per dimension as in `bits`, or ``None``.
        make: from seeds, labels on the device and the title of a progress bar, "" for none, to images and the network
            evaluations each took.
    """

    run: str
    family: str
    name: str
    weights: str
    shape: tuple[int, ...]
    classes: int
    device: torch.device
    make: Callable[[Tensor, Tensor | None, str], tuple[Tensor, int]]
    bits: Callable[[Tensor, Tensor | None, int], dict[str, Any] | None]

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
                mine = labels[index].to(self.device) if labels is not None and self.classes else None
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
        ValueError: no such rule, or no number of steps.

    >>> parse_rule("ddim:50")
    ('ddim', 50)
    """
    from .._names import lookup
    from ..sampling import RULES

    name, _, steps = entry.partition(":")
    lookup("rule", name, dict.fromkeys([*RULES, "tuned"]))
    if not steps.isdecimal() or int(steps) < 1:
        raise ValueError(f"{entry!r} should read rule:steps, as in ddim:50")
    return name, int(steps)


def title(run: str, runs: Sequence[str]) -> str:
    """The last part of a run's path, or as many as tell it from the other runs.

    >>> title("a/digits", ["a/digits", "b/digits"]), title("a/vae", ["a/digits", "a/vae"])
    ('a/digits', 'vae')
    """
    parts, *others = (Path(one).resolve().parts for one in (run, *(other for other in runs if other != run)))
    count = next((k for k in range(1, len(parts)) if all(parts[-k:] != other[-k:] for other in others)), len(parts))
    return "/".join(parts[-count:])


def contenders(run: str, settings: "Report") -> list[Contender]:
    """Every way to sample a run: by each rule if it holds a denoiser, else the one way it has.

    Args:
        run: folder of a trained model of any family.
        settings: ``runs``, ``rules``, ``guidance`` and ``device``; a tuned plan that is missing or stale is tuned first.

    Raises:
        ValueError: the run, a rule or the device cannot be used.
        FileNotFoundError: there is no such run.
    """
    from ..baselines import load_game
    from ..train import load_model
    from ..train.checkpoint import read_model
    from .sample import pick_device, refuse_unlabelled

    device = pick_device(settings.device)
    name = title(run, settings.runs)
    if "game" in read_model(run)[0]:
        return [_game(run, name, load_game(run)[0], device)]
    model, info = load_model(run)
    if settings.guidance != 1:
        refuse_unlabelled(info)
    model = model.to(device)
    return [_denoiser(run, name, model, info, *parse_rule(rule), settings.guidance) for rule in settings.rules]


def _denoiser(
    run: str, name: str, model: "Preconditioned", info: dict[str, Any], rule: str, steps: int, guidance: float
) -> Contender:
    from ..denoise import CFG
    from .sample import way
    from .tuned import fingerprint, load_plan

    how = rule
    if rule == "tuned":
        _tuned(run, model, steps, guidance)
        how = load_plan(run, steps, guidance)[0].to_json()
    grid, bound = way(Sample(run, rule=rule, steps=steps, grid=_GRIDS.get(rule, "log_snr"), guidance=guidance), model)
    denoiser, device = model if guidance == 1 else CFG(model, guidance), next(model.parameters()).device

    def make(seeds: Tensor, labels: Tensor | None, title: str) -> tuple[Tensor, int]:
        counter = Calls(model.net)
        cond = {} if labels is None else {"label": labels}
        with fast_numbers(device), ProgressBar(title) if title else nullcontext() as bar:
            x = sample(denoiser, (len(seeds), *info["shape"]), grid, bound, seeds=seeds, cond=cond, hook=bar)
        return x, counter.stop()

    guided = "" if guidance == 1 else f", guidance {guidance:g}"
    return Contender(
        run=run,
        family="diffusion",
        name=f"{name}: {_NAMES.get(rule, rule)} {steps}{guided}",
        weights=f"{fingerprint(model)} {how} {guidance:g} {grid.tolist()}",
        shape=tuple(info["shape"]),
        classes=len(info["class_names"]) if "label" in model.cond_keys else 0,
        device=device,
        make=make,
        bits=lambda x, label, seed: of_denoiser(model, x, label, seed=seed),
    )


def _tuned(run: str, model: "Preconditioned", steps: int, guidance: float) -> None:
    """See to it that the run has a plan of that many steps for these weights."""
    from .tune import Tune
    from .tune import run as tune
    from .tuned import read, stale

    mine = [r for r in read(run) if (r["steps"], r["guidance"]) == (steps, guidance) and not stale(r, model)]
    if not mine:
        tune(Tune(run, steps=(steps,), guidance=guidance, device=str(next(model.parameters()).device)))


def _game(run: str, name: str, game: "Game", device: torch.device) -> Contender:
    game = game.to(device)

    def make(seeds: Tensor, labels: Tensor | None, title: str) -> tuple[Tensor, int]:
        with fast_numbers(device):
            return game.sample(len(seeds), seeds=seeds, label=labels), game.calls

    return Contender(
        run=run,
        family=game.family,
        name=name,
        weights=f"{game.family} {game.config} {tensors_checksum(game.state_dict())}",
        shape=game.shape,
        classes=game.classes,
        device=device,
        make=make,
        bits=lambda x, label, seed: of_game(game, x, label, seed=seed),
    )
