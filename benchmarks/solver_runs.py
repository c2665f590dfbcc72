"""Runs of the solver benchmark: every configuration of every peer, and our samplers, by their errors."""

import argparse
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec

import torch
from torch import Tensor

from peers import End, Late, Peer, Task, from_azula, from_diffusers, from_dpm_solver, from_kdiffusion, from_others
from problems import Counted, Problem
from solver_results import DEFAULTS, LIMITS, NFE, SHIPPED, Results, best, value
from trilemma.denoise import Denoiser
from trilemma.process.grid import GRIDS
from trilemma.sampling import RULES, get_rule, sample

SCREEN = (5, 10, 30)  # calls at which every configuration is measured
HOPELESS = 3.0  # times the least error and the least median at all of them: not measured elsewhere
WHOLE = ("gmm64", "gmm2")  # where all configurations of the peers are measured

# Peers


def families(args: argparse.Namespace) -> tuple[dict[str, Peer], list[str]]:
    """Every configuration of every peer that is there, and the names of those that are not."""
    makers: dict[str, Callable[[], dict[str, Peer]]] = {
        "Diffusers": from_diffusers.configurations,
        "k-diffusion": from_kdiffusion.configurations,
        "azula": from_azula.configurations,
        "DPM-Solver": lambda: from_dpm_solver.configurations(args.dpm_solver),
        "smalldiffusion": from_others.smalldiffusion,
        "flow_matching": from_others.flow_matching,
        "torchdiffeq": from_others.torchdiffeq,
        "NVlabs edm": lambda: from_others.edm(args.edm),
    }
    found: dict[str, Peer] = {}
    missing = []
    for name, make in makers.items():
        try:
            found |= make()
        except ImportError as error:
            missing.append(f"{name}: not here ({error})")
    return found, missing


def errors(x: Tensor, truth: Tensor) -> list[float] | str:
    """Root mean square over all coordinates, and of the median item."""
    each = (x.double() - truth).square().flatten(1).mean(1)
    if not bool(torch.isfinite(each).all()):
        return "not finite"
    return [float(f"{v:.4g}") for v in (float(each.mean().sqrt()), float(each.median().sqrt()))]


@torch.no_grad()
def measure(task: Problem, peer: Peer, nfe: int) -> list[float] | str:
    """Errors of a peer at a number of calls, or why there are none."""
    counted = Task(task.z.float(), lambda w, u: task.anywhere(w, u).mean)
    try:
        end = peer(counted, nfe)
    except Late as error:
        return str(error)
    except Exception as error:  # whatever a peer raises is its result
        return f"{type(error).__name__}: {error}"[:80]
    if counted.calls > nfe:
        return f"takes {counted.calls} calls"
    return compare(task, end)


def compare(task: Problem, end: End) -> list[float] | str:
    """An end against the truth from the same start; see `Problem.exact`."""
    return errors(end.x, task.truth(end.start, end.end if task.exact else 0.0))


def contenders(name: str, known: dict[str, Results]) -> set[str]:
    """Whom to measure: everybody (an empty set) on `WHOLE`; elsewhere those kept there, on a costly network the best two."""
    if name in WHOLE:
        return set()
    rows = [results for key, results in known.items() if key in WHOLE]
    if name != "mnist":
        return {n for results in rows for n in results}
    return {n for results in known.values() for nfe in NFE for _, n in best(results, nfe)[:2]} | set(SHIPPED)


def all_peers(task: Problem, peers: dict[str, Peer], calls: tuple[int, ...]) -> Results:
    """Every configuration at `SCREEN`, and at the other numbers of calls those that were not hopeless there."""
    since = time.perf_counter()
    results = _measured(task, peers, [n for n in calls if n in SCREEN] or calls, {}, since)
    screened = [n for n in SCREEN if n in calls]
    least = {(n, which): best(results, n, which)[0][0] for n in screened for which in (0, 1)}
    chosen = {name for name in peers if any(value(results, name, *at) <= HOPELESS * low for at, low in least.items())}
    for family in {name.split()[0] for name in peers}:
        members = [name for name in peers if name.split()[0] == family]
        chosen |= {name for n in screened for _, name in best(results, n, 0, members)[:2]}
    hopeful = {name: peer for name, peer in peers.items() if name in chosen | set(DEFAULTS)}
    print(f"  {task.name}: {len(hopeful)} of {len(peers)} configurations go on", flush=True)
    return _measured(task, hopeful, [n for n in calls if n not in results[next(iter(peers))]], results, since)


def _measured(task: Problem, peers: dict[str, Peer], calls: Iterable[int], results: Results, since: float) -> Results:
    """Results with more numbers of calls."""
    family = ""
    for name, peer in peers.items():
        if name.split()[0] != family:
            print(f"  {task.name}: {time.perf_counter() - since:5.0f} s, now {(family := name.split()[0])}", flush=True)
        row = {nfe: measure(task, peer, nfe) for nfe in calls}
        results[name] = dict(sorted((results.get(name, {}) | row).items()))
    return results


# Ours

Sampler = Callable[[Denoiser, Tensor, int], Tensor]


def registry(rule: str, grid: str) -> Sampler:
    """A rule of the registry on a grid."""

    def run(denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        calls, extra = RULES[rule].calls, RULES[rule].extra
        steps = max(1, (nfe - extra - 1) // calls + 1)  # the last step to t = 0 takes one
        return sample(denoiser, x.shape, GRIDS[grid](denoiser.process, steps), get_rule(rule), x=x)

    return run


def default(denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
    """What a user gets who says nothing but the number of steps."""
    return sample(denoiser, x.shape, nfe, x=x)


class Tuned:
    """The plan that `tune` finds on pilots of its own, and what it took."""

    def __init__(self, pilots: int, budget: int) -> None:
        self.pilots, self.budget, self.problem = pilots, budget, ""
        self.cost: dict[tuple[str, int], tuple[int, float]] = {}

    def __call__(self, denoiser: Denoiser, x: Tensor, nfe: int) -> Tensor:
        from trilemma.sampling.tune import tune

        counted = Counted(denoiser.inner if isinstance(denoiser, Counted) else denoiser)
        since = time.process_time()
        plan = tune(counted, (self.pilots, *x.shape[1:]), nfe, seeds=11, budget=self.budget).plan
        self.cost[self.problem, nfe] = counted.items, time.process_time() - since
        print(f"  {self.problem}: tuned {nfe} calls in {self.cost[self.problem, nfe][1]:.0f} s", flush=True)
        return sample(denoiser, x.shape, plan.ts, plan.rule, x=x)


def ours(pilots: int, budget: int) -> dict[str, Sampler]:
    """What competes; `tune` where this checkout has it."""
    found: dict[str, Sampler] = {"default": default}
    if find_spec("trilemma.sampling.tune"):
        found["tuned"] = Tuned(pilots, budget)
    return found


def hindsight() -> dict[str, Sampler]:
    """Every deterministic rule of the registry on every grid."""
    names = [name for name, entry in RULES.items() if not entry.stochastic]
    return {f"{rule}[{grid}]": registry(rule, grid) for rule in names for grid in GRIDS if grid != "trailing"}


@torch.no_grad()
def mine(task: Problem, samplers: dict[str, Sampler], calls: tuple[int, ...]) -> Results:
    """Our samplers from sigma = 80 in float32, by the same measure."""
    results: Results = {}
    start, truth = task.z.float() * 80, task.truth()
    for name, sampler in samplers.items():
        results[name] = {}
        for nfe in calls:
            counted = Counted(task.model)
            if isinstance(sampler, Tuned):
                sampler.problem = task.name
                if nfe in NFE and nfe not in LIMITS.get(task.name, NFE):
                    continue  # minutes of a network's time, and nothing to compare with
            try:
                x = sampler(counted, start, nfe)
            except ValueError as error:
                results[name][nfe] = str(error)[:80]
                continue
            over = counted.calls > nfe
            results[name][nfe] = f"takes {counted.calls} calls" if over else errors(x, truth)
        if name in ("default", "tuned"):
            print(f"  {task.name}: ours, {name}: {results[name]}", flush=True)
    return results
