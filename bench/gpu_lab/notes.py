"""What a part of the bench says, written down at once: a part that crashes or is ended has not lost what it found.

A file of JSON lines, one for each figure, row, remark and problem. Only the standard library, so that whoever reads it
needs nothing that a broken machine may lack.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOT_INSTALLED = ("does not import here", "NVML does not work here")
"""What refusals say of a library that is missing; every other one is of something that should work on a card."""

REASON_SIZE_MAX = 600
"""Characters of a problem's reason that are shown; its traceback is in the part's log."""


class Notes:
    """Where one part, and the processes that it starts one after the other, write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem_count = 0

    def figure(self, name: str, value: float, unit: str) -> None:
        """A number that stands for itself."""
        self._write({"figure": name, "value": float(value), "unit": unit})

    def row(self, table: str, **cells: object) -> None:
        """A row of a table whose columns are the names of the cells."""
        self._write({"table": table, "cells": {name: _text(cell) for name, cell in cells.items()}})

    def result(self, line: str, seen: str, of: str = "") -> None:
        """A line of the short table that is printed last."""
        self._write({"result": line, "seen": seen, "of": of})

    def remark(self, text: str) -> None:
        """What was not measured and why, or what a figure rests on."""
        self._write({"remark": text})

    def refused(self, where: str, refusal: Exception) -> None:
        """A model, or NVML, that there is not: a remark where something is not installed, else a problem."""
        if any(words in str(refusal) for words in NOT_INSTALLED):
            self.remark(f"{where}: not measured: {refusal}")
        else:
            self.problem(where, str(refusal))

    def problem(self, where: str, reason: str) -> None:
        """Something that should have been, and is not."""
        self.problem_count += 1
        self._write({"problem": where, "reason": reason})

    @contextlib.contextmanager
    def guarded(self, where: str) -> Iterator[None]:
        """What fails in the block is a problem, and what comes after the block is measured all the same."""
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one measurement's trouble leaves the others
            traceback.print_exc()
            self.problem(where, f"{type(error).__name__}: {error}")

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Everything that was written, in order; a line that was cut by a kill is left out."""
    found = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
    return found


def tables(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Each table as text, in the order in which they were begun."""
    rows: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        if "table" in line:
            rows.setdefault(line["table"], []).append(line["cells"])
    for title, cells in rows.items():
        columns = list(dict.fromkeys(name for row in cells for name in row))
        yield table(title, columns, [[row.get(name, "") for name in columns] for row in cells])


def table(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Rows under their columns' names, as plain text."""
    names = [name.replace("_", " ") for name in columns]
    widths = [max(len(row[place]) for row in [names, *rows]) for place in range(len(names))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [names, *rows]]
    return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)])


def problems(lines: list[dict[str, Any]]) -> list[str]:
    """The problems, a line each."""
    return [f"{line['problem']}: {line['reason'][:REASON_SIZE_MAX]}" for line in lines if "problem" in line]


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)
