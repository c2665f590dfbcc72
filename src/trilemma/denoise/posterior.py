"""What a denoiser returns: a law of the clean x given the noisy x_t."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Categorical", "Gaussian"]


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A Gaussian with independent coordinates, or only its mean.

    Args:
        mean: E[x | x_t], shape ``(B, ...)``.
        var: Var[x | x_t], same shape, or nothing if it is not known.
    """

    mean: Tensor
    var: Tensor | None = None

    def blend(self, other: Gaussian, w: float) -> Gaussian:
        """Extrapolate the mean from ``other`` (w = 0) over this one (w = 1) and beyond; the variance is kept.

        >>> import torch
        >>> Gaussian(torch.tensor([2.0])).blend(Gaussian(torch.tensor([1.0])), 3.0).mean
        tensor([4.])
        """
        return Gaussian(other.mean.lerp(self.mean, w), self.var)


@dataclass(frozen=True, slots=True)
class Categorical:
    """Independent categorical laws of tokens.

    Args:
        logits: unnormalised log-probabilities, shape ``(B, L, V)``.
    """

    logits: Tensor

    def blend(self, other: Categorical, w: float) -> Categorical:
        """The law proportional to other^(1 - w) this^w.

        >>> import torch
        >>> Categorical(torch.tensor([[[1.0, 0.0]]])).blend(Categorical(torch.zeros(1, 1, 2)), 2.0).logits
        tensor([[[2., 0.]]])
        """
        return Categorical(other.logits.lerp(self.logits, w))
