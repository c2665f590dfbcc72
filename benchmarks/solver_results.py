"""Errors of samplers by configuration and number of calls: the file that keeps them, the best of them, tables, a picture."""

import json
import math
from pathlib import Path
from typing import Any

import common

NFE = (5, 8, 10, 15, 20, 30, 50)
PROBLEMS = ("gmm64", "gmm2", "image", "digits", "mnist")
LIMITS = {  # tuned over the best peer with hindsight: the issue's
    "gmm64": {5: 1 / 1.5, 8: 1 / 5, 10: 1 / 5, 15: 1 / 3, 20: 1 / 3, 30: 1 / 5, 50: 1 / 5},
    "gmm2": dict.fromkeys(NFE, 1 / 2),
    "digits": dict.fromkeys((8, 10, 15, 20, 30), 1 / 3),
    "mnist": dict.fromkeys((8, 10, 15, 20, 30), 1 / 3),
}
DEFAULT_LIMITS = {20: 1 / 3, 50: 1 / 10}
SHIPPED = (  # what a user gets who chooses nothing; the default is judged by these
    "diffusers DPM++2[linspace]",
    "diffusers DPM++2[karras]",
    "diffusers UniPC2 bh2[linspace]",
    "diffusers EDMDPM2[karras]",
    "k-diffusion dpmpp_2m[karras]",
    "k-diffusion heun[karras]",
    "NVlabs edm heun rho7",
    "azula DDIM[vp]",
    "azula zEAB2[vp]",
    "azula xEAB2[vp]",
    "azula vAB2[rect]",
)
DEFAULTS = (  # shown beside those
    *SHIPPED,
    "diffusers DDIM[leading]",
    "diffusers Euler[linspace]",
    "diffusers DEIS2[linspace]",
    "diffusers IPNDM4",
    "diffusers FlowMatchEuler[shift1]",
    "dpm-solver multi++2[time_uniform]",
)
Results = dict[str, dict[int, list[float] | str]]  # configuration -> calls -> [rmse, median] or why not


def value(results: Results, name: str, nfe: int, which: int = 0) -> float:
    """An error, or infinity."""
    cell = results.get(name, {}).get(nfe, "")
    return math.inf if isinstance(cell, str) else cell[which]


def best(results: Results, nfe: int, which: int = 0, names: Any = None) -> list[tuple[float, str]]:
    """Errors and names, least first; [(inf, "-")] where nobody has one."""
    rows = sorted((value(results, name, nfe, which), name) for name in (names or results))
    return [row for row in rows if math.isfinite(row[0])] or [(math.inf, "-")]


def worth_keeping(results: Results) -> Results:
    """The defaults, and for every number of calls the best 15, the five best medians and the best of every family."""
    kept = set(DEFAULTS) & set(results)
    for nfe in NFE:
        kept |= {name for _, name in best(results, nfe)[:15] + best(results, nfe, 1)[:5]}
        for family in {name.split()[0] for name in results}:
            kept.add(best(results, nfe, 0, [n for n in results if n.split()[0] == family])[0][1])
    return {name: row for name, row in results.items() if name in kept}


def load(file: Path) -> tuple[dict[str, Results], dict[str, str]]:
    """Peers' results by problem, and the mark of the problem that they belong to."""
    parts = json.loads(file.read_text()) if file.exists() else {}
    results = {
        key: {name: dict(zip(map(int, part["calls"]), row)) for name, row in part["peers"].items()}
        for key, part in parts.items()
    }
    return results, {key: part["mark"] for key, part in parts.items()}


def save(file: Path, known: dict[str, Results], marks: dict[str, str]) -> None:
    """The counterpart of `load`; one configuration a line."""
    parts = []
    for key, results in known.items():
        calls = sorted({nfe for row in results.values() for nfe in row})
        rows = [f"  {json.dumps(n)}: {json.dumps([r.get(c, '') for c in calls])}" for n, r in sorted(results.items())]
        head = f'{json.dumps(key)}: {{"mark": {json.dumps(marks[key])}, "calls": {calls}, "peers": {{'
        parts.append(head + "\n" + ",\n".join(rows) + "\n}}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n")


# Tables


def show(error: float) -> str:
    return f"{error:.1e}" if math.isfinite(error) else "-"


def ratio(own: float, peer: float, limit: float | None = None) -> str:
    """Peer over own, with the verdict on the limit."""
    if not (math.isfinite(own) and math.isfinite(peer)):
        return "-"
    verdict = "" if limit is None else " (yes)" if own <= limit * peer else f" (**no**, {1 / limit:.3g}x)"
    return f"{peer / own:.1f}x{verdict}"


def problem_page(
    problem: str, peers: Results, own: Results, others: Results, costs: dict[tuple[str, int], tuple[int, float]]
) -> list[str]:
    """All tables of one problem.

    Args:
        problem: its name.
        peers: theirs.
        own: ours, ``default`` and ``tuned``.
        others: our registry's.
        costs: calls and seconds of `tune` by problem and number of calls.
    """
    rows, second = [], []
    for nfe in NFE:
        (first, name), (median, middle) = best(peers, nfe)[0], best(peers, nfe, 1)[0]
        shipped, which = best(peers, nfe, 0, SHIPPED)[0]
        (a, a_mid), (b, b_mid) = ([value(own, n, nfe, k) for k in (0, 1)] for n in ("default", "tuned"))
        rows.append(
            (nfe, name, show(first), which, show(shipped), show(a), show(b))
            + (ratio(a, shipped, DEFAULT_LIMITS.get(nfe)), ratio(a, first))
            + (ratio(b, first, LIMITS.get(problem, {}).get(nfe)),)
        )
        hint, mark = best(others, nfe)[0] if others else (math.inf, "-")
        cost = costs.get((problem, nfe))
        second.append(
            (nfe, middle, show(median), show(a_mid), show(b_mid), ratio(b_mid, median), mark, show(hint))
            + (f"{cost[0] / 1000:.0f} k / {cost[1]:.0f} s" if cost else "-",)
        )
    head = ("calls", "best peer with hindsight", "RMSE", "best peer default", "RMSE", "our default", "our tuned")
    tail = ("best default / our default", "best peer / our default", "best peer / tuned")
    lines = [f"## {problem}", "", *common.table((*head, *tail), rows)]
    lines += [
        "The median item; the best rule and grid of our registry with hindsight; what `tune` took: calls times items (limit",
        "192 k) and CPU time:",
        "",
    ]
    head = ("calls", "best median of peers", "median", "our default", "our tuned", "ratio")
    lines += common.table((*head, "best of our registry", "RMSE", "cost of `tune`"), second)
    families = sorted({n.split()[0] for n in peers})
    by_family = []
    for family in families:
        names = [n for n in peers if n.split()[0] == family]
        by_family.append((family, *(show(best(peers, nfe, 0, names)[0][0]) for nfe in NFE)))
    lines += ["Best configuration of each peer:", "", *common.table(("peer", *map(str, NFE)), by_family)]
    named = [(n, *(show(value(peers, n, nfe)) for nfe in NFE)) for n in DEFAULTS if n in peers]
    lines += ["Without hindsight:", "", *common.table(("sampler", *map(str, NFE)), named)]
    return lines


def picture(problem: str, peers: Results, own: Results, file: Path) -> None:
    """Error against calls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in sorted(peers):
        axes.plot(NFE, [value(peers, name, n) for n in NFE], color="0.85", linewidth=0.5)
    axes.plot(NFE, [best(peers, n)[0][0] for n in NFE], color="black", marker=".", label="best peer with hindsight")
    shipped = [best(peers, n, 0, SHIPPED)[0][0] for n in NFE]
    axes.plot(NFE, shipped, color="0.5", linestyle="--", marker=".", label="best peer default")
    for name, colour in (("default", "tab:blue"), ("tuned", "tab:red")):
        if name in own:
            axes.plot(NFE, [value(own, name, n) for n in NFE], color=colour, marker="o", label=f"trilemma, {name}")
    axes.set(xscale="log", yscale="log", xlabel="calls of the denoiser", ylabel="RMSE", title=problem, ylim=(None, 2))
    axes.set_xticks(NFE, [str(n) for n in NFE])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)
