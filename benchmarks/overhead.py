"""What the library costs beside the network: the loop, a step, noise, imports.

    python benchmarks/overhead.py loop steps noise imports --python PATH_TO_A_PYTHON_WITH_TRILEMMA

Parts may be chosen by name; all run without one. Everything that is compared is taken in turns within one run, so that a busy
machine slows both sides; figures are medians or, for what takes microseconds, minima over many turns.

`loop`: 50 steps around a real UNet. Each network call of the sampler is followed by the same call alone, on the same input,
whose time is taken out of the sampler's; both sums are over the same steps, as medians over the turns.

`steps`: 50 steps around a network that returns its input, less the time of calling that network, by call of the network.
Peers run their usual loop; `binding` is what happens once before it: a plan here, `set_timesteps` there.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import ROOT, document, kdiffusion, optional, table
from trilemma.denoise import Denoiser, Gaussian, Preconditioned
from trilemma.nets import build, recommended_precision
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow, FromBetas, GaussianProcess
from trilemma.process.grid import log_snr_grid
from trilemma.sampling import RULES, get_rule, run, sample
from trilemma.train.objectives import denoising_loss

STEPS = 50
LARGE, SMALL = (16, 3, 32, 32), (4, 3, 2, 2)
LIMITS = {"deterministic": 1.005, "stochastic": 1.02}  # of the loop
STEP_LIMIT = 60.0  # microseconds
PRECONDITIONED = " + Preconditioned"  # how its rows are marked
now = time.perf_counter  # or process time, by --clock


# The loop around a real network


class Twice(nn.Module):
    """A network that is called once for the sampler and once more alone, with the seconds of both calls."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls: list[tuple[float, float]] = []

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        start = now()
        out = self.net(x, c_time)
        middle = now()
        self.net(x, c_time)
        self.calls.append((middle - start, now() - middle))
        return out


def timed_run(model: Preconditioned, net: Twice, name: str) -> list[tuple[float, float, float]]:
    """For every step: seconds in all without the extra calls, of the calls alone, and of all but the calls."""
    net.calls.clear()
    marks: list[tuple[float, int]] = []
    start = now()
    sample(
        model,
        LARGE,
        log_snr_grid(model.process, STEPS),
        get_rule(name),
        hook=lambda _: marks.append((now(), len(net.calls))),
    )
    rows = []
    for (begin, i), (end, j) in pairwise([(start, 0), *marks]):
        inside, alone = (sum(times) for times in zip(*net.calls[i:j]))
        rows.append((end - begin - alone, alone, end - begin - alone - inside))
    return rows


def loop(rounds: int) -> list[str]:
    """Wall time of 50 steps over the sum of the bare calls."""
    torch.manual_seed(0)
    unet = build("unet-small").eval()
    net = Twice(unet)
    model = Preconditioned(net, EDM(), sigma_data=0.5)
    names = ["ddim", "dpmpp_2m", "exponential_4", "heun", "ddpm", "dpmpp_2m_sde", "churn"]
    turns: dict[str, list[list[tuple[float, float, float]]]] = {name: [] for name in names}
    timed_run(model, net, "ddim")  # warm up
    calls = {}
    for _ in range(rounds):
        for name in names:
            turns[name].append(timed_run(model, net, name))
            calls[name] = len(net.calls)
    rows = []
    for name in names:
        kind = "stochastic" if RULES[name].stochastic else "deterministic"
        # the median turn of every step, summed over the steps
        whole, alone, beside = (
            sum(statistics.median(turn[i][k] for turn in turns[name]) for i in range(STEPS)) for k in range(3)
        )
        figures = f"{alone / calls[name] * 1e3:.1f}", f"{beside / STEPS * 1e6:.0f}", f"{1 + beside / alone:.4f}"
        verdict = "yes" if whole / alone <= LIMITS[kind] else "**no**"
        rows.append((f"`{name}`", kind, *figures, f"{whole / alone:.4f}", f"{LIMITS[kind]}", verdict))
    size = sum(p.numel() for p in unet.parameters()) / 1e6
    return [
        f"## {STEPS} steps around a UNet of {size:.2f} M parameters, batch 16, 3x32x32",
        "",
        f"Median of {rounds} turns for every step, summed; planning, the prior, the noise and the hook that takes the times are",
        "in. `beside` is what is spent outside the calls, taken directly, and `1 + beside / bare` what the ratio would be if the",
        "sampler's calls took as long as the bare ones; `total / bare` is the figure with a limit, and needs a quiet machine.",
        "",
        *table(
            [
                "rule",
                "kind",
                "ms a bare call",
                "beside, us a step",
                "1 + beside / bare",
                "total / bare",
                "limit",
                "kept",
            ],
            rows,
        ),
    ]


# A step around a free network


class Free(Denoiser):
    """A denoiser that returns its input: what is left is the loop and the rule."""

    def __init__(self, process: GaussianProcess) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        return Gaussian(x_t)


class Echo(nn.Module):
    """A network that returns its input."""

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        return x


Once = Callable[[], tuple[float, float, int]]  # seconds of binding, seconds of the loop, calls of the network


def own(name: str, shape: tuple[int, ...], *, preconditioned: bool) -> Once:
    """One of our rules around :class:`Free`, or around `Preconditioned` with :class:`Echo`."""
    process = EDM()
    denoiser: Denoiser = Preconditioned(Echo(), process, sigma_data=0.5) if preconditioned else Free(process)
    grid, rule, x = log_snr_grid(process, STEPS), get_rule(name), torch.randn(shape)
    calls = STEPS * RULES[name].calls - (RULES[name].calls - 1) * (RULES[name].calls > 1)

    @torch.no_grad()
    def once() -> tuple[float, float, int]:
        start = now()
        step = rule(process, grid)
        bound = now()
        run(step, denoiser, x, STEPS, Noise(0, shape[0]))
        return bound - start, now() - bound, calls

    return once


def entry(name: str, shape: tuple[int, ...]) -> Once:
    """All of `sample`, counted as the loop."""
    process = EDM()
    model = Preconditioned(Echo(), process, sigma_data=0.5)
    grid, rule = log_snr_grid(process, STEPS), get_rule(name)

    def once() -> tuple[float, float, int]:
        start = now()
        sample(model, shape, grid, rule)
        return 0.0, now() - start, STEPS

    return once


def diffusers(kind: str, shape: tuple[int, ...], **config: Any) -> Once:
    """A Diffusers scheduler in the loop of its documentation."""
    scheduler, net, x0 = getattr(importlib.import_module("diffusers"), kind)(**config), Echo(), torch.randn(shape)

    @torch.no_grad()
    def once() -> tuple[float, float, int]:
        start = now()
        scheduler.set_timesteps(STEPS)
        bound, x = now(), x0
        for t in scheduler.timesteps:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t), t, x).prev_sample
        return bound - start, now() - bound, len(scheduler.timesteps)

    return once


def kdiff(name: str, shape: tuple[int, ...], calls: int = STEPS, *, noisy: bool = False) -> Once:
    """A sampler of k-diffusion; with plain noise, since its Brownian tree alone takes milliseconds."""
    module, net, x = kdiffusion(), Echo(), torch.randn(shape)
    sampler = getattr(module, name)
    sigmas = EDM().sigma(log_snr_grid(EDM(), STEPS)).float()
    extra = {"noise_sampler": lambda *_: torch.randn_like(x)} if noisy else {}

    @torch.no_grad()
    def once() -> tuple[float, float, int]:
        start = now()
        sampler(net, x, sigmas, disable=True, **extra)
        return 0.0, now() - start, calls

    return once


def free_call(shape: tuple[int, ...]) -> Once:
    """The network alone."""
    net, x = Echo(), torch.randn(shape)

    @torch.no_grad()
    def once() -> tuple[float, float, int]:
        start = now()
        for _ in range(STEPS):
            net(x, x)
        return 0.0, now() - start, STEPS

    return once


OWN = [
    "ddim",
    "dpmpp_2m",
    "dpmpp_3m",
    "exponential_2",
    "exponential_4",
    "exponential_4_eps",
    "heun",
    "rk4",
    "ddpm",
    "ddim_half",
    "dpmpp_2m_sde",
    "churn",
]
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "SDE-DPM++ 2M": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "UniPC 2": ("UniPCMultistepScheduler", {}),
    "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}),
}
KDIFF: dict[str, tuple[str, int, bool]] = {
    "euler": ("sample_euler", STEPS, False),
    "heun": ("sample_heun", 2 * STEPS - 1, False),
    "dpmpp_2m": ("sample_dpmpp_2m", STEPS, False),
    "dpmpp_2m_sde, randn": ("sample_dpmpp_2m_sde", STEPS, True),
}


def candidates(shape: tuple[int, ...]) -> dict[str, Once]:
    """Everything that is timed, by its name in the table."""
    found: dict[str, Once] = {"": free_call(shape)}
    for name in OWN:
        found[f"`{name}`"] = own(name, shape, preconditioned=False)
        found[f"`{name}`{PRECONDITIONED}"] = own(name, shape, preconditioned=True)
    for name in ("ddim", "dpmpp_2m", "ddpm"):
        found[f"`sample(..., {name})`{PRECONDITIONED}"] = entry(name, shape)
    if optional("diffusers"):
        found |= {f"Diffusers {name}": diffusers(kind, shape, **config) for name, (kind, config) in DIFFUSERS.items()}
    if kdiffusion():
        found |= {
            f"k-diffusion {name}": kdiff(name_, shape, n, noisy=noisy) for name, (name_, n, noisy) in KDIFF.items()
        }
    return found


def best(jobs: dict[str, Once], rounds: int) -> dict[str, tuple[float, float]]:
    """Microseconds of binding and of the loop by call, the least of all turns, in turns."""
    binding: dict[str, list[float]] = {name: [] for name in jobs}
    looping: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, once in jobs.items():
            bind, seconds, calls = once()
            binding[name].append(bind / calls * 1e6)
            looping[name].append(seconds / calls * 1e6)
    return {name: (min(binding[name]), min(looping[name])) for name in jobs}


def steps(rounds: int) -> list[str]:
    """Python time a call with a free network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        large, small = (best(candidates(shape), rounds) for shape in (LARGE, SMALL))
    free = [times[""][1] for times in (large, small)]
    rows = []
    for name in filter(None, large):
        figures = [large[name][1] - free[0], small[name][1] - free[1], small[name][0]]
        rule = RULES.get(name.removesuffix(PRECONDITIONED).strip("`"))
        judged = rule is not None and not rule.stochastic
        verdict = ("yes" if figures[0] < STEP_LIMIT else "**no**") if judged else ""
        rows.append((name, *(f"{figure:.0f}" for figure in figures), verdict))
    missing = [] if optional("diffusers") else ["- Diffusers: not installed here."]
    missing += [] if kdiffusion() else ["- k-diffusion: not installed here."]
    return [
        "## Microseconds a network call, with a network that returns its input",
        "",
        f"{STEPS} steps; the least of {rounds} turns, less the bare call ({free[0]:.1f} us). `binding` is once a run and spread",
        "over its calls here; it is not in the columns before it, except in `sample(...)`, which is all that a user waits for.",
        f"Limit {STEP_LIMIT:.0f} us at 16x3x32x32 for deterministic rules; what a draw of noise takes is below.",
        "",
        *table(["sampler", "16x3x32x32", "4x3x2x2", "binding", f"below {STEP_LIMIT:.0f}"], rows),
        *missing,
        *coefficient_costs(rounds),
    ]


def coefficient_costs(rounds: int) -> list[str]:
    """Where the time of `Preconditioned` goes."""
    rows = []
    pairs: list[tuple[GaussianProcess, str]] = [(EDM(), "edm"), (Flow(), "velocity"), (VP(), "eps"), (FromBetas(), "v")]
    t = torch.tensor(0.5, dtype=torch.float64)
    for process, target in pairs:
        model = Preconditioned(Echo(), process, target)
        figures = []
        for shape in (LARGE, SMALL):
            x = torch.randn(shape)
            figures.append(least(lambda m=model, x=x: m(x, t), rounds))
        coefficients = least(lambda m=model: m.coefficients(t), rounds)
        rows.append((type(process).__name__, target, *(f"{f:.0f}" for f in figures), f"{coefficients:.0f}"))
    return [
        "One call of `Preconditioned` around that network, microseconds:",
        "",
        *table(["process", "target", "16x3x32x32", "4x3x2x2", "its coefficients alone, once a time"], rows),
    ]


@torch.no_grad()
def least(job: Callable[[], object], rounds: int, inner: int = 20) -> float:
    """Microseconds of a job: the least of ``rounds`` means over ``inner``."""
    times = []
    for _ in range(rounds):
        start = now()
        for _ in range(inner):
            job()
        times.append((now() - start) / inner)
    return min(times) * 1e6


# Noise


def noise(rounds: int) -> list[str]:
    """`Noise.normal` against `torch.randn` and against a training step."""
    rows = []
    for shape in ((64, 3, 32, 32), (16, 3, 32, 32), (16, 2)):
        source = Noise(0, shape[0])
        jobs: list[Callable[[], object]] = [lambda s=source, n=shape: s.at(1).normal(n), lambda n=shape: torch.randn(n)]
        times: list[list[float]] = [[], []]
        for _ in range(10 * rounds):
            for job, seconds in zip(jobs, times):
                start = now()
                job()
                seconds.append(now() - start)
        (own_min, randn_min), (own_mid, randn_mid) = map(min, times), map(statistics.median, times)
        size = "x".join(map(str, shape))
        rows.append(
            (
                size,
                f"{own_min * 1e6:.0f}",
                f"{randn_min * 1e6:.0f}",
                f"{own_min / randn_min:.2f}",
                f"{own_mid / randn_mid:.2f}",
                "" if len(shape) == 2 else "yes" if own_min / randn_min <= 2 else "**no**",
            )
        )
    share, step_ms, precision, size_m = training_share(max(3, rounds // 10))
    kept = "kept" if share <= 0.02 else "**not kept**"
    return [
        "## Noise",
        "",
        f"Microseconds, the least of {10 * rounds} turns; limit 2.",
        "",
        *table(["shape", "Noise.normal", "torch.randn", "ratio", "ratio of medians", "within 2"], rows),
        f"A training step of the UNet ({size_m:.2f} M parameters, 3x32x32, batch 64, {precision}, forward, backward and fused",
        f"AdamW) takes {step_ms:.0f} ms, of which `Noise.normal` is {share:.2%} (limit 2 %, {kept}).",
        "",
    ]


def training_share(rounds: int) -> tuple[float, float, str, float]:
    """Share of the noise in a training step, ms of the step, precision, millions of parameters."""
    torch.manual_seed(0)
    unet = build("unet-small")
    model = Preconditioned(unet, EDM(), sigma_data=0.5)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    x, source, precision = torch.randn(64, 3, 32, 32), Noise(0, 64), recommended_precision("cpu")
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    drawing, stepping = [], []
    for i in range(rounds + 1):
        start = now()
        eps = source.at(i).normal_like(x)
        drawn = now()
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = denoising_loss(model, x, t, eps).mean()
        loss.backward()
        optimiser.step()
        if i:  # the first step is a warm-up
            drawing.append(drawn - start)
            stepping.append(now() - start)
    size = sum(p.numel() for p in unet.parameters()) / 1e6
    return statistics.median(drawing) / statistics.median(stepping), statistics.median(stepping) * 1e3, precision, size


# Imports


def imports(rounds: int, python: str) -> list[str]:
    """Seconds of `import trilemma` over `import torch`, and of the command line's help."""
    everything = "import trilemma as tl; [getattr(tl, name) for name in dir(tl)]"
    jobs = {
        "`import torch`": ["-c", "import torch"],
        "`import trilemma`": ["-c", "import trilemma"],
        "`import trilemma`, `tl.sample`, `tl.UNet`": ["-c", "import trilemma as tl; tl.sample; tl.UNet"],
        "`import trilemma` and every public name": ["-c", everything],
        "`trilemma --help`": ["-m", "trilemma.cli", "--help"],
    }
    wall, cpu = ({name: [] for name in jobs} for _ in range(2))
    failed: dict[str, str] = {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for turn in range(max(5, rounds // 10) + 1):
        for name, arguments in jobs.items():
            before, start = os.times(), time.perf_counter()
            done = subprocess.run([python, *arguments], env=environment, capture_output=True, text=True)
            seconds, after = time.perf_counter() - start, os.times()
            if done.returncode:
                failed[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
            elif turn:  # the first turn reads the files
                wall[name].append(seconds)
                cpu[name].append(
                    after.children_user + after.children_system - before.children_user - before.children_system
                )
    torch_wall, torch_cpu = (min(side["`import torch`"]) for side in (wall, cpu))
    rows: list[Iterable[object]] = []
    for name in jobs:
        if name in failed:
            rows.append((name, f"fails: {failed[name]}", "", "", ""))
            continue
        w, c = min(wall[name]), min(cpu[name])
        is_help = "help" in name
        kept = "" if name == "`import torch`" else "yes" if (w <= 0.4 if is_help else c / torch_cpu < 1.3) else "**no**"
        rows.append(
            (name, f"{w:.2f}", f"{c:.2f}", "" if is_help else f"{w / torch_wall:.2f} / {c / torch_cpu:.2f}", kept)
        )
    return [
        "## Imports",
        "",
        f"A fresh interpreter each time, the least of {len(wall['`import torch`'])}. Limits: 1.3 times `import torch` by CPU",
        "time, and 0.4 s of wall time for the help.",
        "",
        *table(["what", "wall s", "CPU s", "over `import torch`, wall / CPU", "kept"], rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=["loop", "steps", "noise", "imports", []], help="all without a name"
    )
    parser.add_argument("--rounds", type=int, default=100, help="turns of the microsecond figures")
    parser.add_argument("--loop-rounds", type=int, default=3, help="turns of the sampling runs around the UNet")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--python", default=sys.executable, help="the interpreter whose imports are timed")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/overhead.md", help="where the page goes")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: process time, for a busy machine"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    global now
    now = time.perf_counter if args.clock == "wall" else time.process_time
    parts: dict[str, Callable[[], list[str]]] = {
        "loop": lambda: loop(args.loop_rounds),
        "steps": lambda: steps(args.rounds),
        "noise": lambda: noise(args.rounds),
        "imports": lambda: imports(args.rounds, args.python),
    }
    lines = [line for name, part in parts.items() if not args.parts or name in args.parts for line in part()]
    clock = f"Clock: {'wall' if args.clock == 'wall' else 'CPU time of the process'}; imports have both."
    document("Overhead", "benchmarks/overhead.py", ["diffusers", "k-diffusion"], [clock, "", *lines], args.out)


if __name__ == "__main__":
    main()
