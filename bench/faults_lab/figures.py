"""What the bench reports: one value a name, out of everything that was measured, with what it is to reach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.table import Table

from bench.faults_lab.ledger import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.faults_lab.trial import Row


def _p99(values: Sequence[float]) -> float:
    return float(np.percentile(values, 99))


def _slope(values: Sequence[float]) -> float:
    """Of a line through the second half of the values, per value; while the first half settles."""
    late = values[len(values) // 2 :]
    return float(np.polyfit(range(len(late)), late, 1)[0]) if len(late) > 2 else math.nan


class Figure(NamedTuple):
    """One line of the report. `key`: the measured values; `fold`: makes them one; `goal`: in words and as a test."""

    unit: str
    key: str
    fold: Callable[[Sequence[float]], float]
    goal: str
    met: Callable[[float], bool]


def _none(value: float) -> bool:
    return value == 0


def _at_most(bound: float) -> Callable[[float], bool]:
    return lambda value: value <= bound


def _at_least(bound: float) -> Callable[[float], bool]:
    return lambda value: value >= bound


FIGURES = {
    "idle_kill_failures": Figure("requests", "idle_failures", sum, "0 of 1,000 kills", _none),
    "midbatch_kills": Figure("kills", "midbatch_kills", sum, "2,000", _at_least(2000)),
    "midbatch_lost": Figure("requests", "midbatch_lost", sum, "0", _none),
    "midbatch_twice": Figure("requests", "midbatch_twice", sum, "0", _none),
    "midbatch_wrong": Figure("requests", "midbatch_wrong", sum, "0", _none),
    "midbatch_late": Figure("requests", "midbatch_late", sum, "0", _none),
    "death_detect_p99_ms": Figure("ms", "detect_ms", _p99, "<= 10", _at_most(10)),
    "death_detect_busy_p99_ms": Figure("ms", "detect_busy_ms", _p99, "", _at_most(np.inf)),
    "hang_answer_s": Figure("s", "hang_answer_s", max, "<= 1.5", _at_most(1.5)),
    "decoder_hang_answer_s": Figure("s", "decoder_hang_answer_s", max, "<= 1.5", _at_most(1.5)),
    "poison_crashes_max": Figure("crashes", "poison_crashes", max, "<= 2", _at_most(2)),
    "poison_again_crashes": Figure("crashes", "poison_again_crashes", sum, "0", _none),
    "innocent_failures": Figure("requests", "innocent_failures", sum, "0", _none),
    "reload_errors": Figure("requests", "reload_failures", sum, "0 of 100 reloads", _none),
    "version_errors": Figure("requests", "version_failures", sum, "0", _none),
    "restart_errors": Figure("requests", "restart_failures", sum, "0 of 100 restarts", _none),
    "stop_errors": Figure("requests", "stop_failures", sum, "0", _none),
    "children_gone_s": Figure("s", "children_gone_s", max, "<= 1", _at_most(1)),
    "paused_errors": Figure("requests", "paused_failures", sum, "0", _none),
    "frozen_errors": Figure("requests", "frozen_failures", sum, "0", _none),
    "exhausted_recovery_s": Figure("s", "exhausted_recovery_s", max, "<= 1", _at_most(1)),
    "open_refusal_p99_ms": Figure("ms", "open_refusal_ms", _p99, "<= 5", _at_most(5)),
    "kill_to_ready_s": Figure("s", "real_ready_s", max, "<= 1.5, a real model", _at_most(1.5)),
    "kill_to_ready_fake_s": Figure("s", "idle_ready_s", _p99, "", _at_most(np.inf)),
    "crashloop_neighbour_goodput": Figure("share", "neighbour_share", np.mean, ">= 0.99", _at_least(0.99)),
    "unload_given_back_share": Figure("share", "given_back_share", min, ">= 0.99", _at_least(0.99)),
    "cycle_memory_slope_kib": Figure("KiB/cycle", "cycle_memory_kib", _slope, "0 within noise", _at_most(16)),
}  # fmt: skip


def folded(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The figures of what was measured."""
    return {name: float(row.fold(values[row.key])) for name, row in FIGURES.items() if values.get(row.key)}


def faults_table(rows: Mapping[str, Row]) -> Table:
    """What came of the requests under each fault."""
    table = Table("fault", "faults", "requests", "ok", "refused, by code", "excused", "lost", "twice", "wrong", "late",
                  "recovery s", "problems")  # fmt: skip
    for row in rows.values():
        found = row.verdicts
        codes = ", ".join(f"{count} {code}" for code, count in sorted(row.codes.items()) if code != "ok")
        counts = (found[v] for v in (Verdict.EXCUSED, Verdict.LOST, Verdict.TWICE, Verdict.WRONG, Verdict.LATE))
        table.add_row(
            row.name,
            f"{row.faults:,}",
            f"{row.requests:,}",
            f"{found[Verdict.OK]:,}",
            codes,
            *map(str, counts),
            f"{row.recovery_s:.2f}",
            f"[red]{len(row.problems)}" if row.problems else "0",
        )
    return table


def figures_table(found: Mapping[str, float]) -> Table:
    """Figures beside their goals."""
    table = Table("figure", "value", "unit", "goal", "")
    for name, value in found.items():
        row = FIGURES[name]
        verdict = "" if not row.goal else "met" if row.met(value) else "[red]missed"
        table.add_row(name, f"{value:.4g}", row.unit, row.goal, verdict)
    return table
