"""The codebook against k-means, gradients past the quantiser against dense matrices, the prior against enumeration."""

import itertools
import math

import pytest
import torch

from trilemma.baselines.autoregressive import CodePrior
from trilemma.baselines.vq import VQVAE, Codebook, rotated, straight_through
from trilemma.numerics.noise import Noise
from trilemma.train import TrainConfig, Trainer
from trilemma.train.game import Minibatch


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = (torch.randint(0, 17, (6, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 8 - 1).double()


def model(**options):
    torch.manual_seed(0)
    settings = {
        "pixels": "logistic:17",
        "codes": 6,
        "code_width": 3,
        "widths": (16, 16),
        "prior_width": 16,
        "prior_depth": 1,
    }
    game = VQVAE((1, 8, 8), **{**settings, **options}).double()
    with torch.no_grad():
        for parameter in game.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return game.eval()


def minibatch(part=slice(0, 6), step=0):
    return Minibatch(X[part], None, Noise(3, 6)[part], step, Noise(4, 1), part, 6)


def book(vectors, decay, dead=0.0):
    codes = Codebook(*vectors.shape, decay=decay, dead=dead).double()
    codes.counts.fill_(1.0)
    codes.sums.copy_(vectors)
    return codes


def test_nearest_is_nearest():
    vectors, z = random(7, 3), 2 * random(200, 3, seed=1)
    assert torch.equal(book(vectors, 0.9).nearest(z), torch.cdist(z, vectors).argmin(1))


def test_without_memory_an_update_is_a_step_of_k_means():
    vectors, z = random(4, 3), random(300, 3, seed=1)
    codes = book(vectors, decay=0.0)
    k = torch.cdist(z, vectors).argmin(1)
    codes.follow(*codes.tally(z, k), fresh=torch.full((4, 3), math.nan, dtype=torch.float64))
    torch.testing.assert_close(codes.vectors, torch.stack([z[k == i].mean(0) for i in range(4)]))


def test_with_memory_a_code_is_the_mean_of_all_that_it_was_given_weighted_by_age():
    vectors, decay = random(3, 2), 0.8
    codes = book(vectors, decay)
    history = [
        (random(20, 2, seed=i), torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(i)))
        for i in range(5)
    ]
    for z, k in history:
        codes.follow(*codes.tally(z, k), fresh=torch.full((3, 2), math.nan, dtype=torch.float64))
    for i in range(3):
        weight, total = decay**5, decay**5 * vectors[i]  # the start counts as one vector
        for age, (z, k) in enumerate(reversed(history)):
            weight = weight + (1 - decay) * decay**age * (k == i).sum()
            total = total + (1 - decay) * decay**age * z[k == i].sum(0)
        torch.testing.assert_close(codes.vectors[i], total / weight)


def test_a_dead_code_begins_again_and_a_living_one_does_not():
    codes = book(random(3, 2), decay=0.9, dead=0.1)
    before, fresh = codes.vectors, random(3, 2, seed=1)
    for _ in range(100):  # code 2 is never used: 0.9^n falls below a tenth of the mean use, which is 4
        codes.follow(torch.tensor([6.0, 6.0, 0.0]), torch.cat([6 * before[:2], torch.zeros(1, 2)]), fresh=fresh)
    torch.testing.assert_close(codes.vectors[:2], before[:2])
    torch.testing.assert_close(codes.vectors[2], fresh[2])


def test_the_gradient_passes_straight_through():
    z, e, slope = random(5, 3).requires_grad_(), random(5, 3, seed=1), random(5, 3, seed=2)
    out = straight_through(z, e)
    torch.testing.assert_close(out.detach(), e)
    (out * slope).sum().backward()
    torch.testing.assert_close(z.grad, slope)


def test_the_gradient_passes_by_the_rotation_that_takes_z_to_e():
    """A dense rotation in the plane of both, built from sine and cosine."""
    z, e, slope = random(5, 3).requires_grad_(), random(5, 3, seed=1), random(5, 3, seed=2)
    out = rotated(z, e)
    torch.testing.assert_close(out.detach(), e)
    (out * slope).sum().backward()
    for i in range(5):
        a = z.detach()[i] / z[i].norm().detach()
        b = e[i] - (e[i] @ a) * a
        b = b / b.norm()
        cos = e[i] @ a / e[i].norm()
        sin = (1 - cos**2).sqrt()
        rotation = (
            torch.eye(3, dtype=torch.float64)
            + sin * (torch.outer(b, a) - torch.outer(a, b))
            + (cos - 1) * (torch.outer(a, a) + torch.outer(b, b))
        )
        torch.testing.assert_close(rotation @ a, e[i] / e[i].norm())
        scale = e[i].norm() / z[i].norm().detach()
        torch.testing.assert_close(z.grad[i], scale * rotation.T @ slope[i])


def prior(**options):
    torch.manual_seed(0)
    net = CodePrior(3, 3, width=8, depth=2, heads=2, dropout=0.0, **options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return net


ALL = torch.tensor(list(itertools.product(range(3), repeat=3)))


@pytest.mark.parametrize("label", [None, 0, 1, -1])
def test_the_prior_is_a_law(label):
    net = prior(classes=0 if label is None else 2)
    labels = None if label is None else torch.full((27,), label)
    p = net.log_prob(ALL, labels).exp()
    assert abs(float(p.detach().sum()) - 1) < 1e-12
    assert p.max() > 2 * p.min()


def test_the_prior_looks_at_earlier_codes_alone():
    net = prior()
    one = net(ALL[:, :2])
    changed = ALL[:, :2].clone()
    changed[:, 1] = (changed[:, 1] + 1) % 3
    other = net(changed)
    torch.testing.assert_close(one[:, :2], other[:, :2], rtol=0, atol=0)
    assert not torch.allclose(one[:, 2], other[:, 2])


def test_draws_of_the_prior_have_its_law():
    """Chi-square of 26 degrees of freedom above 75 has probability 1e-6."""
    net, n = prior().eval(), 9000
    with torch.no_grad():
        p = net.log_prob(ALL).exp()
        drawn = net.draw(Noise(0, n))
    counts = (drawn[:, None] == ALL).all(2).sum(0).double()
    assert counts.sum() == n
    assert ((counts - n * p).square() / (n * p)).sum() < 75
    assert torch.equal(net.draw(Noise(0, n)[5:8]), drawn[5:8])


def started():
    """A model whose codebook is spread over what its encoder says."""
    game = model()
    with torch.no_grad():
        z = game._encode(X).flatten(0, 1)
    game.codebook.counts.fill_(1.0)
    game.codebook.sums.copy_(z[:: len(z) // 6][:6])
    return game


def test_the_loss_is_likelihood_and_commitment_and_nobody_moves_the_codebook_by_gradient():
    game = started()
    loss, figures = game.loss("autoencoder", minibatch())
    with torch.no_grad():
        z = game._encode(X)
        k = game.encode(X)
        assert k.unique().numel() > 3
        e = game.codebook.vectors[k]
        log_px = game.pixels.log_prob(game.decode(e), X).mean()
        want = -log_px / 64 + 0.25 * (z - e).square().sum(2).mean()
    torch.testing.assert_close(loss.detach(), want)
    assert not any(name.startswith("codebook") for name, _ in game.named_parameters())
    assert math.isclose(float(figures["n"].sum()), 16)
    seen = game.observe("autoencoder", figures)
    share = torch.bincount(k.flatten(), minlength=6) / k.numel()
    assert math.isclose(seen["perplexity"], math.exp(-float(torch.xlogy(share, share).sum())), rel_tol=1e-6)


def test_players_share_no_parameter_and_leave_none_out():
    game = model()
    players = {name: {id(p) for p in group} for name, group in game.players().items()}
    assert list(players) == ["autoencoder", "prior"]
    assert not players["autoencoder"] & players["prior"]
    assert players["autoencoder"] | players["prior"] == {id(p) for p in game.parameters()}
    game.loss("prior", minibatch())[0].backward()
    assert all(p.grad is None for p in game.players()["autoencoder"])
    assert all(p.grad is not None for p in game.players()["prior"])


def test_micro_batches_give_the_codebook_what_the_whole_batch_gives():
    game = started()
    whole = game.loss("autoencoder", minibatch())[1]
    parts = [game.loss("autoencoder", minibatch(slice(i, i + 2)))[1] for i in (0, 2, 4)]
    for name in ("n", "s", "fresh", "log_px", "distance"):
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(0), whole[name])
    z = game._encode(X).detach().flatten(0, 1)
    assert (torch.cdist(whole["fresh"], z).min(1).values < 1e-6).all()  # vectors of the encoder, none a blend


def test_the_bound_is_that_of_the_codes():
    game = model(classes=2)
    label = torch.tensor([0, 1, -1, 0, 1, 1])
    bound = game.elbo(X, label)
    k = game.encode(X)
    want = game.prior.log_prob(k, label) + game.pixels.log_prob(game.decode(game.codebook.vectors[k], label), X)
    torch.testing.assert_close(bound.elbo, want.detach())
    torch.testing.assert_close(2.0 ** -game.bits_per_dim(X, label), want.detach().div(64).exp())  # a mean over pixels
    assert model(pixels="normal:0").bits_per_dim(X) is None
    with pytest.raises(ValueError, match="none of the 17 levels"):
        game.elbo(X + 0.03)


def test_a_sample_depends_on_its_own_seed_and_label_alone():
    game = model(classes=3, show="draw")
    label = torch.tensor([0, 2, -1])
    many = game.sample(3, seeds=[5, 6, 7], label=label)
    torch.testing.assert_close(game.sample(1, seeds=[6], label=label[1:2]), many[1:2])


def trained(folder, steps, stop=None):
    torch.manual_seed(0)
    game = VQVAE((1, 8, 8), pixels="normal:0", codes=5, code_width=2, widths=(16, 16), prior_width=16, prior_depth=1)
    config = TrainConfig(steps=steps, batch=6, lr=1e-3, warmup=2, ema=("power:0.1",), precision="fp32")
    trainer = Trainer(game, X.float(), config=config)
    trainer.resume(folder)
    for record in trainer.steps():
        if record.step == stop:
            break
    trainer.save(folder)
    return trainer


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 4, stop=2)
    parts = trained(tmp_path / "parts", 4)
    for one, two in zip(whole.model.state_dict().values(), parts.model.state_dict().values()):
        assert torch.equal(one, two)
    assert whole.model.codebook.counts.min() > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [({"gradient": "gumbel"}, "gumbel"), ({"codes": 1}, "codes=1"), ({"decay": 1.0}, "decay=1"), ({"commitment": -1.0}, "-1"),
     ({"prior_width": 18}, "heads"), ({"show": "x"}, "show='x'")],
)  # fmt: skip
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        model(**options)
