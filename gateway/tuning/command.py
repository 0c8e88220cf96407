"""`penstock tune`, whole: finds the model, runs the stages until they end or are stopped, prints, writes.

Names uvloop, as a composition root does.
"""

from __future__ import annotations

import asyncio
import math
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop
from rich.text import Text

from gateway import logs
from gateway.errors import InvalidModel, InvalidSettings
from gateway.loadtest.answers import UnreadableAnswer
from gateway.models.repository import CONTRACT_FILE, is_name, is_version, read_version
from gateway.tuning import contract_file, plot, report, stages
from gateway.tuning.contract_file import NotWritten
from gateway.tuning.findings import Findings, Goal
from gateway.tuning.live import Unserved
from gateway.tuning.profile import TooSlow

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from rich.console import Console

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion

DEADLINE_MS_MAX = 600_000
MINUTES_MAX = 120.0
NAMES_SHOWN = 10

UNLIMITED: dict[str, Any] = {
    "clients": (),
    "keys_required": False,
    "client_rate": 0.0,
    "client_burst": 0,
    "client_batch_rate": 0.0,
    "client_batch_burst": 0,
    "client_in_flight_max": 0,
    "rate_max": 0.0,
    "rate_burst_max": 0,
    "log_level": "error",
}
"""Over the user's settings: what is measured is the machine, not what a client is allowed of it, and a gateway says
meanwhile only what went wrong.
"""

WRONG = (
    InvalidModel,
    InvalidSettings,
    NotWritten,
    OSError,
    TooSlow,
    UnreadableAnswer,
    Unserved,
    stages.DeadlineTooShort,
)
"""What `run` raises, with a text for a person."""


class _Stopped(Exception):
    """By a signal, whose number it is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def find(name: str, settings: Settings, *, in_repository: bool) -> ModelVersion:
    """`name` as a folder <model>/<version> or <model>, or as NAME[/VERSION] of the settings' repository.

    `in_repository`: it is a name, whatever folders there are. Raises InvalidModel.
    """
    folder = Path(name)
    if not in_repository and folder.is_dir():
        if (folder / CONTRACT_FILE).is_file() or is_version(folder.resolve().name):
            return read_version(folder)
        return _latest(folder)
    root = Path(settings.models)
    wanted, _, version = name.partition("/")
    if not is_name(wanted) or (version and not is_version(version)) or not (in_repository or root.is_dir()):
        raise InvalidModel(f"{name}: no such folder, and no NAME or NAME/VERSION of a repository given by --models")
    if not root.is_dir():
        raise InvalidModel(f"--models {root}: no such folder")
    if not (root / wanted).is_dir():
        there = sorted(child.name for child in root.iterdir() if child.is_dir() and is_name(child.name))
        raise InvalidModel(f"{root}: holds no model {wanted}; it has {', '.join(there[:NAMES_SHOWN]) or 'none'}")
    return read_version(root / wanted / version) if version else _latest(root / wanted)


def _latest(folder: Path) -> ModelVersion:
    """The largest version of a model's folder. Raises InvalidModel."""
    versions = [int(child.name) for child in folder.iterdir() if is_version(child.name)]
    if not versions:
        raise InvalidModel(f"{folder}: holds no version; give <model>/<version>, the folder of a {CONTRACT_FILE}")
    return read_version(folder / str(max(versions)))


def goal_of(
    model: ModelVersion, settings: Settings, *, deadline_ms: float, minutes: float, images: Path | None
) -> Goal:
    """The goal, checked. Raises InvalidModel, InvalidSettings."""
    if not 0 < deadline_ms <= DEADLINE_MS_MAX:
        raise InvalidSettings(f"--deadline-ms is {deadline_ms:g}; it must be over 0, up to {DEADLINE_MS_MAX}")
    if not (math.isfinite(minutes) and 0 < minutes <= MINUTES_MAX):
        raise InvalidSettings(f"--minutes is {minutes:g}; it must be over 0, up to {MINUTES_MAX:g}")
    text = contract_file.read(model.directory)
    contract_file.tuned(model.contract, text, (1,), deadline_ms)
    settings = msgspec.structs.replace(settings, **UNLIMITED)
    return Goal(model, text, settings, deadline_ms, minutes * 60, images)


def run(console: Console, goal: Goal, *, png: Path | None, dry_run: bool) -> int:
    """Tune, print, write unless `dry_run`. Returns the exit status: 128 + its number when a signal stopped it.

    Raises: any of WRONG.
    """
    if png is not None:
        plot.check_png(png)
    if not dry_run:
        contract_file.check_writable(goal.model.directory)
    findings = Findings()
    stopped = _measure(console, goal, findings)
    console.print(report.report(goal, findings))
    if stopped is not None:
        console.print(Text("stopped; nothing was written", "yellow"))
        return 128 + stopped
    console.print(report.result(goal, findings))
    title = f"{goal.model.name}/{goal.model.version}"
    if png is not None:
        plot.save_png(png, title, findings.probes, goal.deadline_ms)
        console.print(Text(f"drawn in {png}"), soft_wrap=True)
    assert findings.contract is not None
    after = contract_file.edit(goal.text, findings.contract)
    console.print(report.diff(contract_file.difference(goal.text, after)), soft_wrap=True)
    console.print(Text("\n" + contract_file.section(findings.contract), "bold"), soft_wrap=True)
    file = goal.model.directory / CONTRACT_FILE
    if dry_run:
        console.print(Text(f"nothing was written to {file} (--dry-run)"), soft_wrap=True)
    elif after == goal.text:
        console.print(Text(f"{file} says so already"), soft_wrap=True)
    else:
        contract_file.write(goal.model.directory, goal.text, after)
        console.print(Text(f"written to {file}; it holds from the server's next start"), soft_wrap=True)
    return 0


def _measure(console: Console, goal: Goal, findings: Findings) -> int | None:
    """Run the stages; the signal that stopped them, or None."""
    stop_logs = logs.start("error")
    try:
        with console.status("") as spinner:
            probe_count = 0

            def progress(words: str) -> None:
                nonlocal probe_count
                if len(findings.probes) > probe_count:
                    probe_count = len(findings.probes)
                    console.print(Text(report.probe_line(goal, findings), "dim"))
                spinner.update(f"{goal.model.name}/{goal.model.version}: {words}")

            try:
                uvloop.run(_until_signal(stages.run(goal, findings, progress)))
            except _Stopped as stopped:
                return stopped.number
    finally:
        stop_logs()
    return None


async def _until_signal(work: Awaitable[None]) -> None:
    """Run `work`; the first SIGINT or SIGTERM cancels it, and those behind it leave it to tidy up. Raises _Stopped."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(work)
    caught: list[int] = []

    def on_signal(number: int) -> None:
        if not caught:
            running.cancel()
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await running
    except asyncio.CancelledError:
        if caught:
            raise _Stopped(caught[0]) from None
        raise
