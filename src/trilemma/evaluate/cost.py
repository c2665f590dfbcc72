"""What a piece of work costs: seconds, joules and memory, each with where the figure comes from.

(1)  energy by a counter of range R that wraps around:    E = (after - before) mod R
(2)  energy without a counter, from a power P that somebody states:    E = P seconds

A counter counts for the whole processor or graphics card, other programs included: measure on a quiet machine. (1) takes at most
one turn of the counter for granted, some minutes at full load; add the costs of shorter pieces for longer work.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["Cost", "Meter"]

_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Cost:
    """Seconds, joules and bytes; costs of successive pieces of work add up.

    Args:
        seconds: wall time.
        joules: energy.
        energy: where ``joules`` comes from.
        peak_bytes: largest memory at any moment; of the graphics card where there is one, else of this process.
        measured: whether ``joules`` was read from a counter, not from a stated power.

    >>> Cost(1.0, 65.0, "65 W, stated", 100) + Cost(2.0, 130.0, "65 W, stated", 50)
    Cost(seconds=3.0, joules=195.0, energy='65 W, stated', peak_bytes=100, measured=False)
    """

    seconds: float
    joules: float
    energy: str
    peak_bytes: int
    measured: bool = False

    def __add__(self, other: Cost) -> Cost:
        if self.energy != other.energy:
            raise ValueError(f"energy by {self.energy!r} and by {other.energy!r} are not to be added")
        return replace(
            self,
            seconds=self.seconds + other.seconds,
            joules=self.joules + other.joules,
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )


class Meter:
    """Measures what happens inside a ``with``.

    Joules come from the energy counter of the NVIDIA card for ``cuda`` devices and from the processor's (RAPL) for others; where
    there is none or it may not be read, from ``watts`` by (2), and :class:`Cost` says so.

    Args:
        device: where the work is done; waited for at both ends.
        watts: power that is assumed where no counter can be read.

    Raises:
        ValueError: ``watts`` is not positive.

    >>> with Meter("cpu") as meter:
    ...     _ = torch.ones(100).sum()
    >>> meter.cost.seconds > 0 and meter.cost.joules >= 0
    True
    """

    def __init__(self, device: str | torch.device = "cpu", *, watts: float = 65.0) -> None:
        if not 0 < watts < float("inf"):
            raise ValueError(f"watts={watts} is the power of the machine and must be positive")
        self.device = torch.device(device)
        self.watts = watts
        self.cost = Cost(0.0, 0.0, "", 0)

    def __enter__(self) -> Meter:
        self._counter = _card(self.device) if self.device.type == "cuda" else _processor(_RAPL)
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _forget_peak()
        self._energy = self._counter() if self._counter else None
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
        seconds = time.perf_counter() - self._start
        if self._counter and self._energy is not None:
            joules = sum((b - a) % r for (a, r), (b, _) in zip(self._energy, self._counter()))  # (1)
            name = (
                "the card's energy counter" if self.device.type == "cuda" else "the processor's energy counter (RAPL)"
            )
            self.cost = Cost(seconds, joules, name, self._peak(), measured=True)
        else:
            self.cost = Cost(seconds, self.watts * seconds, f"{self.watts:g} W, stated", self._peak())  # (2)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _resident("VmHWM")


_Counter = Callable[
    [], list[tuple[float, float]]
]  # joules and the range after which they begin again, one pair a counter


def _processor(folder: Path) -> _Counter | None:
    """The energy counters of all processor packages, or ``None`` if they cannot be read (often only root may)."""
    zones = [
        zone for zone in sorted(folder.glob("*-rapl:*")) if zone.name.count(":") == 1
    ]  # deeper ones are parts of these

    def joules(zone: Path, entry: str) -> float:
        return int((zone / entry).read_text()) / 1e6

    def read() -> list[tuple[float, float]]:
        return [(joules(zone, "energy_uj"), joules(zone, "max_energy_range_uj")) for zone in zones]

    try:
        return read if read() else None
    except (OSError, ValueError):
        return None


def _card(device: torch.device, library: ctypes.CDLL | None = None) -> _Counter | None:
    """The energy counter of a graphics card through NVIDIA's management library, or ``None`` if there is none."""
    try:
        nvml = library or ctypes.CDLL("libnvidia-ml.so.1")
        handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
            return None
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)):
            return None
    except (OSError, AttributeError, RuntimeError, AssertionError):
        return None

    def read() -> list[tuple[float, float]]:
        if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)):
            raise OSError("the card's energy counter could be read before and cannot now")
        return [(energy.value / 1e3, 2.0**64 / 1e3)]

    return read


def _forget_peak() -> None:
    """Let the process's peak memory begin again from what it holds now, where the system can do so (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(entry: str) -> int:
    """Memory of this process in bytes; elsewhere than on Linux the peak since its start."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))
    except (OSError, StopIteration):
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
