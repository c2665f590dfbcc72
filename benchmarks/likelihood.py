"""Exact log-likelihoods: error against closed forms, cost, and the noise of probes, beside the recipe of score_sde.

    python benchmarks/likelihood.py --out benchmarks/results/likelihood.md --cache runs/solvers

Sections, all or those named by ``--only``:

    exact     mixtures whose density is known, on six processes, at tolerance 1e-6
    calls     forward passes for a mean error of 1e-3 bits/dim with the exact trace
    probes    noise of one item with one vector-Jacobian product an evaluation
    coverage  how often the stated standard error covers the truth
    bounds    the variational bound of exact denoisers against their densities; what a control variate is worth on a network
    encode    digits to noise and back by 50 calls each way
    time      networks on digits and, with ``--mnist``, MNIST: seconds for equal error, beside k-diffusion and flow_matching
    digits    bits/dim of VP, SubVP and Flow on digits, three seeds each
    mnist     the same on MNIST, with ``--mnist FILE`` (an npz with train_images and test_images); an hour of one core

The peer of the mixtures is the likelihood of Song et al. 2021 as score_sde does it, written out in peers/likelihoods.py; section
``time`` has k-diffusion and flow_matching too, where they are installed.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

import common
from likelihood_peers import section_time
from peers.likelihoods import drawn, score_sde
from problems import F64, Flat, Mixture, _gmm2, _gmm64, _image, problem
from trilemma.data.digits import digits
from trilemma.denoise import Covariances, Denoiser, Preconditioned
from trilemma.likelihood import Control, Likelihood, elbo, encode, fit_schedule, log_likelihood, round_trip
from trilemma.likelihood.bits import bits_per_dim
from trilemma.nets import build
from trilemma.numerics.noise import Noise
from trilemma.numerics.trace import signs
from trilemma.process import EDM, VE, VP, Cosine, Flow, GaussianProcess, SubVP
from trilemma.train.objectives import denoising_loss

LN2 = math.log(2)


@dataclass(frozen=True)
class Setup:
    """How the networks of :func:`section_learned` are made and trained."""

    make: Callable[[], nn.Module]
    values: int
    updates: int
    batch: int


class Case:
    """Draws of a mixture, their densities, and the exact law of x_1 on any process."""

    def __init__(self, name: str, items: int, seed: int = 5) -> None:
        self.law: Mixture = {"gmm2": _gmm2, "gmm64": _gmm64, "image": _image}[name]()
        general = self.law.general()
        self.name, self.size = name, self.law.d
        flat = general.draw(Noise(seed, items))[0]
        self.truth = general.log_prob(flat)
        self.x = flat.reshape(items, 3, 8, 8) if name == "image" else flat

    def run(self, process: GaussianProcess, *, items: int | None = None, **options: object) -> Likelihood:
        """Ours."""
        general = self.law.on(process).general()
        x = self.x[:items]

        def prior(x_1: Tensor) -> Tensor:
            return general.log_prob(x_1.flatten(1), 1.0)

        return log_likelihood(self.law.on(process), x, prior=prior, **options)  # type: ignore[arg-type]

    def error(self, log_prob: Tensor) -> Tensor:
        """In bits a dimension."""
        return (log_prob - self.truth[: len(log_prob)]).abs() / (self.size * LN2)


def section_exact() -> list[str]:
    """Every process against the closed form, and against each other."""
    rows = []
    for name, items in (("gmm2", 32), ("gmm64", 8), ("image", 2)):
        case, found = Case(name, items), []
        for process in (VP(), SubVP(), VE(), EDM(), Flow(), Cosine()):
            one = case.run(process, rtol=1e-6, atol=1e-6)
            found.append(one.log_prob)
            worst = float((one.log_prob - case.truth).abs().max())
            mean_calls = float(one.calls.double().mean())
            stated = float(one.solver_error.max())
            rows.append([name, type(process).__name__, f"{worst:.1e}", f"{stated:.1e}", f"{mean_calls:.0f}"])
            print("exact", *rows[-1], flush=True)
        between = torch.stack(found)
        rows.append(
            [name, "largest difference between two", f"{float((between.amax(0) - between.amin(0)).max()):.1e}", "", ""]
        )
    head = ["data", "process", "worst error, nats", "worst stated error, nats", "calls an item"]
    return ["## Exact denoisers at tolerance 1e-6", "", *common.table(head, rows)]


def section_calls(curves: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Error against forward passes with the exact trace."""
    rows = []
    for name, items in (("gmm2", 128), ("gmm64", 64)):
        case = Case(name, items)
        runs = {f"fixed grid, {steps}": partial(_ours, case, steps=steps) for steps in (24, 32, 48, 64, 96)}
        runs |= {f"adaptive, {tol:g}": partial(_ours, case, rtol=tol, atol=tol) for tol in (1e-3, 1e-4, 5e-5, 1e-5)}
        runs |= {f"score_sde, {tol:g}": partial(_peer, case, tol) for tol in (1e-3, 1e-5)}
        for label, run in runs.items():
            log_prob, calls, most = run()
            error = case.error(log_prob)
            mean = float(error.mean())
            curves.setdefault(f"{name} {label.split(',')[0]}", []).append((calls, mean))
            rows.append(
                [
                    name,
                    label,
                    f"{calls:.0f}",
                    f"{most:.0f}",
                    f"{mean:.1e}",
                    f"{float(error.median()):.1e}",
                    f"{float(error.max()):.1e}",
                ]
            )
            print("calls", *rows[-1], flush=True)
    head = ["data", "method", "forwards an item", "most", "mean error, bits/dim", "median", "worst"]
    note = "Forward passes of an item; adaptive: each item its own, the mean and the most over items."
    return ["## Forward passes with the exact trace", "", note, "", *common.table(head, rows)]


def _ours(case: Case, **options: object) -> tuple[Tensor, float, float]:
    one = case.run(EDM(), **options)
    return one.log_prob, float(one.calls.double().mean()), float(one.calls.max())


def _peer(case: Case, tol: float) -> tuple[Tensor, float, float]:
    log_prob, calls = score_sde(case.law.on(VP()), case.x, tol=tol, exact=True)
    return log_prob, calls, calls


def section_probes() -> list[str]:
    """One probe, R^64: error of an item by the probe alone, against the exact trace on the same grid."""
    case, rows = Case("gmm64", 64), []
    for steps in (32, 64, 96):
        exact = case.run(EDM(), steps=steps).log_prob
        for trace in ("hutchinson", "fresh", "orthogonal"):
            found = case.run(EDM(), steps=steps, trace=trace, probes=8).samples
            noise = float((found - exact[:, None]).abs().mean()) / (64 * LN2)
            rows.append([steps, trace, f"{noise:.2e}", f"{float(case.error(found[:, 0]).mean()):.2e}"])
            print("probes", *rows[-1], flush=True)
    found = []
    for seed in range(4):
        with drawn(signs(Noise(seed, len(case.x)), 1, case.x)[0]):
            found.append(score_sde(case.law.on(VP()), case.x)[0])
    peer = torch.stack(found)
    off = (peer - case.truth).abs().mean() / (64 * LN2)
    rows.append(["RK45, 1e-5", "score_sde", "", f"{float(off):.2e}"])
    head = ["evaluations", "probes", "mean noise of one probe, bits/dim", "mean error, bits/dim"]
    return ["## One vector-Jacobian product an evaluation, R^64", "", *common.table(head, rows)]


def section_coverage() -> list[str]:
    """500 repetitions of one item."""
    case, rows, n = Case("gmm64", 1), [], 500
    exact = case.run(EDM(), steps=24).log_prob
    case.x = case.x.expand(n, -1)
    for trace, probes in (
        ("hutchinson", 4),
        ("hutchinson", 16),
        ("hutchinson", 32),
        ("orthogonal", 16),
        ("hutch++", 8),
    ):
        found = case.run(EDM(), steps=24, trace=trace, probes=probes)
        share = float(((found.log_prob - exact).abs() < found.stderr).double().mean())
        expected = 2 * student.cdf(1, probes - 1) - 1
        low, high = found.interval()
        within = float(((low < exact) & (exact < high)).double().mean())
        rows.append([trace, probes, f"{share:.1%}", f"{expected:.1%}", f"{within:.1%}"])
        print("coverage", *rows[-1], flush=True)
    head = ["trace", "probes", "within one stated standard error", "Student's law", "within the interval of 95 %"]
    return ["## The stated standard error, 500 repetitions of one item of gmm64", "", *common.table(head, rows)]


def section_bounds(cache: Path) -> list[str]:
    """The exact denoisers: for the items of a component, its Gaussian as control and a schedule fitted to what is left."""
    from trilemma.data.digits import digits

    rows = []
    for name, items, samples in (("gmm2", 128, 2**15), ("gmm64", 64, 2**16), ("image", 16, 2**16)):
        case, seen = Case(name, items), Case(name, 512, seed=6)
        model, general = case.law.on(VP()), case.law.on(VP()).general()
        law = general.covariances
        own, theirs = (one.law.mixing(one.x, torch.zeros((), dtype=F64))[0].argmax(1) for one in (case, seen))
        gap, error = torch.zeros(2, items, dtype=F64)
        began = time.process_time()
        for k in own.unique():
            one = Covariances(
                law.values[k, None], None if law.basis is None else law.basis[k, None], law.floor[k, None]
            )
            control = Control(case.law.means[k], one)
            schedule = fit_schedule(model, seen.x[theirs == k], control=control, batch=4096)
            at = (own == k).nonzero()[:, 0]
            for part in at.split(4):
                bound = elbo(
                    model, case.x[part], samples=samples, control=control, schedule=schedule, seeds=part, batch=4096,
                    prior=lambda x_1, law=general: law.log_prob(x_1.flatten(1), 1.0),
                )  # fmt: skip
                gap[part], error[part] = bound.log_prob - case.truth[part], bound.stderr
        seconds = time.process_time() - began
        mean, stderr = float(gap.mean()), float(error.square().sum().sqrt()) / items
        rows.append([name, items, samples, f"{mean:+.4f}", f"{stderr:.4f}", f"{seconds:.0f}"])
        print("bounds", *rows[-1], flush=True)
    head = ["data", "items", "draws an item", "mean bound less log-density, nats", "standard error", "CPU seconds"]
    lines = ["## The variational bound of exact denoisers", "", *common.table(head, rows)]
    model, x, own = problem("digits", cache).model, digits("test").images[:64], digits("train").images
    x, own = (one + (Noise(0, len(one)).uniform(one.shape) - 0.5) / 8 for one in (x, own))
    bounds = {
        "none given": elbo(model, x, batch=4096),
        "Control.fit": elbo(model, x, control=Control.fit(own), batch=4096),
    }
    rows = []
    for label, bound in bounds.items():
        rows.append([label, f"{float(bound.log_prob.mean()):.3f}", f"{float(bound.stderr.square().mean().sqrt()):.3f}"])
        print("bounds", *rows[-1], flush=True)
    note = "The digits network on images with uniform noise in their bins, 64 draws an image."
    return [*lines, note, "", *common.table(["control", "mean bound, nats", "standard error of an image"], rows)]


def section_encode(cache: Path) -> list[str]:
    """The digits network of the solver benchmark: what a round trip loses, and how far latents are from those of 400 steps."""
    from trilemma.data.digits import digits

    model, x, rows = problem("digits", cache).model, digits("test").images, []
    for name, part in (("first 100", x[:100]), ("next 100", x[100:200])):
        exact = encode(model, part, steps=400).z.double()
        for label, reversible in (("Adams", False), ("reversible", True)):
            trip = round_trip(model, part, reversible=reversible)
            off = (trip.latent.z.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
            up, down = trip.calls
            numbers = (float(value) for value in (trip.error.mean(), trip.error.max(), off.mean()))
            rows.append([name, label, f"{up} + {down}", *(f"{value:.1e}" for value in numbers)])
            print("encode", *rows[-1], flush=True)
    head = ["test images", "scheme", "calls", "round trip, mean", "worst", "latents against 400 steps, mean"]
    note = "Relative, Euclidean. The centre and the width of the levels were chosen on the first 100 images."
    return ["## Encoding digits and back", "", note, "", *common.table(head, rows)]


def _learned(
    data: Tensor, make: Callable[[], nn.Module], process: GaussianProcess, seed: int, setup: Setup
) -> Denoiser:
    """A network trained on dequantised data by one law of noise levels, its average over the last updates."""
    torch.manual_seed(seed)
    model = Preconditioned(make(), process, "v", sigma_data=float(data.std()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, setup.updates, pct_start=0.05)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    for i in range(setup.updates):
        noise = Noise(seed * setup.updates + i, setup.batch)
        x = data[(noise.at(0).uniform((setup.batch,)) * len(data)).long().clamp(max=len(data) - 1)]
        x = x + (noise.at(3).uniform(x.shape) - 0.5) * (2 / (setup.values - 1))  # uniform dequantisation
        level = torch.exp(1.6 * noise.at(1).normal((setup.batch,), dtype=F64) - 0.8)
        loss = denoising_loss(model, x, process.time(-2 * level.log()), noise.at(2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    return model.eval()


def section_learned(name: str, setup: Setup, mnist: Path | None = None) -> list[str]:
    """The same net trained on three processes, three seeds each, by one objective."""
    if name == "digits":
        data, raw = digits("train").images, digits("test").images[:100]
    else:
        assert mnist is not None
        with np.load(mnist) as file:
            data, raw = (torch.from_numpy(file[f"{part}_images"]) for part in ("train", "test"))
        data, raw = data[:, None].float() / 127.5 - 1, raw[:100, None].float() / 127.5 - 1
    raw = ((raw + 1) * ((setup.values - 1) / 2)).round().to(torch.uint8)
    rows, means = [], []
    for process in (VP(), SubVP(), Flow()):
        each = []
        for seed in range(3):
            model = _learned(data, setup.make, process, seed, setup)
            found = bits_per_dim(
                model, raw, values=setup.values, dequantise="uniform", steps=64, trace="orthogonal", probes=2
            )
            low, high = found.interval
            each.append(found.value)
            rows.append(
                [type(process).__name__, seed, f"{each[-1]:.3f}", f"{low:.3f} to {high:.3f}"]
                + [f"{found.solver_error:.0e}"]
            )
            print(name, *rows[-1], flush=True)
        mean, spread = float(np.mean(each)), float(np.std(each, ddof=1))
        half = float(student.ppf(0.975, 2)) * spread / math.sqrt(3)
        means.append([type(process).__name__, f"{mean:.3f}", f"{mean - half:.3f} to {mean + half:.3f}"])
    head = ["process", "seed", "bits/dim", "95 % over images", "solver error"]
    note = f"100 test images of {setup.values} values, uniform dequantisation; {setup.updates} updates of {setup.batch} by one"
    return [
        f"## {name}: VP, SubVP and Flow",
        "",
        note,
        "network, one objective, one law of noise levels. The second table is over the seeds (Student's law).",
        "",
        *common.table(head, rows),
        *common.table(["process", "mean bits/dim", "95 % over seeds"], means),
    ]


def draw(curves: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """Error against forward passes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, data in zip(axes, ("gmm2", "gmm64")):
        for label, points in curves.items():
            if label.startswith(data + " "):
                axis.loglog(*zip(*points), "o-", label=label.removeprefix(data + " "))
        axis.axhline(1e-3, color="grey", lw=0.5)
        axis.set(title=data, xlabel="forward passes an item, exact trace")
    axes[0].set_ylabel("mean error, bits/dim")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run the sections and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("exact", "calls", "probes", "coverage", "bounds", "encode", "time", "digits", "mnist")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--cache", type=Path, default=common.ROOT / "runs" / "solvers", help="where networks are kept")
    parser.add_argument("--updates", type=int, default=3000, help="of the networks of the digits; MNIST: half")
    parser.add_argument(
        "--mnist", type=Path, default=None, help="npz with train_images and test_images; for mnist and time"
    )
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    curves: dict[str, list[tuple[float, float]]] = {}
    small = Setup(lambda: Flat(build("mlp", features=64, width=192, depth=3)), 17, given.updates, 128)
    unet = {"channels": 1, "widths": [16, 32, 32], "blocks": 1, "attention": [2]}
    large = Setup(lambda: build("unet", **unet), 256, given.updates // 2, 64)
    if "mnist" in given.only and given.mnist is None:
        print("mnist: left out, there is no --mnist")
        given.only = [name for name in given.only if name != "mnist"]
    sections: dict[str, Callable[[], list[str]]] = {
        "exact": section_exact,
        "calls": lambda: section_calls(curves),
        "probes": section_probes,
        "coverage": section_coverage,
        "bounds": lambda: section_bounds(given.cache),
        "encode": lambda: section_encode(given.cache),
        "time": lambda: section_time(given.cache, given.mnist),
        "digits": lambda: section_learned("digits", small),
        "mnist": lambda: section_learned("mnist", large, given.mnist),
    }
    lines = [line for name in names if name in given.only for line in sections[name]()]
    if curves and given.out is not None:
        picture = given.out.with_name(f"{given.out.stem}_calls.png")
        draw(curves, picture)
        lines += [f"![Error against forward passes]({picture.name})", ""]
    common.document(
        "Likelihood",
        "benchmarks/likelihood.py",
        ("scipy", "k-diffusion", "flow_matching", "torchdiffeq"),
        lines,
        given.out,
    )


if __name__ == "__main__":
    main()
