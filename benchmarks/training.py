"""Training images a second: this library's UNet against the UNets of four peers, in one run, at equal cost an image.

Cost is the floating-point operations of forward and backward (`torch.utils.flop_counter`); the widths below bring every
network within 3 % of the same figure, and the run stops if one is outside. A step is zero_grad, forward, loss, backward,
AdamW. The candidates take turns, and each figure is a median. "default" is what a user gets who sets nothing: float32
and `AdamW(params)` for the peers, `recommended_precision`, and fused AdamW here. "bf16" is the same under autocast.

    python benchmarks/training.py --edm PATH_TO_A_CHECKOUT_OF_NVLABS_EDM

runs in any environment with torch; peers that are not installed there are reported as such.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import common  # puts src on the path
from trilemma.nets import build, memory_format, recommended_precision

BATCH = 64
SIZE = {3: 32, 1: 28}  # side of an image, by channels
GFLOPS = {3: 3.11, 1: 2.377}  # forward and backward, an image
TOLERANCE = 0.03
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: for a machine that others use too


class Call(nn.Module):
    """A network behind the call net(x, t)."""

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.call(self.net, x, t)


def diffusers(channels: int, edm: str | None) -> nn.Module:
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=SIZE[channels],
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    return Call(net, lambda n, x, t: n(x, t).sample)


def lucidrains(channels: int, edm: str | None) -> nn.Module:
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=36, dim_mults=(1, 2, 4), channels=channels)


def azula(channels: int, edm: str | None) -> nn.Module:
    from azula.nn.layers import SineEncoding
    from azula.nn.unet import UNet

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(SineEncoding(64), nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256))
            self.net = UNet(channels, channels, mod_features=256, hid_channels=(42, 85, 170), hid_blocks=(2, 2, 2))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, self.time(t))

    return Timed()


def songunet(channels: int, edm: str | None) -> nn.Module:
    if edm is None:
        raise ModuleNotFoundError("no --edm")
    sys.path.insert(0, edm)
    from training.networks import SongUNet

    net = SongUNet(
        SIZE[channels],
        channels,
        channels,
        model_channels=32,
        channel_mult=[1, 2, 3],
        num_blocks=2,
        attn_resolutions=[SIZE[channels] // 4],
    )
    return Call(net, lambda n, x, t: n(x, t, None))


PEERS: dict[str, Callable[[int, str | None], nn.Module]] = {
    "diffusers UNet2DModel": diffusers,
    "lucidrains Unet": lucidrains,
    "azula UNet": azula,
    "NVlabs SongUNet": songunet,
}


def gflops(net: nn.Module, channels: int) -> float:
    """Billions of operations of a forward and backward pass, an image."""
    size = SIZE[channels]
    with FlopCounterMode(display=False) as counter:
        net(torch.randn(2, channels, size, size), torch.rand(2)).square().mean().backward()
    net.zero_grad()
    return counter.get_total_flops() / 2e9


class Run:
    """One network in one setting, and the seconds of its steps."""

    def __init__(self, name: str, net: nn.Module, channels: int, *, bf16: bool, fused: bool, clock: str) -> None:
        self.name, self.net, self.bf16, self.clock = name, net, bf16, CLOCKS[clock]
        self.setting = f"{'bf16' if bf16 else 'fp32'}, AdamW{' fused' if fused else ''}"
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=fused)
        size = SIZE[channels]
        self.x, self.y = torch.randn(2, BATCH, channels, size, size).unbind()
        self.t = torch.rand(BATCH)
        self.seconds: list[float] = []

    def step(self) -> None:
        start = self.clock()
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out = self.net(self.x, self.t)
        (out.float() - self.y).square().mean().backward()
        self.optimiser.step()
        self.seconds.append(self.clock() - start)

    @property
    def images_a_second(self) -> float:
        return BATCH / statistics.median(self.seconds[1:])


def measure(channels: int, rounds: int, edm: str | None, names: list[str], clock: str) -> list[str]:
    """Run every candidate in turn and give the lines of a markdown section."""
    lines, runs, cost = [], [], {}

    def add(name: str, net: nn.Module, settings: list[tuple[bool, bool]]) -> None:
        cost[name] = gflops(net, channels)
        if abs(cost[name] / GFLOPS[channels] - 1) > TOLERANCE:
            raise SystemExit(f"{name} costs {cost[name]:.3f} GFLOP an image, not {GFLOPS[channels]} within 3 %")
        runs.extend(Run(name, net.train(), channels, bf16=bf16, fused=fused, clock=clock) for bf16, fused in settings)

    torch.manual_seed(0)
    default = (recommended_precision("cpu") == "bf16", True)
    add("trilemma UNet", build("unet-small", channels=channels), [default])
    for name, make in PEERS.items():
        if names and not any(n in name for n in names):
            continue
        try:
            net = make(channels, edm)
        except ImportError as missing:
            lines.append(f"{name}: not installed here ({missing}).")
            continue
        add(name, net, [(False, False), (True, False)])
    for _ in range(rounds + 1):
        for run in runs:
            run.step()
    own = runs[0]
    table = [
        f"### {channels}x{SIZE[channels]}x{SIZE[channels]}, batch {BATCH}, {GFLOPS[channels]} GFLOP an image",
        "",
        f"| network | parameters | GFLOP an image | setting | images a {clock} second | trilemma is faster by |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        count = sum(p.numel() for p in run.net.parameters()) / 1e6
        table.append(
            f"| {run.name} | {count:.2f} M | {cost[run.name]:.2f} | {run.setting} | {run.images_a_second:.1f} "
            f"| {own.images_a_second / run.images_a_second:.2f}x |"
        )
    for bf16, label in ((False, "the best peer's default"), (True, "the best peer under bf16")):
        best = max((run for run in runs[1:] if run.bf16 == bf16), key=lambda run: run.images_a_second, default=None)
        if best is not None:
            ratio = own.images_a_second / best.images_a_second
            lines.append(f"Against {label} ({best.name}): {ratio:.2f}x.")
    return [*table, "", *lines, ""]


def machine() -> str:
    """The processor, threads and versions in a line."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    amx = "channels_last" if memory_format("cpu") == torch.channels_last else "contiguous"
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, layout {amx}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edm", help="a checkout of github.com/NVlabs/edm")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of every candidate")
    parser.add_argument("--channels", type=int, nargs="*", default=[3, 1], choices=[3, 1])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu time counts every thread")
    parser.add_argument("--only", nargs="*", default=[], help="peers whose name contains one of these")
    parser.add_argument("--out", type=Path, help="write the markdown here")
    args = parser.parse_args()
    keep = common.repair_torchvision()  # noqa: F841
    text = [
        "# Training speed",
        "",
        f"{date.today()}. {machine()}.",
        "Command: `python "
        + " ".join(["benchmarks/training.py", *("EDM" if a == args.edm else a for a in sys.argv[1:])])
        + "`.",
        "",
    ]
    text += [
        "Every candidate takes its turn in each round. azula's UNet is built as its defaults are, without attention; the",
        "others have it at least at the lowest resolution, trilemma in every block there.",
        "",
    ]
    for channels in args.channels:
        text += measure(channels, args.rounds, args.edm, args.only, args.clock)
    print("\n".join(text))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(text))


if __name__ == "__main__":
    main()
