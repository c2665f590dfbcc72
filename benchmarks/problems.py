"""What the solver benchmark samples from: denoisers with a noise process, the same start for everybody, and the true end.

`gmm64`, `gmm2` and `image` are mixtures of Gaussians whose E[x | x_t] is exact; `digits` and `mnist` are learned. The truth is
the probability flow from the same normal numbers z. With theta = atan(sigma/alpha) and y = x_t / sqrt(alpha^2 + sigma^2),

    dy/dtheta = (y cos(theta) - D) / sin(theta),     D = E[x | x_t],                                         (1)

from y = z sin(theta_start), solved by Dormand and Prince's method of order 8 (SciPy) in float64. Where D hardly depends on x, as
at the start, (1) is smooth, also where alpha = 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import common  # noqa: F401  puts src on the path
from trilemma.denoise import Covariances, Denoiser, Gaussian, MixtureDenoiser, Preconditioned
from trilemma.denoise.denoiser import Rescheduled
from trilemma.nets import build
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, Flow, GaussianProcess
from trilemma.train.objectives import denoising_loss

F64 = torch.float64
LAST = 1e-6  # theta from which x = D
STOPS = (1.0, 0.2, 0.05, 0.02)  # levels at which the truth is kept on its way


class Mixture(Denoiser):
    """The exact denoiser of a mixture of N(m_k, U_k diag(v_k) U_k^T + f_k (I - U_k U_k^T)), as a few matrix products.

    The same function as ``MixtureDenoiser``, which is general and 20 times slower.

    Args:
        process: the noise process.
        means: shape ``(K, D)``.
        basis: orthonormal columns, shape ``(K, D, R)``; R may be 0.
        values: variances inside, shape ``(K, R)``.
        floor: variances outside, shape ``(K,)``.
    """

    def __init__(self, process: GaussianProcess, means: Tensor, basis: Tensor, values: Tensor, floor: Tensor) -> None:
        super().__init__()
        self.process, (self.k, self.d, self.r) = process, basis.shape
        for name, value in (("means", means), ("basis", basis), ("values", values), ("floor", floor)):
            self.register_buffer(name, value)
        self.register_buffer("columns", basis.permute(1, 0, 2).reshape(self.d, -1))  # (D, K R)
        self.register_buffer("inside", torch.einsum("kd,kdr->kr", means, basis))
        self.register_buffer("size", means.square().sum(1))

    def on(self, process: GaussianProcess) -> "Mixture":
        """The same law on another process."""
        return Mixture(process, self.means, self.basis, self.values, self.floor)

    def general(self) -> MixtureDenoiser:
        """The same by the library, for flattened items."""
        if not self.r:
            return MixtureDenoiser(
                self.process, self.means, Covariances.diagonal(self.floor[:, None].expand(-1, self.d))
            )
        covariances = Covariances.low_rank(self.basis * (self.values - self.floor[:, None]).sqrt()[:, None], self.floor)
        return MixtureDenoiser(self.process, self.means, covariances)

    def mixing(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Log-weights, coordinates inside, variances inside and outside of every component, and alpha."""
        flat, t = x_t.double().flatten(1), t.double()
        alpha, sigma = (curve(t).reshape(-1, 1) for curve in (self.process.alpha, self.process.sigma))
        inside = (flat @ self.columns).reshape(len(flat), self.k, self.r) - alpha[..., None] * self.inside
        s_in = alpha[..., None] ** 2 * self.values + sigma[..., None] ** 2
        s_out = alpha**2 * self.floor + sigma**2
        far = flat.square().sum(1, keepdim=True) - 2 * alpha * (flat @ self.means.T) + alpha**2 * self.size
        far = (far - inside.square().sum(-1)) / s_out + (inside.square() / s_in).sum(-1)
        log = -0.5 * (far + s_in.log().sum(-1) + (self.d - self.r) * s_out.log())
        return log, inside, s_in, s_out, alpha

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """E[x | x_t], in the type of ``x_t``."""
        log, inside, s_in, s_out, alpha = self.mixing(x_t, t)
        share = log.softmax(1)
        out = alpha * self.floor / s_out  # gain outside
        gain = share[..., None] * (alpha[..., None] * self.values / s_in - out[..., None])
        mean = (share * out).sum(1, keepdim=True) * x_t.double().flatten(1) + (share * (1 - alpha * out)) @ self.means
        mean = mean + (gain * inside).flatten(1) @ self.columns.T
        return Gaussian(mean.reshape(x_t.shape).to(x_t.dtype))

    def spread(self, x: Tensor) -> float:
        """The mean squared Mahalanobis distance to the nearest component over the dimension; 1 for exact samples."""
        log, inside, s_in, s_out, _ = self.mixing(x, torch.zeros((), dtype=F64))
        k = log.argmax(1)
        row = torch.arange(len(k))
        rest = (x.double().flatten(1) - self.means[k]).square().sum(1) - inside[row, k].square().sum(1)
        inner = (inside[row, k].square() / s_in.expand(len(k), -1, -1)[row, k]).sum(1)
        return float((rest / s_out.expand(len(k), -1)[row, k] + inner).mean() / self.d)


class Counted(Denoiser):
    """A denoiser that counts its calls, and the items in them."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.process, self.calls, self.items = inner, inner.process, 0, 0

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """One more."""
        self.calls, self.items = self.calls + 1, self.items + len(x_t)
        out: Gaussian = self.inner(x_t, t, **cond)
        return out


@dataclass(eq=False)
class Problem:
    """A denoiser, a start, and true ends.

    Args:
        name: of the problem.
        model: the denoiser on EDM's process.
        anywhere: the same on ``Flow``, where every sigma/alpha has a time, infinity included.
        z: normal numbers, float64, shape ``(B, ...)``.
        exact: whether the denoiser is a closed form. A peer that stops at some noise then is compared with the truth there;
            a learned one is asked for x(0).
        cache: where truths are kept.
        tol: tolerance of the truth.
    """

    name: str
    model: Denoiser
    anywhere: Denoiser
    z: Tensor
    exact: bool
    cache: Path
    tol: float = 1e-10
    _truths: dict[str, Tensor] = field(default_factory=dict)

    def mark(self) -> str:
        """What results belong to: the numbers of the denoiser and of the start."""
        numbers = [*self.model.state_dict().values(), self.z]
        return f"{sum(float(v.double().abs().sum()) for v in numbers):.6g}"

    def truth(self, start: float = 80.0, end: float = 0.0) -> Tensor:
        """x_t / alpha at sigma/alpha = ``end`` on the way from ``start``, float64."""
        file = self.cache / f"truth_{self.name}_{len(self.z)}.pt"
        if not self._truths and file.exists():
            self._truths.update(torch.load(file, weights_only=True))
        if _key(start, end) not in self._truths:
            theta, y = math.atan(start), self.z * math.sin(math.atan(start))
            for stop in (*STOPS, end):
                if start > stop > end or stop == end:
                    if _key(start, stop) not in self._truths:
                        self._truths[_key(start, stop)] = self._flow(y, theta, stop)
                    theta = math.atan(stop)
                    y = self._truths[_key(start, stop)] * math.cos(theta)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._truths, file)
        return self._truths[_key(start, end)]

    @torch.no_grad()
    def _flow(self, y: Tensor, theta: float, end: float, *, tol: float | None = None) -> Tensor:
        """Solve (1); the end as x_t / alpha."""
        from scipy.integrate import solve_ivp

        tol, last = self.tol if tol is None else tol, max(math.atan(end), LAST)
        denoiser = _double(self.anywhere)

        def slope(angle: float, flat: np.ndarray) -> np.ndarray:
            c, s = math.cos(angle), math.sin(angle)
            state = torch.from_numpy(flat).reshape(y.shape)
            mean = denoiser(state / (c + s), torch.tensor(s / (c + s), dtype=F64)).mean
            return ((state * c - mean) / s).flatten().numpy()

        done = solve_ivp(slope, (theta, last), y.flatten().numpy(), "DOP853", [last], rtol=tol, atol=tol / 10)
        if not done.success:
            raise RuntimeError(f"no truth for {self.name} from {theta} to {last}: {done.message}")
        x = torch.from_numpy(done.y[:, -1]).reshape(y.shape) / math.cos(last)
        if end == 0:
            share = math.sin(last) + math.cos(last)
            x = denoiser(x * math.cos(last) / share, torch.tensor(math.sin(last) / share, dtype=F64)).mean
        return x


def _key(start: float, end: float) -> str:
    return f"{start:.6g} {end:.6g}"


def _double(denoiser: Denoiser) -> Denoiser:
    """The denoiser in float64; a copy where it has weights."""
    if not any(True for _ in denoiser.parameters()):
        return denoiser
    import copy

    return copy.deepcopy(denoiser).double()


# The laws


def _gmm64() -> Mixture:
    """10 components in R^64, covariances of rank 8 (std 0.1 to 1) plus 0.03 to 0.07, std of the data 0.5."""
    g = torch.Generator().manual_seed(64)
    basis = torch.linalg.qr(torch.randn(10, 64, 8, generator=g, dtype=F64))[0]
    floor = (0.03 + 0.04 * torch.rand(10, generator=g, dtype=F64)) ** 2
    values = (0.1 + 0.9 * torch.rand(10, 8, generator=g, dtype=F64)) ** 2 + floor[:, None]
    within = (values.sum(1) + 56 * floor).mean() / 64
    means = torch.randn(10, 64, generator=g, dtype=F64)
    means = means - means.mean(0)
    means *= ((0.25 - within) / means.square().mean()).sqrt()
    return Mixture(EDM(), means, basis, values, floor)


def _gmm2() -> Mixture:
    """25 modes on a grid in the plane, std 0.1 to 0.2, std of the data 1.46."""
    g = torch.Generator().manual_seed(2)
    means = torch.cartesian_prod(*[torch.linspace(-2, 2, 5, dtype=F64) * 1.027] * 2)
    floor = (0.1 + 0.1 * torch.rand(25, generator=g, dtype=F64)) ** 2
    return Mixture(EDM(), means, torch.zeros(25, 2, 0, dtype=F64), torch.zeros(25, 0, dtype=F64), floor)


def _image() -> Mixture:
    """Six means and covariances of 3x8x8 pictures whose amplitudes fall like 1/f: 24 cosine waves each, the rest at 0.02."""
    g = torch.Generator().manual_seed(192)
    n = torch.arange(8, dtype=F64)
    wave = torch.cos(math.pi / 8 * (n + 0.5) * n[:, None]) * torch.where(n[:, None] == 0, 1 / 8, 2 / 8).sqrt()
    waves = torch.einsum("fx,gy->fgxy", wave, wave).reshape(64, 64)
    frequency = torch.hypot(*torch.meshgrid(n, n, indexing="ij")).flatten()
    colour = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=F64))[0]
    amplitude = 3.5 / frequency.clamp(min=0.7)
    loudness = torch.tensor([1.0, 0.3, 0.1], dtype=F64)  # of the three mixtures of colours
    size = (loudness[:, None] * amplitude).flatten()
    patterns = torch.einsum("cu,fp->cfup", colour, waves).reshape(192, 192)
    first = size.argsort(descending=True)[:48]
    basis, values, means = [], [], []
    for _ in range(6):
        chosen = first[torch.randperm(48, generator=g)[:24]]
        basis.append(patterns[chosen].T)
        values.append((size[chosen] * (0.3 + 0.7 * torch.rand(24, generator=g, dtype=F64)) * 0.6) ** 2 + 4e-4)
        means.append((size * torch.randn(192, generator=g, dtype=F64)) @ patterns * 0.7)
    centred = torch.stack(means) - torch.stack(means).mean(0)
    return Mixture(EDM(), centred, torch.stack(basis), torch.stack(values), torch.full((6,), 4e-4, dtype=F64))


# Learned denoisers


class Flat(nn.Module):
    """An MLP on pictures."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor, c_time: Tensor) -> Tensor:
        """The shape of ``x``."""
        return self.mlp(x.flatten(1), c_time).reshape(x.shape)


def _trained(net: nn.Module, data: Tensor, file: Path, steps: int, batch: int, lr: float) -> Preconditioned:
    """EDM's preconditioning around a network trained on log(sigma) ~ N(-0.8, 1.6^2); the average of its last weights."""
    model = Preconditioned(net, EDM(), sigma_data=float(data.std()))
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps, pct_start=0.05)
    for i in range(steps):
        noise = Noise(1000 + i, batch)
        x = data[(noise.at(0).uniform((batch,)) * len(data)).long().clamp(max=len(data) - 1)]
        level = torch.exp(1.6 * noise.at(1).normal((batch,), dtype=F64) - 0.8).clamp(1e-4, 80.0)
        loss = denoising_loss(model, x, level / 80, noise.at(2)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        average.update_parameters(model)
        if i % max(1, steps // 10) == 0:
            print(f"  training {file.stem}: update {i} of {steps}, loss {loss.item():.3f}", flush=True)
    model.load_state_dict(average.module.state_dict())
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), file)
    return model.eval()


def training_images(name: str, file: Path | None = None) -> Tensor:
    """What a learned denoiser was trained on, in [-1, 1], shape ``(N, 1, H, W)``."""
    if name == "digits":
        from trilemma.data.digits import digits

        return digits("train").images
    with np.load(file or Path()) as data:
        return torch.from_numpy(data["train_images"])[:, None].float() / 127.5 - 1


def _digits(cache: Path) -> Preconditioned:
    """A perceptron on scikit-learn's digits; about a minute of one core."""
    torch.manual_seed(0)
    net = Flat(build("mlp", features=64, width=192, depth=3))
    return _trained(net, training_images("digits"), cache / "digits.pt", 3000, 128, 3e-3)


def _mnist(cache: Path, file: Path) -> Preconditioned:
    """A small UNet on MNIST; about 4 minutes of one core."""
    torch.manual_seed(0)
    net = build("unet", channels=1, widths=[16, 32, 32], blocks=1, attention=[2])
    return _trained(net, training_images("mnist", file), cache / "mnist.pt", 1500, 64, 3e-3)


def problem(name: str, cache: Path, mnist: Path | None = None, items: int | None = None, seed: int = 20_000) -> Problem:
    """A problem by its name; learned ones are trained once and kept in ``cache``."""
    makers: dict[str, tuple[Callable[[], Denoiser], tuple[int, ...], float]] = {
        "gmm64": (_gmm64, (128, 64), 1e-10),
        "gmm2": (_gmm2, (256, 2), 1e-10),
        "image": (_image, (128, 3, 8, 8), 1e-10),
        "digits": (lambda: _digits(cache), (128, 1, 8, 8), 1e-8),
        "mnist": (lambda: _mnist(cache, mnist or Path()), (16, 1, 28, 28), 1e-5),
    }
    make, shape, tol = makers[name]
    model = make()
    shape = (items or shape[0], *shape[1:])
    z = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    exact = isinstance(model, Mixture)
    anywhere = model.on(Flow()) if isinstance(model, Mixture) else Rescheduled(model, Flow())
    return Problem(name, model.requires_grad_(False), anywhere, z, exact, cache, tol)
