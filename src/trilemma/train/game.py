"""What the trainer trains: a model whose parts, the players, move in turn, each to lower a loss of its own.

With parameters theta_p of player p and items x_i, one update is

    theta_p <- Adam(theta_p, grad_{theta_p} mean_i L_p(x_i; theta)),        p = first player, second, ...       (1)

where a later player sees what the earlier ones have done in the same update, and the same items. One player is ordinary
training; a discriminator and a generator are two.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..numerics.noise import Noise

__all__ = ["Adam", "Game", "Minibatch", "Players"]


@dataclass(frozen=True, eq=False)
class Minibatch:
    """The items of one micro-batch, and the noise that belongs to them.

    Args:
        x: items ``(B, ...)`` in model units.
        label: classes ``(B,)`` int64, -1 for a hidden label; ``None`` if the game knows no classes or the data has none.
        noise: one source per item, with other numbers for every update and player. So that runs on one process and on many
            are one run, nothing else is drawn from.
        step: updates finished before this one.
        whole: one source (``n = 1``) for all micro-batches of the update, for what is drawn across the batch.
        place: where the items stand in the batch of the update, which has ``size`` items.
        size: items of the whole batch, over all micro-batches and processes.
    """

    x: Tensor
    label: Tensor | None
    noise: Noise
    step: int
    whole: Noise
    place: slice
    size: int


@dataclass(frozen=True)
class Adam:
    """What the optimiser uses in one update of one player: its learning rate and the decay rates of its two moments."""

    lr: float
    betas: tuple[float, float]


class Players(nn.Module, ABC):
    """What the trainer needs of what it trains; a subclass writes `players` and `loss`.

    Args:
        classes: number of labels that `loss` is given, 0 for none.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @property
    def network(self) -> nn.Module | None:
        """What ``torch.compile`` and FSDP act on; ``None`` for games that take neither."""
        return None

    @abstractmethod
    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """The parameters of every player, in the order in which they move. The last one is the model that is wanted."""

    @abstractmethod
    def loss(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """What a player lowers, on one micro-batch.

        The parameters of the other players do not require gradients meanwhile, so nothing has to be detached.

        Args:
            player: whose turn it is.
            batch: items and noise.

        Returns:
            The mean loss over the items, and figures to log: means over the items too. They are averaged over micro-batches
            and processes and go to `observe`. A figure named ``error`` is watched: a run that sees it rise far above its
            lowest value has diverged.
        """

    def adam(self, player: str, step: int, usual: Adam) -> Adam:
        """The optimiser's settings for a player's next move; ``usual`` comes from the training's settings."""
        return usual

    def averaged(self) -> dict[str, Tensor]:
        """The parameters, by their names, whose averages are kept; all of them unless a subclass names fewer."""
        return dict(self.named_parameters())

    def observe(self, player: str, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """Take in the figures of one move; returns those to log."""
        return {name: float(value) for name, value in figures.items()}

    def memory(self) -> dict[str, Any]:
        """What `observe` has gathered and a resumed run needs, JSON data."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from `memory`."""
        return


class Game(Players):
    """A generative model that one or several players train; a subclass writes `players`, `loss` and `draw`.

    Args:
        shape: of an item, ``(C, H, W)``.
        classes: number of labels, 0 for none.
        config: the keyword arguments that build the game again, JSON data.

    Attributes:
        family: the name in ``trilemma.baselines.GAMES``.
        calls: network evaluations that one sample costs.
    """

    family: ClassVar[str] = ""
    calls: int = 1

    def __init__(self, shape: Sequence[int], classes: int, config: Mapping[str, Any]) -> None:
        super().__init__(classes)
        self.shape = tuple(shape)
        self.config: dict[str, Any] = {"shape": list(shape), "classes": classes, **config}

    @abstractmethod
    def draw(self, noise: Noise, label: Tensor | None) -> Tensor:
        """Samples in model units, one for each item of ``noise``; called by `sample` without gradients, in evaluation mode."""

    def bits_per_dim(
        self, x: Tensor, label: Tensor | None = None, *, draws: int = 32, seeds: int | Sequence[int] = 0
    ) -> Tensor | None:
        """Bits per dimension of images at levels of integers: the least upper bound that the model offers.

        Args:
            x: ``(B, C, H, W)`` in model units, on the device of the weights.
            label: classes ``(B,)``, -1 for none.
            draws: of the bound's random numbers, averaged as weights, where it has some.
            seeds: one integer for all or one per item.

        Returns:
            ``(B,)`` float64, or ``None`` for a model that has no likelihood of integers, as a GAN.

        Raises:
            ValueError: items of another shape, or at no level of the model.
        """
        return None

    @torch.no_grad()
    def sample(self, n: int, *, seeds: int | Sequence[int] | Tensor = 0, label: Tensor | None = None) -> Tensor:
        """Draw samples.

        Args:
            n: how many.
            seeds: one integer for all or one per item; a sample depends on its own seed and label alone.
            label: classes ``(n,)``, -1 for none; without it they are drawn uniformly.

        Returns:
            ``(n, C, H, W)`` in model units, on the device of the weights.

        Raises:
            ValueError: labels that do not fit.

        Cost: ``calls`` network evaluations.
        """
        noise = Noise(seeds, n)
        device = next(self.parameters()).device
        if label is not None and self.classes == 0:
            raise ValueError("label was given, but this model knows no classes; leave it out")
        if label is None and self.classes:
            uniform = noise.at(-1).uniform((n,), dtype=torch.float64)
            label = (uniform * self.classes).long()
        if label is not None and (label.shape != (n,) or not -1 <= int(label.min()) <= int(label.max()) < self.classes):
            raise ValueError(f"label must hold {n} classes in [0, {self.classes}), or -1 for none; got {label}")
        training = self.training
        self.eval()
        try:
            return self.draw(noise, None if label is None else label.to(device))
        finally:
            self.train(training)
