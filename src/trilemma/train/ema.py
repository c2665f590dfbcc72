r"""Moving averages of the weights, several at once, each with a known profile.

After update ``n = 1, 2, ...`` an average becomes ``avg <- beta_n avg + (1 - beta_n) theta_n`` with

    beta_n = min(decay, (1 - 1/n)^(gamma + 1)).                                                              (1)

With ``decay = 1`` this is the power-function average: the weights of update ``k`` count

    p_k = (k/n)^(gamma + 1) - ((k - 1)/n)^(gamma + 1),   p(tau) ~ tau^gamma,   sum_k p_k = 1,                (2)

so the profile keeps its shape as the run grows; its width is the standard deviation of ``p`` relative to the run,

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).                                                 (3)

With ``decay < 1`` it is the classic exponential average, and (1) is its warm-up: until ``beta`` reaches ``decay`` the average
follows the power profile, so that the initial weights never enter (``beta_1 = 0``).

Source: Karras et al. 2024, arXiv 2312.02696, equations 121 to 126.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .config import parse_entry
from .distributed import local

__all__ = ["EMA", "Profile", "exponential", "power", "profile"]


@dataclass(frozen=True)
class Profile:
    """Which past weights an average holds, by the constants of (1).

    Args:
        gamma: exponent of the power function, at least 0.
        decay: upper limit of ``beta``, in (0, 1].

    Raises:
        ValueError: a constant is out of range.
    """

    gamma: float
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not (self.gamma >= 0 and 0 < self.decay <= 1):
            raise ValueError(f"gamma={self.gamma} must be at least 0 and decay={self.decay} in (0, 1]")

    def beta(self, n: int) -> float:
        """How much of the average survives update ``n`` (1, 2, ...), by (1)."""
        return min(self.decay, (1 - 1 / n) ** (self.gamma + 1))

    def weights(self, n: int) -> Tensor:
        """The share of each update's weights in the average after ``n`` updates: float64, shape ``(n,)``, sum 1.

        >>> power(0.1).weights(4).sum()
        tensor(1., dtype=torch.float64)
        """
        k = torch.arange(1, n + 1, dtype=torch.float64)
        beta = (1 - 1 / k).pow(self.gamma + 1).clamp_(max=self.decay)
        later = torch.cat([beta[1:], torch.ones(1, dtype=torch.float64)]).flip(0).cumprod(0).flip(0)
        return (1 - beta) * later


def power(sigma_rel: float) -> Profile:
    """The power-function average of relative width ``sigma_rel``: (3) solved for gamma, decay 1.

    Args:
        sigma_rel: standard deviation of the profile as a fraction of the run, in (0, 0.28]; 0.05 to 0.15 are usual.

    >>> round(power(0.05).gamma, 2), round(power(0.10).gamma, 2)
    (16.97, 6.94)
    """
    if not 0 < sigma_rel <= 12**-0.5:
        raise ValueError(f"sigma_rel={sigma_rel} must lie in (0, 0.288]: 0.288 already weighs all updates alike")
    s = sigma_rel**-2  # (3) as a cubic: gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s = 0
    return Profile(max(0.0, float(np.roots([1, 7, 16 - s, 12 - s]).real.max())))


def exponential(decay: float, gamma: float = 6.94) -> Profile:
    """The classic average with half-life ``-1/log2(decay)`` updates.

    Args:
        decay: in (0, 1), 0.9999 for long runs.
        gamma: exponent of the warm-up; the default forgets as the power profile of width 0.10 does.

    >>> exponential(0.999).beta(2), exponential(0.999).beta(100_000)
    (0.004072..., 0.999)
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay={decay} must lie strictly between 0 and 1, for example 0.9999")
    return Profile(gamma, decay)


def profile(entry: str) -> Profile:
    """A profile by its entry in a configuration: ``power:sigma_rel`` or ``exponential:decay[,gamma]``.

    >>> profile("exponential:0.999") == exponential(0.999)
    True
    """
    makers: dict[str, Callable[..., Profile]] = {"power": power, "exponential": exponential}
    name, numbers = parse_entry(entry)
    if name not in makers or not 1 <= len(numbers) <= 2:
        raise ValueError(f"{entry!r} is not a weight average; write power:0.1 or exponential:0.9999")
    return makers[name](*numbers)


class EMA:
    """Averages of a set of tensors, updated together.

    Args:
        parameters: name -> tensor, as from ``named_parameters()``; sharded tensors are averaged shard by shard.
        profiles: what to keep.

    Cost: one pass over the weights and one copy in memory per profile.

    >>> weight = torch.zeros(1)
    >>> ema = EMA({"w": weight}, [power(0.1)])
    >>> for n in range(1, 4):
    ...     ema.update({"w": weight.fill_(n)})
    >>> torch.allclose(ema.averages[0]["w"].double(), power(0.1).weights(3) @ torch.arange(1.0, 4).double())
    True
    """

    def __init__(self, parameters: Mapping[str, Tensor], profiles: Sequence[Profile]) -> None:
        self.profiles = tuple(profiles)
        self.updates = 0
        self.averages = [{name: p.detach().clone() for name, p in parameters.items()} for _ in self.profiles]

    def update(self, parameters: Mapping[str, Tensor]) -> None:
        """Take in the weights after one more update."""
        self.updates += 1
        now = _shards(parameters.values())
        for profile, average in zip(self.profiles, self.averages):
            # (1); a float32 lerp towards theta: the increment, not the sum, is rounded
            torch._foreach_lerp_(_shards(average.values()), now, 1 - profile.beta(self.updates))

    def swap(self, parameters: Mapping[str, Tensor], index: int = 0) -> None:
        """Exchange the values of ``parameters`` with those of an average; a second call undoes it exactly."""
        for ours, theirs in zip(_shards(self.averages[index].values()), _shards(parameters.values())):
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)


def _shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(t.detach()) for t in tensors]
