"""The training loop as a generator: each item is one update, and the caller logs, samples and saves in between.

Every random number of update ``n`` comes from (seed, n, what it is for, position in the global batch). So the same run is had on
one process and on many, in one piece or resumed, and nothing of a generator's state has to be saved.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..denoise import Preconditioned
from ..nets.precision import recommended_precision
from ..numerics.noise import Noise
from ..numerics.shapes import pad
from . import checkpoint
from .batches import Batches, Data
from .config import TrainConfig
from .denoising import Denoising
from .distributed import World, whole, wrap
from .ema import EMA, profile
from .game import Adam, Game, Minibatch, Players
from .monitor import DivergedError, Divergence, NoiseProfile
from .snapshot import restore, snapshot

__all__ = ["Record", "Trainer"]

_LARGEST = 30.0  # absolute value of an item; far beyond that of data in model units


class _Draw(IntEnum):
    """What a random number is for."""

    WHOLE = 0
    ITEMS = 1
    FLIP = 2
    LABEL = 3
    DROPOUT = 4
    LATER = 5  # the second player and those after it


@dataclass(frozen=True)
class Record:
    """One update.

    Args:
        step: updates finished.
        loss: loss of the last player, the mean over the global batch.
        lr: learning rate that was used, the last player's.
        grad_norm: Euclidean norm of its gradient before clipping.
        images: items seen since the start of the run.
        seconds: wall time of the update.
        images_per_second: items over seconds, all processes together.
        figures: what the game logs; with several players also ``loss`` and ``grad_norm`` of each, as ``loss_PLAYER``.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    images: int
    seconds: float
    images_per_second: float
    figures: Mapping[str, float] = field(default_factory=dict)


class _Turn(nn.Module):
    """A loss as a module, since a module's call is what ``DistributedDataParallel`` wraps."""

    def __init__(self, game: Players) -> None:
        super().__init__()
        self.game = game

    def forward(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.game.loss(player, batch)


class Trainer:
    """Trains a denoiser, or a game of several players, on a set of items.

    Args:
        model: a denoiser, trained by :class:`~trilemma.train.denoising.Denoising`, or a game; moved to the device of
            ``world``, and its weights are changed in place.
        data: see :class:`~trilemma.train.batches.Batches`.
        config: the settings.
        world: this process among others, from :func:`~trilemma.train.distributed.setup`; alone, on the model's device,
            without it.
        info: JSON data that is saved with the model.

    Attributes:
        step: updates finished.
        game: what is played; ``model`` itself unless that is a denoiser.
        ema: the averages of the weights.

    Raises:
        ValueError: settings that do not fit each other, the model or the data.

    >>> from trilemma.nets import MLP
    >>> from trilemma.process import Flow
    >>> model = Preconditioned(MLP(2, width=16, depth=1), Flow(), "velocity")
    >>> trainer = Trainer(model, torch.randn(64, 2), config=TrainConfig(steps=3, batch=16))
    >>> [record.step for record in trainer.steps()]
    [1, 2, 3]
    """

    def __init__(
        self,
        model: Preconditioned | Game,
        data: Data,
        *,
        config: TrainConfig | None = None,
        world: World | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config = config or TrainConfig()
        self.world = world = world or World(device=next(model.parameters()).device)
        self.model: Preconditioned | Game = model.to(world.device)
        self.game: Players = model if isinstance(model, Game) else Denoising(model, config)
        self.step = 0
        self.last_checkpoint: Path | None = None
        if config.batch % (world.size * config.accumulate):
            raise ValueError(
                f"batch={config.batch} cannot be shared by {world.size} processes x {config.accumulate} micro-batches; "
                f"take a multiple of {world.size * config.accumulate}"
            )
        self._batches = Batches(data, seed=config.seed, workers=config.workers)
        self._bf16 = (recommended_precision(world.device) if config.precision == "auto" else config.precision) == "bf16"
        self._description = checkpoint.model_config(
            model, {**(info or {}), "ema": list(config.ema), "label_dropout": config.label_dropout}
        )

        self._noise = Noise(config.seed, 1)  # what is drawn once for the whole batch
        items = Noise(config.seed, config.batch)
        size = config.batch // (world.size * config.accumulate)
        first = world.rank * config.accumulate * size
        cuts = [slice(at, at + size) for at in range(first, first + config.accumulate * size, size)]
        self._parts = [(part, items[part]) for part in cuts]  # this process's micro-batches, and their noise
        self._check_items(size)

        network = self.game.network
        self._fsdp = config.strategy == "fsdp2" and world.size > 1
        if network is None and (config.compile or config.strategy == "fsdp2"):
            raise ValueError(
                f"compile and strategy='fsdp2' are for denoisers, not for {type(model).__name__}; "
                "set compile=False and strategy='ddp'"
            )
        if config.compile and network is not None:
            network.compile()
        if self._fsdp and network is not None:
            wrap(network, "fsdp2", world)
        self._players = self.game.players()
        self._turns: dict[str, nn.Module] = {}
        for name in self._players:
            with self._only(name):  # what requires gradients now is what the processes will exchange
                turn = _Turn(self.game)
                self._turns[name] = turn if self._fsdp else wrap(turn, config.strategy, world)
        # one optimiser for all: in a player's turn the others have no gradients, and are passed over
        self.optimizer = torch.optim.AdamW(
            [{"params": list(parameters)} for parameters in self._players.values()],
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = EMA(self.game.averaged(), [profile(entry) for entry in config.ema])
        self._watch = Divergence(config.diverge)

    # ---------------------------------------------------------------------------------------------------- training

    def steps(self) -> Iterator[Record]:
        """Train until ``config.steps``, one update at a time.

        Raises:
            DivergedError: the loss is not finite, or far above what it was.
        """
        self.game.train()
        stream = self._batches.stream(self._spans(), self.world.device)
        while self.step < self.config.steps:
            yield self._update(stream)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """The positions in the stream of items of this process's micro-batches, from here to the end of the run."""
        batch = self.config.batch
        for step in range(self.step, self.config.steps):
            for part, _ in self._parts:
                yield step * batch + part.start, step * batch + part.stop

    def _update(self, stream: Iterator[tuple[Tensor, Tensor | None]]) -> Record:
        start = time.perf_counter()
        rate = self.config.learning_rate(self.step)
        figures: dict[str, float] = {}
        with self._reseeded():
            items = [self._augmented(*next(stream), source.at(self.step)) for _, source in self._parts]
            for index, name in enumerate(self._players):
                loss, norm, seen = self._move(index, name, Adam(rate, self.config.betas), items)
                figures |= seen
                if len(self._players) > 1:
                    figures |= {f"loss_{name}": loss, f"grad_norm_{name}": norm}
        self.ema.update(self.game.averaged())
        self.step += 1
        seconds, batch = time.perf_counter() - start, self.config.batch
        rate = self.optimizer.param_groups[-1]["lr"]
        return Record(self.step, loss, rate, norm, self.step * batch, seconds, batch / seconds, figures)

    def _move(
        self, index: int, name: str, usual: Adam, items: Sequence[tuple[Tensor, Tensor | None]]
    ) -> tuple[float, float, dict[str, float]]:
        """One player's part of an update, (1) of ``game``: its loss, the norm of its gradient and the figures."""
        config, device = self.config, self.world.device
        turn = (self.step, _Draw.LATER, index) if index else (self.step,)
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        with self._only(name):
            for (part, source), (x, label) in zip(self._parts, items):
                noise, whole_noise = source.at(*turn, _Draw.ITEMS), self._noise.at(*turn, _Draw.WHOLE)
                batch = Minibatch(x, label, noise, self.step, whole_noise, part, config.batch)
                with self._synchronised(self._turns[name], part is self._parts[-1][0]):
                    with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
                        loss, figures = self._turns[name](name, batch)
                    share = len(x) / config.batch
                    (loss * (share * self.world.size)).backward()  # the processes' gradients are averaged
                for key, value in {"loss": loss, **figures}.items():
                    sums[key] = sums.get(key, 0) + share * value.detach().double()
        parameters = self._players[name]
        group = self.optimizer.param_groups[index]
        group.update(asdict(self.game.adam(name, self.step, usual)))
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

        # The one wait for the device: nothing is applied before the loss and the gradient are known to be finite.
        flat = self.world.sum(torch.cat([value.flatten() for value in sums.values()])).cpu()
        parts = flat.split([value.numel() for value in sums.values()])
        means = {key: part.view(value.shape) for part, (key, value) in zip(parts, sums.items())}
        length = float(whole(norm))
        mean = float(means.pop("loss"))
        error = means.pop("error", None)
        self._check(name, mean, None if error is None else float(error), length, items[-1][0])
        if 0 < config.clip < length:
            nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
        self.optimizer.step()
        return mean, length, self.game.observe(name, means)

    @contextmanager
    def _only(self, player: str) -> Iterator[None]:
        """Let nobody's parameters but one player's require gradients; those that were frozen stay so."""
        others = [p for name, group in self._players.items() if name != player for p in group if p.requires_grad]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def _augmented(self, x: Tensor, label: Tensor | None, noise: Noise) -> tuple[Tensor, Tensor | None]:
        """Mirrored items, and labels of which some are hidden."""
        n, config = len(x), self.config
        if config.flip:
            mirrored = noise.at(_Draw.FLIP).uniform((n,), device=x.device) < config.flip
            x = torch.where(pad(mirrored, x), x.flip(-1), x)
        if label is None or not self.game.classes:
            return x, None
        hidden = noise.at(_Draw.LABEL).uniform((n,), device=x.device) < config.label_dropout
        return x, label.masked_fill(hidden, -1)

    @contextmanager
    def _reseeded(self) -> Iterator[None]:
        """Let dropout draw from (seed, step, rank), and leave torch's own generators as they were."""
        drawn = self._noise.at(self.step, _Draw.DROPOUT, self.world.rank).uniform((1,), dtype=torch.float64)
        generators = [torch.default_generator]
        if self.world.device.type == "cuda":
            generators.append(torch.cuda.default_generators[self.world.device.index or 0])
        states = [generator.get_state() for generator in generators]
        for generator in generators:
            generator.manual_seed(int(drawn * 2**52))
        try:
            yield
        finally:
            for generator, state in zip(generators, states):
                generator.set_state(state)

    def _synchronised(self, turn: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients between processes only in the last of the micro-batches."""
        if self._fsdp:
            network: Any = self.game.network
            network.set_requires_gradient_sync(last)
        elif not last and isinstance(turn, nn.parallel.DistributedDataParallel):
            return turn.no_sync()
        return nullcontext()

    def _check_items(self, n: int) -> None:
        """Refuse items on another scale, and flips of what is no image, by the first ``n`` items of the run."""
        with self._reseeded():  # a data set may draw
            x, _ = next(self._batches.stream(iter([(0, n)]), self.world.device))
        low, high = (float(end) for end in x.aminmax())
        if max(-low, high) > _LARGEST:
            raise ValueError(
                f"the training items run from {low:g} to {high:g}, and model units are about [-1, 1] or unit variance; "
                "rescale them, or give bytes as uint8, which are rescaled here"
            )
        if self.config.flip and x.ndim != 4:
            raise ValueError(
                f"flip mirrors images (C, H, W) left to right, and an item of shape {tuple(x.shape[1:])} is none; set flip=0"
            )

    def _check(self, player: str, loss: float, error: float | None, norm: float, x: Tensor) -> None:
        """Stop a run that went astray, with all that is known about it."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        before = self._watch.mean
        if finite and (error is None or not self._watch.add(error)):
            return
        largest = float(x.abs().max())
        if not largest <= _LARGEST:
            cause = f"the items of this batch reach {largest:g}, model units are about [-1, 1]"
        else:
            cause = f"the learning rate {self.config.learning_rate(self.step):g} is too high"
            if self._bf16 and not finite:
                cause += ", or bf16 is too coarse for this network (precision='fp32' tells)"
        raise DivergedError(
            f"training diverged at step {self.step + 1}: {f'{player}, ' if len(self._players) > 1 else ''}"
            f"loss {loss:.4g}, gradient norm {norm:.4g}"
            + (f", mean error {before:.4g} before" if before is not None else "")
            + f"; likely cause: {cause}; last good checkpoint: {self.last_checkpoint or 'none was saved'}",
            step=self.step + 1,
        )

    # ------------------------------------------------------------------------------------------------- what came out

    def loss_by_noise(self) -> NoiseProfile:
        """The running mean of the unweighted error by log-SNR.

        Raises:
            ValueError: what is trained is no denoiser.
        """
        if not isinstance(self.game, Denoising):
            raise ValueError(f"{type(self.game).__name__} has no error by noise level; that is for denoisers")
        return self.game.by_noise.read()

    @contextmanager
    def averaged(self, index: int = 0) -> Iterator[Any]:
        """The model in evaluation mode with its averaged weights, to sample from between two updates.

        Args:
            index: which of ``config.ema``; without any average the weights stay as they are.

        Cost: three copies of the weights on the way in and on the way out.
        """
        parameters = self.game.averaged() if self.config.ema else {}
        training = self.model.training
        if parameters:
            self.ema.swap(parameters, index)
        self.model.eval()
        try:
            yield self.model
        finally:
            if parameters:
                self.ema.swap(parameters, index)
            self.model.train(training)

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: Path | str, *, keep: int = 3) -> Path:
        """Write the checkpoint ``step_00000500`` into a folder; all processes must call it, the first one writes.

        Args:
            folder: made if need be.
            keep: how many of the newest checkpoints stay.

        Returns:
            Its path. What is saved does not depend on how many processes shared the run.
        """
        if keep < 1:
            raise ValueError(f"keep={keep} would delete the checkpoint at once; keep at least 1")
        folder = Path(folder)
        path = folder / f"step_{self.step:08d}"
        if self.world.main or self._fsdp:
            tensors = snapshot(self.model, self.optimizer, self.ema)
        if self.world.main:
            files = {"config.json": self._description, "state.json": self._state(), **tensors}
            checkpoint.write_folder(path, files)
            checkpoint.prune(folder, keep)
        self.world.barrier()
        self.last_checkpoint = path
        return path

    def resume(self, folder: Path | str) -> Path | None:
        """Go on from the newest intact checkpoint in a folder, and delete the damaged ones after it.

        Returns:
            Its path; ``None`` if there is none yet, and the run begins at the beginning.

        Raises:
            CorruptError: there are checkpoints, but none is intact.
            ValueError: the checkpoint belongs to another run: seed, batch, data or averages differ.
        """
        folder = Path(folder)
        found = checkpoint.checkpoints(folder)
        if not found:
            return None
        path = checkpoint.newest(folder, self._restore)
        self.world.barrier()  # everybody has read
        if self.world.main:
            for damaged in found[: found.index(path)]:
                checkpoint.remove(damaged)
        return path

    def _stream(self) -> dict[str, Any]:
        """What must be equal for a run to be the same run."""
        config = self.config
        return {"seed": config.seed, "batch": config.batch, "items": self._batches.count, "ema": list(config.ema)}

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "stream": self._stream(),
            "watch": self._watch.state(),
            "config": asdict(self.config),
            **self.game.memory(),
        }

    def _restore(self, path: Path) -> Path:
        checkpoint.verify(path)
        state = checkpoint.read_json(path / "state.json")
        for key, here in self._stream().items():
            if state["stream"][key] != here:
                raise ValueError(
                    f"{path} was trained with {key}={state['stream'][key]}, not {here}; it cannot be resumed so"
                )
        restore(path, self.model, self.optimizer, self.ema)
        self.step = self.ema.updates = state["step"]
        self._watch.restore(state["watch"])
        self.game.recall(state)
        self.last_checkpoint = path
        return path
