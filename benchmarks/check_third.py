"""Twelve faults and six healthy models, written and committed after the rules were changed and before ``check`` had seen any.

Two circles, nine spots, a box in ten dimensions, a curve, gratings and digits of 4x4 pixels: other data, networks, processes and
seeds than those of ``check_made.py`` and ``check_fresh.py``. All that counts as right is the one name before the colon.
"""

import copy
import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from check_models import Case, Negative, Trained, between, fit, weighted, wrap
from trilemma.data import load
from trilemma.denoise import Gaussian, Preconditioned
from trilemma.health import check
from trilemma.nets import MLP, UNet
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VE, VP, Cosine, Flow, Sigmoid


def circles(seed: int, n: int) -> Tensor:
    """Two circles about one centre."""
    noise = Noise(seed, n)
    angle, radius = 2 * math.pi * noise.at(0).uniform((n,)), 0.7 + 1.0 * (noise.at(1).uniform((n,)) < 0.6)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.06 * noise.at(2).normal((n, 2))


def spots(seed: int, n: int) -> Tensor:
    """Nine round modes on a lattice."""
    noise = Noise(seed, n)
    return 1.2 * ((3 * noise.at(0).uniform((n, 2))).floor() - 1) + 0.12 * noise.at(1).normal((n, 2))


def box(seed: int, n: int) -> Tensor:
    """Ten coordinates, each close to one of two values."""
    noise = Noise(seed, n)
    return (noise.at(0).uniform((n, 10)) < 0.5).float() * 1.8 - 0.9 + 0.25 * noise.at(1).normal((n, 10))


def curve(seed: int, n: int) -> Tensor:
    """A sine."""
    noise = Noise(seed, n)
    x = 3.4 * noise.at(0).uniform((n,)) - 1.7
    return torch.stack([x, torch.sin(3 * x)], 1) + 0.08 * noise.at(1).normal((n, 2))


def gratings(seed: int, n: int) -> Tensor:
    """Grey, 8x8: plane waves of any direction and phase."""
    noise = Noise(seed, n)
    angle, phase, speed = (noise.at(k).uniform((n, 1, 1)) for k in range(3))
    at = torch.arange(8.0)
    along = (math.pi * angle).cos() * at[:, None] + (math.pi * angle).sin() * at
    return torch.sin((0.5 + speed) * along + 2 * math.pi * phase)[:, None]


def tiny(split: str) -> tuple[Tensor, Tensor]:
    """Digits, each 2x2 pixels one, flat, and their classes."""
    data = load("digits", split=split)
    return F.avg_pool2d(data.model_units(), 2).flatten(1), data.labels


def plane() -> MLP:
    """For points in the plane."""
    return MLP(2, width=72, depth=3)


def unet() -> UNet:
    """For gratings."""
    return UNet(2, 1, widths=(24, 24), blocks=1, attention=())


class Doubled(Preconditioned):
    """c_out twice what it should be."""

    def forward(self, x_t, t, **cond):
        return Gaussian(2 * super().forward(x_t, t, **cond).mean - self.coefficients(t)[0].to(x_t) * x_t)


class Clock(nn.Module):
    """A network that is told t where it learned from -log-SNR / 8."""

    def __init__(self, model: Preconditioned) -> None:
        super().__init__()
        self.net, self.process = model.net, model.process

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        return self.net(x, self.process.time(-8 * c_time.double()).to(c_time))


class Bench:
    """The data and the healthy models, trained when they are first asked for."""

    def __init__(self) -> None:
        self.rings, self.rings_held = circles(40, 20_000), circles(41, 1024)
        self.nine, self.nine_held = spots(42, 20_000), spots(43, 1024)
        self.ten, self.ten_held = box(44, 20_000), box(45, 1024)
        self.sine, self.sine_held = curve(46, 20_000), curve(47, 1024)
        self.waves, self.waves_held = gratings(48, 8000), gratings(49, 512)
        (self.small, self.kind), (self.small_held, self.kind_held) = tiny("train"), tiny("test")
        self.std = float(self.small.std())

    @cached_property
    def vp(self) -> Trained:
        return fit(self.rings, plane, VP(), "v", seed=51)

    @cached_property
    def edm(self) -> Trained:
        return fit(self.nine, plane, EDM(), "edm", times="log_normal_sigma", seed=52)

    @cached_property
    def flow(self) -> Trained:
        return fit(self.ten, lambda: MLP(10, width=96, depth=2), Flow(), "velocity", times="logit_normal", seed=53)

    @cached_property
    def sigmoid(self) -> Trained:
        return fit(self.sine, plane, Sigmoid(), "v", times="uniform", seed=54)

    @cached_property
    def cosine(self) -> Trained:
        return fit(self.waves, unet, Cosine(), "v", sigma_data=0.7, steps=500, batch=64, lr=2e-3, seed=55)

    def labelled(self, labels: Tensor) -> Trained:
        net = lambda: MLP(16, width=128, depth=2, classes=10)  # noqa: E731
        return fit(self.small, net, VP(), "v", sigma_data=self.std, labels=labels, steps=700, seed=56)


def bad_bias(model: Preconditioned) -> Preconditioned:
    """NaN in the last bias."""
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.net.out.bias[-1] = math.nan
    return broken


def alpha4(model: Preconditioned, t: Tensor) -> Tensor:
    """alpha^4."""
    return model.process.alpha(t) ** 4


def cases() -> list[Case]:
    """All of them; nothing is trained yet."""
    b = Bench()

    def on(model, held, train=None, raw=None, **more):
        return check(model, held, train=train, raw=raw, seeds=9, items=384, draws=192, **more)

    def starved():
        return on(weighted(alpha4, lambda: fit(b.nine, plane, VP(), "eps", seed=61)).mean, b.nine_held, b.nine)

    def other_range():
        model = fit(b.ten / 2 + 0.5, lambda: MLP(10, width=96, depth=2), Flow(), "velocity", steps=700, seed=62)
        return on(model.mean, b.ten_held, raw=model.last)

    def young():
        model = fit(b.waves, unet, Flow(), "velocity", sigma_data=0.7, steps=10, batch=64, warmup=0, seed=63)
        return on(model.mean, b.waves_held, b.waves, model.last)

    def by_heart():
        kept = dict(sigma_data=b.std, times="log_normal_sigma", steps=700, seed=64)
        model = fit(b.small[:20], lambda: MLP(16, width=128, depth=2), EDM(), "edm", **kept)
        return on(model.mean, b.small_held, b.small[:20], model.last)

    def shuffled():
        order = torch.randperm(len(b.kind), generator=torch.Generator().manual_seed(3))
        return on(b.labelled(b.kind[order]).mean, b.small_held, cond={"label": b.kind_held})

    def eps_for_x0():
        model = fit(b.sine, plane, VE(), "eps", times="log_normal_sigma", steps=700, seed=65)
        return on(wrap(model.mean, target="x0"), b.sine_held, b.sine)

    def classes():
        model = b.labelled(b.kind)
        return on(model.mean, b.small_held, b.small, model.last, cond={"label": b.kind_held})

    return [
        Case("coefficients: c_out doubled", ("coefficients",), lambda: on(wrap(b.flow.mean, Doubled), b.ten_held)),
        Case(
            "average: a fifth of the way",
            ("average",),
            lambda: on(between(b.vp.first, b.vp.last, 0.2), b.rings_held, b.rings, b.vp.last),
        ),
        Case("weighting: loss of eps times alpha^4", ("weighting",), starved),
        Case("range: [0, 1] in training, [-1, 1] in use", ("range",), other_range),
        Case("half-trained: 2 % of its time, U-Net", ("half-trained",), young),
        Case("weights: NaN in a bias", ("weights",), lambda: on(bad_bias(b.sigmoid.mean), b.sine_held)),
        Case("sign: of v", ("sign",), lambda: on(wrap(b.vp.mean, net=Negative(b.vp.mean.net)), b.rings_held, b.rings)),
        Case(
            "time: told t", ("time",), lambda: on(wrap(b.cosine.mean, net=Clock(b.cosine.mean)), b.waves_held, b.waves)
        ),
        Case("sigma_data: a tenth", ("sigma_data",), lambda: on(wrap(b.edm.mean, sigma_data=0.1), b.nine_held, b.nine)),
        Case("overfitted: 20 small digits", ("overfitted",), by_heart),
        Case("labels: shuffled", ("labels",), shuffled),
        Case("target: eps taken for x0, VE", ("target",), eps_for_x0),
        Case("healthy: circles, VP, v", (), lambda: on(b.vp.mean, b.rings_held, b.rings, b.vp.last)),
        Case("healthy: spots, EDM, edm", (), lambda: on(b.edm.mean, b.nine_held, b.nine, b.edm.last)),
        Case("healthy: box in 10-D, Flow, velocity", (), lambda: on(b.flow.mean, b.ten_held, b.ten, b.flow.last)),
        Case("healthy: curve, Sigmoid, v", (), lambda: on(b.sigmoid.mean, b.sine_held, b.sine, b.sigmoid.last)),
        Case(
            "healthy: gratings, U-Net, Cosine, v", (), lambda: on(b.cosine.mean, b.waves_held, b.waves, b.cosine.last)
        ),
        Case("healthy: small digits by class, VP, v", (), classes),
    ]
