"""Laws that every backbone of the registry keeps, whatever its kind."""

import json

import pytest
import torch

from trilemma.nets import NETS, PRESETS, DiT, UNet, build, describe
from trilemma.nets.layers import SelfAttention, attend, timestep_features

# a small member of every kind, and the shape of one item; a new entry of NETS must be added here or the first test fails
SMALL = {
    "mlp": [({"features": 6, "width": 16, "depth": 2}, (6,))],
    "unet": [
        ({"dims": 2, "channels": 3, "widths": [16, 32], "blocks": 1, "attention": [1], "head_width": 16}, (3, 8, 8)),
        ({"dims": 1, "channels": 2, "widths": [16, 32], "blocks": 1, "attention": [1], "head_width": 16}, (2, 12)),
    ],
    "dit": [
        ({"dims": 2, "channels": 3, "patch": 2, "width": 32, "depth": 2, "heads": 2}, (3, 8, 8)),
        ({"dims": 1, "channels": 2, "patch": 4, "width": 32, "depth": 2, "heads": 2}, (2, 16)),
    ],
}
CASES = [pytest.param(name, *case, id=f"{name}-{len(case[1])}d") for name, cases in SMALL.items() for case in cases]
every = pytest.mark.parametrize(("name", "kwargs", "shape"), CASES)


@pytest.fixture(autouse=True)
def _first_weights_are_repeatable():
    """Modules draw their first weights from torch's generator: seed it inside the test, give it back after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def awake(net, seed=0):
    """Move every weight off its zero start, so that nothing is hidden by it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return net


def inputs(shape, batch=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=generator), torch.linspace(-2, 2, batch)


def test_every_kind_is_tested():
    assert set(SMALL) == set(NETS)


@every
def test_a_fresh_network_returns_zero_and_learns_at_once(name, kwargs, shape):
    net = build(name, classes=3, **kwargs)
    x, t = inputs(shape)
    out = net(x, t)
    assert torch.equal(out, torch.zeros_like(x))
    (out - x).square().sum().backward()
    assert net.out.weight.grad.abs().sum() > 0


@every
def test_no_label_is_minus_one_and_is_learned_apart_from_class_zero(name, kwargs, shape):
    net = build(name, classes=3, **kwargs)
    x, t = inputs(shape)
    for _ in range(4):  # the zero start opens layer by layer
        loss = (net(x, t, torch.tensor([0, 1, 2, -1])) - x.flip(0)).square().mean()
        gradients = torch.autograd.grad(loss, net.parameters(), materialize_grads=True)
        with torch.no_grad():
            for p, gradient in zip(net.parameters(), gradients, strict=True):
                p -= 0.5 * gradient
    none, minus, zero = net(x, t), net(x, t, torch.full((4,), -1)), net(x, t, torch.zeros(4, dtype=torch.long))
    assert torch.equal(none, minus)
    assert (none - zero).abs().max() > 1e-6


@every
def test_time_matters_and_a_single_time_serves_the_batch(name, kwargs, shape):
    net = awake(build(name, **kwargs)).double()
    x, _ = inputs(shape)
    early, late = net(x, torch.tensor(-2.0)), net(x, torch.tensor(2.0))
    assert (early - late).abs().mean() > 1e-3
    torch.testing.assert_close(early, net(x, torch.full((4,), -2.0)), rtol=1e-9, atol=1e-9)


@every
def test_an_item_does_not_see_its_batch(name, kwargs, shape):
    net = awake(build(name, classes=3, **kwargs)).double()
    x, t = inputs(shape)
    label, order = torch.tensor([2, -1, 0, 1]), torch.tensor([2, 0, 3, 1])
    out = net(x, t, label)
    torch.testing.assert_close(net(x[order], t[order], label[order]), out[order], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net(x[1:2], t[1:2], label[1:2]), out[1:2], rtol=1e-9, atol=1e-9)


@every
def test_the_gradient_is_the_slope(name, kwargs, shape):
    net = awake(build(name, **kwargs)).double()
    x, t = inputs(shape, batch=2)
    x, t = x.double().requires_grad_(), t.double().requires_grad_()
    dx, dt = torch.randn(x.shape, dtype=x.dtype), torch.ones_like(t)
    gx, gt = torch.autograd.grad(net(x, t).square().sum(), (x, t))
    h = 1e-5
    with torch.no_grad():  # the other way of attention: both must agree
        difference = net(x + h * dx, t + h * dt).square().sum() - net(x - h * dx, t - h * dt).square().sum()
    torch.testing.assert_close((gx * dx).sum() + (gt * dt).sum(), difference / (2 * h), rtol=1e-5, atol=1e-8)


@every
def test_forward_mode_derivatives_match_reverse_mode(name, kwargs, shape):
    net = awake(build(name, **kwargs)).double()
    x, t = inputs(shape, batch=2)
    x, t, dx, dt = x.double(), t.double(), torch.randn(x.shape).double(), torch.ones(2).double()
    with torch.no_grad():
        _, forward = torch.func.jvp(net, (x, t), (dx, dt))
    out, pull = torch.func.vjp(net, x, t)
    w = torch.randn_like(out)
    gx, gt = pull(w)
    torch.testing.assert_close((forward * w).sum(), (gx * dx).sum() + (gt * dt).sum())


@every
def test_derivatives_vectorise(name, kwargs, shape):
    net = awake(build(name, **kwargs)).double()
    x, t = inputs(shape, batch=2)
    out, pull = torch.func.vjp(lambda x: net(x, t), x.double())
    probes = torch.randn(3, *out.shape, dtype=torch.float64)
    (together,) = torch.func.vmap(pull)(probes)
    for probe, product in zip(probes, together, strict=True):
        torch.testing.assert_close(product, pull(probe)[0])


@every
def test_the_output_is_float32_under_autocast_and_close_to_it(name, kwargs, shape):
    net = awake(build(name, **kwargs))
    x, t = inputs(shape)
    exact = net(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, t)
    assert out.dtype == torch.float32
    assert 0 < (out - exact).norm() / exact.norm() < 0.05
    assert net(x.double(), t.double()).dtype == torch.float32
    assert net.double()(x, t).dtype == torch.float64


@every
def test_out_channels_change_the_output_alone(name, kwargs, shape):
    key = "out_features" if name == "mlp" else "out_channels"
    x, t = inputs(shape)
    assert build(name, **kwargs, **{key: 5})(x, t).shape == (4, 5, *shape[1:])


@every
def test_a_network_is_rebuilt_from_its_description(name, kwargs, shape):
    net = awake(build(name, classes=2, **kwargs))
    spec = json.loads(json.dumps(describe(net)))
    twin = build(spec["name"], **spec["kwargs"])
    twin.load_state_dict(net.state_dict())
    x, t = inputs(shape)
    assert torch.equal(twin(x, t), net(x, t))


@every
def test_wrong_conditions_are_refused_by_name(name, kwargs, shape):
    x, t = inputs(shape)
    net = build(name, classes=3, **kwargs)
    with pytest.raises(ValueError, match=r"c_time has shape \(3,\).*\(4,\)"):
        net(x, t[:3])
    with pytest.raises(ValueError, match=r"classes=0.*classes=K"):
        build(name, **kwargs)(x, t, torch.zeros(4, dtype=torch.long))
    for wrong in (3, -2):
        with pytest.raises(ValueError, match=f"label {wrong} is outside"):
            net(x, t, torch.tensor([0, 1, wrong, -1]))
    with pytest.raises(ValueError, match="must be integers of shape"):
        net(x, t, torch.zeros(4))
    with pytest.raises(ValueError, match="classes is -1"):
        build(name, **{**kwargs, "classes": -1})


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_recomputed_blocks_give_the_same_gradients(kind):
    kwargs, shape = SMALL[kind][0]
    kwargs = kwargs | {"dropout": 0.3}
    x, t = inputs(shape)
    gradients = []
    for checkpoint in (False, True):
        net = awake(build(kind, checkpoint=checkpoint, **kwargs)).train()
        if not gradients:
            state = net.state_dict()
        net.load_state_dict(state)
        torch.manual_seed(3)
        net(x, t).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)


def test_dropout_acts_while_training_only():
    kwargs, shape = SMALL["unet"][0]
    net, (x, t) = awake(build("unet", dropout=0.5, **kwargs)), inputs(shape)
    assert not torch.equal(net.train()(x, t), net(x, t))
    assert torch.equal(net.eval()(x, t), net(x, t))


def test_a_sequence_is_an_image_one_row_high():
    one = awake(UNet(dims=1, channels=2, widths=[16], blocks=2, attention=[0], head_width=16)).double()
    two = UNet(dims=2, channels=2, widths=[16], blocks=2, attention=[0], head_width=16).double()
    state = two.state_dict()
    for key, value in one.state_dict().items():
        if value.shape == state[key].shape:
            state[key] = value
        else:  # a kernel of the image sees one row through its middle
            state[key] = torch.zeros_like(state[key])
            state[key][:, :, 1:2] = value
    two.load_state_dict(state)
    x, t = inputs((2, 10))
    torch.testing.assert_close(two(x[:, :, None], t)[:, :, 0], one(x, t), rtol=1e-9, atol=1e-9)


def test_the_layout_does_not_change_the_result(monkeypatch):
    kwargs, shape = SMALL["unet"][0]
    net, (x, t) = awake(build("unet", **kwargs)).double(), inputs(shape)
    outs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setattr("trilemma.nets.unet.memory_format", lambda device, layout=layout: layout)
        outs.append(net(x, t))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-10, atol=1e-10)


def test_a_unet_takes_any_size_that_its_levels_divide():
    net = awake(UNet(channels=1, widths=[16, 32, 32], blocks=1, attention=[2], head_width=16))
    assert net(torch.randn(2, 1, 12, 20), torch.zeros(2)).shape == (2, 1, 12, 20)


def test_wrong_inputs_are_refused_with_the_shape_and_the_fix():
    t = torch.zeros(2)
    unet = UNet(channels=3, widths=[16, 16, 16], attention=[])
    with pytest.raises(ValueError, match=r"\(30, 32\).*multiples of 4.*\(32, 32\)"):
        unet(torch.zeros(2, 3, 30, 32), t)
    with pytest.raises(ValueError, match="has 1 channels; this network was built with 3"):
        unet(torch.zeros(2, 1, 32, 32), t)
    with pytest.raises(ValueError, match=r"dims=2 takes \(B, C, H, W\)"):
        unet(torch.zeros(2, 3, 32), t)
    with pytest.raises(ValueError, match="multiples of 4"):
        DiT(dims=1, channels=1, patch=4, width=32, heads=2)(torch.zeros(2, 1, 30), t)
    with pytest.raises(ValueError, match=r"this MLP takes \(B, 6\)"):
        build("mlp", features=6)(torch.zeros(2, 5), t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(dims=3), "dims is 3"),
        (lambda: DiT(dims=0), "dims is 0"),
        (lambda: UNet(widths=[16, 32], blocks=[1, 2, 3]), "blocks has 3 entries for 2 levels"),
        (lambda: UNet(widths=[16, 32], blocks=1, attention=[2]), "attention names level 2"),
        (lambda: UNet(widths=[16, 40], blocks=1, attention=[1]), "not a multiple of head_width 32"),
        (lambda: DiT(width=34, heads=2), "multiple of 4"),
        (lambda: SelfAttention(10, 3), "not a multiple of heads 3"),
        (lambda: build("unnet"), "unknown network 'unnet'; did you mean 'unet'"),
        (lambda: build("unet", width=3), "unknown unet argument 'width'; did you mean 'widths'"),
        (lambda: describe(torch.nn.ReLU()), "ReLU is not a registered network"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_presets_have_the_documented_sizes():
    """Parameters in millions, as the table in the registry's docstring says."""
    from trilemma.nets import registry

    rows = [line.split() for line in registry.__doc__.splitlines() if line.startswith(tuple(PRESETS))]
    documented = {row[0]: float(row[1]) for row in rows}
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in build(name).parameters()) / 1e6 for name in PRESETS}
    assert documented == pytest.approx(counts, abs=0.005)


def test_presets_serialise():
    assert json.loads(json.dumps(PRESETS)) == {name: list(entry) for name, entry in PRESETS.items()}


def test_attention_mixes_tokens_as_defined():
    q, k, v = torch.randn(3, 2, 3, 7, 4, dtype=torch.float64)
    weights = torch.exp(torch.einsum("bhid,bhjd->bhij", q, k) / 2)
    expected = torch.einsum("bhij,bhjd->bhid", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(attend(q, k, v), expected)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v), expected)


def test_time_features_are_smooth_and_tell_noise_levels_apart():
    t = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    features = timestep_features(t, 64)
    assert ((features[1:] - features[:-1]).abs() / 0.01).max() <= 4.0  # the highest frequency bounds the slope
    distance = torch.cdist(features[::10], features[::10]) + 10 * torch.eye(101)
    assert distance.min() > 0.1  # levels 0.8 nats of log-SNR apart, over the whole range


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(NETS))
def test_every_kind_is_one_graph(kind):
    kwargs, shape = SMALL[kind][0]
    net, (x, t) = awake(build(kind, classes=3, **kwargs)), inputs(shape)
    label = torch.tensor([0, 1, -1, 2])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")  # traces all of it, without the C++ compiler
    torch.testing.assert_close(compiled(x, t, label), net(x, t, label), rtol=1e-4, atol=1e-5)
    compiled(x, t, label).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.slow
def test_a_compiled_unet_gives_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net = awake(UNet(channels=1, widths=[16], blocks=1, attention=[])).eval()
    x, t = inputs((1, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, fullgraph=True)(x, t), net(x, t), rtol=1e-4, atol=1e-5)
