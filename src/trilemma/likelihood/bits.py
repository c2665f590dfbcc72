"""Bits per dimension of raw integers by the probability flow, with every part of its error beside it.

The bound (2) of ``dequantise``, with the density of the items at the level where the law of u wants it, by ``later``. Since it is
a probability of integers, it is never below 0 bits, up to its stated errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._names import lookup
from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..numerics.student import quantile
from ..sampling.start import check
from .dequantise import Dequantiser, TruncatedNormal, Uniform, to_model_units
from .flow import Likelihood, log_likelihood
from .later import Later

__all__ = ["DEQUANTISERS", "BitsPerDim", "best_level", "bits_per_dim", "density_at"]

DEQUANTISERS: dict[str, Dequantiser] = {"uniform": Uniform(), "truncated_normal": TruncatedNormal()}
"""Laws that need no training, by name."""
_LN2 = math.log(2)


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension of images, and what is known about them.

    Args:
        value: mean over the images, of the bound (2).
        stderr: standard error of it over images, which contains that of probes and dequantisation; NaN for one image.
        per_image: shape ``(B,)``, float64.
        gap: estimate of how far the value lies above that of exact integration, Var(w) / (2 S E[w]^2) in bits/dim; NaN for one
            sample. Often too small from few samples, which miss the rare large weights. The bound of one sample less
            ``gained`` is the value.
        gained: by how much the samples made the value smaller than one of them would.
        probe_stderr: the part of ``stderr`` that is due to estimated traces; NaN for one probe.
        solver_error: mean absolute error of the solver, estimated.
        prior_mismatch: mean of log p(x_1) - log prior(x_1), in bits/dim, not contained in the value; NaN if not known.
        offset: log2(1/(2b)): the value is -log2 p / D - the bits of q, in units of bins; 6.994 for 8 bits.
        dequantise: the law of u.
        samples: S.
        calls: of the denoiser, an image on average.
    """

    value: float
    stderr: float
    per_image: Tensor
    gap: float
    gained: float
    probe_stderr: float
    solver_error: float
    prior_mismatch: float
    offset: float
    dequantise: str
    samples: int
    calls: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 per cent: of the mean over images like these, by Student's quantile for B - 1 degrees of freedom; NaN for one."""
        half = quantile(0.95, len(self.per_image) - 1) * self.stderr if len(self.per_image) > 1 else math.nan
        return self.value - half, self.value + half


def density_at(denoiser: Denoiser, level: float) -> tuple[Denoiser, float]:
    """The denoiser of x_t at sigma/alpha = ``level``, in model units, and its alpha; the denoiser itself at level 0.

    Raises:
        ValueError: the process never is at this level.
    """
    if level == 0:
        return denoiser, 1.0
    t = denoiser.process.time(torch.tensor(-2 * math.log(level), dtype=torch.float64))
    if not 0 < float(t) < 1:
        raise ValueError(f"{denoiser.process} never has sigma/alpha = {level:.3g}; choose another tau")
    return Later(denoiser, float(t)), float(denoiser.process.alpha(t))


@torch.no_grad()
def bits_per_dim(
    denoiser: Denoiser,
    images: Tensor,
    *,
    dequantise: str | Dequantiser = "truncated_normal",
    values: int = 256,
    samples: int = 1,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    steps: int | None = None,
    trace: str = "exact",
    probes: int = 1,
    cond: dict[str, Tensor] | None = None,
    batch: int | None = None,
    hook: Callable[[int, int], object] | None = None,
) -> BitsPerDim:
    """Bits per dimension of raw images under the probability flow of a denoiser, with their parts.

    Args:
        denoiser: any denoiser of items in model units; not a guided one, whose density is not that of its samples.
        images: integers in {0, ..., values - 1}, any shape ``(B, ...)``: raw, not in model units.
        dequantise: ``"truncated_normal"``, ``"uniform"``, or a :class:`Dequantiser` such as ``TruncatedNormal(2.5)``.
        values: number K of values.
        samples: number S of draws of u an image. They share the probes of the trace, whose error (2) would take for weights.
        seeds: an integer, one integer per image, or a ``torch.Generator``.
        rtol: of the solver, see ``log_likelihood``.
        atol: of the solver.
        steps: of a fixed grid in place of tolerances.
        trace: of the divergence.
        probes: of the divergence.
        cond: conditions for the denoiser, one per image.
        batch: images at a time.
        hook: called with the number of solves done and their number in all.

    Returns:
        The mean and all of its parts.

    Raises:
        ValueError: the images are no such integers, do not fit the denoiser, or an option is out of range.

    Cost:
        S times that of ``log_likelihood``.

    Error:
        An upper bound of the bits, in expectation, by ``gap``; statistical ``stderr``; the solver's and the prior's apart.

    Source: Theis et al. 2016 (arXiv:1511.01844); Burda et al. 2016 (arXiv:1509.00519), equation (8).

    >>> from trilemma.denoise import Covariances, MixtureDenoiser
    >>> from trilemma.process import VP
    >>> two = MixtureDenoiser(VP(), torch.tensor([[-1.0], [1.0]]), Covariances.diagonal(torch.full((2, 1), 1e-4)))
    >>> fair = bits_per_dim(two, torch.tensor([[0], [1]]), values=2, samples=4)              # a coin: one bit
    >>> round(fair.value, 1)
    1.0
    """
    law = lookup("dequantise", dequantise, DEQUANTISERS) if isinstance(dequantise, str) else dequantise
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"images need shape (B, ...) with at least one image, got {tuple(images.shape)}")
    if images.dtype == torch.uint8 and values == 256 and int(images.max()) <= 1 and len(images) > 1:
        raise ValueError("all images hold 0 and 1 only; if 1 is white, say values=2")
    x = to_model_units(images, values)
    device, given = check(denoiser, x.shape, x, cond)
    x, half, size, noise = x.to(device), 1 / (values - 1), x[0].numel(), Noise(seeds, len(x))
    _check_fit(denoiser, x, given)
    later, alpha = density_at(denoiser, law.level * half)
    weights: list[Tensor] = []
    parts: list[Likelihood] = []
    chunks = torch.arange(len(x)).split(batch or len(x))
    for s in range(samples):
        done: list[tuple[Tensor, Likelihood]] = []
        for i, items in enumerate(chunks):
            own = noise[items]
            v, log_q = law.draw(x[items.to(device)], own.at(1, s))
            likelihood = log_likelihood(
                later, alpha * (x[items.to(device)].double() + half * v), rtol=rtol, atol=atol, steps=steps, trace=trace,
                probes=probes, seeds=own.seeds, cond={key: value[items.to(device)] for key, value in given.items()},
            )  # fmt: skip
            done.append((likelihood.log_prob + size * math.log(alpha * half) - log_q, likelihood))
            if hook is not None:
                hook(s * len(chunks) + i + 1, samples * len(chunks))
        weights.append(torch.cat([w for w, _ in done]))
        parts += [part for _, part in done]
    return _report(torch.stack(weights), parts, law, size, half)


def _report(log_w: Tensor, parts: list[Likelihood], law: Dequantiser, size: int, half: float) -> BitsPerDim:
    """From log weights, shape ``(S, B)``, of (2)."""
    samples, n = log_w.shape
    unit = -1 / (size * _LN2)
    per_image = (log_w.logsumexp(0) - math.log(samples)) * unit
    share = log_w.softmax(0) * samples  # w / mean(w)
    gap = float(share.var(0).mean()) / (2 * samples) * -unit if samples > 1 else math.nan

    def mean(name: str) -> float:
        return float(torch.cat([getattr(part, name) for part in parts]).double().mean())

    probe = torch.cat([part.stderr for part in parts]).reshape(samples, n).mean(0)
    return BitsPerDim(
        value=float(per_image.mean()),
        stderr=float(per_image.std() / math.sqrt(n)) if n > 1 else math.nan,
        per_image=per_image,
        gap=gap,
        gained=float((log_w.mean(0) * unit - per_image).mean()),
        probe_stderr=float(probe.square().sum().sqrt()) / n * -unit,
        solver_error=mean("solver_error") * -unit,
        prior_mismatch=mean("prior_mismatch") * -unit,
        offset=-math.log2(2 * half),
        dequantise=law.name + (f", tau = {1 / law.level:.3g}" if law.level else ""),
        samples=samples,
        calls=mean("calls") * samples,
    )


def _check_fit(denoiser: Denoiser, x: Tensor, cond: dict[str, Tensor]) -> None:
    """Ask the denoiser about one image.

    Raises:
        ValueError: it cannot take images of this shape.
    """
    one = {key: value[:1] for key, value in cond.items()}
    try:
        with torch.no_grad():
            answer = denoiser(x[:1], torch.tensor(0.5, dtype=torch.float64), **one).mean
        fits = answer.shape == x[:1].shape
        why = "" if fits else f"it answers with {tuple(answer.shape[1:])}"
    except (RuntimeError, ValueError, TypeError) as error:
        fits, why = False, " ".join(str(error).split())
    if not fits:
        raise ValueError(f"images of shape {tuple(x.shape[1:])} do not fit this denoiser: {why}")


def best_level(
    denoiser: Denoiser,
    images: Tensor,
    *,
    taus: Sequence[float] = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0),
    values: int = 256,
    seeds: int = 0,
    steps: int | None = 64,
    trace: str = "exact",
    probes: int = 1,
    cond: dict[str, Tensor] | None = None,
    batch: int | None = None,
) -> tuple[TruncatedNormal, dict[float, float]]:
    """The tau of (4) with the best bound on some images, with the same noise for all.

    Args:
        denoiser: any denoiser.
        images: raw integers, shape ``(B, ...)``; some of the training data, so that nothing is chosen on what is reported.
        taus: those to try.
        values: number K of values.
        seeds: of the noise.
        steps: of the fixed grid; None for tolerances.
        trace: as of ``bits_per_dim``.
        probes: as of ``bits_per_dim``.
        cond: conditions, one per image.
        batch: images at a time.

    Returns:
        The best law and bits/dim by tau.

    Cost:
        As many solves as taus.

    >>> from trilemma.denoise import Covariances, MixtureDenoiser
    >>> from trilemma.process import VP
    >>> two = MixtureDenoiser(VP(), torch.tensor([[-1.0], [1.0]]), Covariances.diagonal(torch.full((2, 1), 1e-4)))
    >>> best_level(two, torch.tensor([[0], [1]]), values=2, taus=(1.0, 3.0))[0].tau
    3.0
    """
    if not taus:
        raise ValueError("taus is empty; give some to try, such as (2, 3, 4)")
    found = {
        tau: bits_per_dim(
            denoiser, images, dequantise=TruncatedNormal(tau), values=values, seeds=seeds, steps=steps, trace=trace,
            probes=probes, cond=cond, batch=batch,
        ).value
        for tau in taus
    }  # fmt: skip
    return TruncatedNormal(min(found, key=lambda tau: found[tau])), found
