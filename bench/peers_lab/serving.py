"""Starts one server on given cores, waits until it answers rightly, and ends all of its processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import rig
from bench.peers_lab import trees
from bench.peers_lab.catalogue import FOLDER
from bench.peers_lab.installing import last_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.peers_lab.catalogue import Peer

START_TIMEOUT_S = 90.0
_POLL_S = 0.2


class PeerFailed(Exception):
    """A peer that did not start or does not answer rightly; the text says which and why."""


class Workload(NamedTuple):
    """One model. `repository`: as the gateway reads it; `directory`: as bench/peers/work.py does."""

    name: str
    repository: Path
    directory: Path


class Server(NamedTuple):
    """A running server."""

    peer: Peer
    port: int
    mark: str


@contextlib.contextmanager
def served(
    peer: Peer, workload: Workload, cores: Sequence[int], photo: bytes, expected: int | None
) -> Iterator[Server]:
    """Run it on these cores; ready when it gives `expected` as the best class (None: any).

    Raises:
        PeerFailed: it ended, did not answer in time, or answered with another class.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, cores)), *_command(peer, workload, port)],
                cwd=folder,
                env=_environ(peer, workload, port, len(cores), mark, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            server = Server(peer, port, mark)
            _wait_right(server, process, workload, photo, expected, log)
            yield server
        finally:
            trees.end(mark)
            process.wait()


def ask_once(server: Server, workload: Workload, photo: bytes) -> int:
    """The best class that it gives now.

    Raises:
        OSError, http.client.HTTPException: no answer.
        ValueError, KeyError, IndexError: an answer that is none; the text has its status.
    """
    ask = server.peer.ask(workload.name, photo)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
    try:
        connection.request("POST", ask.path, ask.body, dict(ask.headers))
        response = connection.getresponse()
        reply = response.read()
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise ValueError(f"status {response.status}: {last_words(reply.decode(errors='replace'))}")
    if response.getheader("Content-Length") is None:
        raise ValueError("its replies have no Content-Length, which the generator needs")
    return server.peer.top(reply)


def _command(peer: Peer, workload: Workload, port: int) -> list[str]:
    if peer.script is None:
        serve = ["serve", "--models", str(workload.repository), "--port", str(port)]
        return [sys.executable, "-m", "gateway", *serve]
    return [peer.python(), str(FOLDER / peer.script)]


def _environ(peer: Peer, workload: Workload, port: int, cores: int, mark: str, folder: str) -> dict[str, str]:
    """What it is told. Its own scripts first on the path: some peers start programs by name."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PEER_", "PENSTOCK_"))}
    return {
        **kept,
        trees.MARK: mark,
        "PATH": os.pathsep.join((str(Path(peer.python()).parent), kept.get("PATH", ""))),
        "PYTHONPATH": str(rig.ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PENSTOCK_LOG_LEVEL": "warning",
        "PEER_MODEL": str(workload.directory),
        "PEER_PORT": str(port),
        "PEER_CORES": str(cores),
        "PEER_TMP": folder,
        # What they leave behind goes with the folder: PyTriton copies its server for each start.
        "TMPDIR": folder,
        "PYTRITON_HOME": folder,
        # Libraries that would otherwise start a thread per core of the machine beside the process per core.
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def _wait_right(
    server: Server, process: subprocess.Popen[bytes], workload: Workload, photo: bytes, expected: int | None, log: Path
) -> None:
    end, reason = time.monotonic() + START_TIMEOUT_S, "no answer"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise PeerFailed(f"it ended with {process.returncode}: {last_words(log.read_text(errors='replace'))}")
        try:
            top = ask_once(server, workload, photo)
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            reason = f"{type(error).__name__}: {error}"
            time.sleep(_POLL_S)
            continue
        if expected is not None and top != expected:
            raise PeerFailed(f"its best class is {top}, ours is {expected}: not the same work")
        return
    said = last_words(log.read_text(errors="replace"))
    raise PeerFailed(f"no right answer within {START_TIMEOUT_S:.0f} s ({reason}); its log ends: {said}")
