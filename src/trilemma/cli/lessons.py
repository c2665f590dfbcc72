"""What the demo's denoiser shows, in sentences that follow from its figures and their intervals.

Two figures differ clearly if their 95 % intervals are disjoint; the times and the distances to copies have none.
"""

from typing import Any

__all__ = ["SOLVERS", "lessons"]

SOLVERS = {"ddpm": "ancestral (DDPM)", "ddim": "DDIM", "dpmpp_2m": "DPM-Solver++(2M)"}


def lessons(figures: dict[str, Any]) -> list[str]:
    """Sentences as HTML, from what story.json holds."""
    return [_speed(figures), _guidance(figures), _learning(figures), _copies(figures), *_below(figures)]


def _apart(a: dict[str, Any], b: dict[str, Any], name: str) -> bool:
    """Whether the intervals of a figure of two methods are disjoint."""
    (a_low, a_high), (b_low, b_high) = a[f"{name}_95"], b[f"{name}_95"]
    return bool(a_low > b_high or b_low > a_high)


def _speed(figures: dict[str, Any]) -> str:
    floor = figures["floor"]["frechet_distance"]
    chain, ddim, fast = (figures["methods"][key] for key in ("ddpm", "ddim", "dpmpp_2m"))

    def times(row: dict[str, Any]) -> str:
        return f"{row['frechet_distance'] / floor:.2f} times the floor"

    if not _apart(fast, chain, "frechet_distance"):
        verdict = "no clear difference from"
    else:
        verdict = "nearer than" if fast["frechet_distance"] < chain["frechet_distance"] else "farther than"
    saved = chain["seconds"] / fast["seconds"]
    faster = f" ({saved:.{0 if saved >= 10 else 1}f} times faster)" if saved > 1.1 else ""
    return (
        f"<b>Speed.</b> Distance to the data of DPM-Solver++(2M) with {fast['calls']} calls: {verdict} DDPM with "
        f"{chain['calls']}, {times(fast)} against {times(chain)}, in {fast['seconds']:.1f} instead of {chain['seconds']:.1f} "
        f"seconds{faster}. DDIM with {ddim['calls']} calls: {times(ddim)}. {_fewest(figures)}"
    )


def _guidance(figures: dict[str, Any]) -> str:
    free, one, three = (figures["methods"][f"guidance_{strength}"] for strength in (0, 1, 3))
    surer = "" if _apart(one, three, "class_agreement") else ", no clear difference,"
    if not _apart(one, three, "frechet_distance"):
        price = "no clear difference"
    elif three["frechet_distance"] > one["frechet_distance"]:
        price = "guided digits are more typical and less varied than real ones"
    else:
        price = "here guidance costs no variety"
    return (
        f"<b>Guidance.</b> From strength 1 to 3 the share of samples that show the digit asked for goes from "
        f"{one['class_agreement']:.1%} to {three['class_agreement']:.1%}{surer} and the Fréchet distance from "
        f"{one['frechet_distance']:.2f} to {three['frechet_distance']:.2f}: {price}. "
        f"Strength 0 ignores the request: {free['class_agreement']:.1%}, where chance is 10%."
    )


def _learning(figures: dict[str, Any]) -> str:
    errors = figures["loss_by_noise"]
    level, model, low, high = min(errors["held_out"], key=lambda row: abs(row[0] - 2))
    memory, memory_low, memory_high = next(row[1:] for row in errors["memory"] if row[0] == level)
    if high < memory_low:
        title = "Learning, not remembering"
    else:
        title = "Remembering, not learning" if memory_high < low else "Learning or remembering? No clear difference"
    return (
        f"<b>{title}.</b> Shown digits it has never seen, under noise of log-SNR {level:.0f}, the network errs by {model:.3f} "
        f"[{low:.3f}, {high:.3f}] a pixel, where black to white is 2; the best that can be done by remembering the training set "
        f"is {memory:.3f} [{memory_low:.3f}, {memory_high:.3f}], and with nothing but the class {errors['held_out'][0][1]:.3f}."
    )


def _copies(figures: dict[str, Any]) -> str:
    mine, usual = figures["copying"]["samples"], figures["copying"]["held_out"]
    return (
        f"<b>Copies.</b> Half of the samples have a training digit within {mine:.3f} a pixel; for real unseen digits that is "
        f"{usual:.3f}. "
        + (
            "Samples are not much nearer to the training set than new real digits are."
            if mine > 0.8 * usual
            else "Samples lie much nearer to the training set than new real digits do: some of it was memorised."
        )
    )


def _below(figures: dict[str, Any]) -> list[str]:
    """A surprise that wants an explanation, where it is clear."""
    floor = figures["floor"]
    rows = [figures["methods"][key] for key in ("ddpm", "ddim", "dpmpp_2m")]
    if not any(
        row["frechet_distance"] < floor["frechet_distance"] and _apart(row, floor, "frechet_distance") for row in rows
    ):
        return []
    return [
        "<b>Below the floor?</b> Yes, that can be: the distance is measured to the training digits, which the network has "
        "seen and the held-out digits have not. It says that samples follow the training digits closely, not that they "
        "are better than real."
    ]


def _fewest(figures: dict[str, Any]) -> str:
    """How many calls each solver needs until no clear difference from real digits is left."""
    floor, found = figures["floor"], []
    for rule, name in SOLVERS.items():
        mine = [m for m in figures["sweep"] if m["rule"] == rule]
        near = [m["calls"] for m in mine if m["frechet_distance_95"][0] <= floor["frechet_distance_95"][1]]
        most = max(m["calls"] for m in mine)
        found.append(f"{name} {min(near) if near else f'more than {most}'}")
    return f"Calls until the distance is not clearly above that of real digits: {', '.join(found)}."
