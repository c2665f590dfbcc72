"""A conditional model as a classifier: how likely each class makes an item, and by Bayes' rule the class itself.

    log p(c | x) = log p(x | c) + log w_c - log sum_k w_k p(x | k)                                            (1)

The classes share their probes, so most of the probes' error cancels in (1): what is left is stated.

Sources: Li et al. 2023 (arXiv:2303.16203) and Clark and Jaini 2023 (arXiv:2303.15233), who take bounds for log p(x |
c).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from .flow import Likelihood, log_likelihood

__all__ = ["ClassPosterior", "class_posterior"]


@dataclass(frozen=True)
class ClassPosterior:
    """The law of the class of every item.

    Args:
        log_prob: log p(c | x), shape ``(B, K)``; rows sum to one in probability.
        stderr: standard error of it by the probes, shape ``(B, K)``; 0 for the exact trace, NaN for one probe.
        likelihoods: of the items given each class, K of them.
    """

    log_prob: Tensor
    stderr: Tensor
    likelihoods: tuple[Likelihood, ...]

    @property
    def best(self) -> Tensor:
        """Number of the most probable class in the list of classes, shape ``(B,)``."""
        return self.log_prob.argmax(1)


@torch.no_grad()
def class_posterior(
    denoiser: Denoiser,
    x: Tensor,
    classes: Sequence[int] | Tensor,
    *,
    key: str = "label",
    weights: Sequence[float] | Tensor | None = None,
    likelihood: Callable[..., Likelihood] = log_likelihood,
    seeds: int | Sequence[int] | Tensor | torch.Generator = 0,
    cond: dict[str, Tensor] | None = None,
) -> ClassPosterior:
    """Equation (1).

    Args:
        denoiser: a denoiser with the condition ``key``.
        x: clean items, shape ``(B, ...)``.
        classes: K values of the condition.
        key: its name.
        weights: prior weights w of the classes, positive, K of them; equal if not given.
        likelihood: what gives log p(x | c): :func:`~trilemma.likelihood.flow.log_likelihood`, with options of one's own by
            ``partial(log_likelihood, steps=64, trace="orthogonal", probes=4)``. Called with the denoiser, ``x``, ``seeds`` and
            ``cond``.
        seeds: of the probes, the same for all classes.
        cond: other conditions.

    Raises:
        ValueError: there are no classes, the weights do not fit, or what ``likelihood`` refuses.

    Cost:
        K times that of ``likelihood``.

    >>> import trilemma as tl
    >>> net = lambda x, c_time, label: 0.3 * (label[:, None] - 0.5) * torch.ones_like(x)
    >>> model = tl.Preconditioned(net, tl.Flow(), "velocity")                 # label 1 lies below label 0
    >>> class_posterior(model, torch.tensor([[-2.0], [2.0]]), [0, 1]).best
    tensor([1, 0])
    """
    values = torch.as_tensor(classes)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"classes must be a list of values of {key!r}, got {classes!r}")
    share = torch.ones(len(values)) if weights is None else torch.as_tensor(weights)
    if share.shape != values.shape or not bool((share > 0).all()):
        raise ValueError(f"weights must be {len(values)} positive numbers, one a class, got {share.tolist()}")
    if cond and key in cond:
        raise ValueError(f"cond must not hold {key!r}, whose values are the classes")
    fixed = Noise(seeds, len(x)).seeds  # a generator gives all classes the same probes
    each = tuple(
        likelihood(denoiser, x, seeds=fixed, cond={**(cond or {}), key: value.expand(len(x))}) for value in values
    )
    joint = (
        torch.stack([one.samples for one in each], 1)
        + (share.double() / share.sum()).log().to(each[0].samples.device)[:, None]
    )
    log_prob = joint.mean(2).log_softmax(1)
    gap = joint - (log_prob.exp()[..., None] * joint).sum(1, keepdim=True)  # to first order, of every probe
    count = gap.shape[2]
    if count > 1:
        stderr = gap.std(2) / math.sqrt(count)
    else:
        stderr = torch.stack([one.stderr for one in each], 1)  # 0 or NaN
    return ClassPosterior(log_prob, stderr, each)
