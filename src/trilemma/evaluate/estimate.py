"""A figure with the interval in which the value at large N lies, and three ways to get one.

Random halvings serve every statistic T, smooth or not, of one or two sets, degenerate or not. Split each set into random
halves, R times; T_1, T_2 are the statistic of the halves, A = (T_1 + T_2)/2, and B the mean of A over all halvings. As A
varies with the data and, given the data, with the halving,

(1)  Var B = Var A - E Var(A | data) = E (T_1 - T_2)^2 / 4 - E Var(A | data)

where both terms are seen: the halves are independent, and the spread of A over halvings of the same data is the last term.
A bias c/N of T_N doubles in the halves, so that it is removed by

(2)  T_infinity = 2 T_N - B

whose terms of first and second order in the data are those of T_N without the diagonal, and therefore those of B. A
statistic of near neighbours is defined at its N and has no such limit; its variance falls as 1/N, so that E (T_1 - T_2)^2 / 4
is the variance of T_N itself.

(3)  T_infinity = (8 T_N - 6 B + C) / 3, with C the mean over quarters: without the bias c'/N^2 as well
(4)  mean of n values: t quantile of n - 1 degrees of freedom times s / sqrt(n)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from ..numerics.student import quantile
from .agreement import Proportion
from .stamp import Stamp, require_same

__all__ = [
    "Estimate",
    "compare",
    "halves",
    "of_halves",
    "of_mean",
    "of_proportion",
    "of_share",
    "of_variance",
    "shuffles",
]


@dataclass(frozen=True)
class Estimate:
    """A figure, and where its value for ever more samples lies with probability ``confidence``.

    Some figures are biased in N, as published (the Frechet distance is too large): then the interval, which is that of the
    value at large N, can lie beside ``value``, and ``str`` says so.

    Args:
        value: as published.
        low: lower end of the interval.
        high: upper end.
        n: samples that it is made of, of the smaller set if there are two.
        method: how the interval was found, and what it covers.
        confidence: probability that the interval covers.
        metric: name in the registry, "" outside it.
        stamp: the protocol; figures of different stamps are never compared.
        note: a warning in a sentence, or "".

    >>> print(Estimate(12.31, 11.86, 12.79, 5000, "jackknife"))
    12.3 [11.9, 12.8]
    >>> print(Estimate(12.31, 9.9, 11.1, 5000, "halvings"))
    12.3 [9.9, 11.1 at large N]
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95
    metric: str = ""
    stamp: Stamp | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is none")

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        # half a width is shown to one digit, or to two where the first is small and one would round too much away
        digits = -math.floor(math.log10(half / 3.5)) if 0 < half < math.inf else 4
        form = f".{max(0, digits)}f" if digits <= 6 else ".3g"
        beside = "" if self.low <= self.value <= self.high else " at large N"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}{beside}]"


def of_variance(
    value: float,
    variance: float,
    *,
    n: int,
    method: str,
    centre: float | None = None,
    degrees: float = math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    confidence: float = 0.95,
    note: str = "",
) -> Estimate:
    """An estimate from a variance: ``centre`` (or ``value``) and its quantile of standard errors to each side.

    Args:
        value: the figure.
        variance: of ``centre``.
        n: see `Estimate`.
        method: see `Estimate`.
        centre: unbiased figure, where the value is not.
        degrees: of freedom of the variance.
        least: no value at large N is below it; the interval ends there.
        most: none is above it.
        confidence: of the interval.
        note: see `Estimate`.

    >>> print(of_variance(1.0, 0.01, n=10, method="known variance"))
    1.00 [0.80, 1.20]
    """
    middle = value if centre is None else centre
    half = quantile(confidence, degrees) * math.sqrt(max(0.0, variance))
    low, high = (min(max(end, least), most) for end in (middle - half, middle + half))
    return Estimate(value, low, high, n, method, confidence, note=note)


def of_mean(values: Tensor, *, confidence: float = 0.95, method: str = "t interval of a mean") -> Estimate:
    """The mean of independent values, (4).

    Args:
        values: ``(n,)``, n >= 2.
        confidence: of the interval.
        method: see `Estimate`.

    Raises:
        ValueError: fewer than two values, or one that is not finite.

    >>> print(of_mean(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])))
    3.0 [1.0, 5.0]
    """
    if values.ndim != 1 or len(values) < 2 or not bool(values.isfinite().all()):
        raise ValueError(f"an interval needs at least two finite values in one row; got {tuple(values.shape)}")
    x, n = values.double(), len(values)
    return of_variance(float(x.mean()), float(x.var()) / n, n=n, method=method, degrees=n - 1, confidence=confidence)


def of_proportion(share: Proportion, *, confidence: float = 0.95, method: str = "Wilson interval") -> Estimate:
    """A share of independent items with Wilson's interval.

    >>> print(of_proportion(Proportion(95, 100)))
    0.95 [0.89, 0.98]
    """
    low, high = share.interval(quantile(confidence))
    return Estimate(share.value, min(low, share.value), max(high, share.value), share.n, method, confidence)


def of_share(value: float, n: int, *, confidence: float = 0.95) -> Estimate:
    """All or none of ``n`` items, whose spread says nothing: Wilson's interval of independent ones.

    >>> print(of_share(1.0, 20))
    1.00 [0.84, 1.00]
    """
    return of_proportion(
        Proportion(round(value * n), n), confidence=confidence, method="Wilson interval, as all items are alike"
    )


def halves(n: int, repeats: int, *, seed: int, stream: int = 0) -> Tensor:
    """``repeats`` random halvings of ``n`` items.

    Args:
        n: number of items, at least 4.
        repeats: how many.
        seed: of the draw.
        stream: another number, other halvings: one for each set of two.

    Returns:
        ``(repeats, n)`` bool, True for the ``n // 2`` items of the first half.

    Raises:
        ValueError: fewer than four items.

    >>> halves(5, 3, seed=0).sum(1).tolist()
    [2, 2, 2]
    """
    if n < 4:
        raise ValueError(f"{n} items cannot be halved for an interval; give at least 4")
    return shuffles(n, repeats, seed=seed, stream=stream).argsort(1) < n // 2


def shuffles(n: int, repeats: int, *, seed: int, stream: int = 0) -> Tensor:
    """``(repeats, n)`` int64: random orders of ``n`` items; of which the first half makes that of `halves`.

    >>> shuffles(5, 2, seed=0).sort(1).values.tolist()
    [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """
    return Noise(seed, repeats).at(stream).uniform((repeats, n), dtype=torch.float64).argsort(1)


def of_halves(
    value: float,
    parts: Tensor,
    *,
    n: int,
    method: str,
    unbiased: bool,
    quarters: Tensor | None = None,
    least: float = -math.inf,
    most: float = math.inf,
    confidence: float = 0.95,
    extra: float = 0.0,
    note: str = "",
) -> Estimate:
    """An estimate from a statistic of random halves, equations (1) to (3).

    Args:
        value: the statistic T_N of all items.
        parts: ``(R, 2)``, that of the two halves of each of R halvings.
        n: see `Estimate`.
        method: see `Estimate`.
        unbiased: remove the bias c/N, (2), for the value at large N; otherwise the interval covers the mean of T_N itself,
            for statistics that are defined at their N.
        quarters: ``(R, 4)``, that of the quarters, two of each half, to remove a bias c'/N^2 as well, by (3).
        least: see `of_variance`.
        most: see `of_variance`.
        confidence: of the interval.
        extra: a variance to add.
        note: see `Estimate`.

    >>> parts = torch.tensor([[1.0, 1.2], [1.2, 1.0], [0.9, 1.3], [1.1, 1.1]])
    >>> of_halves(1.1, parts, n=100, method="halvings", unbiased=True).value
    1.1
    """
    parts = parts.double()
    repeats = len(parts)
    middle = parts.mean(1)
    within = float((parts[:, 0] - parts[:, 1]).square().mean()) / 4
    spread = float(middle.var())
    limit = 2 * value - middle  # (2)
    if quarters is not None:
        limit = (8 * value - 6 * middle + quarters.double().mean(1)) / 3  # (3)
    variance = within
    if unbiased:
        variance = max(within - spread, spread / 2) + float(limit.var()) / repeats  # (1), and that R is finite
    return of_variance(
        value,
        variance + extra,
        centre=float(limit.mean()) if unbiased else None,
        n=n,
        method=method,
        degrees=repeats,
        least=least,
        most=most,
        confidence=confidence,
        note=note,
    )


def compare(a: Estimate, b: Estimate) -> Estimate:
    """The difference ``a - b`` of two independent figures of the same metric and protocol, with its interval.

    Raises:
        ValueError: metrics, confidences or stamps differ, or a stamp is missing: the sentence names what differs.

    >>> stamp = Stamp("pixels", "00", "digits", "11", "none", 100, 0)
    >>> first = Estimate(3.0, 2.0, 4.0, 100, "m", stamp=stamp)
    >>> print(compare(first, Estimate(1.0, 0.0, 2.0, 100, "m", stamp=stamp)))
    2.0 [0.6, 3.4]
    """
    if a.metric != b.metric or a.confidence != b.confidence:
        what = f"{a.metric or 'unnamed'} at {a.confidence:.0%} and {b.metric or 'unnamed'} at {b.confidence:.0%}"
        raise ValueError(f"{what} are not one metric and are not compared")
    require_same(a.stamp, b.stamp)
    centre = (a.low + a.high - b.low - b.high) / 2
    half = math.hypot(a.high - a.low, b.high - b.low) / 2
    return Estimate(
        a.value - b.value,
        centre - half,
        centre + half,
        min(a.n, b.n),
        "difference of independent figures",
        a.confidence,
        a.metric,
        a.stamp,
    )
