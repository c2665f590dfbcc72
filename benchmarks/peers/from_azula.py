"""azula's samplers on its schedules, and on Karras' grid written as one."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from . import End, Peer, Task


@dataclass
class Karras:
    """sigma equally spaced in its rho-th root; exponential for rho = inf."""

    rho: float = 7.0
    low: float = 0.002
    high: float = 80.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if math.isinf(self.rho):
            return torch.ones_like(t), torch.exp((1 - t) * math.log(self.low) + t * math.log(self.high))
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho


class Oracle(nn.Module):
    """The task as azula's denoiser."""

    def __init__(self, task: Task, schedule: object) -> None:
        super().__init__()
        self.task, self.schedule = task, schedule

    def forward(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        alpha, sigma = self.schedule(t)  # type: ignore[operator]
        return SimpleNamespace(mean=self.task.mean(x_t, float(alpha), float(sigma)))


def configurations() -> dict[str, Peer]:
    """Every deterministic sampler and order on every schedule.

    Raises:
        ModuleNotFoundError: azula is not installed.
    """
    from azula import noise, sample

    schedules = {
        "rect": noise.RectifiedSchedule(),
        "vp": noise.VPSchedule(),
        "cos": noise.CosineSchedule(),
        "ve": noise.VESchedule(),
        "decay": noise.DecaySchedule(),
        "ve80": Karras(math.inf),
        "karras": Karras(),
    }
    samplers: dict[str, tuple[type, dict[str, int], int]] = {
        "DDIM": (sample.DDIMSampler, {}, 1),
        "Heun": (sample.HeunSampler, {}, 2),
    }
    for kind in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        for order in (2, 3) if kind == "REAB" else (2, 3, 4):
            samplers[f"{kind}{order}"] = getattr(sample, f"{kind}Sampler"), {"order": order}, 1

    def make(kind: type, extra: dict[str, int], cost: int, schedule: object) -> Peer:
        def peer(task: Task, nfe: int) -> End:
            sampler = kind(Oracle(task, schedule), steps=max(1, nfe // cost), silent=True, **extra)
            ends = [tuple(map(float, schedule(t))) for t in sampler.timesteps[[0, -1]]]  # type: ignore[operator]
            (alpha, sigma), (alpha_end, sigma_end) = ends
            x = sampler(task.z * sigma)
            return End(x / alpha_end, sigma / alpha, sigma_end / alpha_end)

        return peer

    return {
        f"azula {name}[{grid}]": make(*row, schedule)
        for name, row in samplers.items()
        for grid, schedule in schedules.items()
    }
