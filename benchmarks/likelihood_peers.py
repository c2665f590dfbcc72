"""Section ``time`` of benchmarks/likelihood.py: our log-likelihood beside that of three peers on the same network.

A run with one probe an item is off by two things. What its probe does is random: its standard deviation s is over four probes.
What its solver, its ends and its rounding do is not: it is told apart by giving the same probes to a run of ours at tolerance
1e-6, which has the error of the probe and no other. With b the root mean square of the latter over items and probes, K probes
have the error sqrt(b^2 + s^2 / K), so a total error e takes K = s^2 / (e^2 - b^2) of them, one at least, and none is enough
where b >= e.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import common
from peers.likelihoods import drawn, flow_matching, k_diffusion, score_sde
from problems import problem
from trilemma.data.digits import digits
from trilemma.denoise.denoiser import Preconditioned, Rescheduled
from trilemma.likelihood import log_likelihood
from trilemma.numerics.noise import Noise
from trilemma.numerics.trace import signs
from trilemma.process import VP

__all__ = ["section_time"]

Run = Callable[[Tensor, int], tuple[Tensor, float]]  # items and a seed to log-densities and forward passes
SEEDS = 4
LN2 = math.log(2)


@dataclass(frozen=True)
class Method:
    """A way to a log-likelihood.

    Args:
        run: it.
        fixed: the same with the signs of ``numerics.trace.signs`` for the whole path, where that is another run.
    """

    run: Run
    fixed: Run


def _ours(model: Preconditioned, **options: object) -> Run:
    def run(x: Tensor, seed: int) -> tuple[Tensor, float]:
        found = log_likelihood(model, x, seeds=seed, **options)  # type: ignore[arg-type]
        return found.log_prob, float(found.calls.double().mean())

    return run


def _grid(model: Preconditioned, steps: int) -> Method:
    return Method(*(_ours(model, steps=steps, trace=trace) for trace in ("orthogonal", "hutchinson")))


def _peer(peer: Callable[..., tuple[Tensor, float]], model: object, /, **options: object) -> Method:
    def run(x: Tensor, seed: int) -> tuple[Tensor, float]:
        with drawn(signs(Noise(seed, len(x)), 1, x)[0]), torch.no_grad():
            return peer(model, x, **options)

    return Method(run, run)


def _methods(model: Preconditioned, wide: bool) -> dict[str, dict[str, Method]]:
    """By family and settings; of the peers first what they ship or show, then what may be better, all of it if ``wide``."""
    kd = [(1e-2, 1e-4), (2e-3, 1e-4), (1e-4, 1e-3)]
    fm: list[dict[str, Any]] = [{"method": "midpoint", "step": 0.05}, {"method": "dopri5"}]
    fm += [{"method": "dopri5", "tol": 1e-2}]
    sde = [(1e-5, 1e-5), (1e-5, 1e-3)]
    if wide:
        sde += [(1e-5, 1e-2), (1e-5, 1e-4), (1e-6, 1e-3)]
        kd += [(2e-3, 1e-3), (2e-3, 1e-2), (1e-4, 1e-2), (1e-4, 1e-4), (1e-5, 1e-4), (1e-5, 1e-3), (1e-5, 1e-2)]
        fm += [{"method": "dopri5", "tol": tol} for tol in (1e-1, 1e-3, 1e-4)]
        fm += [{"method": "bosh3", "tol": tol} for tol in (1e-2, 1e-3)]
        fm += [{"method": name, "step": step} for name, step in (("euler", 0.01), ("midpoint", 0.01), ("heun3", 0.01))]
        fm += [{"method": "midpoint", "grid": steps} for steps in (16, 24, 48)]
    named = {
        "score_sde's recipe": {
            f"RK45 from {low:g}, tol {tol:g}": _peer(score_sde, Rescheduled(model, VP()), begin=low, tol=tol)
            for low, tol in sde
        },
        "k-diffusion": {
            f"sigma_min {low:g}, tol {tol:g}": _peer(k_diffusion, model, low=low, tol=tol) for low, tol in kd
        },
        "flow_matching": {_named(**one): _peer(flow_matching, model, **one) for one in fm},
        "ours": {f"orthogonal, {steps} steps": _grid(model, steps) for steps in (32, 48, 64, 96)},
    }
    if wide:
        one = _ours(model, trace="hutchinson")
        named["ours"]["hutchinson, tol 1e-5"] = Method(one, one)
    return named


def _named(method: str, step: float = 0.0, tol: float = 1e-5, grid: int = 0) -> str:
    return f"{method}, " + (f"step {step:g}" if step else f"EDM's grid, {grid} steps" if grid else f"tol {tol:g}")


@dataclass(frozen=True)
class Measured:
    """One method's cost and errors, in bits a dimension.

    Args:
        seconds: CPU time of one probe an item, the least of all seeds.
        calls: forward passes.
        noise: standard deviation s of a probe.
        bias: mean of what is not the probe's.
        off: root mean square b of it.
    """

    seconds: float
    calls: float
    noise: float
    bias: float
    off: float

    @classmethod
    def of(cls, method: Method, x: Tensor, tight: Tensor) -> Measured:
        """Measure; ``tight``: of the same signs without other errors, shape ``(SEEDS, B)``."""
        seconds, found, fixed, calls = [], [], [], 0.0
        for seed in range(SEEDS):
            began = time.process_time()
            log_prob, calls = method.run(x, seed)
            seconds.append(time.process_time() - began)
            found.append(log_prob)
            fixed.append(log_prob if method.fixed is method.run else method.fixed(x, seed)[0])
        unit = 1 / (x[0].numel() * LN2)
        noise = float(torch.stack(found).std(0).square().mean().sqrt()) * unit
        off = (torch.stack(fixed) - tight) * unit
        return cls(min(seconds), calls, noise, float(off.mean()), float(off.square().mean().sqrt()))

    def probes(self, goal: float) -> float:
        """K for the error ``goal``; infinite where there is none."""
        return max(1.0, self.noise**2 / (goal**2 - self.off**2)) if self.off < goal else math.inf


def _measure(
    name: str, model: Preconditioned, x: Tensor, *, goal: float, wide: bool
) -> tuple[list[str], dict[str, tuple[Run, int]]]:
    """The table, and of each family the run that takes the least time to the error ``goal``, with its K."""
    tight = torch.stack([_ours(model, trace="hutchinson", rtol=1e-6, atol=1e-6)(x, seed)[0] for seed in range(SEEDS)])
    found: dict[str, dict[str, Measured]] = {}
    absent, best = [], {}
    methods = _methods(model, wide)
    for family, ways in methods.items():
        try:
            for label, way in ways.items():
                one = Measured.of(way, x, tight)
                found.setdefault(family, {})[label] = one
                print("time", name, family, label, one, flush=True)
        except ModuleNotFoundError as error:
            absent.append(
                f"{family} is not part of this: {error}. See benchmarks/README.md for how peers are installed."
            )
            continue
        label = min(found[family], key=lambda label: found[family][label].seconds * found[family][label].probes(goal))
        if found[family][label].probes(goal) < math.inf:
            best[f"{family}: {label}"] = ways[label].run, round(found[family][label].probes(goal))
    own = min(one.seconds * one.probes(goal) for one in found["ours"].values())
    rows = []
    for family, ways in found.items():
        for label, one in ways.items():
            reached = one.probes(goal) < math.inf
            cost = one.seconds * one.probes(goal)
            rows.append(
                [family, label, f"{one.calls:.0f}", f"{one.seconds:.2f}", f"{one.noise:.1e}", f"{one.bias:+.1e}"]
                + [f"{one.off:.1e}", *((_short(cost), f"{_short(cost / own)}x") if reached else ("never", ""))]
            )
    head = ["method", "settings", "forwards", f"CPU seconds, {len(x)} items", "noise of one probe", "bias", "b"]
    head += [f"seconds to {goal:g}, K runs", "over ours"]
    return [*absent, *([""] if absent else []), *common.table(head, rows)], best


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _together(model: Preconditioned, x: Tensor, best: dict[str, tuple[Run, int]]) -> list[str]:
    """K probes an item in one batch, or all of the trace, against the exact trace."""
    truth = log_likelihood(model, x, rtol=1e-6, atol=1e-6).log_prob
    unit, rows = 1 / (x[0].numel() * LN2), []

    def row(label: str, trace: str, run: Run, copies: int) -> None:
        many = x.repeat_interleave(copies, 0)
        seconds = math.inf
        for _ in range(2):
            began = time.process_time()
            found, calls = run(many, 0)
            seconds = min(seconds, time.process_time() - began)
        off = (found.reshape(len(x), copies).mean(1) - truth) * unit
        rows.append([label, trace, f"{calls:.0f}", f"{seconds:.2f}", f"{float(off.square().mean().sqrt()):.1e}"])
        print("time", *rows[-1], flush=True)

    for label, (run, probes) in best.items():
        row(label, "one probe" if probes == 1 else f"{probes} probes", run, probes)
    for steps in (32, 48):
        row(f"ours: {steps} steps", "all", _ours(model, steps=steps), 1)
    row("ours: tol 1e-4", "all", _ours(model, rtol=1e-4, atol=1e-4), 1)
    fast: dict[str, Any] = {"method": "dopri5", "tol": 1e-2}
    with suppress(ModuleNotFoundError):
        row(f"flow_matching: {_named(**fast)}", "all", _peer(flow_matching, model, exact=True, **fast).run, 1)
    return common.table(["method", "trace", "forwards", f"CPU seconds, {len(x)} items", "error"], rows)


def section_time(cache: Path, mnist: Path | None = None) -> list[str]:
    """The digits network of the solver benchmark, one thread, and that of MNIST where its images are given."""
    model = problem("digits", cache).model
    x = digits("test").images[:64]
    x = x + (Noise(0, len(x)).uniform(x.shape) - 0.5) / 8
    lines, best = _measure("digits", model, x, goal=0.02, wide=True)
    lines = ["## The same network, beside peers: digits", "", *NOTE, "", *lines, *AGAIN, ""]
    lines += _together(model, x, best)
    if mnist is not None:
        with np.load(mnist) as file:
            x = torch.from_numpy(file["test_images"])[:4, None].float() / 127.5 - 1
        x = x + (Noise(0, len(x)).uniform(x.shape) - 0.5) * (2 / 255)
        model = problem("mnist", cache, mnist, items=1).model
        lines += [
            "## The same network, beside peers: MNIST",
            "",
            *_measure("mnist", model, x, goal=0.005, wide=False)[0],
        ]
    return lines


NOTE = (
    "Errors are of an item, in bits a dimension. Noise: standard deviation of one probe, over four. Bias, and b, its root mean",
    "square over items and probes: against ours at tolerance 1e-6 with the same probes, so that noise has no part in it. Seconds",
    "to an error: of as many runs as bring noise and b together to that error; *never* where b alone is larger. Of the settings",
    "of peers the first are what they ship or show (k-diffusion's configurations have sigma_min 1e-2, its function tolerance",
    "1e-4; flow_matching's example takes midpoint steps of 0.05, its function has tolerance 1e-5; score_sde starts at 1e-5 with",
    "tolerance 1e-5), then comes the sweep. b of orthogonal probes is that of Hutchinson's on the same grid.",
)
AGAIN = (
    "The best settings of each again, measured instead of reckoned, all probes of an item in one batch, which is cheaper than as",
    "many runs; and the full trace, which flow_matching offers as well. Error: root mean square against the exact trace.",
)
