"""What the cases of ``check.py`` are made of: training in a few seconds, and the faults that are put in afterwards."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trilemma.denoise import Preconditioned
from trilemma.health import Health
from trilemma.numerics.noise import Noise
from trilemma.process import GaussianProcess
from trilemma.train import TrainConfig, Trainer
from trilemma.train import denoising as training
from trilemma.train.objectives import denoising_loss


@dataclass(frozen=True)
class Case:
    """A model to check.

    Args:
        name: what it is.
        faults: names of the fault that are right to give first; none for a healthy model.
        run: trains it, if nobody has yet, and checks it.
    """

    name: str
    faults: tuple[str, ...]
    run: Callable[[], Health]


@dataclass(frozen=True)
class Trained:
    """A denoiser with averaged weights, with its last ones and with its first."""

    mean: Preconditioned
    last: Preconditioned
    first: Preconditioned


def fit(
    data: Tensor,
    net: Callable[[], nn.Module],
    process: GaussianProcess,
    target: str,
    *,
    sigma_data: float = 1.0,
    labels: Tensor | None = None,
    seed: int = 0,
    **config,
) -> Trained:
    """Train: ``config`` holds settings of TrainConfig."""
    torch.manual_seed(seed)
    model = Preconditioned(net(), process, target, sigma_data=sigma_data)
    first = copy.deepcopy(model).eval()
    usual = dict(
        steps=1000, batch=256, lr=3e-3, warmup=50, decay="cosine", times="low_discrepancy", precision="fp32", seed=seed
    )
    source = data if labels is None else torch.utils.data.TensorDataset(data, labels)
    trainer = Trainer(model, source, config=TrainConfig(**{**usual, **config}))
    for _ in trainer.steps():
        pass
    last = copy.deepcopy(model).eval()
    with trainer.averaged():
        mean = copy.deepcopy(model)
    return Trained(mean.eval(), last, first)


def loop(data: Tensor, net: Callable[[], nn.Module], process: GaussianProcess, target: str, *, steps: int, seed: int):
    """A loop of one's own, which looks at nothing: batches of 64, uniform times, Adam."""
    torch.manual_seed(seed)
    model = Preconditioned(net(), process, target)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        x = data[torch.randint(len(data), (64,))]
        t = torch.rand(64, dtype=torch.float64)
        optimizer.zero_grad()
        denoising_loss(model, x, t, Noise(seed, 64).at(step).normal_like(x)).mean().backward()
        optimizer.step()
    return model.eval()


class Swapped(Preconditioned):
    """c_skip and c_out in each other's place."""

    def forward(self, x_t, t, **cond):
        c_skip, c_out, c_in, c_time = self._coefficients(t, x_t)
        law = super().forward(x_t, t, **cond)
        return type(law)(c_out * x_t + c_skip * self._net(x_t, c_in, c_time, cond))


class Deaf(nn.Module):
    """A network that is not told the time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        return self.net(x, torch.zeros_like(c_time))


class Negative(nn.Module):
    """A network with its sign turned."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        return -self.net(x, c_time)


class Reversed(nn.Module):
    """A network that is told the time from the other end: 1 - t, which on a symmetric process is the opposite log-SNR."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        return self.net(x, -c_time)


def wrap(model: Preconditioned, kind: type = Preconditioned, **changes) -> Preconditioned:
    """The same network in another frame."""
    net, process = changes.get("net", model.net), changes.get("process", model.process)
    target, sigma_data = changes.get("target", model.target.name), changes.get("sigma_data", model.sigma_data)
    return kind(net, process, target, sigma_data=sigma_data).eval()


def with_nan(model: Preconditioned) -> Preconditioned:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(broken.parameters())).view(-1)[3] = math.nan
    return broken


def between(first: Preconditioned, last: Preconditioned, share: float) -> Preconditioned:
    """Weights that went only ``share`` of the way from the first to the last, as those of an average that is too slow."""
    slow = copy.deepcopy(last)
    with torch.no_grad():
        for weight, start in zip(slow.parameters(), first.parameters(), strict=True):
            weight.lerp_(start, 1 - share)
    return slow


def weighted(factor: Callable[[Preconditioned, Tensor], Tensor], train: Callable[[], Trained]) -> Trained:
    """Trained with the loss multiplied by a factor of the time that does not belong there."""
    plain = training.loss_weight
    training.loss_weight = lambda model, t, which: plain(model, t, which) * factor(model, t)
    try:
        return train()
    finally:
        training.loss_weight = plain
