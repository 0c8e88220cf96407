"""Writes measured batching into a model.toml: only the keys that were tuned change, every other byte stays.

The new file is parsed and compared before it stands in the old one's place, whole, by rename.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import InvalidModel
from gateway.models.repository import CONTRACT_FILE
from gateway.models.spec import parse_contract
from gateway.tuning.toml_scan import Entry, Section, scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.models.spec import Contract


class NotWritten(Exception):
    """The file stays as it was; the text says why and what to do."""


def tuned(contract: Contract, text: str, sizes: Sequence[int], deadline_ms: float) -> Contract:
    """`contract`, read from `text`, with these sizes, no window, and the deadline if the file names none.

    Raises: InvalidModel when the deadline is over what the contract allows.
    """
    if deadline_ms > contract.limits.deadline_ms_max:
        raise InvalidModel(
            f"the deadline is over the model's limits.deadline_ms_max of {contract.limits.deadline_ms_max:g} ms; "
            f"ask for less, or raise that in {CONTRACT_FILE}"
        )
    batching = msgspec.structs.replace(contract.batching, sizes=tuple(sizes), window_ms=0.0)
    limits = contract.limits
    if not _names_deadline(text):
        limits = msgspec.structs.replace(limits, deadline_ms=float(deadline_ms))
    return msgspec.structs.replace(contract, batching=batching, limits=limits)


def edit(text: str, wanted: Contract) -> str:
    """The file `text` with what `tuned` changes. Raises InvalidModel when it would not read back as `wanted`."""
    text = _set(text, ("batching", "sizes"), list(wanted.batching.sizes))
    text = _set(text, ("batching", "window_ms"), wanted.batching.window_ms)
    if not _names_deadline(text):
        text = _set(text, ("limits", "deadline_ms"), wanted.limits.deadline_ms)
    if parse_contract(text) != wanted:
        raise InvalidModel(f"{CONTRACT_FILE} is written in a way that cannot be edited; put the section in by hand")
    return text


def section(wanted: Contract) -> str:
    """The tuned keys as TOML, to be read or copied."""
    return f"[batching]\nsizes = {list(wanted.batching.sizes)}\nwindow_ms = {_toml(wanted.batching.window_ms)}\n"


def difference(before: str, after: str) -> list[str]:
    """A unified diff, a string per line, without line ends."""
    names = (CONTRACT_FILE, f"{CONTRACT_FILE} (tuned)")
    return [line.rstrip("\r\n") for line in difflib.unified_diff(before.splitlines(), after.splitlines(), *names, n=1)]


def read(directory: Path) -> str:
    """The file's text, its line ends as they are. Raises InvalidModel."""
    try:
        return (directory / CONTRACT_FILE).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{directory / CONTRACT_FILE}: cannot be read ({error}).") from None


def check_writable(directory: Path) -> None:
    """Raise NotWritten where `write` is bound to fail, so that nobody waits minutes to learn it."""
    folder = (directory / CONTRACT_FILE).resolve().parent
    if not os.access(folder, os.W_OK):
        raise NotWritten(f"{folder} cannot be written to; allow it, or tune with --dry-run and copy the section")


def write(directory: Path, before: str, after: str) -> None:
    """Put `after` in the place of `before`, in one step, with the same mode. Raises NotWritten."""
    path = (directory / CONTRACT_FILE).resolve()
    temporary = None
    try:
        if path.read_bytes() != before.encode():
            raise NotWritten(f"{path} was changed meanwhile; put the section above in by hand")
        state = path.stat()
        # Hidden, and no folder: a server that reads the repository at this moment does not trip over it.
        fd, temporary = tempfile.mkstemp(prefix=".model.toml-", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(after.encode())
            file.flush()
            os.fchmod(file.fileno(), state.st_mode & 0o7777)
            with contextlib.suppress(PermissionError):
                os.fchown(file.fileno(), state.st_uid, state.st_gid)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise NotWritten(f"{path} cannot be written ({error.strerror}); put the section above in by hand") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def _names_deadline(text: str) -> bool:
    return any(isinstance(found, Entry) and found.path == ("limits", "deadline_ms") for found in scan(text))


def _set(text: str, path: tuple[str, str], value: Any) -> str:
    """`text` with `path` at `value`: in the place of the old value, or where the section's keys stand."""
    scanned = list(scan(text))
    for entry in scanned:
        if isinstance(entry, Entry) and entry.path == path:
            if _parse_value(text[entry.value_start : entry.value_end]) == value:
                return text
            return text[: entry.value_start] + _toml(value) + text[entry.value_end :]
    newline = "\r\n" if "\r\n" in text else "\n"
    line = f"{path[1]} = {_toml(value)}"
    siblings = [
        found for found in scanned if isinstance(found, Entry) and found.path[:1] == path[:1] and not found.inline
    ]
    for place in scanned:
        if isinstance(place, Section) and place.path == path[:1]:
            if place.inline:
                return f"{text[: place.insert_at]} {line}{'' if place.empty else ','}{text[place.insert_at :]}"
            return _insert(text, siblings[-1].line_end if siblings else place.insert_at, line, newline)
    if siblings:
        # Dotted keys at the top level are the one other way to write a section.
        return _insert(text, siblings[-1].line_end, f"{path[0]}.{line}", newline)
    return _insert(text, len(text), f"{newline if text else ''}[{path[0]}]{newline}{line}", newline)


def _insert(text: str, at: int, line: str, newline: str) -> str:
    """`text` with a line of its own at `at`, which is the begin of a line or the end of the file."""
    before = text[:at] if not at or text[at - 1] == "\n" else text[:at] + newline
    return f"{before}{line}{newline}{text[at:]}"


def _parse_value(source: str) -> Any:
    """A TOML value."""
    return msgspec.toml.decode(f"value = {source}")["value"]


def _toml(value: Any) -> str:
    """A list or a number as TOML, whole numbers without a point."""
    return re.sub(r"\.0$", "", json.dumps(value))
