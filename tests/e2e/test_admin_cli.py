"""An operator's session with a real gateway: the commands as they are typed, and curl on the admin socket."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.clients import digest_of
from tests.support.gateways import (
    ROOT,
    assert_problem,
    digest,
    environment,
    gateway,
    pixels,
    png,
    successor,
    wait_until,
    write_model,
)

pytestmark = pytest.mark.slow

TOKEN = "psa_the-token-of-the-session"


def admin_socket(running) -> Path:
    return running.runtime / "penstock" / f"admin-{running.port}.sock"


def type_in(running, *arguments: str, status: int = 0) -> str:
    """Run a command as the gateway's user would; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        cwd=ROOT,
        env=environment(running.runtime, port=running.port) | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def curl(running, method: str, path: str, document: object = None, *more: str) -> tuple[int, dict]:
    """Ask the admin socket; (status, document)."""
    body = [] if document is None else ["--json", json.dumps(document)]
    done = subprocess.run(
        [
            *("curl", "-sS", "-w", "\n%{http_code}", "--unix-socket", str(admin_socket(running))),
            *body,
            *more,
            *("-X", method, f"http://localhost{path}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    document, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(document)


@pytest.fixture
def root(tmp_path):
    """A repository in which `m` has one version."""
    folder = tmp_path / "models"
    write_model(folder, "m", 1)
    return folder


def test_a_session(root):
    with gateway(root) as running:
        assert "m/1" in type_in(running, "status")
        write_model(root, "m", 2)
        assert "loaded" in type_in(running, "load", "m", "--version", "2")
        assert running.predict(png(1), "m/2").top == digest(pixels(1))

        type_in(running, "set", "m", "--default", "1", "--alias", "stable=1")
        assert running.predict(png(2), "m").document["version"] == 1
        assert running.predict(png(2), "m/stable").document["version"] == 1
        type_in(running, "set", "m", "--clear", "default", "--weight", "2=1", "--weight", "1=0")
        assert running.predict(png(2), "m").document["version"] == 2

        before = running.child("worker")
        assert "gone" in type_in(running, "reload", "m")
        assert running.child("worker") != before
        write_model(root, "m", 3)
        type_in(running, "load", "m", "--version", "3", "--default")
        assert running.predict(png(3), "m").document["version"] == 2, "weights stand over the default"
        type_in(running, "set", "m", "--clear", "weights")
        assert running.predict(png(3), "m").document["version"] == 3
        type_in(running, "unload", "m", "--version", "3")
        type_in(running, "unload", "m", "--version", "2")
        assert_problem(running.predict(png(3), "m/2"), 404, "unknown_model")
        assert running.predict(png(3), "m").document["version"] == 1

        document = json.loads(type_in(running, "status", "--json"))
        assert (document["pid"], document["status"]) == (running.pid, "ready")
        (model,) = document["models"]
        assert {version["version"]: version["state"] for version in model["versions"]} == {
            1: "ready",
            2: "unloaded",
            3: "unloaded",
        }

        assert "the gateway is gone" in type_in(running, "drain")
        assert running.process.wait(30) == 0
        assert not admin_socket(running).exists()
        assert "no admin front" in type_in(running, "status", status=2)


def test_what_fails_is_told_and_changes_nothing(root):
    with gateway(root) as running:
        assert "unknown_model" in type_in(running, "load", "nobody", status=2)
        assert "bad_request" in type_in(running, "load", "../m", status=2)
        assert "unknown_model" in type_in(running, "load", "m", "--version", "9", status=2)
        folder = write_model(root, "m", 2)
        (folder / "model.toml").write_text("this is no contract")
        assert "failed" in type_in(running, "load", "m", "--version", "2", status=1)
        assert running.predict(png(1), "m").document["version"] == 1
        (model,) = json.loads(type_in(running, "status", "--json"))["models"]
        assert model["default_version"] == 1


def test_a_session_with_curl(root):
    with gateway(root) as running:
        write_model(root, "m", 2)
        status, operation = curl(running, "POST", "/admin/models/m/versions", {"version": 2})
        assert status == 202
        status, ended = curl(running, "GET", f"/admin/operations/{operation['id']}?wait=30")
        assert (status, ended["state"]) == (200, "succeeded")
        status, ended = curl(
            running, "PUT", "/admin/models/m?wait=30", {"versions": [1, 2], "default": 1, "aliases": {"new": 2}}
        )
        assert (status, ended["state"]) == (200, "succeeded")
        assert running.predict(png(1), "m").document["version"] == 1
        assert running.predict(png(1), "m/new").document["version"] == 2
        assert curl(running, "GET", "/admin/models/m")[1]["want"]["aliases"] == {"new": 2}

        (worker,) = curl(running, "GET", "/admin/workers")[1]["workers"]
        assert worker["pid"] == running.child("worker")
        status, ended = curl(running, "POST", f"/admin/workers/{worker['index']}/restart?wait=30", {})
        assert (status, ended["state"]) == (200, "succeeded")
        assert running.child("worker") != worker["pid"]

        status, problem = curl(running, "PUT", "/admin/models/m", {"defualt": 1})
        assert (status, problem["code"]) == (400, "bad_request")
        assert "'default'" in problem["detail"]
        status, problem = curl(running, "GET", "/admin/status", None, "-H", "Origin: http://localhost")
        assert (status, problem["code"]) == (403, "forbidden")

        write_model(root, "n")
        status, _ = curl(running, "POST", "/admin/evaluate?wait=30", {})
        assert status == 200
        assert running.predict(png(2), "n").top == digest(pixels(2))
        status, _ = curl(running, "DELETE", "/admin/models/n?wait=30")
        assert status == 200
        assert_problem(running.predict(png(2), "n"), 404, "unknown_model")
        assert curl(running, "POST", "/admin/drain", {}) == (202, {"status": "draining"})
        assert running.process.wait(30) == 0


def listeners(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.update(re.findall(r"socket:\[(\d+)\]", link.readlink().name))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def test_by_default_it_is_a_private_socket_and_nothing_else(root):
    with gateway(root) as running:
        path = admin_socket(running)
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
        assert listeners(running.pid) == {running.port}
        for path in ("/admin", "/admin/status", "/admin/models/m"):
            for method in ("GET", "POST", "PUT", "DELETE"):
                assert_problem(running.ask(method, path), 404, "not_found")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return bound.getsockname()[1]


def test_a_port_with_a_token(root, tmp_path):
    port = free_port()
    file = tmp_path / "token"
    file.write_text(TOKEN)
    settings = {"admin_socket": "off", "admin_port": port, "admin_token_sha256": digest_of(TOKEN)}
    with gateway(root, **settings) as running:
        assert not admin_socket(running).exists()
        assert listeners(running.pid) == {running.port, port}
        url = f"http://127.0.0.1:{port}"
        assert "m/1" in type_in(running, "status", "--url", url, "--token-file", file)
        assert "succeeded" in type_in(running, "reload", "m", "--url", url, "--token-file", file)
        file.write_text(TOKEN + "x")
        assert "unauthorized" in type_in(running, "status", "--url", url, "--token-file", file, status=2)
        with successor(running, root, **settings) as second:
            file.write_text(TOKEN)
            document = json.loads(type_in(running, "status", "--json", "--url", url, "--token-file", file))
            assert document["pid"] == second.pid


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"admin_port": 9}, "admin_token_sha256"),
        ({"admin_token_sha256": digest_of(TOKEN)}, "admin_port"),
        ({"admin_port": 9, "admin_token_sha256": "abc"}, "64 hexadecimal digits"),
        ({"admin_socket": "/nowhere/at/all/admin.sock"}, "admin_socket"),
        ({"admin_socket": "/" + "a" * 110}, "107 bytes"),
    ],
)
def test_settings_that_do_not_fit_are_said_before_anything_starts(root, tmp_path, settings, said):
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--models", str(root), "--port", "0"],
        cwd=ROOT,
        env=environment(tmp_path, **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_two_gateways_do_not_share_a_socket(root, tmp_path):
    with gateway(root) as running:
        path = admin_socket(running)
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "serve", "--models", str(root), "--port", "0"],
            cwd=ROOT,
            env=environment(running.runtime, admin_socket=path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert f"pid {running.pid}" in done.stderr
        assert json.loads(type_in(running, "status", "--json"))["pid"] == running.pid
        # What a killed one leaves behind is in nobody's way.
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        assert path.exists()
        with gateway(root, runtime=running.runtime, admin_socket=path) as second:
            document = json.loads(type_in(second, "status", "--json", "--socket", path))
            assert document["pid"] == second.pid


def test_a_successor_takes_the_socket_over(root):
    with gateway(root) as running, successor(running, root) as second:
        assert json.loads(type_in(second, "status", "--json"))["pid"] == second.pid
        assert running.process.wait(30) == 0
        assert json.loads(type_in(second, "status", "--json"))["pid"] == second.pid
        assert stat.S_IMODE(admin_socket(second).lstat().st_mode) == 0o600


def test_who_waits_while_the_gateway_goes_does_not_hold_it_up(root):
    write_model(root, "long", fake={"base_ms": 200.0}, batching={"sizes": [1, 2, 4, 8, 16, 32]})
    with (
        gateway(root) as running,
        subprocess.Popen(
            [
                *("curl", "-sS", "--unix-socket", str(admin_socket(running))),
                *("-X", "POST", "http://localhost/admin/models/long/reload?wait=60"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as waiting,
    ):
        wait_until(lambda: curl(running, "GET", "/admin/status")[1]["operations"], "the reload began")
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0
        waiting.wait(30)


def test_the_commands_of_the_readme(root, tmp_path):
    text = (ROOT / "README.md").read_text()
    (block,) = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "penstock drain" in block]
    commands = [line.partition("#")[0].split() for line in block.splitlines()]
    assert len(commands) >= 6
    (tmp_path / "models" / "m").rename(tmp_path / "models" / "flowers")
    with gateway(root) as running:
        write_model(root, "flowers", 2)
        for program, *arguments in commands:
            assert program == "penstock"
            type_in(running, *arguments)
        assert running.process.wait(30) == 0
