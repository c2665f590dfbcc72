"""Eighteen faults and eight healthy models that the rules of ``trilemma.check`` had never seen.

This list was written and committed before ``check`` was run on any of it, with the names that count as right: other data (a
checkerboard, spirals, a pinwheel, a mixture in 16 dimensions, a Gaussian, colour pictures, short signals, digits as
pictures), other processes, targets, networks and seeds than those of ``check_made.py``, and faults that differ in detail.
"""

import copy
import math
from functools import cached_property

import torch
from torch import Tensor

from check_models import Case, Negative, Reversed, Trained, between, fit, loop, weighted, wrap
from trilemma.data import load
from trilemma.denoise import Gaussian, Preconditioned
from trilemma.health import check
from trilemma.nets import MLP, DiT, UNet
from trilemma.numerics.noise import Noise
from trilemma.numerics.shapes import pad
from trilemma.process import EDM, VE, VP, Cosine, Flow, SubVP


def checkerboard(seed: int, n: int) -> Tensor:
    """The dark half of the 16 squares of [-1.7, 1.7]^2."""
    noise = Noise(seed, n)
    row, column = (4 * noise.at(0).uniform((n,))).floor(), (2 * noise.at(1).uniform((n,))).floor()
    corner = torch.stack([2 * column + row % 2, row], 1)
    return 0.85 * (corner + noise.at(2).uniform((n, 2))) - 1.7


def spirals(seed: int, n: int) -> Tensor:
    """Two arms of 1.25 turns."""
    noise = Noise(seed, n)
    radius, side = noise.at(0).uniform((n,)).sqrt(), (noise.at(1).uniform((n,)) < 0.5).float() * 2 - 1
    angle = 2.5 * math.pi * radius
    return 2 * (side * radius)[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * noise.at(2).normal((n, 2))


def pinwheel(seed: int, n: int) -> Tensor:
    """Five bent blades."""
    noise = Noise(seed, n)
    along, across = 1.2 + 0.35 * noise.at(0).normal((n,)), 0.12 * noise.at(1).normal((n,))
    angle = 2 * math.pi / 5 * (5 * noise.at(2).uniform((n,))).floor() + 0.5 * along
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    return (rotation @ torch.stack([along, across], 1)[:, :, None]).squeeze(2)


def mixture(seed: int, n: int) -> tuple[Tensor, Tensor]:
    """Six round classes in 16 dimensions, and their labels."""
    noise = Noise(seed, n)
    centres = Noise(99, 6).normal((6, 16))
    label = (6 * noise.at(0).uniform((n,))).long()
    return 0.9 * centres[label] + 0.4 * noise.at(1).normal((n, 16)), label


def gaussian(seed: int, n: int) -> Tensor:
    """One correlated Gaussian in 8 dimensions: here no denoiser beats the linear one."""
    factor = torch.linalg.qr(Noise(98, 8).normal((8, 8)))[0] * torch.linspace(0.3, 1.5, 8)
    return Noise(seed, n).normal((n, 8)) @ factor.T


def pictures(seed: int, n: int) -> Tensor:
    """RGB, 8x8, [-1, 1]: a rectangle of one colour on a background of another."""
    noise = Noise(seed, n)
    colours = noise.at(0).uniform((n, 2, 3, 1, 1)) * 2 - 1
    low, size = noise.at(1).uniform((n, 2)) * 4, 2 + 2 * noise.at(2).uniform((n, 2))
    at = torch.arange(8.0)
    edge = torch.sigmoid(4 * (at - low[:, :, None])) * torch.sigmoid(4 * ((low + size)[:, :, None] - at))
    mask = (edge[:, 0, :, None] * edge[:, 1, None, :])[:, None]
    return colours[:, 0] * (1 - mask) + colours[:, 1] * mask


def signals(seed: int, n: int) -> Tensor:
    """Sound-like: damped sines of 32 samples, any pitch, phase and loudness."""
    noise = Noise(seed, n)
    pitch, phase, loud, damp = (noise.at(k).uniform((n, 1)) for k in range(4))
    s = torch.arange(32.0) / 32
    return ((0.4 + 0.6 * loud) * torch.exp(-3 * damp * s) * torch.sin(2 * math.pi * ((1 + 5 * pitch) * s + phase)))[
        :, None
    ]


def plane() -> MLP:
    """For points in the plane."""
    return MLP(2, width=80, depth=3)


def unet1() -> UNet:
    """For signals."""
    return UNet(1, 1, widths=(16, 32), blocks=1, attention=())


def unet2() -> UNet:
    """For digits."""
    return UNet(2, 1, widths=(16, 32), blocks=1, attention=())


def dit() -> DiT:
    """For colour pictures."""
    return DiT(2, 3, patch=2, width=48, depth=2, heads=4)


class Assuming(Preconditioned):
    """The coefficients of a variance preserving process on one that is not: c_skip = alpha, c_out = -sigma."""

    def forward(self, x_t, t, **cond):
        _, _, c_in, c_time = self._coefficients(t, x_t)
        alpha, sigma = (pad(c(t).to(x_t), x_t) for c in (self.process.alpha, self.process.sigma))
        return Gaussian(alpha * x_t - sigma * self._net(x_t, c_in, c_time, cond))


class Bench:
    """The data and the healthy models, trained when they are first asked for."""

    def __init__(self) -> None:
        self.board, self.board_held = checkerboard(20, 20_000), checkerboard(21, 1024)
        self.arms, self.arms_held = spirals(22, 20_000), spirals(23, 1024)
        self.wheel, self.wheel_held = pinwheel(24, 20_000), pinwheel(25, 1024)
        (self.mix, self.kind), (self.mix_held, self.kind_held) = mixture(26, 10_000), mixture(27, 1024)
        self.blob, self.blob_held = gaussian(28, 20_000), gaussian(29, 1024)
        self.rgb, self.rgb_held = pictures(30, 8000), pictures(31, 512)
        self.sound, self.sound_held = signals(32, 8000), signals(33, 512)
        self.digits, self.digits_held = load("digits").model_units(), load("digits", split="test").model_units()

    @cached_property
    def subvp(self) -> Trained:
        return fit(self.board, plane, SubVP(), "v", seed=11)

    @cached_property
    def ve(self) -> Trained:
        return fit(self.arms, plane, VE(), "edm", seed=12)

    @cached_property
    def ddpm(self) -> Trained:
        return fit(self.wheel, plane, VP(), "eps", times="uniform", seed=13)

    @cached_property
    def classes(self) -> Trained:
        net = lambda: MLP(16, width=96, depth=2, classes=6)  # noqa: E731
        return fit(self.mix, net, Flow(), "velocity", times="logit_normal", labels=self.kind, seed=14)

    @cached_property
    def straight(self) -> Trained:
        return fit(self.blob, lambda: MLP(8, width=64, depth=2), Cosine(), "v", seed=15)

    @cached_property
    def colour(self) -> Trained:
        kept = dict(sigma_data=float(self.rgb.std()), steps=600, batch=64, lr=2e-3)
        return fit(self.rgb, dit, Cosine(), "v", seed=16, **kept)

    @cached_property
    def chirp(self) -> Trained:
        kept = dict(sigma_data=float(self.sound.std()), steps=700, batch=64, times="log_normal_sigma")
        return fit(self.sound, unet1, EDM(), "edm", seed=17, **kept)

    @cached_property
    def written(self) -> Trained:
        kept = dict(sigma_data=float(self.digits.std()), steps=600, batch=64, times="logit_normal")
        return fit(self.digits, unet2, Flow(), "velocity", seed=18, **kept)


def overflown(model: Preconditioned) -> Preconditioned:
    """The largest matrix went through half precision after it had been scaled by ten million."""
    broken = copy.deepcopy(model)
    with torch.no_grad():
        big = max(broken.parameters(), key=lambda p: p.numel())
        big.copy_((big * 1e7).half().float() / 1e7)
    return broken


def reset(model: Preconditioned) -> Preconditioned:
    """One layer in the middle drawn anew, as after a checkpoint that lacked its name."""
    broken = copy.deepcopy(model)
    torch.manual_seed(5)
    broken.net.blocks[1].up.reset_parameters()
    broken.net.blocks[1].down.reset_parameters()
    return broken


def snr(model: Preconditioned, t: Tensor) -> Tensor:
    """alpha^2 / sigma^2, at most 1000."""
    return model.process.log_snr(t).clamp(max=math.log(1000.0)).exp()


def cases() -> list[Case]:
    """All of them; nothing is trained yet."""
    b = Bench()

    def points(model, held, **more):
        return check(model, held, seeds=5, **more)

    def images(model, held, **more):
        return check(model, held, seeds=5, items=256, draws=128, **more)

    def by_class(shift):
        return points(b.classes.mean, b.mix_held, cond={"label": (b.kind_held + shift) % 6}, raw=b.classes.last)

    def starved():
        model = weighted(snr, lambda: fit(b.arms, plane, Cosine(), "v", seed=31))
        return points(model.mean, b.arms_held, train=b.arms, raw=model.last)

    def unseen():
        model = fit(b.board, plane, SubVP(), "v", times="log_normal_sigma:1.0,0.6", seed=32)
        return points(model.mean, b.board_held, train=b.board, raw=model.last)

    def standardised():
        model = fit((b.arms - 1.5) / 2, plane, Flow(), "velocity", seed=33)
        return points(model.mean, b.arms_held, raw=model.last)

    def raw_pixels():
        x, held = 127.5 * (b.rgb + 1), 127.5 * (b.rgb_held + 1)
        return images(loop(x, dit, Flow(), "velocity", steps=300, seed=34), held, train=x)  # the Trainer refuses them

    def young():
        model = fit(b.rgb, dit, Cosine(), "v", sigma_data=float(b.rgb.std()), steps=12, batch=64, warmup=0, seed=35)
        return images(model.mean, b.rgb_held, train=b.rgb, raw=model.last)

    def hot():
        model = fit(b.wheel, plane, VP(), "v", steps=300, lr=0.3, clip=0.0, diverge=float("inf"), seed=36)
        return points(model.mean, b.wheel_held, train=b.wheel, raw=model.last)

    def twenty():
        kept = dict(sigma_data=float(b.sound.std()), steps=400, batch=64, times="log_normal_sigma", seed=37)
        model = fit(b.sound[:20], unet1, EDM(), "edm", **kept)
        return images(model.mean, b.sound_held, train=b.sound[:20], raw=model.last)

    def x0_for_velocity():
        model = fit(b.mix, lambda: MLP(16, width=96, depth=2), Flow(), "x0", steps=700, seed=38)
        return points(wrap(model.mean, target="velocity"), b.mix_held, train=b.mix)

    eps = b.wheel_held, {"train": b.wheel}
    return [
        Case(
            "coefficients: those of a VP process on sub-VP",
            ("coefficients",),
            lambda: points(wrap(b.subvp.mean, Assuming), b.board_held),
        ),
        Case(
            "average: decay 1.0, signals",
            ("average",),
            lambda: images(b.chirp.first, b.sound_held, train=b.sound, raw=b.chirp.last),
        ),
        Case(
            "average: decay 0.9999 from the first weights on, 1000 steps",
            ("average",),
            lambda: points(between(b.ve.first, b.ve.last, 0.1), b.arms_held, train=b.arms, raw=b.ve.last),
        ),
        Case("weighting: loss of v times the SNR, Cosine", ("weighting",), starved),
        Case("weighting: no clean level is trained, sub-VP", ("weighting",), unseen),
        Case("range: standardised in training, not in use", ("range",), standardised),
        Case("range: raw pixels 0..255, sigma_data 1", ("range", "sigma_data"), raw_pixels),
        Case("half-trained: 2 % of its time, DiT", ("half-trained",), young),
        Case("half-trained: learning rate 0.3", ("half-trained", "weights"), hot),
        Case(
            "half-trained: one layer drawn anew",
            ("half-trained",),
            lambda: points(reset(b.subvp.mean), b.board_held, train=b.board),
        ),
        Case(
            "weights: infinity after half precision",
            ("weights",),
            lambda: images(overflown(b.written.mean), b.digits_held),
        ),
        Case(
            "sign: of eps",
            ("sign",),
            lambda: points(wrap(b.ddpm.mean, net=Negative(b.ddpm.mean.net)), eps[0], **eps[1]),
        ),
        Case(
            "time: 1 - t in place of t, DiT",
            ("time",),
            lambda: images(wrap(b.colour.mean, net=Reversed(b.colour.mean.net)), b.rgb_held, train=b.rgb),
        ),
        Case(
            "sigma_data: ten times too large, signals",
            ("sigma_data",),
            lambda: images(wrap(b.chirp.mean, sigma_data=10 * b.chirp.mean.sigma_data), b.sound_held, train=b.sound),
        ),
        Case("overfitted: 20 signals", ("overfitted",), twenty),
        Case("labels: each off by one", ("labels",), lambda: by_class(1)),
        Case("target: x0 taken for velocity", ("target",), x0_for_velocity),
        Case(
            "process: v of sub-VP on Flow",
            ("process",),
            lambda: points(wrap(b.subvp.mean, process=Flow()), b.board_held, train=b.board),
        ),
        Case(
            "healthy: checkerboard, sub-VP, v",
            (),
            lambda: points(b.subvp.mean, b.board_held, train=b.board, raw=b.subvp.last),
        ),
        Case("healthy: spirals, VE, edm", (), lambda: points(b.ve.mean, b.arms_held, train=b.arms, raw=b.ve.last)),
        Case("healthy: pinwheel, VP, eps", (), lambda: points(b.ddpm.mean, eps[0], **eps[1], raw=b.ddpm.last)),
        Case("healthy: six classes in 16-D, Flow, velocity", (), lambda: by_class(0)),
        Case(
            "healthy: Gaussian in 8-D, Cosine, v",
            (),
            lambda: points(b.straight.mean, b.blob_held, train=b.blob, raw=b.straight.last),
        ),
        Case(
            "healthy: colour pictures, DiT, Cosine, v",
            (),
            lambda: images(b.colour.mean, b.rgb_held, train=b.rgb, raw=b.colour.last),
        ),
        Case(
            "healthy: signals, 1-D U-Net, EDM, edm",
            (),
            lambda: images(b.chirp.mean, b.sound_held, train=b.sound, raw=b.chirp.last),
        ),
        Case(
            "healthy: digits, U-Net, Flow, velocity",
            (),
            lambda: images(b.written.mean, b.digits_held, train=b.digits, raw=b.written.last),
        ),
    ]
