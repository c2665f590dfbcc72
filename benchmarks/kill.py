"""Kill a training run with SIGKILL at random moments, resume it each time, and compare it with a run that was left alone.

    python benchmarks/kill.py --kills 20

While the run is alive and after each kill every visible file is read and checked. At the end weights, averages and optimiser
state must equal those of the uninterrupted run in every byte, and the metrics must hold every step once.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trilemma.denoise import Preconditioned
from trilemma.nets import MLP
from trilemma.process import EDM
from trilemma.train.checkpoint import CorruptError, checkpoints, read_json, verify
from trilemma.train.config import TrainConfig
from trilemma.train.run import RunDir
from trilemma.train.trainer import Trainer


def train(path: Path, steps: int, save_every: int) -> None:
    """A tiny run with everything that has to be restored: dropout, labels, two averages, a changing learning rate."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Preconditioned(MLP(2, classes=3, width=64, depth=2, dropout=0.1), EDM(), sigma_data=1.0)
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % 3
    config = TrainConfig(
        steps=steps, batch=32, warmup=10, decay="cosine", ema=("power:0.1", "exponential:0.99"), precision="fp32"
    )
    run = RunDir(path, config={"train": config.steps}, resume=True, command=["kill"])
    trainer = Trainer(model, (data, labels), config=config)
    run.resume(trainer)
    for record in trainer.steps():
        run.log(record)
        if record.step % save_every == 0 or record.step == steps:
            run.save(trainer, keep=2)


def check_files(path: Path) -> int:
    """Read every visible file of a run; the number of checkpoints that were whole.

    Raises:
        CorruptError: a file that is there is not whole. A checkpoint that was pruned meanwhile is no error.
    """
    whole = 0
    for folder in checkpoints(path / "checkpoints"):
        try:
            verify(folder)
            whole += 1
        except CorruptError:
            if folder.exists():
                raise
    for file in path.glob("*.json"):
        read_json(file)
    if (path / "metrics.jsonl").exists():
        for line in (
            (path / "metrics.jsonl").read_text().split("\n")[:-1]
        ):  # what follows the last newline is being written
            json.loads(line)
    return whole


@dataclass(frozen=True)
class Outcome:
    """What the kills did: how many came, how many while a checkpoint was being written, how often files were checked."""

    kills: int
    while_writing: int
    inspections: int
    seconds: float


def survive(folder: Path, *, kills: int, steps: int, save_every: int, seed: int = 0) -> Outcome:
    """Kill ``kills`` times, let the run finish, and compare.

    Raises:
        AssertionError: the run did not resume, or is not the uninterrupted run.
    """
    began = time.perf_counter()
    context, moments = multiprocessing.get_context("fork"), random.Random(seed)
    calm, hunted = folder / "calm", folder / "hunted"

    def start(path: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=train, args=(path, steps, save_every))
        process.start()
        return process

    train(folder / "warm", 1, 1)  # import here what the processes below then have at once
    whole = start(calm)
    clock = time.perf_counter()
    whole.join()
    assert whole.exitcode == 0, "the uninterrupted run failed"
    # on average the kills reach half of what is left of the run, so that all of them find it running
    length = (time.perf_counter() - clock) / kills

    done = while_writing = inspections = 0
    while done < kills:
        process = start(hunted)
        moment = time.perf_counter() + moments.uniform(0, 2 * length)
        while time.perf_counter() < moment and process.is_alive():
            check_files(hunted)
            inspections += 1
        if not process.is_alive():  # it came to its end before the kill: begin another run to kill
            assert process.exitcode == 0, f"the run did not resume after kill {done}"
            compare(calm, hunted, steps)
            shutil.rmtree(hunted)
            continue
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        done += 1
        while_writing += any((hunted / "checkpoints").glob(".step_*"))
        check_files(hunted)
        inspections += 1
    last = start(hunted)
    last.join()
    assert last.exitcode == 0, "the run did not resume after the last kill"
    compare(calm, hunted, steps)
    return Outcome(done, while_writing, inspections, time.perf_counter() - began)


def compare(calm: Path, hunted: Path, steps: int) -> None:
    """Assert that two finished runs are the same, byte for byte."""
    ends = [checkpoints(path / "checkpoints")[0] for path in (calm, hunted)]
    names = [sorted(file.name for file in end.iterdir()) for end in ends]
    assert names[0] == names[1]
    for name in names[0]:
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), f"{name} differs"
    rows = [[json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (calm, hunted)]
    assert [row["step"] for row in rows[1]] == list(range(1, steps + 1)), "a step is missing or twice in the metrics"
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]], "the losses differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = survive(
            Path(folder),
            kills=arguments.kills,
            steps=arguments.steps,
            save_every=arguments.save_every,
            seed=arguments.seed,
        )
    print(
        f"{outcome.kills} of {outcome.kills} kills survived, {outcome.while_writing} of them while a checkpoint was being "
        f"written; {outcome.inspections} inspections of all files found none damaged; every byte of the final checkpoint "
        f"equals the uninterrupted run's; {outcome.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
