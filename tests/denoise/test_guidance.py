"""Guidance wrappers on a denoiser whose conditional and unconditional answers are known exactly."""

import pytest
import torch

from oracles import F64, Mixture, scalar
from trilemma.denoise import CFG, Categorical, Denoiser, Gaussian, Guided, Thresholded, Unconditional, Within
from trilemma.process import EDM, VP, Flow

T = scalar(0.4)


class Labelled(Denoiser):
    """Two classes, each one component of a mixture; without a label, the whole mixture."""

    cond_keys = frozenset({"label", "size"})

    def __init__(self, process=None):
        super().__init__()
        self.process = process or Flow()
        self.mixture = Mixture.example(components=2)
        self.parts = [Mixture([1.0], self.mixture.means[[k]], self.mixture.covs[[k]]) for k in (0, 1)]
        self.calls = 0

    def forward(self, x_t, t, label=None, size=None):
        self.calls += 1
        out = self.mixture.torch(self.process)(x_t, t).mean
        if label is not None:
            each = [part.torch(self.process)(x_t, t).mean for part in self.parts]
            out = torch.where((label == 0)[:, None], each[0], each[1])
        if size is not None:
            out = out * size[:, None]
        return Gaussian(out, torch.ones_like(out))


def items(n=6):
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return x, torch.tensor([0, 1, 1, 0, 1, 0][:n])


def test_one_is_conditional_and_zero_is_not():
    model, (x, label) = Labelled(), items()
    with_label, without = model(x, T, label=label).mean, model(x, T).mean
    assert torch.equal(CFG(model, 1.0)(x, T, label=label).mean, with_label)
    assert torch.equal(CFG(model, 0.0)(x, T, label=label).mean, without)
    assert torch.equal(Unconditional(model)(x, T, label=label).mean, without)
    model.calls = 0
    CFG(model, 1.0)(x, T, label=label), CFG(model, 0.0)(x, T, label=label)
    assert model.calls == 2  # the other answer is not computed
    CFG(model, 2.0)(x, T, label=label)
    assert model.calls == 4


def test_linear_in_the_scale():
    """Ho and Salimans 2022, equation (6), whose w is the scale less one: (1 + w) conditional - w unconditional."""
    model, (x, label) = Labelled(), items()
    with_label, without = model(x, T, label=label).mean, model(x, T).mean
    for w in (-0.5, 0.3, 2.0, 7.5):
        guided = CFG(model, 1 + w)(x, T, label=label)
        torch.testing.assert_close(guided.mean, (1 + w) * with_label - w * without)


def test_the_guided_score_is_the_geometric_mean_of_the_laws():
    """grad log [p(x | c)^w p(x)^(1 - w)] by autograd: what guidance stands for, in scores instead of denoised items."""
    model, (x, _) = Labelled(), items()
    x.requires_grad_()
    w, label = 2.5, torch.zeros(6, dtype=torch.long)
    log = w * model.parts[0].torch(Flow()).log_prob(x, T) + (1 - w) * model.mixture.torch(Flow()).log_prob(x, T)
    (gradient,) = torch.autograd.grad(log.sum(), x)
    torch.testing.assert_close(CFG(model, w).score(x.detach(), T, label=label), gradient)


def test_some_conditions_can_be_kept():
    model, (x, label) = Labelled(), items()
    size = torch.linspace(1, 2, 6, dtype=F64)
    kept = Unconditional(model, frozenset({"label"}))(x, T, label=label, size=size).mean
    torch.testing.assert_close(kept, model(x, T, size=size).mean)


def test_autoguidance_extrapolates_from_the_weak_model():
    class Weak(Labelled):
        def forward(self, x_t, t, **cond):
            return Gaussian(0.9 * super().forward(x_t, t, **cond).mean)

    strong, (x, label) = Labelled(), items()
    for w in (0.0, 1.0, 3.0):  # 0.9 + 0.1 w of the strong answer
        torch.testing.assert_close(
            Guided(strong, Weak(), w)(x, T, label=label).mean, (0.9 + 0.1 * w) * strong(x, T, label=label).mean
        )


def test_the_weak_model_is_given_the_conditions_that_it_takes():
    """An unconditional model as the weak one is classifier-free guidance with two networks."""
    model, (x, label) = Labelled(), items()
    size = torch.linspace(1, 2, 6, dtype=F64)
    for w in (0.0, 1.0, 2.5):
        guided = Guided(model, model.mixture.torch(Flow()), w)
        torch.testing.assert_close(guided(x, T, label=label).mean, CFG(model, w)(x, T, label=label).mean)
        with pytest.raises(ValueError, match=r"'lable'.*'label'"):
            guided(x, T, lable=label)

    class Sized(Labelled):
        cond_keys = frozenset({"size"})

    expected = 3 * model(x, T, label=label, size=size).mean - 2 * model(x, T, size=size).mean
    torch.testing.assert_close(Guided(model, Sized(), 3.0)(x, T, label=label, size=size).mean, expected)


def test_rescaling_restores_the_standard_deviation_of_each_item():
    model, (x, label) = Labelled(), items()
    strong = model(x, T, label=label).mean
    plain = CFG(model, 4.0)(x, T, label=label).mean
    full = CFG(model, 4.0, rescale=1.0)(x, T, label=label).mean
    torch.testing.assert_close(full.std(1), strong.std(1))
    torch.testing.assert_close(full / full.norm(dim=1, keepdim=True), plain / plain.norm(dim=1, keepdim=True))
    half = CFG(model, 4.0, rescale=0.5)(x, T, label=label).mean  # Lin et al. 2024, equation (16): in between, linearly
    torch.testing.assert_close(half, (full + plain) / 2)


def test_interval_by_level_item_by_item():
    model = Labelled(EDM())
    x, label = items()
    # sigma/alpha = 80 t: at, below, inside, at the top of, and above (0.5, 8]
    t = torch.tensor([0.5, 0.3, 2.0, 8.0, 8.1, 50.0], dtype=F64) / 80
    inside = torch.tensor([False, False, True, True, False, False])
    within = Within(CFG(model, 3.0), model, low=0.5, high=8.0)
    expected = torch.where(inside[:, None], CFG(model, 3.0)(x, t, label=label).mean, model(x, t, label=label).mean)
    found = within(x, t, label=label).mean
    margin = [1, 2, 4, 5]  # items whose level is not an end of the interval, where the last digit decides
    torch.testing.assert_close(found[margin], expected[margin])
    model.calls = 0
    within(x, scalar(0.5), label=label)
    assert model.calls == 1
    same = Within(CFG(model, 3.0), model)  # everywhere but at t = 0
    torch.testing.assert_close(same(x, t, label=label).mean, CFG(model, 3.0)(x, t, label=label).mean)


def test_static_threshold_clamps():
    model, (x, _) = Labelled(), items()
    mean = model(x, T).mean
    torch.testing.assert_close(Thresholded(model, 0.4)(x, T).mean, mean.clamp(-0.4, 0.4))
    torch.testing.assert_close(Thresholded(model, 1e3)(x, T).mean, mean)


def test_dynamic_threshold_of_a_known_item():
    """Saharia et al. 2022, section 2.3: s is the percentile of |x0|, at least 1; clamp to [-s, s], then divide by s."""

    class Fixed(Denoiser):
        def __init__(self):
            super().__init__()
            self.process = VP()

        def forward(self, x_t, t):
            return Gaussian(x_t)

    x = torch.stack([torch.linspace(-3, 3, 101), torch.linspace(-0.5, 0.5, 101)]).double()
    out = Thresholded(Fixed(), 1.0, quantile=0.9)(x, T).mean
    s = torch.quantile(x[0].abs(), 0.9)
    torch.testing.assert_close(out[0], x[0].clamp(-s, s) / s, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out[1], x[1])  # already inside: left alone
    torch.testing.assert_close(Thresholded(Fixed(), 2.0, quantile=0.9)(2 * x, T).mean, 2 * out, rtol=1e-6, atol=1e-6)


def test_tokens_blend_in_log_probability():
    """p^w q^(1 - w), normalised."""
    p, q = torch.tensor([[[0.7, 0.2, 0.1]]]), torch.tensor([[[0.3, 0.3, 0.4]]])
    for w in (0.0, 1.0, 2.5):
        law = Categorical(p.log()).blend(Categorical(q.log()), w).logits.softmax(-1)
        expected = p**w * q ** (1 - w)
        torch.testing.assert_close(law, expected / expected.sum(-1, keepdim=True))


def test_mistakes_are_named():
    model, (x, label) = Labelled(), items()
    for wrapped in (
        CFG(model, 2.0),
        CFG(model, 1.0),
        CFG(model, 0.0),
        Unconditional(model),
        Thresholded(CFG(model, 2.0)),
    ):
        with pytest.raises(ValueError, match=r"'lable'.*'label'"):
            wrapped.check_cond({"lable": label})
    with pytest.raises(ValueError, match=r"'lable'"):
        Unconditional(model)(x, T, lable=label)
    with pytest.raises(ValueError, match=r"'lable'"):
        Unconditional(model, frozenset({"lable"}))
    with pytest.raises(ValueError, match="conditions"):
        CFG(Mixture.example().torch(Flow()), 2.0)
    with pytest.raises(ValueError, match="one process"):
        Guided(model, Labelled(VP()), 2.0)
    with pytest.raises(ValueError, match="rescale"):
        CFG(model, 2.0, rescale=1.5)
    with pytest.raises(ValueError, match="low"):
        Within(model, model, low=2.0, high=1.0)
    with pytest.raises(ValueError, match="limit"):
        Thresholded(model, 0.0)
    with pytest.raises(ValueError, match="quantile"):
        Thresholded(model, quantile=1.5)
