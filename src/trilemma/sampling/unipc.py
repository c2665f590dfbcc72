"""UniPC: a multistep predictor, and a corrector that uses the next call twice.

In lambda = log(alpha/sigma) a step of length h from s to t, with v one of D = E[x | x_t] and eps, is

    x_t = m x_s + k sum_j W_j v_j,     m = sigma_t/sigma_s, k = alpha_t           for D,
                                       m = alpha_t/alpha_s, k = -alpha_t sigma_s/alpha_s  for eps,           (1)

with weights W that integrate polynomials against e^(u - h) for D and e^-u for eps, u in [0, h]. The predictor of order p goes
through the last p values, the corrector through these and the value at the end of the step:

    predictor   W through u_0 = 0, u_1, ..., u_{p-1},                                                        (2)
    corrector   W' through the same and u = h,                                                               (3)

but for p = 2 in (2) and p = 1 in (3), where both are straight lines, whose slope gets half the weight B(h) instead of the exact
moment: B_1 = h and B_2 = e^h - 1 (in the paper's units for eps; h -> -h for D). From three values on B(h) cancels.

The value at the end of a step is that of the predicted state, and stays so after the correction. So the call at x_t corrects
x_t by k (W' - W) v before the next step leaves from it, which is linear in the past: a :class:`Plan` with one lag of states.

Where lambda is infinite (t = 1 if alpha = 0) the step has first order and is not corrected; the last step to t = 0 is x = D.

Source: Zhao et al. 2023 (arXiv:2302.04867), algorithms 5 to 8 and appendix E.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.linear import lagrange_weights
from ..process.gaussian import GaussianProcess
from .plan import Plan

__all__ = ["UniPC", "unipc"]


@dataclass(frozen=True)
class UniPC:
    """The rule :func:`unipc`."""

    order: int
    variant: str
    prediction: str

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4, got {self.order}")
        if self.variant not in ("bh1", "bh2"):
            raise ValueError(f"variant must be 'bh1' or 'bh2', got {self.variant!r}")
        if self.prediction not in ("x0", "eps"):
            raise ValueError(f"prediction must be 'x0' or 'eps', got {self.prediction!r}")

    def __call__(self, process: GaussianProcess, ts: Tensor) -> Plan:
        """Rows in v; then those of eps in x and D."""
        alpha, sigma = process.alpha(ts).tolist(), process.sigma(ts).tolist()
        lam = (process.log_snr(ts) / 2).tolist()
        on_eps, n = self.prediction == "eps", len(ts) - 1
        if on_eps and 0 in alpha:
            raise ValueError("prediction 'eps' is singular where alpha = 0; use 'x0' or start later than t = 1")
        a, b = torch.zeros(2, n, self.order + 1, dtype=torch.float64)
        correction: list[float] = []  # of the state at the start of the step
        for i in range(n):
            if sigma[i + 1] == 0:
                b[i, 0] = 1
                continue
            m = alpha[i + 1] / alpha[i] if on_eps else sigma[i + 1] / sigma[i]
            k = -m * sigma[i] if on_eps else alpha[i + 1]
            weights, corrected = self._weights(lam, i)
            row = [m * w for w in correction] + [0.0] * (len(weights) - len(correction))
            row[: len(weights)] = [old + k * w for old, w in zip(row, weights)]
            correction = [k * (new - old) for new, old in zip(corrected, [0.0, *weights])]
            a[i, 0] = m
            for j, w in enumerate(row):
                if on_eps:
                    a[i, j] += w / sigma[i - j]
                b[i, j] += -w * alpha[i - j] / sigma[i - j] if on_eps else w
        return Plan(ts, a if on_eps else a[:, :1], b, torch.zeros(n, dtype=torch.float64))

    def _weights(self, lam: list[float], i: int) -> tuple[list[float], list[float]]:
        """(2) for v_i, v_{i-1}, ... and (3) for v_{i+1}, v_i, v_{i-1}, ...; none where lambda is infinite."""
        h, end = lam[i + 1] - lam[i], self.prediction == "x0"
        first = -math.expm1(-h)
        if math.isinf(h):
            return [first], []
        nodes = [lam[i - j] - lam[i] for j in range(min(self.order, i + 1)) if math.isfinite(lam[i - j])]
        half = (first if self.variant == "bh2" else h if end else h * math.exp(-h)) / 2
        if len(nodes) == 1:
            return [first], [half, first - half]
        corrected = lagrange_weights([h, *nodes], h, end=end)
        if len(nodes) == 2:
            slope = half * h / nodes[1]
            return [first - slope, slope], corrected
        return lagrange_weights(nodes, h, end=end), corrected


def unipc(order: int = 3, *, variant: str = "bh2", prediction: str = "x0") -> UniPC:
    """UniPC of the given order; the corrector makes it one order higher.

    Args:
        order: how many values the predictor uses, 1 to 4; the first steps use what there is.
        variant: ``"bh1"`` or ``"bh2"``, what the paper calls B(h); it matters where only two values are used.
        prediction: what the polynomials are fitted to, ``"x0"`` or ``"eps"``.

    Raises:
        ValueError: an option is another, or, when bound, ``"eps"`` is to start where alpha = 0.

    Cost:
        One call a step: the last state is not corrected.

    Error:
        O(h^(order + 1)) from pure noise, O(h^3) from elsewhere, where the first step, corrected by a straight line, counts.

    Differs:
        No order is lowered in the last steps but in that to t = 0, which is x = D (``lower_order_final=False`` elsewhere).
        The moments come without a linear system, precise for steps of any length.

    Source: Zhao et al. 2023 (arXiv:2302.04867).

    >>> from trilemma.process import EDM
    >>> print(unipc(1)(EDM(sigma_max=1.0), torch.tensor([1.0, 0.5, 0.25, 0.0])))
    step          t  a: states   b: denoised              c: noise
       0   1.000000    0.500000    0.500000   0.000000    0.000000
       1   0.500000    0.500000    0.625000  -0.125000    0.000000
       2   0.250000    0.000000    1.000000   0.000000    0.000000
       3   0.000000
    """
    return UniPC(order, variant, prediction)
