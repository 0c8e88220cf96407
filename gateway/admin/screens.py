"""What the admin commands show: an operation's progress and end, and `penstock status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

_COLOURS = {"ready": "green", "succeeded": "green", "failed": "red", "dead": "red", "stuck": "red"}
_MIB = 1 << 20


def follow(console: Console, operations: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Show an operation until it ends: a bar on a terminal, else a line for each stage. The operation at its end."""
    last: dict[str, Any] = {}
    if not console.is_terminal:
        said = ""
        for last in operations:
            line = f"{_title(last)}: {last.get('stage', '')}"
            if line != said:
                said = line
                console.print(Text(line), soft_wrap=True)
        return last
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=1.0)
        for last in operations:
            description = escape(f"{_title(last)}: {last.get('stage', '')}")
            progress.update(bar, completed=float(last.get("share") or 0.0), description=description, refresh=True)
    return last


def _title(operation: dict[str, Any]) -> str:
    return " ".join(filter(None, (str(operation.get("kind", "")), str(operation.get("model", "")))))


def ended(operation: dict[str, Any]) -> RenderableType:
    """How an operation ended, with what it found."""
    found = dict(operation.get("result") or {})
    workers = found.pop("workers", None) or ()
    lines = [
        Text.assemble((f"{operation.get('state', '')}  ", _colour(operation.get("state"))), (_title(operation), "bold"))
    ]
    lines += [Text(f"  {key}: {_plain(value)}") for key, value in found.items() if value not in ([], {}, "", None)]
    lines += [Text(f"  {_gone(worker)}") for worker in workers]
    return Group(*lines)


def _gone(worker: dict[str, Any]) -> str:
    """What became of the memory of a worker that went."""
    before, after = ((worker.get(when) or {}) for when in ("before", "after"))
    holders = worker.get("holders")
    said = f"worker {worker.get('worker')} gone"
    for key, what in (("memory_size", "memory"), ("device_memory_size", "device memory")):
        if before.get(key) or what == "memory":
            said += f", {what} {_size(before.get(key))} → {_size(after.get(key))}"
    return said + (f", held by {_plain(holders)}" if holders else "")


def status(found: dict[str, Any]) -> RenderableType:
    """`GET /admin/status` as tables."""
    parts: list[RenderableType] = [
        Text.assemble(
            ("penstock ", "bold"),
            f"{found.get('version', '')}, pid {found.get('pid', '')}, up {_seconds(found.get('uptime_s'))}, ",
            (str(found.get("status", "")), _colour(found.get("status"))),
            f", {found.get('in_flight', 0)} image(s) in flight",
        )
    ]
    models = Table("model", "version", "state", "memory", "detail")
    for model in found.get("models", ()):
        for version in model.get("versions", ()):
            models.add_row(
                escape(str(model.get("name", ""))),
                str(version.get("version", "")) + (" (default)" if _is_default(model, version) else ""),
                Text(_with_share(version), _colour(version.get("state"))),
                _size(version.get("memory_size")),
                escape(_plain(version.get("error") or "")),
            )
    workers = Table("worker", "device", "pid", "state", "restarts", "memory", "models")
    for worker in found.get("workers", ()):
        workers.add_row(
            str(worker.get("index", "")),
            escape(str(worker.get("device", ""))),
            str(worker.get("pid") or ""),
            Text(_state_of(worker), _colour(worker.get("state"))),
            str(worker.get("restarts", 0)),
            _size(worker.get("memory_size")),
            escape(", ".join(map(str, worker.get("models", ())))),
        )
    parts += [models, workers]
    for model in found.get("models", ()):
        parts += [Text(f"{model.get('name')}: {said}", "yellow") for said in model.get("reports", ())]
    operations = found.get("operations", ())
    parts += [Text(f"{_title(o)}: {o.get('stage', '')}, {float(o.get('share') or 0.0):.0%}") for o in operations]
    return Group(*parts)


def _is_default(model: dict[str, Any], version: dict[str, Any]) -> bool:
    return model.get("default_version") == version.get("version")


def _state_of(worker: dict[str, Any]) -> str:
    return f"{worker.get('state', '')}{', retiring' if worker.get('retiring') else ''}"


def _with_share(version: dict[str, Any]) -> str:
    """A version's state, and how far its engine is."""
    share = version.get("share")
    return str(version.get("state", "")) + (f" {share:.0%}" if isinstance(share, int | float) else "")


def _colour(state: object) -> str:
    return _COLOURS.get(str(state), "yellow")


def _size(size: object) -> str:
    return f"{size / _MIB:,.0f} MiB" if isinstance(size, int) else ""


def _seconds(seconds: object) -> str:
    return f"{seconds:,.0f} s" if isinstance(seconds, int | float) else "?"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
