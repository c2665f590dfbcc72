"""The import graph keeps the floors of DESIGN section 3; the package is light to import; its public names exist."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import trilemma
from trilemma._optional import require

ROOT = Path(trilemma.__file__).parent
BASE = {"_names", "_optional", "_version"}  # a few lines each, for everybody

# who may know whom, besides itself and BASE; a package that is missing here fails the test: its place is to be decided
BELOW = {"numerics": set()}
BELOW["process"] = {"numerics"}
BELOW["nets"] = {"numerics", "process"}
BELOW["denoise"] = BELOW["nets"]  # floor 1 sees processes; a network comes to it as an argument
BELOW["sampling"] = {"numerics", "process", "denoise"}
_LIBRARY = {"numerics", "process", "nets", "denoise", "sampling"}
for _name in ("likelihood", "distil", "inverse"):
    BELOW[_name] = _LIBRARY
BELOW["train"] = _LIBRARY | {"likelihood", "distil", "inverse"}
BELOW["health"] = _LIBRARY | {"likelihood", "train"}
BELOW["baselines"] = BELOW["train"] | {"train"}
BELOW["data"] = {"numerics"}  # tensors in model units; no model in sight
BELOW["evaluate"] = {"numerics"}  # sees tensors only
BELOW["hub"] = _LIBRARY | {"train"}
BELOW["cli"] = set(BELOW)
BELOW["app"] = set(BELOW)

# inside a package of floors 0 to 2, a module knows only modules to its left
ORDER = {
    "numerics": "shapes noise brownian tableau ode trace linear student",
    "process": "gaussian named betas learned tokens grid registry times",
    "denoise": "posterior targets denoiser variance exact guidance",
    "likelihood": (
        "probes field later prior solve flow posterior dequantise bits variational terms control bound steps "
        "schedule levels reversible encode interpolate anomaly"
    ),
    "health": "probe identity samples compare rules check course",
    "sampling": (
        "loop plan start angle draw grids stages linear multistep unipc pndm flow invert v3 singlestep adaptive embedded "
        "parallel sa stochastic langevin wrap hooks tokens registry pilots refine tune tune_sde"
    ),
}

NEVER = set(
    ["torchvision", "torchaudio", "torchmetrics", "torch_fidelity", "lpips", "deepinv", "diffusers", "cleanfid"]
)
OPTIONAL = set(
    [
        "PIL",
        "sklearn",
        "scipy",
        "matplotlib",
        "datasets",
        "tensorboard",
        "huggingface_hub",
        "gradio",
        "soundfile",
        "zuko",
    ]
) | {"transformers"}

FILES = sorted(ROOT.rglob("*.py"))


def imports(path, top_level_only=False):
    """Modules of trilemma that a file imports, as tuples of parts, and the names of all other top-level packages."""
    inside, outside = set(), set()
    package = (*path.relative_to(ROOT).parent.parts,)
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                (inside.add(parts[1:]) if parts[0] == "trilemma" else outside.add(parts[0]))
        elif isinstance(node, ast.ImportFrom):
            parts = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = package[: len(package) - (node.level - 1)] + parts
            elif parts[0] == "trilemma":
                base = parts[1:]
            else:
                outside.add(parts[0])
                continue
            for alias in node.names:  # "from . import x" names a module, "from .x import y" one inside it
                inside.add(base if base and (ROOT.joinpath(*base).with_suffix(".py")).exists() else (*base, alias.name))
    return inside, outside


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_looks_up(path):
    parts = path.relative_to(ROOT).parts
    if len(parts) == 1:
        return  # the package itself, whose names are lazy, and BASE, below
    here = parts[0]
    assert here in BELOW, f"decide where {here} stands"
    inside, _ = imports(path)
    for target in inside:
        assert target[0] in {here} | BASE | BELOW[here], f"{here} must not know {'.'.join(target)}"
    if here in ORDER and path.stem != "__init__":
        order = ORDER[here].split()
        assert path.stem in order, f"decide where {here}/{path.name} stands"
        for target in inside:
            if target[0] == here and len(target) > 1:
                assert order.index(target[1]) < order.index(path.stem), f"{here}.{path.stem} must not know {target[1]}"


def test_denoisers_and_samplers_know_no_network():
    for package in ("denoise", "sampling", "numerics", "process"):
        for path in (ROOT / package).rglob("*.py"):
            assert not any(target[0] == "nets" for target in imports(path)[0]), path


def test_the_base_knows_nobody():
    for name in BASE:
        inside, outside = imports(ROOT / f"{name}.py")
        assert not inside
        assert outside <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_never_imported_and_what_only_where_it_is_used(path):
    _, outside = imports(path)
    assert not outside & NEVER
    _, first = imports(path, top_level_only=True)
    assert not first & OPTIONAL
    if path.relative_to(ROOT).parts[0] in ("numerics", "process", "denoise"):
        assert outside <= {"torch"} | set(sys.stdlib_module_names)


def test_every_extra_that_is_named_can_be_installed():
    """In calls of ``require`` and in texts: ``pip install "trilemma[data]"``."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    asked, told = set(), set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                asked |= {ast.literal_eval(word.value) for word in node.keywords if word.arg == "extra"}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                told |= set(re.findall(r'pip install "([\w-]+)\[([\w-]+)\]"', node.value))
    assert {"data", "train", "datasets"} <= asked <= set(project["optional-dependencies"])
    assert ("trilemma", "datasets") in told
    assert told <= {(project["name"], extra) for extra in project["optional-dependencies"]}
    with pytest.raises(ImportError, match=re.escape(f'pip install "{project["name"]}[data]"')):
        require("no_such_module", extra="data")


def fresh(code):
    """Run in a new interpreter, and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_loads_nothing_heavy():
    loaded = fresh("import sys, trilemma; print(trilemma.__version__); print(*sys.modules)")
    assert loaded[0] == trilemma.__version__
    heavy = {"torch", "numpy", "scipy", "PIL", "yaml", "tyro", "tqdm", "matplotlib", "safetensors"}
    assert not heavy & {name.split(".")[0] for name in loaded}


def test_importing_the_library_loads_no_optional_dependency():
    loaded = fresh(
        "import sys, trilemma.sampling, trilemma.denoise, trilemma.process, trilemma.nets, trilemma.train, trilemma.data, "
        "trilemma.evaluate; print(*sys.modules)"
    )
    assert not (NEVER | OPTIONAL) & {name.split(".")[0] for name in loaded}


def test_every_public_name_is_there():
    for name in trilemma.__all__:
        assert getattr(trilemma, name) is not None
    assert set(dir(trilemma)) == set(trilemma.__all__)
    assert len(set(trilemma.__all__)) == len(trilemma.__all__)
    with pytest.raises(AttributeError, match="uent"):
        trilemma.uent  # noqa: B018


def test_what_is_written_for_users_is_public():
    """The names of DESIGN section 4's example and of the central table."""
    spoken = "Preconditioned UNet Flow sample log_snr_grid dpmpp_2m CFG ddpm runge_kutta HEUN Gaussian Denoiser Plan"
    assert set(spoken.split()) <= set(trilemma.__all__)
    assert callable(trilemma.sample)  # the function, whatever modules were imported before


def test_the_function_sample_survives_the_import_of_its_module():
    assert fresh("import trilemma as tl, trilemma.sampling.draw; print(callable(tl.sample))") == ["True"]


def test_every_package_says_what_it_exports():
    from importlib import import_module

    for package in ("process", "denoise", "sampling", "nets"):
        try:
            module = import_module(f"trilemma.{package}")
        except ModuleNotFoundError:
            module = import_module("trilemma.sampling")
        for name in module.__all__:
            assert hasattr(module, name), f"{package}.{name}"


def test_files_fit_in_one_reading():
    """About 300 lines is a good size on floors 0 to 2 (DESIGN section 3); a third more is a reason to look again."""
    for package in ("numerics", "process", "denoise", "sampling"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 450, path
