"""Published constants and formulas of the noise processes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from oracles import F64, f64, scalar
from trilemma.process import (
    EDM,
    PROCESSES,
    VE,
    VP,
    Cosine,
    Flow,
    FromBetas,
    Shifted,
    Sigmoid,
    SubVP,
    cosine_betas,
    linear_betas,
    process_from_config,
    process_from_entry,
    zero_terminal_snr,
)


def level(process, t):
    """sigma/alpha."""
    t = scalar(t)
    return float(process.sigma(t) / process.alpha(t))


def test_vp_levels():
    # Karras et al. 2022, section 3 and appendix C: VP covers sigma from 0.01 at t = 1e-3 to 152 at t = 1
    assert level(VP(), 1.0) == pytest.approx(152, abs=1)
    assert level(VP(), 1e-3) == pytest.approx(0.010, abs=1e-3)
    # Song et al. 2021, appendix C: the standard deviation at the ends of the integration
    assert float(VP().sigma(scalar(1e-5))) == pytest.approx(1.0e-3, rel=0.01)
    assert float(SubVP().sigma(scalar(1e-5))) == pytest.approx(1.0e-6, rel=0.01)
    assert float(SubVP().sigma(scalar(1e-3))) == pytest.approx(1.1e-4, rel=0.01)
    assert float(VP().alpha(scalar(1.0))) == pytest.approx(0.0066, abs=1e-4)


def test_sub_vp_diffusion_is_the_published_one():
    # Song et al. 2021, equation (28): g^2 = beta (1 - e^(-2 int beta))
    t = torch.linspace(0, 1, 101, dtype=F64)
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
    torch.testing.assert_close(SubVP().diffusion2(t), beta * -torch.expm1(-2 * integral), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(SubVP().drift(t), -beta / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(VP().diffusion2(t), beta, rtol=1e-12, atol=0)
    torch.testing.assert_close(SubVP().sigma(t), 1 - SubVP().alpha(t) ** 2, rtol=1e-9, atol=1e-15)


def test_ve_adds_the_published_noise():
    # Song et al. 2021, equation (30): g = sigma_min (sigma_max/sigma_min)^t sqrt(2 log(sigma_max/sigma_min)); CIFAR-10: .01 to 50
    t = torch.linspace(0, 1, 11, dtype=F64)
    g = 0.01 * 5000**t * math.sqrt(2 * math.log(5000))
    torch.testing.assert_close(VE().diffusion2(t), g**2, rtol=1e-12, atol=0)
    assert level(VE(), 1.0) == pytest.approx(50, rel=1e-6)
    # with the first noise of the paper in the data, the variances are the paper's
    torch.testing.assert_close(VE().sigma(t) ** 2 + 0.01**2, (0.01 * 5000**t) ** 2, rtol=1e-12, atol=0)


def test_straight_and_trigonometric_processes():
    t = torch.linspace(0, 1, 11, dtype=F64)
    torch.testing.assert_close(Flow().rates(t), (-torch.ones_like(t), torch.ones_like(t)))
    torch.testing.assert_close(EDM().sigma(t), 80 * t)
    # Hoogeboom et al. 2023, equation (2): log-SNR = -2 log tan(pi t / 2)
    inner = t[1:-1]
    torch.testing.assert_close(
        Cosine().log_snr(inner), -2 * torch.log(torch.tan(math.pi * inner / 2)), rtol=1e-12, atol=1e-12
    )
    assert float(Cosine().alpha(scalar(1.0))) == 0
    # Jabri et al. 2022, listing: gamma(t) = (v_end - sigmoid(t')) / (v_end - v_start)
    s = 1 / (1 + np.exp(-(-3 + 6 * t.numpy())))
    np.testing.assert_allclose(Sigmoid().alpha(t).numpy() ** 2, (s[-1] - s) / (s[-1] - s[0]), rtol=1e-12, atol=1e-15)


def test_chain_is_the_textbook_product_at_every_step():
    """alpha-bar from rational betas; Ho et al. 2020, section 4: equally spaced from 1e-4 to 0.02 in 1000 steps."""
    process = FromBetas()
    betas = [Fraction(1, 10**4) + Fraction(k, 999) * (Fraction(2, 100) - Fraction(1, 10**4)) for k in range(1000)]
    bar, bars = 1.0, []
    for beta in betas:  # rational factors, products rounded to 1e-16 each
        bar *= float(1 - beta)
        bars.append(bar)
    t = torch.arange(1, 1001, dtype=F64) / 1000
    np.testing.assert_allclose(process.alpha(t).numpy() ** 2, bars, rtol=1e-12)
    np.testing.assert_allclose(process.sigma(t).numpy() ** 2, 1 - np.array(bars), rtol=1e-11)
    assert process.steps == 1000
    assert bars[-1] == pytest.approx(4.036e-5, rel=1e-3)


def test_cosine_chain():
    """Nichol and Dhariwal 2021, equation (17), s = 0.008 and beta at most 0.999; Karras et al. 2022 sample it from sigma = 81."""
    process = FromBetas(cosine_betas())
    f = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1001)]
    t = torch.arange(1, 999, dtype=F64) / 1000  # the last betas are cut
    np.testing.assert_allclose(process.alpha(t).numpy() ** 2, np.array(f[1:999]) / f[0], rtol=1e-9)
    assert max(process.betas) == 0.999
    assert level(process, 0.992) == pytest.approx(81, abs=1)


def test_zero_terminal_snr():
    """Lin et al. 2024, algorithm 1: the first alpha stays, the last is 0, and the rest moves affinely."""
    old, new = FromBetas(), FromBetas(zero_terminal_snr(linear_betas()))
    t = torch.arange(1, 1001, dtype=F64) / 1000
    a, b = old.alpha(t), new.alpha(t)
    assert float(b[-1]) == 0
    assert float(b[0]) == pytest.approx(float(a[0]), rel=1e-14)
    stretch = (b[0] - b[500]) / (a[0] - a[500])
    torch.testing.assert_close(b[0] - b, stretch * (a[0] - a), rtol=1e-10, atol=1e-13)
    assert float(new.log_snr(scalar(1.0))) == -math.inf
    assert float(new.time(scalar(-math.inf))) == 1
    assert zero_terminal_snr(new.betas) == pytest.approx(new.betas, rel=1e-9)  # nothing is left to do


def test_between_the_steps_of_a_chain_nothing_surprising():
    process = FromBetas((0.1, 0.2, 0.9))
    t = torch.linspace(0, 1, 301, dtype=F64)
    torch.testing.assert_close(process.alpha(t) ** 2 + process.sigma(t) ** 2, torch.ones_like(t))
    k = torch.arange(4, dtype=F64) / 3
    torch.testing.assert_close(process.alpha(k) ** 2, f64(1, 0.9, 0.72, 0.072))
    torch.testing.assert_close(process.alpha((k[:-1] + k[1:]) / 2), (process.alpha(k[:-1]) + process.alpha(k[1:])) / 2)


def test_shift_for_resolution():
    # Hoogeboom et al. 2023, equation (4): log-SNR of 64 pixels plus 2 log(64/d)
    t = torch.linspace(0.1, 0.9, 9, dtype=F64)
    base = VP()
    for side in (32, 64, 256):
        shifted = Shifted.for_resolution(base, side)
        torch.testing.assert_close(shifted.log_snr(t) - base.log_snr(t), torch.full_like(t, 2 * math.log(64 / side)))
        # averaging blocks of (d/64)^2 pixels brings the level back: sigma per block is sigma 64/d
        torch.testing.assert_close(shifted.sigma(t) * 64 / side, base.sigma(t))
    assert Shifted(Shifted(base, 1.0), 2.0).time(scalar(5.0)) == pytest.approx(
        float(Shifted(base, 3.0).time(scalar(5.0)))
    )


@pytest.mark.parametrize("betas", [(0.1,), (0.1, 1.0, 0.2), (0.0, 0.1), (0.1, -0.1), (0.1, 1.1), (0.1, math.nan)])
def test_bad_chains_are_refused(betas):
    with pytest.raises(ValueError, match=r"beta"):
        FromBetas(betas)


def test_bad_configurations_name_the_nearest():
    with pytest.raises(ValueError, match="FromBetas"):
        process_from_config({"class": "FromBeta"})
    with pytest.raises(ValueError, match=r"sigma_maxx.*sigma_max"):
        process_from_config({"class": "EDM", "sigma_maxx": 3.0})


def test_entries_of_settings():
    for name, make in PROCESSES.items():
        assert process_from_entry(name) == process_from_entry(f"{name}:shift=0") == make()
    assert process_from_entry("vp:beta_max=10, beta_min=0.2") == VP(0.2, 10.0)
    assert process_from_entry("edm:sigma_max=4e1,shift=-1") == Shifted(EDM(40.0), -1.0)
    assert process_from_entry(f"ddpm:shift={2 * math.log(64 / 256)}") == Shifted.for_resolution(FromBetas(), 256)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("flwo", "unknown process 'flwo'; did you mean 'flow'"),
        ("vp:beta_mx=10", "unknown vp setting 'beta_mx'; did you mean 'beta_max'.* beta_max, beta_min, shift"),
        ("flow:sigma_max=3", "unknown flow setting 'sigma_max'. There are: shift"),
        ("vp:10", "'vp:10' should read .* as in 'vp:beta_max=10'"),
        ("vp:beta_max", "should read"),
        ("vp:beta_max=ten", "should read"),
        ("vp:beta_max=10,", "should read"),
        ("vp:beta_max=0.01", "0 < beta_min <= beta_max"),
        ("edm:sigma_max=inf", "finite sigma_max"),
        ("flow:shift=nan", "shift=nan must be a finite number"),
    ],
)
def test_bad_entries_are_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        process_from_entry(entry)
