"""The training loop as a generator: each item is one update, and the caller logs, samples and saves in between.

Every random number of update ``n`` comes from (seed, n, what it is for, position in the global batch). So the same run is had on
one process and on many, in one piece or resumed, and nothing of a generator's state has to be saved.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._names import lookup
from ..denoise import Preconditioned
from ..nets.precision import recommended_precision
from ..numerics.noise import Noise
from ..numerics.shapes import pad
from ..process.times import TIMES, TimeLaw, Uniform
from . import checkpoint
from .batches import Batches, Data
from .config import TrainConfig, parse_entry
from .distributed import World, gather, scatter, whole, wrap
from .ema import EMA, profile
from .monitor import DivergedError, Divergence, LossByNoise, NoiseProfile
from .objectives import denoising_error, loss_weight, weighting

__all__ = ["Record", "Trainer"]

_LARGEST = 30.0  # absolute value of an item; far beyond that of data in model units


class _Draw(IntEnum):
    """What a random number is for."""

    TIME = 0
    NOISE = 1
    FLIP = 2
    LABEL = 3
    DROPOUT = 4


@dataclass(frozen=True)
class Record:
    """One update.

    Args:
        step: updates finished.
        loss: weighted loss, the mean over the global batch.
        lr: learning rate that was used.
        grad_norm: Euclidean norm of the gradient before clipping.
        images: items seen since the start of the run.
        seconds: wall time of the update.
        images_per_second: items over seconds, all processes together.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    images: int
    seconds: float
    images_per_second: float


class _Error(nn.Module):
    """The squared error as a module, since a module's call is what ``DistributedDataParallel`` wraps."""

    def __init__(self, model: Preconditioned) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, eps: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        return denoising_error(self.model, x, t, eps, cond)


class Trainer:
    """Trains a denoiser on a set of items.

    Args:
        model: moved to the device of ``world``; its weights are changed in place.
        data: see :class:`~trilemma.train.batches.Batches`.
        config: the settings.
        world: this process among others, from :func:`~trilemma.train.distributed.setup`; alone, on the model's device,
            without it.
        info: JSON data that is saved with the model.

    Attributes:
        step: updates finished.
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
        model: Preconditioned,
        data: Data,
        *,
        config: TrainConfig | None = None,
        world: World | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config = config or TrainConfig()
        self.world = world = world or World(device=next(model.parameters()).device)
        self.model = model.to(world.device)
        self.step = 0
        self.last_checkpoint: Path | None = None
        if config.batch % (world.size * config.accumulate):
            raise ValueError(
                f"batch={config.batch} cannot be shared by {world.size} processes x {config.accumulate} micro-batches; "
                f"take a multiple of {world.size * config.accumulate}"
            )
        self._batches = Batches(data, seed=config.seed, workers=config.workers)
        self._law = _law(config.times)
        self._weighting = weighting(config.weighting)
        if self._weighting.per_log_snr and not isinstance(self._law, Uniform):
            raise ValueError(
                f"weighting={config.weighting!r} is a density over log-SNR and wants uniform times, not {config.times!r}; "
                "set times='low_discrepancy'"
            )
        self._bf16 = (recommended_precision(world.device) if config.precision == "auto" else config.precision) == "bf16"
        self._description = checkpoint.model_config(
            model, {**(info or {}), "ema": list(config.ema), "label_dropout": config.label_dropout}
        )
        classes = getattr(model.net, "config", {}).get("classes")
        self._takes_label = "label" in model.cond_keys and classes != 0  # a network without classes ignores labels

        self._noise = Noise(config.seed, 1)  # what is drawn once for the whole batch
        items = Noise(config.seed, config.batch)
        size = config.batch // (world.size * config.accumulate)
        first = world.rank * config.accumulate * size
        cuts = [slice(at, at + size) for at in range(first, first + config.accumulate * size, size)]
        self._parts = [(part, items[part]) for part in cuts]  # this process's micro-batches, and their noise
        self._check_items(size)

        if config.compile:
            model.net.compile()
        self._fsdp = config.strategy == "fsdp2" and world.size > 1
        self._error: nn.Module = _Error(model)
        if self._fsdp:
            wrap(model.net, "fsdp2", world)
        else:
            self._error = wrap(self._error, config.strategy, world)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.ema = EMA(dict(model.named_parameters()), [profile(entry) for entry in config.ema])
        self._by_noise = LossByNoise()
        self._watch = Divergence(config.diverge)

    # ---------------------------------------------------------------------------------------------------- training

    def steps(self) -> Iterator[Record]:
        """Train until ``config.steps``, one update at a time.

        Raises:
            DivergedError: the loss is not finite, or far above what it was.
        """
        self.model.train()
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
        config, device = self.config, self.world.device
        times = self._law(self.model.process, config.batch, self._noise.at(self.step, _Draw.TIME)).to(device)
        share = config.batch // self.world.size
        loss = torch.zeros(1, dtype=torch.float64, device=device)
        by_noise = torch.zeros_like(self._by_noise.totals, device=device)

        self.optimizer.zero_grad(set_to_none=True)
        with self._reseeded():
            for part, source in self._parts:
                x, label = next(stream)
                t, noise = times[part], source.at(self.step)
                x, cond = self._augmented(x, label, noise)
                with self._synchronised(part is self._parts[-1][0]):
                    with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
                        error = self._error(x, t, noise.at(_Draw.NOISE).normal_like(x), cond)
                    weighted = error * loss_weight(self.model, t, self._weighting).to(error)
                    (weighted.sum() / share).backward()
                loss += weighted.detach().sum()
                by_noise += self._by_noise.sums(self.model.process.log_snr(t), error)
        rate = config.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

        # The one wait for the device: nothing is applied before the loss and the gradient are known to be finite.
        sums = self.world.sum(torch.cat([loss, by_noise.flatten()])).cpu()
        mean, length = float(sums[0]) / config.batch, float(whole(norm))
        by_noise = sums[1:].view_as(by_noise)
        self._check(mean, float(by_noise[0].sum()) / config.batch, length, x)
        if 0 < config.clip < length:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), config.clip, norm)
        self.optimizer.step()
        self.ema.update(dict(self.model.named_parameters()))
        self._by_noise.add(by_noise)
        self.step += 1
        seconds = time.perf_counter() - start
        return Record(self.step, mean, rate, length, self.step * config.batch, seconds, config.batch / seconds)

    def _augmented(self, x: Tensor, label: Tensor | None, noise: Noise) -> tuple[Tensor, dict[str, Tensor]]:
        """Mirrored items, and the conditions with some labels hidden."""
        n, config = len(x), self.config
        if config.flip:
            mirrored = noise.at(_Draw.FLIP).uniform((n,), device=x.device) < config.flip
            x = torch.where(pad(mirrored, x), x.flip(-1), x)
        if label is None or not self._takes_label:
            return x, {}
        hidden = noise.at(_Draw.LABEL).uniform((n,), device=x.device) < config.label_dropout
        return x, {"label": label.masked_fill(hidden, -1)}

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

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients between processes only in the last of the micro-batches."""
        if self._fsdp:
            net: Any = self.model.net
            net.set_requires_gradient_sync(last)
        elif not last and isinstance(self._error, nn.parallel.DistributedDataParallel):
            return self._error.no_sync()
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

    def _check(self, loss: float, error: float, norm: float, x: Tensor) -> None:
        """Stop a run that went astray, with all that is known about it."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        before = self._watch.mean
        if finite and not self._watch.add(error):
            return
        largest = float(x.abs().max())
        if not largest <= _LARGEST:
            cause = f"the items of this batch reach {largest:g}, model units are about [-1, 1]"
        else:
            cause = f"the learning rate {self.config.learning_rate(self.step):g} is too high"
            if self._bf16 and not finite:
                cause += ", or bf16 is too coarse for this network (precision='fp32' tells)"
        raise DivergedError(
            f"training diverged at step {self.step + 1}: loss {loss:.4g}, gradient norm {norm:.4g}"
            + (f", mean error {before:.4g} before" if before is not None else "")
            + f"; likely cause: {cause}; last good checkpoint: {self.last_checkpoint or 'none was saved'}",
            step=self.step + 1,
        )

    # ------------------------------------------------------------------------------------------------- what came out

    def loss_by_noise(self) -> NoiseProfile:
        """The running mean of the unweighted error by log-SNR."""
        return self._by_noise.read()

    @contextmanager
    def averaged(self, index: int = 0) -> Iterator[Preconditioned]:
        """The model in evaluation mode with its averaged weights, to sample from between two updates.

        Args:
            index: which of ``config.ema``; without any average the weights stay as they are.

        Cost: three copies of the weights on the way in and on the way out.
        """
        parameters = dict(self.model.named_parameters()) if self.config.ema else {}
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
        parameters = dict(self.model.named_parameters())
        if self.world.main or self._fsdp:
            weights = gather(self.model.state_dict().items())
            files: dict[str, checkpoint.Content] = {
                "config.json": self._description,
                "model.safetensors": weights,
                "optimizer.safetensors": gather(self._moments(parameters)),
                "state.json": self._state(),
            }
            for index, average in enumerate(self.ema.averages):
                files[checkpoint.average_name(index)] = {**weights, **gather(average.items())}
        if self.world.main:
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

    def _moments(self, parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{key}/{name}", value

    def _stream(self) -> dict[str, Any]:
        """What must be equal for a run to be the same run."""
        config = self.config
        return {"seed": config.seed, "batch": config.batch, "items": self._batches.count, "ema": list(config.ema)}

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "stream": self._stream(),
            "watch": self._watch.state(),
            "loss_by_noise": self._by_noise.totals.tolist(),
            "config": asdict(self.config),
        }

    def _restore(self, path: Path) -> Path:
        checkpoint.verify(path)
        state = checkpoint.read_json(path / "state.json")
        for key, here in self._stream().items():
            if state["stream"][key] != here:
                raise ValueError(
                    f"{path} was trained with {key}={state['stream'][key]}, not {here}; it cannot be resumed so"
                )
        parameters = dict(self.model.named_parameters())
        targets = dict(self.model.state_dict())
        weights = checkpoint.read_tensors(path / "model.safetensors")
        here, there = ({name: tuple(v.shape) for name, v in side.items()} for side in (targets, weights))
        if differ := sorted(set(here.items()) ^ set(there.items())):
            name = differ[0][0]
            raise ValueError(
                f"{path} holds the weights of another network: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} here; resume with the settings of that run or start a new folder"
            )
        for name, value in weights.items():
            scatter(value, targets[name])
        for index, average in enumerate(self.ema.averages):
            values = checkpoint.read_tensors(path / checkpoint.average_name(index))
            for name, target in average.items():
                scatter(values[name], target)
        self.optimizer.state.clear()
        for entry, value in checkpoint.read_tensors(path / "optimizer.safetensors").items():
            key, name = entry.split("/", 1)
            parameter = parameters[name]
            target = torch.zeros_like(parameter if value.ndim else value, device=parameter.device)
            scatter(value, target)
            self.optimizer.state[parameter][key] = target
        self.step = self.ema.updates = state["step"]
        self._watch.restore(state["watch"])
        self._by_noise.totals = torch.tensor(state["loss_by_noise"], dtype=torch.float64)
        self.last_checkpoint = path
        return path


def _law(entry: str) -> TimeLaw:
    """A law of training times by its entry in a configuration, ``name`` or ``name:arguments``."""
    name, numbers = parse_entry(entry)
    law = lookup("law of times", name, TIMES)()
    names = [field.name for field in fields(law) if field.name != "low_discrepancy"]
    if len(numbers) > len(names):
        raise ValueError(
            f"the law of times {name!r} takes {len(names)} arguments ({', '.join(names)}), not {len(numbers)}"
        )
    values: dict[str, Any] = dict(zip(names, numbers))
    return replace(law, **values)
