"""Who may ask the admin front anything: whoever may open its socket, or has its token, and is no page in a browser.

The rules hold for every method and every path, known or not, before anything else is looked at. A browser sends what
any page tells it to, to any address that it can reach: it is told by `Origin` and `Sec-Fetch-Site`, which pages cannot
leave out, and by a `Host` that is a name of somebody else's (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from typing import TYPE_CHECKING

from gateway import errors
from gateway.clients import digest_of
from gateway.http.identity import bearer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{1,5})?", re.ASCII)
"""Source: RFC 9112, 3.2; RFC 3986, 3.2.2."""


class Guard:
    """The rules of one listener. `token_sha256`: "" where the socket's mode is the rule; `hosts`: its own names."""

    def __init__(self, token_sha256: str, hosts: Iterable[str] = ()) -> None:
        self._token_sha256 = token_sha256
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in hosts)}

    def check(self, request: web.BaseRequest) -> None:
        """Raises Unauthorized, BadRequest, Forbidden."""
        if self._token_sha256:
            self._check_token(request)
        if not request.raw_path.startswith("/"):
            raise errors.BadRequest("the request's target must be a path")
        site = request.headers.getall("Sec-Fetch-Site", ())
        if "Origin" in request.headers or any(value != "none" for value in site):
            raise errors.Forbidden("pages in a browser may not ask here; use the command line, or curl")
        self._check_host(request)

    def _check_token(self, request: web.BaseRequest) -> None:
        credentials = request.headers.get("Authorization")
        if credentials is None:
            raise errors.Unauthorized("the token is missing; send it as Authorization: Bearer TOKEN")
        # Equal digests are compared in constant time; that of a guess says nothing of the token's anyway.
        if not hmac.compare_digest(digest_of(bearer_of(request, credentials)), self._token_sha256):
            raise errors.Unauthorized("this is not the token; `penstock admin-token` makes one")

    def _check_host(self, request: web.BaseRequest) -> None:
        hosts = request.headers.getall("Host", ())
        found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None:
            raise errors.BadRequest("exactly one Host is needed, a name or an address, with or without a port")
        if found[1] is None and found[2].lower() in self._hosts:
            return
        try:
            # An address is where the connection really goes: only names can be made to lie.
            ipaddress.ip_address(found[1] or found[2])
        except ValueError:
            raise errors.Forbidden("this Host is none of ours; use localhost, an address, or the host's name") from None
