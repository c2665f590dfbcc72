import pytest
import torch

from trilemma.train.ema import EMA, Profile, exponential, power, profile


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25, 12**-0.5])
def test_power_profile_is_the_difference_of_powers(sigma_rel):
    p, n = power(sigma_rel), 200
    k = torch.arange(0, n + 1, dtype=torch.float64) / n
    torch.testing.assert_close(p.weights(n), k.pow(p.gamma + 1).diff(), rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_power_profile_has_the_width_it_was_asked_for(sigma_rel):
    n = 200_000
    w = power(sigma_rel).weights(n)
    tau = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    mean = (w * tau).sum()
    assert float((w * (tau - mean).square()).sum().sqrt()) == pytest.approx(sigma_rel, rel=1e-6)


def test_exponential_profile_is_geometric_after_its_warm_up():
    p = exponential(0.9)
    w = p.weights(400)
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-12)
    late = w[-100:]
    torch.testing.assert_close(late[:-1] / late[1:], torch.full((99,), 0.9, dtype=torch.float64), rtol=1e-9, atol=0)
    assert float(late[-1]) == pytest.approx(0.1, rel=1e-12)


@pytest.mark.parametrize("p", [power(0.05), power(0.2), exponential(0.95), Profile(0.0)], ids=str)
def test_average_of_a_path_of_weights_is_the_profile_times_the_path(p):
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(60, 5, dtype=torch.float64, generator=generator)
    ema = EMA({"w": path[0] + 100}, [p])  # the initial weights must leave no trace
    for theta in path:
        ema.update({"w": theta})
    torch.testing.assert_close(ema.averages[0]["w"], p.weights(60) @ path, rtol=1e-12, atol=1e-12)


def test_several_averages_do_not_touch_each_other_nor_the_weights():
    w = torch.zeros(3)
    ema = EMA({"w": w}, [power(0.1), exponential(0.5)])
    for n in range(1, 20):
        ema.update({"w": w.fill_(n)})
    assert w.tolist() == [19.0] * 3
    alone = EMA({"w": w}, [exponential(0.5)])
    for n in range(1, 20):
        alone.update({"w": w.fill_(n)})
    assert torch.equal(alone.averages[0]["w"], ema.averages[1]["w"])


def test_swap_twice_changes_nothing():
    w = torch.randn(7, generator=torch.Generator().manual_seed(1))
    before = w.clone()
    ema = EMA({"w": w}, [power(0.1)])
    ema.update({"w": w + 1})
    average = ema.averages[0]["w"].clone()
    ema.swap({"w": w})
    assert torch.equal(w, average)
    ema.swap({"w": w})
    assert torch.equal(w, before)
    assert torch.equal(ema.averages[0]["w"], average)


@pytest.mark.parametrize("entry", ["power:0", "power:0.5", "exponential:1", "mean:0.1", "power"])
def test_impossible_averages_are_refused(entry):
    with pytest.raises(ValueError):
        profile(entry)
