r"""A normalising flow: an invertible network from zuko, with its exact likelihood.

A flow f with Jacobian J takes data to a standard normal vector, log p(v) = log N(f(v); 0, 1) + log |det J(v)|. Integers k out of
0 .. L-1, x = -1 + 2k/(L - 1), are first spread over their bins and then over the real line,

    u = (k + r)/L,  r uniform in [0, 1);   v = logit(a/2 + (1 - a) u),                                        (1)
    log P(x) >= E_r [log p(v) + sum log((1 - a) / (w (1 - w)))] - D log L,   w = a/2 + (1 - a) u,              (2)

where the bound is an average over r, of the logarithm of which the exact P(x) is the average. Real data, such as points in the
plane, go to the flow as they are and have a density.

Sources: Dinh et al. 2017 (arXiv:1605.08803), section 4.1 for (1); Theis et al. 2016 (arXiv:1511.01844), section 3.1, for (2);
Durkan et al. 2019 (arXiv:1906.04032) for splines. Differs: the layers are zuko's; none here is convolutional.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._optional import require
from ..numerics.noise import Noise
from ..train.game import Game, Minibatch
from .pixels import bits_per_dim, check_levels

__all__ = ["NormalizingFlow"]


class NormalizingFlow(Game):
    """A RealNVP or a neural spline flow.

    Args:
        shape: of an item: ``(C, H, W)`` of small images, ``(D,)`` of points.
        classes: number of labels that condition the flow, 0 for none.
        kind: ``realnvp``, affine coupling; ``spline``, rational-quadratic splines, autoregressive with ``passes=0``.
        levels: L of integer data, 256 for bytes; 0 for real data in about [-5, 5].
        transforms: number of layers.
        hidden: widths of the network within a layer.
        bins: pieces of a spline.
        passes: of a spline layer: 2 couples halves, D is autoregressive (0 stands for it); sampling costs as many.
        margin: a of (1), in (0, 1): keeps the logit finite.

    Raises:
        ValueError: arguments out of range.
        ImportError: zuko is not installed.

    >>> flow = NormalizingFlow((2,), levels=0, transforms=2, hidden=(16,))
    >>> flow.log_prob(torch.zeros(3, 2)).shape, flow.sample(4).shape
    (torch.Size([3]), torch.Size([4, 2]))
    """

    family: ClassVar[str] = "flow"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 0,
        *,
        kind: Literal["realnvp", "spline"] = "spline",
        levels: int = 256,
        transforms: int = 6,
        hidden: Sequence[int] = (128, 128),
        bins: int = 8,
        passes: int = 2,
        margin: float = 0.05,
    ) -> None:
        if kind not in ("realnvp", "spline"):
            raise ValueError(f"kind={kind!r} must be 'realnvp' or 'spline'")
        if levels < 0 or levels == 1 or not 0 < margin < 1:
            raise ValueError(f"levels={levels} must be 0 or at least 2, and margin={margin} in (0, 1)")
        if transforms < 1 or passes < 0 or passes == 1:
            raise ValueError(f"transforms={transforms} must be at least 1, and passes={passes} 0 or at least 2")
        layers = {"kind": kind, "transforms": transforms, "hidden": list(hidden), "bins": bins, "passes": passes}
        super().__init__(shape, classes, {"levels": levels, "margin": margin, **layers})
        self.levels, self.margin, self.size = levels, margin, math.prod(shape)
        if self.size < 2:
            raise ValueError(f"shape={tuple(shape)} has {self.size} element; couplings need at least 2")
        flows = require("zuko.flows", extra="flows")
        context = classes + 1 if classes else 0  # column 0 is "no label"
        common = {"transforms": transforms, "hidden_features": list(hidden)}
        if kind == "realnvp":
            self.flow: nn.Module = flows.RealNVP(self.size, context, **common)
            self.calls = transforms
        else:
            self.flow = flows.NSF(self.size, context, bins=bins, passes=passes or self.size, randperm=True, **common)
            self.calls = transforms * (passes or self.size)

    def players(self) -> dict[str, Sequence[nn.Parameter]]:
        """One, who has all weights."""
        return {"flow": list(self.parameters())}

    def _law(self, label: Tensor | None, n: int) -> torch.distributions.Distribution:
        """The law of v, for ``n`` items in the type of the weights."""
        weight = next(self.parameters())
        if not self.classes:
            return self.flow()
        rows = torch.zeros(n, dtype=torch.long, device=weight.device) if label is None else label + 1
        return self.flow(F.one_hot(rows, self.classes + 1).to(weight))

    def _spread(self, x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """The v of (1) and the logarithm of its volume, the last two terms of (2), for items ``(B, ...)``."""
        k = (x.flatten(1) + 1) * ((self.levels - 1) / 2)
        w = self.margin / 2 + (1 - self.margin) * (k.round() + r) / self.levels
        v = torch.logit(w)
        volume = math.log((1 - self.margin) / self.levels) + F.softplus(v) + F.softplus(-v)  # -log w(1 - w)
        return v, volume.sum(1)

    def _log_prob(self, x: Tensor, label: Tensor | None, noise: Noise) -> Tensor:
        """What (2) averages, or the log-density, ``(B,)``; in float32 under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            if not self.levels:
                return self._law(label, len(x)).log_prob(x.flatten(1))
            r = noise.uniform((len(x), self.size), dtype=x.dtype, device=x.device)
            v, volume = self._spread(x, r)
            return self._law(label, len(x)).log_prob(v) + volume

    def loss(self, player: str, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the mean log-likelihood by (2), in nats per element."""
        log_prob = self._log_prob(batch.x, batch.label, batch.noise).mean()
        return -log_prob / self.size, {"log_prob": log_prob.detach()}

    def draw(self, noise: Noise, label: Tensor | None) -> Tensor:
        """The inverse of the flow at a normal vector, in the bins of (1): samples are integers in units of x."""
        weight = next(self.parameters())
        z = noise.normal((noise.n, self.size), dtype=weight.dtype, device=weight.device)
        v = self._transform(self._law(label, noise.n)).inv(z)
        if self.levels:
            u = (torch.sigmoid(v) - self.margin / 2) / (1 - self.margin)
            k = (u * self.levels).floor().clamp(0, self.levels - 1)
            v = k * (2 / (self.levels - 1)) - 1
        return v.unflatten(1, self.shape)

    @staticmethod
    def _transform(law: torch.distributions.Distribution) -> torch.distributions.Transform:
        transform = getattr(law, "transform")  # noqa: B009  a NormalizingFlow of zuko, which torch does not know
        assert isinstance(transform, torch.distributions.Transform)
        return transform

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, label: Tensor | None = None, *, draws: int = 1, seeds: int | Sequence[int] = 0
    ) -> Tensor:
        """The log-likelihood of each item: of its integers, by (2), or of its density.

        Args:
            x: items ``(B, *shape)`` in model units.
            label: classes ``(B,)``, -1 for none.
            draws: of r, averaged as weights: the bound rises to log P(x) with their number. Densities need none.
            seeds: one integer for all or one per item.

        Returns:
            ``(B,)`` nats, float64.

        Raises:
            ValueError: items of another shape, or at no level.

        Cost: ``draws`` evaluations.
        """
        if tuple(x.shape[1:]) != self.shape or draws < 1:
            raise ValueError(f"items must have shape {self.shape}, not {tuple(x.shape[1:])}, and draws={draws} be >= 1")
        if not self.levels:
            return self._log_prob(x, label, Noise(seeds, len(x))).double()
        check_levels(x, self.levels)
        noise = Noise(seeds, len(x))
        each = torch.stack([self._log_prob(x, label, noise.at(j)).double() for j in range(draws)])
        return each.logsumexp(0) - math.log(draws)

    def bits_per_dim(
        self, x: Tensor, label: Tensor | None = None, *, draws: int = 32, seeds: int | Sequence[int] = 0
    ) -> Tensor | None:
        """By (2) with ``draws`` dequantisations; a density of real data is no likelihood of integers."""
        if not self.levels:
            return None
        return bits_per_dim(self.log_prob(x, label, draws=draws, seeds=seeds), self.shape)
