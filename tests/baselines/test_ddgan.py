"""One denoising step of the denoising-diffusion GAN: exact laws of linear Gaussian steps, and the losses of its players."""

import math

import pytest
import torch
from torch import nn

from trilemma.baselines.ddgan import DDGAN, posterior
from trilemma.numerics.noise import Noise
from trilemma.process import VP, Cosine, Flow
from trilemma.train import TrainConfig, Trainer
from trilemma.train.game import Adam, Minibatch

PAIRS = [(0.0, 0.25), (0.25, 0.5), (0.3, 0.9), (0.0, 1.0)]  # the last has no signal left in two of the processes
SMALL = {"widths": (8, 16), "latents": 4, "critic_widths": (4, 8)}


def coefficients(process, s, t):
    """x_s = a x_t + b x0 + c eps, read off from the function itself."""
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    s, t = torch.tensor([s, t], dtype=torch.float64)
    parts = ((zero, one, zero), (one, zero, zero), (zero, zero, one))
    return [float(posterior(process, x0, x_t, s, t, eps)) for x0, x_t, eps in parts]


@pytest.mark.parametrize(
    ("process", "s", "t"), [(p, *pair) for p in (VP(), Cosine(), Flow()) for pair in PAIRS[:3]], ids=str
)
def test_a_step_back_from_the_true_x0_has_the_law_of_the_process(process, s, t):
    """Given x0 the pair (x_s, x_t) is normal; its three moments from two noises must be those of x_t = r x_s + noise."""
    a, b, c = coefficients(process, s, t)
    alpha_s, sigma_s = (float(f(torch.tensor(s, dtype=torch.float64))) for f in (process.alpha, process.sigma))
    alpha_t, sigma_t = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (process.alpha, process.sigma))
    assert a * alpha_t + b == pytest.approx(alpha_s, abs=1e-12)  # mean, for x0 = 1
    assert a**2 * sigma_t**2 + c**2 == pytest.approx(sigma_s**2, abs=1e-12)  # variance
    assert a * sigma_t**2 == pytest.approx(alpha_t / alpha_s * sigma_s**2, abs=1e-12)  # covariance of x_s and x_t


@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_a_generator_of_the_exact_posterior_gives_the_exact_marginal(s, t):
    """Data N(0, v): x0 ~ N(m x_t, u) given x_t, then x_s has variance alpha_s^2 v + sigma_s^2; the mean alone gives less."""
    v, process = 0.3, VP()
    a, b, c = coefficients(process, s, t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        [float(f(torch.tensor(time, dtype=torch.float64))) for f in (process.alpha, process.sigma)] for time in (s, t)
    )
    total = alpha_t**2 * v + sigma_t**2
    m, u = alpha_t * v / total, v * sigma_t**2 / total
    marginal = alpha_s**2 * v + sigma_s**2
    assert (a + b * m) ** 2 * total + b**2 * u + c**2 == pytest.approx(marginal, rel=1e-12)
    assert (a + b * m) ** 2 * total + c**2 < marginal - 1e-3


def test_items_at_different_times_are_drawn_as_if_alone():
    s, t = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64), torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)
    x0, x_t, noise = torch.randn(3, 2), torch.randn(3, 2), Noise(0, 3)
    together = posterior(VP(), x0, x_t, s, t, noise)
    for i in range(3):
        alone = posterior(VP(), x0[i : i + 1], x_t[i : i + 1], s[i], t[i], noise[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1])
    assert torch.equal(together[0], x0[0])  # at s = 0 the generator has the word


class Known(nn.Module):
    """A generator that knows x0, before the tanh."""

    def __init__(self, x0):
        super().__init__()
        self.x0 = nn.Parameter(x0.atanh())

    def forward(self, x, c, label=None):
        assert c.shape == (len(x), 1 + 4)
        return self.x0.expand_as(x)


def test_sampling_takes_each_time_once_and_ends_at_what_the_generator_says():
    seen = []

    class Spy(Known):
        def forward(self, x, c, label=None):
            seen.append(c[0, 0].item())
            return super().forward(x, c, label)

    game = DDGAN((1, 8, 8), steps=3, **SMALL)
    target = torch.rand(1, 8, 8)
    game.generator = Spy(target)
    x = game.sample(5, seeds=1)
    torch.testing.assert_close(x, target.expand(5, 1, 8, 8))
    times = torch.tensor([1, 2 / 3, 1 / 3], dtype=torch.float64)
    assert seen == pytest.approx((VP().log_snr(times) / 8).tolist(), rel=1e-5)
    assert game.calls == 3


def batch_of(n, size=None):
    x = torch.rand(n, 1, 8, 8) - 0.75
    return Minibatch(x, torch.arange(n) % 3, Noise(0, n), 0, Noise(0, 1), slice(0, n), size or n)


def margin(game, batch, x_t):
    """What the discriminator says of real minus generated pairs, for a generator that adds 0.5."""
    k, given = 1 + batch.label, torch.cat([x_t, torch.ones_like(x_t)], 1)
    return game.discriminator(torch.cat([batch.x, given], 1), k) - game.discriminator(
        torch.cat([batch.x + 0.5, given], 1), k
    )


def test_real_and_generated_pairs_agree_where_the_generator_is_right():
    """At k = 1 the generated x_s is x0hat: with the true x0 both pairs are the same, the game is log 2, penalties are equal."""
    torch.manual_seed(0)
    game = DDGAN((1, 8, 8), classes=3, steps=1, gamma=(0.5, 0.5), **SMALL)
    batch = batch_of(6)
    game.generator = Known(batch.x)
    loss, figures = game.loss("discriminator", batch)
    assert figures["margin"].item() == pytest.approx(0, abs=1e-6)
    x_t = VP().renoise(batch.x, torch.tensor(0.0), torch.tensor(1.0), batch.noise.at(1))
    rows = []
    for i in range(6):
        k = torch.tensor([1 + i % 3])
        d = lambda v: game.discriminator(torch.cat([v, x_t[i], torch.ones(1, 8, 8)])[None], k)[0]  # noqa: B023
        rows.append(torch.func.grad(d)(batch.x[i]).square().sum())
    slopes = torch.stack(rows).detach()
    torch.testing.assert_close(figures["r1"].detach(), slopes.mean())
    torch.testing.assert_close(figures["r2"].detach(), slopes.mean())
    torch.testing.assert_close(loss.detach(), math.log(2) + 0.5 * slopes.mean())
    game.generator = Known(batch.x + 0.5)
    loss, figures = game.loss("generator", batch)
    assert loss.item() == pytest.approx(torch.log1p((margin(game, batch, x_t)).exp()).mean().item(), rel=1e-4)


def test_every_step_is_trained_equally_often_and_parts_of_a_batch_are_the_batch():
    game = DDGAN((1, 8, 8), steps=4, **SMALL)
    whole = batch_of(40)
    counts = torch.bincount(game._steps(whole), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 10).abs().max() <= 1
    part = Minibatch(whole.x[10:20], None, whole.noise[10:20], 0, whole.whole, slice(10, 20), 40)
    assert torch.equal(game._steps(part), game._steps(whole)[10:20])


def test_both_pairs_have_one_x_t_and_the_step_and_class_of_their_item():
    torch.manual_seed(0)
    game = DDGAN((1, 8, 8), classes=3, steps=4, **SMALL)
    seen = []

    class Critic(nn.Module):
        def forward(self, x, condition):
            seen.append((x, condition))
            return x.square().mean((1, 2, 3))

    game.discriminator, batch = Critic(), batch_of(8)
    game.generator = Known(batch.x)
    game.loss("discriminator", batch)
    (pairs, condition), k = seen[0], game._steps(batch)
    assert torch.equal(condition, torch.cat([batch.label, batch.label]) + 1)
    assert torch.equal(pairs[:8, 1:], pairs[8:, 1:])
    for i in range(8):
        expected = torch.zeros(4, 8, 8)
        expected[k[i] - 1] = 1
        assert torch.equal(pairs[i, 2:], expected)
    later = k > 1
    assert (pairs[:8, 0] - pairs[8:, 0])[later].abs().amin((1, 2)).max() > 0  # x_s is drawn anew
    torch.testing.assert_close(pairs[:8, 0][~later], pairs[8:, 0][~later])
    game.generator = Known(torch.full((8, 1, 8, 8), 0.1))
    game.loss("generator", batch)[0].backward()
    assert (game.generator.x0.grad.flatten(1).norm(dim=1) > 0).all()  # through (1), at every step


def test_z_reaches_the_image():
    torch.manual_seed(0)
    game = DDGAN((1, 8, 8), **SMALL)
    for p in game.generator.parameters():
        nn.init.normal_(p, std=0.1)
    x, t = torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5, dtype=torch.float64)
    first, second = game._clean(x, t, Noise(0, 2), None), game._clean(x, t, Noise(1, 2), None)
    assert (first[0] - first[1]).abs().max() > 1e-3
    assert (first - second).abs().max() > 1e-3
    assert game.sample(4).abs().max() <= 1  # the range of pixels


def trainer(**changes):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    game = DDGAN((1, 8, 8), classes=3, steps=2, **SMALL)
    settings = {"steps": 4, "batch": 8, "warmup": 0, "clip": 0.0, "precision": "fp32", **changes}
    return Trainer(game, (images, torch.arange(24) % 3), config=TrainConfig(**settings))


def test_resumed_equals_uninterrupted_and_micro_batches_add_up(tmp_path):
    whole = trainer()
    expected = [(record.loss, *record.figures.values()) for record in whole.steps()]
    first = trainer()
    got = []
    for record in first.steps():
        got.append((record.loss, *record.figures.values()))
        if record.step == 2:
            break
    first.save(tmp_path)
    second = trainer()
    second.resume(tmp_path)
    got += [(record.loss, *record.figures.values()) for record in second.steps()]
    assert got == expected
    for a, b in zip(second.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    parts = [(record.loss, *record.figures.values()) for record in trainer(accumulate=4).steps()]
    for a, b in zip(parts, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)


def test_the_generator_has_a_pace_of_its_own():
    game, usual = DDGAN((1, 8, 8), pace=0.25, beta1=0.5, beta2=(0.5, 0.9), anneal=8, **SMALL), Adam(0.1, (0.9, 0.999))
    assert game.adam("discriminator", 4, usual) == Adam(0.1, (0.5, pytest.approx(0.7)))
    assert game.adam("generator", 4, usual) == Adam(0.025, (0.5, pytest.approx(0.7)))


def test_options_out_of_range_are_named():
    for options, word in (
        ({"steps": 0}, "steps=0"),
        ({"process": "flow"}, "no signal left"),
        ({"pace": 0.0}, "pace"),
        ({"beta1": 1.0}, "beta1"),
    ):
        with pytest.raises(ValueError, match=word):
            DDGAN((1, 8, 8), **options)
