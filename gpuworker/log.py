"""One JSON line per event on stderr, in the shape of the gateway's own. No levels, no handlers, no state."""

from __future__ import annotations

import contextlib
import os
import time
import traceback

import msgspec

_STDERR = 2


def event(name: str, *, level: str = "info", error: BaseException | None = None, **fields: object) -> None:
    """Write `name` and `fields` as one line; with `error` also its traceback."""
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z"
    line: dict[str, object] = {"time": stamp, "level": level, "logger": "penstock.worker", "event": name}
    line |= {"pid": os.getpid(), **fields}
    if error is not None:
        line["traceback"] = "".join(traceback.format_exception(error))
    # One write, so that lines of several children never mix within a pipe's atomic size.
    # A reader that is gone is no reason to fail at what the line is about.
    with contextlib.suppress(OSError):
        os.write(_STDERR, msgspec.json.encode(line, enc_hook=str) + b"\n")
