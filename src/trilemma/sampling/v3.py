"""DPM-Solver-v3: exponential integrators whose linear part is a statistic of the model.

With y = x_t / alpha, lambda = log(alpha/sigma) and D = E[x | x_t], the probability flow is dy/dlambda = D - y. Take off it a part
that is linear in y, and of what is left a part that is linear in itself, both per coordinate:

    dy/dlambda = -l y - f,     f = (1 - l) y - D,     df/dlambda ~ s f + b,                                  (1)

with the l that makes f depend least on y, and the s and b of least squares, over data with noise:

    l = 1 - E[diag(dD/dy)],     s = cov(f, f') / var(f),     b = E[f'] - s E[f],     f' = df/dlambda.        (2)

From lambda_i on, with L, S integrals of l and s from there and B that of b e^-S,

    y_t = e^-L(t) (y_i - integral e^(L + S) (g + B) dlambda),     g = e^-S f - B,                            (3)

where g, which would be constant if (1) were exact, is replaced by the polynomial through its last values. The corrector takes
the step again with the new value. l = 1, s = b = 0 is DPM-Solver++, l = 0, s = -1, b = 0 is DPM-Solver; for independent Gaussian
coordinates any number of steps is exact.

Statistics are kept as polynomials in lambda through Chebyshev's points, and all integrals are of such polynomials.

Source: Zheng et al. 2023 (arXiv:2310.13268), equations (5) to (12).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..denoise.denoiser import Denoiser
from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from .loop import Carry, Denoise, Step
from .start import begin

__all__ = ["Statistics", "dpm_solver_v3", "model_statistics"]

_Table = tuple[Tensor, Tensor, Tensor]
_POINTS = 32  # Chebyshev's on the stretch of a step and its past
_STEP = 1e-3  # in lambda, of the central difference for f'


def _matrix(low: float, high: float, points: int, at: Sequence[float], *, anchor: float | None = None) -> Tensor:
    """Values at Chebyshev's points to those of the polynomial at ``at``, or to its integrals from ``anchor`` to there."""
    half = (high - low) / 2

    def where(lam: Sequence[float]) -> np.ndarray:
        return (np.asarray(lam) - low) / half - 1

    if anchor is None:
        return torch.from_numpy(chebyshev.chebvander(where(at), points - 1) @ _coefficients(points))
    rows = chebyshev.chebvander(where(at), points) - chebyshev.chebvander(where([anchor]), points)
    return torch.from_numpy(rows @ _integral(points) * half)


@cache
def _coefficients(points: int) -> np.ndarray:
    """Values at Chebyshev's points to the coefficients of the polynomial: his polynomials are orthogonal there."""
    inverse = 2 / points * chebyshev.chebvander(chebyshev.chebpts1(points), points - 1).T
    inverse[0] /= 2
    inverse.setflags(write=False)
    return inverse


@cache
def _integral(points: int) -> np.ndarray:
    """Values at Chebyshev's points to the coefficients of an integral of the polynomial over [-1, 1]."""
    integral = chebyshev.chebint(_coefficients(points))
    integral.setflags(write=False)
    return integral


def _points(low: float, high: float, count: int) -> list[float]:
    return [float(z) for z in low + (high - low) * (chebyshev.chebpts1(count) + 1) / 2]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics (2) of a model, at Chebyshev's points between two values of lambda.

    Args:
        low: where they start.
        high: where they end.
        linear: l, shape ``(nodes, ...)``, float64 on the CPU, one entry a coordinate of an item.
        slope: s, of the same shape.
        offset: b, of the same shape.
    """

    low: float
    high: float
    linear: Tensor
    slope: Tensor
    offset: Tensor

    def at(self, lam: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
        """Values at other lambdas, each ``(len(lam), ...)``.

        Raises:
            ValueError: a lambda is outside what the statistics cover.
        """
        if min(lam) < self.low - 1e-6 or max(lam) > self.high + 1e-6:
            raise ValueError(
                f"the statistics cover log-SNRs from {2 * self.low} to {2 * self.high}, the grid needs {2 * min(lam)} to "
                f"{2 * max(lam)}; compute them with other ends"
            )
        matrix = _matrix(self.low, self.high, len(self.linear), lam)
        linear, slope, offset = (torch.tensordot(matrix, z, 1) for z in (self.linear, self.slope, self.offset))
        return linear, slope, offset


def model_statistics(
    denoiser: Denoiser,
    x: Tensor,
    *,
    nodes: int = 128,
    low: float = -12.0,
    high: float = 12.0,
    seeds: int | Sequence[int] = 0,
    cond: dict[str, Tensor] | None = None,
    batch: int = 64,
) -> Statistics:
    """The statistics (2), from clean items to which noise is added.

    Args:
        denoiser: any denoiser whose mean can be differentiated in x.
        x: clean items, shape ``(B, ...)``; a thousand in the paper, which is more than this needs.
        nodes: how many values of lambda.
        low: the lowest log-SNR, unless the process starts above it.
        high: the highest.
        seeds: of the noise and of the probes of the diagonal; the same noise at all levels, so that all is smooth in lambda.
        cond: conditions for the denoiser, one per item.
        batch: how many items are denoised at a time.

    Raises:
        ValueError: the ends, the number of nodes or the batch make no sense, or the items, seeds or conditions do not fit.

    Cost:
        Four calls for each node and batch, one of them with a backward pass; memory for one batch.

    Error:
        O(1/sqrt(B)) in the statistics. They do not change the order of the solver, only its constant.

    Source: Zheng et al. 2023 (arXiv:2310.13268), equations (5), (11) and appendix C.1.
    """
    process = denoiser.process
    bottom = float(process.log_snr(torch.ones((), dtype=torch.float64))) / 2
    first, last = max(low / 2, bottom), high / 2
    if nodes < 4 or not first < last or batch < 1:
        raise ValueError(
            f"statistics need low < high, at least 4 nodes and a batch of 1; got {2 * first}, {high}, {nodes} and {batch}"
        )
    start = begin(denoiser, x.shape, 1.0, seeds=seeds, x=x, cond=cond)
    x, eps, probe = start.x, start.noise.at(0).normal_like(start.x), start.noise.at(1).normal_like(start.x).sign()
    lams, batches = _points(first, last, nodes), torch.arange(len(x)).split(batch)

    def mean(items: Tensor, y: Tensor, lam: float) -> Tensor:
        t = process.time(torch.tensor(2 * lam, dtype=torch.float64))
        return start.mean(items)(y * float(process.alpha(t)), t)

    def diagonal(items: Tensor, lam: float) -> Tensor:
        y = (x[items] + math.exp(-lam) * eps[items]).requires_grad_()
        with torch.enable_grad():
            (back,) = torch.autograd.grad((mean(items, y, lam) * probe[items]).sum(), y)
        return _exact(back * probe[items]).sum(0)

    linear = torch.stack([1 - reduce(torch.add, (diagonal(items, lam) for items in batches)) / len(x) for lam in lams])
    derivative = chebyshev.chebvander(chebyshev.chebpts1(nodes), nodes - 2) @ chebyshev.chebder(_coefficients(nodes))
    rate = torch.tensordot(torch.from_numpy(derivative * 2 / (last - first)), linear, 1)

    def moments(items: Tensor, i: int) -> Tensor:
        """Sums over the items of f, f', f^2, f f' and D^2."""
        y = x[items] + math.exp(-lams[i]) * eps[items]
        d = mean(items, y, lams[i])
        ends = max(lams[i] - _STEP, bottom), lams[i] + _STEP
        before, after = (_exact(mean(items, y + (end - lams[i]) * (d - y), end)) for end in ends)  # along the flow
        y, d = _exact(y), _exact(d)
        f = (1 - linear[i]) * y - d
        df = (1 - linear[i]) * (d - y) - rate[i] * y - (after - before) / (ends[1] - ends[0])
        return torch.stack([z.sum(0) for z in (f, df, f * f, f * df, d * d)])

    with torch.no_grad():
        means = [reduce(torch.add, (moments(items, i) for items in batches)) / len(x) for i in range(nodes)]
    fits = [_line(*each) for each in means]
    return Statistics(first, last, linear, torch.stack([s for s, _ in fits]), torch.stack([b for _, b in fits]))


def _exact(x: Tensor) -> Tensor:
    return x.detach().cpu().double()


def _line(f: Tensor, df: Tensor, ff: Tensor, fdf: Tensor, dd: Tensor) -> tuple[Tensor, Tensor]:
    """S and b of df = s f + b by least squares, from the means; s = 0 where f does not vary by more than rounding."""
    var = ff - f * f
    s = torch.where(var > 1e-10 * (ff + dd), (fdf - f * df) / var.clamp(min=1e-300), 0.0)
    return s, df - s * f


@dataclass(frozen=True, eq=False)
class DPMSolverV3:
    """The rule :func:`dpm_solver_v3`."""

    statistics: Statistics
    order: int
    corrector: bool

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Step:
        """Tables of (3) per coordinate: y_t = a y_i + sum_j c_j f_j + d."""
        alpha, sigma = process.alpha(ts).tolist(), process.sigma(ts).tolist()
        lam = (process.log_snr(ts) / 2).tolist()
        n = len(ts) - 1
        finite = [i for i in range(n + 1) if math.isfinite(lam[i])]
        start = finite[0] if finite else n
        keep = 1 - self.statistics.at([lam[i] for i in finite])[0] if finite else torch.empty(0)
        predict: dict[int, _Table] = {}
        correct: dict[int, _Table] = {}
        for i in range(start, n):
            if sigma[i + 1] > 0:
                past = list(range(i, max(i - self.order, start - 1), -1))
                predict[i] = self._table(lam, i, past)
                if self.corrector:
                    correct[i] = self._table(lam, i, [i + 1, *past])

        @cache
        def tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, dict[int, _Table], dict[int, _Table]]:
            """What the steps need, where the states are."""

            def moved(tables: dict[int, _Table]) -> dict[int, _Table]:
                return {
                    i: (a.to(device, dtype), c.to(device, dtype), d.to(device, dtype))
                    for i, (a, c, d) in tables.items()
                }

            return keep.to(device, dtype), moved(predict), moved(correct)

        def step(denoise: Denoise, x: Tensor, i: int, carry: Carry, noise: Noise) -> tuple[Tensor, Carry]:
            mean = denoise(x, ts[i]).mean
            if sigma[i + 1] == 0:
                return mean, None
            if i < start:  # infinite: DDIM, which forgets x where alpha = 0
                return x * (sigma[i + 1] / sigma[i]) + mean * (alpha[i + 1] - alpha[i] * sigma[i + 1] / sigma[i]), None
            rest, predicting, correcting = tables(x.dtype, x.device)
            before, fs = carry or (None, ())
            y = x / alpha[i]
            fs = (rest[i - start] * y - mean, *fs)[: self.order + 1]
            if before is not None and self.corrector:
                y = _combine(correcting[i - 1], before, fs)
            return _combine(predicting[i], y, fs) * alpha[i + 1], (y, fs)

        return step

    def _table(self, lam: list[float], i: int, nodes: list[int]) -> _Table:
        """A, c and d of the step from ``i`` with the polynomial through ``nodes``."""
        low, high = min(lam[j] for j in [i, *nodes]), lam[i + 1]
        inside, to = _points(low, high, _POINTS), [lam[i + 1], *(lam[j] for j in nodes)]
        linear, slope, offset = self.statistics.at(inside)
        matrix = _matrix(low, high, _POINTS, [*inside, *to], anchor=lam[i])

        def integral(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """From lambda_i to the points inside, to the end of the step and to the nodes."""
            whole = torch.tensordot(matrix, values, 1)
            return whole[:_POINTS], whole[_POINTS], whole[_POINTS + 1 :]

        l_in, l_end, _ = integral(linear)
        s_in, _, s_to = integral(slope)
        b_in, _, b_to = integral(offset * torch.exp(-s_in))
        weight, decay = torch.exp(l_in + s_in), torch.exp(-l_end)
        shape = (-1, *(1,) * (linear.ndim - 1))
        d, c = integral(weight * b_in)[1], []
        for k, j in enumerate(nodes):
            basis = torch.ones(_POINTS, dtype=torch.float64)
            for m in nodes:
                if m != j:
                    basis = basis * (torch.tensor(inside, dtype=torch.float64) - lam[m]) / (lam[j] - lam[m])
            share = integral(weight * basis.reshape(shape))[1]
            c.append(-decay * share * torch.exp(-s_to[k]))
            d = d - share * b_to[k]
        return decay, torch.stack(c), -decay * d


def _combine(table: _Table, y: Tensor, fs: Sequence[Tensor]) -> Tensor:
    """A y + sum_j c_j f_j + d."""
    a, c, d = table
    out = a * y + d
    for weight, f in zip(c, fs):
        out = out.addcmul(weight.expand_as(f), f)
    return out


def dpm_solver_v3(statistics: Statistics, order: int = 3, *, corrector: bool = True) -> DPMSolverV3:
    """DPM-Solver-v3, equation (3).

    Args:
        statistics: from :func:`model_statistics`, of the model to be sampled.
        order: how many values the predictor uses, 1 to 4; the first steps use what there is.
        corrector: whether each step is taken again with the value at its end, at no call.

    Raises:
        ValueError: the order is another, or, when bound, a time is outside what the statistics cover.

    Cost:
        One call a step, and tables of 2 order + 4 numbers a coordinate and step.

    Error:
        O(h^order) from pure noise, and with the corrector O(h^(order + 1)); O(h^2) and O(h^3) at most from elsewhere.

    Differs:
        The statistics are polynomials instead of values at 250 to 1000 levels, so any grid will do; all derivatives of g
        come from the polynomial, not from the paper's "pseudo" differences; no order is lowered at the end, and the last step to
        t = 0 is x = D. A first step from alpha = 0 is DDIM's.

    Source: Zheng et al. 2023 (arXiv:2310.13268), algorithms 1 and 2.

    >>> import trilemma as tl
    >>> model = tl.MixtureDenoiser(tl.VP(), torch.zeros(1, 1), tl.Covariances.diagonal(torch.full((1, 1), 0.25)))
    >>> statistics = model_statistics(model, torch.randn(64, 1, dtype=torch.float64) / 2)
    >>> x = tl.sample(model, (1, 1), torch.tensor([0.9, 0.1]), dpm_solver_v3(statistics), x=torch.ones(1, 1).double())
    >>> ts = torch.tensor([0.9, 0.1], dtype=torch.float64)
    >>> std = (model.process.alpha(ts) ** 2 * 0.25 + model.process.sigma(ts) ** 2).sqrt()
    >>> bool((x - std[1] / std[0]).abs() < 1e-6)              # one step, and as many standard deviations as before
    True
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, got {order}")
    return DPMSolverV3(statistics, order, corrector)
