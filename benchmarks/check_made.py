"""The cases on which the rules of ``trilemma.check`` were made, so that they show no error rate: thirteen faults, six healthy."""

import math
from functools import cached_property

import torch
from torch import Tensor

from check_models import Case, Deaf, Negative, Swapped, Trained, fit, weighted, with_nan, wrap
from trilemma.data import load
from trilemma.health import check
from trilemma.nets import MLP
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Cosine, Flow


def ring(seed: int, n: int) -> Tensor:
    """Eight narrow modes on a circle, about unit variance."""
    noise = Noise(seed, n)
    k = (8 * noise.at(0).uniform((n,))).floor()
    angle = 2 * math.pi * k / 8
    return 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * noise.at(1).normal((n, 2))


def moons(seed: int, n: int) -> Tensor:
    """Two half circles that embrace, about unit variance."""
    noise = Noise(seed, n)
    angle, side = math.pi * noise.at(0).uniform((n,)), (noise.at(2).uniform((n,)) < 0.5).float()
    x = torch.stack([angle.cos() * (1 - 2 * side) + side - 0.5, angle.sin() * (1 - 2 * side) + 0.5 * side - 0.25], 1)
    return 1.3 * x + 0.08 * noise.at(1).normal((n, 2))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flat digits and their classes, to train on and held out."""
    train, test = load("digits", split="train"), load("digits", split="test")
    return train.model_units().flatten(1), train.labels, test.model_units().flatten(1), test.labels


def small() -> MLP:
    """For points in the plane."""
    return MLP(2, width=64, depth=2)


class Bench:
    """The models, trained when they are first asked for."""

    def __init__(self) -> None:
        self.ring, self.ring_held = ring(0, 20_000), ring(1, 1024)
        self.moons, self.moons_held = moons(0, 20_000), moons(1, 1024)
        self.x, self.y, self.held, self.held_y = digits()
        self.std = float(self.x.std())

    @cached_property
    def vp(self) -> Trained:
        return fit(self.ring, small, VP(), "v")

    @cached_property
    def flow(self) -> Trained:
        return fit(self.moons, small, Flow(), "velocity")

    @cached_property
    def edm(self) -> Trained:
        return fit(self.ring, small, EDM(), "edm", times="log_normal_sigma:-1,1.6")

    @cached_property
    def small(self) -> Trained:
        kept = dict(steps=600, sigma_data=self.std, times="log_normal_sigma:-0.5,1.4")
        return fit(self.x, lambda: MLP(64, width=256, depth=2), EDM(), "edm", **kept)

    def labelled(self, labels: Tensor) -> Trained:
        kept = dict(steps=600, sigma_data=self.std, times="logit_normal")
        return fit(self.x, lambda: MLP(64, width=256, depth=2, classes=10), Flow(), "velocity", labels=labels, **kept)


def alpha2(model, t: Tensor) -> Tensor:
    """alpha^2."""
    return model.process.alpha(t).square()


def cases() -> list[Case]:
    """All of them; nothing is trained yet."""
    bench = Bench()

    def ring_held(model, **more):
        return check(model, bench.ring_held, **more)

    def moons_held(model, **more):
        return check(model, bench.moons_held, **more)

    def digits_held(model, **more):
        return check(model, bench.held, **more)

    def shuffled() -> Trained:
        return bench.labelled(bench.y[torch.randperm(len(bench.y), generator=torch.Generator().manual_seed(0))])

    def overfitted() -> Trained:
        kept = dict(sigma_data=bench.std, times="log_normal_sigma:-0.5,1.4")
        return fit(bench.x[:100], lambda: MLP(64, width=256, depth=2), EDM(), "edm", **kept)

    def healthy_labelled():
        model = bench.labelled(bench.y)
        return digits_held(model.mean, cond={"label": bench.held_y}, raw=model.last)

    return [
        Case(
            "coefficients: c_skip and c_out swapped", ("coefficients",), lambda: ring_held(wrap(bench.vp.mean, Swapped))
        ),
        Case("average: EMA never updated", ("average",), lambda: ring_held(bench.vp.first, raw=bench.vp.last)),
        Case(
            "weighting: loss off by alpha^2",
            ("weighting",),
            lambda: ring_held(weighted(alpha2, lambda: fit(bench.ring, small, VP(), "eps")).mean),
        ),
        Case(
            "range: trained on [0, 1], data in [-1, 1]",
            ("range",),
            lambda: moons_held(fit(bench.moons / 2 + 0.5, small, Flow(), "velocity").mean),
        ),
        Case(
            "half-trained: 40 steps on digits",
            ("half-trained",),
            lambda: digits_held(
                fit(
                    bench.x, lambda: MLP(64, width=128, depth=2), Flow(), "velocity", steps=40, sigma_data=bench.std
                ).mean
            ),
        ),
        Case("weights: one NaN", ("weights",), lambda: ring_held(with_nan(bench.vp.mean))),
        Case("target: v taken for eps", ("target",), lambda: ring_held(wrap(bench.vp.mean, target="eps"))),
        Case(
            "process: Flow's velocity on Cosine",
            ("process",),
            lambda: moons_held(wrap(bench.flow.mean, process=Cosine())),
        ),
        Case(
            "time: embedding ignored",
            ("time",),
            lambda: ring_held(fit(bench.ring, lambda: Deaf(small()), VP(), "v").mean),
        ),
        Case(
            "sign: output turned round",
            ("sign",),
            lambda: ring_held(wrap(bench.vp.mean, net=Negative(bench.vp.mean.net))),
        ),
        Case(
            "labels: shuffled in training",
            ("labels",),
            lambda: digits_held(shuffled().mean, cond={"label": bench.held_y}),
        ),
        Case(
            "overfitted: 100 digits by heart",
            ("overfitted",),
            lambda: digits_held(overfitted().mean, train=bench.x[:100]),
        ),
        Case("sigma_data: 0.2 on data of 1", ("sigma_data",), lambda: ring_held(wrap(bench.edm.mean, sigma_data=0.2))),
        Case("healthy: ring, VP, v", (), lambda: ring_held(bench.vp.mean, train=bench.ring, raw=bench.vp.last)),
        Case(
            "healthy: moons, Flow, velocity",
            (),
            lambda: moons_held(bench.flow.mean, train=bench.moons, raw=bench.flow.last),
        ),
        Case("healthy: ring, EDM, edm", (), lambda: ring_held(bench.edm.mean, train=bench.ring, raw=bench.edm.last)),
        Case(
            "healthy: moons, Cosine, v",
            (),
            lambda: moons_held(fit(bench.moons, small, Cosine(), "v").mean, train=bench.moons),
        ),
        Case(
            "healthy: digits, EDM, edm", (), lambda: digits_held(bench.small.mean, train=bench.x, raw=bench.small.last)
        ),
        Case("healthy: digits by class, Flow, velocity", (), healthy_labelled),
    ]
