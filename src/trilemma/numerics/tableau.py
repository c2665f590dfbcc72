"""Explicit Runge-Kutta methods as frozen data that check themselves.

A method with S stages takes a step of length h from y at t:

    k_i = f(t + c_i h, y + h sum_{j<i} a_ij k_j),     y' = y + h sum_i b_i k_i,                              (1)

and with embedded weights e its error estimate is h sum_i (b_i - e_i) k_i.                                   (2)
Between its ends the step is continued by the cubic through both states and slopes, of third order, or with weights d by

    y(t + x h) = cubic(x) + x^2 (1 - x)^2 h sum_i d_i k_i,                                                   (3)

of fourth order.

Sources: Butcher 2016, "Numerical methods for ordinary differential equations"; Bogacki and Shampine 1989; Dormand and Prince
1980; Tsitouras 2011 (table 1); Shampine 1986 and Hairer et al. 1993, II.6, for the continuation of Dormand and Prince's.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BOGACKI_SHAMPINE", "DORMAND_PRINCE", "EULER", "HEUN", "MIDPOINT", "RK4", "TABLES", "TSITOURAS", "Tableau"]


@dataclass(frozen=True)
class Tableau:
    """Coefficients of (1) and (2).

    Args:
        name: how the method is called.
        a: rows of the stage matrix, row ``i`` with ``i`` entries.
        b: weights, one a stage.
        c: nodes in [0, 1], one a stage.
        order: order of the result.
        embedded: weights of the result of lower order for the error estimate, or nothing.
        embedded_order: its order.
        dense: weights of the quartic term (3), for methods whose last stage is the next first, or nothing.

    Raises:
        ValueError: the shapes do not fit, a row of ``a`` does not sum to its node, or an order condition up to the declared
            order (at most four are checked here; the tests check all by convergence) does not hold.
    """

    name: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    embedded: tuple[float, ...] | None = None
    embedded_order: int = 0
    dense: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        stages = len(self.b)
        if [len(row) for row in self.a] != list(range(stages)) or len(self.c) != stages:
            raise ValueError(
                f"{self.name}: an explicit method with {stages} weights needs rows of 0 to {stages - 1} entries"
            )
        for i, row in enumerate(self.a):
            if abs(sum(row) - self.c[i]) > 1e-12:
                raise ValueError(f"{self.name}: row {i} of a sums to {sum(row)}, its node is {self.c[i]}")
        self._check(self.b, self.order)
        if self.embedded is not None:
            if len(self.embedded) != stages:
                raise ValueError(f"{self.name}: {len(self.embedded)} embedded weights for {stages} stages")
            self._check(self.embedded, self.embedded_order)
        if self.dense is not None:
            if len(self.dense) != stages or not self.reuses_last:
                raise ValueError(f"{self.name}: (3) needs {stages} weights and a last stage that is the next first")
            self._check(self.dense, 4, lowest=4)  # the cubic has what is below

    def _check(self, weights: tuple[float, ...], order: int, lowest: int = 1) -> None:
        """Butcher's conditions up to order four, one a rooted tree; those below the lowest with 0 on the right."""
        a, c = self.a, self.c

        def inner(values: list[float]) -> list[float]:
            return [sum(row[j] * values[j] for j in range(len(row))) for row in a]

        one, squares = [1.0] * len(c), [x * x for x in c]
        ac = inner(list(c))
        trees = [
            (1, one, 1.0),
            (2, list(c), 1 / 2),
            (3, squares, 1 / 3),
            (3, ac, 1 / 6),
            (4, [x**3 for x in c], 1 / 4),
            (4, [x * y for x, y in zip(c, ac)], 1 / 8),
            (4, inner(squares), 1 / 12),
            (4, inner(ac), 1 / 24),
        ]
        for degree, values, target in trees:
            total = sum(w * v for w, v in zip(weights, values))
            target = target if degree >= lowest else 0.0
            if degree <= order and abs(total - target) > 1e-9:
                raise ValueError(f"{self.name}: a condition of order {degree} gives {total}, not {target}")

    @property
    def stages(self) -> int:
        """Number of evaluations a step, before any reuse."""
        return len(self.b)

    @property
    def reuses_last(self) -> bool:
        """Whether the last stage is the first of the next step (first same as last)."""
        return self.stages > 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0 and self.c[-1] == 1

    @property
    def error(self) -> tuple[float, ...] | None:
        """Weights of the error estimate (2)."""
        return None if self.embedded is None else tuple(b - e for b, e in zip(self.b, self.embedded))


EULER = Tableau("euler", a=((),), b=(1.0,), c=(0.0,), order=1)
MIDPOINT = Tableau("midpoint", a=((), (1 / 2,)), b=(0.0, 1.0), c=(0.0, 1 / 2), order=2)
HEUN = Tableau("heun", a=((), (1.0,)), b=(1 / 2, 1 / 2), c=(0.0, 1.0), order=2, embedded=(1.0, 0.0), embedded_order=1)
RK4 = Tableau(
    "rk4",
    a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 1 / 2, 1 / 2, 1.0),
    order=4,
)
BOGACKI_SHAMPINE = Tableau(
    "bogacki_shampine",
    a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0.0),
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    order=3,
    embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    embedded_order=2,
)
DORMAND_PRINCE = Tableau(
    "dormand_prince",
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    order=5,
    embedded=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    embedded_order=4,
    dense=(
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    ),
)
_TSIT_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)
_TSIT_ERROR = (
    -0.001780011052226,
    -0.000816434459657,
    0.007880878010262,
    -0.144711007173263,
    0.582357165452555,
    -0.458082105929187,
    1 / 66,
)
TSITOURAS = Tableau(
    "tsitouras",
    a=(
        (),
        (0.161,),
        (-0.008480655492357, 0.335480655492357),
        (2.897153057105494, -6.359448489975075, 4.362295432869581),
        (5.32586482843926, -11.74888356406283, 7.495539342889836, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.02826905039406838),
        _TSIT_B,
    ),
    b=(*_TSIT_B, 0.0),
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    order=5,
    embedded=tuple(b + e for b, e in zip((*_TSIT_B, 0.0), _TSIT_ERROR)),
    embedded_order=4,
    dense=(
        -1.0530884977290216,
        0.1017,
        2.4906272856512528,
        -16.54810288924490,
        47.37952196281928,
        -34.87065786149661,
        2.5,
    ),
)

TABLES = {t.name: t for t in (EULER, MIDPOINT, HEUN, RK4, BOGACKI_SHAMPINE, DORMAND_PRINCE, TSITOURAS)}
"""Every table by its name."""
