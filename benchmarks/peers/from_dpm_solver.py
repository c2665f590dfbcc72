"""The DPM-Solver authors' file ``dpm_solver_pytorch.py``, by ``--dpm-solver FOLDER``."""

import importlib
import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from . import End, Peer, Task


def configurations(folder: Path | None) -> dict[str, Peer]:
    """Multistep and singlestep, eps and x0, orders 1 to 3, all grids, both ends of their advice, and a last denoising.

    Raises:
        ModuleNotFoundError: no folder was given, or the file is not in it.
    """
    if folder is None:
        raise ModuleNotFoundError("no --dpm-solver")
    sys.path.insert(0, str(folder))
    module = importlib.import_module("dpm_solver_pytorch")
    linear = module.NoiseScheduleVP("linear")
    wide = module.NoiseScheduleVP("discrete", betas=torch.linspace(1e-4, 0.02, 1000))

    def make(schedule: object, method: str, kind: str, order: int, grid: str, last: float, zero: bool) -> Peer:
        def curves(t: Tensor | float) -> tuple[float, float]:
            t = torch.as_tensor(t, dtype=torch.float32).reshape(-1)[:1]
            return float(schedule.marginal_alpha(t)), float(schedule.marginal_std(t))  # type: ignore[attr-defined]

        def peer(task: Task, nfe: int) -> End:
            solver = module.DPM_Solver(lambda x, t: task.eps(x, *curves(t)), schedule, algorithm_type=kind)
            (alpha, sigma), (alpha_end, sigma_end) = curves(1.0), curves(last)
            x = solver.sample(
                task.z * sigma,
                steps=nfe - zero,
                order=order,
                skip_type=grid,
                method=method,
                t_end=last,
                denoise_to_zero=zero,
            )
            return End(x if zero else x / alpha_end, sigma / alpha, 0.0 if zero else sigma_end / alpha_end)

        return peer

    found: dict[str, Peer] = {}
    grids = ("time_uniform", "time_quadratic", "logSNR")
    ends = ((linear, 1e-3, False, ""), (linear, 1e-3, True, " to0"), (linear, 1e-4, False, " 1e-4"))
    for method, kind, order, grid in product(
        ("multistep", "singlestep"), ("dpmsolver", "dpmsolver++"), (1, 2, 3), grids
    ):
        for schedule, last, zero, mark in (*ends, (wide, 1e-3, False, " discrete")):
            if (mark and order == 1) or (mark == " discrete" and (order, grid) not in ((3, grids[1]), (2, grids[0]))):
                continue
            name = f"dpm-solver {method[:-4]}{kind[9:]}{order}[{grid}{mark}]"
            found[name] = make(schedule, method, kind, order, grid, last, zero)
    return found
