"""Every deterministic scheduler of Diffusers on every grid that it offers.

Schedulers whose grid falls between the steps of the chain hear the sigma that they walk by, not the timestep that they round it
to: this is the kinder way. ``lin`` is the linear chain of DDPM, ``cos`` the cosine one.
"""

import importlib
import math
import warnings
from typing import Any

from torch import Tensor

from . import End, Peer, Task

TRAIN = 1000
CHAINS = {
    "lin": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "cos": {"beta_schedule": "squaredcos_cap_v2"},
}
SPACINGS = {name: {"timestep_spacing": name} for name in ("linspace", "leading", "trailing")}
SIGMAS = {
    "karras": {"use_karras_sigmas": True},
    "exp": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
LU = {"lu": {"use_lu_lambdas": True}}
FLOW = {f"flow{shift:g}": {"use_flow_sigmas": True, "flow_shift": shift} for shift in (1.0, 3.0)}


def _build(name: str, config: dict[str, Any], steps: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        it = getattr(importlib.import_module("diffusers"), name)(**config)
        it.set_timesteps(steps)
    if hasattr(it, "set_begin_index"):
        it.set_begin_index(0)
    return it


def _levels(it: Any) -> Tensor:
    """sigma/alpha of every step of the chain."""
    kept = it.alphas_cumprod.double()
    return ((1 - kept) / kept).sqrt()


def by_alphas(name: str, config: dict[str, Any], *, eps: bool = False, extra: int = 0) -> Peer:
    """DDIM and PNDM, which know timesteps only and walk x_t of a variance-preserving chain."""

    def peer(task: Task, nfe: int) -> End:
        it = _build(name, config, nfe - extra)
        kept = it.alphas_cumprod.double()
        first, last = float(kept[int(it.timesteps[0])]), float(it.final_alpha_cumprod)
        x = task.z * math.sqrt(1 - first)
        for t in it.timesteps:
            curves = math.sqrt(float(kept[int(t)])), math.sqrt(1 - float(kept[int(t)]))
            x = it.step((task.eps if eps else task.mean)(x, *curves), t, x).prev_sample
        return End(x / math.sqrt(last), math.sqrt((1 - first) / first), math.sqrt((1 - last) / last))

    return peer


def by_sigmas(name: str, config: dict[str, Any]) -> Peer:
    """Multistep solvers that walk x_t = alpha x + sigma eps and keep a list of sigma/alpha, or of sigma on a flow."""
    flow = bool(config.get("use_flow_sigmas"))

    def curves(level: float) -> tuple[float, float]:
        return (1 - level, level) if flow else (1 / math.hypot(1, level), level / math.hypot(1, level))

    def peer(task: Task, nfe: int) -> End:
        it = _build(name, config, nfe)
        levels = it.sigmas.double().tolist()
        (alpha, sigma), (alpha_end, sigma_end) = curves(levels[0]), curves(levels[-1])
        x = task.z * sigma
        for i, t in enumerate(it.timesteps):
            x = it.step(task.mean(x, *curves(levels[i])), t, x).prev_sample
        return End(x / alpha_end, sigma / alpha if alpha else math.inf, sigma_end / alpha_end)

    return peer


def by_scaling(name: str, config: dict[str, Any], cost: int = 1) -> Peer:
    """Euler, Heun, KDPM2 and LMS, which walk x_t / alpha and scale what the network sees."""

    def peer(task: Task, nfe: int) -> End:
        it = _build(name, config, (nfe + cost - 1) // cost)
        logs = _levels(it).log().tolist()
        start = float(it.sigmas[0])
        x = task.z * start
        for t in it.timesteps:
            scaled = it.scale_model_input(x, t)
            if cost == 1:
                level = float(it.sigmas[it.step_index])
            else:  # its inner stages have times of their own
                k = min(int(t), TRAIN - 2)
                level = math.exp(logs[k] + (float(t) - k) * (logs[k + 1] - logs[k]))
            size = math.hypot(1, level)
            x = it.step(task.mean(scaled, 1 / size, level / size), t, x).prev_sample
        return End(x, start, float(it.sigmas[-1]))

    return peer


def by_edm(name: str, config: dict[str, Any]) -> Peer:
    """The schedulers for EDM's networks: the network's own output F is made from the denoiser."""

    def peer(task: Task, nfe: int) -> End:
        it = _build(name, config, nfe)
        data, start = it.config.sigma_data, float(it.sigmas[0])
        x = task.z * start
        for i, t in enumerate(it.timesteps):
            it.scale_model_input(x, t)
            level, wide = float(it.sigmas[i]), x.double()
            total = level**2 + data**2
            out = (task.at(x, level).double() - data**2 / total * wide) * math.sqrt(total) / (level * data)
            x = it.step(out.to(x), t, x).prev_sample
        return End(x, start, float(it.sigmas[-1]))

    return peer


def by_flow(name: str, config: dict[str, Any], cost: int = 1) -> Peer:
    """The schedulers of flow matching, told velocities."""

    def peer(task: Task, nfe: int) -> End:
        it = _build(name, config, (nfe + cost - 1) // cost)
        first = float(it.timesteps[0]) / TRAIN
        x = task.z * first
        for t in it.timesteps:
            sigma = float(t) / TRAIN
            out = (x.double() - task.mean(x, 1 - sigma, sigma).double()) / sigma
            x = it.step(out.to(x), t, x).prev_sample
        last = float(it.sigmas[-1])
        return End(x / (1 - last), first / (1 - first) if first < 1 else math.inf, last / (1 - last))

    return peer


def ipndm(task: Task, nfe: int) -> End:
    """IPNDM on its own grid; it makes eps of v."""
    it = _build("IPNDMScheduler", {}, nfe)
    x = task.z
    for i, t in enumerate(it.timesteps):
        alpha, sigma = float(it.alphas[i]), float(it.betas[i])
        mean = task.mean(x, alpha, sigma).double()
        v = (alpha * x.double() - mean) / sigma  # alpha eps - sigma x0 where alpha^2 + sigma^2 = 1
        x = it.step(v.to(x), t, x).prev_sample
    return End(x, math.inf, 0.0)


def configurations() -> dict[str, Peer]:
    """Every scheduler x order x grid x chain.

    Raises:
        ModuleNotFoundError: Diffusers is not installed.
    """
    importlib.import_module("diffusers")
    found: dict[str, Peer] = {}
    multistep: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    clean = {"final_sigmas_type": "zero"}
    noisy = {"final_sigmas_type": "sigma_min"}
    for order in (2, 3):
        multistep[f"DPM++{order}"] = "DPMSolverMultistepScheduler", {"solver_order": order, **clean}, LU
        multistep[f"DPM{order}"] = (
            "DPMSolverMultistepScheduler",
            {"solver_order": order, "algorithm_type": "dpmsolver", **noisy},
            LU,
        )
        multistep[f"DEIS{order}"] = "DEISMultistepScheduler", {"solver_order": order}, {}
        multistep[f"DPM++{order}S"] = (
            "DPMSolverSinglestepScheduler",
            {"solver_order": order, "lower_order_final": True, **clean},
            {},
        )
    multistep["DPM++2 heun"] = "DPMSolverMultistepScheduler", {"solver_type": "heun", **clean}, LU
    multistep["DPM++3 euler at final"] = (
        "DPMSolverMultistepScheduler",
        {"solver_order": 3, "euler_at_final": True, **clean},
        LU,
    )
    for order in (2, 3, 4):
        multistep[f"UniPC{order} bh2"] = "UniPCMultistepScheduler", {"solver_order": order}, {}
    for order in (2, 3):
        multistep[f"UniPC{order} bh1"] = (
            "UniPCMultistepScheduler",
            {"solver_order": order, "solver_type": "bh1", **noisy},
            {},
        )
        multistep[f"UniPC{order} eps"] = (
            "UniPCMultistepScheduler",
            {"solver_order": order, "predict_x0": False, **noisy},
            {},
        )
    for chain, betas in CHAINS.items():
        mark = "" if chain == "lin" else " cos"
        base = {"num_train_timesteps": TRAIN, **betas}
        for name, (kind, config, more) in multistep.items():
            spaced = {} if "Singlestep" in kind else SPACINGS
            plain = {"linspace": {}} if "Singlestep" in kind else {}
            flows = FLOW if chain == "lin" else {}
            for grid, settings in {**spaced, **plain, **SIGMAS, **more, **flows}.items():
                full = {**base, **config, **settings, "prediction_type": "sample"}
                found[f"diffusers{mark} {name}[{grid}]"] = by_sigmas(kind, full)
        for kind, cost in (("Euler", 1), ("LMS", 1), ("Heun", 2), ("KDPM2", 2)):
            for grid, settings in {**SPACINGS, **SIGMAS}.items():
                full = {**base, **settings, "prediction_type": "sample" if kind != "KDPM2" else "epsilon"}
                if kind != "KDPM2":
                    found[f"diffusers{mark} {kind}[{grid}]"] = by_scaling(f"{kind}DiscreteScheduler", full, cost)
                else:
                    found[f"diffusers{mark} {kind}[{grid}]"] = _kdpm2(full)
        for grid, settings in SPACINGS.items():
            full = {**base, **settings, "prediction_type": "sample", "clip_sample": False}
            found[f"diffusers{mark} DDIM[{grid}]"] = by_alphas("DDIMScheduler", full)
            full = {**base, **settings, "skip_prk_steps": True}
            found[f"diffusers{mark} PNDM[{grid}]"] = by_alphas("PNDMScheduler", full, eps=True, extra=1)
    for grid in ("karras", "exponential"):
        found[f"diffusers EDMEuler[{grid}]"] = by_edm("EDMEulerScheduler", {"sigma_schedule": grid})
        for order in (2, 3):
            config = {"solver_order": order, "sigma_schedule": grid}
            found[f"diffusers EDMDPM{order}[{grid}]"] = by_edm("EDMDPMSolverMultistepScheduler", config)
    for shift in (1.0, 3.0):
        config = {"shift": shift}
        found[f"diffusers FlowMatchEuler[shift{shift:g}]"] = by_flow("FlowMatchEulerDiscreteScheduler", config)
        found[f"diffusers FlowMatchHeun[shift{shift:g}]"] = by_flow("FlowMatchHeunDiscreteScheduler", config, 2)
    found["diffusers IPNDM4"] = ipndm
    return found


def _kdpm2(config: dict[str, Any]) -> Peer:
    """KDPM2 takes eps: x_t / alpha = x + level eps, at the level that its own scaling uses."""

    def peer(task: Task, nfe: int) -> End:
        it = _build("KDPM2DiscreteScheduler", config, (nfe + 1) // 2)
        start = float(it.sigmas[0])
        x = task.z * start
        for t in it.timesteps:
            it.scale_model_input(x, t)
            level = float((it.sigmas if it.state_in_first_order else it.sigmas_interpol)[it.step_index])
            x = it.step(task.eps(x, 1.0, level), t, x).prev_sample
        return End(x, start, float(it.sigmas[-1]))

    return peer
