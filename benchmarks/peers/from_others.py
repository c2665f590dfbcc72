"""smalldiffusion, flow_matching, torchdiffeq on fixed grids, and NVlabs' edm by ``--edm FOLDER``."""

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from . import End, Peer, Task

STAGES = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}  # of torchdiffeq's fixed-grid methods
LOW, HIGH = 0.002, 80.0


def smalldiffusion() -> dict[str, Peer]:
    """Its sampler with gam from 1 (DDIM) to 2 on its schedules."""
    module = importlib.import_module("smalldiffusion")
    schedules = {
        "ddpm": module.ScheduleDDPM(),
        "sigmoid": module.ScheduleSigmoid(),
        "cosine": module.ScheduleCosine(),
        "loglinear": module.ScheduleLogLinear(1000, sigma_min=LOW, sigma_max=HIGH),
    }

    def make(schedule: object, gam: float) -> Peer:
        def peer(task: Task, nfe: int) -> End:
            sigmas = schedule.sample_sigmas(nfe)  # type: ignore[attr-defined]
            model = SimpleNamespace(
                eval=lambda: None,
                predict_eps_cfg=lambda x, sigma, *_: task.eps(x, 1.0, float(sigma)),
                rand_input=lambda n: torch.zeros(n, *task.z.shape[1:]),
            )
            cpu = SimpleNamespace(device="cpu")
            *_, x = module.samples(model, sigmas, gam=gam, xt=task.z * sigmas[0], accelerator=cpu)
            return End(x, float(sigmas[0]), float(sigmas[-1]))

        return peer

    return {
        f"smalldiffusion gam{gam:g}[{name}]": make(schedule, gam)
        for gam in (1.0, 1.5, 2.0)
        for name, schedule in schedules.items()
    }


def flow_matching() -> dict[str, Peer]:
    """Its ODESolver on the conditional optimal-transport path."""
    solvers = importlib.import_module("flow_matching.solver")

    class Velocity(nn.Module):
        def __init__(self, task: Task) -> None:
            super().__init__()
            self.task = task

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            sigma = max(1 - float(t), 1e-4)  # the velocity at t = 1 as a limit
            mean = self.task.mean(x, 1 - sigma, sigma).double()
            return ((mean - x.double()) / sigma).to(x)

    def uniform(steps: int) -> Tensor:
        return torch.linspace(0, 1, steps + 1)

    def karras(steps: int) -> Tensor:
        """The grid of its image example: EDM's sigma as (1 - t) / t."""
        sigma = torch.linspace(HIGH ** (1 / 7), LOW ** (1 / 7), steps) ** 7
        return 1 - torch.cat([sigma / (1 + sigma), torch.zeros(1)])

    def make(method: str, grid: Callable[[int], Tensor]) -> Peer:
        def peer(task: Task, nfe: int) -> End:
            ts = grid(max(1, nfe // STAGES[method]))
            u = 1 - float(ts[0])
            x = solvers.ODESolver(Velocity(task)).sample(task.z * u, step_size=None, method=method, time_grid=ts)
            return End(x, u / (1 - u) if u < 1 else math.inf, 0.0)

        return peer

    grids = {"condot": uniform, "condot edm": karras}
    return {f"flow_matching {m}[{name}]": make(m, grid) for m in STAGES for name, grid in grids.items()}


def torchdiffeq() -> dict[str, Peer]:
    """Its fixed-grid methods on dx/dsigma and dx/dlog(sigma)."""
    module = importlib.import_module("torchdiffeq")
    steps = torch.linspace
    grids: dict[str, tuple[Callable[[int], Tensor], bool]] = {
        "log": (lambda n: steps(math.log(HIGH), math.log(LOW), n + 1), True),
        "sigma karras": (lambda n: steps(HIGH ** (1 / 7), LOW ** (1 / 7), n + 1) ** 7, False),
        "log karras": (lambda n: 7 * steps(HIGH ** (1 / 7), LOW ** (1 / 7), n + 1).log(), True),
    }

    def make(method: str, grid: Callable[[int], Tensor], log: bool) -> Peer:
        def peer(task: Task, nfe: int) -> End:
            def slope(s: Tensor, x: Tensor) -> Tensor:
                sigma = math.exp(float(s)) if log else float(s)
                out = x.double() - task.at(x, sigma).double()
                return (out if log else out / sigma).to(x)

            ts = grid(max(1, nfe // STAGES[method]))
            ends = [math.exp(float(t)) if log else float(t) for t in ts[[0, -1]]]
            return End(module.odeint(slope, task.z * ends[0], ts, method=method)[-1], *ends)

        return peer

    return {f"torchdiffeq {m}[{name}]": make(m, *row) for m in STAGES for name, row in grids.items()}


def edm(folder: Path | None) -> dict[str, Peer]:
    """NVlabs' edm_sampler, and its ablation_sampler with Euler and with the older grids."""
    if folder is None:
        raise ModuleNotFoundError("no --edm")
    sys.path.insert(0, str(folder))
    module = importlib.import_module("generate")

    def make(function: Callable[..., Tensor], cost: int, level: float, settings: dict[str, object]) -> Peer:
        def peer(task: Task, nfe: int) -> End:
            class Net:
                sigma_min, sigma_max = 0.0, 1e9
                round_sigma = staticmethod(torch.as_tensor)

                def __call__(self, x: Tensor, sigma: Tensor, labels: object) -> Tensor:
                    return task.at(x, float(sigma))

            n = (nfe + cost - 1) // cost
            return End(function(Net(), task.z, num_steps=n, **settings), level, 0.0)

        return peer

    vp_top = math.sqrt(math.expm1(0.5 * 19.9 + 0.1))
    found = {f"NVlabs edm heun rho{rho}": make(module.edm_sampler, 2, 80.0, {"rho": rho}) for rho in (3, 5, 7)}
    for solver, cost in (("euler", 1), ("heun", 2)):
        for kind, level in (("edm", 80.0), ("vp", vp_top), ("ve", 100.0)):
            settings = {"solver": solver, "discretization": kind}
            found[f"NVlabs edm ablation {solver}[{kind}]"] = make(module.ablation_sampler, cost, level, settings)
    return found
