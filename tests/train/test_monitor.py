import math

import pytest
import torch

from trilemma.train.monitor import Divergence, LossByNoise


def test_errors_land_in_the_bin_of_their_noise_level():
    profile = LossByNoise(-2.0, 2.0, bins=4, memory=math.inf)
    log_snr = torch.tensor([-math.inf, -1.5, -0.5, 0.5, 1.5, math.inf], dtype=torch.float64)
    error = torch.tensor([1.0, 3.0, 5.0, 7.0, 2.0, 4.0])
    profile.add(profile.sums(log_snr[:3], error[:3]) + profile.sums(log_snr[3:], error[3:]))
    got = profile.read()
    assert got.log_snr.tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert got.error.tolist() == [2.0, 5.0, 7.0, 3.0]
    torch.testing.assert_close(got.share, torch.tensor([2.0, 1, 1, 2], dtype=torch.float64) / 6)


def test_old_errors_fade():
    profile = LossByNoise(bins=1, memory=10.0)
    one = torch.ones(1, dtype=torch.float64)
    profile.add(profile.sums(one, torch.tensor([100.0])))
    for _ in range(300):
        profile.add(profile.sums(one, torch.tensor([1.0])))
    assert float(profile.read().error) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("cut", [0, 3, 50, 77])
def test_divergence_is_seen_at_the_same_update_after_a_restart(cut):
    errors = [1.0] * 60 + [0.1] * 60 + [2.0] * 100

    def first(watch, errors):
        return next((i for i, error in enumerate(errors) if watch.add(error)), None)

    whole = first(Divergence(5.0), errors)
    before = Divergence(5.0)
    assert first(before, errors[:cut]) is None
    after = Divergence(5.0)
    after.restore(before.state())
    assert first(after, errors[cut:]) + cut == whole


def test_a_falling_or_noisy_loss_is_no_divergence_and_a_network_worse_than_untrained_is():
    noise = torch.rand(2000, generator=torch.Generator().manual_seed(0)).tolist()
    calm = Divergence(5.0)
    assert not any(calm.add((2 * u) / (1 + i / 100)) for i, u in enumerate(noise))
    wild = Divergence(5.0)
    assert [i for i, error in enumerate([1.0] + [1e6] * 49) if wild.add(error)] == [49]
