"""Planted faults in exact networks: each is named, and exact networks of every kind are healthy. Nothing is trained."""

import json
import math

import pytest
import torch
from torch import nn

from oracles import F64
from trilemma.cli.check import _plain
from trilemma.denoise import TARGETS, Covariances, Denoiser, FiniteDenoiser, Gaussian, MixtureDenoiser, Preconditioned
from trilemma.health import check, rules
from trilemma.health.compare import average_lag
from trilemma.health.course import frozen_average, still_falling
from trilemma.health.probe import Reference, errors, levels_of, probe
from trilemma.health.samples import relative_energy_distance
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Cosine, Flow
from trilemma.train.checkpoint import write_folder

ANGLES = torch.arange(6, dtype=F64) * math.pi / 3
MEANS = 1.4 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def ring(process, shift=0.0, scale=1.0, components=slice(None)):
    means = scale * MEANS[components] + shift
    return MixtureDenoiser(process, means, Covariances.diagonal(torch.full((len(means), 2), (0.15 * scale) ** 2)))


HELD = ring(VP()).draw(Noise(0, 512))[0].float()


class Exact(nn.Module):
    """The network of unlimited size: it puts out the target of the exact denoiser of a law."""

    def __init__(self, law, target, sigma_data=1.0, edit=lambda out, level: out):
        super().__init__()
        self.law, self.frame, self.edit = (
            law,
            Preconditioned(nn.Identity(), law.process, target, sigma_data=sigma_data),
            edit,
        )

    def forward(self, x, c_time):
        t = self.law.process.time(-8 * c_time.double())
        c_skip, c_out, c_in, _ = (c[:, None] for c in self.frame.coefficients(t))
        x_t = x.double() / c_in
        out = (self.law(x_t, t).mean - c_skip * x_t) / c_out
        return self.edit(out, -8 * c_time.double()[:, None]).to(x.dtype)


def network(process, target, **more):
    return Preconditioned(Exact(ring(process), target, **more), process, target)


def faults(model, data=HELD, **more):
    return [f.name for f in check(model, data, **more).findings if f.severity == "fault"]


@pytest.mark.parametrize(
    ("process", "target"),
    [(VP(), "v"), (VP(), "eps"), (EDM(), "edm"), (Flow(), "velocity"), (Cosine(), "x0"), (VP(), "score")],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_exact_networks_are_healthy(process, target):
    model = network(process, target)
    health = check(model, HELD, train=ring(process).draw(Noise(5, 512))[0].float(), raw=model)
    assert health.healthy, str(health)
    assert not health.findings  # not even a note
    assert health.identity.kind == ""
    assert all(abs(v.slope - 1) < 5 * v.slope_error + 1e-3 for v in health.levels)


def test_exact_denoisers_without_a_network_are_healthy_too():
    gaussian = MixtureDenoiser(Flow(), torch.zeros(1, 3), Covariances.diagonal(torch.tensor([[1.0, 0.5, 0.1]])))
    assert faults(gaussian, gaussian.draw(Noise(0, 512))[0]) == []
    assert faults(ring(EDM())) == []


def test_swapped_coefficients():
    class Swapped(Preconditioned):
        def forward(self, x_t, t, **cond):
            c_skip, c_out, c_in, c_time = self._coefficients(t, x_t)
            return Gaussian(c_out * x_t + c_skip * self._net(x_t, c_in, c_time, cond))

    assert faults(Swapped(Exact(ring(VP()), "v"), VP(), "v")) == ["coefficients"]


@pytest.mark.parametrize("taken", ["eps", "x0", "score"])
def test_another_target(taken):
    model = Preconditioned(Exact(ring(VP()), "v"), VP(), taken)
    health = check(model, HELD)
    assert health.findings[0].name == "target"
    assert "'v'" in health.findings[0].what


def test_another_process():
    model = Preconditioned(Exact(ring(Flow()), "velocity"), Cosine(), "velocity")
    health = check(model, HELD)
    assert health.findings[0].name == "process"
    assert "'flow'" in health.findings[0].what


@pytest.mark.parametrize("target", [t for t in TARGETS if t not in ("edm", "velocity")])
def test_a_sign(target):
    assert faults(network(VP(), target, edit=lambda out, level: -out)) == ["sign"]


def test_another_scale_of_the_data_in_the_coefficients():
    model = Preconditioned(Exact(ring(EDM()), "edm", sigma_data=1.0), EDM(), "edm", sigma_data=0.2)
    assert faults(model) == ["sigma_data"]


def test_data_in_other_units():
    law = ring(Flow(), shift=0.5, scale=0.5)
    assert faults(Preconditioned(Exact(law, "velocity"), Flow(), "velocity")) == ["range"]


def test_no_ear_for_the_time():
    class Deaf(Exact):
        def forward(self, x, c_time):
            return super().forward(x, torch.full_like(c_time, -0.2))

    assert faults(Preconditioned(Deaf(ring(VP()), "v"), VP(), "v")) == ["time"]


def test_told_another_time():
    class Turned(Exact):
        def forward(self, x, c_time):
            return super().forward(x, -c_time)

    health = check(Preconditioned(Turned(ring(Cosine()), "v"), Cosine(), "v"), HELD)
    assert health.findings[0].name == "time"
    assert "1 - t" in health.findings[0].what


def two_moments(process):
    """The exact denoiser of the Gaussian with the moments of the ring, at best what a network knows that learned nothing else."""
    return MixtureDenoiser(process, torch.zeros(1, 2), Covariances.diagonal(torch.full((1, 2), 0.98 + 0.15**2)))


def test_no_more_than_two_moments():
    assert faults(two_moments(VP())) == ["half-trained"]
    finding = check(two_moments(VP()), HELD, train=ring(VP()).draw(Noise(5, 2000))[0].float()).findings[0]
    assert "averaging other items" in finding.what


def test_an_average_that_lags():
    """The Gaussian as the average of the exact network lacks all that it has learned."""
    table = check(ring(VP()), HELD, draws=0).levels
    _, _, lag, sure = average_lag(two_moments(VP()), ring(VP()), HELD, table, {}, Noise(3, 512), 256)
    assert lag == pytest.approx(1.0, abs=0.1)
    assert sure > 10
    _, _, lag, sure = average_lag(ring(VP()), ring(VP()), HELD, table, {}, Noise(3, 512), 256)
    assert lag == 0
    assert [f.name for f in rules.average(1.05, 0.5, 0.8, 10.0)] == ["average"]
    assert [f.name for f in rules.average(1.3, 0.01, 0.0, 10.0)] == ["average"]
    assert not rules.average(1.05, 0.5, 0.2, 10.0)
    assert not rules.average(1.05, 0.01, 0.8, 10.0)  # too little to matter
    assert not rules.average(1.3, 0.5, 0.8, 2.0)  # chance


def test_the_average_of_other_items():
    """Against the exact denoiser of the same items, with and without the item itself."""
    x, items = ring(VP()).draw(Noise(0, 5))[0].float(), ring(VP()).draw(Noise(1, 40))[0].float()
    t = torch.tensor(0.3, dtype=F64)
    alpha, sigma = float(VP().alpha(t)), float(VP().sigma(t))
    x_t = VP().perturb(x, t, Noise(2, 5))
    want = FiniteDenoiser(VP(), items.double())(x_t.double(), t).mean
    torch.testing.assert_close(Reference(torch.cat([x[:1], items])).copy(x_t[:1], alpha, sigma, x[:1]), want[:1])
    torch.testing.assert_close(Reference(items).copy(x_t, alpha, sigma, x), want)


def test_what_is_learned_is_counted_in_nats():
    """(7): what the exact denoiser is ahead of the linear one is the divergence of the ring from the Gaussian."""
    law, gauss = ring(VP()), two_moments(VP())
    x = law.draw(Noise(0, 4000))[0]
    levels = torch.linspace(-8, 10, 37).tolist()
    exact, linear = (errors(m, x, levels, {}, Noise(1, 4000)).mean(1) for m in (law, gauss))
    nats = float(((linear - exact) * torch.tensor(levels, dtype=F64).exp()).sum()) * 0.5 * 2 / 2  # step 0.5, D = 2
    centred = torch.distributions.MultivariateNormal(
        torch.zeros(2, dtype=F64), (0.98 + 0.15**2) * torch.eye(2, dtype=F64)
    )
    modes = torch.distributions.MultivariateNormal(MEANS, 0.15**2 * torch.eye(2, dtype=F64))
    density = torch.logsumexp(modes.log_prob(x.double()[:, None]), 1) - math.log(6)
    assert nats == pytest.approx(float((density - centred.log_prob(x.double())).mean()), rel=0.05)


def test_an_untrained_network_is_half_trained_and_its_average_stands_still():
    blank = Preconditioned(nn.Linear(2, 2), VP(), "v")
    blank.net.forward = lambda x, c_time: torch.zeros_like(x)
    assert faults(blank) == ["half-trained"]
    assert faults(blank, raw=network(VP(), "v")) == ["average"]


@pytest.mark.parametrize(("low", "high"), [(-20.0, -3.5), (3.0, 20.0)])
def test_starved_levels(low, high):
    """At one end of the noise levels the network is off by more than half the size of its target, elsewhere it is exact."""

    def edit(out, level):
        inside = (level > low) & (level < high)
        return torch.where(inside, out + 0.6, out)

    assert faults(network(VP(), "v", edit=edit))[:1] == ["weighting"]


def test_weights_and_data_that_are_no_numbers():
    model = Preconditioned(nn.Linear(2, 2), VP(), "v")
    with torch.no_grad():
        model.net.weight[0, 0] = math.nan
    assert faults(model) == ["weights"]
    assert faults(ring(VP()), HELD.clone().index_fill_(0, torch.tensor([3]), math.inf)) == ["data"]
    with pytest.raises(ValueError, match="at least 64"):
        check(ring(VP()), HELD[:20])


def test_data_known_by_heart():
    seen = ring(VP()).draw(Noise(7, 40))[0].float()
    assert faults(FiniteDenoiser(VP(), seen), train=seen) == ["overfitted"]


class Classes(Denoiser):
    """The exact denoiser by class: of the left half of the ring or of the right; with ``order`` other halves than it is told."""

    cond_keys = frozenset({"label"})

    def __init__(self, process, order):
        super().__init__()
        self.process, self.order = process, order
        self.halves = nn.ModuleList(ring(process, components=part) for part in (slice(0, 3), slice(3, 6)))

    def forward(self, x_t, t, *, label):
        left, right = (half(x_t, t).mean for half in self.halves)
        return Gaussian(torch.where((self.order(label) == 0)[:, None], left, right))


def test_labels_that_mean_nothing():
    x, component = ring(VP()).draw(Noise(0, 512))
    x, label = x.float(), (component >= 3).long()
    assert faults(Classes(VP(), lambda y: y), x, cond={"label": label}) == []
    assert faults(Classes(VP(), lambda y: torch.zeros_like(y)), x, cond={"label": label}) == ["labels"]
    assert faults(Classes(VP(), lambda y: 1 - y), x, cond={"label": label}) == ["labels"]
    assert "another order" in check(Classes(VP(), lambda y: 1 - y), x, cond={"label": label}).findings[0].advice


def test_the_derivative_is_read_right():
    """A linear field with a known trace and a known rotation; and Tweedie's second formula on Gaussian data."""

    class Turn(Denoiser):
        process = Flow()

        def forward(self, x_t, t):
            matrix = torch.tensor([[0.3, 0.4], [-0.2, 0.5]], dtype=x_t.dtype)
            return Gaussian(x_t @ matrix.T)

    x = Noise(0, 400).normal((400, 2), dtype=F64)
    found = probe(Turn(), x, Reference(x), [0.0], {}, Noise(1, 400), probes=8)[0]
    t = Flow().time(torch.tensor(0.0, dtype=F64))
    expected = float(Flow().sigma(t) ** 2 / Flow().alpha(t)) * 0.8 / 2
    assert found.predicted == pytest.approx(expected, rel=0.05)
    assert found.asymmetry == pytest.approx(math.sqrt(2 * 0.3**2 / (0.09 + 0.16 + 0.04 + 0.25)), rel=0.1)
    gaussian = MixtureDenoiser(Flow(), torch.zeros(1, 2), Covariances.diagonal(torch.tensor([[1.0, 0.2]])))
    x = gaussian.draw(Noise(2, 4000))[0]
    for level in probe(gaussian, x, Reference(x), levels_of(gaussian, 0.6), {}, Noise(3, 4000)):
        snr = math.exp(level.log_snr)
        assert level.predicted == pytest.approx((1 / (1 + snr) + 0.2 / (1 + 0.2 * snr)) / 2, rel=0.02)
        assert level.linear == pytest.approx(level.error, rel=0.01)
        assert abs(level.drift) < 4.5
        assert level.asymmetry < 1e-6


def test_the_martingale_is_tested():
    """A denoiser that is right at each level but for a factor that differs between levels is found by (4)."""

    class Loud(Denoiser):
        def __init__(self):
            super().__init__()
            self.inner = ring(VP())
            self.process = VP()

        def forward(self, x_t, t):
            return Gaussian(self.inner(x_t, t).mean * (1 + 0.6 * torch.sigmoid(self.process.log_snr(t)).to(x_t)))

    found = probe(Loud(), HELD, Reference(HELD), [0.0], {}, Noise(1, 512))[0]
    assert found.drift > 4.5


def test_energy_distance_of_two_normal_laws():
    """In one dimension, N(0, 1) and N(m, 1): 2 E|X - Y| - 2 E|X - X'| in closed form."""
    noise = Noise(0, 4000)
    x, y = noise.at(0).normal((4000, 1), dtype=F64), noise.at(1).normal((4000, 1), dtype=F64) + 1.0
    within = 2 / math.sqrt(math.pi)
    across = math.sqrt(2) * (math.sqrt(2 / math.pi) * math.exp(-0.25) + math.sqrt(0.5) * math.erf(0.5))
    assert relative_energy_distance(x, y) == pytest.approx((2 * across - 2 * within) / within, rel=0.12)
    assert abs(relative_energy_distance(x[:2000], x[2000:])) < 5e-3


def test_the_course_of_a_run(tmp_path):
    def save(step, weight, average):
        files = {"model.safetensors": {"w": torch.tensor([weight])}, "ema.safetensors": {"w": torch.tensor([average])}}
        write_folder(tmp_path / "checkpoints" / f"step_{step:08d}", files)

    save(1, 1.0, 0.5)
    assert frozen_average(tmp_path) is None
    save(2, 2.0, 0.5)
    assert frozen_average(tmp_path).name == "average"
    save(3, 3.0, 0.7)
    assert frozen_average(tmp_path) is None
    noise = (0.05 * Noise(0, 800).normal((800,))).tolist()
    record = tmp_path / "metrics.jsonl"
    record.write_text(
        "".join(f'{{"step": {i}, "loss": {1 / (1 + i / 400) + noise[i]}}}\n' for i in range(800)) + '{"ste'
    )
    assert still_falling(tmp_path).name == "unfinished"
    record.write_text("".join(f'{{"step": {i}, "loss": {0.5 + noise[i]}}}\n' for i in range(800)))
    assert still_falling(tmp_path) is None


def test_either_scale_of_the_data_will_do():
    """Pixels about a bright mean image: 0.2 about their own means, 0.6 altogether."""
    for told in (0.2, 0.35, 0.6, 0.85):
        assert rules.scale(told, 0.2, 0.6) == []
    for told in (0.1, 1.0):
        assert [finding.name for finding in rules.scale(told, 0.2, 0.6)] == ["sigma_data"]


class Given(Exact):
    """An exact network that expects something else than it is given: its input times a factor, or another log-SNR."""

    def __init__(self, law, target, factor=lambda c_in: 1.0, level=lambda log_snr: log_snr, sigma_data=1.0):
        super().__init__(law, target, sigma_data)
        self.factor, self.level = factor, level

    def forward(self, x, c_time):
        t = self.law.process.time(-8 * c_time.double())
        c_in = self.frame.coefficients(t)[2][:, None].to(x)
        return super().forward(x * self.factor(c_in), -self.level(-8 * c_time.double()).to(c_time) / 8)


@pytest.mark.parametrize(("factor", "said"), [(lambda c: c, "given x_t"), (lambda c: 1 / c, "given c_in^2 x_t")])
def test_input_scaled_twice_or_too_much(factor, said):
    """A network with a c_in of its own wants x_t; one that divides by it wants c_in^2 x_t."""
    model = Given(ring(EDM(), scale=0.5), "edm", factor, sigma_data=0.5)
    finding = check(Preconditioned(model, EDM(), "edm", sigma_data=0.5), 0.5 * HELD, draws=0).findings[0]
    assert finding.name == "coefficients"
    assert said in finding.what


def test_a_clock_that_no_formula_knows():
    """Told a level it hears one 2.5 cleaner, so wherever it matters it does best told a noisier one."""
    model = Given(ring(VP()), "v", level=lambda log_snr: log_snr + 2.5)
    health = check(Preconditioned(model, VP(), "v"), HELD, draws=0)
    assert health.findings[0].name == "time"
    assert [f.name for f in rules.clock(health.identity)] == ["time"]
    assert all(1.4 < v.log_snr - v.best < 3.1 for v in health.identity.told if v.sure > 6)
    assert not rules.clock(check(network(VP(), "v"), HELD, draws=0).identity)


def test_all_levels_told_alike():
    """A clock whose whole range is a hundredth of what the network learned: right where the data are clean, wrong elsewhere."""
    model = Preconditioned(Given(ring(VP()), "v", level=lambda log_snr: 4.0 + log_snr / 100), VP(), "v")
    finding = check(model, HELD, draws=0).findings[0]
    assert finding.name == "time"
    assert "at most" in finding.what


def weak(process, sign):
    """The exact network of a wider ring's Gaussian plus a third of what the ring tells beyond: factor 1 and next to no gain."""
    law, blunt = ring(process), two_moments(process)

    class Mixed(Denoiser):
        def __init__(self):
            super().__init__()
            self.process = process

        def forward(self, x_t, t):
            return Gaussian(blunt(x_t, t).mean + 0.3 * (law(x_t, t).mean - blunt(x_t, t).mean))

    return Preconditioned(Exact(Mixed(), "v", edit=lambda out, level: sign * out), process, "v")


def test_factors_before_the_output():
    """(2): 1 for an exact network, -1 for one whose sign is turned, 1/2 for one that puts out twice what it should."""
    for factor, want in ((1.0, 1.0), (-1.0, -1.0), (2.0, 0.5)):
        model = network(VP(), "v", edit=lambda out, level, factor=factor: factor * out)
        told = check(model, HELD, draws=0).identity.told
        assert all(abs(v.slope - want) < 5 * v.slope_error + 1e-3 for v in told)


def test_a_turned_sign_is_seen_in_a_weak_network():
    found = check(weak(VP(), -1.0), HELD, draws=0).findings
    assert found[0].name == "sign"
    assert "sign" not in [f.name for f in check(weak(VP(), 1.0), HELD, draws=0).findings]


def test_answers_that_change():
    class Dropping(Exact):
        def forward(self, x, c_time):
            return nn.functional.dropout(super().forward(x, c_time), 0.05)

    assert faults(Preconditioned(Dropping(ring(VP()), "v"), VP(), "v"), draws=0) == ["random"]


def test_answers_that_are_no_numbers():
    """At the clean levels alone, where a network divides by sigma, say."""

    class Dividing(Exact):
        def forward(self, x, c_time):
            return super().forward(x, c_time) / (-8 * c_time[:, None] < 3).float()  # 0 at clean levels

    model = Preconditioned(Dividing(ring(VP()), "v"), VP(), "v")
    finding = check(model, HELD, draws=0).findings[0]
    assert finding.name == "answers"
    assert "NaN or infinity at" in finding.what


def test_a_network_may_call_view_and_say_nothing():
    """Images are turned over and stay whole in memory; an output of 0 leaves no effect, which JSON cannot say."""

    class Mute(nn.Module):
        def forward(self, x, c_time):
            return 0 * x.view(len(x), -1).view(x.shape)

    health = check(Preconditioned(Mute(), VP(), "v"), HELD.repeat(1, 8).reshape(-1, 1, 4, 4), draws=0)
    assert not health.healthy
    json.dumps(_plain(health), allow_nan=False)


def test_data_turned_over():
    """The exact denoiser of half a ring, on the other half, and on the ring with its coordinates exchanged for none."""
    law = ring(Cosine(), components=slice(0, 3))
    x = law.draw(Noise(0, 512))[0].float()
    assert faults(law, x, draws=0) == []
    for turned, said in ((-x, "the sign"), (x.flip(1), "the order of the coordinates")):
        finding = check(law, turned, draws=0).findings[0]
        assert finding.name == "data"
        assert said in finding.what
