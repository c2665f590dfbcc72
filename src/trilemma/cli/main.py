"""The program ``trilemma``: finds the command, reads its settings, and turns expected failures into one sentence."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from .._names import unknown
from .._version import __version__

__all__ = ["main"]

COMMANDS = (
    "train",
    "sample",
    "tune",
    "evaluate",
    "report",
    "check",
    "likelihood",
    "encode",
    "decode",
    "interpolate",
    "info",
    "demo",
)
HELP = f"""trilemma {__version__}: train one denoiser, get everything from it.

usage: trilemma COMMAND [OPTIONS]        trilemma COMMAND --help lists the options of one

commands:
  demo     learn handwritten digits by diffusion, a VAE and a GAN, and compare them on two pages
  train    train a denoiser on digits, a folder of images, an array or a data set
  sample   draw images from a trained run with any rule, grid and guidance
  tune     find the best way to sample a run in few steps, and keep it beside the run
  evaluate measure a set of images against real ones, every figure with its interval
  report   compare runs and ways to sample them: quality, coverage, speed and energy on one page
  check    what is wrong with a run, by cheap identities on held-out data, and what to do about it
  likelihood bits per dimension of data under a run, with its error and where that comes from
  encode   data to the noise that a run would make them of, if asked bit for bit; decode is the way back
  decode   latents back to data
  interpolate the way between items, or between seeds
  info     describe a run, or list every process, rule, grid and network there is

to begin with:
  trilemma demo                                             a few minutes on two cores
  trilemma train --config digits                            a minute or two; stop it at any time,
  trilemma train --out runs/digits --resume                 and go on from where it was
  trilemma sample runs/digits --n 100 --guidance 2          a picture and an array of samples
  trilemma tune runs/digits --steps 8                       a plan of 8 steps for this very model,
  trilemma sample runs/digits --rule tuned --steps 8        and samples by it
  trilemma train --config images-32 --data photos --resize 32 --channels 3

Settings come from defaults, then --config (a preset or a YAML file), then flags. A run keeps all of them in
config.json. Errors are one sentence and exit status 2; TRILEMMA_TRACEBACK=1 shows where they came from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``trilemma``; those of this process by default.

    Returns:
        The exit status: 0, 2 for an error that is explained, 130 after Ctrl-C.

    >>> main(["--version"])
    trilemma 0.1.0
    0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"trilemma {__version__}")
        return 0
    try:
        if words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        return _run(words[0], words[1:])
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("TRILEMMA_TRACEBACK") or not _expected(error):
            raise
        print(f"trilemma: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(name: str, argv: list[str]) -> int:
    from .config import parse

    command = import_module(f"trilemma.cli.{name}")
    settings = parse(command.COMMAND, argv, prog=f"trilemma {name}")
    status: int = command.run(settings)
    return status


def _expected(error: Exception) -> bool:
    """Whether an error says by itself what the user can do: wrong input, a missing file or package, a run that failed."""
    by_name = {"DivergedError", "CorruptError"}  # from trilemma.train, not imported before it is needed
    return isinstance(error, ValueError | OSError | ImportError) or type(error).__name__ in by_name
