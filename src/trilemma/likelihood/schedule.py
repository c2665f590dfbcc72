"""The monotone schedule with which a variational bound is known best, fitted to a model.

The diffusion term of the bound is an integral over log-SNR l, int f dl / 2 with f = |eps - eps_hat|^2, so a schedule is nothing
but the density p of the levels at which it is sampled, and the estimate is f/p. Its mean does not depend on p, and its second
moment

    E[(f/p)^2] = int E[f^2 | l] / p(l) dl >= (int sqrt(E[f^2 | l]) dl)^2,                                    (1)

by Cauchy and Schwarz, with equality for

    p(l) proportional to sqrt(E[f^2 | l]).                                                                   (2)

So the minimum that VDM's monotone network descends to is known in closed form from the second moment of f at each level.

Source: Kingma et al. 2021 (arXiv:2107.00630), section 5.1 and appendix I.2: a schedule that minimises the variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._names import unknown
from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..process.learned import Learned
from ..sampling.start import check
from .bound import bound_control, eps_error, level_ends
from .control import Control
from .field import model_dtype
from .terms import Cond, Seeds

__all__ = ["fit_schedule"]

_FLOOR = 0.02  # of the largest density: what is rare in the data of the fit is not left out


def fit_schedule(
    denoiser: Denoiser,
    x: Tensor,
    *,
    ends: tuple[float, float] | None = None,
    bins: Tensor | None = None,
    of: str = "bound",
    control: Control | None = None,
    levels: int = 33,
    samples: int = 4,
    seeds: Seeds = 0,
    cond: Cond | None = None,
    batch: int = 256,
) -> Learned:
    """The schedule (2) of a model, as a process.

    Give it to :func:`~trilemma.likelihood.bound.elbo` as ``schedule``; or train with it as the process (save it by
    ``process_to_config`` and name the file, ``--process schedule.json``) under ``weighting="elbo"`` and uniform times, which is
    VDM with a learned schedule, fitted with ``of="loss"``; or sample any model on it through ``Rescheduled``.

    Args:
        denoiser: the model, of any process.
        x: clean items, ``(B, ...)``, model units: some of the training data.
        ends: the lowest and the highest log-SNR; as in :func:`~trilemma.likelihood.bound.elbo` without it.
        bins: as there.
        of: ``"bound"``, for what :func:`~trilemma.likelihood.bound.elbo` samples; or ``"loss"``, for the error itself, which
            training sees. For data on ``bins`` they are the same.
        control: as in ``elbo``; for the bound only.
        levels: knots of the density, equally spaced in log-SNR.
        samples: draws an item and level.
        seeds: of the noise.
        cond: conditions of the items.
        batch: evaluations at once.

    Returns:
        A variance preserving process whose log-SNR at uniform times has the law (2).

    Raises:
        ValueError: the ends, the number of levels or ``of`` is out of range, or the denoiser makes no error.

    Cost:
        ``levels * samples`` calls an item, once.

    Error:
        The density to O(1 / sqrt(B samples)); the bound stays unbiased whatever it is.

    Differs:
        VDM trains a monotone network by gradients of the second moment together with the model. The density is kept above 2 % of
        its largest value.

    Source: Kingma et al. 2021, appendix I.2.

    >>> from trilemma.denoise import FiniteDenoiser
    >>> from trilemma.process import Flow
    >>> model = FiniteDenoiser(Flow(), torch.tensor([[-1.0], [1.0]]))                 # all is decided between -4 and 4
    >>> fitted = fit_schedule(model, torch.ones(64, 1), of="loss", ends=(-10.0, 10.0), samples=16)
    >>> density = dict(zip(fitted.knots, fitted.density))
    >>> density[0.0] > 10 * density[-7.5] and density[0.0] > 10 * density[7.5]
    True
    """
    if levels < 2 or samples < 1:
        raise ValueError(f"a schedule needs at least 2 levels and 1 sample, got levels={levels} and samples={samples}")
    if of not in ("bound", "loss"):
        raise unknown("of", of, ("bound", "loss"))
    if of == "loss" and control is not None:
        raise ValueError("control is for of='bound'; training sees the whole error")
    device, cond = check(denoiser, x.shape, x, cond)
    x, noise = x.to(device), Noise(seeds, len(x))
    if of == "bound":
        control = bound_control(denoiser, x, bins, control)
    knots = torch.linspace(*level_ends(denoiser.process, ends, bins), levels, dtype=torch.float64)
    shape, dtype = (len(x), samples, *x.shape[1:]), model_dtype(denoiser, x)
    second = []
    for k, level in enumerate(knots):
        eps = noise.at(k).normal(shape, dtype=dtype, device=device)
        at = level.to(device).expand(len(x), samples)
        second.append(float(eps_error(denoiser, x, at, eps, control=control, cond=cond, batch=batch).square().mean()))
    density = torch.tensor(second, dtype=torch.float64).sqrt()  # (2)
    if not float(density.max()) > 0:
        raise ValueError("the denoiser makes no error at any level of these items; there is nothing to fit")
    return Learned(tuple(knots.tolist()), tuple((density / density.max()).clamp(min=_FLOOR).tolist()))
