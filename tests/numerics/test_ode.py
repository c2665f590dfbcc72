"""Runge-Kutta tables by measured convergence; integration on grids and with error control, against closed forms."""

import dataclasses
import math

import pytest
import torch

from trilemma.numerics.ode import integrate, integrate_adaptive
from trilemma.numerics.tableau import HEUN, RK4, TABLES, Tableau

F64 = torch.float64


def scalar(value):
    return torch.tensor(value, dtype=F64)


tables = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
PAIRS = {name: table for name, table in TABLES.items() if table.error is not None}
pairs = pytest.mark.parametrize("table", PAIRS.values(), ids=PAIRS)


def logistic(rate, start, t):
    """Solution of a' = a (1 - a) rate'(t), a(0) = start."""
    return 1 / (1 + (1 / start - 1) * torch.exp(-rate(t)))


def exact(t, start):
    """A nonlinear system with time in it, made from two logistic curves a, b: x = a + b^2, y = b + sin t."""
    a = logistic(torch.sin, start[:, 0], t)
    b = logistic(lambda t: 1.5 * t, start[:, 1], t)
    return torch.stack([a + b**2, b + torch.sin(t)], 1)


def field(t, state):
    b = state[:, 1] - torch.sin(t)
    a = state[:, 0] - b**2
    da, db = a * (1 - a) * torch.cos(t), 1.5 * b * (1 - b)
    return torch.stack([da + 2 * b * db, db + torch.cos(t)], 1)


START = torch.tensor([[a, b] for a in (0.1, 0.2, 0.5, 0.9, 1.5) for b in (0.05, 0.3, 0.6, 1.2)], dtype=F64)


def observed_order(table, steps):
    errors = []
    for n in (steps, 2 * steps):
        ts = torch.linspace(0, 2, n + 1, dtype=F64)
        y = integrate(field, exact(ts[0], START), ts, table).y
        errors.append(float((y - exact(ts[-1], START)).norm()))
    return math.log2(errors[0] / errors[1])


@tables
def test_observed_order(table):
    order = observed_order(table, {1: 256}.get(table.order, 64))
    assert table.order - 0.25 < order < table.order + 1


@pairs
def test_observed_order_of_the_embedded_result(table):
    """A lower order than that of the result, or the difference would be no estimate of the error."""
    lower = dataclasses.replace(table, b=table.embedded, order=table.embedded_order, embedded=None, dense=None)
    assert (
        table.embedded_order - 0.25 < observed_order(lower, {1: 256, 2: 64}.get(lower.order, 16)) < table.order - 0.25
    )


@tables
def test_call_counts(table):
    calls = 0

    def count(t, y):
        nonlocal calls
        calls += 1
        return -y

    solution = integrate(count, torch.ones(1, dtype=F64), torch.linspace(0, 1, 8), table)
    # Dormand-Prince, Tsitouras and Bogacki-Shampine are "first same as last" (Hairer et al. 1993, II.5)
    reused = 6 if table.name in ("dormand_prince", "tsitouras", "bogacki_shampine") else 0
    assert calls == solution.calls == 7 * table.stages - reused


@tables
def test_backwards_and_in_parts(table):
    ts = torch.tensor([0.0, 0.1, 0.35, 0.4, 0.7], dtype=F64)
    y0 = exact(ts[0], START)
    whole = integrate(field, y0, ts, table).y
    half = integrate(field, integrate(field, y0, ts[:3], table).y, ts[2:], table).y
    torch.testing.assert_close(half, whole, rtol=1e-14, atol=1e-14)
    back = integrate(
        field, integrate(field, y0, torch.linspace(0, 0.5, 101), table).y, torch.linspace(0.5, 0, 101), table
    ).y
    torch.testing.assert_close(back, y0, rtol=0, atol=2e-2 if table.order == 1 else 1e-4)


def test_tuple_states_are_their_parts():
    ts = torch.linspace(0, 2, 9, dtype=F64)
    y0 = exact(ts[0], START)

    def parts(t, state):
        out = field(t, torch.stack([state[0], state[1][:, 0]], 1))
        return out[:, 0], out[:, 1:]

    x, y = integrate(parts, (y0[:, 0], y0[:, 1:]), ts, RK4).y
    whole = integrate(field, y0, ts, RK4).y
    assert torch.equal(x, whole[:, 0])
    assert torch.equal(y, whole[:, 1:])
    solution = integrate_adaptive(parts, (y0[:, 0], y0[:, 1:]), 0.0, 2.0, rtol=1e-8, atol=1e-8)
    expected = exact(torch.tensor(2.0, dtype=F64), START)
    torch.testing.assert_close(solution.y[0], expected[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.y[1], expected[:, 1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"b": (0.4, 0.5)}, "order 1"),
        ({"b": (0.25, 0.75)}, "order 2"),
        ({"a": ((), (0.9,))}, "row 1"),
        ({"a": ((), (1.0,), (0.5, 0.5))}, "2 weights"),
        ({"embedded": (1.0,)}, "1 embedded"),
        ({"embedded": (0.9, 0.0)}, "order 1"),
        ({"order": 3}, "order 3"),
        ({"dense": (1.0, -1.0)}, "next first"),
    ],
)
def test_wrong_tables_are_refused(change, word):
    with pytest.raises(ValueError, match=word):
        dataclasses.replace(HEUN, **change)


def test_a_wrong_digit_in_any_table_is_found():
    for table in TABLES.values():
        if table.order > 1:
            row = list(table.a[-1])
            row[0] += 1e-6
            with pytest.raises(ValueError, match=table.name):
                dataclasses.replace(table, a=(*table.a[:-1], tuple(row)))
            if table.dense is not None:
                with pytest.raises(ValueError, match=table.name):
                    dataclasses.replace(table, dense=(table.dense[0] + 1e-6, table.dense[1] - 1e-6, *table.dense[2:]))
            with pytest.raises(ValueError, match=table.name):
                dataclasses.replace(table, b=(table.b[0] + 1e-6, table.b[1] - 1e-6, *table.b[2:]))


# y' = -k (y - cos t): from lazy to stiff, with y = (k^2 cos t + k sin t) / (k^2 + 1) + C e^(-kt)
RATES = torch.tensor([0.1, 1.0, 10.0, 200.0], dtype=F64)


def relax(k):
    return lambda t, y: -k[:, None] * (y - torch.cos(t)[:, None])


def relaxed(k, t, y0):
    def slow(t):
        return (k**2 * math.cos(t) + k * math.sin(t)) / (k**2 + 1)

    return slow(t)[:, None] + (y0 - slow(0.0)[:, None]) * torch.exp(-k * t)[:, None]


Y0 = torch.tensor([2.0, -1.0, 3.0], dtype=F64).expand(4, 3)


@pairs
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
def test_error_follows_the_tolerance_for_every_item(table, tolerance):
    if tolerance < 10.0 ** (-2 * table.order - 1):
        pytest.skip("thousands of steps for a method of low order")
    s = integrate_adaptive(relax(RATES), Y0, 0.0, 2.0, rtol=tolerance, atol=tolerance, table=table)
    error = (s.y - relaxed(RATES, 2.0, Y0)).abs().amax(1)
    assert bool((error < 20 * tolerance).all()), error.tolist()  # errors of some steps add up; more would be no control
    assert s.accepted[0] < s.accepted[3]  # the easy item does not walk with the stiff one


def test_smaller_tolerance_smaller_error_at_the_rate_of_the_method():
    """Work grows like tolerance^(-1/5) for a fifth-order pair: a thousand times smaller is at most 5 times dearer."""
    calls = [
        integrate_adaptive(field, exact(torch.zeros((), dtype=F64), START), 0.0, 2.0, rtol=r, atol=r).calls
        for r in (1e-6, 1e-9)
    ]
    assert calls[1] < 5 * calls[0]


def test_an_item_does_not_know_its_batch():
    whole = integrate_adaptive(relax(RATES), Y0, 0.0, 2.0, rtol=1e-6, atol=1e-6)
    for i in range(4):
        alone = integrate_adaptive(relax(RATES[i : i + 1]), Y0[i : i + 1], 0.0, 2.0, rtol=1e-6, atol=1e-6)
        assert torch.equal(alone.y[0], whole.y[i])
        assert alone.accepted[0] == whole.accepted[i]
        assert alone.rejected[0] == whole.rejected[i]


def test_backwards_adaptively():
    end = exact(torch.tensor(2.0, dtype=F64), START)
    s = integrate_adaptive(field, end, 2.0, 0.0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(s.y, exact(torch.zeros((), dtype=F64), START), rtol=0, atol=1e-7)
    nothing = integrate_adaptive(field, end, 2.0, 2.0, rtol=1e-10, atol=1e-10)
    assert torch.equal(nothing.y, end)
    assert not bool(nothing.accepted.any())


@pairs
def test_adaptive_call_counts(table):
    calls = 0

    def count(t, y):
        nonlocal calls
        calls += 1
        return relax(RATES[:1])(t, y)

    s = integrate_adaptive(count, Y0[:1], 0.0, 2.0, rtol=1e-4, atol=1e-4, table=table)
    steps = int(s.accepted[0] + s.rejected[0])
    # one item: the first stage is known after a rejection, and after an acceptance where the last stage is the next first
    again = 0 if table.reuses_last else int(s.accepted[0])
    assert calls == s.calls
    assert calls <= 1 + steps * (table.stages - 1) + again + int(s.rejected[0])


def test_a_jump_of_tolerance_scale_is_seen():
    """A first guess must not step over a narrow bump: the integral of a normal density of width 0.01 at 0.5."""
    s = integrate_adaptive(
        lambda t, y: torch.exp(-0.5 * ((t - 0.5) / 0.01) ** 2)[:, None] / (0.01 * math.sqrt(2 * math.pi)),
        torch.zeros(1, 1, dtype=F64), 0.0, 1.0, rtol=1e-8, atol=1e-8, first_step=0.02,
    )  # fmt: skip
    assert float(s.y[0, 0]) == pytest.approx(1, abs=1e-6)


@pairs
@pytest.mark.parametrize("back", [False, True], ids=["forth", "back"])
def test_observed_order_of_the_continuation(table, back):
    """Inside one step: the cubic is wrong by h^4, with the quartic term by h^5, for every item and at every place."""
    places, errors = (0.1, 0.35, 0.5, 0.8, 0.95), []
    for h in (0.2, 0.05):
        t0, t1 = (1.0, 1.0 - h) if back else (1.0, 1.0 + h)
        begin = exact(scalar(t0), START)
        s = integrate_adaptive(field, begin, t0, t1, rtol=1e3, atol=1e3, table=table, first_step=h, dense=True)
        assert s.accepted.tolist() == [1] * len(START)
        at = [t0 + (t1 - t0) * place for place in places]
        errors.append([float((s.path(t) - exact(scalar(t), START)).norm()) for t in at])
    order = {"heun": 3, "bogacki_shampine": 4}.get(table.name, 5)  # Heun's own end is only right to h^3
    for coarse, fine in zip(*errors):
        assert math.log2(coarse / fine) / 2 > order - 0.25


def test_the_solution_in_between():
    """Items that take other steps, asked at the same times; the ends are the ends; the error follows the tolerance."""
    for tolerance in (1e-4, 1e-7):
        s = integrate_adaptive(relax(RATES), Y0, 0.0, 2.0, rtol=tolerance, atol=tolerance, dense=True)
        torch.testing.assert_close(s.path(0.0), Y0, rtol=0, atol=0)
        torch.testing.assert_close(s.path(2.0), s.y, rtol=1e-14, atol=1e-14)
        for t in torch.linspace(0, 2, 41).tolist():
            error = (s.path(t) - relaxed(RATES, t, Y0)).abs().amax(1)
            assert bool((error < 20 * tolerance).all()), (t, error.tolist())
    with pytest.raises(ValueError, match=r"from 0\.0 to 2\.0, not to 2\.1"):
        s.path(2.1)
    assert integrate_adaptive(relax(RATES), Y0, 0.0, 2.0, rtol=0.1, atol=0.1).path is None


def test_tuples_are_continued_part_by_part():
    y0 = exact(torch.tensor(0.0, dtype=F64), START)

    def parts(t, state):
        out = field(t, torch.stack([state[0], state[1][:, 0]], 1))
        return out[:, 0], out[:, 1:]

    s = integrate_adaptive(parts, (y0[:, 0], y0[:, 1:]), 0.0, 2.0, rtol=1e-8, atol=1e-8, dense=True)
    x, y = s.path(1.3)
    torch.testing.assert_close(torch.cat([x[:, None], y], 1), exact(scalar(1.3), START), rtol=0, atol=1e-6)


def test_singular_and_undefined_fields_are_named():
    start = torch.tensor([[0.1], [1.0], [0.1]], dtype=F64)
    with pytest.raises(ArithmeticError, match=r"item 1 .*t=1"):
        integrate_adaptive(lambda t, y: y**2, start, 0.0, 2.0, rtol=1e-6, atol=1e-6)  # y = 1/(1 - t)

    def broken(t, y):
        return torch.where((torch.arange(3) == 2)[:, None] & (t > 0.5)[:, None], torch.nan, -y)

    with pytest.raises(ArithmeticError, match=r"item 2 .*t=0\.5"):
        integrate_adaptive(broken, start, 0.0, 1.0, rtol=1e-6, atol=1e-6)
    with pytest.raises(ArithmeticError, match="after 10"):
        integrate_adaptive(relax(RATES), Y0, 0.0, 2.0, rtol=1e-8, atol=1e-8, max_calls=100)


def test_unusable_methods_and_tolerances_are_refused():
    for bad in ({"rtol": -1.0, "atol": 1.0}, {"rtol": 0.0, "atol": 0.0}):
        with pytest.raises(ValueError, match="tolerances"):
            integrate_adaptive(field, START, 0.0, 1.0, **bad)
    with pytest.raises(ValueError, match="rk4"):
        integrate_adaptive(field, START, 0.0, 1.0, rtol=1e-3, atol=1e-3, table=RK4)
    with pytest.raises(ValueError, match="first axis"):
        integrate(lambda t, y: y, (torch.ones(2), torch.ones(3)), torch.linspace(0, 1, 3))
    assert isinstance(TABLES["heun"], Tableau)
