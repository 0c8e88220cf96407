"""`penstock doctor`, whole: examine, open, judge, try, print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import typer

from gateway import paths
from gateway.doctor import child, report, trial, verdicts
from gateway.doctor.verdicts import Remark, Verdict
from shm.checkup import Checkup, Opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from gateway.config import Settings


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as --json prints it."""

    good: bool
    """Whether every device that was asked for can run a backend."""
    verdicts: list[Verdict]
    remarks: list[Remark]
    checkup: Checkup
    opened: list[Opened]


def run(console: Console, settings: Settings, given: Sequence[str], *, as_json: bool, trials: bool) -> bool:
    """Examine this machine and print what was found. Whether every device asked for can be used.

    `given`: devices that the user named. Raises InvalidSettings.
    """
    with console.status("looking at this machine") as spinner:
        found = child.examine(paths.engine_dir(settings))
        names = verdicts.asked_devices(given, settings.devices, found)
        opened: dict[str, Opened] = {}
        for choice in verdicts.to_open(names, found):
            spinner.update(f"opening {choice.name}")
            opened[choice.name] = child.open_device(choice.given)
        judged = verdicts.judge(names, found, opened)
        if trials:
            judged = [
                verdicts.tried(each, trial.run(each.backend, each.device, settings, spinner.update))
                if each.good
                else each
                for each in judged
            ]
    good = verdicts.good(judged)
    remarks = verdicts.remarks(names, found)
    if as_json:
        whole = Findings(
            good=good,
            verdicts=judged,
            remarks=remarks,
            checkup=found,
            opened=list(opened.values()),
        )
        typer.echo(msgspec.json.format(msgspec.json.encode(whole)))
    else:
        report.show(console, found, judged, remarks)
    return good
