"""Does the scheduler keep its promises? The real core under a virtual clock, beside what others do.

Workers take exactly l(b) (bench/lab/law.py), or that with noise; nothing waits and nothing sleeps. Goodput: answers in
time per second, from the end of the warm-up to the horizon. Capacity: N Bmax / l(Bmax). A request is late when it was
accepted and answered after its deadline, or given up when no worker could have answered it in time any more; dropped
when it was accepted and given up although one could.

    python bench/schedule.py [--quick] [--plots FOLDER] [--only sweep|mixes|noise|step|optimum|eager|promises]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import time

from rich.console import Console

from bench import rig
from bench.lab import decision, plots, report
from bench.lab.promises import PROMISES
from bench.lab.scenarios import Laboratory

QUICK_SCALE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short horizons, and not the largest scenarios")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write PNG files there")
    parser.add_argument("--only", choices=(*report.SECTIONS, "promises"))
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    lab = Laboratory(scale=QUICK_SCALE, huge=False) if arguments.quick else Laboratory()
    begin = time.perf_counter()
    sections = [name for name in report.SECTIONS if arguments.only in (None, name)]
    for name in sections:
        console.rule(name)
        for table in report.SECTIONS[name](lab):
            console.print(table)
    if arguments.plots is not None:
        for path in plots.save(lab, sections, arguments.plots):
            print("plot:", path)
    if arguments.only not in (None, "promises"):
        return
    console.rule("promises")
    console.print(report.decisions(decision.cost()))
    found = {promise.name: promise.measure(lab) for promise in PROMISES}
    console.print(report.kept(found, PROMISES))
    print(f"took {time.perf_counter() - begin:.0f} s")
    print("raw results:", rig.save("schedule", found))
    for promise in PROMISES:
        rig.figure(promise.name, found[promise.name], promise.unit)


if __name__ == "__main__":
    main()
