"""Error against calls: every sampler of every peer on every grid of theirs, and ours, on the same denoisers and noises.

    python benchmarks/solvers.py --dpm-solver FOLDER --edm FOLDER --mnist ../shared/data/mnist.npz

Everybody starts from the same normal numbers at the noise where they start by themselves, and is compared with the probability
flow from there (see `problems.py`). The figure is the root mean square error of a coordinate over all items; it is ruled by the
few items near the boundary of a basin, so the median item is given too. A peer runs in float32, as shipped, with the number of
steps whose calls, counted by the denoiser, are at most those of the column. Of the peers' configurations only those that start
at sigma/alpha >= 60 compete. The best of them is chosen for every column with hindsight, which no user has. All are measured at
5, 10 and 30 calls, and at the others if their error or their median is within 3 times the least at one of these,
or among the best two of the peer.
Problems other than the mixtures gmm64 and gmm2 get the leaders on these: for every number of calls the best 15, the five best
medians and the best of each family, and all defaults; `mnist` the best two on the others.

Peers' results are kept in a file and taken from there when it has them for the same denoiser and noises: a network that was
trained on another machine is another denoiser. `--fresh` measures all again.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import common
from peers import Peer
from problems import Mixture, Problem, problem, training_images
from solver_results import (
    DEFAULTS,
    NFE,
    Results,
    best,
    load,
    picture,
    problem_page,
    ratio,
    save,
    show,
    value,
    worth_keeping,
)
from solver_runs import (
    WHOLE,
    Sampler,
    Tuned,
    all_peers,
    contenders,
    default,
    families,
    hindsight,
    measure,
    mine,
    ours,
    registry,
)
from trilemma.evaluate import Moments, frechet_distance
from trilemma.evaluate.extractors import pixels, random_features
from trilemma.numerics.ode import integrate_adaptive
from trilemma.numerics.tableau import DORMAND_PRINCE
from trilemma.sampling import RULES
from trilemma.sampling.flow import flow_field

PROBLEMS = ("gmm64", "gmm2", "image", "digits", "mnist")


# Sections beside the tables of the problems


def checks(task: Problem) -> list[str]:
    """The yardsticks themselves: the mixture against the library's, the truth against our own solver and a finer one."""
    assert isinstance(task.model, Mixture)
    assert isinstance(task.anywhere, Mixture)
    general, far = task.anywhere.general(), 0.0
    for t in (1.0, 0.7, 0.1, 0.01):
        u = torch.tensor(t, dtype=torch.float64)
        w = task.z * t + task.truth() * (1 - t)
        far = max(far, float((task.anywhere(w, u).mean.flatten(1) - general(w.flatten(1), u).mean).abs().max()))
    top, last = 80 / 81, 1e-6
    field = flow_field(task.anywhere.process, task.anywhere)
    end = integrate_adaptive(field, task.z * top, top, last, rtol=1e-9, atol=1e-10, table=DORMAND_PRINCE).y
    truth = task.truth()
    finer = task._flow(task.z * math.sin(math.atan(80)), math.atan(80), 0.0, tol=1e-12)
    rows = [
        ("the mixture against `MixtureDenoiser`, largest difference", show(far)),
        (
            "the truth against our Dormand-Prince in sigma/(alpha + sigma), 1e-9, RMSE",
            show(_rms(end / (1 - last) - truth)),
        ),
        ("the truth against itself at 1e-12, RMSE", show(_rms(finer - truth))),
    ]
    return [f"## Checks of the yardsticks on {task.name}", "", *common.table(("what", "difference"), rows)]


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def to_a_thousandth(task: Problem, peers: dict[str, Peer], known: Results, own: dict[str, Sampler]) -> list[str]:
    """The least number of calls for an RMSE of 1e-3."""
    rows = []
    candidates = {name for nfe in (20, 30) for _, name in best(known, nfe)[:5]} & set(peers)
    for name in sorted(candidates):
        for nfe in range(12, 61):
            cell = measure(task, peers[name], nfe)
            if not isinstance(cell, str) and cell[0] <= 1e-3:
                rows.append((nfe, name, show(cell[0])))
                break
    rows.sort()
    for name, sampler in own.items():
        cells = ((n, mine(task, {name: sampler}, (n,))[name][n]) for n in range(6, 41))
        first = next(((n, c) for n, c in cells if not isinstance(c, str) and c[0] <= 1e-3), None)
        rows.append(
            (first[0], f"trilemma, {name}", show(first[1][0])) if first else ("over 40", f"trilemma, {name}", "")
        )
    return [
        f"## Calls for an RMSE of 1e-3 on {task.name}",
        "",
        "The least number at which the error is reached; limit 10 for ours. Peers: the five best at 20 and at 30 calls.",
        "",
        *common.table(("calls", "sampler", "RMSE there"), rows),
    ]


def fresh(task: Problem, peers: dict[str, Peer], known: Results, own: dict[str, Sampler]) -> list[str]:
    """The leaders on items that had no part in choosing them."""
    rows = []
    for nfe in (5, 8, 10, 15, 20):
        names = [name for _, name in best(known, nfe)[:5] if name in peers]
        found: Results = {name: {nfe: measure(task, peers[name], nfe)} for name in names}
        (first, name), (middle, _) = best(found, nfe)[0], best(found, nfe, 1)[0]
        row = mine(task, own, (nfe,))
        cells = [(value(row, n, nfe), value(row, n, nfe, 1)) for n in own]
        figures = [f"{show(a)} / {show(b)} ({ratio(a, first)}, {ratio(b, middle)})" for a, b in cells]
        rows.append((nfe, name, f"{show(first)} / {show(middle)}", *figures))
    return [
        f"## {len(task.z)} other items of {task.name}",
        "",
        "The five best peers of each line above, on noises that had no part in choosing them: RMSE / median of the best of the",
        "five, and ours with the ratios. So many items make the few that end in another mode a rate and not a stroke of luck.",
        "",
        *common.table(("calls", "best of the five", "its errors", *own), rows),
    ]


def float32_floor(task: Problem, peers: dict[str, Peer], known: Results, own: dict[str, Sampler]) -> list[str]:
    """The least error in float32, whatever it costs."""
    calls = (50, 100, 200, 400)
    leaders = {n for _, n in best(known, 50)[:4]} | {best(known, 50, 1)[0][1]} | (set(DEFAULTS[2:5]) & set(known))
    rows = []
    for name in sorted(leaders & set(peers)):
        row = {nfe: measure(task, peers[name], nfe) for nfe in calls}
        rows.append((name, *(show(value({name: row}, name, nfe)) for nfe in calls)))
    found = mine(task, own, calls)
    rows += [(f"trilemma, {name}", *(show(value(found, name, nfe)) for nfe in calls)) for name in found]
    return [
        f"## Floor in float32 on {task.name}",
        "",
        "x in float32 from start to end, RMSE; limit 2e-6 for ours.",
        "",
        *common.table(("sampler", *(f"{n} calls" for n in calls)), rows),
    ]


def spreads(tasks: list[Problem], own: dict[str, Sampler]) -> list[str]:
    """Within-mode spread at 10 calls, of many items."""
    rows = []
    for task in tasks:
        assert isinstance(task.model, Mixture)
        x = torch.randn(4000, *task.z.shape[1:], generator=torch.Generator().manual_seed(7)) * 80
        for name, sampler in own.items():
            made = [task.model.spread(sampler(task.model, x, n)) for n in (8, 10, 20)]
            rows.append((task.name, name, *(f"{v:.3f}" for v in made)))
    return [
        "## Within-mode spread",
        "",
        "Mean squared Mahalanobis distance to the nearest mode over the dimension, of 4000 items; limit 0.95 to 1.05 at 10",
        "calls.",
        "",
        *common.table(("problem", "sampler", "8 calls", "10 calls", "20 calls"), rows),
    ]


def ranking(task: Problem, peers: dict[str, Peer]) -> list[str]:
    """The published order at few calls on an image-like spectrum."""
    rows = []
    theirs = {
        "ahead": ("diffusers UniPC3 bh2[karras]", "diffusers DPM++3[karras]", "k-diffusion lms4[karras]"),
        "behind": ("k-diffusion heun[karras]", "k-diffusion dpm_2[karras]"),
    }
    names = {
        "ahead": ("ipndm_3", "ipndm_4", "ipndm_v", "unipc_2", "unipc_3", "dpmpp_3m"),
        "behind": ("heun", "dpm_solver_2"),
    }
    calls = (6, 8, 10)
    for side in ("ahead", "behind"):
        for name in theirs[side]:
            if name in peers:
                cells = [measure(task, peers[name], n) for n in calls]
                rows.append((side, name, *(c if isinstance(c, str) else show(c[0]) for c in cells)))
        own = {f"{name}[karras]": registry(name, "karras") for name in names[side] if name in RULES}
        for name, row in mine(task, own, calls).items():
            rows.append((side, f"trilemma {name}", *(c if isinstance(c, str) else show(c[0]) for c in row.values())))
    return [
        f"## The published ranking at 6 to 10 calls, on {task.name}",
        "",
        "iPNDM (k-diffusion's LMS is its kind for unequal steps), UniPC and DPM-Solver++(3M) ahead of Heun and DPM-Solver-2,",
        "all on the grid of Karras et al. Our `heun` walks sigma/(alpha + sigma), where it is steadier than as published.",
        "",
        *common.table(("published", "sampler", *(f"{n} calls" for n in calls)), rows),
    ]


def quality(tasks: list[Problem], mnist: Path | None, tuned: Sampler, items: dict[str, int]) -> list[str]:
    """Frechet distances of 8 tuned calls and of the same network's 100-call flow, both to the data it was trained on."""
    rows = []
    for task in tasks:
        x = 80 * torch.randn(items[task.name], *task.z.shape[1:], generator=torch.Generator().manual_seed(9))
        data = training_images(task.name, mnist)
        made = {"8, tuned": tuned(task.model, x, 8)} | {f"{n}, default": default(task.model, x, n) for n in (8, 100)}
        for extractor in (pixels(), random_features(tuple(data.shape[1:]))):
            goal = Moments.of(extractor.read(data).features)
            far = {
                name: frechet_distance(Moments.of(extractor.read(images).features), goal)
                for name, images in made.items()
            }
            ends = far["8, tuned"] / far["100, default"] - 1
            rows.append(
                (task.name, len(x), extractor.name, *(f"{v:.4g}" for v in far.values()))
                + (f"{ends:+.1%} ({'yes' if abs(ends) <= 0.05 else '**no**'})",)
            )
    return [
        "## Frechet distance of 8 calls",
        "",
        "Of samples to the training images, in pixels and in features of a random network, all columns from the same noises;",
        "limit 5 % between 8 tuned calls and the flow in 100 calls of the same network.",
        "",
        *common.table(
            ("network", "samples", "features", "8, tuned", "8, default", "100, default", "tuned / 100 - 1"), rows
        ),
    ]


def overhead(rounds: int) -> list[str]:
    """Microseconds a call around a free network, for every deterministic rule; `overhead.py` has the peers."""
    import overhead as other

    other.now = time.process_time
    head = ["rule", "16x3x32x32", "4x3x2x2", "at most 50 and 12"]
    names = [name for name, entry in RULES.items() if not entry.stochastic]
    times = []
    for shape in (other.LARGE, other.SMALL):
        jobs = {"": other.free_call(shape)} | {n: other.own(n, shape, preconditioned=False) for n in names}
        found = other.best(jobs, rounds)
        times.append({n: found[n][1] - found[""][1] for n in names})
    rows = []
    for name in names:
        large, small = (t[name] for t in times)
        rows.append((f"`{name}`", f"{large:.0f}", f"{small:.0f}", "yes" if large <= 50 and small <= 12 else "**no**"))
    return [
        "## Overhead",
        "",
        f"Microseconds of CPU time a call beside a free network, the least of {rounds} turns; peers are in",
        "[overhead](overhead.md).",
        "",
        *common.table(head, rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = common.ROOT / "benchmarks/results"
    sections = ("checks", "thousandth", "fresh", "floor", "spread", "ranking", "quality", "overhead")
    parser.add_argument(
        "--only", nargs="*", choices=[*PROBLEMS, *sections], help="problems and sections; all if not given"
    )
    parser.add_argument("--quick", action="store_true", help="32 items, three numbers of calls, no other sections")
    parser.add_argument("--fresh", action="store_true", help="measure peers that the file knows")
    parser.add_argument(
        "--calls", type=int, nargs="*", default=NFE, choices=NFE, help="numbers of calls; all if not given"
    )
    parser.add_argument("--no-registry", action="store_true", help="leave out our own rules with hindsight")
    parser.add_argument(
        "--peers-json", type=Path, default=results / "solvers_peers.json", help="where peers' results are"
    )
    parser.add_argument("--cache", type=Path, default=common.ROOT / "runs/solvers", help="truths and trained networks")
    parser.add_argument("--dpm-solver", type=Path, help="folder of the authors' dpm_solver_pytorch.py")
    parser.add_argument("--edm", type=Path, help="checkout of NVlabs/edm")
    parser.add_argument("--mnist", type=Path, help="npz with train_images")
    parser.add_argument("--pilots", type=int, default=192, help="pilots of `tune`")
    parser.add_argument("--budget", type=int, default=120_000, help="of `tune`, calls times items")
    parser.add_argument("--mnist-samples", type=int, default=1000, help="images for the Frechet distance on MNIST")
    parser.add_argument("--rounds", type=int, default=30, help="turns of the microsecond figures")
    parser.add_argument("--out", type=Path, default=results / "solvers.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    keep = common.repair_torchvision()  # noqa: F841
    begun = time.perf_counter()

    calls = (5, 10, 20) if args.quick else tuple(args.calls)
    chosen = args.only or [*PROBLEMS, *(() if args.quick else sections)]
    peers, missing = families(args)
    print(f"{len(peers)} configurations of peers; {'; '.join(missing) or 'nobody is missing'}", flush=True)
    known, marks = ({}, {}) if args.fresh else load(args.peers_json)
    own = ours(args.pilots, args.budget)
    missing += [] if "tuned" in own else ["our `tune`: not in this checkout"]
    lines: list[str] = []
    tasks: dict[str, Problem] = {}

    def done(part: str) -> None:
        """The page so far, for a run that is stopped."""
        packages = ("diffusers", "k-diffusion", "azula", "smalldiffusion", "flow-matching", "torchdiffeq")
        page = [*lines, *(f"- {line}" for line in missing)]
        common.document("Solvers: error against calls", "benchmarks/solvers.py", packages, page, args.out, show=False)
        print(f"{part}: done after {time.perf_counter() - begun:.0f} s", flush=True)

    def task_of(name: str) -> Problem:
        if name not in tasks:
            tasks[name] = problem(name, args.cache, args.mnist, 32 if args.quick else None)
        return tasks[name]

    for name in [n for n in PROBLEMS if n in chosen]:
        if name == "mnist" and args.mnist is None:
            missing.append("mnist: no --mnist")
            continue
        task = task_of(name)
        if args.quick or marks.get(name) != task.mark():
            asked = contenders(name, known)
            several = {n: peer for n, peer in peers.items() if n in asked} or peers
            found = all_peers(task, several, calls)
            known[name] = found if args.quick else worth_keeping(found)
            if not args.quick:
                marks[name] = task.mark()
                save(args.cache / f"peers_{name}.json", {name: found}, marks)
                save(args.peers_json, known, marks)
        results_own = mine(task, own, calls)
        others = {} if args.no_registry or name == "mnist" else mine(task, hindsight(), calls)
        tuned = own.get("tuned")
        costs = tuned.cost if isinstance(tuned, Tuned) else {}
        lines += problem_page(name, known[name], results_own, others, costs)
        if not args.quick:
            picture(name, known[name], results_own, args.out.with_name(f"solvers_{name}.png"))
            lines += [f"![error against calls](solvers_{name}.png)", ""]
        done(name)

    extra: dict[str, Callable[[], list[str]]] = {
        "checks": lambda: [*checks(task_of("gmm64")), *checks(task_of("gmm2"))],
        "thousandth": lambda: to_a_thousandth(task_of("gmm64"), peers, known.get("gmm64", {}), own),
        "fresh": lambda: [
            line
            for name in WHOLE
            for line in fresh(problem(name, args.cache, items=1000, seed=30_000), peers, known.get(name, {}), own)
        ],
        "floor": lambda: float32_floor(task_of("gmm64"), peers, known.get("gmm64", {}), {"default": default}),
        "spread": lambda: spreads([task_of("gmm64"), task_of("gmm2")], own),
        "ranking": lambda: ranking(task_of("image"), peers),
        "quality": lambda: quality(
            [task_of(name) for name in ("digits", "mnist") if name == "digits" or args.mnist],
            args.mnist,
            own["tuned"],
            {"digits": 4000, "mnist": args.mnist_samples},
        ),
        "overhead": lambda: overhead(args.rounds),
    }
    for name, make in extra.items():
        if name in chosen:
            lines += make()
            done(name)


if __name__ == "__main__":
    main()
