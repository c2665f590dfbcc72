"""Bounds against the closed form of a linear-Gaussian model, laws of pixels against sums over levels, the parts of the loss."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from trilemma.baselines import build_game
from trilemma.baselines.hierarchical import Ladder, Level, Normal
from trilemma.baselines.pixels import Logistic, NormalPixels, bits_per_dim, pixels
from trilemma.baselines.vae import VAE
from trilemma.numerics.noise import Noise
from trilemma.train import TrainConfig, Trainer
from trilemma.train.game import Minibatch

D, LATENT = 6, 3
SIGMA = float(NormalPixels(0.4).log_sigma.double().exp())  # as stored in float32


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def minibatch(x, step=0, label=None):
    n = len(x)
    return Minibatch(x, label, Noise(3, n), step, Noise(4, 1), slice(0, n), n)


class Linear(nn.Module):
    """x = W z + b + sigma eps, with an encoder that is the exact posterior, but for a shift and a scale of its deviation."""

    levels = 1

    def __init__(self, shift=0.0, widen=1.0):
        super().__init__()
        self.w, self.b = nn.Parameter(random(D, LATENT)), nn.Parameter(random(D, seed=1))
        precision = torch.eye(LATENT, dtype=torch.float64) + self.w.T @ self.w / SIGMA**2
        # a basis of latents in which the posterior's covariance is diagonal: the encoder's law is independent
        _, basis = torch.linalg.eigh(precision)
        with torch.no_grad():
            self.w.copy_(self.w @ basis)
        self.shift, self.widen = shift, widen

    def encode(self, x, label=None):
        return [x]

    def decode(self, noise, seen=None, label=None):
        zeros = torch.zeros(noise.n, LATENT, dtype=torch.float64)
        prior, posterior = Normal(zeros, zeros), None
        if seen is not None:
            precision = (1 + (self.w.T @ self.w).diagonal() / SIGMA**2).detach()
            mean = (seen[0].flatten(1) - self.b) @ self.w / SIGMA**2 / precision + self.shift
            posterior = Normal(mean, (-0.5 * precision.log() + math.log(self.widen)).expand_as(mean))
        z = (posterior or prior).draw(noise.at(0))
        return (z @ self.w.T + self.b).view(-1, D, 1, 1), [Level(z, prior, posterior)]


def linear_vae(**options):
    net = Linear(**options)
    return VAE((D, 1, 1), pixels="normal:0.4", net=net).double(), MultivariateNormal(
        net.b.detach(), net.w.detach() @ net.w.detach().T + SIGMA**2 * torch.eye(D, dtype=torch.float64)
    )


def test_at_the_exact_posterior_every_weight_is_the_likelihood_of_probabilistic_pca():
    model, exact = linear_vae()
    x = 2 * random(40, D, seed=2)
    want = exact.log_prob(x)
    for k in (1, 4):  # no Monte-Carlo error at all: p(x, z)/q(z | x) is p(x) for every z
        got = model.importance_weighted(x.view(-1, D, 1, 1), k, seeds=5)
        torch.testing.assert_close(got.value, want, rtol=0, atol=1e-9)
    assert got.standard_error.max() < 1e-9


def test_the_elbo_at_the_exact_posterior_averages_to_the_likelihood_of_probabilistic_pca():
    """Variance of |x - Wz|^2/(2 sigma^2) leaves an error of the mean over 20000 draws; 5 of it fail once in 1.7 million."""
    model, exact = linear_vae()
    x = random(1, D, seed=2)
    bound = model.elbo(x.view(1, D, 1, 1).expand(20_000, -1, -1, -1), seeds=1)
    assert bound.kl.shape == (20_000, 1)
    error = float(bound.elbo.std()) / 20_000**0.5
    assert abs(float(bound.elbo.mean() - exact.log_prob(x))) < 5 * error
    assert 0 < error < 0.05


def test_the_elbo_falls_short_by_the_divergence_of_the_encoder_from_the_posterior():
    """5 standard errors: one false alarm in 1.7 million."""
    model, exact = linear_vae(shift=0.2, widen=1.5)
    x = random(1, D, seed=2)
    bound = model.elbo(x.view(1, D, 1, 1).expand(20_000, -1, -1, -1), seeds=1)
    w = model.net.w.detach()
    posterior = MultivariateNormal(
        torch.zeros(LATENT, dtype=torch.float64),
        precision_matrix=torch.eye(LATENT, dtype=torch.float64) + w.T @ w / SIGMA**2,
    )
    std = posterior.covariance_matrix.diagonal().sqrt()
    encoder = MultivariateNormal(torch.full((LATENT,), 0.2, dtype=torch.float64), torch.diag((1.5 * std) ** 2))
    gap = kl_divergence(encoder, posterior)
    assert gap > 0.5
    error = float(bound.elbo.std()) / 20_000**0.5
    assert abs(float(exact.log_prob(x) - gap - bound.elbo.mean())) < 5 * error


def test_the_importance_weighted_bound_rises_with_k_to_the_likelihood():
    """Means over 4000 items; the rises are 10 and more standard errors, the end is within 5: one false alarm in 1.7 million."""
    model, exact = linear_vae(shift=0.1, widen=1.3)
    n = 4000
    x = random(n, D, seed=2)
    short, want = [], exact.log_prob(x)
    for k in (1, 4, 64):
        estimate = model.importance_weighted(x.view(-1, D, 1, 1), k, seeds=k)
        short.append(want - estimate.value)
    for less, more in itertools.pairwise(short):
        assert (less - more).mean() > 3 * (less - more).std() / n**0.5
    assert short[0].mean() > 0.3
    # the bias is half the variance of the mean weight, and the standard error is the size of the errors
    bias = 0.5 * estimate.standard_error.square().mean()
    assert abs(float(short[-1].mean() - bias)) < 0.2 * bias + 5 * short[-1].std() / n**0.5
    assert 0.9 < (short[-1] / estimate.standard_error).square().mean().sqrt() < 1.15


def test_one_draw_has_no_standard_error_and_no_draw_is_refused():
    model, _ = linear_vae()
    x = random(2, D).view(2, D, 1, 1)
    assert model.importance_weighted(x, 1).standard_error.isinf().all()
    with pytest.raises(ValueError, match="k=0"):
        model.importance_weighted(x, 0)


@pytest.mark.parametrize(("levels", "mixtures"), [(2, 1), (17, 1), (17, 3), (256, 1), (256, 5)])
def test_the_masses_of_all_levels_sum_to_one(levels, mixtures):
    law = Logistic(levels, mixtures)
    theta = 3 * random(1, 4 * law.params, 2, 3)  # sharp and broad, inside and outside of [-1, 1]
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64).view(-1, 1, 1, 1)
    parts = theta.unflatten(1, (4, law.params)).permute(0, 1, 3, 4, 2).reshape(24, law.params, 1, 1)
    pixel = torch.stack([law.log_prob(part.expand(levels, -1, -1, -1), grid) for part in parts.split(1)])
    torch.testing.assert_close(pixel.exp().sum(1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-10)
    # and an item's likelihood is that of its pixels
    joint = law.log_prob(theta.expand(levels, -1, -1, -1), grid.expand(-1, 4, 2, 3))
    torch.testing.assert_close(joint, pixel.sum(0), rtol=1e-12, atol=1e-10)


def test_far_tails_and_sharp_peaks_keep_a_finite_gradient():
    law = Logistic(256)
    theta = torch.tensor([40.0, -30.0]).view(1, 2, 1, 1).requires_grad_()
    log_prob = law.log_prob(theta, torch.full((1, 1, 1, 1), -1.0))
    log_prob.backward()
    assert log_prob < -1000
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("mixtures", [1, 3])
def test_draws_of_a_pixel_have_its_masses_and_its_mean_is_shown(mixtures):
    """Chi-square of 16 degrees of freedom above 50 has probability 2e-5."""
    law = Logistic(17, mixtures)
    theta = 0.7 * random(1, law.params, 1, 1, seed=4)
    n = 40_000
    x = law.draw(theta.expand(n, -1, -1, -1), Noise(0, n)).flatten()
    grid = torch.linspace(-1, 1, 17, dtype=torch.float64)
    counts = (x[:, None] - grid).abs().lt(1e-9).sum(0).double()
    assert counts.sum() == n  # every draw is a level
    p = law.log_prob(theta.expand(17, -1, -1, -1), grid.view(-1, 1, 1, 1)).exp()
    assert ((counts - n * p).square() / (n * p)).sum() < 50
    assert abs(float(law.mean(theta)) - float(p @ grid)) < 1 / 16  # half a bin


def test_the_normal_likelihood_is_that_of_a_normal_law_and_its_best_deviation_the_rms():
    theta, x = random(5, 2, 3, 3), random(5, 2, 3, 3, seed=1)
    law = NormalPixels(0.7).double()
    want = torch.distributions.Normal(theta, law.log_sigma.exp()).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(law.log_prob(theta, x), want)
    best = pixels("normal:0").double().train()
    at = [
        NormalPixels(s * float((x - theta).square().mean().sqrt())).double().log_prob(theta, x).mean()
        for s in (0.98, 1.02)
    ]
    assert best.log_prob(theta, x).mean() > max(at)
    best.eval()
    for _ in range(2000):
        best.follow((x - theta).square().mean())
    assert best.log_prob(theta, x).mean() > max(at)


def test_a_learned_deviation_reaches_the_root_mean_square_error():
    law, square = NormalPixels(), random(4, 1, 8, 8, dtype=torch.float32)
    optimizer = torch.optim.Adam(law.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (-law.log_prob(torch.zeros_like(square), square).mean()).backward()
        optimizer.step()
    assert abs(float(law.log_sigma.detach().exp()) / float(square.square().mean().sqrt()) - 1) < 1e-2


def test_the_divergence_is_the_integral():
    q, p = Normal(random(1, 5), 0.5 * random(1, 5, seed=1)), Normal(random(1, 5, seed=2), 0.5 * random(1, 5, seed=3))
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
    torch.testing.assert_close(q.kl(p)[0], torch.trapezoid(integrand, z, dim=0), rtol=1e-9, atol=1e-10)
    correction = Normal(random(1, 5), random(1, 5, seed=1))
    beside = correction.beside(p)  # in units of the prior: d = (m_q - m_p)/s_p, r = log s_q/s_p
    torch.testing.assert_close((beside.mean - p.mean) / p.log_std.exp(), correction.mean)
    torch.testing.assert_close(beside.kl(p), correction.kl(Normal(torch.zeros(1, 5), torch.zeros(1, 5))).double())


def ladder(**options):
    torch.manual_seed(0)
    settings = {"pixels": "logistic:17", "latent": 4, "maps": (2, 1), "widths": (16, 16), **options}
    model = VAE((1, 8, 8), **settings).double()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the start, where posterior and prior agree
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


LEVELS = (torch.randint(0, 17, (3, 1, 8, 8), generator=torch.Generator().manual_seed(1)) / 8 - 1).double()


def test_the_divergences_of_the_levels_add_up_to_that_of_the_joint_laws():
    """A Monte-Carlo mean of log q(z | x) - log p(z), by torch's normal laws; 5 standard errors fail once in 1.7 million."""
    model, n = ladder(), 400
    x = LEVELS[:1].expand(n, -1, -1, -1)
    bound = model.elbo(x, seeds=2)
    assert bound.kl.shape == (n, 3)
    assert (bound.kl.mean(0) > 0.01).all()
    with torch.no_grad():
        _, levels = model.net.decode(Noise(9, n), model.net.encode(x))
    law = torch.distributions.Normal
    total = sum(
        (law(q.mean, q.log_std.exp()).log_prob(z) - law(p.mean, p.log_std.exp()).log_prob(z)).flatten(1).sum(1)
        for z, p, q in ((level.z, level.prior, level.posterior) for level in levels)
    )
    both = bound.kl.sum(1)
    error = (total.var() / n + both.var() / n).sqrt()
    assert abs(float(total.mean() - both.mean())) < 5 * float(error)
    assert error < 0.1 * both.mean()
    # the same by weights: the mean of log w of one draw is the ELBO
    one = model.importance_weighted(x, 1, seeds=4).value
    assert abs(float(one.mean() - bound.elbo.mean())) < 5 * float((one.var() / n + bound.elbo.var() / n).sqrt())


def test_lower_levels_are_drawn_given_the_upper_ones():
    model = ladder()
    with torch.no_grad():
        first, second = (model.net.decode(Noise([1, 2], 2).at(i))[1] for i in (0, 0))
        other = model.net.decode(Noise([1, 3], 2))[1]
    assert torch.equal(first[2].z, second[2].z)
    assert torch.equal(first[1].prior.mean, second[1].prior.mean)
    assert not torch.allclose(other[1].prior.mean[1], first[1].prior.mean[1])


def test_a_sample_depends_on_its_own_seed_and_label_alone():
    model = ladder(classes=3)
    label = torch.tensor([0, 2, -1])
    many = model.sample(3, seeds=[5, 6, 7], label=label)
    torch.testing.assert_close(model.sample(1, seeds=[6], label=label[1:2]), many[1:2])
    assert not torch.allclose(model.sample(1, seeds=[6], label=label[:1]), many[1:2])


def test_a_mean_is_the_mean_of_the_draws():
    """4000 draws at one z: 6 standard errors over 64 pixels, one false alarm in 8 million; half a bin is (3)'s own error."""
    model, n = ladder(maps=()), 4000
    theta = model.net.decode(Noise([7], 1))[0].detach()
    model.show = "mean"
    shown = model.sample(1, seeds=[7])
    torch.testing.assert_close(shown, model.pixels.mean(theta))
    draws = model.pixels.draw(theta.expand(n, -1, -1, -1), Noise(0, n))
    assert ((draws.mean(0) - shown[0]).abs() < 6 * draws.std(0) / n**0.5 + 1 / 16).all()
    model.show = "draw"
    drawn = model.sample(1, seeds=[7])
    assert ((drawn + 1) * 8).sub(((drawn + 1) * 8).round()).abs().max() < 1e-9  # integers of the data
    assert not torch.allclose(drawn, shown)


def test_the_loss_is_minus_the_elbo_by_element_once_the_divergence_has_its_full_weight():
    model = ladder(beta=2.0, warmup=10)
    loss = {step: float(model.loss("vae", minibatch(LEVELS, step))[0].detach()) for step in (0, 5, 10, 50)}
    figures = model.loss("vae", minibatch(LEVELS))[1]
    kl = float(sum(figures[f"kl_{i}"] for i in (1, 2, 3)))
    log_px = float(figures["elbo"]) + kl
    for step, weight in ((0, 0.0), (5, 1.0), (10, 2.0), (50, 2.0)):
        assert math.isclose(loss[step], -(log_px - weight * kl) / 64, rel_tol=1e-9)
    bound = model.elbo(LEVELS, seeds=3)  # the minibatch's noise
    assert math.isclose(float(bound.elbo.mean()), float(figures["elbo"]), rel_tol=1e-9)


def test_free_bits_charge_a_group_at_least_so_much_and_do_not_push_it_below():
    model = ladder()
    with torch.no_grad():
        levels = model.net.decode(Noise(3, 3), model.net.encode(LEVELS))[1]
    laws = [(torch.distributions.Normal(q.mean, q.log_std.exp()), torch.distributions.Normal(p.mean, p.log_std.exp()))
            for p, q in ((level.prior, level.posterior) for level in levels)]  # fmt: skip
    element = [kl_divergence(q, p) for q, p in laws]
    groups = torch.cat([element[0].mean(0), *(e.sum((2, 3)).mean(0) for e in element[1:])])
    assert groups.shape == (4 + 2 + 1,)
    bar = float(groups.median())
    free = ladder(free_bits=bar)
    plain, charged = (float(m.loss("vae", minibatch(LEVELS))[0].detach()) for m in (model, free))
    assert math.isclose(charged - plain, float((bar - groups).clamp(min=0).sum()) / 64, rel_tol=1e-6)
    all_free = ladder(free_bits=1e3)  # every group is below: the encoder learns from the pixels alone
    none = ladder(beta=0.0)
    for m in (all_free, none):
        m.loss("vae", minibatch(LEVELS))[0].backward()
    for one, two in zip(all_free.parameters(), none.parameters()):
        torch.testing.assert_close(one.grad, two.grad)


def test_bits_per_dim_of_integers_count_the_integers():
    """A model that knows nothing but the range spends log2(17) bits."""
    law = Logistic(2)
    flat = torch.tensor([0.0, 50.0]).view(1, 2, 1, 1).expand(3, 2, 8, 8)  # a scale far beyond [-1, 1]: a coin a pixel
    x = torch.where(LEVELS > 0, 1.0, -1.0)
    bits = bits_per_dim(law.log_prob(flat.double(), x), (1, 8, 8))
    torch.testing.assert_close(bits, torch.ones(3, dtype=torch.float64))


def test_more_draws_cost_fewer_bits_and_what_is_no_likelihood_of_integers_has_none():
    model = ladder()
    one, many = (model.bits_per_dim(LEVELS, draws=draws) for draws in (1, 64))
    assert (many < one).all()
    nats = model.importance_weighted(LEVELS, 64).value
    torch.testing.assert_close(2.0**-many, nats.div(64).exp())  # a geometric mean over the 64 pixels
    assert ladder(pixels="normal:0").bits_per_dim(LEVELS) is None
    assert build_game("gan", shape=(1, 8, 8), classes=0, widths=(4, 8)).bits_per_dim(LEVELS) is None


def test_bounds_are_those_of_the_model_in_evaluation_and_leave_its_mode_alone():
    """In training the optimal deviation is that of the batch: items would depend on their neighbours."""
    model = VAE((1, 8, 8), pixels="normal:0", latent=3, widths=(16,)).double().train()
    one, many = model.elbo(LEVELS[:1], seeds=[5]).elbo, model.elbo(LEVELS, seeds=[5, 6, 7]).elbo
    torch.testing.assert_close(one, many[:1])
    assert model.training


def test_data_that_are_at_no_level_have_no_likelihood():
    model = ladder()
    with pytest.raises(ValueError, match="none of the 17 levels"):
        model.elbo(LEVELS + 0.01)
    with pytest.raises(ValueError, match="none of the 17 levels"):
        model.importance_weighted(1.5 * LEVELS.clamp(min=1), 2)
    with pytest.raises(ValueError, match="shape"):
        model.elbo(LEVELS[..., :4])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": -1.0}, "beta=-1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"free_bits": math.inf}, "free_bits=inf"),
        ({"show": "both"}, "show='both'"),
        ({"pixels": "bernoulli"}, "logistic:256"),
        ({"pixels": "logistic:1"}, "levels=1"),
        ({"maps": (1, 1, 1)}, "2 levels"),
        ({"latent": 0}, "latent=0"),
        ({"widths": (16, 16, 16, 16, 16)}, "multiples of 16"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        ladder(**options)


def trained(folder, steps, stop=None, **options):
    torch.manual_seed(0)
    model = VAE((1, 8, 8), 10, pixels="normal:0", latent=3, maps=(1,), widths=(16,), warmup=4, free_bits=0.1, **options)
    data = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=steps, batch=8, lr=1e-3, warmup=2, ema=("power:0.1",), precision="fp32")
    trainer = Trainer(model, (data, torch.arange(40) % 10), config=config)
    trainer.resume(folder)
    for record in trainer.steps():
        if record.step == stop:
            break
    trainer.save(folder)
    return trainer


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    """The deviation that follows the error is part of it."""
    whole = trained(tmp_path / "whole", 6)
    trained(tmp_path / "parts", 6, stop=3)
    parts = trained(tmp_path / "parts", 6)
    assert parts.step == 6
    for one, two in zip(whole.model.state_dict().values(), parts.model.state_dict().values()):
        assert torch.equal(one, two)
    assert whole.model.pixels.log_sigma != pixels("normal:0").log_sigma


def test_micro_batches_are_one_batch():
    """Without free bits, which look at a micro-batch, the loss is a mean over items."""
    torch.manual_seed(0)
    model = VAE((1, 8, 8), pixels="logistic:17", latent=3, widths=(16,)).double()
    whole = model.loss("vae", minibatch(LEVELS))[0]
    noise = Noise(3, 3)
    parts = [model.loss("vae", Minibatch(LEVELS[i : i + 1], None, noise[i : i + 1], 0, Noise(4, 1), slice(i, i + 1), 3))[0]
             for i in range(3)]  # fmt: skip
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_the_ladder_starts_with_a_posterior_that_is_the_prior():
    net = Ladder((1, 8, 8), 2, latent=4, maps=(2,), widths=(16, 16))
    levels = net.decode(Noise(0, 3), net.encode(LEVELS.float()))[1]
    assert all(level.posterior.kl(level.prior).abs().max() == 0 for level in levels)
