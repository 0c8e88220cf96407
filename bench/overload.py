"""Whether promises hold under overload: a real gateway, real decoders, a worker that takes l(b) = base + image x b.

Requests come open loop from another process, as Poisson arrivals at a share of the capacity B / l(B), where B is the
largest batch with l(B) within the deadline: first little, one by one, then 2 times, 10 times, and half of it.
Each round has a fresh gateway. Figures are medians of the rounds; late answers are counted over all of them.

* live_goodput_*: answers within the deadline a second, by the client's clock from when they were due, over capacity.
* live_late_share: of the accepted, those not answered with a result within the deadline by the gateway's own account.
* refusal_p99_ms, refusal_cpu_us: of requests refused at 10 times; the gateway's CPU, without what the accepted cost.
* overload_memory_mib: most memory of all processes (PSS) during overload, over what it was before.
* overload_recovery_s: from the end of 10 times until half the load is served as it was before.
* low_load_added_ms: median latency at a twentieth of the capacity, less l(1) and the decoding.

Everything in the model's world scales with --scale: l(b), the deadline, and the inverse of the rates. Ratios do not
change; small machines need it to make and to refuse 10 times the load.

    python bench/overload.py [--quick] [--scale 4] [--rounds 5] [--plots DIR]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import contextlib
import gc
import math
import multiprocessing
import os
import resource
import statistics
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench import overload_plots, rig
from bench.overload_account import GOALS, Account, Phase, Round, Seen, World
from gateway.loadtest import openloop, schedules
from gateway.loadtest.shots import UNSENT

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


console = Console(width=None if sys.stdout.isatty() else 150)

CONNECTIONS_MAX = 1024
MEMORY_PERIOD_S = 0.5
TIMEOUT_S = 5.0

FULL = (
    *(
        Phase("warm-up", 0.5, 1.5),
        Phase("low", 0.05, 6, even=True),
        Phase("half", 0.5, 3),
        Phase("2x", 2, 5),
        Phase("rest", 0, 1),
    ),
    *(Phase("10x", 10, 7), Phase("recovery", 0.5, 3), Phase("end", 0, 0.3)),
)
QUICK = (
    *(
        Phase("warm-up", 0.5, 1),
        Phase("low", 0.05, 4, even=True),
        Phase("half", 0.5, 2),
        Phase("2x", 2, 3),
        Phase("rest", 0, 1),
    ),
    *(Phase("10x", 10, 4), Phase("recovery", 0.5, 2), Phase("end", 0, 0.3)),
)

# -- one round ------------------------------------------------------------------------------------------------------


def _shoot(pipe: Connection, port: int, body: bytes, due: np.ndarray, timeout_s: float) -> None:
    """The generator's process: fire the schedule, say when it begins, send back what came of it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    gc.disable()
    request = openloop.post("127.0.0.1", port, "/predictions/timed", body, "image/jpeg")
    told: list[float] = []

    def progress(_sent: int, _ended: int) -> None:
        if not told:
            told.append(time.monotonic())
            pipe.send(told[0])

    shots = uvloop.run(
        openloop.fire(
            *("127.0.0.1", port, [request], due),
            connections_max=CONNECTIONS_MAX,
            connections_warm=16,
            timeout_s=timeout_s,
            sample_every=1,
            progress=progress,
        )
    )
    pipe.send(shots)


def _memory(running: rig.Gateway) -> int:
    """Bytes of all processes, shared pages counted once."""
    total = 0
    for pids in running.pids().values():
        for pid in pids:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _images(running: rig.Gateway) -> dict[str, float]:
    """Outcomes of accepted images, by code."""
    with urllib.request.urlopen(running.url + "/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    found = [line for line in lines if line.startswith("penstock_images_total{")]
    return {line.partition('code="')[2].partition('"')[0]: float(line.rsplit(" ", 1)[1]) for line in found}


def _due(world: World, phases: tuple[Phase, ...], seed: int) -> np.ndarray:
    """When requests are due, in s."""
    due, begin = [], 0.0
    for number, (_, load, seconds, even) in enumerate(phases):
        rate = load * world.capacity
        part = schedules.constant(rate, seconds) if even else schedules.poisson(rate, seconds, seed + number)
        due.append(begin + part)
        begin += seconds
    return np.concatenate(due)


def one_round(repository: Path, world: World, phases: tuple[Phase, ...], body: bytes, seed: int) -> Round:
    """A fresh gateway through all phases."""
    due = _due(world, phases, seed)
    timeout_s = max(TIMEOUT_S, 3 * world.deadline_ms / 1e3)
    ours, theirs = multiprocessing.Pipe()
    with rig.gateway(repository) as running:
        child = multiprocessing.get_context("spawn").Process(
            target=_shoot, args=(theirs, running.port, body, due, timeout_s), daemon=True
        )
        child.start()
        theirs.close()
        try:
            began_s = ours.recv()
            seen, memory = _watch(running, began_s, phases)
            shots = ours.recv()
        except EOFError:
            raise SystemExit("the load generator died") from None
        finally:
            child.join(timeout_s + 5)
            child.kill()
    return Round(shots, seen, memory)


def _watch(
    running: rig.Gateway, began_s: float, phases: tuple[Phase, ...]
) -> tuple[list[Seen], list[tuple[float, int]]]:
    """Look at the gateway at the begin of each phase and at the end, and at its memory all the time."""
    seen: list[Seen] = []
    memory: list[tuple[float, int]] = []
    at_s = 0.0
    for phase in (*phases, None):
        while (rest_s := began_s + at_s - time.monotonic()) > 0:
            time.sleep(min(rest_s, MEMORY_PERIOD_S))
            if rest_s > MEMORY_PERIOD_S:
                memory.append((time.monotonic() - began_s, _memory(running)))
        now_s, used = time.monotonic() - began_s, running.cpu_ns()
        # The exposition costs the gateway milliseconds: only where nothing is measured that it would disturb.
        quiet = phase is None or phase.name in ("2x", "rest", "end")
        seen.append(Seen(now_s, used, _memory(running), _images(running) if quiet else {}))
        at_s += phase.seconds if phase is not None else 0.0
    return seen, memory


# -- tables ---------------------------------------------------------------------------------------------------------


def phases_table(account: Account) -> Table:
    """One round, phase by phase."""
    columns = ("offered/s", "200 in time", "200 late", "503", "504", "429", "other", "unsent", "p50 ms", "p99 ms")
    shown = Table("phase", *columns, "sent late p99 ms", title="requests by when they were due")
    for name, (begin, end) in account.spans.items():
        part = account.part(name)
        if not len(part):
            continue
        good = int(np.count_nonzero(part.good(account.deadline_s)))
        counts = [good, part.count(200) - good, *(part.count(status) for status in (503, 504, 429))]
        unsent = part.count(UNSENT)
        shown.add_row(
            name,
            f"{len(part) / (end - begin):,.0f}",
            *map(str, [*counts, len(part) - sum(counts) - unsent, unsent]),
            *(f"{part.percentile_ms(share, 200):.2f}" for share in (50, 99)),
            f"{part.lateness_ms(99):.2f}",
        )
    return shown


def cost_table(account: Account) -> Table:
    """Where the CPU of one round went."""
    shown = Table("phase", "gateway cores", "decoders", "worker", "accepted/s", "refused/s", "gateway us a request")
    for name in ("low", "half", "2x", "10x", "recovery"):
        first, last = (account.taken.seen[account.places[name] + step] for step in (0, 1))
        seconds = last.at_s - first.at_s
        used_us, accepted, refused = account.cpu(name)
        cores = [(last.cpu_ns[role] - first.cpu_ns[role]) / 1e9 / seconds for role in ("gateway", "decoder", "worker")]
        each = used_us / max(accepted + refused, 1)
        rates = (f"{count / seconds:,.0f}" for count in (accepted, refused))
        shown.add_row(name, *(f"{core:.2f}" for core in cores), *rates, f"{each:.0f}")
    return shown


def stages_table(account: Account) -> Table:
    """Medians of the gateway's own stages in one round, and what is between it and the client."""
    names = ("read", "decode_queue", "decode", "batch_queue", "infer", "total")
    shown = Table("phase", *(f"{name} ms" for name in names), "outside ms", title="medians of answers with 200")
    for phase in ("low", "half", "2x", "10x"):
        part = account.part(phase)
        samples = [sample for sample in part.samples(200) if "total" in sample.timing_ms]
        if not samples:
            continue
        outside = [
            1e3 * (part.answered[sample.place] - part.sent[sample.place]) - sample.timing_ms["total"]
            for sample in samples
        ]
        stages = (statistics.median(sample.timing_ms[name] for sample in samples) for name in names)
        shown.add_row(phase, *(f"{stage:.2f}" for stage in stages), f"{statistics.median(outside):.2f}")
    return shown


def figures_table(rounds: list[dict[str, float]], found: dict[str, float]) -> Table:
    """Every round, what is reported, and the goal."""
    shown = Table("figure", *(f"round {number + 1}" for number in range(len(rounds))), "reported", "goal", "")
    for name, (unit, sign, goal) in GOALS.items():
        met = found[name] >= goal if sign == ">=" else found[name] <= goal
        row = (f"{figures[name]:.4g}" for figures in rounds)
        verdict = "[green]met" if met else "[red]missed"
        shown.add_row(name, *row, f"[bold]{found[name]:.4g}", f"{sign} {goal:g} {unit}", verdict)
    return shown


def details(account: Account) -> dict[str, float]:
    """What stands behind the figures, for the raw results."""
    by_difference, by_slope = account.refusal_cpu_us()
    low = account.part("low")
    return {
        "goodput_2x_by_gateway": account.goodput("2x", by_gateway=True),
        "goodput_10x_by_gateway": account.goodput("10x", by_gateway=True),
        "refusal_cpu_us_by_difference": by_difference,
        "refusal_cpu_us_by_slope": by_slope,
        "refusal_p50_ms": account.refusal_ms(50, from_sent=True),
        "refusal_p99_ms_from_due": account.refusal_ms(99, from_sent=False),
        "low_load_p50_ms": low.percentile_ms(50, 200),
        "low_load_p50_ms_from_sent": low.percentile_ms(50, 200, from_sent=True),
        "unsent_10x": account.part("10x").count(UNSENT),
        "sent_late_p99_ms_10x": account.part("10x").lateness_ms(99),
    }


def run(world: World, phases: tuple[Phase, ...], rounds: int, plots: Path | None) -> dict[str, Any]:
    """All rounds; prints tables, returns figures and raw results."""
    body = rig.jpeg(224, 224, 80)
    each: list[dict[str, float]] = []
    more: list[dict[str, float]] = []
    late = accepted = 0.0
    with rig.temporary_repository() as repository:
        version = repository / "timed" / "1"
        version.mkdir(parents=True)
        (version / "model.toml").write_text(world.contract())
        for number in range(rounds):
            with console.status(f"round {number + 1} of {rounds}: {sum(phase.seconds for phase in phases):.0f} s"):
                account = Account(world, phases, one_round(repository, world, phases, body, 100 * number + 1))
            each.append(account.figures())
            more.append(details(account))
            counts = account.late()
            late, accepted = late + counts[0], accepted + counts[1]
            console.print(f"  round {number + 1}: {_words(each[-1])}", style="dim")
    console.print(phases_table(account), cost_table(account), stages_table(account))
    found = {name: statistics.median(figures[name] for figures in each) for name in GOALS}
    found["live_late_share"] = late / accepted if accepted else math.nan
    console.print(figures_table(each, found))
    medians = {name: statistics.median(one[name] for one in more) for name in more[0]}
    console.print(_words(medians), style="dim")
    if plots is not None:
        console.print("plots:", *map(str, overload_plots.draw(account, plots)))
    return {"figures": found, "rounds": each, "details": more}


def _words(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, under 40 s")
    parser.add_argument("--scale", type=float, default=4.0, help="1: 1,223 images/s and 50 ms; 4: 306 and 200 ms")
    parser.add_argument("--queue-max", type=int, default=100_000, help="limits.queue_max of the model: a bare bound")
    parser.add_argument("--rounds", type=int, help="default 5; 1 with --quick")
    parser.add_argument("--plots", type=Path, help="folder for pictures of the last round")
    arguments = parser.parse_args()
    world = World(arguments.scale, arguments.queue_max)
    load = ", ".join(f"{average:.2f}" for average in os.getloadavg())
    console.print(
        f"scale {world.scale:g}: l(b) = {world.base_ms:g} + {world.image_ms:g} b ms, within {world.deadline_ms:g} ms,",
        f"capacity {world.capacity:,.0f} images/s; load average before {load}",
    )
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    results = run(world, QUICK if arguments.quick else FULL, rounds, arguments.plots)
    print("raw results:", rig.save("overload", {"scale": world.scale, "load_average": load, **results}))
    for name, (unit, _, _) in GOALS.items():
        rig.figure(name, results["figures"][name], unit)


if __name__ == "__main__":
    main()
