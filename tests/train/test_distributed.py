"""Two processes on this machine, forked, with gloo: the same losses, weights and checkpoints as one."""

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trilemma.denoise import Preconditioned
from trilemma.nets import MLP, build
from trilemma.process import Flow
from trilemma.train import TrainConfig, Trainer, World, load_model, setup
from trilemma.train.distributed import LAUNCHERS, PROMISES, gather, scatter, whole, wrap

pytestmark = pytest.mark.timeout(120)

POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 4
SETTINGS = {"steps": 6, "batch": 16, "lr": 1e-3, "warmup": 2, "times": "low_discrepancy", "precision": "fp32"}


def trainer_of(world, **changes):
    torch.manual_seed(world.rank)  # the processes begin with other weights; the first one's count
    model = Preconditioned(MLP(2, classes=4, width=15, depth=2), Flow(), "velocity")
    config = TrainConfig(**{**SETTINGS, "ema": ("power:0.1", "exponential:0.9"), **changes})
    return Trainer(model, (POINTS, LABELS), config=config, world=world)


def losses(trainer, steps=None):
    out = []
    for record in trainer.steps():
        out.append([record.loss, record.grad_norm])
        if record.step == steps:
            break
    return out


def _rank(rank, size, folder, job, arguments):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        with setup("cpu") as world:
            result = job(world, folder, *arguments)
        if world.main:
            (folder / "result.json").write_text(json.dumps(result))
    finally:
        dist.destroy_process_group()


def on_ranks(size, folder, job, *arguments):
    """What ``job(world, folder, ...)`` gives on the first of ``size`` processes."""
    (folder / "rendezvous").unlink(missing_ok=True)
    mp.start_processes(_rank, (size, folder, job, arguments), nprocs=size, start_method="fork")
    return json.loads((folder / "result.json").read_text())


def train(world, folder, changes):
    trainer = trainer_of(world, **changes)
    got = losses(trainer)
    trainer.save(folder)
    return got


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "ddp"},
        {"strategy": "ddp", "accumulate": 2},
        {"strategy": "fsdp2"},
        {"strategy": "fsdp2", "accumulate": 2},
    ],
    ids=str,
)
def test_two_processes_train_as_one(tmp_path, changes):
    one = trainer_of(World())
    expected = losses(one)
    got = on_ranks(2, tmp_path, train, changes)
    for a, b in zip(got, expected, strict=True):
        assert a == pytest.approx(b, rel=2e-5)
    for ema in (False, 0, 1):
        model, _ = load_model(tmp_path, ema=ema)
        if ema is not False:
            one.ema.swap(dict(one.model.named_parameters()), ema)
        for a, b in zip(model.parameters(), one.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        if ema is not False:
            one.ema.swap(dict(one.model.named_parameters()), ema)


def go_on(world, folder, strategy):
    trainer = trainer_of(world, strategy=strategy)
    assert trainer.resume(folder).name == "step_00000003"
    return losses(trainer)


def begin(world, folder, strategy):
    trainer = trainer_of(world, strategy=strategy)
    got = losses(trainer, 3)
    trainer.save(folder)
    return got


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_checkpoint_of_two_processes_is_resumed_by_one_and_two(tmp_path, strategy):
    expected = losses(trainer_of(World()))
    start = on_ranks(2, tmp_path, begin, strategy)
    alone = go_on(World(), tmp_path, "auto")
    two = on_ranks(2, tmp_path, go_on, "fsdp2")
    same = on_ranks(2, tmp_path, go_on, strategy)
    assert start + same == on_ranks(2, tmp_path, train, {"strategy": strategy})  # bit for bit
    for rest in (alone, two):
        for a, b in zip(start + rest, expected, strict=True):
            assert a == pytest.approx(b, rel=2e-5)


IMAGES = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def backbone(world, folder, name, strategy):
    sizes = {
        "unet-tiny": {"widths": [8, 16], "head_width": 8, "dropout": 0.0},
        "dit-tiny": {"width": 16, "depth": 2, "heads": 2},
    }
    torch.manual_seed(world.rank)
    model = Preconditioned(build(name, **sizes[name]), Flow(), "velocity")
    config = TrainConfig(steps=3, batch=4, warmup=0, flip=0.5, precision="fp32", strategy=strategy)
    return losses(Trainer(model, IMAGES, config=config, world=world))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["unet-tiny", "dit-tiny"])
def test_the_image_networks_can_be_shared(tmp_path, name, strategy):
    expected = backbone(World(), tmp_path, name, "none")
    for a, b in zip(on_ranks(2, tmp_path, backbone, name, strategy), expected, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def reshard(world, folder):
    """Tensors of awkward sizes, spread, put together and spread again."""
    torch.manual_seed(3)
    net = wrap(MLP(2, width=7, depth=1), "fsdp2", world)
    parameters = dict(net.named_parameters())
    full = gather(parameters.items())
    for name, value in full.items():
        scatter(value + 1, parameters[name])
    return all(torch.equal(whole(p), full[name] + 1) for name, p in parameters.items())


@pytest.mark.parametrize("size", [2, 3])
def test_spread_tensors_come_together_as_they_were(tmp_path, size):
    assert on_ranks(size, tmp_path, reshard)


def without_labels(world, folder):
    model = Preconditioned(MLP(2, classes=4, width=8, depth=1), Flow(), "velocity")
    return losses(Trainer(model, POINTS, config=TrainConfig(steps=3, batch=4, precision="fp32"), world=world))


def test_a_network_with_classes_may_be_trained_without_labels(tmp_path):
    assert len(on_ranks(2, tmp_path, without_labels)) == 3


def refuse(world, folder):
    messages = []
    for changes in ({"strategy": "none"}, {"batch": 15}):
        try:
            trainer_of(world, **changes)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_what_two_processes_cannot_do_is_refused(tmp_path):
    alone, uneven = on_ranks(2, tmp_path, refuse)
    assert "2 unrelated models" in alone
    assert "batch=15" in uneven


@pytest.fixture
def environment(monkeypatch):
    for name in list(os.environ):
        if name in PROMISES or name.startswith("ACCELERATE_") or any(name in names for names in LAUNCHERS.values()):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("name", PROMISES)
def test_a_launcher_that_started_one_process_of_two_is_refused(environment, name):
    environment.setenv(name, "2")
    with pytest.raises(RuntimeError, match=rf"{name} promises 2 processes.*torchrun --nproc-per-node 2"), setup("cpu"):
        pass


def test_one_process_is_what_one_process_was_promised(environment):
    for name in PROMISES:
        environment.setenv(name, "1")
    with setup("cpu") as world:
        assert (world.rank, world.size, world.main) == (0, 1, True)
    assert not dist.is_initialized()


@pytest.mark.slow
def test_accelerate_launch_on_cpu_is_found_out(environment, tmp_path):
    """It starts one process whatever was asked for, and only its own command line tells."""
    script = tmp_path / "accelerate"
    child = "from trilemma.train.distributed import setup\nwith setup('cpu') as world: print(world.size)"
    script.write_text(f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)")
    environment.setenv("ACCELERATE_USE_CPU", "true")
    words = [sys.executable, str(script), "launch", "--cpu", "--num_processes"]
    two = subprocess.run([*words, "2", "train.py"], capture_output=True, text=True, timeout=100)
    assert two.returncode != 0
    assert "accelerate launch promises 2 processes" in two.stderr
    one = subprocess.run([*words, "1", "train.py"], capture_output=True, text=True, timeout=100)
    assert one.stdout.strip() == "1"


def test_processes_that_never_come_are_reported(environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # a job of four tasks in which torchrun starts two is no broken promise
    values = {
        "RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": 0,
        "SLURM_NTASKS": 4,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    for name, value in values.items():
        environment.setenv(name, str(value))
    with pytest.raises(RuntimeError, match="not all of them came"), setup("cpu", timeout=1.0):
        pass


def test_a_missing_device_is_named(environment):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RuntimeError, match="'cuda'"), setup("cuda"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_torchrun(environment, tmp_path, strategy):
    script = tmp_path / "program.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import json, pathlib, test_distributed as here\n"
        "from trilemma.train import setup\n"
        "with setup('cpu') as world:\n"
        f"    got = here.losses(here.trainer_of(world, strategy={strategy!r}))\n"
        "    if world.main: print(json.dumps(got))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    got = json.loads(run.stdout)
    for a, b in zip(got, losses(trainer_of(World())), strict=True):
        assert a == pytest.approx(b, rel=2e-5)
