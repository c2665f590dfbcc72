"""Training a denoiser, as a game of one player."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._names import lookup
from ..denoise import Preconditioned
from ..process.times import TIMES, TimeLaw, Uniform
from .config import TrainConfig, parse_entry
from .game import Minibatch, Players
from .monitor import LossByNoise
from .objectives import denoising_error, loss_weight, weighting

__all__ = ["Denoising"]


class Denoising(Players):
    """The weighted denoising error of ``objectives``, (3) there, at times drawn across the whole batch.

    Args:
        model: the denoiser.
        config: ``times`` and ``weighting`` are read.

    Attributes:
        by_noise: the running error by log-SNR.

    Raises:
        ValueError: times and weighting that do not fit each other.
    """

    def __init__(self, model: Preconditioned, config: TrainConfig) -> None:
        classes = getattr(model.net, "config", {}).get("classes")
        takes_label = "label" in model.cond_keys and classes != 0  # a network without classes ignores labels
        super().__init__((classes or 1) if takes_label else 0)
        self.model = model
        self._law = _law(config.times)
        self._weighting = weighting(config.weighting)
        if self._weighting.per_log_snr and not isinstance(self._law, Uniform):
            raise ValueError(
                f"weighting={config.weighting!r} is a density over log-SNR and wants uniform times, not {config.times!r}; "
                "set times='low_discrepancy'"
            )
        self.by_noise = LossByNoise()

    @property
    def network(self) -> nn.Module:
        """The backbone."""
        return self.model.net

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """One, who has all weights."""
        return {"denoiser": list(self.model.parameters())}

    def loss(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted error; the unweighted one and its sums by noise level are the figures."""
        x, process = batch.x, self.model.process
        times = self._law(process, batch.size, batch.whole).to(x.device)
        t = times[batch.place]
        cond = {} if batch.label is None else {"label": batch.label}
        error = denoising_error(self.model, x, t, batch.noise.normal_like(x), cond)
        weighted = error * loss_weight(self.model, t, self._weighting).to(error)
        by_noise = self.by_noise.sums(process.log_snr(t), error)
        # figures are means: items per item of the batch, so that the sums are had back in `observe`
        return weighted.mean(), {"error": error.detach().mean(), "by_noise": by_noise * (batch.size / len(x))}

    def averaged(self) -> dict[str, Tensor]:
        """All weights, by the names under which the denoiser is saved."""
        return dict(self.model.named_parameters())

    def observe(self, player: str, figures: Mapping[str, Tensor]) -> dict[str, float]:
        """Keep the errors by noise level."""
        self.by_noise.add(figures["by_noise"])
        return {}

    def memory(self) -> dict[str, Any]:
        """The running sums by noise level."""
        return {"loss_by_noise": self.by_noise.totals.tolist()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on from `memory`."""
        self.by_noise.totals = torch.tensor(memory["loss_by_noise"], dtype=torch.float64)


def _law(entry: str) -> TimeLaw:
    """A law of training times by its entry in a configuration, ``name`` or ``name:arguments``."""
    name, numbers = parse_entry(entry)
    law = lookup("law of times", name, TIMES)()
    names = [field.name for field in fields(law) if field.name != "low_discrepancy"]
    if len(numbers) > len(names):
        raise ValueError(
            f"the law of times {name!r} takes {len(names)} arguments ({', '.join(names)}), not {len(numbers)}"
        )
    values: dict[str, Any] = dict(zip(names, numbers))
    return replace(law, **values)
