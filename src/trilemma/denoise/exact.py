"""Denoisers that are known in closed form: the yardsticks of every test, and laws to learn the subject on.

For a mixture sum_k w_k N(m_k, C_k) the law of x_t is the mixture of N(alpha m_k, S_k), S_k = alpha^2 C_k + sigma^2 I, so

    E[x | x_t] = sum_k r_k(x_t) (m_k + alpha C_k S_k^-1 (x_t - alpha m_k)),                                  (1)
    r_k        = w_k N(x_t; alpha m_k, S_k) / sum_j w_j N(x_t; alpha m_j, S_j),                              (2)

and for a finite data set the same with C_k = 0. Mixtures are computed in float64, finite data in their own type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.noise import Noise
from ..process.gaussian import GaussianProcess
from .denoiser import Denoiser
from .posterior import Gaussian

__all__ = ["Covariances", "FiniteDenoiser", "GaussianDenoiser", "MixtureDenoiser"]


@dataclass(frozen=True)
class Covariances:
    """K covariances of D coordinates with a known eigenbasis: C_k = U_k diag(s_k) U_k^T + f_k (I - U_k U_k^T).

    Make them with :meth:`diagonal`, :meth:`full` or :meth:`low_rank`.

    Args:
        values: the eigenvalues s, shape ``(K, R)``.
        basis: the orthonormal columns U, shape ``(K, D, R)``; the coordinate axes if not given (then R = D).
        floor: the eigenvalue f of everything outside U, shape ``(K,)``.
    """

    values: Tensor
    basis: Tensor | None
    floor: Tensor

    @classmethod
    def diagonal(cls, variances: Tensor) -> Covariances:
        """From variances, shape ``(K, D)``.

        >>> Covariances.diagonal(torch.ones(2, 3)).values.shape
        torch.Size([2, 3])
        """
        return cls._checked(variances.double(), None, torch.zeros(len(variances), dtype=torch.float64))

    @classmethod
    def full(cls, matrices: Tensor) -> Covariances:
        """From symmetric positive semidefinite matrices, shape ``(K, D, D)``."""
        if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
            raise ValueError(f"full covariances need shape (K, D, D), got {tuple(matrices.shape)}")
        values, basis = torch.linalg.eigh(matrices.double())
        tolerance = 1e-10 * values.abs().amax(1, keepdim=True)
        return cls._checked(
            torch.where(values.abs() <= tolerance, 0.0, values), basis, torch.zeros(len(values)).double()
        )

    @classmethod
    def low_rank(cls, factors: Tensor, floor: Tensor | float) -> Covariances:
        """C_k = A_k A_k^T + f_k I from factors A of shape ``(K, D, R)`` and floors f, ``(K,)`` or one number."""
        basis, sizes, _ = torch.linalg.svd(factors.double(), full_matrices=False)
        level = torch.as_tensor(floor, dtype=torch.float64).expand(len(factors))
        return cls._checked(sizes**2 + level[:, None], basis, level.clone())

    @classmethod
    def _checked(cls, values: Tensor, basis: Tensor | None, floor: Tensor) -> Covariances:
        if (
            values.ndim != 2
            or not bool(torch.isfinite(values).all())
            or float(values.min()) < 0
            or float(floor.min()) < 0
        ):
            raise ValueError(
                f"variances must be finite and not negative, (K, D); got {tuple(values.shape)}, min {values.min()}"
            )
        return cls(values, basis, floor)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates of ``(B, K, D)`` in the basis, ``(B, K, R)``, and what lies outside it, ``(B, K, D)``."""
        if self.basis is None:
            return x, torch.zeros_like(x)
        inside = torch.einsum("bkd,kdr->bkr", x, self.basis)
        return inside, x - self.join(inside)

    def join(self, inside: Tensor) -> Tensor:
        """From coordinates ``(B, K, R)`` to ``(B, K, D)``."""
        return inside if self.basis is None else torch.einsum("bkr,kdr->bkd", inside, self.basis)

    def dense(self) -> Tensor:
        """The matrices, shape ``(K, D, D)``."""
        if self.basis is None:
            return torch.diag_embed(self.values)
        eye = torch.eye(self.basis.shape[1], dtype=torch.float64)
        gap = torch.diag_embed(self.values - self.floor[:, None])
        return self.basis @ gap @ self.basis.mT + self.floor[:, None, None] * eye


class MixtureDenoiser(Denoiser):
    """The exact denoiser (1) of a mixture of Gaussians.

    Args:
        process: the noise process.
        means: shape ``(K, *shape)`` for items of any shape.
        covariances: of the flattened items.
        weights: positive, shape ``(K,)``; normalised here; equal if not given.

    Raises:
        ValueError: the numbers of components or coordinates disagree, or a weight is not positive.

    Cost:
        O(B K D R) for rank R; no network.

    >>> from trilemma.process import Flow
    >>> two = MixtureDenoiser(Flow(), torch.tensor([[-1.0], [1.0]]), Covariances.diagonal(torch.full((2, 1), 0.01)))
    >>> two(torch.tensor([[0.0], [0.5]]), torch.tensor(0.5)).mean
    tensor([[0.0000],
            [0.7598]])
    """

    means: Tensor
    log_weights: Tensor
    values: Tensor
    floor: Tensor

    def __init__(
        self, process: GaussianProcess, means: Tensor, covariances: Covariances, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        components, self.item_shape = len(means), tuple(means.shape[1:])
        flat = means.double().reshape(components, -1)
        weights = torch.ones(components) if weights is None else weights
        dim = covariances.values.shape[1] if covariances.basis is None else covariances.basis.shape[1]
        if len(weights) != components or len(covariances.values) != components or dim != flat.shape[1]:
            raise ValueError(
                f"{components} means of {flat.shape[1]} coordinates do not fit {len(weights)} weights and "
                f"{len(covariances.values)} covariances of {dim} coordinates"
            )
        if not bool((weights > 0).all()):
            raise ValueError(f"weights must be positive, got {weights.tolist()}")
        self.process = process
        self.register_buffer("means", flat)
        self.register_buffer("log_weights", (weights.double() / weights.double().sum()).log())
        self.register_buffer("values", covariances.values)
        self.register_buffer("floor", covariances.floor)
        self.register_buffer("basis", covariances.basis)

    @property
    def covariances(self) -> Covariances:
        """Those given, on the present device."""
        basis = self.get_buffer("basis") if self._buffers["basis"] is not None else None
        return Covariances(self.values, basis, self.floor)

    def _curves(self, t: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Alpha and sigma as (1, 1, 1) or (B, 1, 1)."""
        t = t.double()
        return tuple(c.to(device).reshape(-1, 1, 1) for c in (self.process.alpha(t), self.process.sigma(t)))  # type: ignore[return-value]

    def _components(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """log(w_k N(x_t; alpha m_k, S_k)), shape (B, K), and E[x | x_t, k], shape (B, K, D)."""
        if tuple(x_t.shape[1:]) != self.item_shape:
            raise ValueError(f"items have shape {self.item_shape}, got a batch of shape {tuple(x_t.shape)}")
        flat = x_t.double().flatten(1)
        cov, (alpha, sigma) = self.covariances, self._curves(t, flat.device)
        rest = flat[:, None] - alpha * self.means
        inside, outside = cov.split(rest)
        s_in = (alpha**2 * cov.values + sigma**2).clamp(min=1e-300)
        floor = cov.floor[:, None]
        s_out = (alpha**2 * floor + sigma**2).clamp(min=1e-300)
        left = flat.shape[1] - cov.values.shape[1]
        distance = (inside**2 / s_in).sum(-1)
        logdet = s_in.log().sum(-1)
        mean = self.means + cov.join(alpha * cov.values / s_in * inside)
        if left:
            distance = distance + (outside**2 / s_out).sum(-1)
            logdet = logdet + left * s_out.log()[..., 0]
            mean = mean + alpha * floor / s_out * outside
        log = self.log_weights - 0.5 * (distance + logdet + flat.shape[1] * math.log(2 * math.pi))
        return log, mean

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """Equation (1), with the type of ``x_t``."""
        self.check_cond(cond)
        log, mean = self._components(x_t, t)
        return Gaussian((log.softmax(1)[..., None] * mean).sum(1).reshape(x_t.shape).to(x_t.dtype))

    def log_prob(self, x_t: Tensor, t: Tensor | float = 0.0) -> Tensor:
        """Log-density of x_t at time t in nats, float64, shape ``(B,)``; of the data at t = 0."""
        return self._components(x_t, torch.as_tensor(t, dtype=torch.float64))[0].logsumexp(1)

    def draw(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Exact samples of the data, float64 of shape ``(n, *shape)``, and the components they come from, ``(n,)``."""
        device = self.means.device
        u = noise.at(0).uniform((noise.n,), dtype=torch.float64, device=device)
        edges = self.log_weights.exp().cumsum(0)[:-1]
        k = torch.searchsorted(edges, u)
        cov = self.covariances
        white = noise.at(1).normal((noise.n, self.means.shape[1]), dtype=torch.float64, device=device)
        one = Covariances(cov.values[k], None if cov.basis is None else cov.basis[k], cov.floor[k])
        if one.basis is None:
            x = one.values.sqrt() * white
        else:  # U diag(sqrt s) U^T z + sqrt f (z - U U^T z)
            inside = torch.einsum("nd,ndr->nr", white, one.basis)
            floor = one.floor.sqrt()[:, None]
            x = torch.einsum("nr,ndr->nd", (one.values.sqrt() - floor) * inside, one.basis) + floor * white
        return (self.means[k] + x).reshape(noise.n, *self.item_shape), k


class GaussianDenoiser(MixtureDenoiser):
    """The exact denoiser of one Gaussian: linear in x_t.

    Args:
        process: the noise process.
        mean: shape ``(*shape)``.
        covariances: one covariance of the flattened item.
    """

    def __init__(self, process: GaussianProcess, mean: Tensor, covariances: Covariances) -> None:
        super().__init__(process, mean[None], covariances)


class FiniteDenoiser(Denoiser):
    """The exact denoiser of a finite data set: what a network of unlimited size would learn, copies of the data and nothing new.

    Args:
        process: the noise process.
        data: shape ``(N, *shape)``; distances are computed in its type.

    Cost:
        O(B N D).
    """

    data: Tensor

    def __init__(self, process: GaussianProcess, data: Tensor) -> None:
        super().__init__()
        if data.ndim < 2 or len(data) == 0 or not data.is_floating_point():
            raise ValueError(
                f"data must be floating point of shape (N, ...), N > 0; got {data.dtype} {tuple(data.shape)}"
            )
        self.process = process
        self.item_shape = tuple(data.shape[1:])
        self.register_buffer("data", data.flatten(1))

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Gaussian:
        """The average of the data, weighted by how likely each is behind ``x_t``."""
        self.check_cond(cond)
        if tuple(x_t.shape[1:]) != self.item_shape:
            raise ValueError(f"items have shape {self.item_shape}, got a batch of shape {tuple(x_t.shape)}")
        data, flat = self.data, x_t.flatten(1).to(self.data.dtype)
        alpha, sigma = (c(t.double()).to(data.device).reshape(-1, 1) for c in (self.process.alpha, self.process.sigma))
        # |x_t - alpha x_i|^2 / (2 sigma^2) less what all i share
        distance = (alpha**2 * data.square().sum(1) / 2 - alpha * (flat @ data.T).double()).double()
        nearest = distance.amin(1, keepdim=True)
        weights = ((nearest - distance) / (sigma**2).clamp(min=1e-300)).softmax(1).to(data.dtype)
        return Gaussian((weights @ data).reshape(x_t.shape).to(x_t.dtype))
