"""Structured logs: one JSON object a line, on stderr. A caller renders a line and never waits for anyone to read it.

Lines go through a bounded queue to one thread that writes them. When the queue is full (a pipe that nobody empties)
lines are dropped and counted, and a later line says how many. Built on the standard library's logging, so that what
libraries log ends in the same stream. State: the queue, its thread, two counters.

    {"time": "2026-01-02T03:04:05.678Z", "level": "warning", "logger": "penstock.supervisor", "event": "worker_died",
     "pid": 7, "reason": "SIGSEGV"}
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import select
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

QUEUE_COUNT_MAX = 4096
"""Lines waiting to be written; one more is dropped."""

WRITE_SIZE_MAX = 64 * 1024
"""Bytes gathered into one write."""

TEXT_LENGTH_MAX = 2000
"""Characters of one value; a longer one is cut and says so."""

TRACEBACK_LENGTH_MAX = 8000
"""Characters of a traceback, of which the last ones are kept."""

ITEM_COUNT_MAX = 32
"""Items of a list or an object in a value."""

DEPTH_MAX = 3
"""Lists and objects inside each other in a value."""

FLUSH_TIMEOUT_S = 2.0
"""How long `Logs.stop` waits for a reader who may never come."""

ROOT = "penstock"
_FIELDS = "penstock_fields"
_INTEGER_BITS_MAX = 64


class Log:
    """Named events with values: `logs.get("supervisor").info("worker_died", pid=7)`."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """For whoever is looking for a fault."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Something happened as it should."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something went wrong and was dealt with."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Something went wrong and someone has to look."""
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._emit(logging.ERROR, event, fields, exc_info=True)

    def _emit(self, level: int, event: str, fields: Mapping[str, object], *, exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, exc_info=exc_info, extra={_FIELDS: fields})


class Statistics(NamedTuple):
    """Lines since the start: handed to the kernel, dropped, and waiting."""

    written: int
    dropped: int
    queued: int


class Logs(logging.Handler):
    """The running stream. `stop` flushes it and gives the standard library's logging back as it was."""

    def __init__(self, fd: int, level: int, queue_count_max: int = QUEUE_COUNT_MAX) -> None:
        super().__init__(level)
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(queue_count_max)
        self._written = 0
        self._dropped = 0
        self._lost = 0
        """Lines that the stream did not take: its disk is full, or its reader is gone."""
        self._reported = 0
        self._torn = False
        """Whether the last line that was written has no end."""
        # A daemon: one that is stuck in a write must not keep the process alive.
        self._thread = threading.Thread(target=self._write_lines, name="penstock-logs", daemon=True)
        root = logging.getLogger()
        self._before = root.level, root.handlers[:]
        root.handlers[:] = [self]
        root.setLevel(level)
        logging.captureWarnings(True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Render here, where the values still are what the event saw, and queue without waiting."""
        try:
            self._lines.put_nowait(render(record))
        except queue.Full:
            self._dropped += 1  # one writer: Handler.handle holds this handler's lock

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  the library's name
        """A record that cannot be rendered is one more dropped line; the default prints to stderr, and may block."""
        self._dropped += 1

    def statistics(self) -> Statistics:
        """Counters, for metrics and tests."""
        return Statistics(self._written, self._dropped + self._lost, self._lines.qsize())

    def stop(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Write what is queued, as far as somebody reads it within `timeout_s`, and let go of logging."""
        root = logging.getLogger()
        level, handlers = self._before
        if self in root.handlers:
            logging.captureWarnings(False)
            root.handlers[:] = handlers
            root.setLevel(level)
        deadline = time.monotonic() + timeout_s
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self.close()

    def _write_lines(self) -> None:
        """The thread: take what is there, write it at once, say what was dropped. Ends at None."""
        running = True
        while running:
            batch: list[bytes] = []
            size = 0
            line = self._lines.get()
            while line is not None:
                batch.append(line)
                size += len(line)
                if size >= WRITE_SIZE_MAX:
                    break
                try:
                    line = self._lines.get_nowait()
                except queue.Empty:
                    break
            else:
                running = False
            count = len(batch)
            dropped = self._dropped + self._lost
            if dropped > self._reported:
                batch.append(_dropped_line(dropped - self._reported, dropped))
            if self._write(b"".join(batch)):
                self._written += len(batch)
                self._reported = dropped
            else:
                self._lost += count

    def _write(self, content: bytes) -> bool:
        """Write all of it, however long that takes; False when the stream is gone."""
        rest = memoryview(b"\n" + content if self._torn else content)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
                self._torn = bool(rest)
            except BlockingIOError:
                # Whoever shares this terminal or pipe made it non-blocking, for us too.
                select.select([], [self._fd], [])
            except OSError:
                return False
        return True


def get(name: str) -> Log:
    """The log of one room, e.g. "supervisor"."""
    return Log(logging.getLogger(f"{ROOT}.{name}"))


def start(level: str, fd: int = 2) -> Callable[[], None]:
    """Send everything that is logged at `level` ("debug", "info", "warning", "error") or above to `fd`.

    Returns what flushes and ends it, within FLUSH_TIMEOUT_S.
    """
    return Logs(fd, logging.getLevelNamesMapping()[level.upper()]).stop


def dropped_count() -> int:
    """Lines that the running stream has dropped; 0 when there is none."""
    running = [handler for handler in logging.getLogger().handlers if isinstance(handler, Logs)]
    return sum(stream.statistics().dropped for stream in running)


def render(record: logging.LogRecord) -> bytes:
    """One record as one line: an ASCII JSON object and a line feed.

    JSON escapes control characters and ASCII has no others, so no value can end the line, move a terminal's cursor
    or look like a line of its own.
    """
    line: dict[str, Any] = {
        "time": _timestamp(record.created),
        "level": record.levelname.lower(),
        "logger": _cut(str(record.name)),
        "event": _plain(_message(record)),
    }
    fields = getattr(record, _FIELDS, None)
    if isinstance(fields, dict):
        for key, value in fields.items():
            name = _cut(str(key))
            line[name if name not in line else f"{name}_"] = _plain(value)
    if record.exc_info and record.exc_info[0] is not None:
        text = _clean(logging.Formatter().formatException(record.exc_info))
        line["traceback"] = text[-TRACEBACK_LENGTH_MAX:]
    return _encode(line)


def _encode(line: dict[str, Any]) -> bytes:
    # DEL is the one ASCII control character that JSON lets stand.
    return json.dumps(line, allow_nan=False).replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def _dropped_line(count: int, total: int) -> bytes:
    """What stands where `count` lines were dropped."""
    line = {"time": _timestamp(time.time()), "level": "warning", "logger": f"{ROOT}.logs", "event": "lines_dropped"}
    return _encode({**line, "count": count, "total": total})


def _timestamp(seconds: float) -> str:
    """UTC, ISO 8601, milliseconds."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _message(record: logging.LogRecord) -> str:
    """A library's message with its arguments; unformatted when they do not fit, rather than lost."""
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  a library's __str__ may raise anything
        return str(record.msg)


def _plain(value: object, depth: int = 0) -> Any:
    """A value as JSON takes it, bounded in size and depth; what JSON has no word for becomes text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, dict) and depth < DEPTH_MAX:
        items = list(value.items())[:ITEM_COUNT_MAX]
        return {_cut(str(key)): _plain(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth < DEPTH_MAX:
        return [_plain(item, depth + 1) for item in list(value)[:ITEM_COUNT_MAX]]
    try:
        return _cut(str(value))
    except Exception:  # noqa: BLE001  anybody's __str__
        return f"<{type(value).__name__}>"


def _number(value: float) -> Any:
    """A number as JSON takes it. Long integers are slow to print and get rounded by other parsers: they become text."""
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _INTEGER_BITS_MAX else _cut(hex(value))
    return float(value) if math.isfinite(value) else str(value)


def _cut(text: str) -> str:
    """At most TEXT_LENGTH_MAX characters, and the number of those that are missing."""
    missing = len(text) - TEXT_LENGTH_MAX
    return _clean(text if missing <= 0 else f"{text[:TEXT_LENGTH_MAX]}… {missing} more")


def _clean(text: str) -> str:
    """Without lone surrogates, which strict JSON parsers refuse."""
    return text.encode("utf-8", "replace").decode()
