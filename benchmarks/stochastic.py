"""How near the law of stochastic samples is to the true one, at few calls.

    python benchmarks/stochastic.py --out benchmarks/results/stochastic.md

On the mixtures of `problems.py`: a sliced Wasserstein distance, the mean over directions of the integral of |F_n - F| with F the
exact distribution function of the projected mixture; the total variation between the shares of the modes and their weights; and
the spread inside modes, the mean squared Mahalanobis distance to the nearest mode over the dimension, 1 for the law itself: below
it a sampler makes its samples too clean. The first two are given as multiples of their *floor*, what as many exact samples have
on average over eight draws: at 1 the samples are as good as exact ones of that number.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import common
from problems import F64, Mixture, problem
from trilemma.numerics.noise import Noise
from trilemma.process import GaussianProcess
from trilemma.process.grid import karras_grid, log_snr_grid
from trilemma.sampling import Rule, ddpm, dpmpp_2m, exponential, sample
from trilemma.sampling.sa import Band, Constant, Extended, er_sde, sa_solver
from trilemma.sampling.stochastic import ancestral, gaussian_error
from trilemma.sampling.tune_sde import tune_sde

Grid = Callable[[GaussianProcess, int], Tensor]
CALLS = (10, 20)


@dataclass(frozen=True)
class Distance:
    """Distances of samples to a law.

    Args:
        wasserstein: sliced, in units of the data.
        variation: of the shares of the modes.
        spread: inside the modes.
    """

    wasserstein: float
    variation: float
    spread: float


class Law:
    """The distances of samples to the law of a mixture, and their floor.

    Args:
        model: the mixture.
        n: number of samples that will be judged.
        directions: number of projections; evenly spread in the plane, random above.
    """

    def __init__(self, model: Mixture, n: int, directions: int = 64) -> None:
        self.model, self.n = model, n
        generator = torch.Generator().manual_seed(7)
        if model.d == 2:
            angle = torch.arange(directions, dtype=F64) * math.pi / directions
            self.directions = torch.stack([angle.cos(), angle.sin()], 1)
        else:
            raw = torch.randn(directions, model.d, generator=generator, dtype=F64)
            self.directions = raw / raw.norm(dim=1, keepdim=True)
        self.centre = self.directions @ model.means.T  # (directions, K)
        inside = torch.einsum("sd,kdr->skr", self.directions, model.basis).square()
        gap = model.values - model.floor[:, None]
        self.width = ((inside * gap).sum(-1) + model.floor).sqrt()
        reach = float((self.centre.abs() + 6 * self.width).max())
        self.edges = torch.linspace(-reach, reach, 2001, dtype=F64)
        centre, width, self.middle = self.centre[:, None], self.width[:, None], (self.edges[1:] + self.edges[:-1]) / 2
        self.cdf = torch.special.ndtr((self.middle[:, None] - centre) / width).mean(-1)  # (directions, places)
        exact = [self.of(model.general().draw(Noise(1000 + k, n))[0].reshape(n, -1)) for k in range(8)]
        self.floor = Distance(*(sum(getattr(e, f) for e in exact) / 8 for f in ("wasserstein", "variation", "spread")))

    def of(self, x: Tensor) -> Distance:
        """The distances of samples ``(n, d)``."""
        x, total = x.double().flatten(1), 0.0
        for direction, true in zip(self.directions, self.cdf):
            found = torch.searchsorted((x @ direction).sort().values, self.middle) / len(x)
            total += float((found - true).abs().sum() * (self.edges[1] - self.edges[0]))
        mode = self.model.mixing(x, torch.zeros((), dtype=F64))[0].argmax(1)
        share = torch.bincount(mode, minlength=self.model.k) / len(x)
        variation = float((share - 1 / self.model.k).abs().sum() / 2)
        return Distance(total / len(self.directions), variation, self.model.spread(x))


def measure(law: Law, model: Mixture, rule: Rule, grid: Grid, calls: int, seed: int = 1) -> Distance:
    """Samples of a rule with so many calls of the denoiser, float32, as multiples of the floor; the spread as it is."""
    x = sample(model, (law.n, model.d), grid(model.process, calls), rule, seeds=seed)
    found = law.of(x)
    return Distance(found.wasserstein / law.floor.wasserstein, found.variation / law.floor.variation, found.spread)


def middle(process: GaussianProcess, steps: int) -> Tensor:
    """Equal steps of log-SNR from sigma/alpha = 7.4 (after a first step from pure noise) to 0.03, then 0."""
    return log_snr_grid(process, steps, low=-4.0, high=7.0)


GRIDS: dict[str, Grid] = {
    "middle: 7.4 to 0.03": middle,
    "log-SNR -6 to 6": lambda process, steps: log_snr_grid(process, steps, low=-6.0, high=6.0),
    "Karras 20 to 0.05": lambda process, steps: karras_grid(process, steps, sigma_min=0.05, sigma_max=20.0),
    "Karras 80 to 0.002": karras_grid,
}
RULES: dict[str, Rule] = {
    "DDPM": ddpm,
    "Analytic-DPM, Gaussian": ancestral(gaussian_error(1.0)),
    "SDE-DPM-Solver++(2M)": exponential(2, 1.0, published=True),
    "exponential(2, eta = 0.5)": exponential(2, 0.5),
    "SA-Solver 3/4, tau = 1 on [0.05, 1]": sa_solver(),
    "SA-Solver 2/2, tau = 1": sa_solver(2, 2, clock=Constant(1.0)),
    "SA-Solver 2/2, tau = 0.5": sa_solver(2, 2, clock=Constant(0.5)),
    "SA-Solver 2/2, ER-SDE's noise": sa_solver(2, 2, clock=Extended()),
    "SA-Solver 3/4, ER-SDE's noise": sa_solver(3, 4, clock=Extended()),
    "SA-Solver 3/4, tau = 1 on [1, 80]": sa_solver(3, 4, clock=Band(1.0, 1.0, 80.0)),
    "ER-SDE-3": er_sde(3),
    "ER-SDE-3, eta = 0.5": er_sde(3, clock=Constant(0.5)),
    "no noise: DPM-Solver++(2M)": dpmpp_2m,
}


CHOSEN = "SA-Solver 2/2, tau = 0.5"


def results(name: str, n: int, seeds: int) -> Iterator[str]:
    """A table for a problem: rules and grids by calls."""
    model = problem(name, Path()).anywhere
    assert isinstance(model, Mixture)
    law = Law(model, n)
    yield f"## {name}: {n} samples in {model.d} dimensions"
    yield ""
    floor = law.floor
    yield f"Floor: W1 {floor.wasserstein:.2e}, variation {floor.variation:.2e}, spread {floor.spread:.3f}."
    yield ""
    rows = []
    for rule in RULES:
        for grid in GRIDS:
            cells = []
            for calls in CALLS:
                runs = [measure(law, model, RULES[rule], GRIDS[grid], calls, seed) for seed in range(1, seeds + 1)]
                d = [sum(getattr(r, f) for r in runs) / seeds for f in ("wasserstein", "variation", "spread")]
                cells.append((d[0], f"{d[0]:.2f}x ({d[1]:.1f}x, {d[2]:.2f})"))
            rows.append((cells[0][0], [rule, grid, *(text for _, text in cells)]))
        print(name, rule, flush=True)
    rows.sort(key=lambda row: row[0])
    yield from common.table(["rule", "grid", *(f"{c} calls" for c in CALLS)], [row for _, row in rows])


def fresh(name: str, n: int, seeds: range = range(301, 309)) -> Iterator[str]:
    """The chosen rule and grid on noises that had no part in the choice: the mean and the worst."""
    model = problem(name, Path()).anywhere
    assert isinstance(model, Mixture)
    law, rows = Law(model, n), []
    for calls in CALLS:
        runs = [measure(law, model, RULES[CHOSEN], middle, calls, seed) for seed in seeds]
        distance, spread = [r.wasserstein for r in runs], [r.spread for r in runs]
        cells = [f"{sum(v) / len(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (distance, spread)]
        rows.append([name, calls, *cells])
    yield from common.table(["problem", "calls", "W1 / floor, mean (range)", "spread, mean (range)"], rows)


def chosen(name: str, n: int, pilots: tuple[int, ...], seeds: range = range(301, 305)) -> Iterator[str]:
    """What `tune_sde` takes, without knowing the law, judged on noises of its own."""
    model = problem(name, Path()).anywhere
    assert isinstance(model, Mixture)
    law, rows = Law(model, n), []
    for calls in CALLS:
        for number in pilots:
            for seed in range(3):
                tuned = tune_sde(model, (number, model.d), calls, seeds=seed, batch=256)
                plan = tuned.plan
                runs = [law.of(sample(model, (n, model.d), plan, seeds=other)) for other in seeds]
                w1 = [r.wasserstein / law.floor.wasserstein for r in runs]
                spread = [r.spread for r in runs]
                cells = [f"{sum(v) / len(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in (w1, spread)]
                rows.append([calls, number, seed, tuned.best.name, *cells, f"{tuned.calls / 1000:.0f} k"])
                print(name, *rows[-1], flush=True)
    yield from common.table(
        ["calls", "pilots", "seed", "chosen", "W1 / floor, mean (range)", "spread, mean (range)", "calls times items"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="number of samples on gmm2")
    parser.add_argument("--wide", type=int, default=2_000, help="number of samples on gmm64, 0 to leave it out")
    parser.add_argument("--seeds", type=int, default=1, help="runs to average")
    parser.add_argument("--out", type=Path, help="page to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "Distance to the law as multiples of the floor: W1 (variation of the modes' shares, spread inside modes; 1 is exact).",
        "All on `Flow`, from pure noise at t = 1, in float32; grids of noise levels mean the same everywhere.",
        "",
        f"Chosen: {CHOSEN}, on the grid `middle`. A search over 80 rules, noises and orders on 14 grids, one seed each,",
        "judged on gmm2 itself, left twelve, and four more seeds this one: the first of the search, ER-SDE's noise, had been",
        "lucky (1.0x on its seed, 1.7x on others, at 10 calls). So it is measured again here on eight seeds that had no part in",
        "any choice. The scatter is that of the samples: single sets of exact ones have 0.5 to 1.8 times the floor. The tables",
        "below are of one seed, so neighbours in them do not differ. The grid ends at sigma/alpha = 0.03, which suits modes of",
        "width 0.1; gmm64 has directions as narrow as that: there the last step makes samples too clean (spread below 1).",
        "",
        *fresh("gmm2", args.samples),
        "`tune_sde` sees only the model. What it cannot tell from none with so many pilots is more than the floor of the samples",
        "that judge here; the more pilots, the nearer it comes:",
        "",
        *chosen("gmm2", args.samples, (768, 3072)),
        *results("gmm2", args.samples, args.seeds),
    ]
    if args.wide:
        lines += results("gmm64", args.wide, args.seeds)
    common.document("Stochastic rules: distance to the law", "benchmarks/stochastic.py", [], lines, args.out)


if __name__ == "__main__":
    main()
