"""Denoisers: from a noisy x_t and its time to a law of the clean x. The one contract of this library."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .._names import unknown
from ..numerics.shapes import pad
from ..process.gaussian import GaussianProcess
from .posterior import Gaussian
from .targets import coefficients, get_target

__all__ = ["Denoiser", "Preconditioned", "Rescheduled"]

_LOG_SNR_LIMIT = 40.0  # what a network is told at t = 0 and where alpha = 0


class Denoiser(nn.Module, ABC):
    """A module that returns q(x | x_t).

    Attributes:
        process: the noise process to which times belong.
        cond_keys: names of the conditions that :meth:`forward` takes.
    """

    process: GaussianProcess
    cond_keys: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """Denoise.

        Args:
            x_t: noisy items, shape ``(B, ...)``, model units.
            t: time in [0, 1], ``()`` or ``(B,)``, any float type; float64 on the CPU costs nothing.
            cond: conditions, one per item.
        """

    def score(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The score grad log p_t(x_t) = (alpha E[x | x_t] - x_t) / sigma^2 (Tweedie), shape ``(B, ...)``.

        Source: Robbins 1956; Efron 2011.
        """
        alpha, sigma = (pad(c.to(x_t), x_t) for c in (self.process.alpha(t), self.process.sigma(t)))
        return (alpha * self(x_t, t, **cond).mean - x_t) / sigma**2

    def check_cond(self, cond: dict[str, Tensor]) -> None:
        """Refuse conditions that this denoiser does not know.

        Raises:
            ValueError: names the nearest one that it knows.
        """
        for key in cond:
            if key not in self.cond_keys:
                if not self.cond_keys:
                    raise ValueError(f"this denoiser takes no conditions, but {key!r} was given")
                raise unknown("condition", key, self.cond_keys)


def _conditions(net: nn.Module) -> frozenset[str]:
    """The names that a network takes after x and c_time; a network built for no classes takes no label."""
    inner = getattr(net, "_orig_mod", net)  # of a compiled network
    parameters = list(inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner).parameters.values())[
        2:
    ]
    names = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    config = getattr(inner, "config", None)
    return frozenset(names - {"label"} if isinstance(config, dict) and config.get("classes") == 0 else names)


class Preconditioned(Denoiser):
    """A network with the affine maps that make it a denoiser,

        E[x | x_t] = c_skip x_t + c_out net(c_in x_t, c_time),     c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2),

    with c_skip and c_out of the target (see ``targets``) and c_time = -log-SNR / 8, which is log(sigma)/4 where alpha = 1.

    Args:
        net: called as ``net(x, c_time, **cond)`` with ``c_time`` of shape ``(B,)``; keeps the shape of ``x``.
        process: the noise process.
        target: what ``net`` predicts, a row of ``targets.TARGETS``.
        sigma_data: standard deviation of the data in model units. Like the process and the target, fixed once built.

    Raises:
        ValueError: the target is unknown or singular on this process, or sigma_data is not positive.

    Source: Karras et al. 2022 (arXiv:2206.00364), equation (7).

    >>> from trilemma.process import Flow
    >>> model = Preconditioned(lambda x, c_time: torch.zeros_like(x), Flow(), "velocity")
    >>> model(torch.ones(2, 3), torch.tensor(0.5)).mean
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """

    def __init__(
        self, net: nn.Module, process: GaussianProcess, target: str = "edm", *, sigma_data: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 < sigma_data < float("inf"):
            raise ValueError(f"sigma_data is the standard deviation of the data and must be positive, got {sigma_data}")
        self.net = net
        self.process = process
        self.target = get_target(target, process)
        self.sigma_data = float(sigma_data)
        self._known: dict[float, tuple[float, float, float, float]] = {}
        self.cond_keys = _conditions(net)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the network."""
        return f"process={self.process}, target={self.target.name!r}, sigma_data={self.sigma_data:.4g}"

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_time, each of the shape of ``t``."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        c_skip, c_out = coefficients(self.target, self.process, t, self.sigma_data)
        c_in = ((alpha * self.sigma_data) ** 2 + sigma**2).rsqrt()
        c_time = self.process.log_snr(t).clamp(-_LOG_SNR_LIMIT, _LOG_SNR_LIMIT) / -8
        return c_skip, c_out, c_in, c_time

    def _coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor | float, ...]:
        """The coefficients, ready to be multiplied with ``x``.

        While sampling, a time is one number for the whole batch and comes again with every batch. Then they are python floats,
        worked out once: four tensors of one element would cost more than the rest of a step.
        """
        if t.ndim or t.device.type != "cpu" or torch.is_grad_enabled() or forward_ad._current_level >= 0:
            return tuple(pad(c.to(x), x) for c in self.coefficients(t))
        key = float(t)
        if key not in self._known:
            if len(self._known) >= 4096:
                self._known.clear()
            c_skip, c_out, c_in, c_time = (float(c) for c in self.coefficients(t.double()))
            self._known[key] = c_skip, c_out, c_in, c_time
        return self._known[key]

    def _net(self, x_t: Tensor, c_in: Tensor | float, c_time: Tensor | float, cond: dict[str, Tensor]) -> Tensor:
        if cond:
            self.check_cond(cond)
        batch = x_t.shape[0]
        if isinstance(c_time, Tensor):
            c_time = c_time.flatten().expand(batch)
        else:
            c_time = torch.full((batch,), c_time, dtype=x_t.dtype, device=x_t.device)
        out: Tensor = self.net(x_t * c_in, c_time, **cond)
        return out

    def output(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """The network's own prediction F of the target, shape ``(B, ...)``."""
        _, _, c_in, c_time = self._coefficients(t, x_t)
        return self._net(x_t, c_in, c_time, cond)

    def regression_target(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What :meth:`output` should be: F = p x + q eps for the clean ``x`` and the noise value ``eps``, shape ``(B, ...)``."""
        p, q = (pad(c.to(x), x) for c in self.target.row(self.process, t, self.sigma_data))
        return p * x + q * eps

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """E[x | x_t] by one call of the network."""
        c_skip, c_out, c_in, c_time = self._coefficients(t, x_t)
        out = self._net(x_t, c_in, c_time, cond)
        if isinstance(c_out, float):
            return Gaussian(torch.add(c_skip * x_t, out, alpha=c_out))
        return Gaussian(c_skip * x_t + c_out * out)


class Rescheduled(Denoiser):
    """A trained denoiser on another process: the same law of x at the same log-SNR, in other units.

    x_t of the new process is moved to the old time with the same log-SNR and scaled by the ratio of sqrt(alpha^2 + sigma^2).
    Where the new process goes beyond the log-SNR of the old one at t = 1, the old model is asked at t = 1.

    Args:
        model: the denoiser.
        process: the process to present.

    Cost:
        One call of ``model``.
    """

    def __init__(self, model: Denoiser, process: GaussianProcess) -> None:
        super().__init__()
        self.model = model
        self.process = process
        self.cond_keys = model.cond_keys

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """The answer of the old model."""
        old = self.model.process.time(self.process.log_snr(t.double()))
        size = torch.hypot(self.process.alpha(t.double()), self.process.sigma(t.double()))
        ratio = torch.hypot(self.model.process.alpha(old), self.model.process.sigma(old)) / size
        return self.model(x_t * pad(ratio.to(x_t), x_t), old, **cond)
