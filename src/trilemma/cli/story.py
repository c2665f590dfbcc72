"""The demo's story of one denoiser: its figures and pictures in the order in which one wants to see them."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from .demo import Results
from .lessons import SOLVERS, lessons
from .page import Line, chart, figure, image, page, table, tiles
from .study import Drawn

__all__ = ["tell"]


def tell(results: Results) -> str:
    """The report as one HTML document."""
    figures = results.figures
    body = [
        "<h1>One denoiser, sampled in many ways</h1>",
        f'<p class="lead">A network of {figures["model"]["parameters"] / 1e6:.2f} million weights learned to remove noise from '
        f"{figures['data']['train']} real handwritten digits, in {figures['seconds']['training']:.0f} seconds. "
        "Everything below comes from that one network.</p>",
        _headline(figures),
        "<h2>What was found</h2>",
        "<ul>" + "".join(f"<li>{line}</li>" for line in lessons(figures)) + "</ul>",
        '<label class="switch"><input type="checkbox" id="raw"> show samples as they are, 8 by 8, not smoothed</label>',
        _samples(results),
        _guidance(results),
        _forward(results),
        _reverse(results),
        _cost(results),
        _errors(figures),
        _copies(results),
        _table(figures),
        _made(figures),
    ]
    return page("trilemma: one denoiser, sampled in many ways", body)


def _headline(figures: dict[str, Any]) -> str:
    chain, fast, guided = (figures["methods"][key] for key in ("ddpm", "dpmpp_2m", "guidance_3"))
    floor = figures["floor"]["frechet_distance"]
    return tiles(
        [
            (f"{guided['class_agreement']:.1%}", "of the samples at guidance 3 are the digit that was asked for"),
            (
                f"{chain['frechet_distance'] / floor:.2f} ×",
                f"the Fréchet distance of real unseen digits, for DDPM with {chain['steps']} steps (1 is as good as real)",
            ),
            (
                f"{chain['calls'] / fast['calls']:.0f} × fewer",
                f"network calls with DPM-Solver++(2M), at {fast['frechet_distance'] / floor:.2f} × that distance",
            ),
            (
                f"{figures['seconds']['training']:.0f} s",
                f"of training on {figures['machine']['processors']} processors",
            ),
        ]
    )


def _sweep(figures: dict[str, Any], rule: str) -> list[tuple[int, float]]:
    """Calls and Frechet distance of one solver, from few calls to many."""
    return [(m["calls"], m["frechet_distance"]) for m in figures["sweep"] if m["rule"] == rule]


def _by_class(images: Tensor, labels: Tensor, rows: int) -> Tensor:
    """The first images of every class, one class a column; a class with too few begins again."""
    picked = []
    for label in range(10):
        mine = images[labels == label]
        picked.append(mine[torch.arange(rows) % len(mine)])
    return torch.stack(picked, 1).flatten(0, 1)


def _note(result: Drawn) -> str:
    return (
        f"{result.calls} calls, {result.seconds:.1f} s for {len(result.images)} images<br>"
        f"Fréchet distance {result.frechet}, agreement {result.agreement.value:.1%}"
    )


def _samples(results: Results) -> str:
    labels = results.pictures["labels"]
    floor = results.figures["floor"]
    real = figure(
        image(_by_class(results.pictures["real"], labels, 6), columns=10, scale=5, smooth=True, alt="real digits"),
        "Real digits, held out",
        f"neither network has seen them<br>Fréchet distance {floor['frechet_distance']:.2f} (the floor), "
        f"agreement {floor['class_agreement']:.1%}",
    )
    cards = []
    for result in (results.drawn[key] for key in ("ddpm", "ddim", "dpmpp_2m")):
        shown = image(
            _by_class(result.images, labels, 6), columns=10, scale=5, smooth=True, alt=f"samples: {result.method.name}"
        )
        cards.append(figure(shown, result.method.name, _note(result)))
    return (
        "<h2>Samples</h2><p>One column a class, 0 to 9. The three samplers share the network and the seeds; DDIM and "
        "DPM-Solver++ follow the same path from the same noise, so their digits are the same ones.</p>"
        f'<div class="row">{real}{"".join(cards)}</div>'
    )


def _guidance(results: Results) -> str:
    strips = []
    for result in (results.drawn[key] for key in ("guidance_0", "guidance_1", "guidance_3")):
        pairs = (
            _by_class(result.images, results.pictures["labels"], 4)
            .unflatten(0, (2, 2, 10))
            .transpose(1, 2)
            .flatten(0, 2)
        )
        strips.append(
            figure(
                image(pairs, columns=20, scale=5, smooth=True, alt=result.method.name),
                result.method.name,
                _note(result),
            )
        )
    return (
        "<h2>Guidance</h2><p>The same noise, three strengths; two columns a class. 0 ignores the class that was asked for, 1 is "
        "the conditional model as trained, 3 exaggerates what tells the class from the others.</p>"
        f'<div class="row">{"".join(strips)}</div>'
    )


def _strip(images: Tensor, captions: Sequence[str], *, scale: int, alt: str) -> str:
    """Rows of images with a caption under each column."""
    columns, width = len(captions), (images.shape[-1] + 1) * scale
    cells = "".join(f'<span style="width: {width}px">{escape(caption)}</span>' for caption in captions)
    return image(images, columns=columns, scale=scale, alt=alt) + f'<div class="labels">{cells}</div>'


def _levels(values: Sequence[float]) -> list[str]:
    return ["clean" if value > 30 else "noise" if value < -30 else f"{value:+.1f}" for value in values]


def _forward(results: Results) -> str:
    captions = _levels(results.figures["log_snr"]["forward"])
    return (
        "<h2>Forward: how the digits are lost</h2><p>Real digits on the straight path to noise, x<sub>t</sub> = (1 − t) x + t ε. "
        "Below each column its log-SNR. The network is trained on all of them at once: given x<sub>t</sub>, what was x?</p>"
        + figure(
            _strip(results.pictures["forward"], captions, scale=9, alt="digits under growing noise"), "Adding noise"
        )
    )


def _reverse(results: Results) -> str:
    states, guesses = results.pictures["states"], results.pictures["guesses"]
    rows = torch.stack([states, guesses], 1).flatten(0, 2).clamp(-1, 1)
    captions = _levels(results.figures["log_snr"]["reverse"])
    return (
        "<h2>Reverse: how new ones appear</h2><p>The digits 2 to 5, each in two rows: the state x<sub>t</sub>, and what the "
        "network takes it for, E[x | x<sub>t</sub>]. At first the guess is the average digit of the class; details come as the "
        "noise goes.</p>" + figure(_strip(rows, captions, scale=9, alt="from noise to digits"), "Removing noise")
    )


def _cost(results: Results) -> str:
    floor = results.figures["floor"]["frechet_distance"]
    lines = [Line(name, _sweep(results.figures, rule)) for rule, name in SOLVERS.items()]
    calls = [x for line in lines for x, _ in line.points]
    lines.append(Line("real digits: the floor", [(min(calls), floor), (max(calls), floor)], dashed=True, dots=False))
    drawing = chart(
        lines, x="calls of the network for a sample", y="Fréchet distance", log_x=True, log_y=True, width=760
    )
    return (
        "<h2>Quality against cost</h2><p>The same network on the same time grid, with fewer and fewer calls. The order of a "
        f"solver is what separates the lines on the left.</p>{figure(drawing, 'Fréchet distance, lower is better')}"
    )


def _errors(figures: dict[str, Any]) -> str:
    errors = figures["loss_by_noise"]
    lines = [
        Line("network, held-out digits", _values(errors["held_out"])),
        Line("network, digits it was trained on", _values(errors["seen"])),
        Line("perfect memory of the training digits, held-out digits", _values(errors["memory"])),
        Line("no denoiser: the noise left in", _noise_left(_values(errors["held_out"])), dashed=True, dots=False),
    ]
    by_noise = chart(
        lines, x="log-SNR (noise on the left, clean on the right)", y="error a pixel (RMS)", y_zero=True, width=760
    )
    loss = figures["loss"]
    size = max(1, len(loss) // 60)
    means = [
        (loss[min(i + size, len(loss)) - 1][0], sum(value for _, value in loss[i : i + size]) / len(loss[i : i + size]))
        for i in range(0, len(loss), size)
    ]
    curve = chart([Line("training loss", means, dots=False)], x="update", y="loss", log_y=True, width=760, height=240)
    return (
        "<h2>The loss by noise level</h2><p>How far the network's E[x | x<sub>t</sub>] is from the truth. A gap between the "
        "first two lines is over-fitting. The third is the exact answer for a world that holds only the training digits: to be "
        "better than it on unseen digits is what learning means.</p>"
        + figure(by_noise, "Denoising error by noise level")
        + figure(curve, "Training loss", f"means of {size} updates")
    )


def _values(rows: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Levels and errors, without the intervals."""
    return [(row[0], row[1]) for row in rows]


def _noise_left(rows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The error of x_t / alpha, which is sigma / alpha, as far as it fits the chart."""
    top = max(error for _, error in rows)
    return [(level, math.exp(-level / 2)) for level, _ in rows if math.exp(-level / 2) < 1.1 * top]


def _copies(results: Results) -> str:
    shown = results.drawn["ddim"].images[:20]
    pairs = torch.stack([shown, results.pictures["nearest"][:20]]).flatten(0, 1)
    mine, usual = (results.figures["copying"][key] for key in ("samples", "held_out"))
    note = f"median distance {mine:.3f} a pixel; real unseen digits: {usual:.3f}"
    return (
        "<h2>New digits or copies?</h2><p>Samples of DDIM above, and below each one the training digit nearest to it.</p>"
        + figure(
            image(pairs, columns=20, scale=5, smooth=True, alt="samples and their nearest training digits"),
            "Nearest training digits",
            note,
        )
    )


def _table(figures: dict[str, Any]) -> str:
    floor = figures["floor"]
    rows = []
    for m in (floor, *figures["methods"].values()):
        rows.append(
            [
                "Real digits, held out" if m is floor else m["name"],
                "" if m is floor else str(m["calls"]),
                "" if m is floor else f"{m['seconds']:.2f}",
                "{:.3f} [{:.3f}, {:.3f}]".format(m["frechet_distance"], *m["frechet_distance_95"]),
                f"{m['frechet_distance'] / floor['frechet_distance']:.2f}",
                "{:.1%} [{:.1%}, {:.1%}]".format(m["class_agreement"], *m["class_agreement_95"]),
            ]
        )
    header = ["", "calls", "seconds, in all", "Fréchet distance", "× floor", "class agreement"]
    count = figures["data"]["held_out"]
    return (
        f"<h2>All figures</h2><p>{count} samples each, with the labels of the {count} held-out digits. Distances are between "
        f"features of a small classifier trained on the same {figures['data']['train']} digits, samples against training digits; "
        "they compare runs of this report, not papers. Brackets are 95 % intervals, of a distance for its value at ever more "
        "samples, which is less than at few. Seconds are of all samples together, measured once. "
        "DDPM steps evenly in time, the others in log-SNR; the guidance rows are "
        "DPM-Solver++(2M) with 20 steps.</p>" + table(header, rows, marked=[0])
    )


def _made(figures: dict[str, Any]) -> str:
    machine, seconds, settings = figures["machine"], figures["seconds"], figures["settings"]
    lines = [
        f"denoiser   {figures['model']['network']}, {figures['model']['parameters']:,} weights, {figures['model']['denoiser']}",
        f"training   {figures['model']['updates']} updates, {seconds['training']:.0f} s; "
        f"sampling and measuring {seconds['sampling']:.0f} s; "
        f"whole command {seconds['whole_command']:.0f} s",
        f"machine    {machine['device']}, {machine['architecture']}, {machine['processors']} processors, "
        f"{machine['threads']} threads",
        f"versions   trilemma {machine['trilemma']}, torch {machine['torch']}, python {machine['python']}",
        f"command    trilemma demo --steps {settings['steps']} --chain {settings['chain']} --seed {settings['seed']}",
        "data       Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), as shipped with scikit-learn",
    ]
    return f"<h2>How this was made</h2><pre>{escape(chr(10).join(lines))}</pre>"
