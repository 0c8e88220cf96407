"""A report for the terminal, and the line that shows how far a run is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gateway.bench.svg import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")


class Live:
    """A bar with what was sent, answered and failed, and the rate of late. One run follows the other."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._row = self.progress.add_task("", words="", total=1.0)
        self._what = ""
        self._began_s = 0.0
        self._seen = 0.0, 0
        self._rate = 0.0

    def tell(self, what: str, seconds: float, sent: int, ended: int, failed: int) -> None:
        """How far a run that takes `seconds` is."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began_s, self._seen, self._rate = what, now, (now, 0), 0.0
        if now - self._seen[0] >= 1.0:
            self._rate = (ended - self._seen[1]) / (now - self._seen[0])
            self._seen = now, ended
        words = f"{self._rate:,.0f}/s, {sent - ended:,} under way, {ended:,} answered, {failed:,} failed"
        done = min(now - self._began_s, seconds) / seconds if seconds else 1.0
        self.progress.update(self._row, description=what, words=words, completed=done)


def report(found: dict[str, Any]) -> Iterator[Table | Text]:
    """What is printed at the end."""
    latency = found["latency_ms"]
    table = Table("load", "offered/s", "good/s", "failed", *(f"{name} ms" for name in PERCENTILES))
    table.add_row(
        found["load"]["kind"],
        number(found["load"]["rate"]),
        number(found["rate"]),
        number(found["failed_count"]),
        *(number(latency[name]) for name in PERCENTILES),
    )
    yield table
    bad = [f"{status}: {count:,}" for status, count in found["statuses"].items() if status != "200"]
    if bad:
        yield Text(f"not good: {', '.join(bad)}", "yellow")
    for status, body in found["failures"].items():
        yield Text(f"  {status}: {' '.join(body.split())[:160]}", "yellow")
    if found["search"] is not None:
        yield from _search(found["search"])
    if found["inside"] is not None:
        yield from _inside(found["inside"])
    if found["processes"]:
        yield _processes(found["processes"])
    if found["mlperf"] is not None:
        yield _scenario(found["mlperf"])
    own = found["generator"]
    for limit in own["limits"]:
        yield Text(limit, "bold yellow")
    if not own["limits"]:
        late = max(own["lateness_p99_ms"], own["loop_p99_ms"])
        yield Text(
            f"the generator was not the limit: {late:.2f} ms late (p99), {own['cpu_share']:.0%} of a core", "dim"
        )


def _search(search: dict[str, Any]) -> Iterator[Table | Text]:
    table = Table("requests/s", "requests", f"p{search['percentile']:g} ms", "failed", "bound")
    for probe in search["probes"]:
        kept = "confirmed" if probe["confirms"] else "kept"
        words = Text(kept, "green") if probe["met"] else Text("not kept", "red")
        share = f"{probe['failed_share']:.2%}"
        table.add_row(number(probe["rate"]), number(probe["due_count"]), number(probe["tail_ms"]), share, words)
    yield table
    bound = f"p{search['percentile']:g} within {search['bound_ms']:g} ms"
    if search["rate"] is None:
        yield Text(f"no rate was found with {bound}", "bold red")
    else:
        yield Text(f"{search['rate']:,.0f} requests/s with {bound}", "bold green")


def _inside(inside: dict[str, Any]) -> Iterator[Text]:
    if inside["stages_ms"]:
        stages = ", ".join(f"{stage} {number(ms)}" for stage, ms in inside["stages_ms"].items())
        yield Text(f"stages, mean ms: {stages}")
    if inside["batches"]:
        seals = ", ".join(f"{seal} {sum(table.values()):,}" for seal, table in inside["batches"].items())
        yield Text(f"batches: {number(inside['batch_images_mean'])} images on average; closed because {seals}")


def _processes(processes: list[dict[str, Any]]) -> Table:
    table = Table("process", "pid", "CPU µs a request", "of a core")
    for process in processes:
        share = f"{process['cpu_share']:.0%}"
        table.add_row(process["role"], str(process["pid"]), number(process["cpu_us_per_request"]), share)
    if len(processes) > 1:
        whole = sum(process["cpu_us_per_request"] for process in processes)
        table.add_row("together", "", number(whole), f"{sum(process['cpu_share'] for process in processes):.0%}")
    return table


def _scenario(verdict: dict[str, Any]) -> Table:
    valid = "valid" if verdict["valid"] else "NOT valid"
    title = f"MLPerf {verdict['scenario']}: {number(verdict['value'])} {verdict['unit']}, by its rules {valid}"
    table = Table("rule", "", "", title=title, title_justify="left")
    for rule in verdict["rules"]:
        table.add_row(rule["name"], Text("kept", "green") if rule["kept"] else Text("not kept", "red"), rule["words"])
    return table
