"""Our Inception network beside the public ones, on the same random weights: features, logits, the resize, and the time.

With the standard weights nobody could tell whether two programs agree by luck of these weights; random ones, with batch
normalisation that is far from the identity, go through every branch. The peers run in an environment of their own
(benchmarks/README.md); there `pip install --no-deps torch-fidelity torchmetrics pytorch-fid torchvision`.

    python benchmarks/inception.py --out benchmarks/results/inception.md
    python benchmarks/inception.py --weights pt_inception-2015-12-05-6726825d.pth      # the same on the standard weights
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from common import document, optional, repair_torchvision, table
from trilemma.evaluate.inception import LAYERS, Inception, fold, read_weights, resize_tf1

CASES = {
    "32x32 colour": (2, 3, 32, 32),
    "28x28 grey": (2, 1, 28, 28),
    "8x8 grey": (2, 1, 8, 8),
    "299x299 colour": (2, 3, 299, 299),
    "37x91 colour": (2, 3, 37, 91),
    "640x411 colour": (2, 3, 640, 411),
}
WHOLE = [layer for layer in LAYERS if layer != "spatial"]  # what the peers have too


def random_weights() -> dict[str, Tensor]:
    """Under the published names: layers that keep the scale, normalisation that shifts and stretches each map."""
    draw = torch.Generator().manual_seed(0)
    out = {"fc.weight": torch.randn(1008, 2048, generator=draw) / 32, "fc.bias": torch.randn(1008, generator=draw)}
    with torch.device("meta"):
        shapes = Inception().state_dict()
    for name, value in shapes.items():
        if name.endswith(".weight") and name != "fc.weight":
            stem = name.removesuffix(".weight")
            fan_in = math.prod(value.shape[1:])
            out[f"{stem}.conv.weight"] = torch.randn(value.shape, generator=draw) * (2 / fan_in) ** 0.5
            uniform = torch.rand(4, len(value), generator=draw)
            out[f"{stem}.bn.weight"] = 0.5 + uniform[0]
            out[f"{stem}.bn.bias"] = uniform[1] - 0.5
            out[f"{stem}.bn.running_mean"] = 0.5 * uniform[2] - 0.25
            out[f"{stem}.bn.running_var"] = 0.5 + uniform[3]
    return out


def peers(weights: Path) -> Iterator[tuple[str, Callable[[Tensor], dict[str, Tensor]]]]:
    """Name and ``read(uint8 colour images)``, all layers and "logits", of each peer that is installed."""
    if optional("torch_fidelity"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        wanted = [*WHOLE, "logits_unbiased"]
        fidelity = FeatureExtractorInceptionV3("ours", wanted, feature_extractor_weights_path=str(weights))
        yield "torch-fidelity", lambda x: dict(zip([*WHOLE, "logits"], fidelity(x)))
    if optional("pytorch_fid"):
        import pytorch_fid.inception as module

        module.load_state_dict_from_url = lambda *_, **__: torch.load(weights, weights_only=True)
        net = module.InceptionV3([0, 1, 2, 3], resize_input=False, normalize_input=False).eval()

        def pytorch_fid(x: Tensor) -> dict[str, Tensor]:
            """Its own resize is another one (half pixels): it is given what ours makes."""
            maps = net((resize_tf1(x.float(), 299) - 128) / 128)
            return {layer: m.mean((2, 3)) for layer, m in zip(WHOLE, maps)}

        yield "pytorch-fid behind our resize", pytorch_fid


def seconds(call: Callable[[], object]) -> float:
    """The faster of two calls."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weights", type=Path, help="the standard file; random weights without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    alive = repair_torchvision()
    rows, times, worst = [], [], 0.0

    def compare(case: str, layer: str, name: str, mine: Tensor, other: Tensor) -> float:
        gap = float((mine - other).abs().max() / other.abs().max())
        rows.append([case, layer, name, f"{other.abs().max():.3g}", f"{gap:.1e}"])
        return gap

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if options.weights is None:
            file = Path(folder) / "random.pth"
            torch.save(random_weights(), file)
            ours = read_weights(file, sha256=None)
        else:
            file, ours = options.weights, read_weights(options.weights)
        with torch.device("meta"):
            double = Inception()
        double.load_state_dict(fold(torch.load(file, weights_only=True)), assign=True)
        double = double.double().eval()  # tells rounding from a difference
        found = list(peers(file))
        if not found:
            sys.exit(
                "neither torch-fidelity nor pytorch-fid is installed here; benchmarks/README.md says how to get them"
            )
        for case, shape in CASES.items():
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
            images = images.expand(-1, 3, -1, -1).contiguous()
            mine = {layer: ours(images, layer)[0] for layer in WHOLE}
            mine["2048"], mine["logits"] = ours(images)
            for name, read in found:
                for layer, other in read(images).items():
                    worst = max(worst, compare(case, layer, name, mine[layer], other))
            compare(case, "2048", "ours in float64", mine["2048"], double(images)[0])
        for name, read in found:
            times.append([name, f"{500 * seconds(lambda read=read: read(images)):.0f}"])
        times.append(["ours", f"{500 * seconds(lambda: ours(images)):.0f}"])
    which = "the standard weights" if options.weights else "equal random weights"
    lines = [
        f"Ours against each peer on {which}: the largest difference of a number, over the largest number there. The largest of",
        f"all is **{worst:.1e}**. `ours in float64` is how far float32 itself is from exact arithmetic.",
        "",
        *table(["images", "layer", "peer", "largest number", "differ by"], rows),
        "One image, layer 2048 and logits, one thread:",
        "",
        *table(["network", "ms"], times),
        "The published file is not on this machine unless `--weights` is in the command above; with it `read_weights` checks its",
        "sha256 first.",
    ]
    document(
        "Inception of FID",
        "benchmarks/inception.py",
        ["torch-fidelity", "pytorch-fid", "torchvision"],
        lines,
        options.out,
    )
    del alive


if __name__ == "__main__":
    main()
