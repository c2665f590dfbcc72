"""Twelve faults and six healthy models, written and committed by someone who had not read a line of ``check``.

A roll, heavy tails, six hidden factors in 64 dimensions, two nested squares, coloured discs and digits by class: data, networks
and processes that ``check_made.py``, ``check_fresh.py`` and ``check_third.py`` do not have. A name is right if who follows it
looks in the right place; beside each fault stand those that do.
"""

import copy
import math
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from check_models import Case, Negative, Trained, fit, weighted, wrap
from trilemma.data import load
from trilemma.denoise import Preconditioned
from trilemma.health import check
from trilemma.nets import MLP, DiT, UNet
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VE, Flow, FromBetas, Sigmoid, SubVP, cosine_betas, linear_betas
from trilemma.process.gaussian import GaussianProcess, Shifted
from trilemma.train import TrainConfig, Trainer


def roll(seed: int, n: int) -> Tensor:
    """A rolled sheet, denser inside, of standard deviation about 0.5 as EDM wants it."""
    noise = Noise(seed, n)
    angle = 1.5 * math.pi * (1 + 2 * noise.at(0).uniform((n,)))
    points = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * noise.at(1).normal((n, 2))
    return points / 15


def tails(seed: int, n: int) -> Tensor:
    """Five columns of a table, standardised: two with heavy tails, one skewed, one of two values, one that follows the first."""
    noise = Noise(seed, n)
    z = noise.at(0).normal((n, 5))
    spread = noise.at(1).normal((n, 4)).square().mean(1).sqrt().clamp(min=0.35)
    heavy, skewed, two = z[:, 0] / spread, torch.exp(0.7 * z[:, 1]), (z[:, 2] > 0.4).float() + 0.1 * z[:, 3]
    table = torch.stack([heavy, z[:, 1] / spread, skewed, two, 0.8 * heavy + 0.5 * z[:, 4]], 1)
    return (table - table.mean(0)) / table.std(0)


def factors(seed: int, n: int) -> Tensor:
    """64 coordinates moved by six uniform factors, one of them squared."""
    noise, fixed = Noise(seed, n), Noise(70, 1)
    hidden = 2 * noise.at(0).uniform((n, 6)) - 1
    hidden = torch.cat([hidden, 1.5 * hidden[:, :1] ** 2 - 0.5], 1)
    return hidden @ fixed.at(0).normal((1, 7, 64))[0] * 0.65 + 0.15 * noise.at(1).normal((n, 64))


def squares(seed: int, n: int) -> Tensor:
    """The edges of two squares, one in the other."""
    noise = Noise(seed, n)
    along = 2 * noise.at(0).uniform((n,)) - 1
    edge, inner = (4 * noise.at(1).uniform((n,))).long(), noise.at(2).uniform((n,)) < 0.4
    side = torch.stack([torch.where(edge < 2, along, edge * 2.0 - 5), torch.where(edge < 2, edge * 2.0 - 1, along)], 1)
    return torch.where(inner, 0.6, 1.5)[:, None] * side + 0.05 * noise.at(3).normal((n, 2))


def discs(seed: int, n: int) -> Tensor:
    """3x8x8: a reddish disc anywhere on a dark blue ground."""
    noise = Noise(seed, n)
    place, radius = 1 + 5 * noise.at(0).uniform((n, 2, 1, 1)), 1.5 + 1.5 * noise.at(1).uniform((n, 1, 1))
    at = torch.arange(8.0)
    far = torch.hypot(at[:, None] - place[:, 0], at - place[:, 1])
    shape = torch.sigmoid(3 * (radius - far))[:, None]
    colour = torch.tensor([0.8, 0.1, -0.5]) + 0.15 * noise.at(2).normal((n, 3))
    ground = torch.tensor([-0.8, -0.7, -0.1]) + 0.1 * noise.at(3).normal((n, 3))
    return (
        shape * colour[..., None, None]
        + (1 - shape) * ground[..., None, None]
        + 0.03 * noise.at(4).normal((n, 3, 8, 8))
    )


class Steps(nn.Module):
    """A small network from elsewhere, which is told the number of a step, 0 to 1000, by sines and cosines.

    Args:
        process: gives the time that belongs to a noise level.
        unit: what t is multiplied by; 1 is wrong.
    """

    def __init__(self, process: GaussianProcess, unit: float = 1000.0) -> None:
        super().__init__()
        self.process, self.unit = process, unit
        self.embed = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 96))
        self.inp, self.hidden = nn.Linear(2, 96), nn.ModuleList(nn.Linear(96, 96) for _ in range(3))
        self.out = nn.Linear(96, 2)

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        step = (self.process.time(-8 * c_time.double()) * self.unit).to(x)
        angle = step[:, None] * torch.exp(-math.log(10_000) * torch.arange(32) / 32)
        told = self.embed(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.inp(x)
        for layer in self.hidden:
            h = h + layer(F.silu(h + told))
        return self.out(F.silu(h))


class Twice(nn.Module):
    """A network that has its own c_in, of EDM, inside one that multiplies by c_in as well."""

    def __init__(self, model: Preconditioned) -> None:
        super().__init__()
        self.net, self.sigma_data = model.net, model.sigma_data

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        return self.net(
            x * torch.hypot((4 * c_time).exp(), torch.tensor(self.sigma_data)).reciprocal()[:, None], c_time
        )


class Careless(nn.Module):
    """A network whose dropout is ``F.dropout(h, 0.3)``, which is on whether it trains or not."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 96), nn.Linear(96, 5)
        self.hidden = nn.ModuleList(nn.Linear(96, 96) for _ in range(2))

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        h = self.inp(torch.cat([x, c_time[:, None]], 1))
        for layer in self.hidden:
            h = h + layer(F.dropout(F.silu(h), 0.3))
        return self.out(F.silu(h))


def transposed(model: Preconditioned) -> Preconditioned:
    """Weights of a framework that stores them the other way round; only those that are not square would have been refused."""
    loaded = copy.deepcopy(model)
    with torch.no_grad():
        for block in loaded.net.blocks:
            for layer in (block.up, block.down):
                layer.weight.copy_(layer.weight.T.clone())
    return loaded


def first_epoch(data: Tensor, net, process: GaussianProcess) -> Trained:
    """An average of one's own, whose update stands in the wrong loop: it sees the first epoch and no other."""
    torch.manual_seed(76)
    model = Preconditioned(net(), process, "v")
    first, slow = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    settings = dict(batch=256, lr=2e-3, warmup=50, decay="cosine", times="uniform", precision="fp32")
    trainer = Trainer(model, data, config=TrainConfig(steps=900, seed=76, **settings))
    for record in trainer.steps():
        if record.step <= len(data) // 256:
            with torch.no_grad():
                for mean, weight in zip(slow.parameters(), model.parameters(), strict=True):
                    mean.lerp_(weight, 0.02)
    return Trained(slow, copy.deepcopy(model).eval(), first)


class Bench:
    """The data and the healthy models, trained when they are first asked for."""

    def __init__(self) -> None:
        self.rolled, self.rolled_held = roll(81, 16_000), roll(82, 1024)
        self.table, self.table_held = tails(83, 20_000), tails(84, 1024)
        self.hidden, self.hidden_held = factors(85, 20_000), factors(86, 1024)
        self.nested, self.nested_held = squares(87, 20_000), squares(88, 1024)
        self.discs, self.discs_held = discs(89, 6000), discs(90, 512)
        train, test = load("digits", split="train"), load("digits", split="test")
        self.digits, self.kinds = train.model_units(), train.labels
        self.digits_held, self.kinds_held = test.model_units(), test.labels
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        self.order = torch.tensor(sorted(range(10), key=names.__getitem__))

    @cached_property
    def edm(self) -> Trained:
        net = lambda: MLP(2, width=56, depth=3)  # noqa: E731
        return fit(self.rolled, net, EDM(), "edm", sigma_data=0.5, times="log_normal_sigma", steps=900, seed=71)

    @cached_property
    def sub_vp(self) -> Trained:
        return fit(self.table, lambda: MLP(5, width=80, depth=2), SubVP(), "v", steps=900, seed=72)

    @cached_property
    def flow(self) -> Trained:
        net = lambda: MLP(64, width=160, depth=2)  # noqa: E731
        return fit(self.hidden, net, Shifted(Flow(), -1.0), "v", times="logit_normal", steps=800, seed=73)

    @cached_property
    def ddpm(self) -> Trained:
        process = FromBetas(linear_betas())
        return fit(self.nested, lambda: Steps(process), process, "eps", times="uniform", lr=2e-3, steps=1500, seed=74)

    @cached_property
    def ve(self) -> Trained:
        net = lambda: UNet(2, 3, widths=(24, 32), blocks=1, attention=())  # noqa: E731
        config = dict(sigma_data=0.6, times="log_normal_sigma", steps=350, batch=64, lr=2e-3)
        return fit(self.discs, net, VE(), "edm", seed=75, **config)

    @cached_property
    def sigmoid(self) -> Trained:
        net = lambda: DiT(2, 1, classes=10, patch=2, width=48, depth=2, heads=2, dropout=0.1)  # noqa: E731
        config = dict(labels=self.kinds, sigma_data=0.7, steps=600, batch=64, lr=3e-3)
        return fit(self.digits, net, Sigmoid(), "v", seed=77, **config)


def cases() -> list[Case]:
    """All of them; nothing is trained yet."""
    b = Bench()

    def on(model, held, train=None, raw=None, **more):
        return check(model, held, train=train, raw=raw, seeds=11, items=384, draws=192, **more)

    def scaled():
        return on(wrap(b.edm.mean, net=Twice(b.edm.mean)), b.rolled_held, b.rolled)

    def stale():
        model = first_epoch(b.table, lambda: MLP(5, width=80, depth=2), SubVP())
        return on(model.mean, b.table_held, b.table, model.last)

    def unweighted():
        x0 = lambda model, t: model.coefficients(t)[1] ** 2  # noqa: E731
        net = lambda: MLP(2, width=56, depth=3)  # noqa: E731
        model = weighted(x0, lambda: fit(b.rolled, net, VE(), "edm", sigma_data=0.5, steps=900, seed=78))
        return on(model.mean, b.rolled_held, b.rolled, model.last)

    def crawling():
        net = lambda: MLP(64, width=160, depth=2)  # noqa: E731
        model = fit(b.hidden, net, Flow(), "velocity", lr=1e-6, steps=500, seed=79)
        return on(model.mean, b.hidden_held, b.hidden, model.last)

    def unit():
        net = copy.deepcopy(b.ddpm.mean.net)
        net.unit = 1.0
        return on(wrap(b.ddpm.mean, net=net), b.nested_held, b.nested)

    def schedule():
        net, process = copy.deepcopy(b.ddpm.mean.net), FromBetas(cosine_betas())
        net.process = process
        return on(wrap(b.ddpm.mean, net=net, process=process), b.nested_held, b.nested)

    def dropping():
        model = fit(b.table, Careless, SubVP(), "v", steps=900, seed=80)
        return on(model.mean, b.table_held, b.table, model.last)

    def sorted_names():
        return on(b.sigmoid.mean, b.digits_held, b.digits, cond={"label": b.order.argsort()[b.kinds_held]})

    def classes():
        return on(b.sigmoid.mean, b.digits_held, b.digits, b.sigmoid.last, cond={"label": b.kinds_held})

    return [
        # its input is scaled with the wrong factor
        Case("coefficients: c_in in the network and around it", ("coefficients",), scaled),
        Case("average: updated in the first epoch only", ("average",), stale),
        # the low noise levels have weights of 1e-4
        Case("weighting: the error of x0, without EDM's 1 / c_out^2", ("weighting",), unweighted),
        # any name that sends one to how the data are read
        Case("range: blue, green, red", ("range", "channels", "data"), lambda: on(b.ve.mean, b.discs_held.flip(1))),
        Case("half-trained: learning rate 1e-6", ("half-trained",), crawling),
        # wrong values in the weights are the same as some that nobody trained
        Case(
            "weights: square matrices transposed",
            ("weights", "half-trained"),
            lambda: on(transposed(b.flow.mean), b.hidden_held, b.hidden),
        ),
        Case("time: 0 to 1 for a network that learned 0 to 1000", ("time",), unit),
        # the network is told the step of another schedule: both names send one to the map from steps to noise levels
        Case("process: cosine betas for a network of linear ones", ("process", "time"), schedule),
        Case(
            "sigma_data: 1.0 where EDM's 0.5 was trained",
            ("sigma_data",),
            lambda: on(wrap(b.edm.mean, sigma_data=1.0), b.rolled_held, b.rolled),
        ),
        Case(
            "sign: velocity from noise to data",
            ("sign",),
            lambda: on(wrap(b.flow.mean, net=Negative(b.flow.mean.net)), b.hidden_held, b.hidden),
        ),
        Case("labels: classes in the order of their names", ("labels",), sorted_names),
        # any name that says that two equal calls give two answers
        Case("dropout: left on", ("dropout", "random", "deterministic", "repeatable"), dropping),
        Case("healthy: roll, EDM, edm", (), lambda: on(b.edm.mean, b.rolled_held, b.rolled, b.edm.last)),
        Case("healthy: heavy tails, sub-VP, v", (), lambda: on(b.sub_vp.mean, b.table_held, b.table, b.sub_vp.last)),
        Case(
            "healthy: factors in 64-D, shifted Flow, v",
            (),
            lambda: on(b.flow.mean, b.hidden_held, b.hidden, b.flow.last),
        ),
        Case(
            "healthy: squares, DDPM, eps, own clock", (), lambda: on(b.ddpm.mean, b.nested_held, b.nested, b.ddpm.last)
        ),
        # 350 updates: its samples are discs with ragged edges
        Case(
            "healthy: discs, a short run, U-Net, VE, edm", (), lambda: on(b.ve.mean, b.discs_held, b.discs, b.ve.last)
        ),
        Case("healthy: digits by class, DiT, Sigmoid, v", (), classes),
    ]
