"""`python -m bench.gpu_lab.part PLAN`: one part of the bench, in a process that may crash, hang, or be killed.

`spawn` starts one and ends it, with everything that it started, when its time is over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu_lab.notes import Notes
from bench.gpu_lab.plan import Plan
from shm.heritage import die_with

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

MEASURES = {
    "facts": "bench.gpu_lab.facts",
    "backends": "bench.gpu_lab.backends",
    "case": "bench.gpu_lab.case",
    "answers": "bench.gpu_lab.answers",
    "answer": "bench.gpu_lab.answer",
    "gateway": "bench.gpu_lab.served",
    "tail": "bench.gpu_lab.tail",
    "kill": "bench.gpu_lab.kill",
}
"""Part → module whose `measure(plan, notes)` does it."""


def spawn(plan: Plan, name: str) -> str:
    """Run a part to its end or to the end of its time. Returns how it failed, or an empty string.

    `name`: of its files in the folder: NAME.json is its plan, NAME.log everything that it and its children print.
    """
    folder = Path(plan.folder)
    dataclasses.replace(plan, parent=os.getpid()).write(folder / f"{name}.json")
    command = [sys.executable, "-m", "bench.gpu_lab.part", str(folder / f"{name}.json")]
    with (folder / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            status = child.wait(max(1.0, plan.left_s))
        except subprocess.TimeoutExpired:
            return "its time was over"
        finally:
            # Everything that it started is in its group, and none of it outlives it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if status < 0:
        return f"it died of {signal.Signals(-status).name}"
    return f"it ended with {status}; {_last_words(folder / f'{name}.log')}" if status else ""


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def main(file: Path) -> int:
    plan = Plan.read(file)
    # It leads a process group of its own, which a signal to its parent's would not reach.
    die_with(plan.parent)
    notes = Notes(Path(plan.notes))
    measure: Callable[[Plan, Notes], None] = importlib.import_module(MEASURES[plan.part]).measure
    measure(plan, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
