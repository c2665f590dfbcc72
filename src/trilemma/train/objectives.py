r"""The one training loss: a weighted squared error of what the network puts out.

With x_t = alpha x + sigma eps and x0hat = c_skip x_t + c_out F(x_t), the network's own target F* gives

    e = |F - F*|^2 / d,     |x0hat - x|^2 / d = c_out^2 e,                                                   (1)

and every loss of the literature is a mean of ``weight * e`` over items and training times; d is the number of elements.
A weighting is written on the error of v = alpha eps - sigma x (for alpha^2 + sigma^2 = 1),

    |v - vhat|^2 = (1 + SNR) |x - x0hat|^2 = (1 + 1/SNR) |eps - epshat|^2,     SNR = alpha^2 / sigma^2,        (2)

where all of them are bounded functions of l = log SNR. The weight of the network's error then is

    weight = w_v(l) * (1 + SNR) c_out^2,                                                                     (3)

whose second factor is 1 for v and for EDM's target with sigma_data = 1. The bounds on the likelihood integrate over l, not over
t: they carry the factor -dl/dt, and their mean over uniform t does not depend on the process.

Sources: Kingma and Gao 2023 (arXiv:2303.00848), table 1; the single entries below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._names import lookup
from ..denoise import LearnedVariance, Preconditioned
from ..numerics.noise import Noise
from .config import parse_entry

__all__ = ["WEIGHTINGS", "Weighting", "denoising_error", "denoising_loss", "loss_weight", "weighting"]

_VARIANCE_SHARE = 0.1  # of the error of a learned variance: most of the trunk is left to the mean


@dataclass(frozen=True)
class Weighting:
    """Which noise levels count how much.

    Args:
        on_v: log-SNR -> w_v of (2); ``None`` for weight 1 in (3), whatever the target.
        per_log_snr: whether it is a density over log-SNR, to be multiplied by -dl/dt.
    """

    on_v: Callable[[Tensor], Tensor] | None = None
    per_log_snr: bool = False


def min_snr(gamma: float = 5.0) -> Weighting:
    """Weigh the x0 error by min(SNR, gamma). Source: Hang et al. 2023 (arXiv:2303.09556), equation (6)."""
    return Weighting(lambda log_snr: torch.sigmoid(-log_snr) * log_snr.exp().clamp(max=gamma))


def p2(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """Weigh the eps error by 1 / (k + SNR)^gamma. Source: Choi et al. 2022 (arXiv:2204.00227), equation (8)."""
    return Weighting(lambda log_snr: torch.sigmoid(log_snr) * (k + log_snr.exp()).pow(-gamma))


def sigmoid(bias: float = 2.0) -> Weighting:
    """Weigh the eps error by 1 / (1 + e^(l - bias)), per unit of log-SNR; larger images want a lower bias (-3 from 128 pixels).

    Source: Kingma and Gao 2023, section 5; Hoogeboom et al. 2024 (arXiv:2410.19324) for the bias.
    """
    return Weighting(lambda log_snr: torch.sigmoid(log_snr) * torch.sigmoid(bias - log_snr), per_log_snr=True)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "unit": Weighting,  # EDM's weighting for its target, L_simple for eps
    "x0": lambda: Weighting(lambda log_snr: torch.sigmoid(-log_snr)),
    "eps": lambda: Weighting(torch.sigmoid),
    "v": lambda: Weighting(torch.ones_like),
    "min_snr": min_snr,
    "p2": p2,
    "sigmoid": sigmoid,
    # the diffusion term of the bound on -log p(x), in nats per element; also ScoreFlow's weight g^2 on the score's error
    "elbo": lambda: Weighting(lambda log_snr: torch.sigmoid(log_snr) / 2, per_log_snr=True),
    # the same bound for times that are drawn with its density already, ``times="log_snr"``: a mean over log-SNR
    "likelihood": lambda: Weighting(lambda log_snr: torch.sigmoid(log_snr) / 2),
}
"""Every weighting by its name; numbers after the name are the arguments."""


def weighting(entry: str) -> Weighting:
    """A weighting by its entry in a configuration, ``name`` or ``name:arguments``.

    Raises:
        ValueError: unknown name, or arguments that it does not take.

    >>> weighting("min_snr:3").on_v(torch.tensor([-torch.inf, 0.0, torch.inf]))
    tensor([0.0000, 0.5000, 0.0000])
    """
    name, numbers = parse_entry(entry)
    make = lookup("weighting", name, WEIGHTINGS)
    try:
        return make(*numbers)
    except TypeError:
        raise ValueError(f"the weighting {name!r} does not take the arguments {numbers}") from None


def loss_weight(model: Preconditioned, t: Tensor, which: str | Weighting = "unit") -> Tensor:
    """The weight (3) of the network's squared error.

    Args:
        model: says the process and c_out.
        t: times in [0, 1], float64, shape ``(B,)``.
        which: a weighting or its entry.

    Returns:
        Shape ``(B,)``, finite at both ends, except where the target itself is singular.
    """
    w = weighting(which) if isinstance(which, str) else which
    if w.on_v is None:
        return torch.ones_like(t)
    process = model.process
    t = t.clamp(1e-9, 1 - 1e-9)  # every factor below is finite here and their product is smooth up to the ends
    alpha2, sigma2 = process.alpha(t).square(), process.sigma(t).square()
    weight = w.on_v(process.log_snr(t)) * (alpha2 + sigma2) / sigma2 * model.coefficients(t)[1].square()
    return weight * process.diffusion2(t) / sigma2 if w.per_log_snr else weight


def denoising_error(
    model: Preconditioned, x: Tensor, t: Tensor, noise: Noise | Tensor, cond: Mapping[str, Tensor] | None = None
) -> Tensor:
    """The mean squared error (1) of the network's output: shape ``(B,)``, float32 or wider.

    For a learned variance also a tenth of its own error: iDDPM's hybrid loss (arXiv:2102.09672), whose L_simple + 0.001 L_vlb
    counts the sum over a thousand steps or more, so a term of it about as much as the error of the mean.
    """
    eps = noise if isinstance(noise, Tensor) else noise.normal_like(x)
    x_t, truth = model.process.perturb(x, t, eps), model.regression_target(x, eps, t)
    if isinstance(model, LearnedVariance):
        output, v = model.heads(x_t, t, **(cond or {}))
    else:
        output, v = model.output(x_t, t, **(cond or {})), None
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    error = (output - truth).square().flatten(1).mean(1)
    if isinstance(model, LearnedVariance) and v is not None:
        error = error + _VARIANCE_SHARE * model.variance_error(output, v.to(output), truth, t)
    return error


def denoising_loss(
    model: Preconditioned,
    x: Tensor,
    t: Tensor,
    noise: Noise | Tensor,
    *,
    weighting: str | Weighting = "unit",
    cond: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The loss of each item, whose mean over items and times is what training minimises.

    Args:
        model: the denoiser.
        x: clean items, ``(B, ...)``, in model units.
        t: times, float64, ``(B,)``.
        noise: a source with ``B`` items, or the value of eps.
        weighting: an entry of ``WEIGHTINGS``, or a weighting.
        cond: further arguments of the network, such as ``{"label": labels}``.

    Returns:
        Shape ``(B,)``: a mean over elements, so the learning rate does not depend on the size of an image.

    Cost: one call of the network.

    >>> from trilemma.nets import MLP
    >>> from trilemma.process import Flow
    >>> model = Preconditioned(MLP(2, width=16, depth=1), Flow(), "velocity")
    >>> t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    >>> denoising_loss(model, torch.zeros(2, 2), t, torch.ones(2, 2))    # an untrained network answers 0, the target is eps
    tensor([1., 1.], grad_fn=<MulBackward0>)
    """
    error = denoising_error(model, x, t, noise, cond)
    return loss_weight(model, t, weighting).to(error) * error
