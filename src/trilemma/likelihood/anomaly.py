"""Scores of how unusual an item is, from the likelihood and from the denoising error, and how well a score tells two sets apart.

All scores are larger for what is more unusual. With log p(x) = log p(x_1) + rest and a reference set r of usual items,

    density      -log p(x)                        may call constant images usual: they lie near the mode,    (1)
    typicality   |log p(x) - mean_r log p|        the typical set is a shell, away from the mode,            (2)
    prior        -log p(x_1),  volume  -rest      the two parts of (1),                                      (3)
    ratio        log q(x) - log p(x)              q a simple model: what its structure explains is left out, (4)
    profile      sqrt((e - m)^T C^-1 (e - m)),    e_j = log mean |eps - eps_hat|^2 at level j,               (5)

m and C the mean and covariance of e over the reference. q of (4) is a Gaussian of every coordinate (:class:`PixelGaussian`), or
2^(-8 n) for an image that a lossless coder, here that of PNG, makes n bytes of (:func:`complexity`).

Sources: Nalisnick et al. 2019 (arXiv:1906.02994) for (2); Ren et al. 2019 (arXiv:1906.02845) and Serra et al. 2020
(arXiv:1909.11480) for (4); Graham et al. 2023 (arXiv:2211.07740) for errors by level; Mann and Whitney 1947 for the area.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..numerics.shapes import pad
from ..sampling.draw import sigma_data_of
from ..sampling.start import check
from .flow import Likelihood

__all__ = ["ErrorProfile", "PixelGaussian", "auroc", "complexity", "likelihood_scores"]


def auroc(usual: Tensor, unusual: Tensor) -> float:
    """Area under the ROC curve: the probability that an unusual item scores higher than a usual one, ties half.

    Args:
        usual: scores, shape ``(N,)``.
        unusual: scores, shape ``(M,)``.

    Returns:
        1 for a perfect score, 1/2 for one that says nothing. Exact, by ranks.

    Raises:
        ValueError: a set is empty, or a score is NaN.

    Cost:
        O((N + M) log(N + M)).

    >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    if usual.ndim != 1 or unusual.ndim != 1 or len(usual) == 0 or len(unusual) == 0:
        raise ValueError(
            f"auroc needs two sets of scores, (N,) and (M,), got {tuple(usual.shape)} and {tuple(unusual.shape)}"
        )
    if bool(usual.isnan().any()) or bool(unusual.isnan().any()):
        raise ValueError("a score is NaN, which has no rank")
    ordered = usual.double().sort()[0]
    below, through = (torch.searchsorted(ordered, unusual.double().to(ordered.device), right=r) for r in (False, True))
    return float((below + through).double().sum()) / (2 * len(usual) * len(unusual))


@dataclass(frozen=True)
class PixelGaussian:
    """A Gaussian of independent coordinates, fitted to items: the simple model of a likelihood ratio.

    Args:
        mean: of every coordinate.
        var: of every coordinate.
    """

    mean: Tensor
    var: Tensor

    @classmethod
    def fit(cls, x: Tensor, *, floor: float = 1e-3) -> PixelGaussian:
        """From items, shape ``(N, ...)``.

        Args:
            x: items in model units.
            floor: least standard deviation, for coordinates that hardly vary, such as margins.

        Raises:
            ValueError: fewer than two items.

        >>> float(PixelGaussian.fit(torch.tensor([[-1.0], [1.0]])).log_prob(torch.tensor([[0.0]])).round(decimals=2))
        -0.92
        """
        if len(x) < 2:
            raise ValueError(f"a fit needs at least two items, got {len(x)}")
        x = x.double()
        return cls(x.mean(0), x.var(0, correction=0).clamp(min=floor**2))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, float64, shape ``(B,)``."""
        z = (x.double() - self.mean).square() / self.var + self.var.log() + math.log(2 * math.pi)
        return -0.5 * z.flatten(1).sum(1)


def complexity(images: Tensor) -> Tensor:
    """Size of each image under a lossless coder, in nats: -log q of (4).

    Each row is coded by its differences to the row above, then by DEFLATE, as PNG does, less the size of an empty message.

    Args:
        images: 8 bits, uint8 of shape ``(B, C, H, W)``, or rows of any kind ``(B, ..., W)``.

    Returns:
        Nats, float64, shape ``(B,)``.

    Raises:
        ValueError: not uint8.

    >>> flat, noisy = torch.zeros(1, 1, 16, 16), torch.randint(256, (1, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    >>> bool(complexity(noisy.to(torch.uint8)) > 20 * complexity(flat.to(torch.uint8)))
    True
    """
    if images.dtype != torch.uint8 or images.ndim < 2:
        raise ValueError(
            f"complexity codes 8-bit images, uint8 of shape (B, ...), got {images.dtype} {tuple(images.shape)}"
        )
    rows = images.cpu().reshape(len(images), -1, images.shape[-1])
    coded = torch.cat([rows[:, :1], rows[:, 1:] - rows[:, :-1]], 1)  # modulo 256
    empty = len(zlib.compress(b"", 9))
    sizes = [len(zlib.compress(item.contiguous().numpy().tobytes(), 9)) - empty for item in coded]
    return torch.tensor(sizes, dtype=torch.float64) * (8 * math.log(2))


def likelihood_scores(
    likelihood: Likelihood, reference: Likelihood | None = None, *, simple: Tensor | None = None
) -> dict[str, Tensor]:
    """Scores (1) to (4), by name, each of shape ``(B,)``.

    Args:
        likelihood: of the items.
        reference: of usual items, for ``typicality``; without it that is left out.
        simple: log q of the items in nats, such as ``PixelGaussian.log_prob`` or ``-complexity``, for ``ratio``.

    Raises:
        ValueError: ``simple`` does not fit.

    >>> from trilemma.denoise import Covariances, GaussianDenoiser
    >>> from trilemma.likelihood import log_likelihood
    >>> from trilemma.process import VP
    >>> model = GaussianDenoiser(VP(), torch.zeros(1), Covariances.diagonal(torch.full((1, 1), 0.25)))
    >>> scores = likelihood_scores(log_likelihood(model, torch.tensor([[0.0], [2.0]])))
    >>> [name for name, score in scores.items() if score[1] > score[0] + 0.1]
    ['density', 'prior']
    """
    log_p, log_prior = likelihood.log_prob, likelihood.log_prior
    scores = {"density": -log_p, "prior": -log_prior, "volume": log_prior - log_p}
    if reference is not None:
        scores["typicality"] = (log_p - reference.log_prob.mean().to(log_p)).abs()
    if simple is not None:
        if simple.shape != log_p.shape:
            raise ValueError(f"simple has shape {tuple(simple.shape)}, but there are {len(log_p)} items")
        scores["ratio"] = simple.to(log_p) - log_p
    return scores


@dataclass(frozen=True)
class ErrorProfile:
    """The score (5): errors of denoising by level, whitened by what usual items show. Needs no derivative of the network.

    Args:
        levels: sigma / alpha, shape ``(J,)``.
        mean: m, shape ``(J,)``.
        root: L with L L^T = C, shape ``(J, J)``.
        draws: noises averaged over at every level.
    """

    levels: Tensor
    mean: Tensor
    root: Tensor
    draws: int

    @classmethod
    def fit(
        cls,
        denoiser: Denoiser,
        x: Tensor,
        *,
        levels: Sequence[float] | None = None,
        draws: int = 2,
        seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
        cond: dict[str, Tensor] | None = None,
    ) -> ErrorProfile:
        """From usual items.

        Args:
            denoiser: any denoiser.
            x: items that it was not trained on, if possible, shape ``(N, ...)``.
            levels: sigma / alpha; ten from 0.1 d to 10 d, d the standard deviation of the data, without it.
            draws: noises at every level.
            seeds: of the noises.
            cond: conditions, one per item.

        Raises:
            ValueError: there are too few items for a covariance, or a level is not positive.

        Cost:
            Calls: levels times draws.

        >>> from trilemma.denoise import Covariances, GaussianDenoiser
        >>> from trilemma.process import VP
        >>> model = GaussianDenoiser(VP(), torch.zeros(16), Covariances.diagonal(torch.full((1, 16), 0.25)))
        >>> usual = 0.5 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
        >>> profile = ErrorProfile.fit(model, usual[:100])
        >>> auroc(profile.score(model, usual[100:]), profile.score(model, 3 * usual[100:])) > 0.95
        True
        """
        d = sigma_data_of(denoiser)
        wanted = torch.logspace(-1, 1, 10, dtype=torch.float64) * d if levels is None else torch.tensor(levels).double()
        if wanted.ndim != 1 or len(wanted) == 0 or not bool((wanted > 0).all()) or draws < 1:
            raise ValueError(f"levels must be positive numbers and draws at least 1, got {levels} and {draws}")
        if len(x) < 2 * len(wanted):
            raise ValueError(
                f"{len(x)} items are too few for a covariance of {len(wanted)} levels; give at least {2 * len(wanted)}"
            )
        e = _errors(denoiser, x, wanted, draws, seeds, cond)
        cov = torch.cov(e.T).reshape(len(wanted), -1)
        ridge = 1e-3 * cov.diagonal().mean() * torch.eye(len(wanted), dtype=e.dtype)
        return cls(wanted, e.mean(0), torch.linalg.cholesky(cov + ridge), draws)

    def score(
        self,
        denoiser: Denoiser,
        x: Tensor,
        *,
        seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
        cond: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Mahalanobis distances of items, float64, shape ``(B,)``; squared about chi^2 of J degrees for usual ones."""
        e = _errors(denoiser, x, self.levels, self.draws, seeds, cond) - self.mean
        return torch.linalg.solve_triangular(self.root, e.T, upper=False).norm(dim=0)


@torch.no_grad()
def _errors(
    denoiser: Denoiser, x: Tensor, levels: Tensor, draws: int, seeds: int | Sequence[int] | Tensor | torch.Generator,
    cond: dict[str, Tensor] | None,
) -> Tensor:  # fmt: skip
    """Log errors e of (5), shape ``(B, J)``, on the CPU."""
    device, given = check(denoiser, x.shape, x, cond)
    x, noise, process = x.to(device), Noise(seeds, len(x)), denoiser.process
    columns = []
    for j, level in enumerate(levels.tolist()):
        t = process.time(torch.tensor(-2 * math.log(level), dtype=torch.float64))
        alpha, sigma = (pad(c(t).to(x), x) for c in (process.alpha, process.sigma))
        total = torch.zeros(len(x), dtype=torch.float64, device=device)
        for k in range(draws):
            eps = noise.at(j, k).normal_like(x)
            guess = denoiser(alpha * x + sigma * eps, t, **given).mean
            # eps - eps_hat = alpha (guess - x) / sigma
            total += ((guess - x) * (alpha / sigma)).double().flatten(1).square().mean(1)
        columns.append((total / draws).clamp(min=1e-12).log())
    return torch.stack(columns, 1).cpu()
