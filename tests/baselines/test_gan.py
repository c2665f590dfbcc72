"""The pairing loss, the penalties and the networks, against closed forms and dense formulas."""

import math

import pytest
import torch
from torch import nn

from trilemma.baselines.adversarial import annealed, gradient_penalty, relativistic
from trilemma.baselines.gan import GAN
from trilemma.baselines.registry import GAMES, build_game
from trilemma.baselines.residual import Discriminator, Generator, _Down, _Up
from trilemma.numerics.noise import Noise
from trilemma.train.game import Adam, Minibatch


def batch_of(x, label=None, step=0, seed=0):
    n = len(x)
    return Minibatch(x, label, Noise(seed, n), step, Noise(seed, 1), slice(0, n), n)


def test_penalty_of_a_quadratic_and_its_slope():
    """D = x'Ax/2 + b'x with symmetric A: |Ax + b|^2, whose gradient in b is 2 (Ax + b)."""
    torch.manual_seed(0)
    a = torch.randn(5, 5, dtype=torch.float64)
    a, b = a + a.T, torch.randn(5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(torch.einsum("bi,ij,bj->b", x, a, x) / 2 + x @ b, x)
    torch.testing.assert_close(penalty, (x @ a + b).square().sum(1))
    (slope,) = torch.autograd.grad(penalty.sum(), b)
    torch.testing.assert_close(slope, 2 * (x @ a + b).sum(0))


@pytest.mark.parametrize("label", [None, torch.tensor([0, 1, -1, 2])])
def test_loss_of_the_discriminator_from_gradients_taken_item_by_item(label):
    torch.manual_seed(0)
    classes = 0 if label is None else 3
    game = GAN((2, 8, 8), classes=classes, widths=(4, 8), latents=5, gamma=(3.0, 0.0), anneal=10)
    x, condition = torch.randn(4, 2, 8, 8, dtype=torch.float64), None if label is None else label + 1
    batch = batch_of(x, label, step=5)
    fake = game.generator(batch.noise.normal((4, 5)), condition).detach().double()
    game.double()

    class Fixed(nn.Module):
        latents, bias = 5, torch.zeros(1)

        def forward(self, z, condition=None):
            return fake

    game.generator = Fixed()
    loss, figures = game.loss("discriminator", batch)
    game.discriminator.requires_grad_(False)
    rows = []
    for i in range(4):
        c = None if condition is None else condition[i : i + 1]
        d = lambda v: game.discriminator(v[None], c)[0]  # noqa: B023
        rows.append(
            [d(x[i]), d(fake[i]), torch.func.grad(d)(x[i]).square().sum(), torch.func.grad(d)(fake[i]).square().sum()]
        )
    real, other, r1, r2 = torch.tensor(rows, dtype=torch.float64).T
    torch.testing.assert_close(figures["r1"], r1.mean(), check_dtype=False)
    torch.testing.assert_close(figures["r2"], r2.mean(), check_dtype=False)
    expected = (1 + (other - real).exp()).log().mean() + 3.0 / 4 * (
        r1 + r2
    ).mean()  # half of 3 on half a cosine, over 2
    torch.testing.assert_close(loss.detach(), expected, check_dtype=False)
    opposite, _ = game.loss("generator", batch)
    torch.testing.assert_close(opposite.detach(), (1 + (real - other).exp()).log().mean(), check_dtype=False)


def test_the_best_discriminator_of_two_known_laws():
    """Data with P(1) = p and samples with P(1) = q: the pairing wants D(1) - D(0) = logit p - logit q."""
    p, q = 0.8, 0.35
    law = torch.tensor([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)])  # real, generated: 11, 10, 01, 00

    def slope(gap):
        d = torch.tensor([0.0, gap], requires_grad=True)
        real, other = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
        (law * relativistic(d[real], d[other])).sum().backward()
        return float(d.grad[1])

    best = math.log(p / (1 - p)) - math.log(q / (1 - q))
    assert slope(best) == pytest.approx(0, abs=1e-6)
    assert slope(best - 0.1) < -1e-3
    assert slope(best + 0.1) > 1e-3


def eigenvalues(game):
    """Of the simultaneous gradient flow of (psi, theta) at the equilibrium 0: D(x) = psi x, the data is 0, samples are theta."""

    def field(v):
        psi, theta = v[0], v[1]
        loss_d, loss_g = game(psi, theta)
        down_d = torch.autograd.grad(loss_d, v, create_graph=True)[0][0]
        down_g = torch.autograd.grad(loss_g, v, create_graph=True)[0][1]
        return -torch.stack([down_d, down_g])

    at = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    return torch.linalg.eigvals(torch.autograd.functional.jacobian(field, at))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.3])
def test_the_point_game_circles_without_penalties_and_converges_with_them(gamma):
    """Linear D at one point of data: l^2 + 2 gamma l + 1/4 = 0, so Re l = -gamma up to gamma = 1/2."""

    def game(psi, theta):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        y = theta[None] * 1.0
        real, other = psi * x, psi * y
        penalties = gradient_penalty(real, x) + gradient_penalty(other, y)
        loss_d = relativistic(real, other) + gamma / 2 * penalties
        return loss_d.sum(), relativistic(other, real).sum()

    values = eigenvalues(game)
    torch.testing.assert_close(values.real, torch.full((2,), -gamma, dtype=torch.float64), rtol=0, atol=1e-9)
    turn = math.sqrt(1 / 4 - gamma**2)
    assert sorted(values.imag.tolist()) == pytest.approx([-turn, turn], abs=1e-9)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_a_location_is_found(spread):
    """Data of mean 1.5 and samples theta + z, by turns, by plain gradient descent."""
    z = spread * torch.tensor([-1.2, -0.4, 0.4, 1.2], dtype=torch.float64)
    x = 1.5 + z.flip(0)
    psi, theta = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for _ in range(150):
        both = torch.cat([x, (theta + z).detach()]).requires_grad_()
        score = psi * both
        loss = relativistic(*score.chunk(2)).mean() + 0.3 * gradient_penalty(score, both).mean()
        with torch.no_grad():
            psi -= 0.5 * torch.autograd.grad(loss, psi)[0]
        loss = relativistic(psi * (theta + z), psi * x).mean()
        with torch.no_grad():
            theta -= 0.5 * torch.autograd.grad(loss, theta)[0]
    assert theta.item() == pytest.approx(1.5, abs=1e-3)


def test_constants_move_along_half_a_cosine():
    values = torch.tensor([annealed((2.0, -1.0), k, 8) for k in range(12)])
    expected = 0.5 + 1.5 * torch.cos(torch.pi * torch.arange(12).clamp(max=8) / 8)
    torch.testing.assert_close(values, expected)
    assert annealed((2.0, -1.0), 0, 0) == -1.0
    game = GAN((1, 8, 8), widths=(4, 8), beta2=(0.5, 0.9), anneal=8)
    assert game.adam("generator", 4, Adam(0.1, (0.9, 0.999))) == Adam(0.1, (0.0, pytest.approx(0.7)))


def test_resampling_keeps_what_is_flat_and_removes_what_would_fold():
    flat, up, down = torch.full((1, 2, 8, 8), 0.7), _Up(2, 2), _Down(2, 2)
    torch.testing.assert_close(down(flat), torch.full((1, 2, 4, 4), 0.7))
    torch.testing.assert_close(up(flat), torch.full((1, 2, 16, 16), 0.7))
    fastest = (-1.0) ** torch.arange(8).expand(1, 2, 8, 8)  # every second pixel would see a constant
    assert float(down(fastest)[..., 1:-1].abs().max()) < 1e-6
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    torch.testing.assert_close(up(ramp)[0, 0, 3, 1:-1], torch.arange(14) / 2 + 0.25)


def test_a_network_begins_as_its_trunk_and_keeps_the_scale():
    """Blocks begin as nothing, and features keep their variance, however deep."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, 16, 16)
    shallow = Discriminator((3, 16, 16), widths=(16, 32), blocks=1)
    deep = Discriminator((3, 16, 16), widths=(16, 32), blocks=6)
    deep.load_state_dict({k: v for k, v in shallow.state_dict().items()}, strict=False)
    for level, other in zip(deep.levels, shallow.levels):
        if not isinstance(level, nn.Sequential):
            level.load_state_dict(other.state_dict())
    torch.testing.assert_close(deep(x), shallow(x))
    for blocks in (
        1,
        8,
    ):  # were the last weight of a block not zero but as the others, L blocks would add up to about 1
        net = Generator((3, 16, 16), latents=64, widths=(64, 64), blocks=blocks)
        for module in net.modules():
            if hasattr(module, "project") and hasattr(module, "mix"):
                nn.init.normal_(module.project.weight, std=module.expand.weight.std().item() * 2**-0.5)
        h = net.inp(torch.randn(256, 64)).unflatten(1, net.start)
        assert h.var().item() == pytest.approx(1, rel=0.05)
        for module in net.levels[:1]:
            assert 1 < module(h).var().item() < 6


def test_the_condition_and_each_item_matter_on_their_own():
    torch.manual_seed(0)
    game = GAN((1, 8, 8), classes=3, widths=(4, 8))
    x = torch.randn(3, 1, 8, 8)
    d = game.discriminator
    nn.init.normal_(d.shift.weight)
    scores = torch.stack([d(x, torch.full((3,), c)) for c in range(4)])
    assert (scores[:, None] - scores[None]).abs().sum(2).fill_diagonal_(1).min().item() > 1e-3
    torch.testing.assert_close(d(x[1:2], torch.tensor([2])), scores[2, 1:2])


@pytest.mark.parametrize("name", sorted(GAMES))
def test_every_family_is_rebuilt_from_its_description(name):
    torch.manual_seed(0)
    game = build_game(name, shape=(1, 8, 8), classes=3)
    again = build_game(name, **game.config)
    assert again.config == game.config
    again.load_state_dict(game.state_dict())
    label = torch.tensor([0, 1, 2, 2])
    first, second = (g.sample(4, seeds=2, label=label) for g in (game, again))
    assert torch.equal(first, second)
    assert first.shape == (4, 1, 8, 8)
    assert game.family == name
    assert set(game.averaged()) <= {key for key, _ in game.named_parameters()}


def test_options_out_of_range_are_named():
    for options, word in (
        ({"gamma": (1.0, -1.0)}, "gamma"),
        ({"beta2": (0.9, 1.0)}, "beta2"),
        ({"anneal": -1}, "anneal"),
        ({"widths": (8, 8, 8, 8, 8)}, "multiples of 16"),
    ):
        with pytest.raises(ValueError, match=word):
            GAN((1, 8, 8), **options)
    with pytest.raises(ValueError, match="did you mean 'widths'"):
        build_game("gan", shape=(1, 8, 8), width=3)
    with pytest.raises(ValueError, match="unknown model 'gam'"):
        build_game("gam")
