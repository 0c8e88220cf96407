"""`penstock bench`, whole: checks the wish, finds the server, builds what is sent, runs, prints, writes.

Names uvloop, as a composition root does.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import resource
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson
import uvloop

from gateway.bench import document, expectation, mlperf, page, payloads, screens, target, trace
from gateway.bench.runs import Runner, Traffic
from gateway.bench.target import Unanswered
from gateway.bench.wish import CONNECTIONS_MAX, Form, Load, Wish, check, readable
from gateway.errors import InvalidSettings
from gateway.loadtest import openloop
from gateway.loadtest.answers import UnreadableAnswer

if TYPE_CHECKING:
    from rich.console import Console

    from gateway.bench.expectation import Expectation
    from gateway.bench.runs import Outcome, Probe
    from gateway.bench.target import Target

WRONG = (InvalidSettings, Unanswered, UnreadableAnswer)
"""What `run` raises, with a text for a person."""

DESCRIPTORS_SPARE = 64
STDOUT = "-"


class Files(NamedTuple):
    """Where reports go, None for nowhere. `json` may be "-", standard output."""

    json: str | None
    html: Path | None
    record: Path | None

    def check(self) -> None:
        """Raise InvalidSettings, before anything is measured, for what cannot be written."""
        outputs = {"--json": self.json if self.json != STDOUT else None, "--html": self.html, "--record": self.record}
        for option, path in outputs.items():
            if path is not None and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
                raise InvalidSettings(f"{option} {path}: is a folder, or is in none")


def run(console: Console, wish: Wish, files: Files) -> int:
    """Do it. Returns the exit status: 1 when no answer was good, or a search found no rate.

    Raises: any of WRONG.
    """
    check(wish)
    files.check()
    expectations = [expectation.read(text) for text in wish.expect]
    server = target.find(wish)
    traffic = _traffic(wish, server)
    _allow_connections()
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    live = screens.Live(console)
    with live.progress:
        probes, outcome = uvloop.run(_measure(wish, server, traffic, expectations, live))
    found = document.document(wish, server, traffic, outcome, probes, began)
    for part in screens.report(found):
        console.print(part, soft_wrap=True)
    _write(console, files, traffic, outcome, found)
    fruitless = found["search"] is not None and found["search"]["rate"] is None
    return 1 if fruitless or not found["good_count"] else 0


async def _measure(
    wish: Wish, server: Target, traffic: Traffic, expectations: list[Expectation], live: screens.Live
) -> tuple[list[Probe], Outcome]:
    runner = Runner(wish, server, traffic, expectations, live.tell)
    await runner.warm_up()
    if wish.search:
        return await runner.search(runner.seconds())
    rate = wish.rate if wish.rate is not None else math.nan
    seconds = float(traffic.due_s[-1]) if traffic.due_s is not None else runner.seconds()
    return [], await runner.run(wish.load.value, rate, seconds)


def _traffic(wish: Wish, server: Target) -> Traffic:
    """The requests, whole. Raises InvalidSettings."""
    due_s, sizes = None, None
    if wish.trace is not None:
        path = Path(wish.trace)
        due_s, sizes = trace.parse(str(path), readable("--trace", path).decode(errors="replace"))
        due_s = due_s / wish.speed
        if wish.seconds is not None:
            kept = int(np.searchsorted(due_s, wish.seconds))
            due_s, sizes = due_s[:kept], sizes[:kept]
    several = mlperf.MULTI_STREAM_SAMPLES if wish.load is Load.MULTI_STREAM and wish.body is None else 1
    images = wish.images_per_request or several
    several_form = Form.MSGPACK if server.penstock else Form.MULTIPART
    form = wish.form or (several_form if images > 1 else Form.RAW)
    built = payloads.build(wish, form, images, server.side)
    requests = [
        openloop.post(
            server.address.host,
            server.address.port,
            server.path,
            payload.content,
            payload.content_type,
            *wish.headers,
        )
        for payload in built
    ]
    have = [payload.size for payload in built]
    if sizes is None:
        return Traffic(requests, built[0].images, have, None)
    chosen = trace.nearest(sizes, have).tolist()
    return Traffic([requests[index] for index in chosen], built[0].images, [have[index] for index in chosen], due_s)


def _allow_connections() -> None:
    """Take as many descriptors as we may have: a connection that cannot be opened counts against the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + DESCRIPTORS_SPARE
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _write(console: Console, files: Files, traffic: Traffic, outcome: Outcome, found: dict[str, object]) -> None:
    """Raises InvalidSettings."""
    text = orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n"
    if files.json == STDOUT:
        print(text.decode(), end="")  # noqa: T201 - this is a file's content
    elif files.json is not None:
        _save(console, "--json", Path(files.json), text)
    if files.html is not None:
        _save(console, "--html", files.html, page.render(found).encode())
    if files.record is not None:
        shots = outcome.shots
        at = np.where(np.isfinite(shots.sent), shots.sent, shots.due)
        sizes = [traffic.sizes[index % len(traffic.sizes)] for index in range(len(shots))]
        _save(console, "--record", files.record, trace.written(at - at.min(initial=0.0), sizes).encode())


def _save(console: Console, option: str, path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InvalidSettings(f"{option} {path}: cannot be written ({error.strerror})") from None
    console.print(f"written to {path}", soft_wrap=True, markup=False)
