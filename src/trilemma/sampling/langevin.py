"""Langevin dynamics at a fixed noise level: as a corrector of another rule, and on its own, annealed.

At the noise level of time t the law of x_t has the score -(x - alpha D)/sigma^2, and

    x <- x - k (x - alpha D) + sigma sqrt(2 k) xi,     k = step / sigma^2,                                   (1)

moves towards that law from anywhere, one call a move. For a Gaussian of variance v it contracts to v / (1 - k sigma^2 / (2 v)), a
little too wide.

Sources: Song and Ermon 2019 (arXiv:1907.05600) and 2020 (arXiv:2006.09011); Song et al. 2021 (arXiv:2011.13456).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from ..numerics.shapes import pad, rms
from ..process.gaussian import GaussianProcess
from .loop import Carry, Denoise, Rule, Step

__all__ = ["annealed_langevin", "corrector"]


def _move(x: Tensor, mean: Tensor, alpha: float, sigma: float, k: float | Tensor, xi: Tensor) -> Tensor:
    """Equation (1)."""
    rest = x.sub(mean, alpha=alpha)
    if isinstance(k, Tensor):
        k = pad(k, x)
        return x.sub(rest.mul_(k)).add_(xi.mul_(torch.sqrt(2 * k)), alpha=sigma)
    return x.sub(rest, alpha=k).add_(xi, alpha=sigma * math.sqrt(2 * k))


def _levels(process: GaussianProcess, ts: Tensor) -> tuple[list[Tensor], list[float], list[float]]:
    return list(ts.unbind()), process.alpha(ts).tolist(), process.sigma(ts).tolist()


@dataclass(frozen=True)
class _Corrector:
    """The rule :func:`corrector`."""

    inner: Rule
    snr: float
    steps: int
    measured: bool

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        inner, (times, alpha, sigma) = self.inner(process, ts), _levels(process, ts)
        size = 2 * self.snr**2

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            x, carry = inner(denoise, x, i, carry, noise.at(0))
            for j in range(self.steps if sigma[i + 1] else 0):
                mean, xi = denoise(x, times[i + 1]).mean, noise.at(1 + j).normal_like(x)
                k: float | Tensor = size
                if self.measured:
                    eps = rms(x.sub(mean, alpha=alpha[i + 1])) / sigma[i + 1]
                    k = (size * (rms(xi) / eps.clamp(min=1e-6)) ** 2).clamp(max=1)
                x = _move(x, mean, alpha[i + 1], sigma[i + 1], k, xi)
            return x, carry

        return step


def corrector(inner: Rule, *, snr: float = 0.16, steps: int = 1, measured: bool = True) -> _Corrector:
    """Predictor-corrector sampling: Langevin moves (1) at the new noise level after every step of another rule.

    The size follows the ratio of signal to noise in a move, k = 2 (snr |xi| / |eps|)^2 with eps = (x - alpha D)/sigma.

    Args:
        inner: the predictor.
        snr: 0.16 for the paper's VE model, 0.01 for VP.
        steps: moves after every step; none at t = 0.
        measured: whether norms are those of the item; otherwise both are taken as equal, as they are on average, k = 2 snr^2.

    Raises:
        ValueError: a number is out of range.

    Cost:
        That of the predictor and ``steps`` more calls a step.

    Differs:
        The paper takes means of the norms over the batch, so that an item depends on its neighbours; here each item has its own,
        and k is at most 1, where the drift lands on alpha D: norms of items of few dimensions vary. The factor 1 - beta of VP is
        left to ``snr``. The corrector follows the predictor, as in the paper's algorithm; the released code has it before.

    Source: Song et al. 2021, algorithms 2 to 5.

    >>> from trilemma.sampling import ddpm
    >>> corrector(ddpm, steps=-1)
    Traceback (most recent call last):
    ValueError: a corrector needs snr in (0, 0.7] and steps >= 0, got 0.16 and -1
    """
    if not 0 < snr <= 0.7 or steps < 0:
        raise ValueError(f"a corrector needs snr in (0, 0.7] and steps >= 0, got {snr} and {steps}")
    return _Corrector(inner, snr, steps, measured)


@dataclass(frozen=True)
class _Annealed:
    """The rule :func:`annealed_langevin`."""

    size: float
    moves: int

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        times, alpha, sigma = _levels(process, ts)
        if alpha[0] == 0:
            raise ValueError(
                "annealed Langevin dynamics needs a signal, and alpha = 0 at the start; start later than t = 1"
            )

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            if not sigma[i + 1]:
                return denoise(x, times[i]).mean, None
            x = x * (alpha[i + 1] / alpha[i])
            for j in range(self.moves):
                mean = denoise(x, times[i + 1]).mean
                x = _move(x, mean, alpha[i + 1], sigma[i + 1], self.size / 2, noise.at(j).normal_like(x))
            return x, None

        return step


def annealed_langevin(size: float = 0.2, moves: int = 100) -> _Annealed:
    """Annealed Langevin dynamics, the sampler of noise-conditional score networks.

    At every noise level of the grid but the first, where the start is drawn, ``moves`` times (1) with k = size / 2.

    Args:
        size: the published step is epsilon sigma^2 / sigma_L^2, and ``size`` is epsilon / sigma_L^2: 0.2 in 2019 (epsilon = 2e-5,
            sigma_L = 0.01), 0.062 in 2020 (CIFAR-10).
        moves: T, 100 in 2019, 5 in 2020.

    Raises:
        ValueError: a number is out of range; and when bound to a grid that starts where alpha = 0.

    Cost:
        ``moves`` calls a step, one for a last step to t = 0.

    Error:
        Does not vanish with more levels: the law keeps a share of about size/4 too much variance at the last level.

    Differs:
        It starts from N(0, sigma^2), not from uniform noise. A last step to t = 0 is x = D, as of 2020; leave it out for 2019.

    Source: Song and Ermon 2019, algorithm 1; 2020, algorithm 1.

    >>> annealed_langevin(3.0)
    Traceback (most recent call last):
    ValueError: size must lie in (0, 2] and moves be at least 1, got 3.0 and 100
    """
    if not 0 < size <= 2 or moves < 1:
        raise ValueError(f"size must lie in (0, 2] and moves be at least 1, got {size} and {moves}")
    return _Annealed(size, moves)
