"""Who may ask the admin front: over real sockets, every method of every path."""

from __future__ import annotations

import itertools
import socket

import pytest

from tests.support.admin import GOOD, HOST, METHODS, ODD_PATHS, PATHS, TOKEN, AdminConnection
from tests.support.gateways import assert_problem


@pytest.mark.parametrize("path", [*PATHS, *ODD_PATHS])
@pytest.mark.parametrize("method", METHODS)
def test_without_the_token_the_port_says_nothing_but_401(admin, method, path):
    answer = admin.ask_port(method, path, HOST)
    if (path, answer.status) == ("*", 400):
        return  # The parser knows it with OPTIONS only.
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert not admin.changes.calls
    assert not admin.changes.draining


@pytest.mark.parametrize(
    "value",
    [
        "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN,
        f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN.upper()}", "Bearer \x00", "Bearer \u00fc", f'Bearer "{TOKEN}"',
    ],
)  # fmt: skip
def test_a_wrong_token_is_none(admin, value):
    answer = admin.ask_port("GET", "/admin/status", HOST, ("Authorization", value))
    # The parser of headers refuses what is no header at all.
    assert answer.status == (400 if "\x00" in value else 401)


def test_two_tokens_are_none(admin):
    assert_problem(admin.ask_port("GET", "/admin/status", HOST, GOOD, GOOD), 401, "unauthorized")


def test_the_token_opens_the_port(admin):
    answer = admin.ask_port("GET", "/admin/status", HOST, ("authorization", f"bearer   {TOKEN}"))
    assert (answer.status, answer.document["status"]) == (200, "ready")


def test_the_socket_asks_for_no_token(admin):
    assert admin.ask("GET", "/admin/status").status == 200


PAGES = [
    (("Origin", "https://evil.example"),),
    (("Origin", "null"),),
    (("Origin", "http://localhost"),),
    (("Origin", ""),),
    (("Sec-Fetch-Site", "cross-site"),),
    (("Sec-Fetch-Site", "same-origin"),),
    (("Sec-Fetch-Site", "same-site"),),
    (("Sec-Fetch-Site", ""),),
    (("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")),
]


@pytest.mark.parametrize("fields", PAGES)
@pytest.mark.parametrize("by", ["socket", "port"])
def test_no_page_in_a_browser_may_ask(admin, by, fields):
    with AdminConnection(admin.path if by == "socket" else admin.port) as connection:
        for method, path in itertools.product(METHODS, (*PATHS, "/admin/nothing")):
            assert connection.ask(method, path, b"", HOST, GOOD, *fields).status == 403, (method, path)
    assert not admin.changes.calls
    assert not admin.changes.draining


def test_an_address_that_somebody_typed_is_no_page(admin):
    assert admin.ask("GET", "/admin/status", None, ("Sec-Fetch-Site", "none")).status == 200


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:9090", "127.0.0.1", "127.0.0.1:9090", "[::1]:9090", "10.1.2.3:80", socket.gethostname()],
)
def test_a_host_of_ours_is_taken(admin, host):
    assert admin.ask_port("GET", "/admin/status", ("Host", host), GOOD).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:9090", "localhost.", "0x7f.1"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_a_host_of_somebody_elses_is_refused(admin, host, method):
    assert_problem(admin.ask_port(method, "/admin/models/m", ("Host", host), GOOD), 403, "forbidden")
    with AdminConnection(admin.path) as connection:
        assert connection.ask(method, "/admin/models/m", b"", ("Host", host)).status == 403


@pytest.mark.parametrize(
    "fields",
    [(), (("Host", ""),), (("Host", "a b"),), (("Host", "localhost"), ("Host", "evil.example")), (("Host", "@"),)],
)
def test_no_host_or_two_are_no_request(admin, fields):
    assert admin.ask_port("GET", "/admin/status", *fields, GOOD).status == 400


def test_a_target_that_names_a_host_is_refused(admin):
    with AdminConnection(admin.path) as connection:
        answer = connection.ask("GET", "http://localhost/admin/status", b"", HOST)
    assert_problem(answer, 400, "bad_request")
