"""Where the commands look for a gateway, and what they say when there is none, or somebody else."""

from __future__ import annotations

import http.server
import threading

import pytest


def flat(result) -> str:
    return " ".join((result.stdout + result.stderr).split())


@pytest.mark.parametrize("command", ["load m", "unload m", "reload m", "set m --default 1", "drain", "status"])
def test_a_server_that_is_not_there_is_one_clear_line(type_in, tmp_path, command):
    found = type_in(*command.split(), "--socket", tmp_path / "nowhere.sock")
    assert found.exit_code == 2
    assert "no admin front at" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_the_socket_is_where_the_settings_of_the_environment_say(admin, type_in, tmp_path):
    assert type_in("status", PENSTOCK_ADMIN_SOCKET=str(admin.path)).exit_code == 0
    folder = tmp_path / "penstock"
    folder.mkdir(mode=0o700)
    (folder / "admin-9001.sock").symlink_to(admin.path)
    assert type_in("status", PENSTOCK_PORT="9001").exit_code == 0
    assert "admin-9002.sock" in type_in("status", PENSTOCK_PORT="9002").stderr


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PENSTOCK_ADMIN_SOCKET": "off"}, "--url"),
        ({"PENSTOCK_PROT": "1"}, "PENSTOCK_PORT"),
        ({"XDG_RUNTIME_DIR": "/nowhere/at/all"}, "--socket"),
    ],
)
def test_an_environment_that_says_nothing_useful_is_2(type_in, environ, said):
    found = type_in("status", **environ)
    assert (found.exit_code, said in flat(found)) == (2, True), flat(found)


def test_a_url_with_its_token(admin, type_in, token_file):
    url = f"http://127.0.0.1:{admin.port}/"
    assert type_in("reload", "m", "--url", url, "--token-file", token_file).exit_code == 0
    token_file.write_text("psa_wrong")
    found = type_in("reload", "m", "--url", url, "--token-file", token_file)
    assert (found.exit_code, "unauthorized" in flat(found)) == (2, True)


@pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"a\nb", b"\xff", b"\xc3\xbc", b"a\x00"])
def test_a_file_that_holds_no_token(type_in, token_file, content):
    token_file.write_bytes(content)
    found = type_in("status", "--url", "http://127.0.0.1:1", "--token-file", token_file)
    assert (found.exit_code, "holds no token" in flat(found)) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--url", "http://127.0.0.1:1"], "--token-file"),
        (["--token-file", "token"], "--url"),
        (["--url", "http://127.0.0.1:1", "--socket", "x", "--token-file", "token"], "no --socket"),
        (["--url", "http://127.0.0.1:1", "--token-file", "nowhere"], "No such file"),
        (["--url", "127.0.0.1:1", "--token-file", "token"], "http://HOST:PORT"),
        (["--url", "ftp://127.0.0.1:1", "--token-file", "token"], "http://HOST:PORT"),
        (["--url", "http://", "--token-file", "token"], "http://HOST:PORT"),
        (["--url", "http://h:99999", "--token-file", "token"], "not an address"),
        (["--url", "http://h:1/admin", "--token-file", "token"], "http://HOST:PORT"),
        (["--url", "http://127.0.0.1:1", "--token-file", "token"], "no admin front"),
    ],
)
def test_options_that_do_not_fit(type_in, token_file, monkeypatch, options, said):
    monkeypatch.chdir(token_file.parent)
    found = type_in("status", *options)
    assert (found.exit_code, said in flat(found)) == (2, True), flat(found)


class Stranger(http.server.BaseHTTPRequestHandler):
    """A server that is none of ours."""

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize("content", [b"<html>", b"[]", b"", b"[" * 100_000, b"\xff"])
def test_a_server_that_is_another(type_in, token_file, content, status):
    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        server.content, server.status = content, status
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        found = type_in("status", "--url", f"http://127.0.0.1:{server.server_port}", "--token-file", token_file)
        thread.join()
    assert (found.exit_code, "not Penstock" in flat(found)) == (2, True)
