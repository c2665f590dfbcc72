"""From densities to the probabilities of integers: the bin of a value, and laws of noise that fill it.

An image of integers k in {0, ..., K-1} is x = 2k/(K-1) - 1 in model units, as ``data`` maps it (for 8 bits k/127.5 - 1). Around
every value stands a bin of half width b = 1/(K-1), so that the model was trained on the middle of bins and all of [-1-b, 1+b] is
covered. A model of densities gives to k the probability of its bin, and any law q of u in (-b, b)^D bounds it:

    P(k) = integral of p(x + u) du >= exp E_q[log p(x + u) - log q(u | k)],                                  (1)
    log P(k) >= E log (1/S) sum_s w_s,  w_s = p(x + u_s) / q(u_s | k)     (tighter with every sample),       (2)
    bits/dim = -log2 P(k) / D = -log2 p(x + u) / D - log2(2b)             for uniform q:  6.994 for K = 256. (3)

A model that was trained on bare integers is nearly an atom at x, which a uniform u misses. It is smooth at a level of noise
sigma/alpha = b/tau: with the density of x_t there, P(k) = integral of alpha^D p_t(alpha (x + u)) du, and

    u ~ N(0, (b/tau)^2), truncated to (-b, b),                                                               (4)

is what the noise itself does, so the bound is close without any training. tau is chosen by maximising the bound: small tau loses
what lies outside of the bin, 2 Phi(-tau) a dimension, and large tau comes to atoms.

Sources: Theis et al. 2016 (arXiv:1511.01844), section 3.1, for uniform noise; Ho et al. 2019 (arXiv:1902.00275), section 3.1, for
(1) with learned q (see ``variational``); Burda et al. 2016 (arXiv:1509.00519) for (2); Zheng et al. 2023 (arXiv:2305.03935),
section 4 and appendix, for (4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..numerics.noise import Noise

__all__ = ["Dequantiser", "TruncatedNormal", "Uniform", "find_values", "to_model_units", "to_values"]

_LN2 = math.log(2)


class Dequantiser(Protocol):
    """A law q of v = u / b in (-1, 1)^D.

    Attributes:
        level: sigma/alpha, in units of b, of the items whose density is used; 0 for the data themselves.
        name: for reports.
    """

    @property
    def level(self) -> float:
        """The level."""

    @property
    def name(self) -> str:
        """The name."""

    def draw(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """V, float64 of the shape of ``x``, and log q(v | x), shape ``(B,)``, for images in model units."""


@dataclass(frozen=True)
class Uniform:
    """Q of (3). ``level`` as of :class:`Dequantiser`."""

    level: float = 0.0
    name: str = "uniform"

    def draw(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Uniform numbers; log q = -D log 2."""
        v = 2 * noise.uniform(x.shape, dtype=torch.float64, device=x.device) - 1
        return v, torch.full((len(x),), -x[0].numel() * _LN2, dtype=torch.float64, device=x.device)


@dataclass(frozen=True)
class TruncatedNormal:
    """Q of (4).

    Args:
        tau: half a bin in standard deviations.

    Differs: i-DODE takes E[-log q] in closed form. Drawn together with log p, as here, most of its variance cancels, and (2)
    needs it item by item.
    """

    tau: float = 3.0
    name: str = "truncated_normal"

    def __post_init__(self) -> None:
        if not 0.1 <= self.tau <= 30:
            raise ValueError(f"tau={self.tau:g} must lie between 0.1 and 30; 2 to 4 are good numbers")

    @property
    def level(self) -> float:
        """1 / tau."""
        return 1 / self.tau

    def draw(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """By the inverse distribution function."""
        u = noise.uniform(x.shape, dtype=torch.float64, device=x.device)
        inside = math.erf(self.tau / math.sqrt(2))  # Z
        v = torch.erfinv((2 * u - 1) * inside) * (math.sqrt(2) / self.tau)
        log_q = -0.5 * (v * self.tau) ** 2 + math.log(self.tau / (math.sqrt(2 * math.pi) * inside))
        return v.clamp(-1, 1), log_q.flatten(1).sum(1)


def to_model_units(images: Tensor, values: int = 256) -> Tensor:
    """Integers in {0, ..., values - 1} as float32 in [-1, 1].

    Raises:
        ValueError: not integers, or out of range.

    >>> to_model_units(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    if values < 2:
        raise ValueError(f"values={values} must be at least 2")
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise ValueError(
            f"bits per dimension need raw integers, such as uint8 from 0 to 255, and these images are {images.dtype}; "
            "give the integers, or make them of model units by to_values(x, values)"
        )
    low, high = (int(images.min()), int(images.max())) if images.numel() else (0, 0)
    if low < 0 or high >= values:
        raise ValueError(
            f"images go from {low} to {high}, outside of 0 to {values - 1}; say values={high + 1} or scale them"
        )
    return images.to(torch.float32) * (2 / (values - 1)) - 1


def to_values(x: Tensor, values: int) -> Tensor:
    """The integers behind images in model units, int64: undoes :func:`to_model_units`.

    Raises:
        ValueError: the images are not on the grid of so many values.

    >>> to_values(torch.tensor([-1.0, 0.125, 1.0]), 17)
    tensor([ 0,  9, 16])
    """
    k = (x.double() + 1) * ((values - 1) / 2)
    if not bool(((k - k.round()).abs() < 1e-3).all()) or not bool(((k > -0.5) & (k < values - 0.5)).all()):
        raise ValueError(
            f"images are not made of {values} equally spaced values in [-1, 1]: they were resampled, or stored as floats; "
            "bits per dimension are defined for integers only"
        )
    return k.round().long()


def find_values(x: Tensor) -> int:
    """The least number of equally spaced values in [-1, 1], up to 256, that images in model units are made of.

    Raises:
        ValueError: there is none.

    >>> find_values(torch.tensor([-1.0, -0.75, 0.125, 1.0]))
    17
    """
    seen = x.double().unique()
    for values in range(2, 257):
        k = (seen + 1) * ((values - 1) / 2)
        if bool(((k - k.round()).abs() < 1e-3).all()) and bool((seen.abs() < 1 + 1e-4).all()):
            return values
    raise ValueError(
        f"images hold {len(seen)} different numbers that are no grid of up to 256 values in [-1, 1]: they were resampled, or "
        "stored as floats; bits per dimension are defined for integers only"
    )
