"""Our samplers against independent implementations: the same exact denoiser, grid, start and noises.

A peer's own code runs, told to take the exact E[x | x_t] as the network's answer; ours then walks down the grid that the peer
made. The figure is max |x_ours - x_peer| / rms(x_ours) over all items and coordinates of the end point.

It is taken twice. As shipped: x in float32 and the peer untouched. In float64: x in float64 and every ``float32`` that the
peer's file mentions read as float64 (its ``torch`` and ``np`` are replaced by proxies that change this one name), so that what is
left is the algorithm. k-diffusion, NVlabs' EDM and algorithm 2 compute in the type of x, and are taken in float64.

    python benchmarks/parity.py --edm EDM --diff-sampler DIFF_SAMPLER --unipc UNIPC --dpm-solver DPM_SOLVER

each a checkout of the authors' repository (README.md says where it is); what is not given is left out, and said so.

Where the algorithms differ, one thing is switched off or copied, named in the table, and the figure must fall to rounding.
"""

import argparse
import importlib
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from common import ROOT, document, kdiffusion, repair_torchvision, table
from trilemma.denoise import Covariances, Denoiser, MixtureDenoiser, Thresholded
from trilemma.numerics.noise import Noise
from trilemma.numerics.tableau import EULER, HEUN
from trilemma.process import EDM, VP, Cosine, Flow, FromBetas, GaussianProcess
from trilemma.process.grid import karras_grid
from trilemma.sampling import churn, ddim, ddpm, dpmpp_2m, dpmpp_3m, exponential, runge_kutta, sample
from trilemma.sampling.flow import scale_at, u_at
from trilemma.sampling.linear import Exponential
from trilemma.sampling.loop import Carry, Denoise, Rule, Step
from trilemma.sampling.multistep import adams, deis, dpm_solver, eps_plan, gradient_estimation, ipndm, noise_levels
from trilemma.sampling.plan import Plan
from trilemma.sampling.pndm import plms, pndm
from trilemma.sampling.unipc import unipc

LIMIT = 1e-5  # what the issue asks of equal algorithms
TRAIN = 1000  # steps of the chain
CHAIN = {"num_train_timesteps": TRAIN, "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "sample"}
F32, F64 = torch.float32, torch.float64
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", "scheduling_ddpm"),
    "ddim": ("DDIMScheduler", "scheduling_ddim"),
    "heun": ("HeunDiscreteScheduler", "scheduling_heun_discrete"),
    "dpm": ("DPMSolverMultistepScheduler", "scheduling_dpmsolver_multistep"),
    "unipc": ("UniPCMultistepScheduler", "scheduling_unipc_multistep"),
    "deis": ("DEISMultistepScheduler", "scheduling_deis_multistep"),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", "scheduling_flow_match_euler_discrete"),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", "scheduling_flow_match_heun_discrete"),
}


# Problems


@dataclass(frozen=True)
class Problem:
    """An exact denoiser and what is to be sampled with it."""

    name: str
    denoiser: Denoiser
    shape: tuple[int, ...]

    @property
    def process(self) -> GaussianProcess:
        return self.denoiser.process

    @property
    def noise(self) -> Noise:
        return Noise(0, self.shape[0])  # what `sample` makes of seeds=0

    def start(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Pure noise at time t."""
        return self.noise.at(-1).normal(self.shape, dtype=F64).mul_(float(self.process.sigma(t))).to(dtype)

    def xi(self, i: int, dtype: torch.dtype) -> Tensor:
        """The normal numbers that a rule draws in step i."""
        return self.noise.at(i).normal(self.shape, dtype=dtype)


def problems(process: GaussianProcess) -> list[Problem]:
    """Nine modes in the plane, and pictures of 3x8x8 around six means with covariances of rank 4."""
    grid = torch.cartesian_prod(*[torch.tensor([-1.2, 0.0, 1.2], dtype=F64)] * 2)
    spread = Noise(1, 9).uniform((9, 2), dtype=F64) * 0.03 + 0.01
    plane = MixtureDenoiser(process, grid, Covariances.diagonal(spread))
    means = Noise(2, 6).normal((6, 3, 8, 8), dtype=F64) * 0.5
    factors = Noise(3, 6).normal((6, 192, 4), dtype=F64) * 0.15
    images = MixtureDenoiser(process, means, Covariances.low_rank(factors, 0.01), torch.arange(1.0, 7.0))
    return [Problem("2-D", plane, (64, 2)), Problem("3x8x8", images, (16, 3, 8, 8))]


# Peers. Each gives the end point and the grid of times that it went down.

Peer = Callable[[Problem, torch.dtype], tuple[Tensor, Tensor]]


class Wide:
    """A module in which ``float32`` means float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextmanager
def patched(module: ModuleType, **names: Any) -> Iterator[None]:
    """Replace names of a module for a while."""
    old = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in old.items():
            setattr(module, name, value)


@contextmanager
def precision(module: ModuleType, dtype: torch.dtype) -> Iterator[None]:
    """Let a peer's file run as it is, or with float64 for float32."""
    wide = {name: Wide(getattr(module, name)) for name in ("torch", "np") if hasattr(module, name)}
    with patched(module, **(wide if dtype == F64 else {})):
        yield


def scheduler(
    kind: str, steps: int, *, told: str = "timestep", step: dict[str, Any] | None = None, **config: Any
) -> Peer:
    """A Diffusers scheduler in its own loop, on a chain or on Flow.

    Args:
        kind: a key of ``SCHEDULERS``.
        steps: what ``set_timesteps`` gets.
        told: whether the network hears the scheduler's ``timestep`` or the time of its ``sigma``.
        step: arguments of ``step``.
        config: arguments of the class.
    """
    name, file = SCHEDULERS[kind]

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        module = importlib.import_module(f"diffusers.schedulers.{file}")
        process, drawn = problem.process, count()
        flow, draws = isinstance(process, Flow), hasattr(module, "randn_tensor")
        noise = {"randn_tensor": lambda *_, **__: problem.xi(next(drawn), dtype)} if draws else {}
        with precision(module, dtype), patched(module, **noise), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            it = getattr(module, name)(**({} if "Flow" in name else CHAIN), **config)
            it.set_timesteps(steps)
            heard = it.timesteps.double() / TRAIN if flow else (it.timesteps.double() + 1) / TRAIN
            times = heard
            if flow or config.get("use_karras_sigmas"):  # the grid is in sigma, and the timesteps follow it as they can
                times = it.sigmas[:-1].double() if flow else process.time(-2 * it.sigmas[:-1].double().log())
            heard = times if told == "sigma" else heard
            scaled = name == "HeunDiscreteScheduler"  # its state is x_t / alpha
            x = problem.start(times[0], dtype)
            x = x / process.alpha(times[0]).to(dtype) if scaled else x
            for timestep, t in zip(it.timesteps, heard):
                mean = problem.denoiser(it.scale_model_input(x, timestep) if scaled else x, t).mean
                out = (x - mean) / t.to(dtype) if "Flow" in name else mean
                x = it.step(out, timestep, x, **(step or {})).prev_sample
        noisy_end = (
            kind == "deis" or config.get("final_sigmas_type") == "sigma_min" or config.get("set_alpha_to_one") is False
        )
        return x, torch.cat([torch.unique_consecutive(times), times.new_tensor([noisy_end / TRAIN])])

    return peer


def algorithm_2(
    x: Tensor,
    levels: Tensor,
    denoise: Callable[[Tensor, Tensor], Tensor],
    draw: Callable[[int], Tensor],
    *,
    amount: float,
    low: float,
    high: float,
    inflate: float,
    heun: bool = True,
) -> Tensor:
    """Algorithm 2 of Karras et al. 2022 (arXiv:2206.00364), line by line; ``heun=False`` leaves out lines 9 to 11."""
    n = len(levels) - 1
    for i in range(n):
        t, after = levels[i], levels[i + 1]
        gamma = min(amount / n, math.sqrt(2) - 1) if low <= t <= high else 0.0
        eps = inflate * draw(i)
        t_hat = t + gamma * t
        x_hat = x + torch.sqrt(t_hat**2 - t**2) * eps
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (after - t_hat) * d
        if heun and after != 0:
            d_after = (x - denoise(x, after)) / after
            x = x_hat + (after - t_hat) * (d / 2 + d_after / 2)
    return x


CHURN = {"amount": 40.0, "low": 0.05, "high": 50.0, "inflate": 1.003}
CALM = {"amount": 0.0, "low": 0.0, "high": math.inf, "inflate": 1.0}


def inner_noise(problem: Problem, i: int) -> Tensor:
    """What `churn` draws in step i before its inner rule."""
    return problem.noise.at(i).at(0).normal(problem.shape, dtype=F64)


def edm_time(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser as a function of x and sigma."""
    return lambda x, sigma: problem.denoiser(x, sigma.double().reshape(-1)[0] / problem.process.sigma_max).mean  # type: ignore[attr-defined]


def published(steps: int, *, heun: bool = True, top: float = 80.0, **settings: float) -> Peer:
    """:func:`algorithm_2` on the paper's grid."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        ts = edm_grid(problem.process, steps, top)
        levels = problem.process.sigma(ts)
        x = algorithm_2(
            problem.start(ts[0], F64),
            levels,
            edm_time(problem),
            lambda i: inner_noise(problem, i),
            heun=heun,
            **settings,
        )  # type: ignore[arg-type]
        return x, ts

    return peer


def edm_grid(process: GaussianProcess, steps: int, top: float = 80.0) -> Tensor:
    """Equation (5) from sigma = 80, which need not be the top of the process."""
    ts = karras_grid(process, steps, sigma_max=top)
    ts[0] = top / float(process.sigma(torch.ones((), dtype=F64)))
    return ts


def nvlabs(steps: int, path: str | None, **settings: float) -> Peer:
    """``edm_sampler`` of NVlabs/edm."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if path is None:
            raise ModuleNotFoundError("no --edm")
        if path not in sys.path:
            sys.path.insert(0, path)
        edm_sampler = importlib.import_module("generate").edm_sampler
        ts, drawn, denoise = edm_grid(problem.process, steps), count(), edm_time(problem)

        class Net:
            sigma_min, sigma_max = 0.0, 1e9
            round_sigma = staticmethod(torch.as_tensor)

            def __call__(self, x: Tensor, sigma: Tensor, labels: object) -> Tensor:
                return denoise(x, sigma)

        x = edm_sampler(
            Net(),
            problem.start(ts[0], F64) / 80.0,
            num_steps=steps,
            S_churn=settings["amount"],
            S_min=settings["low"],
            S_max=settings["high"],
            S_noise=settings["inflate"],
            randn_like=lambda x: inner_noise(problem, next(drawn)),
        )
        return x, ts

    return peer


def kdiff(name: str, steps: int, *, noisy: bool = False, to_zero: bool = True, **settings: float) -> Peer:
    """A sampler of k-diffusion on the paper's grid, with or without its step to 0."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        module = kdiffusion()
        if module is None:
            raise ModuleNotFoundError("k_diffusion")
        ts, drawn = edm_grid(problem.process, steps)[: None if to_zero else -1], count()
        extra = {"noise_sampler": lambda *_: problem.xi(next(drawn), F64)} if noisy else {}
        x = getattr(module, name)(
            edm_time(problem), problem.start(ts[0], F64), problem.process.sigma(ts), disable=True, **extra, **settings
        )
        return x, ts

    return peer


@contextmanager
def double() -> Iterator[None]:
    """Let what a peer makes of python numbers be float64."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


def authors(path: str | None, option: str, *files: str) -> list[ModuleType]:
    """Files of an authors' checkout as modules."""
    if path is None:
        raise ModuleNotFoundError(f"no --{option}")
    if path not in sys.path:
        sys.path.insert(0, path)
    return [importlib.import_module(file) for file in files]


def noise_of(problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact denoiser as a function of x_t and one time, answering eps."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        t = t.double().reshape(-1)[0]
        alpha, sigma = problem.process.alpha(t), problem.process.sigma(t)
        return (x - alpha * problem.denoiser(x, t).mean) / sigma

    return eps


def lu_zhao(
    steps: int, path: str | None, option: str, file: str, name: str, *, grid: str = "logSNR", **settings: Any
) -> Peer:
    """``DPM_Solver`` of LuChengTHU/dpm-solver or ``UniPC`` of wl-zhao/UniPC, multistep on VP to t = 1/1000, orders kept."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        module = authors(path, option, file)[0]
        options = {key: settings[key] for key in ("algorithm_type", "variant") if key in settings}
        with double(), redirect_stdout(io.StringIO()):
            schedule = module.NoiseScheduleVP("linear", dtype=F64)
            picture, eps = (problem.shape[0], -1, 1, 1), noise_of(problem)  # UniPC takes nothing but pictures
            it = getattr(module, name)(
                lambda x, t: eps(x.reshape(problem.shape), t).reshape(picture), schedule, **options
            )
            ts = it.get_time_steps(grid, 1.0, 1e-3, steps, "cpu").double().flatten()
            x = it.sample(
                problem.start(ts[0], F64).reshape(picture),
                steps=steps,
                t_end=1e-3,
                order=settings["order"],
                skip_type=grid,
                lower_order_final=False,
            )
        return x.reshape(problem.shape), ts

    return peer


def diff_sampler(name: str, steps: int, path: str | None, order: int, *, deis: str = "", points: int = 10_000) -> Peer:
    """A sampler of zju-pi/diff-sampler on the paper's grid down to sigma_min."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        solvers, utils = authors(path, "diff-sampler", "solvers", "solver_utils")
        process = problem.process
        ts = (edm_grid if isinstance(process, EDM) else karras_grid)(process, steps)[:-1]
        alphas, levels = process.alpha(ts), process.sigma(ts) / process.alpha(ts)

        def net(x: Tensor, level: Tensor, class_labels: object = None) -> Tensor:
            i = int((levels - level).abs().argmin())
            return problem.denoiser(x * alphas[i], ts[i]).mean

        with double():
            degree = order - 1 if deis == "rhoab" else order  # the one counts the values of eps, the other the degree
            coefficients = utils.get_deis_coeff_list(levels, degree, N=points, deis_mode=deis) if deis else None
            z = problem.start(ts[0], F64) / alphas[0] / levels[0]
            x = getattr(solvers, name)(net, z, t_steps=levels, max_order=order, coeff_list=coefficients)
        return x * alphas[-1], ts

    return peer


@dataclass(frozen=True)
class VPOfDiffSampler(GaussianProcess):
    """VP's sigma/alpha as a function of time, 0.002 at t = 1/1000 and 80 at t = 1, without its decay.

    beta(0) comes out below 0, so the curve is held up where that would matter, below t = 1/1000.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        low, high = math.log1p(0.002**2), math.log1p(80.0**2)
        slope = 2 * (low / 1e-3 - high) / (1e-3 - 1)
        return torch.expm1((t * (high - slope / 2) + t**2 * slope / 2).maximum(t * 1e-6)).sqrt()


def smalldiffusion(steps: int, gamma: float) -> Peer:
    """``samples`` of smalldiffusion on the paper's grid down to sigma_min."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        library = repair_torchvision()
        module = importlib.import_module("smalldiffusion.diffusion")
        del library
        ts, denoise = edm_grid(problem.process, steps)[:-1], edm_time(problem)
        model = SimpleNamespace(
            eval=lambda: None,
            rand_input=lambda n: torch.zeros(problem.shape, dtype=F64),
            predict_eps_cfg=lambda x, sigma, cond, scale: (x - denoise(x, sigma)) / sigma,
        )
        levels, start = problem.process.sigma(ts), problem.start(ts[0], F64)
        *_, x = module.samples(model, levels, gam=gamma, xt=start, accelerator=SimpleNamespace(device="cpu"))
        return x, ts

    return peer


def pndm_scheduler(steps: int, *, to_zero: bool = False, **config: Any) -> Peer:
    """Diffusers' PNDMScheduler down to the last time of its chain, or by one more step of its to t = 0."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        module = importlib.import_module("diffusers.schedulers.scheduling_pndm")
        with precision(module, dtype), torch.no_grad():
            it = module.PNDMScheduler(**{**CHAIN, "prediction_type": "epsilon"}, set_alpha_to_one=True, **config)
            it.set_timesteps(steps)
            times = (torch.from_numpy(it._timesteps[::-1].copy()).double() + 1) / TRAIN
            x, eps = problem.start(times[0], dtype), noise_of(problem)
            for k in it.timesteps if to_zero else it.timesteps[:-1]:
                x = it.step(eps(x, (k.double() + 1) / TRAIN), k, x).prev_sample
        return x, torch.cat([times, times.new_zeros(1)]) if to_zero else times

    return peer


def ipndm_scheduler(steps: int) -> Peer:
    """Diffusers' IPNDMScheduler on its own process, Cosine, without its first and last steps, where alpha or sigma is 0."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        module = importlib.import_module("diffusers.schedulers.scheduling_ipndm")
        with double(), torch.no_grad():
            it = module.IPNDMScheduler()
            it.set_timesteps(steps)
            it.set_begin_index(1)
            ts, process = it.timesteps[1:].double(), problem.process
            x, eps = problem.start(ts[0], F64), noise_of(problem)
            for t in ts[:-1]:  # its network gives v
                value = eps(x, t)
                x0 = (x - process.sigma(t) * value) / process.alpha(t)
                x = it.step(process.alpha(t) * value - process.sigma(t) * x0, t, x).prev_sample
        return x, ts

    return peer


@dataclass(frozen=True)
class MisplacedFactor:
    """Adams-Bashforth of order 3 with the second divided difference's weight as the diff-sampler code has it.

    With steps h, h_1, h_2 and q = h (h + h_1) / (h_1 (h_1 + h_2)), that weight is (1 - h / (3 (h + h_1))) q / 2; the code has
    (1 - h q / (3 (h + h_1))) / 2. The two agree for equal steps.
    """

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        rho, rows = noise_levels(process, ts), []
        for i in range(len(ts) - 1):
            h, row = rho[i + 1] - rho[i], [1.0]
            if i:
                h_1 = rho[i] - rho[i - 1]
                row = [1 + h / h_1 / 2, -h / h_1 / 2]
            if i > 1:
                h_2 = rho[i - 1] - rho[i - 2]
                second = (1 - h / (3 * (h + h_1)) * h * (h + h_1) / (h_1 * (h_1 + h_2))) / 2
                row = [row[0] + second, row[1] - (1 + h_1 / h_2) * second, second * h_1 / h_2]
            rows.append([h * weight for weight in row])
        return eps_plan(process, ts, rows)


# Rules that copy what a peer does differently. They run in our loop.


@dataclass(frozen=True)
class HeunInSigma:
    """Heun in sigma/alpha on x/alpha, the coordinates of Karras et al.; ours are u and w."""

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        levels, alphas = (process.sigma(ts) / process.alpha(ts)).tolist(), process.alpha(ts).tolist()

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            h = levels[i + 1] - levels[i]
            z = x / alphas[i]
            slope = (z - denoise(x, ts[i]).mean) / levels[i]
            if levels[i + 1]:
                ahead = z + h * slope
                slope = (slope + (ahead - denoise(ahead * alphas[i + 1], ts[i + 1]).mean) / levels[i + 1]) / 2
            return (z + h * slope) * alphas[i + 1], None

        return step


Edit = Callable[
    [GaussianProcess, Tensor, Tensor, Tensor, Tensor], None
]  # process, ts, a, b, c: the last three in place


@dataclass(frozen=True)
class Edited:
    """A plan with some of its numbers changed."""

    inner: Rule
    edit: Edit

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        plan = self.inner(process, ts)
        a, b, c = plan.a.clone(), plan.b.clone(), plan.c.clone()
        self.edit(process, ts, a, b, c)
        return Plan(ts, a, b, c)


def large_variance(process: GaussianProcess, ts: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """The variance beta of the forward step instead of the posterior's."""
    alpha = process.alpha(ts)
    c.copy_((1 - (alpha[:-1] / alpha[1:]) ** 2).sqrt())


def integer_stride(process: GaussianProcess, ts: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """Every step goes down by the whole number 1000 // N, whatever the next time is."""
    stride = TRAIN // len(c) / TRAIN
    for i in range(len(c)):
        end = float(ts[i]) - stride
        row = ddim(0.0)(process, torch.stack([ts[i], ts.new_tensor(end if end > 1e-9 else 0.0)]))
        a[i], b[i] = row.a[0], row.b[0]


def second_order_at(index: int, rule: Exponential) -> Edit:
    """One step by a rule of second order."""

    def edit(process: GaussianProcess, ts: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
        b[index] = 0
        b[index, :2] = rule(process, ts).b[index]

    return edit


def wrong_half(process: GaussianProcess, ts: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """-(H - 1 + e^-H)/H^2 - 1/2 instead of + 1/2 on the second difference: alpha D2 less in every step of third order."""
    lam = process.log_snr(ts) / 2
    for i in range(2, len(c) - 1):
        h, h_0, h_1 = lam[i + 1] - lam[i], lam[i] - lam[i - 1], lam[i - 1] - lam[i - 2]
        r0, r1 = h_0 / h, h_1 / h
        on = -process.alpha(ts[i + 1]) / (r0 + r1)
        b[i] += on * torch.stack([1 / r0, -1 / r0 - 1 / r1, 1 / r1])


def in_our_coordinates(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Diffusers' HeunDiscreteScheduler, its sigmas overwritten by u, walking w."""
    module = importlib.import_module("diffusers.schedulers.scheduling_heun_discrete")
    process = problem.process
    with precision(module, dtype), torch.no_grad():
        it = module.HeunDiscreteScheduler(**CHAIN, timestep_spacing="trailing")
        it.set_timesteps(20)
        ts = torch.cat([torch.unique_consecutive((it.timesteps.double() + 1) / TRAIN), torch.zeros(1, dtype=F64)])
        u = u_at(process, ts)
        it.sigmas = torch.cat([u[:1], u[1:-1].repeat_interleave(2), u[-1:]]).to(dtype)
        w = problem.start(ts[0], dtype) / scale_at(process, ts[0]).to(dtype)
        for k in it.timesteps:
            time = (k.double() + 1) / TRAIN
            w = it.step(problem.denoiser(w * scale_at(process, time).to(dtype), time).mean, k, w).prev_sample
    return w, ts


# The tables


@dataclass(frozen=True)
class Match:
    """Two implementations of one algorithm."""

    ours: str
    rule: Rule
    peer: str
    run: Peer
    process: GaussianProcess
    shipped: bool = True  # whether the peer knows float32 at all


@dataclass(frozen=True)
class Difference:
    """Two algorithms, the cause named, and both again without it."""

    ours: str
    peer: str
    cause: str
    proof: str
    rule: Rule
    run: Peer
    process: GaussianProcess
    same_rule: Rule | None = None  # with the peer's way copied
    same_run: Peer | None = None  # with the peer's way switched off
    wrap: Callable[[Denoiser], Denoiser] | None = None  # our denoiser in the proof
    same_process: GaussianProcess | None = None  # the process in the proof


def distance(
    rule: Rule, run: Peer, problem: Problem, dtype: torch.dtype, wrap: Callable[[Denoiser], Denoiser] | None = None
) -> float:
    """max |ours - peer| / rms(ours)."""
    theirs, ts = run(problem, dtype)
    denoiser = wrap(problem.denoiser) if wrap else problem.denoiser
    own = sample(denoiser, problem.shape, ts, rule, x=problem.start(ts[0], dtype))
    return float((own - theirs).abs().max() / own.square().mean().sqrt())


CHAIN_PROCESS, EDM80 = FromBetas(), EDM()
TRAILING = {"timestep_spacing": "trailing"}
OPEN = {"clip_sample": False, **TRAILING}
SDE = {"algorithm_type": "sde-dpmsolver++", **TRAILING}
TO_BETA_1 = {"final_sigmas_type": "sigma_min", **TRAILING}
KARRAS = {"use_karras_sigmas": True}
FLOW_SIGMAS = {"use_flow_sigmas": True}


KEPT = {"lower_order_final": False, **TO_BETA_1}
DIFF_SAMPLER_VP = VPOfDiffSampler()


@dataclass(frozen=True)
class Checkouts:
    """Folders of authors' code, or None."""

    edm: str | None
    diff_sampler: str | None
    unipc: str | None
    dpm_solver: str | None


# fmt: off
def multistep_matches(where: Checkouts) -> list[Match]:
    """Those of linear multistep methods."""
    chain, vp, edm, folder = CHAIN_PROCESS, VP(), EDM80, where.diff_sampler
    def bh(variant, order):
        return unipc(order, variant=variant)
    def zhao(order, variant="bh2", kind="data_prediction"):
        return lu_zhao(20, where.unipc, "unipc", "uni_pc", "UniPC", order=order, variant=variant, algorithm_type=kind)
    def lu(order, grid="logSNR"):
        return lu_zhao(20, where.dpm_solver, "dpm-solver", "dpm_solver_pytorch", "DPM_Solver", order=order,
                       algorithm_type="dpmsolver", grid=grid)
    taylor = {"algorithm_type": "dpmsolver", **KEPT}
    return [
        *(Match(f"unipc({p}, {variant})", bh(variant, p), f"Diffusers UniPC-{p} {variant}, 20 steps to beta_1",
                scheduler("unipc", 20, solver_order=p, solver_type=variant, **KEPT), chain)
          for variant in ("bh1", "bh2") for p in (1, 2, 3, 4)),
        *(Match(f"unipc({p}, {variant})", bh(variant, p), f"UniPC authors, {p} {variant}, 20 steps",
                zhao(p, variant), vp, False)
          for variant in ("bh1", "bh2") for p in (1, 2, 3, 4)),
        Match("unipc(3, eps)", unipc(3, prediction="eps"), "UniPC authors, noise prediction, order 3 bh2, 20 steps",
              zhao(3, kind="noise_prediction"), vp, False),
        Match("dpm_solver(2)", dpm_solver(2), "Diffusers DPM-Solver 2M midpoint on eps, 20 steps to beta_1",
              scheduler("dpm", 20, solver_order=2, **taylor), chain),
        Match("dpm_solver(3)", dpm_solver(3), "Diffusers DPM-Solver 3M on eps, 20 steps to beta_1",
              scheduler("dpm", 20, solver_order=3, **taylor), chain),
        *(Match(f"dpm_solver({p})", dpm_solver(p), f"DPM-Solver authors, multistep {p} on eps, 20 steps", lu(p), vp, False)
          for p in (2, 3)),
        Match("exponential(2, eps)", exponential(2, prediction="eps"), "Diffusers DEIS 2 in log rho, 20 steps to beta_1",
              scheduler("deis", 20, solver_order=2, lower_order_final=False, **TRAILING), chain),
        Match("adams(4)", adams(4), "k-diffusion lms, 17 steps to sigma_min", kdiff("sample_lms", 18, to_zero=False), edm, False),
        *(Match(f"adams({p + 1})", adams(p + 1), f"diff-sampler DEIS rhoAB{p}, 17 steps to sigma_min",
                diff_sampler("deis_sampler", 18, folder, p + 1, deis="rhoab"), edm, False) for p in (1, 2, 3)),
        *(Match(f"ipndm({p})", ipndm(p), f"diff-sampler iPNDM {p}, 17 steps to sigma_min",
                diff_sampler("ipndm_sampler", 18, folder, p), edm, False) for p in (2, 3, 4)),
        Match("ipndm(4)", ipndm(4), "Diffusers IPNDM, 18 of 20 steps", ipndm_scheduler(20), Cosine(), False),
        Match("adams(2)", adams(2), "diff-sampler iPNDM_v 2, 17 steps to sigma_min",
              diff_sampler("ipndm_v_sampler", 18, folder, 2), edm, False),
        Match("plms", plms(), "Diffusers PNDM without Runge-Kutta, 49 of 50 steps",
              pndm_scheduler(50, skip_prk_steps=True), chain),
        Match("pndm", pndm(), "Diffusers PNDM, 49 of 50 steps", pndm_scheduler(50), chain),
        Match("gradient_estimation(2)", gradient_estimation(2.0), "smalldiffusion gam 2, 17 steps to sigma_min",
              smalldiffusion(18, 2.0), edm, False),
    ]


def multistep_differences(where: Checkouts) -> list[Difference]:
    """Those of linear multistep methods."""
    chain, edm, folder = CHAIN_PROCESS, EDM80, where.diff_sampler
    tab = [diff_sampler("deis_sampler", 18, folder, 4, deis="tab", points=n) for n in (10_000, 1_000_000)]
    return [
        Difference("deis(3)", "diff-sampler DEIS tAB3, 17 steps to sigma_min",
                   "its integrals are sums over 10000 points", "a million points",
                   deis(3), tab[0], DIFF_SAMPLER_VP, same_run=tab[1]),
        Difference("adams(3)", "diff-sampler iPNDM_v 3, 17 steps to sigma_min",
                   "a bracket of its weight of the second difference is misplaced: right for equal steps only",
                   "our plan with that weight",
                   adams(3), diff_sampler("ipndm_v_sampler", 18, folder, 3), edm, same_rule=MisplacedFactor()),
        Difference("adams(4)", "k-diffusion lms, 18 steps", "it carries the polynomial on to sigma = 0; ours ends with x = D",
                   "both without the last step",
                   adams(4), kdiff("sample_lms", 18), edm, same_run=kdiff("sample_lms", 18, to_zero=False)),
        Difference("plms", "Diffusers PNDM without Runge-Kutta, 50 steps", "the same", "both without the last step",
                   plms(), pndm_scheduler(50, to_zero=True, skip_prk_steps=True), chain,
                   same_run=pndm_scheduler(50, skip_prk_steps=True)),
        Difference("unipc(3)", "Diffusers UniPC-3 bh2, 20 steps, defaults", "`lower_order_final`: lower order in the last steps",
                   "`lower_order_final=False`, to beta_1",
                   unipc(3), scheduler("unipc", 20, solver_order=3, **TRAILING), chain,
                   same_run=scheduler("unipc", 20, solver_order=3, **KEPT)),
    ]


def matches(edm: str | None) -> list[Match]:
    """All other pairs that should agree."""
    sde_2m, heun_sigma = exponential(2, 1.0, published=True), HeunInSigma()
    rows = [
        ("ddpm", ddpm, "DDPM, 1000 steps", "ddpm", 1000, OPEN),
        ("ddpm", ddpm, "DDPM, 50 steps", "ddpm", 50, OPEN),
        ("ddpm", ddpm, "DDIM eta 1, 50 steps", "ddim", 50, {"step": {"eta": 1.0}, **OPEN}),
        ("ddim(1)", ddim(1.0), "DDIM eta 1, 50 steps", "ddim", 50, {"step": {"eta": 1.0}, **OPEN}),
        ("ddim(0.5)", ddim(0.5), "DDIM eta 0.5, 50 steps", "ddim", 50, {"step": {"eta": 0.5}, **OPEN}),
        ("ddim", ddim(), "DDIM eta 0, 50 steps", "ddim", 50, OPEN),
        ("ddim", ddim(), "DDIM eta 0, leading, 50 steps", "ddim", 50, {"clip_sample": False}),
        ("dpmpp_2m", dpmpp_2m, "DPM-Solver++ 2M midpoint, 20 steps", "dpm", 20, TRAILING),
        ("dpmpp_2m", dpmpp_2m, "DPM-Solver++ 2M midpoint, linspace, 10 steps", "dpm", 10, {}),
        ("dpmpp_2m", dpmpp_2m, "DPM-Solver++ 2M midpoint, 20 steps to beta_1", "dpm", 20, TO_BETA_1),
        ("exponential(2)", exponential(2), "DPM-Solver++ 2M heun, 20 steps", "dpm", 20, {"solver_type": "heun", **TRAILING}),
        ("dpmpp_3m", dpmpp_3m, "DPM-Solver++ 3M, 20 steps", "dpm", 20, {"solver_order": 3, **TRAILING}),
        ("exponential(2, 1, published)", sde_2m, "SDE-DPM-Solver++ 2M midpoint, 20 steps", "dpm", 20, SDE),
        ("exponential(2, 1)", exponential(2, 1.0), "SDE-DPM-Solver++ 2M heun, 20 steps", "dpm", 20,
         {"solver_type": "heun", **SDE}),
        ("exponential(2, eps)", exponential(2, prediction="eps"), "DPM-Solver 2M heun on eps, 20 steps to beta_1", "dpm", 20,
         {"algorithm_type": "dpmsolver", "solver_type": "heun", **TO_BETA_1}),
    ]
    flow = [
        ("dpmpp_2m", dpmpp_2m, "DPM-Solver++ 2M midpoint on flow sigmas, 20 steps", "dpm", 20, {"told": "sigma", **FLOW_SIGMAS}),
        ("heun", runge_kutta(HEUN), "FlowMatchHeun, 20 steps", "flow_heun", 20, {}),
        ("ddim", ddim(), "FlowMatchEuler, 20 steps", "flow_euler", 20, {}),
    ]
    sigma = [
        ("ddim", ddim(), "k-diffusion euler, 18 steps", kdiff("sample_euler", 18)),
        ("ddpm", ddpm, "k-diffusion euler_ancestral, 18 steps", kdiff("sample_euler_ancestral", 18, noisy=True)),
        ("dpmpp_2m", dpmpp_2m, "k-diffusion dpmpp_2m, 18 steps", kdiff("sample_dpmpp_2m", 18)),
        ("exponential(2, 1, published)", sde_2m, "k-diffusion dpmpp_2m_sde, 18 steps",
         kdiff("sample_dpmpp_2m_sde", 18, noisy=True)),
        ("churn(euler)", churn(runge_kutta(EULER), **CHURN), "algorithm 2 without correction, 18 steps",
         published(18, heun=False, **CHURN)),
        ("churn(Heun in sigma)", churn(heun_sigma, **CHURN), "algorithm 2, 18 steps", published(18, **CHURN)),
        ("churn(Heun in sigma)", churn(heun_sigma, **CHURN), "algorithm 2, 256 steps", published(256, **CHURN)),
        ("churn(Heun in sigma)", churn(heun_sigma, **CHURN), "NVlabs edm_sampler, 18 steps", nvlabs(18, edm, **CHURN)),
        ("Heun in sigma", heun_sigma, "NVlabs edm_sampler, no churn, 18 steps", nvlabs(18, edm, **CALM)),
        ("Heun in sigma", heun_sigma, "k-diffusion heun, 18 steps", kdiff("sample_heun", 18)),
    ]
    return [
        *(Match(ours, rule, f"Diffusers {peer}", scheduler(kind, steps, **config), process)
          for process, group in ((CHAIN_PROCESS, rows), (Flow(), flow)) for ours, rule, peer, kind, steps, config in group),
        *(Match(ours, rule, peer, run, EDM80, shipped=False) for ours, rule, peer, run in sigma),
    ]


def differences() -> list[Difference]:
    """All other pairs that should not agree, and why."""
    heun, heun_sigma, sde_3m = runge_kutta(HEUN), HeunInSigma(), exponential(3, 1.0, published=True)
    no_alpha_one = scheduler("ddim", 50, set_alpha_to_one=False, **OPEN)
    short_3m = scheduler("dpm", 10, solver_order=3, **TRAILING)
    chain = CHAIN_PROCESS
    return [
        Difference("ddpm", "Diffusers DDPM, 50 steps, defaults", "`clip_sample=True` clamps E[x \\| x_t] to [-1, 1]",
                   "ours with `Thresholded`",
                   ddpm, scheduler("ddpm", 50, **TRAILING), chain, wrap=clamped),
        Difference("ddpm", "Diffusers DDPM, 50 steps, `fixed_large`",
                   "variance of the forward step, not of the posterior, even in the last step, to t = 0",
                   "our plan with c = sqrt(beta)",
                   ddpm, scheduler("ddpm", 50, variance_type="fixed_large", **OPEN), chain,
                   same_rule=Edited(ddpm, large_variance)),
        Difference("ddim", "Diffusers DDIM, 50 steps, defaults",
                   "`clip_sample=True` clamps E[x \\| x_t], and eps stays that of the unclamped",
                   "ours with `Thresholded`, the peer with `use_clipped_model_output=True`",
                   ddim(), scheduler("ddim", 50, **TRAILING), chain, wrap=clamped,
                   same_run=scheduler("ddim", 50, step={"use_clipped_model_output": True}, **TRAILING)),
        Difference("ddim", "Diffusers DDIM, 50 steps, `set_alpha_to_one=False`",
                   "the peer ends at beta_1, a noisy state; ours goes on to t = 0", "our grid ending at t = 1/1000",
                   ddim(), to_zero(no_alpha_one), chain, same_run=no_alpha_one),
        Difference("ddim", "Diffusers DDIM, 30 steps",
                   "its steps are 1000 // 30 = 33 long but its times 33.3 apart: x_t is not at the time the network is told",
                   "our plan with that stride",
                   ddim(), scheduler("ddim", 30, **OPEN), chain, same_rule=Edited(ddim(), integer_stride)),
        Difference("heun", "Diffusers Heun, 20 steps", "Heun in sigma/alpha; ours in u = sigma/(alpha + sigma)",
                   "the peer given u for sigma and w for x",
                   heun, scheduler("heun", 20, **TRAILING), chain, same_run=in_our_coordinates),
        Difference("heun", "Diffusers Heun, 20 steps", "the same", "Heun in sigma/alpha in our loop",
                   heun, scheduler("heun", 20, **TRAILING), chain, same_rule=heun_sigma),
        Difference("heun", "k-diffusion heun, 18 steps", "the same", "Heun in sigma/alpha in our loop",
                   heun, kdiff("sample_heun", 18), EDM80, same_rule=heun_sigma),
        Difference("churn(heun)", "algorithm 2, 18 steps", "the same; the churn agrees", "churn around Heun in sigma/alpha",
                   churn(heun, **CHURN), published(18, **CHURN), EDM80, same_rule=churn(heun_sigma, **CHURN)),
        Difference("churn(Heun in sigma)", "algorithm 2, 18 steps, S_tmax = inf",
                   "it raises the first level above sigma_max = 80; ours stays within the process",
                   "the same grid on `EDM(sigma_max=200)`",
                   churn(heun_sigma, 40.0, low=0.05), published(18, **{**CHURN, "high": math.inf, "inflate": 1.0}), EDM80,
                   same_process=EDM(sigma_max=200.0)),
        Difference("dpmpp_2m", "Diffusers DPM-Solver++ 2M, 20 Karras steps",
                   "timesteps are rounded to integers: the network is told another noise level",
                   "the peer's network told its sigma",
                   dpmpp_2m, scheduler("dpm", 20, **KARRAS), chain, same_run=scheduler("dpm", 20, told="sigma", **KARRAS)),
        Difference("dpmpp_2m", "Diffusers DPM-Solver++ 2M on flow sigmas, 20 steps",
                   "timesteps are cut to integers: the network is told another time", "the peer's network told its sigma",
                   dpmpp_2m, scheduler("dpm", 20, **FLOW_SIGMAS), Flow(),
                   same_run=scheduler("dpm", 20, told="sigma", **FLOW_SIGMAS)),
        Difference("dpmpp_3m", "Diffusers DPM-Solver++ 3M, 10 steps",
                   "`lower_order_final`: below 15 steps the last step but one is of second order", "`lower_order_final=False`",
                   dpmpp_3m, short_3m, chain,
                   same_run=scheduler("dpm", 10, solver_order=3, lower_order_final=False, **TRAILING)),
        Difference("dpmpp_3m", "Diffusers DPM-Solver++ 3M, 10 steps", "the same", "our plan with that step by `dpmpp_2m`",
                   dpmpp_3m, short_3m, chain, same_rule=Edited(dpmpp_3m, second_order_at(8, dpmpp_2m))),
        Difference("dpmpp_3m", "k-diffusion dpmpp_3m_sde, eta 0, 18 steps",
                   "its second step uses the exact moment of a line, DPM-Solver++ the value at the middle",
                   "our plan with that step by `exponential(2)`",
                   dpmpp_3m, kdiff("sample_dpmpp_3m_sde", 18, eta=0.0), EDM80,
                   same_rule=Edited(dpmpp_3m, second_order_at(1, exponential(2)))),
        Difference("exponential(3, 1, published)", "k-diffusion dpmpp_3m_sde, eta 1, 18 steps", "the same",
                   "our plan with that step by `exponential(2, 1)`",
                   sde_3m, kdiff("sample_dpmpp_3m_sde", 18, noisy=True, eta=1.0), EDM80,
                   same_rule=Edited(sde_3m, second_order_at(1, exponential(2, 1.0)))),
        Difference("exponential(3, 1, published)", "Diffusers SDE-DPM-Solver++ 3M, 20 steps",
                   "the peer adds -1/2 where the algebra has +1/2 to the weight of the second difference",
                   "our plan with that sign",
                   sde_3m, scheduler("dpm", 20, solver_order=3, **SDE), chain, same_rule=Edited(sde_3m, wrong_half)),
    ]
# fmt: on


def clamped(denoiser: Denoiser) -> Denoiser:
    """As `clip_sample` does."""
    return Thresholded(denoiser, 1.0)


def to_zero(run: Peer) -> Peer:
    """The same run, its grid carried on to t = 0."""

    def peer(problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x, ts = run(problem, dtype)
        return x, torch.cat([ts[:-1], torch.zeros(1, dtype=F64)])

    return peer


def distances(pair: Match | Difference, dtype: torch.dtype) -> list[float]:
    """The distance on every problem."""
    return [distance(pair.rule, pair.run, problem, dtype) for problem in problems(pair.process)]


def rounding(pair: Match) -> list[float]:
    """Our float32 against our float64 on the peer's grid, relative to the rms."""
    figures = []
    for problem in problems(pair.process):
        ts = pair.run(problem, F64)[1]
        low, high = (
            sample(problem.denoiser, problem.shape, ts, pair.rule, x=problem.start(ts[0], d)) for d in (F32, F64)
        )
        figures.append(float((low - high).abs().max() / high.square().mean().sqrt()))
    return figures


def explained(pair: Difference) -> list[float]:
    """The distance after the change."""
    rule, run, process = pair.same_rule or pair.rule, pair.same_run or pair.run, pair.same_process or pair.process
    return [distance(rule, run, problem, F64, pair.wrap) for problem in problems(process)]


def show(values: list[float]) -> str:
    return " / ".join(f"{value:.1e}" for value in values)


def report(where: Checkouts) -> tuple[list[str], bool]:
    """Both tables, and whether everything is as it should be."""
    same, other, missing, worst = [], [], [], []
    for match in [*matches(where.edm), *multistep_matches(where)]:
        try:
            wide = distances(match, F64)
        except ImportError as error:
            missing.append(f"- {match.peer}: not installed here ({error}).")
            continue
        single = [show(distances(match, F32)), show(rounding(match))] if match.shipped else ["float64 only", ""]
        worst.append(max(wide))
        same.append((f"`{match.ours}`", match.peer, show(wide), "yes" if worst[-1] <= LIMIT else "**no**", *single))
    for pair in [*differences(), *multistep_differences(where)]:
        try:
            before = distances(pair, F64)
        except ImportError as error:
            missing.append(f"- {pair.peer}: not installed here ({error}).")
            continue
        after = explained(pair)
        worst.append(max(after))
        verdict = "yes" if worst[-1] <= LIMIT else "**no**"
        other.append((f"`{pair.ours}`", pair.peer, show(before), pair.cause, pair.proof, show(after), verdict))
    lines = [
        "Same exact denoiser, grid, start and noises; the grids are those that the peers make. Each figure is the largest",
        "|x_ours - x_peer| / rms(x_ours) at the end point, for 64 points of a nine-mode mixture in the plane / for 16 items",
        "of 3x8x8 from six modes of rank 4.",
        "",
        "## Equal algorithms",
        "",
        f"In float64: the peer's own code with every float32 in its file read as float64, which must agree within {LIMIT:.0e}.",
        "As shipped: x in float32 and the peer untouched, so what is seen is rounding, tables of betas included; our share of",
        "it is our float32 against our float64.",
        "",
        *table(
            ["ours", "peer", "in float64", f"within {LIMIT:.0e}", "as shipped, float32", "our rounding in float32"],
            same,
        ),
        "## Different algorithms, and why",
        "",
        "In float64. The proof is one change, after which the same comparison must agree.",
        "",
        *table(["ours", "peer", "difference", "cause", "the change", "difference then", f"within {LIMIT:.0e}"], other),
        *missing,
    ]
    return lines, max(worst, default=0.0) <= LIMIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edm", help="a checkout of github.com/NVlabs/edm")
    parser.add_argument("--diff-sampler", help="the folder diff-solvers-main of github.com/zju-pi/diff-sampler")
    parser.add_argument("--unipc", help="a checkout of github.com/wl-zhao/UniPC")
    parser.add_argument("--dpm-solver", help="a checkout of github.com/LuChengTHU/dpm-solver")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/parity.md", help="where the page goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines, good = report(Checkouts(args.edm, args.diff_sampler, args.unipc, args.dpm_solver))
    document("Parity of samplers", "benchmarks/parity.py", ["diffusers", "k-diffusion"], lines, args.out)
    if not good:
        raise SystemExit("a comparison failed")


if __name__ == "__main__":
    main()
