"""Denoisers that learn how uncertain they are, coordinate by coordinate.

The network has a second head v beside the one of its target, and

    Var[x | x_t] = s^2 sigma^2 / (alpha^2 s^2 + sigma^2) e^v,                                                (1)

the posterior variance of data N(0, s^2) where v = 0. Its Gaussian likelihood, with the mean held fixed,

    L_v = [(x - E[x | x_t])^2 / Var + v] / 2,                                                                (2)

is least for v with Var = E[(x - E[x | x_t])^2 | x_t], the variance that makes each term of DDPM's bound least, whatever the step:
a step from t to s draws with v_st + b^2 Var (``sampling.stochastic``, equation 5).

Source: Nichol and Dhariwal 2021 (arXiv:2102.09672), section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..numerics.shapes import pad
from .denoiser import Preconditioned
from .posterior import Gaussian

__all__ = ["LearnedVariance"]


class LearnedVariance(Preconditioned):
    """A network with two heads that gives mean and variance of x given x_t; use it with ``ancestral("learned")``.

    Args:
        net: as for :class:`~trilemma.denoise.denoiser.Preconditioned`, but with twice the channels (the second axis) in its
            output: the target F first, then v of (1).
        process: the noise process.
        target: what the first half predicts.
        sigma_data: standard deviation of the data.

    Cost:
        One call of the network.

    Differs:
        The paper interpolates the logarithm of a step's variance between its two extremes, which depend on the step; a posterior
        variance of x serves steps of any length.

    >>> from trilemma.process import Flow
    >>> model = LearnedVariance(lambda x, c_time: torch.zeros(len(x), 4), Flow(), "velocity")
    >>> model(torch.ones(1, 2), torch.tensor(0.5)).var                                         # 0.25 / (0.25 + 0.25)
    tensor([[0.5000, 0.5000]])
    """

    def heads(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """F and v, each of the shape of ``x_t``.

        Raises:
            ValueError: the network has not twice the channels.
        """
        _, _, c_in, c_time = self._coefficients(t, x_t)
        out = self._net(x_t, c_in, c_time, cond)
        if out.shape[1] != 2 * x_t.shape[1]:
            raise ValueError(
                f"a learned variance needs a network with {2 * x_t.shape[1]} channels in its output, and this one has "
                f"{out.shape[1]}; build it with out_channels (or out_features) of twice the input"
            )
        target, v = out.chunk(2, dim=1)
        return target, v

    def output(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The network's prediction F of the target, shape ``(B, ...)``."""
        return self.heads(x_t, t, **cond)[0]

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """E[x | x_t] and (1) by one call of the network."""
        target, v = self.heads(x_t, t, **cond)
        c_skip, c_out, _, _ = self._coefficients(t, x_t)
        return Gaussian(c_skip * x_t + c_out * target, pad(self.plain_variance(t).to(v), v) * v.exp())

    def plain_variance(self, t: Tensor) -> Tensor:
        """(1) at v = 0, the shape of ``t``."""
        alpha2, sigma2 = self.process.alpha(t).square(), self.process.sigma(t).square()
        return self.sigma_data**2 * sigma2 / (alpha2 * self.sigma_data**2 + sigma2)

    def variance_error(self, target: Tensor, v: Tensor, truth: Tensor, t: Tensor) -> Tensor:
        """(2) with the mean held fixed, a mean over elements: shape ``(B,)``.

        Args:
            target: the head F.
            v: the other head.
            truth: what F should be.
            t: times, float64, ``(B,)``.
        """
        t = t.clamp(1e-9, 1 - 1e-9)  # the ratio is finite at both ends
        ratio = self.coefficients(t)[1].square() / self.plain_variance(t)
        gap = pad(ratio.to(v), v) * (target.detach() - truth).square()
        return (gap * torch.exp(-v) + v).flatten(1).mean(1) / 2
