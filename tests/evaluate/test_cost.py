"""Costs: counters that wrap, counters that are missing, memory that was held only for a moment."""

import time
from types import SimpleNamespace

import pytest
import torch

from trilemma.evaluate import cost
from trilemma.evaluate.cost import Cost, Meter


def packages(folder, values, limit=1000_000_000):
    for i, value in enumerate(values):
        for name in (f"intel-rapl:{i}", f"intel-rapl:{i}:0"):  # the second is a part of the first
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "energy_uj").write_text(f"{value}\n")
            (folder / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_packages_add_up_and_counters_wrap(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_RAPL", tmp_path)
    packages(tmp_path, [5_000_000, 999_000_000])
    with Meter() as meter:
        packages(tmp_path, [8_000_000, 1_500_000])
    assert meter.cost.joules == pytest.approx(3 + 2.5)
    assert meter.cost.measured
    assert "RAPL" in meter.cost.energy


def test_without_a_counter_the_power_is_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_RAPL", tmp_path)
    with Meter(watts=20) as meter:
        time.sleep(0.02)
    assert meter.cost.joules == pytest.approx(20 * meter.cost.seconds)
    assert meter.cost.seconds >= 0.02
    assert (meter.cost.energy, meter.cost.measured) == ("20 W, stated", False)
    packages(tmp_path, [1])
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    with Meter() as meter:
        pass
    assert not meter.cost.measured


@pytest.mark.parametrize("watts", [0, -3.0, float("nan"), float("inf")])
def test_power_must_be_one(watts):
    with pytest.raises(ValueError, match=f"watts={watts}"):
        Meter(watts=watts)


def test_memory_held_for_a_moment_counts():
    with Meter() as idle:
        pass
    with Meter() as busy:
        x = torch.ones(64 * 2**20 // 4)
        del x
    with Meter() as after:
        pass
    assert busy.cost.peak_bytes - idle.cost.peak_bytes > 56 * 2**20
    assert busy.cost.peak_bytes - after.cost.peak_bytes > 56 * 2**20


def test_a_card_is_asked_by_its_own_name(monkeypatch):
    """A stand-in for NVIDIA's library: the counter of the card with this uuid, in millijoules."""
    readings = iter([0, 1_500, 4_000])
    asked = []

    def handle(name, out):
        asked.append(name)
        return 0

    def energy(handle, out):
        out._obj.value = next(readings)
        return 0

    library = SimpleNamespace(
        nvmlInit_v2=lambda: 0, nvmlDeviceGetHandleByUUID=handle, nvmlDeviceGetTotalEnergyConsumption=energy
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    counter = cost._card(torch.device("cuda", 1), library)
    (before, _), (after, _) = counter()[0], counter()[0]
    assert asked == [b"GPU-1234"]
    assert after - before == 2.5
    library.nvmlDeviceGetHandleByUUID = lambda name, out: 6  # not found, as for a slice of a card
    assert cost._card(torch.device("cuda", 1), library) is None


def test_costs_by_different_means_do_not_add():
    with pytest.raises(ValueError, match="20 W, stated"):
        Cost(1.0, 20.0, "20 W, stated", 1) + Cost(1.0, 3.0, "the card's energy counter", 1)
