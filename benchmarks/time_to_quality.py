"""Time to quality: seconds of training until the Frechet distance on MNIST reaches twice the floor.

    python benchmarks/time_to_quality.py --mnist ../shared/data/mnist.npz

The distance is between features of a small classifier trained on MNIST's training set, from ``--samples`` samples to the whole
training set; the floor is the same distance for as many held-out real images. Everybody trains on one thread, and the clock is
that thread's processor time, which other work on the machine changes little; it stands while measuring. Ours trains until the
goal or ``--limit`` seconds; the peers, by their own recipes, until the goal or ``--patience`` times our time:

- lucidrains' ``Trainer`` as shipped, on the network of its README less the level that 28 pixels do not allow;
- the unconditional example of Diffusers: its network, batch, optimiser, schedule and average of weights, at 32 pixels and one
  channel (its defaults of 64 pixels and three channels are slower);
- the same recipe on a network as small as ours, which is kinder than its defaults.

The last column says when ours was as good as the peer at its end. Peers are sampled through this library with the same solver
as ours. A peer that is not installed is named as such.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import common  # puts src on the path
from trilemma.data.pixels import save_picture, to_uint8
from trilemma.denoise import Denoiser, Gaussian, Preconditioned
from trilemma.evaluate import Moments, frechet_distance, train_classifier
from trilemma.nets import build
from trilemma.numerics.shapes import pad
from trilemma.process import Flow, FromBetas
from trilemma.process.grid import log_snr_grid, trailing_grid
from trilemma.sampling import dpmpp_2m, sample
from trilemma.train import TrainConfig, Trainer

STEPS = 20  # of the solver


@dataclass
class Run:
    """A training run seen from outside: each item of ``updates`` is one update, ``averaged`` lends the model to sample from."""

    name: str
    about: str
    size: int
    updates: Iterator[object]
    averaged: Callable[[], AbstractContextManager[Denoiser]]


class Foreign(Denoiser):
    """A peer's network, called with the step of its discrete chain, as a denoiser."""

    def __init__(self, net, betas, target):
        super().__init__()
        self.net, self.target, self.process = net, target, FromBetas(tuple(float(b) for b in betas))

    def forward(self, x_t, t):
        k = (t * self.process.steps).round().long().clamp(min=1) - 1
        out = self.net(x_t, k.expand(len(x_t)))
        alpha, sigma = (pad(c(t).to(x_t), x_t) for c in (self.process.alpha, self.process.sigma))
        return Gaussian((x_t - sigma * out) / alpha if self.target == "eps" else alpha * x_t - sigma * out)


def ours(images: Tensor, args) -> Run:
    torch.manual_seed(0)
    net = build("unet", channels=1, widths=args.widths, blocks=1, attention=(2,))
    model = Preconditioned(net, Flow(), "edm", sigma_data=float(images.std()))
    config = TrainConfig(batch=args.batch, lr=args.lr, times=args.times, ema=(args.ema,), steps=10**6)
    trainer = Trainer(model, images, config=config)
    about = (
        f"UNet of widths {args.widths} ({count(model)}), flow, batch {config.batch}, lr {config.lr:g}, {config.times}"
    )
    return Run("trilemma", about, 28, trainer.steps(), trainer.averaged)


def lucidrains(images: Tensor, args) -> Run:
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
    from PIL import Image

    folder = Path(tempfile.mkdtemp())
    for i, image in enumerate(to_uint8(images[: args.files])):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:05d}.png")
    torch.manual_seed(0)
    diffusion = GaussianDiffusion(Unet(64, channels=1, dim_mults=(1, 2, 4)), image_size=28)
    trainer = Trainer(
        diffusion, folder, calculate_fid=False, results_folder=tempfile.mkdtemp(), save_and_sample_every=10**9
    )

    def updates():  # the body of Trainer.train
        while True:
            trainer.model.train()
            loss = trainer.model(next(trainer.dl).to(trainer.device))
            trainer.accelerator.backward(loss)
            trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.max_grad_norm)
            trainer.opt.step()
            trainer.opt.zero_grad()
            trainer.ema.update()
            yield loss

    average = trainer.ema.ema_model
    about = f"Trainer, Unet(64, dim_mults=(1, 2, 4)) ({count(diffusion)}), {diffusion.objective}, batch 16, fp32"
    denoiser = Foreign(
        average.model, average.betas.double().tolist(), {"pred_noise": "eps", "pred_v": "v"}[diffusion.objective]
    )
    return Run("lucidrains", about, 28, updates(), lambda: nullcontext(denoiser.eval()))


def diffusers(images: Tensor, args, *, small: bool) -> Run:
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    size = 28 if small else 32
    images = images if small else F.pad(images, (2, 2, 2, 2), value=-1.0)
    if small:
        net = UNet2DModel(sample_size=28, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8,
                          block_out_channels=(32, 64, 128), down_block_types=("DownBlock2D",) * 2 + ("AttnDownBlock2D",),
                          up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * 2)  # fmt: skip
    else:
        net = UNet2DModel(sample_size=32, in_channels=1, out_channels=1, layers_per_block=2,
                          block_out_channels=(128, 128, 256, 256, 512, 512),
                          down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
                          up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4)  # fmt: skip
    scheduler = DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    total = 100 * (len(images) // 16)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=total)
    ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)

    def updates():
        net.train()
        while True:
            for index in torch.randperm(len(images)).split(16):
                x = images[index]
                noise, k = torch.randn_like(x), torch.randint(0, 1000, (len(x),))
                loss = F.mse_loss(net(scheduler.add_noise(x, noise, k), k).sample, noise)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
                ema.step(net.parameters())
                yield loss

    @contextmanager
    def averaged():
        ema.store(net.parameters())
        ema.copy_to(net.parameters())
        yield Foreign(lambda x, k: net(x, k).sample, scheduler.betas.double().tolist(), "eps").eval()
        ema.restore(net.parameters())

    shape = "a network as small as ours" if small else "its default network"
    about = f"unconditional example, {shape} ({count(net)}), eps, batch 16, fp32"
    return Run("Diffusers, small" if small else "Diffusers", about, size, updates(), averaged)


def count(module: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f} M parameters"


@torch.no_grad()
def draw(denoiser: Denoiser, n: int, size: int) -> Tensor:
    process = denoiser.process
    grid = trailing_grid(process, STEPS) if isinstance(process, FromBetas) else log_snr_grid(process, STEPS)
    parts = [range(i, min(i + 250, n)) for i in range(0, n, 250)]
    x = torch.cat([sample(denoiser, (len(seeds), 1, size, size), grid, dpmpp_2m, seeds=seeds) for seeds in parts])
    edge = (size - 28) // 2
    return x[..., edge : size - edge, edge : size - edge].clamp(-1, 1)


def chase(run: Run, distance: Callable[[Tensor], float], goal: float, limit: float, checks: list[float], args):
    """Train until the distance is at most ``goal`` or ``limit`` seconds are over: rows of (seconds, updates, distance)."""
    seconds, rows, due = 0.0, [], [c for c in checks if c < limit] + [limit]
    print(f"{run.name}: {run.about}", flush=True)
    since = time.process_time()
    for steps, _ in enumerate(run.updates, 1):
        if seconds + time.process_time() - since < due[0]:
            continue
        seconds += time.process_time() - since
        with run.averaged() as denoiser:
            x = draw(denoiser, args.samples, run.size)
        rows.append((seconds, steps, distance(x)))
        print(f"  {seconds:6.0f} s {steps:7d} updates  distance {rows[-1][2]:8.3f}  goal {goal:.3f}", flush=True)
        if rows[-1][2] <= goal or seconds >= limit:
            save_picture(args.pictures / f"time_to_quality_{run.name.replace(', ', '_').lower()}.png", x[:64], scale=2)
            return rows
        due = [c for c in due if c > seconds] or [limit]
        since = time.process_time()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mnist", type=Path, required=True, help="npz with train_images, train_labels, test_images, test_labels"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "time_to_quality.md")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument(
        "--files", type=int, default=60_000, help="images written to disk for the peer that reads a folder"
    )
    parser.add_argument("--limit", type=float, default=1200, help="seconds for ours")
    parser.add_argument("--every", type=float, default=30, help="seconds of training between measurements of ours")
    parser.add_argument("--first", type=float, default=60, help="seconds of training before the first measurement")
    parser.add_argument("--patience", type=float, default=3.0, help="peers stop after this many times our time")
    parser.add_argument("--only", nargs="*", default=["lucidrains", "diffusers", "diffusers_small"])
    parser.add_argument("--widths", type=int, nargs="*", default=[16, 64, 128])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--times", default="log_normal_sigma")
    parser.add_argument("--ema", default=TrainConfig.ema[0])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.pictures = args.out.parent

    with np.load(args.mnist) as file:
        train, test = (
            torch.from_numpy(file[f"{part}_images"])[:, None].float() / 127.5 - 1 for part in ("train", "test")
        )
        labels = torch.from_numpy(file["train_labels"]).long()
    classifier = train_classifier(train, labels, classes=10, steps=400, width=16)
    reference = Moments.of(classifier.read(train).features)

    def distance(x: Tensor) -> float:
        return frechet_distance(Moments.of(classifier.read(x).features), reference)

    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: args.samples]
    floor = distance(test[chosen])
    goal = 2 * floor
    print(f"floor {floor:.4f} ({args.samples} held-out images), goal {goal:.4f}", flush=True)

    checks = [args.first + i * args.every for i in range(1000)]
    results = [(run := ours(train, args), chase(run, distance, goal, args.limit, checks, args))]
    mine = results[0][1][-1][0]
    makers = {
        "lucidrains": lambda: lucidrains(train, args),
        "diffusers": lambda: diffusers(train, args, small=False),
        "diffusers_small": lambda: diffusers(train, args, small=True),
    }
    keep = common.repair_torchvision()  # noqa: F841
    missing = []
    for name in args.only:
        try:
            run = makers[name]()
        except ImportError as error:
            missing.append(f"{name}: not installed ({error})")
            continue
        limit = args.patience * mine
        results.append((run, chase(run, distance, goal, limit, [], args)))

    rows = []
    for run, states in results:
        seconds, steps, last = states[-1]
        there = "yes" if last <= goal else "no"
        as_good = next((s for s, _, d in results[0][1] if d <= last), None)
        share = "-" if run is results[0][0] else f"{as_good:.0f} s, {as_good / seconds:.2f}x" if as_good else "never"
        rows.append((run.name, run.about, f"{seconds:.0f}", steps, f"{last:.3f}", there, share))
    lines = [
        f"Floor: {floor:.4f} ({args.samples} held-out images against the training set); goal {goal:.4f}. Samples by "
        f"DPM-Solver++(2M) with {STEPS} steps.",
        "",
        *common.table(
            ("run", "what", "seconds of training", "updates", "distance", "at the goal", "ours as good after"), rows
        ),
        *missing,
        "",
        "Every measurement, seconds and distance:",
        "",
        *(f"- {run.name}: " + ", ".join(f"{s:.0f} s {d:.2f}" for s, _, d in states) for run, states in results),
    ]
    packages = ("denoising-diffusion-pytorch", "diffusers")
    common.document("Time to quality", "benchmarks/time_to_quality.py", packages, lines, args.out)


if __name__ == "__main__":
    main()
