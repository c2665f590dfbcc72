"""The settings of a training run: a value, written without torch so that a command line can read it at once."""

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["TrainConfig", "parse_entry"]


def parse_entry(text: str) -> tuple[str, tuple[float, ...]]:
    """Split ``name`` or ``name:number,number`` into the name and its numbers.

    Raises:
        ValueError: something after the colon is not a number.

    >>> parse_entry("unit"), parse_entry("p2:1,0.5")
    (('unit', ()), ('p2', (1.0, 0.5)))
    """
    name, _, rest = text.partition(":")
    try:
        return name, tuple(float(part) for part in rest.split(",")) if rest else ()
    except ValueError:
        raise ValueError(f"{text!r} should read name or name:number,number, as in 'min_snr:5'") from None


@dataclass(frozen=True)
class TrainConfig:
    """How a denoiser is trained.

    Args:
        steps: updates of the weights in the whole run.
        batch: images in one update, over all processes and micro-batches.
        accumulate: micro-batches that make up one update on each process; more of them need less memory.
        lr: peak learning rate of AdamW.
        warmup: updates over which the learning rate rises linearly from zero.
        decay: what follows: ``constant``; ``cosine`` to zero at ``steps``; ``rsqrt``, ``lr / sqrt(n / decay_start)``.
        decay_start: update at which the decay begins (0: at the end of the warm-up).
        betas: decay rates of AdamW's two moments.
        weight_decay: AdamW's decoupled decay of all weights.
        clip: longest allowed gradient, in Euclidean norm; 0 switches clipping off.
        ema: weight averages to keep, the first one is the model's own: ``power:sigma_rel``, ``exponential:decay``.
        weighting: weight of the noise levels in the loss; an entry of ``trilemma.train.objectives.WEIGHTINGS``.
        times: law of training times; an entry of ``trilemma.process.times.TIMES``.
        flip: probability of mirroring an image left to right.
        label_dropout: probability of hiding a label, for classifier-free guidance.
        precision: ``bf16`` (autocast), ``fp32``, or ``auto``: bf16 where the device multiplies it faster.
        compile: compile the network with ``torch.compile``.
        strategy: what several processes share: ``ddp`` gradients, ``fsdp2`` weights too; ``auto`` is ``ddp``.
        seed: the run's one seed: data order, times, noise, flips, dropout.
        workers: processes that load a map-style data set; tensors in memory need none.
        diverge: stop when the mean loss of 50 updates is this many times the lowest such mean so far.

    Raises:
        ValueError: a value is out of range.

    >>> config = TrainConfig(steps=100, lr=1e-3, warmup=10, decay="cosine")
    >>> [round(config.learning_rate(step), 6) for step in (0, 9, 55, 100)]
    [0.0001, 0.001, 0.0005, 0.0]
    """

    steps: int = 20_000
    batch: int = 128
    accumulate: int = 1
    lr: float = 5e-4
    warmup: int = 200
    decay: Literal["constant", "cosine", "rsqrt"] = "constant"
    decay_start: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: tuple[str, ...] = ("power:0.1",)
    weighting: str = "unit"
    times: str = "log_normal_sigma"
    flip: float = 0.0
    label_dropout: float = 0.1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    strategy: Literal["auto", "none", "ddp", "fsdp2"] = "auto"
    seed: int = 0
    workers: int = 0
    diverge: float = 5.0

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1),
            ("batch", 1),
            ("accumulate", 1),
            ("warmup", 0),
            ("decay_start", 0),
            ("workers", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")
        for name in ("lr", "clip", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be a finite number, at least 0")
        for name in ("flip", "label_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability and must lie in [0, 1]")
        if self.batch % self.accumulate:
            raise ValueError(f"batch={self.batch} cannot be cut into accumulate={self.accumulate} equal micro-batches")
        if not self.diverge > 1:
            raise ValueError(
                f"diverge={self.diverge} must be greater than 1; float('inf') never stops on a finite loss"
            )
        for entry in (*self.ema, self.weighting, self.times):
            parse_entry(entry)

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update that follows ``step`` finished ones."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        start = max(self.decay_start, self.warmup)
        past = max(0, step - start)
        if self.decay == "cosine":
            return self.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, past / max(1, self.steps - start))))
        if self.decay == "rsqrt":
            return self.lr * warm / math.sqrt(1 + past / max(1, start))
        return self.lr * warm
