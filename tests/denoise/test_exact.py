"""Exact denoisers against brute-force integration, dense formulas, autograd and their own samples."""

import math

import numpy as np
import pytest
import torch

from oracles import F64, PROCESS_CASES, Mixture, scalar
from trilemma.denoise import Covariances, FiniteDenoiser, GaussianDenoiser, MixtureDenoiser, Rescheduled
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Cosine, Flow, SubVP


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.9])
def test_mixture_by_quadrature_in_one_dimension(t):
    """E[x | x_t] = int x p(x) N(x_t; alpha x, sigma^2) dx / int p(x) N(...) dx on a fine grid: nothing but Bayes' rule."""
    means, var, weights = np.array([-2.0, 0.5, 1.5]), np.array([0.1, 0.4, 0.02]), np.array([1.0, 2.0, 1.0])
    exact = MixtureDenoiser(
        VP(), torch.tensor(means)[:, None], Covariances.diagonal(torch.tensor(var)[:, None]), torch.tensor(weights)
    )
    x = np.linspace(-8, 8, 400_001)
    prior = sum(
        w * np.exp(-0.5 * (x - m) ** 2 / v) / math.sqrt(2 * math.pi * v) for w, m, v in zip(weights / 4, means, var)
    )
    alpha, sigma = float(VP().alpha(scalar(t))), float(VP().sigma(scalar(t)))
    x_t = np.linspace(-3, 3, 7)
    joint = prior * np.exp(-0.5 * ((x_t[:, None] - alpha * x) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    evidence = joint.sum(1) * (x[1] - x[0])
    mean = (joint * x).sum(1) * (x[1] - x[0]) / evidence
    found = exact(torch.tensor(x_t)[:, None], scalar(t)).mean[:, 0]
    np.testing.assert_allclose(found.numpy(), mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(exact.log_prob(torch.tensor(x_t)[:, None], t).numpy(), np.log(evidence), rtol=1e-9)


def test_mixture_by_quadrature_in_two_dimensions():
    mixture, alpha, sigma = Mixture.example(), 0.6, 0.8  # Cosine at the time of that sigma
    t = Cosine().time(scalar(2 * math.log(alpha / sigma)))
    side = np.linspace(-7, 7, 701)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    prior = np.exp(mixture.log_prob(grid))
    assert prior.sum() * (side[1] - side[0]) ** 2 == pytest.approx(1, abs=1e-9)
    for x_t in ([0.3, -0.4], [-1.5, 2.0]):
        weight = prior * np.exp(-0.5 * ((np.array(x_t) - alpha * grid) ** 2).sum(1) / sigma**2)
        mean = weight @ grid / weight.sum()
        found = mixture.torch(Cosine())(torch.tensor([x_t], dtype=F64), t).mean[0]
        np.testing.assert_allclose(found.numpy(), mean, rtol=1e-8, atol=1e-8)


KINDS = ("diagonal", "full", "low_rank", "low_rank_without_floor")


def structured(kind, components=3, dim=5):
    """Covariances of one kind, and the matrices that they mean."""
    if kind == "diagonal":
        variances = rand(components, dim, seed=1).square()
        variances[0, 2] = 0  # a coordinate that is known
        return Covariances.diagonal(variances), torch.diag_embed(variances)
    if kind == "full":
        root = rand(components, dim, dim, seed=2) / 2
        root[1, :, 0] = root[1, :, 1]  # one that is singular
        return Covariances.full(root @ root.mT), root @ root.mT
    factors = rand(components, dim, 2, seed=3)
    floor = torch.tensor([0.1, 0.5, 0.01], dtype=F64) if kind == "low_rank" else 0.0
    return Covariances.low_rank(factors, floor), factors @ factors.mT + torch.as_tensor(floor).reshape(
        -1, 1, 1
    ) * torch.eye(dim)


@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_is_its_dense_formula(kind):
    covariances, matrices = structured(kind)
    torch.testing.assert_close(covariances.dense(), matrices.double(), rtol=1e-12, atol=1e-12)
    means, weights = rand(3, 5, seed=4), torch.tensor([1.0, 3.0, 2.0])
    dense = Mixture(weights.numpy(), means.numpy(), matrices.numpy())
    exact = MixtureDenoiser(VP(), means, covariances, weights)
    x = rand(8, 5, seed=5)
    for t in (1e-4, 0.1, 0.5, 1.0):
        alpha, sigma = float(VP().alpha(scalar(t))), float(VP().sigma(scalar(t)))
        x_t = alpha * x + sigma * rand(8, 5, seed=6)
        torch.testing.assert_close(
            exact(x_t, scalar(t)).mean, torch.tensor(dense.denoise(x_t, alpha, sigma)), rtol=1e-7, atol=1e-7
        )
        torch.testing.assert_close(
            exact.log_prob(x_t, t), torch.tensor(dense.log_prob(x_t, alpha, sigma)), rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("kind", KINDS)
def test_score_is_the_gradient_of_the_log_density(kind):
    """Tweedie's formula, by which score() is computed, against autograd through log_prob."""
    covariances, _ = structured(kind)
    exact = MixtureDenoiser(SubVP(), rand(3, 5, seed=4), covariances)
    t = torch.tensor([0.2, 0.5, 0.7, 1.0], dtype=F64)
    x = rand(4, 5, seed=7).requires_grad_()
    (gradient,) = torch.autograd.grad(exact.log_prob(x, t).sum(), x)
    torch.testing.assert_close(exact.score(x.detach(), t), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_ends(process):
    """At t = 0 nothing is to be removed; where no signal is left the answer is the mean of the data."""
    mixture = Mixture.example()
    exact, x = mixture.torch(process), rand(5, 2)
    torch.testing.assert_close(exact(x, scalar(0.0)).mean, x)
    if float(process.alpha(scalar(1.0))) == 0:
        mean = torch.tensor(mixture.weights @ mixture.means).expand(5, 2)
        torch.testing.assert_close(exact(x, scalar(1.0)).mean, mean)
    data = FiniteDenoiser(process, rand(4, 2, seed=1))
    assert bool(torch.isfinite(data(x, scalar(0.0)).mean).all())
    assert bool(torch.isfinite(data(100 * x, scalar(1.0)).mean).all())
    near = rand(4, 2, seed=1) + 1e-3
    torch.testing.assert_close(data(near, scalar(0.0)).mean, rand(4, 2, seed=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_data_is_the_limit_of_narrow_components(dtype):
    data, t = rand(6, 2, 3), torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=F64)
    narrow = MixtureDenoiser(Flow(), data, Covariances.diagonal(torch.full((6, 6), 1e-14)))
    x_t = Flow().perturb(data[:4], t, rand(4, 2, 3, seed=1)).to(dtype)
    tolerance = 1e-9 if dtype == F64 else 1e-3
    found = FiniteDenoiser(Flow(), data.to(dtype))(x_t, t).mean
    torch.testing.assert_close(found.double(), narrow(x_t.double(), t).mean, rtol=tolerance, atol=tolerance)
    # and Bayes' rule, item by item
    for i in range(4):
        log = -((x_t[i].double() - (1 - t[i]) * data) ** 2).sum((1, 2)) / (2 * t[i] ** 2)
        expected = (log.softmax(0)[:, None, None] * data).sum(0)
        torch.testing.assert_close(found[i].double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_draws(kind):
    """20000 samples: numbers of each component (chi^2, 2 degrees of freedom, 1e-6), and their means and covariances, whose
    entries stay within 5.2 standard errors (2e-7 each, 60 entries)."""
    covariances, matrices = structured(kind)
    means, weights = rand(3, 5, seed=4), torch.tensor([1.0, 3.0, 2.0])
    x, k = MixtureDenoiser(Flow(), means, covariances, weights).draw(Noise(0, 20_000))
    expected = 20_000 * weights.double() / 6
    counts = torch.bincount(k, minlength=3)
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.6
    for j in range(3):
        part, c = x[k == j] - means[j], matrices[j].double()
        n = len(part)
        assert bool((part.mean(0).abs() <= 5.2 * (c.diagonal() / n).sqrt() + 1e-12).all())
        error = ((c.diagonal()[:, None] * c.diagonal() + c**2) / n).sqrt()
        assert bool(((part.T @ part / n - c).abs() <= 5.2 * error + 1e-12).all())


def test_draws_belong_to_seeds():
    exact = Mixture.example().torch(Flow())
    x, k = exact.draw(Noise([5, 6, 7]))
    alone, one = exact.draw(Noise([6]))
    assert torch.equal(alone[0], x[1])
    assert one[0] == k[1]


def test_draws_have_the_density_of_log_prob():
    """Mean of -log p over samples is the entropy: Monte Carlo against the same mixture in NumPy by quadrature, 4.9 deviations."""
    mixture = Mixture.example()
    x, _ = mixture.torch(Flow()).draw(Noise(3, 20_000))
    values = -mixture.torch(Flow()).log_prob(x)
    side = np.linspace(-6, 6, 401)
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    log = mixture.log_prob(grid)
    entropy = -(np.exp(log) * log).sum() * (side[1] - side[0]) ** 2
    assert abs(float(values.mean()) - entropy) < 4.9 * float(values.std()) / math.sqrt(len(x))


TARGET_PROCESSES = [pytest.param(p, id=name) for name, p in PROCESS_CASES.items()]


@pytest.mark.parametrize("new", TARGET_PROCESSES)
@pytest.mark.parametrize("old", [VP(), EDM(), Flow()], ids=["vp", "edm", "flow"])
def test_a_rescheduled_denoiser_is_the_denoiser_of_the_new_process(old, new):
    """At equal log-SNR, x/alpha has one law whatever the process, so E[x | .] is the same function of x/alpha."""
    mixture = Mixture.example()
    moved, exact = Rescheduled(mixture.torch(old), new), mixture.torch(new)
    reach = float(old.log_snr(scalar(1.0)))
    t = torch.tensor([1e-4, 0.01, 0.2, 0.5, 0.8, 0.97], dtype=F64)
    t = t[new.log_snr(t) >= reach]
    x_t = new.perturb(rand(len(t), 2), t, rand(len(t), 2, seed=1))
    torch.testing.assert_close(moved(x_t, t).mean, exact(x_t, t).mean, rtol=1e-8, atol=1e-8)
    single = moved(x_t.float(), t.float()).mean
    torch.testing.assert_close(single.double(), exact(x_t, t).mean, rtol=1e-2, atol=1e-3)
    assert moved.process == new


@pytest.mark.parametrize("old", PROCESS_CASES.values(), ids=PROCESS_CASES)
def test_a_rescheduled_denoiser_answers_at_the_start(old):
    """Beyond what the old process reaches it is asked at its last time; the answer stays within the data."""
    model = Mixture.example().torch(old)
    for name, new in PROCESS_CASES.items():
        x = float(new.sigma(scalar(1.0))) * rand(4, 2)
        out = Rescheduled(model, new)(x, scalar(1.0)).mean
        assert float(out.abs().max()) < 6, f"on {name}: {out.tolist()}"  # NaN and overflow included


def test_gaussian_denoiser_is_wiener():
    root = rand(6, 6, seed=2) / 2
    c, m = root @ root.T + 0.1 * torch.eye(6), rand(2, 3)
    exact, x_t, t = GaussianDenoiser(Cosine(), m, Covariances.full(c[None])), rand(4, 2, 3, seed=3), scalar(0.4)
    alpha, sigma = Cosine().alpha(t), Cosine().sigma(t)
    gain = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(6))
    expected = m + ((x_t - alpha * m).flatten(1) @ gain.T).reshape(4, 2, 3)
    torch.testing.assert_close(exact(x_t, t).mean, expected)


def test_items_have_their_own_times():
    exact, x_t = Mixture.example().torch(VP()), rand(5, 2)
    t = torch.tensor([0.0, 0.1, 0.4, 0.9, 1.0], dtype=F64)
    batch = exact(x_t, t).mean
    for i in range(5):
        torch.testing.assert_close(exact(x_t[i : i + 1], t[i]).mean[0], batch[i], rtol=1e-12, atol=1e-12)


def test_mistakes_are_named():
    cov = Covariances.diagonal(torch.ones(2, 3))
    with pytest.raises(ValueError, match="2 means of 4"):
        MixtureDenoiser(Flow(), torch.zeros(2, 4), cov)
    with pytest.raises(ValueError, match="positive"):
        MixtureDenoiser(Flow(), torch.zeros(2, 3), cov, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="not negative"):
        Covariances.diagonal(-torch.ones(2, 3))
    with pytest.raises(ValueError, match="not negative"):
        Covariances.full(torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]))
    with pytest.raises(ValueError, match=r"\(K, D, D\)"):
        Covariances.full(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\(3,\).*\(1, 4\)"):
        MixtureDenoiser(Flow(), torch.zeros(2, 3), cov)(torch.zeros(1, 4), scalar(0.5))
    with pytest.raises(ValueError, match=r"\(3,\).*\(1, 4\)"):
        FiniteDenoiser(Flow(), torch.zeros(2, 3))(torch.zeros(1, 4), scalar(0.5))
    with pytest.raises(ValueError, match="takes no conditions"):
        MixtureDenoiser(Flow(), torch.zeros(2, 3), cov)(torch.zeros(1, 3), scalar(0.5), label=torch.zeros(1))
