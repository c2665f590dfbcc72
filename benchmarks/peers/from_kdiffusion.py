"""k-diffusion's samplers without noise, on all of its grids from sigma = 80 to 0.002 and 0."""

from collections.abc import Callable

import torch
from torch import Tensor

from common import kdiffusion

from . import End, Peer, Task

LOW, HIGH = 0.002, 80.0
SAMPLERS: dict[str, tuple[str, dict[str, object], int]] = {  # name, arguments, calls a step (one in the last)
    "euler": ("sample_euler", {}, 1),
    "heun": ("sample_heun", {}, 2),
    "dpm_2": ("sample_dpm_2", {}, 2),
    "lms2": ("sample_lms", {"order": 2}, 1),
    "lms3": ("sample_lms", {"order": 3}, 1),
    "lms4": ("sample_lms", {"order": 4}, 1),
    "dpmpp_2m": ("sample_dpmpp_2m", {}, 1),
    "dpmpp_2s eta0": ("sample_dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    "dpmpp_sde eta0": ("sample_dpmpp_sde", {"eta": 0.0}, 2),
    "dpmpp_2m_sde heun eta0": ("sample_dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}, 1),
    "dpmpp_3m_sde eta0": ("sample_dpmpp_3m_sde", {"eta": 0.0}, 1),
}


def configurations() -> dict[str, Peer]:
    """Every sampler on every grid.

    Raises:
        ModuleNotFoundError: k-diffusion is not installed.
    """
    module = kdiffusion()
    if module is None:
        raise ModuleNotFoundError("k_diffusion")
    grids: dict[str, Callable[[int], Tensor]] = {
        "karras": lambda n: module.get_sigmas_karras(n, LOW, HIGH),
        "karras rho3": lambda n: module.get_sigmas_karras(n, LOW, HIGH, rho=3.0),
        "exp": lambda n: module.get_sigmas_exponential(n, LOW, HIGH),
        "poly1.5": lambda n: module.get_sigmas_polyexponential(n, LOW, HIGH, rho=1.5),
        "poly2": lambda n: module.get_sigmas_polyexponential(n, LOW, HIGH, rho=2.0),
        "vp": module.get_sigmas_vp,
    }

    def make(name: str, extra: dict[str, object], cost: int, grid: Callable[[int], Tensor]) -> Peer:
        def peer(task: Task, nfe: int) -> End:
            sigmas = grid((nfe + cost - 1) // cost).float()
            quiet = {"noise_sampler": lambda *_: 0.0} if "eta" in extra else {}
            x = getattr(module, name)(
                lambda x, sigma: task.at(x, float(sigma[0])), task.z * sigmas[0], sigmas, disable=True, **extra, **quiet
            )
            return End(x, float(sigmas[0]), float(sigmas[-1]))

        return peer

    def fast(task: Task, nfe: int) -> End:
        x = module.sample_dpm_fast(
            lambda x, sigma: task.at(x, float(sigma.reshape(-1)[0])), task.z * HIGH, LOW, HIGH, nfe, disable=True
        )
        return End(x, HIGH, LOW)

    found: dict[str, Peer] = {
        f"{name}[{kind}]": make(*row, grid) for name, row in SAMPLERS.items() for kind, grid in grids.items()
    }
    torch.manual_seed(0)  # dpm_fast asks for noise and multiplies it by 0
    return {f"k-diffusion {name}": peer for name, peer in (found | {"dpm_fast": fast}).items()}
