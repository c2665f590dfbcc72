"""Encoding: against closed forms and SciPy's solution, its orders, its exact inverse, and the geometry of interpolation."""

import math

import pytest
import torch
from torch import nn

from oracles import F64, PROCESS_CASES, Mixture, flow_truth, scalar
from trilemma.denoise import Covariances, Denoiser, Gaussian, GaussianDenoiser, Preconditioned
from trilemma.likelihood.encode import LEVELS, Latent, decode, encode, round_trip
from trilemma.likelihood.interpolate import interpolate, slerp
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Flow
from trilemma.process.grid import angular_grid
from trilemma.sampling import sample

both = pytest.mark.parametrize("reversible", [False, True], ids=["adams", "reversible"])


def gaussian(process, variances, mean=0.0):
    values = torch.as_tensor(variances, dtype=F64)[None]
    return GaussianDenoiser(process, torch.full(values.shape[1:], mean), Covariances.diagonal(values))


@both
@pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_gaussian_data_against_the_closed_form(process, reversible):
    """x_t = alpha x sqrt((s^2 + q^2) / (s^2 + q_0^2)), q = sigma/alpha, from the lowest level; a tensor of rank 3, d not s."""
    s, d, one = 0.8, 0.5, scalar(1.0)
    x = torch.linspace(-2, 2, 12, dtype=F64).reshape(2, 3, 2, 1)
    model = GaussianDenoiser(process, torch.zeros(3, 2, 1), Covariances.diagonal(torch.full((1, 6), s**2)))
    z = encode(model, x, steps=120, reversible=reversible).z
    alpha, sigma = float(process.alpha(one)), float(process.sigma(one))
    low, high = (level * d for level in LEVELS)
    if alpha * high > sigma:  # solved to t = 1
        exact = x * math.sqrt((alpha**2 * s**2 + sigma**2) / (s**2 + low**2)) / sigma
    else:  # y = x_t / r is kept from the highest level on
        y = x * math.sqrt((s**2 + high**2) / (s**2 + low**2) / (d**2 + high**2))
        exact = y * math.hypot(alpha * d, sigma) / sigma
    torch.testing.assert_close(z, exact, rtol=2e-5, atol=0)
    torch.testing.assert_close(decode(model, z, steps=120), x, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(("reversible", "order"), [(False, 2.75), (True, 3.75)])
def test_order_against_scipy(reversible, order):
    """A mixture's flow up, from the ends of a SciPy solution to its starts; the first steps of Adams' method cost one order."""
    low, high = -3.0, 3.0
    mixture, start, end = flow_truth(low, high)
    model, one, d = mixture.torch(EDM()), scalar(1.0), 0.5
    levels = (math.exp(-high / 2) / d, math.exp(-low / 2) / d)
    errors = []
    for steps in (60, 120):
        z = encode(model, end, steps=steps, levels=levels, reversible=reversible).z
        y = z * EDM().sigma(one) / torch.hypot(EDM().sigma(one), scalar(d))
        errors.append(float((y * math.hypot(d, levels[1] * d) - start).norm()))
    assert math.log2(errors[0] / errors[1]) >= order


class Net(nn.Module):
    """A small network of nothing in particular, with classes."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.a, self.b = (nn.Conv2d(*c, 3, padding=1) for c in ((2, 8), (8, 2)))
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.15

    def forward(self, x, c_time, label):
        lift = (c_time / 4 + label.to(x))[:, None, None, None]
        return self.b(torch.tanh(self.a(x) + lift))


def images(n=6):
    return torch.rand(n, 2, 5, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("process", [VP(), EDM(), Flow()], ids=["vp", "edm", "flow"])
def test_the_reversible_scheme_undoes_itself_bit_for_bit(process):
    """And only with all of its state, the condition and the weights."""
    model = Preconditioned(Net(), process, sigma_data=0.6)
    x, cond = images(), {"label": torch.arange(6) % 3}
    x[0] = 0.0
    latent = encode(model, x, reversible=True, steps=25, cond=cond)
    assert torch.equal(decode(model, latent, cond=cond), x)
    other = decode(model, latent, cond={"label": torch.zeros(6, dtype=torch.long)})
    assert float((other - x)[1].abs().max()) > 1e-3
    carry = latent.carry.clone()
    carry[2, 0, 0, 0, 0] += 1e-6
    moved = decode(model, Latent(latent.z, carry, 25), cond=cond) != x
    assert bool(moved[2].any())
    assert not bool(moved[[0, 1, 3, 4, 5]].any())
    with torch.no_grad():
        model.net.a.bias[0] += 1e-3
    assert float((decode(model, latent, cond=cond) - x).abs().max()) > 1e-4


def test_round_trips_say_what_is_lost():
    model = Preconditioned(Net(), Flow(), sigma_data=0.6)
    x, cond = images(), {"label": torch.arange(6) % 3}
    exact = round_trip(model, x, reversible=True, cond=cond)
    assert float(exact.error.max()) == 0
    assert exact.calls == (61, 49)
    coarse, fine = (round_trip(model, x, steps=steps, cond=cond) for steps in (12, 50))
    assert coarse.calls == (12, 12)
    for trip in (coarse, fine):
        by_hand = (decode(model, trip.latent, cond=cond) - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
        torch.testing.assert_close(trip.error, by_hand.double(), rtol=1e-4, atol=0)
    assert float(fine.error.max()) < 1e-4
    assert float(coarse.error.min()) > 5 * float(fine.error.max())


@pytest.mark.parametrize("process", [VP(), Flow()], ids=["vp", "flow"])
def test_latents_are_standard_normal_and_sample_leads_back(process):
    """2000 draws of a mixture; mean and covariance within 4.5 standard errors, 5 numbers: a false alarm in 3e5."""
    mixture, n = Mixture.example(), 2000
    model = mixture.torch(process)
    x, _ = model.draw(Noise(5, n))
    z = encode(model, x).z
    for value, expected in ((z, (0, 0)), (z**2, (1, 1)), (z[:, :1] * z[:, 1:], (0,))):
        gap = (value.mean(0) - torch.tensor(expected)) / (value.std(0) / n**0.5)
        assert float(gap.abs().max()) < 4.5
    grid = angular_grid(process, 200, sigma_data=0.5)
    back = sample(model, x[:50].shape, grid, x=z[:50] * process.sigma(scalar(1.0)))
    assert float((back - x[:50]).abs().max()) < 0.03  # what lies beyond the levels
    assert float((back - decode(model, z[50:100])).abs().max()) > 0.3


@both
def test_narrow_and_wide_data_stay_stable(reversible):
    """Standard deviations from a twentieth to twice d: contraction, where parasites of the scheme grow, and expansion."""
    s = torch.tensor([0.025, 0.1, 0.5, 1.0], dtype=F64)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(2), dtype=F64) * s
    for process in (VP(), Flow(), EDM()):
        model = gaussian(process, s**2)
        trip = round_trip(model, x, reversible=reversible)
        assert float((trip.x - x).abs().div(s).max()) < (1e-9 if reversible else 2e-3)
        assert (
            float((trip.latent.z - x / s).abs().max()) < 0.12
        )  # of which 1 - (1 + (0.005 / 0.025)^2)^(-1/2) is the level's


def test_an_item_does_not_know_its_batch():
    model, x = gaussian(VP(), [0.1, 0.3]), torch.tensor([[0.2, 0.1], [0.5, -0.4], [0.0, 1.0]], dtype=F64)
    whole = encode(model, x, reversible=True)
    alone = encode(model, x[1:2], reversible=True)
    torch.testing.assert_close(whole.z[1:2], alone.z, rtol=1e-11, atol=1e-11)
    part = Latent(whole.z[1:2], whole.carry[1:2], whole.steps, whole.levels)
    torch.testing.assert_close(decode(model, part, dtype=F64), x[1:2], rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- interpolation


def test_slerp_walks_the_circle_at_constant_speed():
    a, b = 0.3, 2.9
    z0, z1 = (torch.tensor([[math.cos(p), math.sin(p), 0.0]], dtype=F64) for p in (a, b))
    w = torch.linspace(-0.2, 1.2, 8, dtype=F64)
    p = a + w * (b - a)
    exact = torch.stack([p.cos(), p.sin(), 0 * p], 1)[:, None]
    torch.testing.assert_close(slerp(z0, z1, w), exact, rtol=1e-12, atol=1e-12)
    norms = slerp(2 * z0, 6 * z1, [0.25, 0.5]).norm(dim=-1).flatten()
    torch.testing.assert_close(norms, torch.tensor([3.0, 4.0], dtype=F64))


def test_slerp_of_vectors_that_are_nearly_or_exactly_parallel():
    z0 = torch.tensor([[1.0, 2.0, -1.0]])
    torch.testing.assert_close(slerp(z0, 3 * z0, [0.5])[0], 2 * z0)
    for gap in (1e-3, 1e-7, 1e-12):
        z = torch.tensor([[1.0, 0.0]], dtype=F64)
        turned = torch.tensor([[math.cos(gap), math.sin(gap)]], dtype=F64)
        assert float(slerp(z, turned, [0.25])[0, 0, 1]) == pytest.approx(gap / 4, rel=1e-4)
    g = torch.Generator().manual_seed(0)
    z0, z1 = torch.randn(2, 3, 4, 4, generator=g)
    ends = slerp(z0, z1, [0.0, 1.0])
    assert torch.equal(ends[0], z0)
    assert torch.equal(ends[1], z1)


def test_slerp_refuses_what_has_no_way():
    z = torch.ones(2, 3)
    for other in (-z, torch.stack([z[0], 0 * z[1]])):
        with pytest.raises(ValueError, match="opposite or zero"):
            slerp(z, other, [0.5])
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        slerp(z, torch.ones(3, 2), [0.5])


def test_between_items_of_a_gaussian():
    """The flow only scales coordinates, so the way between is slerp in whitened coordinates, about."""
    s = torch.tensor([0.3, 0.7], dtype=F64)
    model = gaussian(Flow(), s**2)
    x0, x1 = torch.tensor([[0.3, 0.2]], dtype=F64), torch.tensor([[-0.1, 0.7]], dtype=F64)
    ours = interpolate(model, x0, x1, [0.0, 0.3, 1.0])
    exact = slerp(x0 / s, x1 / s, [0.0, 0.3, 1.0]) * s
    torch.testing.assert_close(ours, exact, rtol=2e-3, atol=2e-3)
    assert float((ours[1] - x0.lerp(x1, 0.3)).abs().max()) > 0.02


def test_conditions_of_pairs_go_with_their_pairs():
    class Shifted(Denoiser):
        cond_keys = frozenset({"label"})

        def __init__(self):
            super().__init__()
            self.process = Flow()

        def forward(self, x_t, t, label):
            inner = gaussian(self.process, [0.25, 0.25])
            return Gaussian(inner(x_t - self.process.alpha(t) * label[:, None], t).mean + label[:, None])

    model, label = Shifted(), torch.tensor([0.0, 5.0], dtype=F64)  # as a tensor, and as a list
    x0, x1 = torch.tensor([[1.0, 0.0]] * 2, dtype=F64), torch.tensor([[0.0, 1.0]] * 2, dtype=F64)
    out = interpolate(model, x0 + label[:, None], x1 + label[:, None], [0.5, 0.5], cond={"label": label})
    expected = math.sqrt(0.5) + label[None, :, None].expand(2, 2, 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=0.02)
    again = interpolate(model, x0 + label[:, None], x1 + label[:, None], [0.5], cond={"label": label.tolist()})
    torch.testing.assert_close(again[0], out[0], rtol=0, atol=1e-6)


# ---------------------------------------------------------------- refusals


def test_what_it_refuses():
    model, x = gaussian(VP(), [0.1, 0.3]), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="steps must be at least 4, got 3"):
        encode(model, x, steps=3)
    for levels in ((0.0, 1.0), (2.0, 1.0), (0.1, math.inf), (1e4, 1e5)):
        with pytest.raises(ValueError, match="levels must be finite"):
            encode(model, x, levels=levels)
    with pytest.raises(ValueError, match="x must be floating point and finite"):
        encode(model, torch.full((1, 2), math.nan))
    with pytest.raises(ValueError, match="takes no conditions"):
        encode(model, x, cond={"label": torch.zeros(3)})
    with pytest.raises(ValueError, match="scale the data"):
        encode(model, x + 1e4, reversible=True)
    latent = encode(model, x, reversible=True, steps=8)
    with pytest.raises(ValueError, match="the 8 steps it came, not by 50"):
        decode(model, latent, steps=50)
    with pytest.raises(ValueError, match="carry has shape"):
        decode(model, Latent(latent.z[:2], latent.carry, 8))
