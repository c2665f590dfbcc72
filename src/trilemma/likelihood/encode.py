"""Encoding: data to standard normal latents and back along the probability flow, with a scheme that inverts exactly.

The latent is z = x_1 / sigma(1), for which ``sample`` draws N(0, I). Two schemes lead there on the same levels: Adams' method
(``levels``), up and down two solutions, each with its error; and a symmetric one (``reversible``) that is undone bit for bit.

Source: Song et al. 2021 (arXiv:2011.13456), section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..sampling.loop import Hook
from .levels import LEVELS, Track
from .reversible import LARGEST, START, ascend, descend, to_lattice

__all__ = ["LEVELS", "Latent", "RoundTrip", "decode", "encode", "round_trip"]


@dataclass(frozen=True)
class Latent:
    """What encoding makes of items; an item is the same in any batch.

    Args:
        z: standard normal units, shape ``(B, ...)``: ``sample(..., x=sigma(1) z)`` starts from it.
        carry: the three states before the last of the reversible scheme, float64 of shape ``(B, 3, ...)``; none without it.
        steps: number of steps that led here, and lead back.
        levels: between which sigma / (alpha d).
    """

    z: Tensor
    carry: Tensor | None = None
    steps: int = 50
    levels: tuple[float, float] = LEVELS

    @property
    def reversible(self) -> bool:
        """Whether the way back is exact."""
        return self.carry is not None


@dataclass(frozen=True)
class RoundTrip:
    """There and back.

    Args:
        error: |x' - x| / |x| of each item, Euclidean, shape ``(B,)``; |x'| where x = 0.
        latent: what is in between.
        x: what came back, shape ``(B, ...)``.
        calls: of the denoiser, up and down.
    """

    error: Tensor
    latent: Latent
    x: Tensor
    calls: tuple[int, int]


@torch.no_grad()
def encode(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 50,
    reversible: bool = False,
    levels: tuple[float, float] = LEVELS,
    cond: dict[str, Tensor] | None = None,
    hook: Hook | None = None,
) -> Latent:
    """Latents of clean items: where the probability flow carries them by t = 1.

    Args:
        denoiser: any denoiser.
        x: clean items, shape ``(B, ...)``, model units; they are taken as x_t / alpha at the lowest level.
        steps: number of steps, at least 4.
        reversible: by the scheme that ``decode`` undoes exactly, with three more states to keep.
        levels: lowest and highest sigma / (alpha d); the highest at most that of the process at t = 1.
        cond: conditions for the denoiser, one per item; decode with the same.
        hook: called with a ``Progress`` after every step.

    Returns:
        The latents, on the device of the denoiser; ``z`` has the type of ``x``, with ``reversible`` it is float64.

    Raises:
        ValueError: x, the conditions, the steps or the levels do not fit; found before any work.

    Cost:
        One call a step; with ``reversible`` eleven more for its start. Memory for about nine states in float64.

    Error:
        O(h^5) by Adams' method and O(h^4) with ``reversible``, after first steps of lower order; and O(low^2 + 1/high) for the
        levels left out. On atoms, such as images of few grey levels, the flow begins undefined: z depends on ``low``, and has
        less than unit variance.

    Source: Song et al. 2021 (arXiv:2011.13456), section 4.3.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import Flow
    >>> model = GaussianDenoiser(Flow(), torch.zeros(1), Covariances.diagonal(torch.full((1, 1), 0.25)))
    >>> encode(model, torch.tensor([[1.0], [-0.5]])).z.round(decimals=2)                    # in standard deviations
    tensor([[ 2.],
            [-1.]])
    """
    track = Track(denoiser, x, steps, levels, cond, hook)
    y = x.to(track.device).double() * track.from_x
    if reversible and y.numel() and float(y.abs().max()) > LARGEST:
        raise ValueError(
            f"|x| goes up to {float(x.abs().max()):.4g}, but the reversible scheme holds {LARGEST:g} standard deviations "
            f"({track.d:.4g}) of the data; scale the data, or encode with reversible=False"
        )
    if not reversible:
        return Latent((track.adams(y, down=False) * track.to_z).to(x.dtype), None, steps, levels)
    last, *before = ascend(track, y)
    return Latent(last * track.to_z, torch.stack(before, 1), steps, levels)


@torch.no_grad()
def decode(
    denoiser: Denoiser,
    latent: Latent | Tensor,
    *,
    steps: int | None = None,
    dtype: torch.dtype | None = None,
    cond: dict[str, Tensor] | None = None,
    hook: Hook | None = None,
) -> Tensor:
    """Items of latents: the probability flow run down.

    Args:
        denoiser: the denoiser that encoded.
        latent: from ``encode``, or standard normal numbers of shape ``(B, ...)``.
        steps: number of steps; as many as led to the latent without it, 50 for plain numbers. A reversible latent goes back by
            the steps it came.
        dtype: of the result and of what the denoiser is given; float32 for a reversible latent without it, else that of z.
        cond: conditions for the denoiser, one per item.
        hook: called with a ``Progress`` after every step.

    Returns:
        Shape ``(B, ...)``, model units.

    Raises:
        ValueError: the latent, the conditions or the steps do not fit; found before any work.

    Cost:
        One call a step.

    Error:
        As of ``encode``. None from a reversible latent, if the denoiser answers bit for bit as before: same weights, device,
        type and batch. An answer that differs, as in another batch, by 1e-7, is enlarged by the parasites of its scheme, at
        most by about (high / low)^(11/9); on handwritten digits the item moved by 1e-5 to 2e-5.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import VP
    >>> model = GaussianDenoiser(VP(), torch.zeros(1), Covariances.diagonal(torch.full((1, 1), 0.25)))
    >>> x = torch.tensor([[0.3], [-0.1]])
    >>> torch.equal(decode(model, encode(model, x, reversible=True)), x)
    True
    """
    if isinstance(latent, Tensor):
        latent = Latent(latent, steps=50 if steps is None else steps)
    if latent.carry is None:
        track = Track(denoiser, latent.z.to(dtype or latent.z.dtype), steps or latent.steps, latent.levels, cond, hook)
        y = track.adams(latent.z.to(track.device).double() / track.to_z, down=True)
        return (y / track.from_x).to(track.dtype)
    if steps not in (None, latent.steps):
        raise ValueError(f"this latent is reversible and goes back by the {latent.steps} steps it came, not by {steps}")
    if latent.carry.shape != (len(latent.z), START, *latent.z.shape[1:]):
        raise ValueError(f"carry has shape {tuple(latent.carry.shape)}, which does not fit z, {tuple(latent.z.shape)}")
    track = Track(denoiser, latent.z.to(dtype or torch.float32), latent.steps, latent.levels, cond, hook)
    newest = to_lattice(latent.z.to(track.device).double() / track.to_z)
    y = descend(track, [newest, *latent.carry.to(track.device).double().unbind(1)])
    return (y / track.from_x).to(track.dtype)


def round_trip(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 50,
    reversible: bool = False,
    levels: tuple[float, float] = LEVELS,
    cond: dict[str, Tensor] | None = None,
) -> RoundTrip:
    """Encode, decode, and see what is lost. Arguments as of :func:`encode`.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import EDM
    >>> model = GaussianDenoiser(EDM(), torch.ones(1), Covariances.diagonal(torch.full((1, 1), 0.1)))
    >>> bool(round_trip(model, torch.tensor([[1.2], [0.7]])).error.max() < 1e-4)
    True
    """
    calls = []

    def count(*_: object) -> None:
        calls.append(1)

    handle = denoiser.register_forward_pre_hook(count)
    try:
        latent = encode(denoiser, x, steps=steps, reversible=reversible, levels=levels, cond=cond)
        up = len(calls)
        back = decode(denoiser, latent, dtype=x.dtype, cond=cond)
    finally:
        handle.remove()
    x = x.to(back.device)
    size = x.double().flatten(1).norm(dim=1)
    error = (back.double() - x.double()).flatten(1).norm(dim=1) / torch.where(size > 0, size, 1.0)
    return RoundTrip(error, latent, back, (up, len(calls) - up))
