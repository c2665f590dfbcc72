"""Rules that wrap rules.

An inner rule is bound inside the outer one: for churn, to the two ends of every step, the first of them moved. So any rule can
be inside; one that remembers earlier steps has nothing to remember there and takes its first step each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from .loop import Carry, Denoise, Rule, Step

__all__ = ["Churn", "churn"]


@dataclass(frozen=True)
class Churn:
    """The rule :func:`churn`."""

    inner: Rule
    amount: float
    low: float
    high: float
    inflate: float

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        """Bind the inner rule to every step from its raised noise level."""
        n = len(ts) - 1
        log_snr = process.log_snr(ts)
        gamma = min(self.amount / n, math.sqrt(2) - 1)
        bound = []
        for i in range(n):
            level = math.exp(-float(log_snr[i]) / 2)
            raised = process.time(log_snr[i] - 2 * math.log1p(gamma)) if self.low <= level <= self.high else ts[i]
            scale, std = process.transition(ts[i], raised) if raised > ts[i] else (torch.ones(()), torch.zeros(()))
            bound.append(
                (self.inner(process, torch.stack([torch.maximum(raised, ts[i]), ts[i + 1]])), float(scale), float(std))
            )

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            inner, scale, std = bound[i]
            if std:
                x = (x * scale).add_(noise.at(0).normal_like(x), alpha=std * self.inflate)
            return inner(denoise, x, 0, None, noise.at(1))[0], None

        return step


def churn(inner: Rule, amount: float, *, low: float = 0.0, high: float = math.inf, inflate: float = 1.0) -> Churn:
    """EDM's stochastic sampler around any rule: before each step, raise the noise level by adding noise.

    The level sigma/alpha is multiplied by 1 + gamma, gamma = min(amount / N, sqrt(2) - 1), where it lies in [low, high], by
    noise of standard deviation ``inflate`` times what that needs; never beyond the level of t = 1.

    Args:
        inner: the rule to take the steps; ``runge_kutta(HEUN)`` in the paper.
        amount: S_churn; 0 leaves the inner rule as it is.
        low: S_tmin, in units of sigma/alpha.
        high: S_tmax.
        inflate: S_noise.

    Raises:
        ValueError: a number is negative, or ``low`` is above ``high``.

    Cost:
        That of the inner rule.

    Differs:
        The paper's Heun works in sigma/alpha; ``runge_kutta(HEUN)`` works in sigma/(alpha + sigma), where the end is straighter.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2.
    """
    if amount < 0 or inflate < 0 or not 0 <= low <= high:
        raise ValueError(
            f"churn needs amount >= 0, inflate >= 0 and 0 <= low <= high; got {amount}, {inflate}, {low}, {high}"
        )
    return Churn(inner, amount, low, high, inflate)
