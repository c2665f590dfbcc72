"""Encoding: the probability flow run upwards, from data to noise (DDIM inversion).

The flow is deterministic and so invertible: a rule without noise, bound to increasing times, carries x from grid[0] up to
grid[-1], and ``sample`` with the same rule and the grid turned round brings it back, up to the error of the rule. In

    u = sigma / (alpha + sigma), w = x_t / (alpha + sigma),     dw/du = (w - D) / u,     D = E[x | x_t],     (1)

Euler's step is DDIM's in either direction, with D at the start of the step:

    x_s = alpha_s D + sigma_s (x_t - alpha_t D) / sigma_t,     s > t.                                        (2)

At t = 0 exactly, (1) is 0/0. There d(x/alpha)/d(sigma/alpha) = -sigma score = 0, so a first step from 0 is x_s = alpha_s x,
without a call, and leaves an error of O(sigma_s^2).

Source: Song et al. 2021 (arXiv:2010.02502), equation (14) and section 5.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..denoise.posterior import Gaussian
from ..numerics.noise import Noise
from ..numerics.tableau import EULER
from .flow import RungeKutta, runge_kutta
from .loop import check_grid, run
from .start import check

__all__ = ["invert"]

_DDIM = runge_kutta(EULER)


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x: Tensor,
    grid: Tensor,
    rule: RungeKutta = _DDIM,
    *,
    cond: dict[str, Tensor] | None = None,
) -> Tensor:
    """Carry items up the probability flow: from data to the noise that ``sample`` would make them of.

    Args:
        denoiser: any denoiser, guided or not.
        x: states at ``grid[0]``, shape ``(B, ...)``; clean items where that is 0.
        grid: increasing times in [0, 1], shape ``(N+1,)``: any grid for sampling, ``.flip(0)``.
        rule: any ``runge_kutta``: Euler's is DDIM inversion, Heun's and others are of higher order. Other rules
            have no way up: they are written for the polynomials and the end of the way down.
        cond: conditions for the denoiser, one per item.

    Returns:
        The states at ``grid[-1]``, shape ``(B, ...)``, on the device of the denoiser.

    Raises:
        ValueError: the times do not increase in [0, 1], the rule is no Runge-Kutta rule, x is not finite, the conditions do not
            fit, or the denoiser is in training mode and has dropout.

    Cost:
        One call a stage and step; none for a first step from t = 0.

    Error:
        O(h^order), and O(sigma^2) of the first step from t = 0. With guidance the flow up and the flow down are the same field,
        but a strong weight makes it steep and the error large.

    Differs:
        Diffusers' ``DDIMInverseScheduler`` tells the network the time at the end of a step, with the state at its start.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.process import Flow
    >>> from trilemma.process.grid import log_snr_grid
    >>> model = GaussianDenoiser(Flow(), torch.zeros(1), Covariances.diagonal(torch.full((1, 1), 0.25)))
    >>> grid = log_snr_grid(Flow(), 400)
    >>> invert(model, torch.ones(1, 1), grid.flip(0)).round(decimals=1)          # two standard deviations, of 1 at t = 1
    tensor([[2.]])
    """
    ts = check_grid(torch.as_tensor(grid, dtype=torch.float64).flip(0)).flip(0)
    if not isinstance(rule, RungeKutta):
        raise ValueError(f"rule must be a Runge-Kutta rule such as runge_kutta(HEUN), got {rule!r}")
    device, given = check(denoiser, x.shape, x, cond)
    x, process = x.to(device), denoiser.process
    if ts[0] == 0:
        x, ts = x * float(process.alpha(ts[1])), ts[1:]

    def denoise(x: Tensor, t: Tensor) -> Gaussian:
        return denoiser(x, t, **given)

    if len(ts) == 1:
        return x
    return run(rule(process, ts), denoise, x, len(ts) - 1, Noise(0, x.shape[0]))
