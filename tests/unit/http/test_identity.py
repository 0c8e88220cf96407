"""Whose a request is: keys, addresses, and what of a proxy's header is believed. No socket."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway import errors
from gateway.clients import KeyedClient, digest_of
from gateway.config import Settings
from gateway.http.identity import HOPS_MAX, Identity
from gateway.scheduling.limiter import Limiter, Rule

KEY = "psk_secret"
PROXY = "10.0.0.1"
HEADERS = {"forwarded": "Forwarded", "x-forwarded-for": "X-Forwarded-For"}


class Seen(Limiter):
    """A limiter that says which address it was asked for."""

    def address(self, address, now_ns):
        self.asked = address
        return super().address(address, now_ns)


def identity(**settings):
    made = Settings(client_rate=1.0, **settings)
    limiter = Seen(anonymous=Rule(1.0), keyed={client.name: Rule(5.0) for client in made.clients}, clients_max=10)
    return Identity(made, limiter), limiter


def request(peer=(PROXY, 1), *headers):
    transport = SimpleNamespace(get_extra_info=lambda name: {"peername": peer}[name])
    return SimpleNamespace(headers=CIMultiDict(headers), protocol=SimpleNamespace(), transport=transport)


def address(peer, *values, forwarded="", trusted=("10.0.0.0/8", "fd00::/8")):
    """What a request from `peer` is counted under, with one header line per value."""
    found, limiter = identity(trusted_proxies=trusted if forwarded else (), forwarded=forwarded)
    lines = [(HEADERS[forwarded], value) for value in values] if forwarded else [("X-Forwarded-For", v) for v in values]
    found.client(request(peer if isinstance(peer, tuple) else (peer, 1), *lines), 0)
    return limiter.asked


# -- keys ----------------------------------------------------------------------------------------------------------

CLIENT = KeyedClient(name="app", key_sha256=digest_of(KEY))


@pytest.mark.parametrize("credentials", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER   {KEY} "])
def test_a_known_key_is_its_client(credentials):
    found, limiter = identity(clients=(CLIENT,))
    assert found.client(request((PROXY, 1), ("Authorization", credentials)), 0) is limiter.keyed("app")


@pytest.mark.parametrize(
    "credentials",
    ["", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer{KEY}", f"Bearer {KEY} x", "Bearer ü", "Bearer a\x00"],
)
def test_a_malformed_credential_is_unauthorized(credentials):
    found, _ = identity(clients=(CLIENT,))
    with pytest.raises(errors.Unauthorized, match="Authorization: Bearer KEY"):
        found.client(request((PROXY, 1), ("Authorization", credentials)), 0)


def test_two_credentials_are_one_too_many():
    found, _ = identity(clients=(CLIENT,))
    with pytest.raises(errors.Unauthorized, match="form"):
        found.client(request((PROXY, 1), *[("Authorization", f"Bearer {KEY}")] * 2), 0)


def test_an_unknown_key_is_unauthorized_and_not_repeated():
    found, _ = identity(clients=(CLIENT,))
    with pytest.raises(errors.Unauthorized, match="not known") as caught:
        found.client(request((PROXY, 1), ("Authorization", "Bearer psk_guess")), 0)
    assert "guess" not in caught.value.detail


def test_without_a_key_it_is_the_address_unless_keys_are_required():
    found, limiter = identity(clients=(CLIENT,))
    found.client(request(("192.0.2.1", 1)), 0)
    assert limiter.asked == "192.0.2.1"
    found, _ = identity(clients=(CLIENT,), keys_required=True)
    with pytest.raises(errors.Unauthorized, match="need a key"):
        found.client(request(("192.0.2.1", 1)), 0)


def test_credentials_mean_nothing_where_there_are_no_keys():
    found, limiter = identity()
    found.client(request(("192.0.2.1", 1), ("Authorization", "Basic whatever")), 0)
    assert limiter.asked == "192.0.2.1"


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        (("192.0.2.1", 1234), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.1", 1, 0, 0), "192.0.2.1"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("", "local"),
        (b"", "local"),
        (None, "local"),
        ((), "local"),
    ],
)
def test_the_peer_is_the_client(peer, name):
    found, limiter = identity()
    found.client(request(peer), 0)
    assert limiter.asked == name


def test_no_transport_is_no_address():
    found, limiter = identity()
    gone = request()
    gone.transport = None
    found.client(gone, 0)
    assert limiter.asked == "local"
    assert not hasattr(gone.protocol, "origin")


def test_a_connection_s_address_is_made_out_once():
    found, limiter = identity()
    first = request(("192.0.2.1", 1))
    found.client(first, 0)
    first.transport = None
    found.client(first, 0)
    assert limiter.asked == "192.0.2.1"


def test_where_no_limit_asks_for_it_nobody_looks():
    limiter = Limiter()
    found = Identity(Settings(), limiter)
    assert found.client(SimpleNamespace(), 0) is limiter.address("", 0)


# -- proxies -------------------------------------------------------------------------------------------------------


def test_headers_are_believed_from_trusted_peers_only():
    assert address("192.0.2.9", "192.0.2.1", forwarded="x-forwarded-for") == "192.0.2.9"
    assert address(PROXY, "192.0.2.1") == PROXY, "and none where none was set"
    assert address(PROXY, forwarded="x-forwarded-for") == PROXY, "nor one that is not there"


@pytest.mark.parametrize("peer", [PROXY, f"::ffff:{PROXY}", "fd00::1"])
@pytest.mark.parametrize(
    ("values", "name"),
    [
        (("192.0.2.1",), "192.0.2.1"),
        (("6.6.6.6, 192.0.2.1",), "192.0.2.1"),
        (("6.6.6.6", "192.0.2.1 , 10.0.0.2,10.9.9.9"), "192.0.2.1"),
        (("6.6.6.6,192.0.2.1", "10.0.0.2"), "192.0.2.1"),
        (("2001:db8::1",), "2001:db8::/64"),
        (("[2001:db8::1]:443",), "2001:db8::/64"),
        (("192.0.2.1:8080",), "192.0.2.1"),
        (("::ffff:192.0.2.1",), "192.0.2.1"),
        (("192.0.2.1,,",), "192.0.2.1"),
        (("10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        (("x" * 5000 + ", 192.0.2.1",), "192.0.2.1"),
    ],
)
def test_x_forwarded_for_is_walked_from_the_right(peer, values, name):
    assert address(peer, *values, forwarded="x-forwarded-for") == name


@pytest.mark.parametrize(
    "value", ["", ",", "garbage", "unknown", "192.0.2.1, unknown", "192.0.2.1:x", "[192.0.2.1", "1.2.3"]
)
def test_garbage_is_the_proxy_s_own(value):
    assert address(PROXY, value, forwarded="x-forwarded-for") == PROXY


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (("for=192.0.2.1",), "192.0.2.1"),
        (("For=192.0.2.1;proto=https;by=10.0.0.1",), "192.0.2.1"),
        (('proto=http;FOR="192.0.2.1:47011"',), "192.0.2.1"),
        (('for="[2001:db8:cafe::17]:4711"',), "2001:db8:cafe::/64"),
        (('for="[2001:db8:cafe::17]"',), "2001:db8:cafe::/64"),
        (("for=6.6.6.6, for=192.0.2.1, for=10.1.1.1",), "192.0.2.1"),
        (("for=6.6.6.6", "for=192.0.2.1", "for=10.1.1.1"), "192.0.2.1"),
        (('for=192.0.2.1;x="a, b;c\\"d"',), "192.0.2.1"),
        (('for="192.0.2.1:_port"',), "192.0.2.1"),
        (('for=6.6.6.6;x="', "for=192.0.2.1"), "192.0.2.1"),
        (('for="', 'for="[2001:db8::1]";proto="https"'), "2001:db8::/64"),
        (("for=192.0.2.1 ; proto=https ;",), "192.0.2.1"),
        (("for=192.0.2.1, ,",), "192.0.2.1"),
        ((r'for="192.0.2\.1"',), "192.0.2.1"),
        (("for=10.0.0.5",), "10.0.0.5"),
    ],
)
def test_forwarded_is_walked_from_the_right(values, name):
    assert address(PROXY, *values, forwarded="forwarded") == name


@pytest.mark.parametrize(
    "value",
    [
        "",
        "192.0.2.1",
        "for=unknown",
        "for=_hidden",
        "for=192.0.2.1, for=_SEVKISEK",
        "proto=https",
        'for="unclosed',
        "for=2001:db8::1",
        "for=192.0.2.1, x",
        "xfor=192.0.2.1",
        'for="[192.0.2.1"',
        "," * 9000,
        "=," * 3000,
        '"' * 8000,
        "for=1.2.3.4;" + " ;\t" * 2000 + "x",
    ],
)
def test_what_forwarded_does_not_say_is_the_proxy_s_own(value):
    assert address(PROXY, value, forwarded="forwarded") == PROXY


@pytest.mark.parametrize(("header", "hop"), [("x-forwarded-for", "10.0.0.2"), ("forwarded", "for=10.0.0.2")])
def test_more_hops_than_anybody_has_are_not_followed(header, hop):
    mine = hop.replace("10.0.0.2", "192.0.2.1")
    assert address(PROXY, ",".join([mine, *[hop] * (HOPS_MAX - 1)]), forwarded=header) == "192.0.2.1"
    assert address(PROXY, ",".join([mine, *[hop] * HOPS_MAX]), forwarded=header) == PROXY


@pytest.mark.parametrize("header", list(HEADERS))
@settings(deadline=None)
@given(lines=st.lists(st.text('for="[];=,.:\\ \t_1a\xff\x00', max_size=60), max_size=4))
def test_whatever_a_client_writes_the_proxy_s_word_stands(header, lines):
    """Never an error; and what a client wrote does not reach into what the proxy added."""
    address(PROXY, *lines, forwarded=header)
    added = {"forwarded": 'for="[2001:db8::1]:1";proto="https"', "x-forwarded-for": "2001:db8::1"}[header]
    assert address(PROXY, *lines, added, forwarded=header) == "2001:db8::/64"
    appended = f"{lines[0]}, {added}" if lines else added
    assert address(PROXY, appended, forwarded=header) == "2001:db8::/64"
