"""A learned variance: its loss is least at the posterior variance, training finds it, and the sampler's bound says so."""

import pytest
import torch
from torch import nn

from oracles import F64, scalar
from trilemma.denoise import LearnedVariance
from trilemma.likelihood import discrete_bound
from trilemma.nets import MLP
from trilemma.numerics.noise import Noise
from trilemma.process import EDM, VP, Cosine, Flow
from trilemma.train import TrainConfig, Trainer
from trilemma.train.checkpoint import load_model, save_model

S = 0.5


class Constant(nn.Module):
    """The exact target for data N(0, S^2) under 'edm', which is 0, and one number for v."""

    def __init__(self, v=0.0):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(v, dtype=F64))

    def forward(self, x, c_time):
        return torch.cat([torch.zeros_like(x), self.v.expand_as(x)], 1)


@pytest.mark.parametrize("process", [VP(), EDM(), Flow(), Cosine()], ids=lambda p: type(p).__name__)
def test_at_v_0_it_is_the_variance_of_gaussian_data(process):
    """Var[x | x_t] = 1 / (1/s^2 + SNR), and e^v times that."""
    model = LearnedVariance(Constant(0.3), process, "edm", sigma_data=S)
    t = torch.tensor([1e-4, 0.2, 0.7, 0.99], dtype=F64)
    found = model(torch.zeros(4, 2, dtype=F64), t).var[:, 0]
    expected = torch.exp(scalar(0.3)) / (1 / S**2 + process.log_snr(t).exp())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("target", ["edm", "v", "velocity", "x0", "eps"])
def test_its_error_is_the_gaussian_likelihood_whatever_the_target(target):
    """Up to a constant of t: differences between two v, from the law that the model itself returns."""
    process = VP() if target == "eps" else Flow()
    x, eps = Noise(0, 5).normal((5, 2), dtype=F64), Noise(1, 5).normal((5, 2), dtype=F64)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=F64)
    found, expected = [], []
    for v in (-0.7, 0.4):
        model = LearnedVariance(Constant(v), process, target, sigma_data=S)
        x_t = process.perturb(x, t, eps)
        law = model(x_t, t)
        expected.append(-torch.distributions.Normal(law.mean, law.var.sqrt()).log_prob(x).mean(1))
        head, raw = model.heads(x_t, t)
        found.append(model.variance_error(head, raw, model.regression_target(x, eps, t), t))
    torch.testing.assert_close(found[1] - found[0], (expected[1] - expected[0]).detach(), rtol=1e-8, atol=1e-10)


def test_the_mean_does_not_feel_the_variance():
    model = LearnedVariance(MLP(2, 4, width=8, depth=1), Flow(), "v")
    nn.init.normal_(model.net.out.weight)
    t = torch.full((3,), 0.4, dtype=F64)
    head, v = model.heads(torch.ones(3, 2), t)
    error = model.variance_error(head, v, torch.zeros(3, 2), t).sum()
    (slope,) = torch.autograd.grad(error, head, retain_graph=True, allow_unused=True)
    assert slope is None
    assert float(torch.autograd.grad(error, v)[0].abs().sum()) > 0


def test_a_network_with_one_head_is_refused_and_the_kind_is_saved(tmp_path):
    with pytest.raises(ValueError, match="4 channels in its output, and this one has 2"):
        LearnedVariance(MLP(2), Flow(), "v")(torch.zeros(1, 2), scalar(0.5))
    model = LearnedVariance(MLP(2, 4, width=8, depth=1), Flow(), "v").eval()
    nn.init.normal_(model.net.out.weight)
    save_model(model, tmp_path)
    again, _ = load_model(tmp_path)
    x, t = torch.ones(1, 2), scalar(0.3)
    assert torch.equal(again(x, t).var, model(x, t).var)


@pytest.mark.slow
def test_training_finds_the_posterior_variance():
    """A narrow and a wide coordinate: at v = 0 the first is up to four times too uncertain."""
    process, s2 = VP(), torch.tensor([0.25, 1.0], dtype=F64)
    x = Noise(0, 8000).normal((8000, 2)) * s2.sqrt().float()
    torch.manual_seed(0)
    model = LearnedVariance(MLP(2, 4, width=64, depth=1), process, "v")
    config = TrainConfig(
        steps=600, batch=256, lr=4e-3, warmup=50, decay="cosine", times="low_discrepancy", precision="fp32", ema=()
    )
    for _ in Trainer(model, x, config=config).steps():
        pass
    model.eval()
    for level in (-1.0, 1.0, 3.0):
        t = process.time(scalar(level))
        with torch.no_grad():
            law = model(process.perturb(x, t, Noise(1, len(x))), t)
        error = (law.mean - x).double().square().mean(0)  # what is best for this mean, which is not quite the exact one
        posterior = 1 / (1 / s2 + torch.tensor(level).exp())
        assert bool((law.var.double().mean(0) / error - 1).abs().lt(0.15).all()), level
        assert abs(float(law.var[:, 1].double().mean() / posterior[1]) - 1) < 0.1, level
        assert float(law.var[:, 0].log().std()) < 0.5  # it does not depend on x_t
    ts = process.time(torch.linspace(-9, 6, 8, dtype=F64))
    bound = {v: discrete_bound(model, x[:512], ts, variance=v, batch=4096) for v in ("small", "large", "learned")}
    cost = {v: float(b.diffusion.value.mean()) for v, b in bound.items()}
    assert cost["learned"] < 0.99 * min(cost["small"], cost["large"])
