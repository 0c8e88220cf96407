"""A real gateway in its own processes, repositories of fake models for it, and sockets that say exactly what they send.

Nothing here sleeps for a time: `wait_until` polls a condition under a bound. Every answer that was read is kept in
SEEN, so that what must never be in one can be looked for in all of them (`assert_nothing_leaks`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgpack
import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 30.0
"""Bound of every wait: far over what a busy machine needs, so that a failure is a failure."""

SIDE = 8
"""Pixels of a fake model's input, each way."""

CLASS_COUNT = 100_000
"""Classes of a digest model: two images have the same answer once in so many."""

CRASH, HANG, FAIL = (255, 0, 0), (0, 255, 0), (0, 0, 255)
KILL, SPIN, LOST = (255, 255, 0), (255, 0, 255), (0, 255, 255)
"""First pixels with which a fake model that is `special` crashes, stops, or fails; is killed, runs on until it is
interrupted, or loses its device.
"""

PROBLEM = "application/problem+json"
MSGPACK = "application/msgpack"


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """The first true value of `condition`, asked again and again until the bound."""
    end = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.005)


# -- models and images ---------------------------------------------------------------------------------------------


def write_model(root: Path, name: str = "m", version: int = 1, *, labels: list[str] | None = None, **sections) -> Path:
    """Write a fake model that names the CRC-32 of its pixels; `sections` of model.toml stand over these defaults.

    `special=True` adds the pixels that crash, hang and fail it, and so on.
    """
    special = sections.pop("special", False)
    whole: dict[str, Any] = {
        "input": {"width": SIDE, "height": SIDE, "crop_fraction": 1.0, "resample": "nearest", "exact": True},
        "output": {"task": "classification", "top_k": 1},
        "fake": {"class_count": CLASS_COUNT, "digest": True},
    }
    if special:
        pixels_of = {"crash": CRASH, "hang": HANG, "fail": FAIL, "kill": KILL, "spin": SPIN, "lost": LOST}
        whole["fake"] |= {f"{what}_pixel": list(pixel) for what, pixel in pixels_of.items()}
    for section, values in sections.items():
        whole[section] = whole.get(section, {}) | values
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    text = 'backend = "fake"\n'
    for section, values in whole.items():
        text += f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
    (folder / "model.toml").write_text(text)
    if labels is not None:
        (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    return folder


def pixels(seed: int, first: tuple[int, int, int] = (1, 2, 3), side: int = SIDE) -> np.ndarray:
    """Random uint8[side, side, 3] RGB with a chosen first pixel."""
    made = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    made[0, 0] = first
    return made


def digest(array: np.ndarray, class_count: int = CLASS_COUNT) -> int:
    """The class that a digest model answers for these pixels."""
    return zlib.crc32(array.tobytes()) % class_count


def encode(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Pixels as an image file."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def png(seed: int, first: tuple[int, int, int] = (1, 2, 3)) -> bytes:
    """`pixels` as PNG, which a fake model sees unchanged."""
    return encode(pixels(seed, first))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


# -- answers -------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """One HTTP response, whole. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body, by its content type."""
        return msgpack.unpackb(self.body) if self.headers["content-type"] == MSGPACK else json.loads(self.body)

    @property
    def top(self) -> int:
        """The best class of a single image."""
        assert self.status == 200, self.body
        return self.document["prediction"][0]["index"]

    @property
    def tops(self) -> list[int | str]:
        """The best class, or the error's code, of each of several images."""
        return [
            found["error"]["code"] if "error" in found else found["prediction"][0]["index"]
            for found in self.document["predictions"]
        ]


SEEN: list[tuple[int, dict[str, str], bytes]] = []
"""Every answer since the last look."""

_LEAKS = re.compile(
    rb"0x[0-9a-fA-F]{5,}|Traceback|\.py\b|site-packages|/(?:proc|usr|home|root|tmp|dev|etc|work|var)/|memfd|\bpid\b"
    rb"|<_io|BytesIO|object at|\b(?:Pillow|PIL|aiohttp|msgspec|simplejpeg|libjpeg|libpng|onnxruntime|uvloop|errno)\b",
    re.IGNORECASE,
)


def assert_nothing_leaks() -> None:
    """No answer names a path of this machine, a process, an address, or a library; then forget them."""
    seen = SEEN[:]
    SEEN.clear()
    for status, headers, body in seen:
        where = b"\n".join(f"{name}: {value}".encode() for name, value in headers.items()) + b"\n\n" + body
        found = _LEAKS.search(where)
        assert found is None, f"an answer with status {status} holds {found[0]!r}: {where[:2000]!r}"


def assert_problem(answer: Answer, status: int, code: str, *, retry: bool = False) -> dict[str, Any]:
    """A refusal is whole: status, type, code, a sentence that helps, the request's id, and when to try again."""
    assert (answer.status, answer.headers["content-type"]) == (status, PROBLEM), answer
    problem = answer.document
    assert (problem["code"], problem["status"]) == (code, status), problem
    assert len(problem["detail"]) > 10
    assert problem["request_id"] == answer.headers.get("x-request-id", problem["request_id"])
    assert ("retry-after" in answer.headers) == retry, answer.headers
    if retry:
        assert int(answer.headers["retry-after"]) >= 1
    return problem


# -- sockets -------------------------------------------------------------------------------------------------------


class Connection:
    """One TCP connection that sends bytes as they are told and reads answers one by one."""

    def __init__(self, port: int) -> None:
        self._rest = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def __del__(self) -> None:
        # A test that fails half-way says why, and not which of its sockets were open.
        if hasattr(self, "socket"):
            self.socket.close()

    def send(self, content: bytes) -> None:
        self.socket.sendall(content)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request with a Content-Length and read its answer; "_" in a header's name stands for "-"."""
        self.send(head(method, path, {"Content-Length": str(len(body)), **headers}) + body)
        return self.read_answer(with_body=method != "HEAD")

    def read_answer(self, *, with_body: bool = True) -> Answer:
        """The next whole answer."""
        start = self.read_until(b"\r\n\r\n")
        line, *lines = start.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in lines if field)}
        body = self.read_bytes(int(headers["content-length"])) if with_body else b""
        answer = Answer(int(line.split()[1]), headers, body)
        SEEN.append(answer)
        return answer

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to `mark`, which is dropped."""
        while mark not in self._rest:
            self._more()
        found, _, self._rest = self._rest.partition(mark)
        return found

    def read_bytes(self, size: int) -> bytes:
        while len(self._rest) < size:
            self._more()
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _more(self) -> None:
        chunk = self.socket.recv(65536)
        if not chunk:
            raise EOFError(f"the server closed the connection after {self._rest!r}")
        self._rest += chunk

    def wait_closed(self) -> bytes:
        """Read until the server closes; what came before."""
        with contextlib.suppress(ConnectionResetError):
            while chunk := self.socket.recv(65536):
                self._rest += chunk
        return self._rest

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """A request's head; "_" in a header's name stands for "-"."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunked(*chunks: bytes) -> bytes:
    """A body in chunked transfer coding."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def multipart(*parts: tuple[str, str | None, bytes], boundary: str = "penstock-test") -> tuple[bytes, str]:
    """(body, content type) of (field name, filename or None, content) parts, as curl -F sends them."""
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"\r\nContent-Type: application/octet-stream' if filename is not None else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


# -- the gateway ---------------------------------------------------------------------------------------------------


class Gateway:
    """A running `penstock serve` and its children."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, runtime: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.runtime = runtime
        self._log = log
        self.port = int(self.wait_event("listening")["url"].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # -- asking

    def connect(self) -> Connection:
        return Connection(self.port)

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """One request on a connection of its own."""
        with self.connect() as connection:
            return connection.ask(method, path, body, **headers)

    def predict(self, body: bytes, model: str = "m", query: str = "", **headers: str) -> Answer:
        headers.setdefault("Content_Type", "application/octet-stream")
        return self.ask("POST", f"/predictions/{model}{query}", body, **headers)

    def begin(self, body: bytes, model: str = "m", query: str = "") -> Connection:
        """A connection with a whole request on it, whose answer was not read."""
        connection = self.connect()
        kind = {"Content-Length": str(len(body)), "Content-Type": "image/png"}
        connection.send(head("POST", f"/predictions/{model}{query}", kind) + body)
        return connection

    # -- looking

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Every sample of /metrics: (name, label values in the order of their names) → value."""
        answer = self.ask("GET", "/metrics")
        assert answer.status == 200
        return {
            (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }

    def metric(self, *key: str) -> float:
        return self.metrics().get(key, 0.0)

    def slots(self, model: str = "m/1") -> dict[str, int]:
        """Slots by state, those that are not free only."""
        found = {key[2]: int(value) for key, value in self.metrics().items() if key[:2] == ("penstock_slots", model)}
        assert found.pop("free") > 0 or found
        return {state: count for state, count in found.items() if count}

    def wait_idle(self, model: str = "m/1") -> None:
        """Until every slot is free, and no byte of a body is held."""
        wait_until(lambda: not self.slots(model) and not self.metric("penstock_body_bytes"), "all slots come back")

    def batches(self, model: str = "m/1") -> tuple[int, int]:
        """(batches, images in them) that workers were given."""
        found = self.metrics()
        counts = [f"penstock_batch_images_{what}" for what in ("count", "sum")]
        count, images = (sum(value for key, value in found.items() if key[:2] == (name, model)) for name in counts)
        return int(count), int(images)

    def events(self, name: str = "", **fields: object) -> list[dict[str, Any]]:
        """Log lines so far with this event and these fields."""
        lines = [line for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [
            line
            for line in found
            if (not name or line["event"] == name) and all(line.get(key) == value for key, value in fields.items())
        ]

    def wait_event(self, name: str, count: int = 1, **fields: object) -> dict[str, Any]:
        """The `count`-th log line with this event and these fields."""

        def look() -> list[dict[str, Any]]:
            found = self.events(name, **fields)
            assert len(found) >= count or self.process.poll() is None, self._log.read_text()
            return found[count - 1 : count]

        return wait_until(look, f"log line {name} {fields}")[0]

    def wait_ready(self) -> None:
        wait_until(lambda: self.ask("GET", "/readyz").status == 200, "the gateway is ready")

    def wait_drained(self) -> None:
        """Until it refuses what is new: nobody can connect any more."""

        def refused() -> bool:
            try:
                self.connect().socket.close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused, "it drains")

    def children(self, role: str) -> list[int]:
        """Pids of living children: role is "decoder" or "worker"."""
        module = {"decoder": b"gateway.decoding", "worker": b"gpuworker"}[role]
        found = []
        for pid in all_children(self.pid):
            with contextlib.suppress(OSError):
                if module in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def child(self, role: str) -> int:
        """The only child of a role."""
        (pid,) = wait_until(lambda: self.children(role), f"there is a {role}")
        return pid

    def fd_count(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    # -- ending

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


def all_children(pid: int) -> list[int]:
    """Pids of every child of a process, whichever of its threads started it."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def environment(runtime: Path, **settings: object) -> dict[str, str]:
    """What a gateway under test is told: nothing of this machine's gateways, and a folder of its own to be found in."""
    named = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_") and name not in named
    }
    environ |= {"XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": str(runtime / "state")}
    # Nobody has to learn that a gateway of a test goes down.
    return environ | {f"PENSTOCK_{name.upper()}": str(value) for name, value in {"stop_delay_s": 0, **settings}.items()}


@contextlib.contextmanager
def runtime_folder() -> Iterator[Path]:
    """A folder for sockets, whose paths are short: pytest's are too long for them."""
    with tempfile.TemporaryDirectory(prefix="pst-") as folder:
        yield Path(folder)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a gateway if it still runs, whatever state it is in."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.send_signal(signal.SIGTERM)  # the second one ends the drain
    try:
        process.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def gateway(
    repository: Path,
    *,
    ready: bool = True,
    config: Path | None = None,
    runtime: Path | None = None,
    arguments: tuple[str, ...] = ("--port", "0"),
    environ: Mapping[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    pass_fds: tuple[int, ...] = (),
    **settings: object,
) -> Iterator[Gateway]:
    """Start a gateway as its user would, with settings by environment, and stop it at the end if it still runs.

    `config`: a file of settings, for what the environment cannot say. `runtime`: the folder it is found in, else one of
    its own. `environ`: further variables. `prefix`: a command that starts it, with `pass_fds`.
    """
    with contextlib.ExitStack() as stack:
        runtime = runtime or stack.enter_context(runtime_folder())
        command = [*prefix, sys.executable, "-m", "gateway", "serve", "--models", str(repository), *arguments]
        if config is not None:
            command += ["--config", str(config)]
        log = stack.enter_context(tempfile.NamedTemporaryFile(prefix="penstock-test-log-"))
        whole = environment(runtime, **settings) | dict(environ or {})
        process = subprocess.Popen(
            command, cwd=ROOT, env=whole, stderr=log, stdout=subprocess.DEVNULL, pass_fds=pass_fds
        )
        try:
            running = Gateway(process, Path(log.name), runtime)
            if ready:
                running.wait_ready()
            yield running
        finally:
            end(process)


@contextlib.contextmanager
def successor(before: Gateway, repository: Path, *, port: int | None = None, **settings: object) -> Iterator[Gateway]:
    """A gateway that takes the place of another one; it listens once it has."""
    arguments = ("--port", str(port or before.port), "--replace")
    with gateway(repository, runtime=before.runtime, arguments=arguments, **settings) as running:
        yield running
