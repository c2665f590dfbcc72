"""Which number format and memory layout a device is fast in, decided by what it can do, never by timing it."""

from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def _cpu_has(feature: str) -> bool:
    """Whether torch reports a CPU feature; a torch that lacks the question answers no."""
    query = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(query()) if query is not None else False


_AMX = _cpu_has("amx_tile")
_CPU_BF16 = _AMX or _cpu_has("avx512_bf16")


def recommended_precision(device: torch.device | str) -> Precision:
    """Say whether bf16 autocast pays for training and sampling on a device.

    bf16 keeps the exponent of float32, so no loss scaling is needed. It pays where matrix units take it: CUDA from
    Ampere on, and processors with AMX or AVX-512 bf16. Everything else stays in float32.

    Args:
        device: where the network lives.

    Returns:
        ``"bf16"`` or ``"fp32"``.

    >>> recommended_precision("meta")
    'fp32'
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.get_device_capability(torch.device(device)) >= (8, 0) else "fp32"
    return "bf16" if kind == "cpu" and _CPU_BF16 else "fp32"


def memory_format(device: torch.device | str) -> torch.memory_format:
    """Give the layout in which convolutions are fastest on a device.

    Matrix units (CUDA, AMX) want the channels of a pixel side by side; without them the plain layout wins.

    >>> memory_format("meta")
    torch.contiguous_format
    """
    kind = torch.device(device).type
    return torch.channels_last if kind == "cuda" or (kind == "cpu" and _AMX) else torch.contiguous_format
