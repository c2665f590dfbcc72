"""The tensors of a run, on their way into a checkpoint and back: weights, their averages, the optimiser's moments.

They are whole in the files, however many processes shared them, so that any number of processes can go on.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint
from .distributed import gather, scatter
from .ema import EMA

__all__ = ["restore", "snapshot"]

_MODEL, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA) -> dict[str, dict[str, Tensor]]:
    """File name -> tensors on the CPU; all processes that share the weights must call it."""
    weights = gather(model.state_dict().items())
    files = {_MODEL: weights, _OPTIMIZER: gather(_moments(model, optimizer))}
    for index, average in enumerate(ema.averages):
        files[checkpoint.average_name(index)] = {**weights, **gather(average.items())}
    return files


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ema: EMA) -> None:
    """Put the tensors of a checkpoint where `snapshot` took them from.

    Args:
        path: the checkpoint.
        model: its weights are overwritten.
        optimizer: its moments are replaced.
        ema: its averages are overwritten.

    Raises:
        ValueError: the weights are those of another network.
        CorruptError: a file cannot be read.
    """
    parameters = dict(model.named_parameters())
    targets = dict(model.state_dict())
    weights = checkpoint.read_tensors(path / _MODEL)
    here, there = ({name: tuple(v.shape) for name, v in side.items()} for side in (targets, weights))
    if differ := sorted(set(here.items()) ^ set(there.items())):
        name = differ[0][0]
        raise ValueError(
            f"{path} holds the weights of another network: {name} is {there.get(name, 'absent')} there and "
            f"{here.get(name, 'absent')} here; resume with the settings of that run or start a new folder"
        )
    for name, value in weights.items():
        scatter(value, targets[name])
    for index, average in enumerate(ema.averages):
        values = checkpoint.read_tensors(path / checkpoint.average_name(index))
        for name, target in average.items():
            scatter(values[name], target)
    optimizer.state.clear()
    for entry, value in checkpoint.read_tensors(path / _OPTIMIZER).items():
        key, name = entry.split("/", 1)
        parameter = parameters[name]
        target = torch.zeros_like(parameter if value.ndim else value, device=parameter.device)
        scatter(value, target)
        optimizer.state[parameter][key] = target


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"{key}/{name}", value
