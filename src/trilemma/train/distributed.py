"""One process or many: find out which, refuse launchers that promised more than they started, share a model.

The same program runs alone, under ``torchrun``, ``srun``, ``mpirun`` and ``accelerate launch``: each leaves rank and size in
its own environment variables, and everything after ``setup`` is ``torch.distributed`` itself.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["World", "gather", "local", "scatter", "setup", "whole", "wrap"]

# rank, size and rank on this machine, as the launchers spell them; the first whose size is above one counts
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
PROMISES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "ACCELERATE_NUM_PROCESSES")


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Args:
        rank: number of this process, 0 to ``size - 1``.
        size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()


def _promised(environment: Mapping[str, str]) -> tuple[str, int]:
    """Who promised how many processes: the largest number that a launcher left behind."""
    found = {name: int(environment[name]) for name in PROMISES if environment.get(name, "").isdigit()}
    if any(name.startswith("ACCELERATE_") for name in environment) and "WORLD_SIZE" not in environment:
        # `accelerate launch --cpu --num_processes 2` starts one process and says nothing; only its command line knows
        command = Path(f"/proc/{os.getppid()}/cmdline")
        words = command.read_bytes().decode(errors="replace").replace("\0", " ") if command.exists() else ""
        if asked := re.search(r"--num[-_]processes[= ](\d+)", words):
            found["accelerate launch"] = int(asked[1])
    return max(found.items(), key=lambda item: item[1], default=("", 1))


@contextmanager
def setup(device: str = "auto", *, timeout: float = 600.0) -> Iterator[World]:
    """Join the process group that the launcher promised, and leave it at the end.

    Args:
        device: ``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda`` or ``cuda:1``. Several processes on a machine take
            one CUDA device each.
        timeout: seconds to wait for the other processes, at the start and in every exchange.

    Yields:
        This process's place. A process group that exists already is used and left alone.

    Raises:
        RuntimeError: the launcher promised more processes than have come.

    >>> with setup("cpu") as world:
    ...     world.rank, world.size
    (0, 1)
    """
    environment = os.environ
    rank_name, size_name, local_name = next(
        (names for names in LAUNCHERS.values() if int(environment.get(names[1], 1)) > 1), LAUNCHERS["torchrun"]
    )
    joined = dist.is_initialized()
    size = dist.get_world_size() if joined else int(environment.get(size_name, 1)) if rank_name in environment else 1
    promise, promised = _promised(environment)
    if size == 1 < promised and not joined:
        raise RuntimeError(
            f"{promise} promises {promised} processes but this one was started alone: it would train by itself, in silence; "
            f"start it with `torchrun --nproc-per-node {promised}`, or ask for one process"
        )
    where = _device(device, int(environment.get(local_name, 0)))
    if size > 1 and not joined:
        environment.setdefault("MASTER_ADDR", environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        environment.setdefault("MASTER_PORT", "29500")
        rank = int(environment[rank_name])
        try:
            dist.init_process_group(
                "nccl" if where.type == "cuda" else "gloo",
                init_method="env://",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"{size_name} promises {size} processes but not all of them came to "
                f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']} within {timeout:g} s ({error})"
            ) from error
    try:
        yield World(dist.get_rank() if size > 1 else 0, size, where)
    finally:
        if size > 1 and not joined:
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"device={name!r} was asked for, but torch sees no CUDA device; use device='cpu'")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    return device


def wrap(module: nn.Module, strategy: str, world: World) -> nn.Module:
    """Share a module between processes.

    Args:
        module: what is called in training. Its parameters keep their names.
        strategy: ``none``; ``ddp``: every process has all weights and gradients are averaged while they are computed;
            ``fsdp2``: every process keeps its part of the weights, gradients and optimiser state, and the blocks (items of
            every ``ModuleList``) are put together while they are needed.
        world: this process's place.

    Returns:
        The module to call: a ``DistributedDataParallel`` around it, or ``module`` itself.

    Raises:
        ValueError: unknown strategy, or ``none`` on several processes, which would train several models in silence.
    """
    if strategy not in ("auto", "none", "ddp", "fsdp2"):
        raise ValueError(f"unknown strategy {strategy!r}; one of: auto, none, ddp, fsdp2")
    if world.size == 1:
        return module
    if strategy == "none":
        raise ValueError(
            f"strategy='none' on {world.size} processes trains {world.size} unrelated models; use ddp or fsdp2"
        )
    if strategy in ("auto", "ddp"):
        device_ids = [world.device] if world.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=device_ids, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for tensor in (*module.parameters(), *module.buffers()):  # all begin as the first does; ddp sees to that itself
        dist.broadcast(tensor.detach(), 0)
    mesh = init_device_mesh(world.device.type, (world.size,))
    blocks = [block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part]
    for block in reversed(blocks):  # the innermost first
        if not isinstance(block, nn.ModuleList | nn.ModuleDict) and any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, sharing its memory; a plain tensor is its own part."""
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.to_local()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over the processes; all of them must call it."""
    sharded = _sharded(tensor)
    return tensor if sharded is None else sharded.full_tensor()


def gather(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors on the CPU from parts spread over the processes. Every process must call it with the same names.

    Plain tensors are copied to the CPU as they are; so what is saved does not depend on how the run was shared.
    """
    return {name: whole(t).detach().to("cpu", copy=True).contiguous() for name, t in tensors}


def scatter(source: Tensor, target: Tensor) -> None:
    """Copy a whole tensor, present on every process, into one that may be sharded over any number of them."""
    sharded = _sharded(target)
    with torch.no_grad():
        if sharded is None:
            target.copy_(source)
        else:
            from torch.distributed.tensor import distribute_tensor

            parts = distribute_tensor(source.to(target.device), sharded.device_mesh, sharded.placements)
            sharded.to_local().copy_(parts.to_local())


def _sharded(tensor: Tensor) -> "DTensor | None":
    """The tensor if it is a DTensor: known by its method, since importing the class costs as much as importing torch."""
    return tensor if hasattr(tensor, "to_local") else None  # type: ignore[return-value]
