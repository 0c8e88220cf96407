"""Compare checkouts of this project: CPU per request of the null model, the trees in turn, round by round.

Without arguments this tree is compared with itself, which shows how much of a difference is noise.

    git worktree add /tmp/before HEAD~1
    python bench/compare.py /tmp/before .
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import contextlib
import statistics
from typing import NamedTuple

import uvloop
from rich.console import Console
from rich.table import Table

from bench import load, rig

console = Console()


class Round(NamedTuple):
    """CPU µs per request by role, requests/s, and p50 in ms, of one stretch of load."""

    gateway: float
    decoder: float
    worker: float
    rate: float
    p50_ms: float

    @property
    def total(self) -> float:
        return self.gateway + self.decoder + self.worker


def measure(running: rig.Gateway, body: bytes, connections: int, seconds: float) -> Round:
    before = running.cpu_ns()
    result = uvloop.run(load.closed(f"{running.url}/predictions/null", body, "image/jpeg", connections, 0.0, seconds))
    after = running.cpu_ns()
    count = result.statuses.get(200, 0)
    spent = {role: (after[role] - before[role]) / 1e3 / count for role in after}
    return Round(spent["gateway"], spent["decoder"], spent["worker"], result.rate, result.percentile(50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, help="checkouts, the one to compare with first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--size", default="224x224", help="of the JPEG that is sent, e.g. 1920x1080")
    arguments = parser.parse_args()
    trees = [tree.resolve() for tree in arguments.trees] or [rig.ROOT, rig.ROOT]
    width, height = map(int, arguments.size.split("x"))
    body = rig.jpeg(width, height, 85 if width < 1000 else 90)
    rounds: list[list[Round]] = [[] for _ in trees]
    with contextlib.ExitStack() as stack:
        repository = stack.enter_context(rig.temporary_repository())
        rig.write_null(repository)
        running = [stack.enter_context(rig.gateway(repository, tree=tree)) for tree in trees]
        for number in range(arguments.rounds + 1):
            for tree, gateway in enumerate(running):
                done = measure(gateway, body, arguments.connections, arguments.seconds)
                if number:  # the first round warms up
                    rounds[tree].append(done)
                    console.print(f"  {trees[tree].name}: {done.total:.0f} µs at {done.rate:,.0f}/s", style="dim")
    table = Table("tree", "gateway µs", "decoder µs", "worker µs", "all µs", "requests/s", "p50 ms", "ratio")
    ratios = []
    for tree, found in zip(trees, rounds, strict=True):
        ratios.append(statistics.median(one.total / first.total for one, first in zip(found, rounds[0], strict=True)))
        columns = [statistics.median(column) for column in zip(*found, strict=True)]
        gateway_us, decoder_us, worker_us, rate, p50_ms = columns
        table.add_row(
            str(tree.name),
            *(f"{value:.0f}" for value in (gateway_us, decoder_us, worker_us)),
            f"{statistics.median(one.total for one in found):.0f}",
            f"{rate:,.0f}",
            f"{p50_ms:.2f}",
            f"{ratios[-1]:.3f}",
        )
    console.print(table)
    for number, ratio in enumerate(ratios[1:], 1):
        rig.figure(f"compare_cpu_ratio_{number}", ratio, "ratio")


if __name__ == "__main__":
    main()
