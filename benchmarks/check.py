"""Broken and healthy denoisers under ``trilemma.check``: is the fault named first, is there a false alarm?

    python benchmarks/check.py --cases fresh             # cases that the rules had not seen; ten minutes on one core
    python benchmarks/check.py --cases made              # those on which the rules were made
    python benchmarks/check.py --cases fresh --only time # those whose name begins so, not written

Prints the table and writes it to benchmarks/results/check_CASES.md with --write.
"""

import argparse
import time
from datetime import date
from importlib import import_module
from pathlib import Path

import torch

from check_models import Case
from common import machine
from trilemma.health import Health

RESULTS = Path(__file__).parent / "results"


def verdict(case: Case, health: Health) -> bool:
    """Whether the first fault that is named is the right one, or none is where there is none."""
    found = [f.name for f in health.findings if f.severity == "fault"]
    return found[0] in case.faults if found and case.faults else not found and not case.faults


def main() -> None:
    """Run the cases, print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", default="fresh", choices=("made", "fresh", "third", "fourth"), help="which list")
    options.add_argument("--only", default="", help="beginning of the names of the cases to run")
    options.add_argument("--show", action="store_true", help="print all that was found")
    options.add_argument("--write", action="store_true", help="keep the table in benchmarks/results")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows, named, alarms = [], [0, 0], [0, 0]
    for case in import_module(f"check_{chosen.cases}").cases():
        if not case.name.startswith(chosen.only):
            continue
        start = time.perf_counter()
        health = case.run()
        seconds = time.perf_counter() - start
        right = verdict(case, health)
        tally = named if case.faults else alarms
        tally[0] += right if case.faults else not right
        tally[1] += 1
        what = "; ".join(f"{f.name}: {f.what}" for f in health.findings) or "healthy"
        rows.append(f"| {case.name} | {'yes' if right else '**no**'} | {what} | {seconds:.0f} |")
        print(f"{'ok ' if right else 'MISS'} {case.name}: {what} ({seconds:.0f} s)", flush=True)
        if chosen.show:
            print(health, flush=True)
    count = f"{named[0]} of {named[1]} faults named first, {alarms[0]} false alarms on {alarms[1]} healthy models"
    print(count)
    if chosen.write and not chosen.only:
        lines = [
            f"`python benchmarks/check.py --cases {chosen.cases}`, {date.today()}, {machine()}: **{count}**.",
            "Seconds include training, of shared models once.",
            "",
            "| model | right | findings | s |",
            "| --- | --- | --- | ---: |",
            *rows,
        ]
        (RESULTS / f"check_{chosen.cases}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
