"""Logs: one valid JSON object a line whatever is in it, and a caller never waits."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import threading
import time
import warnings

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import logs
from tests.support.gateways import wait_until

EVIL = 'a\r\nb\x00c\u2028d\u2029e\x85f\x1b[31mg\x7fh\x9bi\ud800j\U0001f600"\\'


class Pipe:
    """A pipe in place of stderr; `lines` closes it and reads all of it."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def lines(self):
        os.close(self.writer)
        self.writer = -1
        with open(self.reader, "rb", closefd=False) as file:
            return [parse(line) for line in file.read().split(b"\n")[:-1]]

    def close(self):
        os.close(self.reader)
        if self.writer >= 0:
            os.close(self.writer)


def as_orjson_reads(digits: str) -> int | float:
    """A whole number; beyond 64 bits as a float, as most readers of logs take it."""
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


def parse(line):
    assert all(0x20 <= byte < 0x7F for byte in line), line
    assert orjson.loads(line) == json.loads(line, parse_int=as_orjson_reads)
    return json.loads(line)


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def running(pipe):
    stream = logs.Logs(pipe.writer, logging.INFO)
    yield stream
    stream.stop()


def test_an_event_is_one_line(running, pipe):
    logs.get("supervisor").warning("worker_died", pid=7, reason="SIGSEGV", cores=[1, 2.5], more={"x": None, "y": True})
    logs.get("supervisor").debug("unseen")
    running.stop()
    (line,) = pipe.lines()
    moment = line.pop("time")
    assert moment.endswith("Z")
    assert abs(time.mktime(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - time.time()) < 60
    assert line == {
        "level": "warning",
        "logger": "penstock.supervisor",
        "event": "worker_died",
        "pid": 7,
        "reason": "SIGSEGV",
        "cores": [1, 2.5],
        "more": {"x": None, "y": True},
    }


def test_every_level(pipe):
    stop = logs.start("debug", pipe.writer)
    log = logs.get("x")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    try:
        int(EVIL)
    except ValueError:
        log.exception("caught")
    stop()
    lines = pipe.lines()
    assert [line["level"] for line in lines] == ["debug", "info", "warning", "error", "error"]
    assert "ValueError" in lines[-1]["traceback"]


def test_libraries_end_in_the_same_stream(running, pipe):
    logging.getLogger("aiohttp.access").info("GET %s", EVIL)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(EVIL, stacklevel=1)
    running.stop()
    access, warned = pipe.lines()
    assert access["logger"] == "aiohttp.access"
    assert access["event"].startswith("GET a\r\nb")
    assert warned["logger"] == "py.warnings"


def test_a_message_whose_arguments_do_not_fit_is_kept():
    record = logging.makeLogRecord({"msg": "%d", "args": ("not a number",)})
    assert parse(logs.render(record)[:-1])["event"] == "%d"


def test_values_cannot_forge_lines_or_overrule_fields(running, pipe):
    class Hostile:
        def __str__(self):
            raise RuntimeError

    logs.get("x").info(
        EVIL, level=EVIL, time=1, event=EVIL, value=Hostile(), nan=float("nan"), big=10**5000, raw=b"\xff"
    )
    running.stop()
    (line,) = pipe.lines()
    assert line["level"] == "info"
    assert line["level_"].startswith("a\r\nb")
    assert line["value"] == "<Hostile>"
    assert line["nan"] == "nan"


def test_values_are_bounded(running, pipe):
    deep = []
    for _ in range(100):
        deep = [deep]
    logs.get("x").info(
        "y", text="x" * 1_000_000, many=list(range(1000)), deep=deep, table={str(i): i for i in range(99)}
    )
    running.stop()
    (line,) = pipe.lines()
    assert line["text"].endswith("… 998000 more")
    assert len(line["many"]) == 32
    assert len(line["table"]) == 32
    assert len(json.dumps(line)) < 20_000


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner), max_leaves=8
)


@pytest.mark.slow
@example("", {"": -(2**63) - 1})
@given(st.text(st.characters()), st.dictionaries(st.text(st.characters()), values, max_size=4))
def test_any_record_is_one_line(event, fields):
    record = logging.makeLogRecord({"msg": event, "penstock_fields": fields, "levelname": "INFO", "name": "x"})
    line = logs.render(record)
    assert line.endswith(b"\n")
    parse(line[:-1])


def test_a_full_pipe_blocks_nobody_and_the_loss_is_told(pipe):
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    stream = logs.Logs(pipe.writer, logging.INFO, queue_count_max=50)
    log = logs.get("x")
    begin = time.monotonic()
    for number in range(2000):
        log.info("y", number=number)
    assert time.monotonic() - begin < 1.0
    assert stream.statistics().dropped == logs.dropped_count() > 1500
    begin = time.monotonic()
    stream.stop(timeout_s=0.05)  # nobody reads yet: stopping does not hang either
    assert time.monotonic() - begin < 1.0
    content = read_all(pipe, stream)
    lines = [parse(line) for line in content.split(b"\n")[:-1]]
    told = sum(line["count"] for line in lines if line["event"] == "lines_dropped")
    seen = [line["number"] for line in lines if line["event"] == "y"]
    assert told == stream.statistics().dropped
    assert told + len(seen) == 2000
    assert seen == sorted(seen)


def read_all(pipe, stream):
    """Read beside the stream until it has stopped and the pipe is closed."""
    content = bytearray()

    def drain():
        while chunk := os.read(pipe.reader, 65_536):
            content.extend(chunk)

    reader = threading.Thread(target=drain)
    reader.start()
    stream.stop(timeout_s=5)
    os.close(pipe.writer)
    pipe.writer = -1
    reader.join(5)
    return bytes(content)


def test_a_pipe_that_someone_made_non_blocking(pipe):
    os.set_blocking(pipe.writer, False)
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    stream = logs.Logs(pipe.writer, logging.INFO)
    for number in range(500):
        logs.get("x").info("y", number=number)
    assert len(read_all(pipe, stream).splitlines()) == 500


def test_a_reader_that_left_is_survived(pipe):
    stream = logs.Logs(pipe.writer, logging.INFO)
    os.close(pipe.reader)
    for _ in range(10):
        logs.get("x").info("y")
    begin = time.monotonic()
    stream.stop(timeout_s=5)
    assert time.monotonic() - begin < 2
    assert stream.statistics().written == 0
    pipe.reader = os.open(os.devnull, os.O_RDONLY)


def test_stop_gives_logging_back():
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    assert logs.dropped_count() == 0
    stop = logs.start("debug")
    stop()
    stop()
    assert (root.level, root.handlers) == before


def test_lines_that_the_disk_does_not_take_are_counted_and_told_when_there_is_room(monkeypatch):
    read_fd, write_fd = os.pipe()
    write, room = os.write, threading.Event()
    full = threading.Event()

    def disk(fd, content) -> int:
        if fd != write_fd or room.is_set():
            return write(fd, content)
        if not full.is_set():
            full.set()
            return write(fd, bytes(content[:10]))  # The last bytes of the disk: half a line.
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "write", disk)
    stream = logs.Logs(write_fd, logging.INFO)
    log = logs.get("test")
    try:
        for number in range(3):
            log.info("lost", number=number)
        wait_until(lambda: stream.statistics().dropped == 3, "they are lost")
        room.set()
        log.info("kept")
    finally:
        stream.stop()
        os.close(write_fd)
    with os.fdopen(read_fd, "rb") as source:
        torn, *lines = source.read().splitlines()
    assert len(torn) == 10
    events = [json.loads(line) for line in lines]
    assert [line["event"] for line in events] == ["kept", "lines_dropped"]
    assert (events[1]["count"], events[1]["total"]) == (3, 3)
