"""What the admin front refuses: names, bodies and queries that are none, and more than its bounds allow."""

from __future__ import annotations

import pytest

from gateway.admin import documents, front
from tests.support.admin import GOOD, HOST, ODD_PATHS, AdminConnection
from tests.support.gateways import assert_problem, wait_until

TRAVERSALS = (
    "..", ".", "...", ".hidden", "%2e%2e", "%2e", "..%2f..%2fetc", "..%5c..%5cetc", "..\\..\\etc", "m%00", "m%0a",
    "%c0%ae%c0%ae", "%ef%bc%8f", "\u00b7\u00b7", "m%20", "m;x", "m:1", "~root", "-rf", "_m", "a" * 65, "a" * 4000, "m%",
    "$HOME", "{name}", "*", "'", '"', "m@1", "m+1", "%252e%252e",
)  # fmt: skip


CHUNKED = (
    b"PUT /admin/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


# -- paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in ODD_PATHS if path.startswith("/") and "?" not in path])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_is_no_path_is_not_found(admin, method, path):
    assert admin.ask(method, path).status in {400, 404, 405}
    assert not admin.changes.calls


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/models/{}"), ("PUT", "/admin/models/{}"), ("DELETE", "/admin/models/{}"),
        ("POST", "/admin/models/{}/versions"), ("POST", "/admin/models/{}/reload"),
    ],
)  # fmt: skip
def test_what_is_no_models_name_goes_no_further(admin, method, path, name):
    answer = admin.ask(method, path.format(name), {} if method != "GET" else None)
    assert answer.status in {400, 404}, answer
    assert not admin.changes.calls


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_name_with_a_slash_is_another_path(admin, method):
    for path in ("/admin/models/a/b", "/admin/models//etc/passwd", "/admin/models/m/../n", "/admin/models/"):
        assert admin.ask(method, path).status in {400, 404, 405}
    assert not admin.changes.calls


@pytest.mark.parametrize("index", ["-1", "x", "01", "1e1", "9" * 30, "%d9%a1"])
def test_what_is_no_index_of_a_worker(admin, index):
    assert_problem(admin.ask("POST", f"/admin/workers/{index}/restart"), 400, "bad_request")


def test_a_worker_that_is_not_there(admin):
    assert_problem(admin.ask("POST", "/admin/workers/7/restart"), 404, "not_found")


@pytest.mark.parametrize("number", ["nobody", "0123456789abcdef"])
def test_an_operation_that_is_not_there(admin, number):
    assert_problem(admin.ask("GET", f"/admin/operations/{number}"), 404, "not_found")


# -- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"default": 1, "alias": {}}, "aliases"),
        ({"version": [1]}, "versions"),
        ({"shadow": {"version": 1, "shares": 1}}, "share"),
        ({"zzz": 1}, "known keys"),
        ({"versions": "1"}, "versions"),
        ({"versions": [0]}, "versions"),
        ({"versions": [1.5]}, "versions"),
        ({"versions": [True]}, "versions"),
        ({"versions": [10**9]}, "versions"),
        ({"versions": [1, 1]}, "twice"),
        ({"versions": list(range(1, 300))}, "299"),
        ({"aliases": {f"a{number}": 1 for number in range(300)}}, "300"),
        ({"default": "1"}, "default"),
        ({"default": -1}, "default"),
        ({"versions": [1], "default": 2}, "default"),
        ({"versions": [1], "aliases": {"new": 2}}, "aliases names version 2"),
        ({"versions": [1], "weights": {"2": 1}}, "weights names version 2"),
        ({"versions": [1], "shadow": {"version": 2}}, "shadow names version 2"),
        ({"default": 1, "shadow": {"version": 1}}, "shadow"),
        ({"aliases": {"1": 1}}, "alias"),
        ({"aliases": {"../x": 1}}, "alias"),
        ({"aliases": {"": 1}}, "alias"),
        ({"weights": {"x": 1}}, "int"),
        ({"weights": {"1": -1}}, "weights"),
        ({"weights": {"1": 0}}, "weights"),
        ({"weights": {"1": "1"}}, "weights"),
        ({"shadow": {"version": 1, "share": 1.1}}, "shadow"),
        ({"shadow": {}}, "shadow"),
        ({"shadow": 1}, "shadow"),
        ([], "object"),
        (b"null", "object"),
        (b"{", "JSON"),
        (b"{} {}", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"weights": {"1": NaN}}', "JSON"),
        (b'{"weights": {"1": 1e999}}', ""),
        (b"[" * 60_000, "JSON"),
        (b'{"shadow":' * 6_000, "JSON"),
    ],
)
def test_a_want_that_does_not_fit(admin, body, said):
    problem = assert_problem(admin.ask("PUT", "/admin/models/m", body), 400, "bad_request")
    assert said in problem["detail"]
    assert not admin.changes.calls


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/admin/models/m/versions", {"versions": 1}, "'version'"),
        ("/admin/models/m/versions", {"version": "1"}, "version"),
        ("/admin/models/m/versions", {"version": 0}, "version"),
        ("/admin/models/m/versions", {"default": True}, "version"),
        ("/admin/models/m/versions", {"version": 1, "default": "yes"}, "default"),
        ("/admin/models/m/reload", {"version": -1}, "version"),
        ("/admin/models/m/reload", {"default": True}, "known keys"),
        ("/admin/evaluate", {"x": 1}, "unknown key"),
        ("/admin/drain", {"now": True}, "unknown key"),
        ("/admin/workers/0/restart", [1], "object"),
    ],
)
def test_a_body_that_does_not_fit(admin, path, body, said):
    problem = assert_problem(admin.ask("POST", path, body), 400, "bad_request")
    assert said in problem["detail"]
    assert not admin.changes.calls
    assert not admin.changes.draining


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("wait=x", "wait"), ("wait=-1", "wait"), ("wait=61", "wait"), ("wait=nan", "wait"), ("wait=inf", "wait"),
        ("wait=", "wait"), ("wait=1&wait=2", "twice"), ("wiat=1", "'wait'"), ("version=1", "wait"),
        ("wait", "name=value"), ("&", "name=value"), ("wait=%ff", "name=value"), ("a=1&" * 20, "name=value"),
        ("zzz=1", "wait"),
    ],
)  # fmt: skip
def test_a_query_that_does_not_fit(admin, query, said):
    problem = assert_problem(admin.ask("POST", f"/admin/models/m/reload?{query}"), 400, "bad_request")
    assert said in problem["detail"]
    assert not admin.changes.calls


@pytest.mark.parametrize("version", ["0", "01", "-1", "x", "", "1.0", "9" * 20, "%31x"])
def test_a_version_that_is_none(admin, version):
    assert_problem(admin.ask("DELETE", f"/admin/models/m?version={version}"), 400, "bad_request")
    assert not admin.changes.calls


def test_a_page_takes_no_parameters(admin):
    assert "takes none" in assert_problem(admin.ask("GET", "/admin/status?x=1"), 400, "bad_request")["detail"]


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/admin/models/m"), ("GET", "/admin/models/m"), ("HEAD", "/admin/status")]
)
def test_a_body_where_none_is_read_is_refused(admin, method, path):
    assert admin.ask(method, path, {"version": 1}).status == 400
    assert not admin.changes.calls


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_said_to_be_json_is_not_read(admin, kind):
    answer = admin.ask("PUT", "/admin/models/m", {}, ("Content-Type", kind))
    assert_problem(answer, 415, "unsupported_media_type")


def test_a_body_is_never_decompressed(admin):
    answer = admin.ask("PUT", "/admin/models/m", {}, ("Content-Encoding", "gzip"))
    assert_problem(answer, 415, "unsupported_media_type")


def test_a_body_may_say_its_charset(admin):
    assert admin.ask("PUT", "/admin/models/m", {}, ("Content-Type", "Application/JSON; charset=utf-8")).status == 200


def test_a_body_that_is_announced_too_large_is_not_waited_for(admin):
    with AdminConnection(admin.path) as connection:
        connection.send(CHUNKED.replace(b"Transfer-Encoding: chunked", b"Content-Length: 70000"))
        assert_problem(connection.read_answer(), 413, "payload_too_large")


def test_a_body_has_a_bound(admin):
    whole = b'{"versions": [1]' + b" " * documents.BODY_SIZE_MAX + b"}"
    assert_problem(admin.ask("PUT", "/admin/models/m", whole), 413, "payload_too_large")
    fits = whole[: documents.BODY_SIZE_MAX - 1].replace(b"[1]", b"[1]", 1) + b"}"
    assert admin.ask("PUT", "/admin/models/m", fits).status == 200


def chunked(admin, *pieces: bytes):
    with AdminConnection(admin.path) as connection:
        for piece in pieces:
            connection.send(piece)
        return connection.read_answer()


def test_a_body_in_chunks_is_read_and_bounded(admin):
    assert chunked(admin, CHUNKED, b"2\r\n{}\r\n0\r\n\r\n").status == 200
    assert_problem(chunked(admin, CHUNKED, *[b"8000\r\n" + b" " * 0x8000 + b"\r\n"] * 3), 413, "payload_too_large")


def test_a_body_that_is_no_http(admin):
    assert chunked(admin, CHUNKED + b"zz\r\n{}\r\n").status == 400


def test_a_body_that_does_not_come(admin):
    with AdminConnection(admin.path) as connection:
        connection.send(
            b"PUT /admin/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{"
        )
        assert_problem(connection.read_answer(), 408, "body_timeout")


def test_a_client_that_waits_for_leave_to_send_gets_it(admin):
    with AdminConnection(admin.path) as connection:
        connection.send(
            b"PUT /admin/models/m HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        connection.send(b"{}")
        assert connection.read_answer().status == 200


# -- bounds --------------------------------------------------------------------------------------------------------


def test_no_more_requests_at_once_than_are_allowed(admin):
    admin.changes.outcome = None
    begun = admin.ask("POST", "/admin/evaluate").headers["location"]
    waiting = [AdminConnection(admin.path) for _ in range(front.REQUESTS_MAX)]
    for connection in waiting:
        connection.send(f"GET {begun}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = wait_until(
        lambda: found if (found := admin.ask("GET", "/admin/status")).status == 429 else None, "it is full"
    )
    assert_problem(answer, 429, "rate_limited", retry=True)
    assert admin.ask_port("GET", "/admin/status", HOST, GOOD).status == 429, "one bound for all listeners"
    assert admin.ask_port("GET", "/admin/status", HOST).status == 401, "who may not ask does not learn of it"
    admin.changes.outcome = "succeeded"
    admin.call(admin.changes.end, next(iter(admin.changes.operations)))
    for connection in waiting:
        with connection:
            assert connection.read_answer().document["state"] == "succeeded"
    assert admin.ask("GET", "/admin/status").status == 200


def test_clients_that_leave_make_room(admin):
    admin.changes.outcome = None
    begun = admin.ask("POST", "/admin/evaluate").headers["location"]
    waiting = [AdminConnection(admin.path) for _ in range(front.REQUESTS_MAX)]
    for connection in waiting:
        connection.send(f"GET {begun}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    wait_until(lambda: admin.ask("GET", "/admin/status").status == 429, "it is full")
    for connection in waiting:
        connection.socket.close()
    wait_until(lambda: admin.ask("GET", "/admin/status").status == 200, "there is room again")


def test_no_more_connections_than_are_allowed(admin):
    with AdminConnection(admin.path) as first:
        assert first.ask("GET", "/admin/status", b"", HOST).status == 200
        idle = [AdminConnection(admin.path) for _ in range(front.CONNECTIONS_MAX)]
        assert_problem(idle[-1].read_answer(), 503, "overloaded", retry=True)
        assert first.ask("GET", "/admin/status", b"", HOST).status == 200
        for connection in idle:
            connection.socket.close()
