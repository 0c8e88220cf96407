"""What becomes of requests while workers, decoders, models and gateways die: a table of faults, and figures.

Every request of every trial is in a ledger: its id, a digest of its input, its deadline, and what came of it. The
model answers with a digest of its input, so a swapped answer shows. Columns: *ok*, right and in time; *refused*, an
error with a code; *excused*, the client left or its gateway was killed; *lost*, no answer (reset, refused connection,
nothing); *twice*; *wrong*, another image's answer; *late*, a result over 100 ms after its deadline. *recovery* is the
longest time from a fault to a right answer to a request that was sent after it. *problems* are what the checker says
at the end of a trial (bench/faults_lab/checker.py has the list, with tolerances); they are printed below.

    python bench/faults.py --quick                 # two minutes
    python bench/faults.py --only idle midbatch    # some of it, by name
    python bench/faults.py --ledger faults.jsonl   # keep every request

Figures depend on the machine: a gateway, its workers and this generator share its cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop
from rich.console import Console

from bench import rig
from bench.faults_lab import changes, ends, figures, kills, places, strains, suspects
from bench.faults_lab.trial import Lab

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


OUT = rig.ROOT / "bench" / "out"


class Fault(NamedTuple):
    """A kind of fault: how it is tried, and how often: quick, by default, long. 0: not at all."""

    run: Callable[[Lab, Any], Awaitable[None]]
    quick: int
    default: int
    long: int


FAULTS = {
    "idle": Fault(kills.idle, 20, 1000, 1000),
    "midbatch": Fault(kills.midbatch, 30, 2000, 10_000),
    "circuit": Fault(kills.circuit, 1, 3, 3),
    "real": Fault(kills.real, 2, 20, 20),
    "decoders": Fault(kills.decoders, 10, 200, 200),
    "hangs": Fault(suspects.hangs, 2, 20, 20),
    "decoder_hangs": Fault(suspects.decoder_hangs, 1, 5, 5),
    "poison": Fault(suspects.poison, 1, 10, 10),
    "killers": Fault(suspects.killers, 1, 10, 10),
    "spinners": Fault(suspects.spinners, 1, 10, 10),
    "lost_devices": Fault(suspects.lost_devices, 1, 5, 5),
    "tight": Fault(suspects.tight, 2, 20, 20),
    "flood": Fault(suspects.flood, 5, 50, 50),
    "exhausted": Fault(strains.exhausted, 1, 10, 10),
    "paused": Fault(strains.paused, 1, 10, 10),
    "frozen": Fault(strains.frozen, 2, 20, 20),
    "leaving": Fault(strains.leaving, 5, 100, 100),
    "steps": Fault(places.steps, 3, 20, 60),
    "storm": Fault(strains.storm, 10, 120, 600),
    "killed": Fault(ends.killed, 1, 10, 10),
    "replaced": Fault(ends.replaced, 3, 100, 100),
    "reloads": Fault(changes.reloads, 14, 100, 100),
    "versions": Fault(changes.versions, 6, 60, 60),
    "cycles": Fault(changes.cycles, 6, 100, 100),
    "neighbours": Fault(changes.neighbours, 1, 5, 5),
    "killed_in_change": Fault(ends.killed_in_change, 4, 20, 20),
    "killed_in_succession": Fault(ends.killed_in_succession, 3, 30, 30),
    "stopped": Fault(ends.stopped, 1, 20, 20),
}


async def run(lab: Lab, chosen: dict[str, int]) -> None:
    """Try each of these faults so often; one that cannot be tried to its end is a problem, and the next one follows."""
    for name, count in chosen.items():
        begun = time.monotonic()
        try:
            await FAULTS[name].run(lab, count)
        except (TimeoutError, OSError) as error:
            lab.row(f"{name}: not tried to its end").problems.append(f"{type(error).__name__}: {error}")
        lab.figures[f"seconds_{name}"].append(time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few of each, two minutes")
    size.add_argument("--long", action="store_true", help="10,000 kills in the middle of a batch")
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME", help=f"some of: {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ledger", type=Path, help="append every request to this file, as JSON lines")
    arguments = parser.parse_args()
    which = "quick" if arguments.quick else "long" if arguments.long else "default"
    chosen = {name: getattr(FAULTS[name], which) for name in arguments.only or FAULTS}
    chosen = {name: count for name, count in chosen.items() if count}
    console = Console(width=None if sys.stdout.isatty() else 170)
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    console.print(f"seed {arguments.seed}, {which}; load average before {load}")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    # A line that goes on being rewritten is for people; a file gets none.
    status: Any = console.status("starting") if console.is_terminal else contextlib.nullcontext()
    with status as shown:
        lab = Lab(
            seed=arguments.seed, ledger=arguments.ledger, logs=OUT, told=shown.update if shown else lambda _: None
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(run(lab, chosen))
    found = figures.folded(lab.figures)
    console.print(figures.faults_table(lab.rows), figures.figures_table(found))
    problems = {row.name: row.problems for row in lab.rows.values() if row.problems}
    for name, lines in problems.items():
        console.print(f"{name}:", *lines[:20], sep="\n  ", markup=False)
        if len(lines) > 20:
            console.print(f"  and {len(lines) - 20} more")
    raw = {
        "seed": arguments.seed,
        "load_average": load,
        "figures": found,
        "measured": lab.figures,
        "problems": problems,
    }
    print("raw results:", rig.save("faults", raw))
    for name, value in found.items():
        rig.figure(name, value, figures.FIGURES[name].unit)


if __name__ == "__main__":
    main()
