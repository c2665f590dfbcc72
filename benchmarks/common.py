"""What the sampler benchmarks share: this checkout on the path, peers, the machine in a line, dated markdown.

Every script runs in any environment with torch; the peers may live in another one than the library.
"""

import importlib
import os
import platform
import sys
import types
from collections.abc import Iterable
from datetime import date
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))

__all__ = ["ROOT", "document", "kdiffusion", "machine", "optional", "repair_torchvision", "table", "versions"]


def machine() -> str:
    """Processor, cores, threads of torch, and how busy the machine is."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cpu}, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}{load}"


def versions(*packages: str) -> str:
    """Python, torch and those packages that are there, with their versions."""
    found = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in packages:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def optional(name: str) -> ModuleType | None:
    """A module of a peer, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def repair_torchvision() -> object:
    """Let a torchvision whose compiled part does not fit this torch import; peers need only its Python part."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a) -> Tensor")
        return library  # the definitions live as long as this does
    return None


def kdiffusion() -> ModuleType | None:
    """k-diffusion's samplers without the rest of that package, which wants training and evaluation dependencies.

    Its ``utils`` converts pictures through torchvision, which no sampler uses; an empty module stands in for it.
    """
    spec = find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return None
    bare = types.ModuleType("k_diffusion")
    bare.__path__ = list(spec.submodule_search_locations)
    stand_ins = {"k_diffusion": bare}
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        stand_ins[name] = types.ModuleType(name)
    stand_ins["torchvision.transforms"].functional = stand_ins["torchvision.transforms.functional"]  # type: ignore[attr-defined]
    hidden = {name: sys.modules.pop(name) for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return optional("k_diffusion.sampling")
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(hidden)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Lines of a markdown table."""
    head = list(head)
    body = [[str(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)] + [""]


def document(
    title: str, script: str, packages: Iterable[str], lines: Iterable[str], out: Path | None, *, show: bool = True
) -> None:
    """Print the markdown page of a benchmark and write it: title, date, machine, versions, command, then ``lines``."""
    given = (
        "diff-sampler",
        "unipc",
        "dpm-solver",
        "cache",
        "peers-json",
        "mnist",
        "r3gan",
        "pictures",
        "store",
        "data",
    )
    folders = {f"--{name}": name.upper().replace("-", "_") for name in given}
    paths = folders | {
        "--edm": "PATH_TO_EDM",
        "--out": "PAGE",
        "--python": "PATH_TO_PYTHON",
    }  # none of this machine on the page
    shown = [paths.get(before, word) for before, word in zip(["", *sys.argv[1:]], sys.argv[1:])]
    page = [
        f"# {title}",
        "",
        f"{date.today()}. {machine()}. {versions(*packages)}.",
        "",
        f"    python {' '.join([script, *shown])}",
        "",
        *lines,
    ]
    text = "\n".join(page).rstrip() + "\n"
    if show:
        print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
