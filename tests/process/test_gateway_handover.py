"""One gateway takes the place of another without a lost request; two that want the same are told so."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.gateways import (
    ROOT,
    Connection,
    digest,
    end,
    environment,
    gateway,
    pixels,
    png,
    runtime_folder,
    successor,
    wait_until,
    write_model,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SLOW_START = {"batching": {"sizes": [1]}, "fake": {"base_ms": 300.0}}


@pytest.fixture
def runtime():
    with runtime_folder() as folder:
        yield folder


def serve(runtime: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """A gateway that is expected not to start."""
    command = [sys.executable, "-m", "gateway", "serve", *arguments]
    environ = environment(runtime, **settings)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=environ)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr.replace("\n", " ")


class Client(threading.Thread):
    """Asks on one connection, and on the next one when it ends, until `enough` is set. Every request is answered."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__()
        self._port = port
        self._seed = seed
        self.enough = threading.Event()
        self.answered = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        body, wanted = png(self._seed), digest(pixels(self._seed))
        try:
            while not self.enough.is_set():
                with Connection(self._port) as connection:
                    ends = False
                    while not ends and not self.enough.is_set():
                        answer = connection.ask("POST", "/predictions/m", body, Content_Type="image/png")
                        assert (answer.status, answer.top) == (200, wanted)
                        self.answered += 1
                        ends = answer.headers.get("connection") == "close" or self._seed % 2 == 0
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            self.error = error


# -- the change ------------------------------------------------------------------------------------------------------


def test_a_successor_takes_over_and_the_old_one_goes(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path) as old, old.connect() as kept:
        assert kept.ask("GET", "/livez").status == 200
        with successor(old, tmp_path) as new:
            assert new.port == old.port
            assert old.process.wait(20) == 0
            assert old.events("stopped")[0]["everything_answered"] is True
            assert old.wait_event("handover_done")
            assert new.wait_event("took_over", pid=old.pid)
            assert new.predict(png(1)).top == digest(pixels(1))
            # And it can be replaced itself, by one that finds all it needs.
            with successor(new, tmp_path) as third:
                assert new.process.wait(20) == 0
                assert third.predict(png(2)).top == digest(pixels(2))
                folder = third.runtime / "penstock"
                assert (folder / f"handover-{third.port}.sock").is_socket()
                assert third.stop() == 0
                assert [path.name for path in folder.iterdir() if path.is_socket()] == [], "the last one cleans up"


def test_a_successor_is_told_what_the_models_take_unless_their_files_changed(tmp_path):
    folder = write_model(tmp_path, fake={"base_ms": 1.0})

    def profile(running):
        (worker,) = running.ask("GET", "/models/m").document["versions"][0]["workers"]
        return [(point["p50_ms"], point["p99_ms"]) for point in worker["profile"]]

    with gateway(tmp_path) as old:
        measured = profile(old)
        with successor(old, tmp_path) as new:
            assert profile(new) == measured
            text = (folder / "model.toml").read_text()
            (folder / "model.toml").write_text(text.replace("base_ms = 1.0", "base_ms = 20.0"))
            with successor(new, tmp_path) as third:
                assert profile(third)[0][0] >= 20.0


def test_requests_go_on_through_four_changes(tmp_path):
    write_model(tmp_path)
    with contextlib.ExitStack() as stack:
        now = stack.enter_context(gateway(tmp_path))
        clients = [Client(now.port, seed) for seed in range(4)]
        for client in clients:
            client.start()
            stack.callback(client.enough.set)

        def answered() -> int:
            return sum(client.answered for client in clients)

        for _ in range(4):
            before, now = now, stack.enter_context(successor(now, tmp_path))
            assert before.process.wait(30) == 0
            assert before.events("stopped")[0]["everything_answered"] is True
            count = answered()
            wait_until(lambda count=count: answered() > count + 20, "they are served by the new one")
        for client in clients:
            client.enough.set()
            client.join(20)
        assert [client.error for client in clients if client.error] == []


def test_what_the_old_one_has_begun_it_finishes(tmp_path):
    write_model(tmp_path, batching={"sizes": [1]}, fake={"base_ms": 500.0})
    with gateway(tmp_path) as old:
        connections = [old.begin(png(seed)) for seed in range(3)]
        half = old.connect()
        half.send(b"POST /predictions/m HT")
        with successor(old, tmp_path):
            # Work for the old one, from the moment that it lets go.
            half.send(f"TP/1.1\r\nHost: x\r\nContent-Length: {len(png(9))}\r\n\r\n".encode() + png(9))
            assert half.read_answer().top == digest(pixels(9))
            for seed, connection in enumerate(connections):
                assert connection.read_answer().top == digest(pixels(seed))
            assert old.process.wait(20) == 0


# -- the change that does not happen ---------------------------------------------------------------------------------


def replacing(old, repository: Path, **settings: object) -> subprocess.Popen[bytes]:
    """A successor that is seen only by what the old one says of it."""
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(repository), "--port", str(old.port)]
    environ = environment(old.runtime, **settings)
    return subprocess.Popen([*command, "--replace"], cwd=ROOT, env=environ, stderr=subprocess.PIPE)


def test_a_successor_that_dies_changes_nothing(tmp_path):
    write_model(tmp_path, **SLOW_START)
    with gateway(tmp_path) as old:
        with replacing(old, tmp_path) as new:
            old.wait_event("handover_begun", pid=new.pid)
            new.kill()
        old.wait_event("handover_failed")
        assert old.predict(png(1)).top == digest(pixels(1))
        assert "connection" not in old.ask("GET", "/readyz").headers
        with successor(old, tmp_path) as new:
            assert old.process.wait(20) == 0
            assert new.predict(png(2)).top == digest(pixels(2))


def test_a_successor_that_cannot_start_changes_nothing_and_says_so(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    write_model(good)
    write_model(bad, batching={"sizes": [1]}, fake={"base_ms": 30_000.0})
    with gateway(good) as old:
        new = replacing(old, bad, child_start_timeout_s=0.2)
        _, said = new.communicate(timeout=60)
        assert new.returncode == 2
        assert b"dies at its start" in said
        old.wait_event("handover_failed")
        assert old.predict(png(1)).top == digest(pixels(1))
        assert (old.runtime / "penstock" / f"handover-{old.port}.sock").is_socket()


def test_a_second_successor_is_refused_while_the_first_one_starts(tmp_path):
    write_model(tmp_path, **SLOW_START)
    with gateway(tmp_path) as old:
        first = replacing(old, tmp_path)
        try:
            old.wait_event("handover_begun", pid=first.pid)
            # It does not get ready before the second one was here.
            first.send_signal(signal.SIGSTOP)
            done = serve(old.runtime, "--models", str(tmp_path), "--port", str(old.port), "--replace")
            assert_refused(done, "another gateway is taking over already")
            first.send_signal(signal.SIGCONT)
            assert old.process.wait(30) == 0
        finally:
            end(first)
            first.communicate(timeout=30)
        assert first.returncode == 0


def test_when_the_old_one_is_killed_meanwhile_the_successor_goes_on_alone(tmp_path):
    write_model(tmp_path, **SLOW_START)
    with gateway(tmp_path) as old:
        new = replacing(old, tmp_path)
        try:
            old.wait_event("handover_begun", pid=new.pid)
            old.process.kill()
            old.process.wait()
            # Nobody was refused: the kernel has kept the listener open.
            wait_until(lambda: old.ask("GET", "/livez").status == 200, "the successor accepts")
            old.wait_ready()
            assert old.predict(png(1)).top == digest(pixels(1))
        finally:
            end(new)
            new.communicate(timeout=30)
        assert new.returncode == 0


def test_an_old_one_that_is_stopped_meanwhile_leaves_the_listener(tmp_path):
    write_model(tmp_path, **SLOW_START)
    with gateway(tmp_path) as old:
        new = replacing(old, tmp_path)
        try:
            old.wait_event("handover_begun", pid=new.pid)
            assert old.stop() == 0
            assert old.ask("GET", "/livez").status == 200
        finally:
            end(new)
            new.communicate(timeout=30)
        assert new.returncode == 0


def test_nobody_to_replace_is_said_with_what_to_do(tmp_path, runtime):
    write_model(tmp_path)
    models = ("--models", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    assert_refused(serve(runtime, *models, "--port", port, "--replace"), "no gateway to replace", "--replace")
    assert_refused(serve(runtime, *models, "--port", "0", "--replace"), "--port")


def test_another_address_is_refused(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path) as old:
        port = str(old.port)
        done = serve(old.runtime, "--models", str(tmp_path), "--port", port, "--host", "127.0.0.2", "--replace")
        assert_refused(done, f"listens on 127.0.0.1:{port}", "--host")
        old.wait_event("handover_failed")
        assert old.predict(png(1)).status == 200


# -- two that want the same ------------------------------------------------------------------------------------------


def test_a_device_has_one_gateway_and_passes_over_with_the_handover(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, devices="cuda:0,cpu") as old:
        models = ("--models", str(tmp_path), "--port", "0")
        refused = serve(old.runtime, *models, devices="cuda:1,cuda:0")
        assert_refused(refused, "cuda:0 is in use by another gateway", f"pid {old.pid}", "--device")
        with gateway(tmp_path, runtime=old.runtime, devices="cpu"):
            pass
        with successor(old, tmp_path, devices="cuda:0,cuda:1") as new:
            assert old.process.wait(20) == 0
            for device in ("cuda:0", "cuda:1"):
                assert_refused(serve(old.runtime, *models, devices=device), f"{device} is in use", f"pid {new.pid}")
            new.process.kill()
            new.process.wait()
        with gateway(tmp_path, runtime=old.runtime, devices="cuda:1,cuda:0") as after:
            assert after.predict(png(1)).status == 200


def test_an_admin_socket_has_one_gateway_and_one_left_by_a_dead_one_is_taken(tmp_path, runtime):
    write_model(tmp_path)
    path = runtime / "a.sock"
    with gateway(tmp_path, runtime=runtime, admin_socket=path) as first:
        assert path.stat().st_mode & 0o777 == 0o600
        done = serve(runtime, "--models", str(tmp_path), "--port", "0", admin_socket=path)
        assert_refused(done, f"pid {first.pid}", "admin_socket")
        first.stop(signal.SIGKILL)
        assert path.is_socket()
        with gateway(tmp_path, runtime=runtime, admin_socket=path, arguments=("--port", str(first.port))) as second:
            assert second.stop() == 0
        assert not path.exists()


def test_without_a_folder_for_sockets_it_serves(tmp_path, runtime):
    write_model(tmp_path)
    with gateway(tmp_path, environ={"XDG_RUNTIME_DIR": str(runtime / "missing")}, devices="cuda:0") as running:
        assert running.predict(png(1)).status == 200
        assert running.events("no_runtime_folder")


# -- systemd ---------------------------------------------------------------------------------------------------------

PASS = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])"""


def test_a_socket_passed_by_systemd_is_served_and_outlives_the_gateway(tmp_path, runtime):
    write_model(tmp_path)
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(runtime / "notify"))
    told.settimeout(20)
    with told, socket.create_server(("127.0.0.1", 0)) as passed:
        options = {
            "prefix": (sys.executable, "-c", PASS, str(passed.fileno())),
            "pass_fds": (passed.fileno(),),
            "environ": {"NOTIFY_SOCKET": str(runtime / "notify")},
        }
        with gateway(tmp_path, **options) as first:
            assert first.port == passed.getsockname()[1]
            assert told.recv(100) == b"READY=1"
            assert first.predict(png(1)).top == digest(pixels(1))
            assert first.stop() == 0
            assert told.recv(100) == b"STOPPING=1"
        # Between two lives the kernel keeps who comes.
        with first.begin(png(2)) as waiting, gateway(tmp_path, ready=False, **options):
            assert waiting.read_answer().top == digest(pixels(2))


def test_a_descriptor_that_is_no_listener_is_refused(tmp_path, runtime):
    write_model(tmp_path)
    with socket.socket() as deaf:
        command = [sys.executable, "-c", PASS, str(deaf.fileno()), sys.executable, "-m", "gateway", "serve"]
        command += ["--models", str(tmp_path)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment(runtime),
            pass_fds=(deaf.fileno(),),
        )
    assert_refused(done, "LISTEN_FDS", "no listening TCP socket")
