"""One JSON line per event on stderr, which the gateway reads. No levels to configure, no handlers, no state."""

from __future__ import annotations

import contextlib
import os
import time
import traceback

import msgspec

_STDERR = 2


def event(name: str, *, level: str = "info", error: BaseException | None = None, **fields: object) -> None:
    """Write `name` and `fields` as one line; with `error` also its traceback."""
    line: dict[str, object] = {"ts": round(time.time(), 3), "level": level, "event": name, "pid": os.getpid(), **fields}
    if error is not None:
        line["traceback"] = "".join(traceback.format_exception(error))
    # One write, so that lines of several children never mix within a pipe's atomic size.
    # A reader that is gone is no reason to fail at what the line is about.
    with contextlib.suppress(OSError):
        os.write(_STDERR, msgspec.json.encode(line, enc_hook=str) + b"\n")
