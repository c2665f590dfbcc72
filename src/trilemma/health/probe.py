"""What a denoiser does on held-out data, noise level by noise level: the numbers behind its health.

For the exact denoiser D(x_t) = E[x | x_t] of the data, at every noise level,

    E (x - D) = 0,     E <x - D, h(x_t)> = 0 for every h, here D itself,                                     (1)
    E |x - D|^2 = (sigma^2 / alpha) E tr dD/dx_t                        (Tweedie's second formula),          (2)
    dD/dx_t is symmetric                                                 (D is the gradient of a potential), (3)
    E[D_s | x_t] = D_t for s < t, so E <D_s - D_t, D_t> = 0              (a martingale).                     (4)

No denoiser that is linear in x_t errs less than that of the Gaussian law with the mean m and the covariance C of the data,

    m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m),                                                    (5)

so a trained network that is no better has learned no more than two moments. Nor need anybody train to average other items x_i
of the same law, each as likely as it is to be behind x_t,

    sum_i x_i exp(-|x_t - alpha x_i|^2 / 2 sigma^2) / sum_i exp(-|x_t - alpha x_i|^2 / 2 sigma^2).           (6)

In few dimensions (6) is close to exact; in many it is poor where the noise is small. What errs less than (5) and (6) has learned
something, and by how much is counted in nats: for errors e and e' of two denoisers of items of D elements,

    D/2 integral (e - e') exp(l) dl over log-SNR l                                                           (7)

is what their densities differ by in the mean over data, wherever they are the exact denoisers of a law.

Sources: Robbins 1956 and Efron 2011 for Tweedie's formulas; Saremi 2019 (arXiv:1909.03327) for (3); Daras et al. 2023
(arXiv:2302.09057) for (4); Guo, Shamai and Verdu 2005 (arXiv:cs/0412108) and Verdu 2010 for (7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..numerics.shapes import dot

__all__ = ["Level", "Reference", "errors", "levels_of", "probe", "standard"]

Cond = Mapping[str, Tensor]


@dataclass(frozen=True)
class Level:
    """One noise level; errors are means over elements and items, in squared model units.

    Args:
        log_snr: the level.
        error: E|x - D|^2 on held-out items.
        stderr: its standard error.
        linear: the same for the best linear denoiser (5).
        excess: mean of ``error - linear`` item by item, in its standard errors.
        copying: the same for the average of other items (6).
        copying_excess: mean of ``copying - linear`` item by item, in its standard errors.
        mean: the error of answering with the mean of the data.
        slope: <x, D> / <D, D> about the mean of the data; 1 by (1).
        slope_error: its standard error.
        bias: squared length of the mean of x - D, less what chance makes of it, over the variance of the data.
        predicted: the error that the denoiser's own derivative claims, (2).
        predicted_error: its standard error.
        asymmetry: antisymmetric share of the derivative, in Frobenius norm, (3).
        drift: <D_s - D_t, D_t> / <D_t, D_t> for the next cleaner level s, (4), in its standard errors.
    """

    log_snr: float
    error: float
    stderr: float
    linear: float
    excess: float
    copying: float
    copying_excess: float
    mean: float
    slope: float
    slope_error: float
    bias: float
    predicted: float
    predicted_error: float
    asymmetry: float
    drift: float


class Reference:
    """Items of the data with their mean and covariance: what can be denoised with without training, (5) and (6).

    Args:
        x: items, ``(N, ...)``; of more than 2048 elements only the variance of each element is used.
    """

    def __init__(self, x: Tensor) -> None:
        self.items = flat = x.detach().double().flatten(1)
        self.mean = flat.mean(0)
        rest, n, dim = flat - self.mean, len(flat), flat.shape[1]
        self.var = float(rest.square().mean())
        if dim <= 2048:
            # shrunk towards the mean variance, so that few items do not promise more than there is
            values, self.basis = torch.linalg.eigh(rest.T @ rest / n)
            share = dim / (dim + n)
            self.values = (1 - share) * values.clamp(min=0) + share * values.mean()
        else:
            self.basis, self.values = None, rest.square().mean(0)

    def denoise(self, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
        """(5), float64 and flat."""
        rest = x_t.double().flatten(1) - alpha * self.mean
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        moved = rest * gain if self.basis is None else (rest @ self.basis * gain) @ self.basis.T
        return self.mean + moved

    def copy(self, x_t: Tensor, alpha: float, sigma: float, x: Tensor) -> Tensor:
        """(6), float64 and flat; items that are equal to the answer ``x`` are left out."""
        flat, rows = x.double().flatten(1), []
        for part in torch.arange(len(flat)).split(256):
            apart = torch.cdist(x_t[part].double().flatten(1), alpha * self.items).square() / (2 * sigma**2)
            own = torch.cdist(flat[part], self.items) < 1e-6 * self.var**0.5
            rows.append((-apart.masked_fill(own, math.inf)).softmax(1) @ self.items)
        return torch.cat(rows)


def levels_of(denoiser: Denoiser, var: float, count: int = 9) -> list[float]:
    """Log-SNRs to probe: where data of that variance are decided, from noise to data, as far as the process goes."""
    middle = -math.log(var)
    lowest = float(denoiser.process.log_snr(torch.tensor(1.0, dtype=torch.float64)))
    low, high = max(middle - 6.0, lowest + 0.5), middle + 6.0
    return torch.linspace(low, high, count).tolist()


def _call(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond, batch: int) -> Tensor:
    return torch.cat(
        [
            denoiser(x_t[part], t, **{key: value[part] for key, value in cond.items()}).mean
            for part in torch.arange(len(x_t)).split(batch)
        ]
    )


def standard(values: Tensor) -> float:
    """A mean in its standard errors."""
    return float(values.mean() / (values.std() / len(values) ** 0.5 + 1e-30))


@torch.no_grad()
def errors(denoiser: Denoiser, x: Tensor, levels: list[float], cond: Cond, noise: Noise, *, batch: int = 256) -> Tensor:
    """|x - D|^2 of each item at each level, a mean over elements: shape ``(levels, N)``, float64."""
    rows = []
    for i, level in enumerate(levels):
        t = denoiser.process.time(torch.tensor(level, dtype=torch.float64))
        eps = noise.at(i).normal_like(x)
        gap = _call(denoiser, denoiser.process.perturb(x, t, eps), t, cond, batch) - x
        rows.append(gap.double().square().flatten(1).mean(1))
    return torch.stack(rows)


@torch.no_grad()
def probe(
    denoiser: Denoiser, x: Tensor, reference: Reference, levels: list[float], cond: Cond, noise: Noise, *,
    probes: int = 1, few: int | None = None, batch: int = 256,
) -> list[Level]:  # fmt: skip
    """All of the above at each level.

    Args:
        denoiser: the model, on the device of ``x``.
        x: held-out items, ``(N, ...)``.
        reference: moments of data of the same law.
        levels: increasing log-SNRs.
        cond: conditions of the items.
        noise: source with N items.
        probes: pairs of random directions for (2) and (3).
        few: items for (2), (3) and (4), the first of ``x``; all without it.
        batch: evaluations at once.

    Cost:
        A call a level and item, and for the ``few`` two more and ``2 probes`` vector-Jacobian products.
    """
    process, m = denoiser.process, reference.mean.to(x.dtype).view(x.shape[1:])
    dim, n = x[0].numel(), len(x)
    part, own = slice(0, few), {key: value[:few] for key, value in cond.items()}
    out = []
    for i, level in enumerate(levels):
        t = process.time(torch.tensor(level, dtype=torch.float64))
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        eps = noise.at(i).normal_like(x)
        x_t = process.perturb(x, t, eps)
        law = _call(denoiser, x_t, t, cond, batch)
        gap = (x - law).double().flatten(1)
        error = gap.square().mean(1)
        linear, copying = (
            (answer - x.double().flatten(1)).square().mean(1)
            for answer in (reference.denoise(x_t, alpha, sigma), reference.copy(x_t, alpha, sigma, x))
        )
        centred, said = (x - m).double(), (law - m).double()
        weight = dot(said, said).sum()
        slope = float(dot(centred, said).sum() / weight)
        slope_error = float((dot(centred, said) - slope * dot(said, said)).std() * n**0.5 / weight)
        bias = float(gap.mean(0).square().mean() - gap.var(0).mean() / n) / reference.var
        traces, asymmetry = _derivative(denoiser, x_t[part], t, own, noise[part].at(i, 1), probes, batch)
        drift = errors_ahead(denoiser, x[part], x_t[part], law[part], level, own, noise[part].at(i, 2), batch, m)
        out.append(
            Level(
                log_snr=level,
                error=float(error.mean()),
                stderr=float(error.std()) / n**0.5,
                linear=float(linear.mean()),
                excess=standard(error - linear),
                copying=float(copying.mean()),
                copying_excess=standard(copying - linear),
                mean=reference.var,
                slope=slope,
                slope_error=slope_error,
                bias=bias,
                predicted=sigma**2 / alpha * float(traces.mean()) / dim,
                predicted_error=sigma**2 / alpha * float(traces.std()) / len(traces) ** 0.5 / dim,
                asymmetry=asymmetry,
                drift=drift,
            )
        )
    return out


def errors_ahead(
    denoiser: Denoiser, x: Tensor, x_t: Tensor, law: Tensor, level: float, cond: Cond, noise: Noise, batch: int, m: Tensor
) -> float:  # fmt: skip
    """(4), in standard errors, between a level and the one 1 cleaner, whose x_s is drawn given x and x_t."""
    process = denoiser.process
    s, t = (process.time(torch.tensor(value, dtype=torch.float64)) for value in (level + 1.0, level))
    if float(s) >= float(t):
        return math.nan
    ratio = float(process.alpha(t) / process.alpha(s))
    keep = ratio * (float(process.sigma(s)) / float(process.sigma(t))) ** 2
    mean = keep * x_t + (float(process.alpha(s)) - keep * float(process.alpha(t))) * x
    spread = float(process.sigma(s)) * math.sqrt(-math.expm1(-1.0))
    ahead = _call(denoiser, mean + spread * noise.normal_like(x), s, cond, batch)
    gain = dot((ahead - law).double(), (law - m).double())
    return standard(gain)


def _derivative(
    denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Cond, noise: Noise, probes: int, batch: int
) -> tuple[Tensor, float]:
    """Trace of the derivative, ``(N,)``, and its antisymmetric share."""
    traces, odd, size = [], 0.0, 0.0
    for part in torch.arange(len(x_t)).split(batch):
        own = {key: value[part] for key, value in cond.items()}
        with torch.enable_grad():
            at = x_t[part].detach().requires_grad_()
            mean = denoiser(at, t, **own).mean
            trace = torch.zeros(len(part), dtype=torch.float64, device=at.device)
            for p in range(probes):
                v, w = (noise[part].at(p, k).normal_like(at).sign() for k in (0, 1))
                jv, jw = (torch.autograd.grad(mean, at, u, retain_graph=True)[0] for u in (v, w))
                trace += (dot(jv, v) + dot(jw, w)).double() / (2 * probes)
                odd += float((dot(jv, w) - dot(jw, v)).double().square().sum()) / 4  # |A|^2 in the mean
                size += float((dot(jv, jv) + dot(jw, jw)).double().sum()) / 2
            traces.append(trace)
    return torch.cat(traces), math.sqrt(odd / max(size, 1e-30))
