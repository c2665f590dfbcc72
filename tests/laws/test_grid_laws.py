"""Laws of every time grid on every process, and the spacing that gives each its name."""

import math

import numpy as np
import pytest
import torch

from oracles import F64, PROCESS_CASES, scalar
from trilemma.process import EDM, GRIDS, PROCESSES, Flow, FromBetas
from trilemma.process.grid import (
    angular_grid,
    karras_grid,
    leading_grid,
    log_snr_grid,
    quadratic_grid,
    shifted_grid,
    trailing_grid,
    uniform_grid,
)
from trilemma.sampling.loop import check_grid

every = pytest.mark.parametrize("process", [pytest.param(p, id=name) for name, p in PROCESS_CASES.items()])
registry = pytest.mark.parametrize("process", [pytest.param(make(), id=name) for name, make in PROCESSES.items()])


def most_steps(name, process):
    return min(100, process.steps) if name in ("trailing", "leading") and isinstance(process, FromBetas) else 100


@pytest.mark.parametrize("name", GRIDS)
@every
def test_from_one_to_zero_and_accepted_by_the_sampler(name, process):
    most = most_steps(name, process)
    for steps in [n for n in (*range(1, 11), 17, 33, 50, 99, 100) if n <= most]:
        ts = GRIDS[name](process, steps)
        assert torch.equal(check_grid(ts), ts)
        assert ts.dtype == F64
        assert len(ts) == steps + 1
        assert ts[0] == 1
        assert ts[-1] == 0


@pytest.mark.parametrize("name", GRIDS)
def test_no_steps_are_refused(name):
    for steps in (0, -3):
        with pytest.raises(ValueError, match="at least one step"):
            GRIDS[name](Flow(), steps)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("grid", "bad"),
    [
        *((karras_grid, {"rho": v}) for v in (0.0, -7.0, INF, NAN)),
        *((karras_grid, {"sigma_min": v}) for v in (0.0, -1.0, 80.0, 81.0, NAN)),
        *((karras_grid, {"sigma_max": v}) for v in (0.002, INF, NAN)),
        *((log_snr_grid, {"low": v}) for v in (11.0, 12.0, -INF, NAN)),
        *((log_snr_grid, {"high": v}) for v in (-10.0, INF, NAN)),
        *((shifted_grid, {"shift": v}) for v in (0.0, -1.0, INF, NAN)),
        *((angular_grid, {"sigma_data": v}) for v in (0.0, -1.0, INF, NAN)),
        *((angular_grid, {"spread": v}) for v in (0.0, -1.0, 2.001, NAN)),
        *((angular_grid, {"centre": v}) for v in (INF, -INF, NAN)),
    ],
)
def test_options_out_of_range_are_refused_by_value(grid, bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=rf"{grid.__name__} needs .*{name}.*; got .*{value}"):
        grid(Flow(), 10, **bad)


def levels(process, ts):
    """sigma/alpha of all but both ends; the first time is always 1, however far that is."""
    inner = ts[1:-1]
    return process.sigma(inner) / process.alpha(inner)


@registry
def test_spacings(process):
    top = float(process.log_snr(scalar(1.0)))
    ts = uniform_grid(process, 20)
    torch.testing.assert_close(ts.diff(), torch.full((20,), -0.05, dtype=F64))
    gaps = process.log_snr(log_snr_grid(process, 20, low=-5.0, high=9.0)[1:-1]).diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 14 / 19))
    gaps = process.log_snr(log_snr_grid(process, 20)[1:-1]).diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, (11 + min(10, -top)) / 19))
    for rho in (1.0, 7.0):
        roots = levels(process, karras_grid(process, 20, rho=rho, sigma_min=0.01, sigma_max=30.0)) ** (1 / rho)
        start, end = 30 ** (1 / rho), 0.01 ** (1 / rho)
        torch.testing.assert_close(roots[-1], scalar(end))
        torch.testing.assert_close(roots.diff(), torch.full_like(roots[1:], (end - start) / 19))
    for shift in (0.5, 1.0, 3.0):  # u / (1 - u) / shift is that of equal spacing, for u as a share of u(1)
        u = levels(process, shifted_grid(process, 20, shift=shift))
        most = 1 / (1 + math.exp(top / 2))
        share = u / (1 + u) / most
        equal = share / (shift + (1 - shift) * share)
        torch.testing.assert_close(equal, torch.linspace(1, 0, 21, dtype=F64)[1:-1])


def test_karras_at_the_defaults_of_the_paper():
    """Karras et al. 2022, table 1 and equation (5): N = 18, sigma from 80 to 0.002, rho = 7."""
    ts = karras_grid(EDM(), 18)
    sigma = 80 * ts
    for i in range(18):
        expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert float(sigma[i]) == pytest.approx(expected, rel=1e-9)
    assert float(sigma[18]) == 0
    # the same noise levels on any other process
    for process in (Flow(), FromBetas()):
        torch.testing.assert_close(levels(process, karras_grid(process, 18)), sigma[1:-1], rtol=1e-6, atol=0)


def test_trailing_is_on_the_steps_of_the_chain():
    """Lin et al. 2024, table 2: of T = 1000 and 10 steps, trailing takes 1000, 900, ..., 100."""
    chain = FromBetas()
    assert (trailing_grid(chain, 10) * 1000).tolist() == pytest.approx([1000 - 100 * k for k in range(11)])
    places = trailing_grid(chain, 7) * 1000
    torch.testing.assert_close(places, places.round(), rtol=0, atol=1e-9)
    assert float((places - torch.linspace(1000, 0, 8, dtype=F64)).abs().max()) <= 0.5
    assert (trailing_grid(chain, 1000) * 1000).tolist() == pytest.approx(list(range(1000, -1, -1)))
    with pytest.raises(ValueError, match=r"1001 steps .* 1000"):
        trailing_grid(chain, 1001)


@pytest.mark.parametrize(("steps", "offset"), [(10, 0), (7, 0), (50, 1), (1000, 0), (300, 1)])
def test_leading_is_that_of_diffusers(steps, offset):
    """Diffusers' DDIMScheduler: ``(arange(N) * (T // N))[::-1] + steps_offset``, where its step k is time (k + 1) / T here."""
    chain = FromBetas()
    k = (np.arange(steps) * (1000 // steps)).round()[::-1] + offset
    ts = leading_grid(chain, steps, offset=offset, published=True)
    assert (ts[:-1] * 1000).tolist() == pytest.approx((k + 1).tolist())
    started = leading_grid(chain, steps, offset=offset)
    assert torch.equal(started[1:], ts[1:])
    assert started[0] == 1


def test_leading_stays_in_its_chain():
    """Lin et al. 2024, table 2: of T = 1000 and 10 steps, leading takes 1, 101, ..., 901."""
    assert (leading_grid(FromBetas(), 10, published=True) * 1000).tolist() == pytest.approx([*range(901, 0, -100), 0])
    with pytest.raises(ValueError, match=r"1001 steps .* 1000"):
        leading_grid(Flow(), 1001)
    with pytest.raises(ValueError, match=r"offset=100 .* take 0 to 99"):
        leading_grid(FromBetas(), 10, offset=100)
    assert leading_grid(FromBetas(), 10, offset=99, published=True)[0] == 1
    with pytest.raises(ValueError, match="offset=-1"):
        leading_grid(FromBetas(), 10, offset=-1)


@registry
def test_quadratic_times_have_equal_roots(process):
    roots = quadratic_grid(process, 20).sqrt()
    torch.testing.assert_close(roots.diff(), torch.full((20,), -0.05, dtype=F64))


def test_shift_of_a_flow_is_the_published_map():
    """Esser et al. 2024, equation (23): t' = s t / (1 + (s - 1) t)."""
    t = uniform_grid(Flow(), 10)
    torch.testing.assert_close(shifted_grid(Flow(), 10, shift=3.0), 3 * t / (1 + 2 * t))
