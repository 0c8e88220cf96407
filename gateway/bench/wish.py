"""What a user asked `penstock bench` for, checked. Says nothing of how it is done."""

from __future__ import annotations

import enum
import math
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from pathlib import Path

SECONDS_MAX = 24 * 3600.0
RATE_MAX = 1_000_000.0
CONNECTIONS_MAX = 10_000
IMAGES_MAX = 1024
"""Images in one request."""

SIDE_MAX = 8192
"""Pixels of a made-up image, each way."""

BOUND_MS_MAX = 600_000.0


class Load(enum.Enum):
    """Who sends when."""

    CLOSED = "closed"
    POISSON = "poisson"
    BURSTS = "bursts"
    TRACE = "trace"
    SINGLE_STREAM = "single-stream"
    MULTI_STREAM = "multi-stream"
    SERVER = "server"
    OFFLINE = "offline"


class Form(enum.Enum):
    """How images lie in a body."""

    RAW = "raw"
    JSON = "json"
    MSGPACK = "msgpack"
    MULTIPART = "multipart"
    TENSOR = "tensor"


SCENARIOS = frozenset({Load.SINGLE_STREAM, Load.MULTI_STREAM, Load.SERVER, Load.OFFLINE})
"""The loads that MLPerf's inference rules know."""

AT_A_RATE = frozenset({Load.POISSON, Load.BURSTS, Load.SERVER})
"""The loads that need a rate, or find one."""


ONE_AT_A_TIME = frozenset({Load.SINGLE_STREAM, Load.MULTI_STREAM})
"""The loads of one connection."""

CONNECTIONS_CLOSED, CONNECTIONS_OPEN = 32, 1024
"""How many there are by default: always as many, and at most."""

SECONDS = 10.0
"""How long a run takes by default; a scenario takes what its rules say."""


class Address(NamedTuple):
    """Where requests go: `path` has its query, and is "" where the user named a server only."""

    host: str
    port: int
    path: str

    @property
    def base(self) -> str:
        """The server, as a URL without a path."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """The options, one field each; `None` where there is a default that depends on others."""

    url: str
    model: str | None = None
    load: Load = Load.CLOSED
    connections: int | None = None
    rate: float | None = None
    burst_size: int = 16
    trace: Any = None
    """Path of a recorded trace."""
    speed: float = 1.0
    """A trace is replayed this many times as fast."""
    seconds: float | None = None
    warmup_s: float = 2.0
    form: Form | None = None
    images: tuple[Any, ...] = ()
    """Paths of files and folders."""
    size: str = "500x375"
    """Of a made-up image."""
    images_per_request: int | None = None
    body: Any = None
    """Path of a file that is sent as it is."""
    content_type: str | None = None
    headers: tuple[str, ...] = ()
    expect: tuple[str, ...] = ()
    bound_ms: float | None = None
    percentile: float = 99.0
    search: bool = False
    timeout_s: float = 10.0
    seed: int = 1
    pids: tuple[int, ...] = ()


def check(wish: Wish) -> None:
    """Raise InvalidSettings, in words, for what does not go together or is out of its bounds."""
    if wish.connections is not None:
        _between("--connections", wish.connections, 1, CONNECTIONS_MAX)
    _between("--burst-size", wish.burst_size, 1, 100_000)
    _over_zero("--speed", wish.speed, 1e6)
    _over_zero("--timeout", wish.timeout_s, 3600.0)
    _over_zero("--percentile", wish.percentile, 99.999)
    if not 0 <= wish.warmup_s <= SECONDS_MAX:
        raise InvalidSettings(f"--warmup is {wish.warmup_s:g}; it must be from 0 to {SECONDS_MAX:g} seconds")
    for name, value, largest in (
        ("--seconds", wish.seconds, SECONDS_MAX),
        ("--rate", wish.rate, RATE_MAX),
        ("--bound-ms", wish.bound_ms, BOUND_MS_MAX),
    ):
        if value is not None:
            _over_zero(name, value, largest)
    if wish.images_per_request is not None:
        _between("--images-per-request", wish.images_per_request, 1, IMAGES_MAX)
    made_up_size(wish.size)
    _check_load(wish)
    _check_body(wish)
    for header in wish.headers:
        _check_header(header)


def _check_load(wish: Wish) -> None:
    """The options that belong to a kind of load."""
    name = f"--load {wish.load.value}"
    if wish.search and wish.load not in {Load.POISSON, Load.BURSTS, Load.SERVER}:
        raise InvalidSettings(f"--search looks for a rate, and {name} has none; use --load poisson, bursts or server")
    if wish.search and wish.rate is not None:
        raise InvalidSettings("--search finds the rate; leave --rate away")
    if wish.load in AT_A_RATE and wish.rate is None and not wish.search:
        raise InvalidSettings(f"{name} needs --rate, in requests a second, or --search to find the largest")
    if wish.load not in AT_A_RATE and wish.rate is not None:
        raise InvalidSettings(f"--rate goes with --load poisson, bursts or server, not with {name}")
    if wish.bound_ms is None and (wish.search or wish.load is Load.SERVER):
        raise InvalidSettings(f"{'--search' if wish.search else name} needs --bound-ms, what a request may take")
    if (wish.trace is not None) != (wish.load is Load.TRACE):
        raise InvalidSettings("--load trace needs --trace FILE, and --trace goes with it only")


def _check_body(wish: Wish) -> None:
    """The options that say what is sent."""
    if wish.body is not None:
        if any(other is not None for other in (wish.form, wish.images or None, wish.model)):
            raise InvalidSettings("--body is sent as it is; leave --form, --images and --model away")
        if wish.content_type is None:
            raise InvalidSettings("--body needs --content-type")
    elif wish.content_type is not None:
        raise InvalidSettings("--content-type goes with --body; a --form brings its own")
    if wish.form is Form.RAW and (wish.images_per_request or 1) > 1:
        raise InvalidSettings("--form raw holds one image; use multipart, json, msgpack or tensor for more")
    if wish.load is Load.MULTI_STREAM and wish.form is Form.RAW:
        raise InvalidSettings("--load multi-stream has 8 images in a request, and --form raw holds one")


def _check_header(header: str) -> None:
    name, colon, value = header.partition(":")
    sane = bool(colon) and header.isascii() and header.isprintable()
    if not sane or not name.strip() or " " in name or not value.strip():
        raise InvalidSettings(f"--header {header!r} is none; write 'Name: value'")
    if name.lower() in {"host", "content-length", "content-type", "connection", "transfer-encoding"}:
        raise InvalidSettings(f"--header {name}: that one is written by the load test itself")


def made_up_size(text: str) -> tuple[int, int]:
    """(width, height) of "WxH", in pixels. Raises InvalidSettings."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and all(1 <= int(side) <= SIDE_MAX for side in (width, height))):
        raise InvalidSettings(f"--size {text} is none; write WIDTHxHEIGHT, each from 1 to {SIDE_MAX}")
    return int(width), int(height)


def address(url: str) -> Address:
    """Host, port and path of an http:// URL. Raises InvalidSettings."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise InvalidSettings(f"{url} is not an address: {error}") from None
    if parts.scheme == "https":
        raise InvalidSettings(f"{url}: TLS is not spoken here; load the port behind what ends it")
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidSettings(f"{url} is not an address; write http://HOST:PORT or http://HOST:PORT/PATH")
    if parts.username is not None:
        raise InvalidSettings(f"{parts.hostname}: no user in a URL; use --header 'Authorization: ...'")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if not (path.isascii() and path.isprintable() and " " not in path):
        raise InvalidSettings(f"{url}: the path holds what has to be written as %XX")
    return Address(parts.hostname, port, "" if path in {"", "/"} else path)


def _between(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidSettings(f"{name} is {value}; it must be from {least} to {most}")


def _over_zero(name: str, value: float, most: float) -> None:
    if not (math.isfinite(value) and 0 < value <= most):
        raise InvalidSettings(f"{name} is {value:g}; it must be over 0, up to {most:g}")


def readable(option: str, path: Path) -> bytes:
    """A file's content. Raises InvalidSettings."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidSettings(f"{option} {path}: cannot be read ({error.strerror})") from None
