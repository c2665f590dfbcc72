"""The perceptual distance against loops over places and channels, and published weights by their names."""

import numpy as np
import pytest
import torch

from trilemma.data import load
from trilemma.evaluate import Classifier, perceptual_distance, read_channel_weights

DRAW = torch.Generator().manual_seed(0)
A, B = torch.randn(2, 3, 3, 4, 6, generator=DRAW)
WEIGHTS = [torch.rand(3, generator=DRAW), torch.rand(2, generator=DRAW)]


def two_layers(x):
    """The pictures, and every other place of two sums of their channels."""
    return [x, torch.stack([x[:, 0] + x[:, 1], x[:, 2] - x[:, 0]], 1)[:, :, ::2, ::2]]


def loops(a, b, weights):
    total = 0.0
    for x, y, w in zip(two_layers(a[None]), two_layers(b[None]), weights):
        x, y, w = x[0].double().numpy(), y[0].double().numpy(), w.double().numpy()
        places = [(i, j) for i in range(x.shape[1]) for j in range(x.shape[2])]
        for i, j in places:
            p, q = x[:, i, j], y[:, i, j]
            total += np.sum(w * (p / np.sqrt(p @ p) - q / np.sqrt(q @ q)) ** 2) / len(places)
    return total


@pytest.mark.parametrize("weights", [WEIGHTS, None])
def test_it_is_its_definition(weights):
    exact = [loops(a, b, weights or [torch.ones(3), torch.ones(2)]) for a, b in zip(A, B)]
    assert perceptual_distance(A, B, two_layers, weights=weights).tolist() == pytest.approx(exact, rel=1e-5)
    assert perceptual_distance(A, A, two_layers, weights=weights).tolist() == [0, 0, 0]
    assert perceptual_distance(A, 7 * A, two_layers).tolist() == pytest.approx([0, 0, 0], abs=1e-6)  # contrast alone


def test_gradients_pass_also_where_maps_are_zero():
    x = A.clone().requires_grad_()
    with torch.no_grad():
        x[:, :, 0, 0] = 0  # dead channels, as after a rectifier
    perceptual_distance(x, B, two_layers).sum().backward()
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().max()) < 1e5
    assert float(x.grad[:, :, 1:].abs().min()) > 0


def test_published_weights_are_read_in_the_order_of_layers(tmp_path):
    path = tmp_path / "net.pth"
    by_name = {f"lin{i}.model.1.weight": torch.full((1, i + 1, 1, 1), float(i)) for i in (10, *range(10))}
    torch.save(by_name, path)
    assert [w.tolist() for w in read_channel_weights(path)] == [[float(i)] * (i + 1) for i in range(11)]
    for bad in ({"lin0.weight": torch.ones(3)}, {"lin1.model.1.weight": torch.ones(3)}, {}, [1], {"x": print}):
        torch.save(bad, path)
        with pytest.raises(ValueError, match="no weights of LPIPS"):
            read_channel_weights(path)
    torch.save({"lin0.model.1.weight": -torch.ones(1, 3, 1, 1)}, path)
    with pytest.raises(ValueError, match="negative"):
        read_channel_weights(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no weights of LPIPS"):
        read_channel_weights(path)


def test_a_classifier_has_maps_of_every_stage():
    """The last ones, pooled, are what its features come from; more noise looks more different."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Classifier(1, 10, size=8, width=8).eval()
    x = load("digits").images[:20]
    maps = net.maps(x)
    assert [m.shape[1:] for m in maps] == [(8, 8, 8), (8, 4, 4)]
    assert torch.equal(net.trunk[-2:](maps[-1]), net.trunk(x))
    net.requires_grad_(False)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    means = [float(perceptual_distance(x, x + s * noise, net.maps).mean()) for s in (0, 0.1, 0.2, 0.4)]
    assert means == sorted(means)
    assert means[0] == 0 < means[1]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="two equal shapes"):
        perceptual_distance(A, B[:1], two_layers)
    with pytest.raises(ValueError, match=r"layers have \[3, 2\] channels and the weights \[3\]"):
        perceptual_distance(A, B, two_layers, weights=WEIGHTS[:1])
