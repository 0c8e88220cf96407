"""Whose request it is: a key's, or that of the address it comes from. Decides nothing, keeps no state of clients.

An address is the peer's own, unless the peer is a trusted proxy: then what proxies wrote into one header is walked from
the right, and the first address that is not a trusted proxy's is the client's. What stands left of it is hearsay.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import TYPE_CHECKING

from gateway import errors
from gateway.clients import digest_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from aiohttp import web

    from gateway.config import Settings
    from gateway.scheduling.limiter import Client, Limiter

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LOCAL = "local"
"""The client on a Unix socket, which has no address."""

HOPS_MAX = 32
"""Proxies that a request may have come through; past it, the peer is the client."""

NODE_SIZE_MAX = 64
"""Characters of an address with its port; none is longer."""

NODES_KEPT = 4096
"""Hops that are remembered as they were read: reading one takes 2 µs."""

IPV6_CLIENT_BITS = 64
"""One household or one machine: who has one address of such a network has all of them. Source: RFC 6177."""

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.ASCII | re.IGNORECASE)
"""Source: RFC 6750, 2.1."""

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_PAIR = rf"{_WORD}=(?:{_WORD}|{_QUOTED})"
_ELEMENT = re.compile(rf"[ \t]*{_PAIR}(?:[ \t]*+;[ \t]*+(?:{_PAIR})?)*[ \t]*", re.ASCII)
_FOR = re.compile(rf"(?:^|;)[ \t]*for=({_WORD}|{_QUOTED})", re.ASCII | re.IGNORECASE)
"""Source: RFC 7239, 4."""

_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?", re.ASCII)
"""An address with or without a port. Source: RFC 7239, 6; X-Forwarded-For also has IPv6 without brackets."""


class Identity:
    """From a request to its client."""

    def __init__(self, settings: Settings, limiter: Limiter) -> None:
        self._limiter = limiter
        self._keys = {client.key_sha256: limiter.keyed(client.name) for client in settings.clients}
        self._keyed = frozenset(self._keys.values())
        self._keys_required = settings.keys_required
        self._trusted = [ipaddress.ip_network(network) for network in settings.trusted_proxies]
        self._header = settings.forwarded.title()
        self._hops = _forwarded_hops if settings.forwarded == "forwarded" else _x_forwarded_for_hops

    def client(self, request: web.BaseRequest, now_ns: int) -> Client:
        """The client of a request. Raises Unauthorized."""
        if self._keys:
            credentials = request.headers.get("Authorization")
            if credentials is not None:
                return self._by_key(request, credentials)
            if self._keys_required:
                raise errors.Unauthorized("predictions need a key here; send it as Authorization: Bearer KEY")
        limiter = self._limiter
        if not limiter.asks_for_addresses:
            return limiter.address("", now_ns)
        return limiter.address(self._address(request), now_ns)

    def name_of(self, request: web.BaseRequest, client: Client) -> Hashable:
        """What tells a request's client from others even where addresses have no limits: its key, or its address."""
        return client if client in self._keyed else self._address(request)

    def _by_key(self, request: web.BaseRequest, credentials: str) -> Client:
        client = self._keys.get(digest_of(bearer_of(request, credentials)))
        if client is None:
            raise errors.Unauthorized("this key is not known here; ask whoever runs the server for one")
        return client

    def _address(self, request: web.BaseRequest) -> str:
        """What the client is counted under. Never raises, whatever a header holds."""
        origin = origin_of(request)
        if origin.address is None or not self._is_trusted(origin.address):
            return origin.name
        return _name(self._walk(request, origin.address))

    def _walk(self, request: web.BaseRequest, peer: Address) -> Address:
        """The first address from the right that is no trusted proxy's; the leftmost when all are.

        The peer itself when there is none, or before one comes what is not an address: "unknown" and made-up names
        may be new ones each time, so nobody can be counted by them.
        """
        last = peer
        for hop, text in enumerate(self._hops(",".join(request.headers.getall(self._header, ())))):
            address = _read_node(text) if len(text) <= NODE_SIZE_MAX else None
            if address is None or hop >= HOPS_MAX:
                return peer
            if not self._is_trusted(address):
                return address
            last = address
        return last

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def bearer_of(request: web.BaseRequest, credentials: str) -> str:
    """What a request with these credentials names as its bearer's key. Raises Unauthorized."""
    found = _BEARER.fullmatch(credentials.strip())
    if found is None or len(request.headers.getall("Authorization")) > 1:
        raise errors.Unauthorized("the credentials are not of the form Authorization: Bearer KEY")
    return found[1]


class Origin:
    """Where a connection comes from: the peer's address, None for a Unix socket, and what it is counted under."""

    __slots__ = ("address", "name")

    def __init__(self, peername: object) -> None:
        """`peername` as transports say it: (host, port, ...), or a path."""
        host = peername[0] if isinstance(peername, tuple) and peername else ""
        self.address = _read_address(str(host))
        self.name = LOCAL if self.address is None else _name(self.address)


def origin_of(request: web.BaseRequest) -> Origin:
    """The origin of a request's connection, which is made out once."""
    connection = request.protocol
    origin: Origin | None = getattr(connection, "origin", None)
    if origin is None:
        transport = request.transport
        origin = Origin(None if transport is None else transport.get_extra_info("peername"))
        if transport is not None:
            connection.origin = origin  # type: ignore[attr-defined] # front.Connection has it
    return origin


def _name(address: Address) -> str:
    """What an address is counted under: itself, or its network where IPv6 gives everybody many."""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address), IPV6_CLIENT_BITS), strict=False))


def _read_address(text: str) -> Address | None:
    """An address, IPv4 where it is IPv4 in IPv6's clothes; None when it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@functools.lru_cache(maxsize=NODES_KEPT)
def _read_node(text: str) -> Address | None:
    """The address of one hop of at most NODE_SIZE_MAX characters, without its port and quotes."""
    found = _NODE.fullmatch(text)
    return _read_address(text if found is None else found[1] or found[2])


def _x_forwarded_for_hops(value: str) -> Iterator[str]:
    """The hops of X-Forwarded-For from the right."""
    for part in reversed(value.rsplit(",", HOPS_MAX)):
        if text := part.strip(" \t"):
            yield text


def _forwarded_hops(value: str) -> Iterator[str]:
    """`for` of each element of Forwarded from the right; "" where there is none, and it ends.

    The shortest tail that is an element is one: whatever a client wrote before, an open quote included, cannot reach
    into what a proxy added behind it.
    """
    end = len(value)
    while end > 0:
        start = end
        while True:
            start = value.rfind(",", 0, start)
            element = value[start + 1 : end]
            if not element.strip(" \t"):
                break
            if _ELEMENT.fullmatch(element):
                found = _FOR.search(element)
                yield _unquote(found[1]) if found else ""
                break
            if start < 0 or element.count(",") >= HOPS_MAX:
                yield ""
                return
        end = max(start, 0)


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
