"""Seeded noise in which item ``i`` depends on its own seed and on a position, and on nothing else.

Not on the batch it is in, the number of devices, the order of calls or any global state: a picture is found again from its
seed. The generator is counter based: SplitMix64 from a start of its own for every (seed, position), with a second key in the
middle. With h_1 and h_2 the two rounds of its finaliser M, bijections of 64-bit words,

    bits(seed, position, j) = h_2(h_1(gamma j + k_1) ^ k_2),     k_1, k_2 = hash(seed, position),            (1)

of which 2 j words of 32 bits make the two uniforms of ``j`` pairs, and Box and Muller's transform turns them into normals,

    r = sqrt(-2 ln u_1),   z_1 = r cos(2 pi u_2),   z_2 = r sin(2 pi u_2).                                   (2)

All items and elements are drawn at once by a handful of integer operations, which are exact on every device.

Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (gamma and the finaliser of version 64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

__all__ = ["Noise", "item_seeds"]

_GAMMA = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_WORD = (1 << 64) - 1


def _signed(word: int) -> int:
    """The 64-bit two's complement number with the bits of ``word``, as torch stores it."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix_int(z: int) -> int:
    """M of (1) on a Python integer."""
    for shift, factor in _MIX:
        z = ((z ^ (z >> shift)) * factor) & _WORD
    return z ^ (z >> 31)


def _mix_(z: Tensor, key: Tensor | None = None) -> Tensor:
    """M on int64 words, in place, with ``key`` after the first round as in (1).

    ``>>`` copies the sign on int64, so the copies are masked away. One buffer serves all shifts: memory is what this costs.
    """
    part = torch.empty_like(z)
    for shift, factor in _MIX:
        torch.bitwise_right_shift(z, shift, out=part)
        z.bitwise_xor_(part.bitwise_and_((1 << (64 - shift)) - 1)).mul_(_signed(factor))
        if key is not None:
            z.bitwise_xor_(key)
            key = None
    torch.bitwise_right_shift(z, 31, out=part)
    return z.bitwise_xor_(part.bitwise_and_((1 << 33) - 1))


def item_seeds(seed: int, n: int) -> Tensor:
    """Seeds of ``n`` items that belong to one integer seed; the first ``m`` of ``n`` are those of ``m``.

    Args:
        seed: any integer; taken modulo 2^64.
        n: number of items.

    Returns:
        int64, shape ``(n,)``.

    >>> torch.equal(item_seeds(7, 5)[:3], item_seeds(7, 3))
    True
    """
    z = torch.arange(1, n + 1, dtype=torch.int64).mul_(_signed(_GAMMA))
    return _mix_(z.add_(_signed(_mix_int(seed & _WORD))))


class Noise:
    """A source of noise for a batch of items; immutable.

    Args:
        seeds: one integer per item (sequence or int64 tensor), or one integer or one ``torch.Generator`` for all, from which
            the items' seeds are derived; then ``n`` is needed.
        n: number of items.

    Raises:
        ValueError: ``n`` is missing or disagrees with the number of seeds.

    >>> noise = Noise(0, 4)
    >>> torch.equal(noise.normal((4, 3))[2:], noise[2:].normal((2, 3)))      # an item alone is the item in the batch
    True
    >>> torch.equal(noise.at(1).normal((4, 3)), noise.normal((4, 3)))       # another position, other noise
    False
    """

    __slots__ = ("_keys", "_position", "seeds")

    def __init__(self, seeds: int | Sequence[int] | Tensor | torch.Generator, n: int | None = None) -> None:
        if isinstance(seeds, torch.Generator):
            if n is None:
                raise ValueError("a torch.Generator does not say how many items there are; give n")
            limit = torch.iinfo(torch.int64).max
            seeds = torch.randint(limit, (n,), generator=seeds, device=seeds.device, dtype=torch.int64).cpu()
        elif isinstance(seeds, int | Integral):
            if n is None:
                raise ValueError(
                    f"the single seed {seeds} does not say how many items there are; give n or one seed per item"
                )
            seeds = item_seeds(int(seeds), n)
        elif not isinstance(seeds, Tensor):
            seeds = torch.tensor([_signed(int(s)) for s in seeds], dtype=torch.int64)
        if seeds.ndim != 1 or seeds.dtype != torch.int64:
            raise ValueError(f"seeds must be int64 of shape (n,), got {seeds.dtype} of shape {tuple(seeds.shape)}")
        if n is not None and len(seeds) != n:
            raise ValueError(
                f"{len(seeds)} seeds were given for {n} items; give one seed per item, or a single integer"
            )
        self.seeds = seeds
        self._position = 0
        self._keys: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.seeds)

    def __repr__(self) -> str:
        return f"Noise(n={self.n}, position={self._position:#x})"

    def at(self, *position: int) -> Noise:
        """The source at a further position: ``at(i, j)`` is ``at(i).at(j)``. Costs a microsecond and draws nothing."""
        child = Noise.__new__(Noise)
        child.seeds, child._keys, child._position = self.seeds, self._keys, self._position
        for p in position:
            child._position = _mix_int((child._position + _GAMMA * (2 * p + 1)) & _WORD)
        return child

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Noise:
        """The source of some of the items, at the same position."""
        child = Noise(self.seeds[index])
        child._position = self._position
        return child

    def _bits(self, count: int, device: torch.device) -> Tensor:
        """(1): int64 words of shape ``(n, count)``."""
        if device not in self._keys:
            seeds = self.seeds.to(device)[:, None]
            self._keys[device] = (_mix_(seeds + _signed(_GAMMA)), _mix_(seeds ^ _signed(~_GAMMA)))
        first, second = self._keys[device]
        steps = torch.arange(count, device=device).mul_(_signed(_GAMMA)).add_(_signed(self._position))
        return _mix_(steps + first, key=second ^ _signed(_mix_int(self._position)))

    def _check(self, shape: Sequence[int]) -> int:
        if len(shape) == 0 or shape[0] != self.n:
            raise ValueError(f"this noise has {self.n} items, so a shape must begin with {self.n}; got {tuple(shape)}")
        return math.prod(shape[1:])

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Independent standard normal numbers.

        Args:
            shape: ``(n, ...)``. An item's numbers depend on how many it has, not on how they are folded.
            dtype: the numbers are made in float64 if asked for it and in float32 otherwise; they agree up to rounding.
            device: where they are made.

        Returns:
            Shape ``shape``. Largest possible absolute value: 6.66 (31 bits of resolution).
        """
        size = self._check(shape)
        half = (size + 1) // 2
        real = torch.float64 if dtype == torch.float64 else torch.float32
        words = self._bits(half, torch.device(device)).view(torch.int32).to(real)
        radius, angle = words[:, :half], words[:, half:]
        # (2), in place. u_1 in (0, 1) from 31 bits: the half keeps ln u_1 finite, and rounding to 1 gives r = 0.
        radius.abs_().add_(0.5).mul_(2.0**-31).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle.mul_(math.pi * 2.0**-31)  # in [-pi, pi)
        cos = angle.cos()
        angle.sin_().mul_(radius)
        radius.mul_(cos)
        return words[:, :size].reshape(tuple(shape)).to(dtype)

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers with the shape, type and device of ``x``."""
        return self.normal(x.shape, dtype=x.dtype, device=x.device)

    def uniform(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Independent uniform numbers in the open interval (0, 1), of 23 bits (52 in float64).

        Args:
            shape: ``(n, ...)``.
            dtype: float32 or float64.
            device: where they are made.
        """
        size = self._check(shape)
        digits = 52 if dtype == torch.float64 else 23
        bits = (self._bits(size, torch.device(device)) >> (64 - digits)).bitwise_and_((1 << digits) - 1)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        return bits.to(real).add_(0.5).mul_(2.0**-digits).reshape(tuple(shape)).to(dtype)
