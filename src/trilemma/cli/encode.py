"""``trilemma encode``: items to the standard normal latents that the probability flow makes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["COMMAND", "Encode", "run", "steps_bar"]


@dataclass(frozen=True)
class Encode:
    """Encode data into latents of a trained run; `trilemma decode` leads back.

    Writes one safetensors file: z (standard normal units), labels, and what is needed to go back. Says how well it does.

    Args:
        path: a run, a checkpoint or a model folder.
        config: a preset or a YAML file with any of these settings; flags override it.
        data: what `trilemma train` takes as data; a .npy file of points for a model of points.
        split: train, test or all; what has no division of its own is all train.
        n: how many items, from the first; 0 for all.
        label: encode as of this class, or none for no class; without it each item as of its own.
        steps: calls of the network each way.
        reversible: by the scheme that decodes bit for bit; the file is eight times as large.
        check: decode again and say what is lost.
        out: the file to write.
        device: auto, cpu, cuda, cuda:1.
        batch: items at once; those of a reversible file are decoded in the same batches.
        ema: use the averaged weights.
    """

    path: Positional[str] = "runs/digits"
    config: str | None = None
    data: str = "digits"
    split: str = "test"
    n: int = 64
    label: str | None = None
    steps: int = 50
    reversible: bool = False
    check: bool = True
    out: str = "latents.safetensors"
    device: str = "auto"
    batch: int = 64
    ema: bool = True

    def __post_init__(self) -> None:
        for name, low in (("n", 0), ("steps", 4), ("batch", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {low}")
        if Path(self.out).suffix != ".safetensors":
            raise ValueError(f"out={self.out!r} must end in .safetensors")


COMMAND = Encode


def steps_bar(total: int, label: str) -> Any:
    """A bar over the steps of all batches."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="step", leave=False)


def run(settings: Encode) -> int:
    """Encode, save, report; returns the exit status."""
    import torch

    from ..likelihood import Latent, decode, encode
    from ..train.checkpoint import write_file
    from .items import conditions, open_run, read_items
    from .tuned import fingerprint

    out = Path(settings.out)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: it is a folder, or there is no folder {out.parent}")
    opened = open_run(settings, "encodings")
    x, own = read_items(opened, settings.data, settings.split, settings.n or None)
    labels = conditions(opened, own, settings.label, len(x))
    chunks = torch.arange(len(x)).split(settings.batch)
    latents: list[Latent] = []
    errors: list[Tensor] = []
    ways = 2 if settings.check else 1
    with steps_bar(ways * len(chunks) * settings.steps, "encoding") as bar:
        for items in chunks:
            cond = {} if labels is None else {"label": labels[items]}
            latent = encode(
                opened.model, x[items], steps=settings.steps, reversible=settings.reversible, cond=cond,
                hook=lambda _: bar.update(),
            )  # fmt: skip
            latents.append(latent)
            if settings.check:
                back = decode(opened.model, latent, cond=cond, hook=lambda _: bar.update()).cpu()
                errors.append(
                    (back - x[items]).flatten(1).norm(dim=1) / x[items].flatten(1).norm(dim=1).clamp(min=1e-12)
                )
    tensors = {
        "z": torch.cat([latent.z for latent in latents]).cpu(),
        "steps": torch.tensor(settings.steps),
        "levels": torch.tensor(latents[0].levels, dtype=torch.float64),
        "batch": torch.tensor(settings.batch),
        "weights": torch.tensor(int(fingerprint(opened.model), 16)),
    }
    if settings.reversible:
        tensors["carry"] = torch.cat([latent.carry for latent in latents if latent.carry is not None]).cpu()
    if labels is not None:
        tensors["labels"] = labels
    write_file(out, tensors)
    z = tensors["z"]
    print(f"{len(z)} latents with mean {float(z.mean()):+.3f} and standard deviation {float(z.std()):.3f}: {out}")
    if errors:
        error = torch.cat(errors)
        print(f"round trip: relative error {float(error.mean()):.1e} on average, {float(error.max()):.1e} at most")
    print(f"back:  trilemma decode {settings.path} {out}")
    return 0
