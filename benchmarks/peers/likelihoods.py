"""Log-likelihoods of others on our denoisers: k-diffusion's and flow_matching's own code, and score_sde's recipe written out.

Each takes items and gives their log-density and the forward passes that it cost. All three use one sign vector an item for the
whole path, from torch's generator; within :func:`drawn` it is a given one, so that what a solver does wrong can be told from
what a probe does.

    score_sde       SciPy's RK45 in VP time from 1e-5, two forward passes an evaluation, N(0, 1) for x_1
    k-diffusion     dopri5 in sigma from sigma_min to sigma_max, which the user gives, N(0, sigma_max^2) for x_1
    flow_matching   any method of torchdiffeq in t from 1 (data) to 0 (noise), velocities from the user
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from unittest import mock

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from common import kdiffusion
from trilemma.denoise import Denoiser, Preconditioned
from trilemma.numerics.trace import exact_trace, quadratic_forms, vjps

__all__ = ["Velocity", "drawn", "edm_grid", "flow_matching", "k_diffusion", "score_sde"]

Answer = tuple[Tensor, int]


@contextmanager
def drawn(probe: Tensor) -> Iterator[None]:
    """Whoever asks torch for a sign vector as the peers do gets ``probe``, in the shape that it asks for."""

    def bits(like: Tensor, high: int) -> Tensor:
        return ((probe + 1) / 2).reshape(like.shape).to(like)

    def normal(like: Tensor) -> Tensor:
        return -probe.reshape(like.shape).to(like)  # flow_matching takes those below 0 for +1

    with mock.patch.object(torch, "randint_like", bits), mock.patch.object(torch, "randn_like", normal):
        yield


def _standard_normal(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))


def score_sde(denoiser: Denoiser, x: Tensor, *, tol: float = 1e-5, begin: float = 1e-5, exact: bool = False) -> Answer:
    """Song et al. 2021 on a VP denoiser."""
    process, shape, n = denoiser.process, x.shape, len(x)
    probe = 2 * torch.randint_like(x, 2) - 1
    evaluations = 0

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        nonlocal evaluations
        evaluations += 1
        state = torch.from_numpy(flat[: x.numel()]).reshape(shape).to(x.dtype)
        at, one = (torch.full(size, t, dtype=torch.float64) for size in ((n,), ()))
        f, g2 = float(process.drift(one)), float(process.diffusion2(one))

        def drift(state: Tensor) -> Tensor:
            return f * state - 0.5 * g2 * denoiser.score(state, at)

        with torch.no_grad():
            value = drift(state)
        with torch.enable_grad():
            state.requires_grad_()
            again = drift(state)
            product = partial(vjps, again, state)
            trace = exact_trace(product, state.detach()) if exact else quadratic_forms(product, probe[None])[0]
        return np.concatenate([value.double().flatten().numpy(), trace.detach().double().numpy()])

    start = np.concatenate([x.double().flatten().numpy(), np.zeros(n)])
    done = solve_ivp(slope, (begin, 1.0), start, rtol=tol, atol=tol, method="RK45")
    end = torch.from_numpy(done.y[: x.numel(), -1]).reshape(n, -1)
    return _standard_normal(end) + torch.from_numpy(done.y[x.numel() :, -1].copy()), 2 * evaluations


def k_diffusion(denoiser: Denoiser, x: Tensor, *, low: float = 1e-2, high: float = 80.0, tol: float = 1e-4) -> Answer:
    """Its ``sampling.log_likelihood`` on a denoiser with alpha = 1; 1e-2 and 80 are of its configurations.

    Raises:
        ModuleNotFoundError: k-diffusion is not installed.
    """
    module = kdiffusion()
    if module is None:
        raise ModuleNotFoundError("No module named 'k_diffusion'")

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x, sigma / denoiser.process.sigma_max).mean

    found, info = module.log_likelihood(model, x, low, high, atol=tol, rtol=tol)
    return found.double(), info["fevals"]


class Velocity(nn.Module):
    """E[x_1 - x_0 | x_t] of x_t = t x_1 + (1 - t) x_0, x_1 the data, from a network with EDM's preconditioning.

    With s = (1 - t)/t, w = x_t / t, d = sigma_data and F the network, D = (d^2 w + s d sqrt(s^2 + d^2) F) / (s^2 + d^2), and
    x_0 = (w - D) / s: the difference D - x_0 is written so that nothing cancels at t = 1, where (D - x_t) / (1 - t) is rounding.
    Beyond EDM's largest sigma the network is asked there, also a little beyond t = 0, where adaptive methods of torchdiffeq step.

    Args:
        model: the denoiser.
        shape: of an item; states come flat, as the exact divergence of flow_matching wants them.
    """

    def __init__(self, model: Preconditioned, shape: torch.Size) -> None:
        super().__init__()
        self.model, self.shape, self.calls = model, shape, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity of flat states at one time."""
        self.calls += 1
        d, top = self.model.sigma_data, self.model.process.sigma_max
        alpha, sigma = t.double().clamp(min=0), 1 - t.double()
        s = (sigma / alpha).clamp(max=top)
        w = x * (torch.hypot(torch.ones_like(s), s) / torch.hypot(alpha, sigma)).to(x)
        out = self.model.output(w.reshape(-1, *self.shape), s / top).flatten(1)
        total = s**2 + d**2
        return ((d**2 - s) / total).to(x) * w + (d * (1 + s) / total.sqrt()).to(x) * out


def edm_grid(steps: int) -> Tensor:
    """t from 1 to 0 at EDM's sigma = (1 - t) / t, as flow_matching's image example samples."""
    sigma = torch.linspace(0.002 ** (1 / 7), 80.0 ** (1 / 7), steps - 1, dtype=torch.float64) ** 7
    return torch.cat([torch.ones(1), (1 / (1 + sigma)).float(), torch.zeros(1)])


def flow_matching(
    denoiser: Preconditioned, x: Tensor, *, method: str = "euler", step: float | None = None, tol: float = 1e-5,
    grid: int = 0, exact: bool = False,
) -> Answer:  # fmt: skip
    """Its ``ODESolver.compute_likelihood``.

    Raises:
        ModuleNotFoundError: flow_matching is not installed.
    """
    field = Velocity(denoiser, x.shape[1:])
    _, found = import_module("flow_matching.solver").ODESolver(field).compute_likelihood(
        x.flatten(1), _standard_normal, step_size=step, method=method, atol=tol, rtol=tol, exact_divergence=exact,
        time_grid=edm_grid(grid) if grid else torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    return found.double().detach(), field.calls
