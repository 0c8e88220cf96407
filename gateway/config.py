"""The settings: one frozen table, each field with its unit, bound and meaning. Parsed once, then passed in slices.

Flags stand over `PENSTOCK_*` in the environment, that over a TOML file, that over the defaults. A key that nobody knows
is an error that names the nearest one, wherever it stands. `docs/settings.md`, `--print-config` and the parser all read
the annotations of `Settings` (gateway.fields); there is no second list.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import NODEFAULT, Meta, Struct

from gateway import clients as keyed
from gateway.clients import RATE_MAX, KeyedClient
from gateway.errors import InvalidSettings
from gateway.fields import check, check_known, noted, rows, toml
from gateway.models.spec import DEVICE_PATTERN
from shm import failpoints

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE_SIZE_MAX = 1 << 20
"""Bytes of a settings file."""

PREFIX = "PENSTOCK_"

MIB = 1 << 20
GIB = 1 << 30

# Kubernetes puts these into every container beside a Service called penstock; they are nobody's settings.
_SERVICE_LINK = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")

_NO_SETTINGS = frozenset({failpoints.VARIABLE, failpoints.SEED_VARIABLE})
"""Read by every process of ours for itself, in tests."""

Device = Annotated[str, Meta(pattern=DEVICE_PATTERN)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. What a model may be asked for stands in its model.toml instead."""

    models: Annotated[str, noted("", "Model repository: MODEL/VERSION/model.toml.", min_length=1)] = "models"
    versions: Annotated[
        Literal["latest", "all"], noted("", "Serve the largest version of each model, or all of them.")
    ] = "latest"
    host: Annotated[
        str, noted("", "Address to listen on; 0.0.0.0 for every IPv4 interface.", min_length=1, max_length=255)
    ] = "127.0.0.1"
    port: Annotated[int, noted("", "Port to listen on; 0 takes any free one and logs it.", ge=0, le=65_535)] = 8080
    log_level: Annotated[Literal["debug", "info", "warning", "error"], noted("", "Lowest level that is logged.")] = (
        "info"
    )

    devices: Annotated[
        tuple[Device, ...],
        noted(
            "",
            "One worker process each: 'cpu', or a GPU or MIG slice by its place on the bus or its UUID.",
            bound="1 to 64 times 'cpu', 'cuda:INDEX', 'cuda:GPU-UUID' or 'cuda:MIG-UUID'",
            min_length=1,
            max_length=64,
        ),
    ] = ("cpu",)
    worker_threads: Annotated[
        int, noted("threads", "Threads of a worker's engine on the CPU; 0: one per core.", ge=0, le=1024)
    ] = 0
    engine_dir: Annotated[
        str,
        noted(
            "", "Folder of built TensorRT engines; '': penstock/engines in the user's cache folder.", max_length=4096
        ),
    ] = ""
    engines_size_max: Annotated[
        int, noted("bytes", "Built engines that are kept; those that were used longest ago go.", ge=GIB, le=1 << 50)
    ] = 32 * GIB
    engine_build_timeout_s: Annotated[
        float,
        noted("s", "Time that building an engine may take, on top of child_start_timeout_s.", gt=0, le=86_400),
    ] = 1800.0
    foreign_engines: Annotated[
        bool, noted("", "Run engines that were built elsewhere (model.plan): they are native code.")
    ] = False
    child_start_timeout_s: Annotated[
        float,
        noted("s", "Time a child has to be ready, with every model warm, else it is killed.", gt=0, le=3600),
    ] = 120.0
    restarts_max: Annotated[
        int,
        noted(
            "restarts",
            "Restarts of one worker within restarts_window_s; then it is out of service.",
            ge=1,
            le=1_000_000,
        ),
    ] = 5
    restarts_window_s: Annotated[float, noted("s", "See restarts_max.", gt=0, le=86_400)] = 60.0

    decoders: Annotated[
        int, noted("processes", "Decoder processes; 0: half of the cores, at least 2.", ge=0, le=256)
    ] = 0
    decoder_nice: Annotated[
        int, noted("", "Added niceness of decoders, so that they yield to the gateway and the workers.", ge=0, le=19)
    ] = 5
    decoder_memory_size_max: Annotated[
        int, noted("bytes", "Address space of one decoder.", ge=128 * MIB, le=64 * GIB)
    ] = GIB
    decode_cpu_ms_max: Annotated[
        int,
        noted(
            "ms", "CPU time for one image; past it the decoder is killed and the image is refused.", ge=10, le=60_000
        ),
    ] = 2000
    decode_frame_count_max: Annotated[
        int, noted("images", "Images handed to a decoder in one message.", ge=1, le=256)
    ] = 8

    body_size_max: Annotated[int, noted("bytes", "One request body.", ge=1024, le=GIB)] = 16 * MIB
    bodies_size_max: Annotated[int, noted("bytes", "All request bodies in memory together.", ge=MIB, le=64 * GIB)] = (
        256 * MIB
    )
    body_timeout_s: Annotated[float, noted("s", "Time a whole body has to arrive.", gt=0, le=600)] = 10.0
    body_rate_min: Annotated[
        int, noted("bytes/s", "Slowest a body may come, after the grace; 0: any rate.", ge=0, le=GIB)
    ] = 16 * 1024
    body_rate_grace_s: Annotated[float, noted("s", "Time before body_rate_min holds.", ge=0, le=60)] = 2.0
    header_timeout_s: Annotated[
        float, noted("s", "Time a connection may be idle, or take to send its headers.", gt=0, le=600)
    ] = 10.0
    header_line_size_max: Annotated[int, noted("bytes", "The request line, and each header.", ge=256, le=65_536)] = 8190
    header_count_max: Annotated[int, noted("headers", "Headers of one request.", ge=8, le=1024)] = 128
    lazy_wait_s: Annotated[
        float, noted("s", "Time a request waits, at most, for its lazy model to be loaded.", ge=0, le=600)
    ] = 10.0
    connections_max: Annotated[int, noted("connections", "Open connections.", ge=1, le=1_000_000)] = 2048
    drain_timeout_s: Annotated[
        float, noted("s", "Longest from SIGTERM until what is not answered is refused.", ge=0, le=3600)
    ] = 25.0
    stop_delay_s: Annotated[
        float,
        noted("s", "Time after SIGTERM that new connections are still served; a part of the former.", ge=0, le=3600),
    ] = 1.0

    admin_socket: Annotated[
        str,
        noted(
            "",
            "Unix socket of the admin front; '': admin-PORT.sock in the runtime folder; 'off': none.",
            bound="a path of at most 107 bytes, '' or 'off'",
            max_length=107,
        ),
    ] = ""
    admin_port: Annotated[
        int, noted("", "TCP port of the admin front; 0: none. Needs admin_token_sha256.", ge=0, le=65_535)
    ] = 0
    admin_host: Annotated[str, noted("", "Address that admin_port is on.", min_length=1, max_length=255)] = "127.0.0.1"
    admin_token_sha256: Annotated[
        str,
        noted(
            "",
            "SHA-256 of the token that admin_port asks for; `penstock admin-token` makes both.",
            bound="64 hexadecimal digits, small letters, or ''",
            pattern=r"^([0-9a-f]{64})?\Z",
        ),
    ] = ""
    overlap: Annotated[
        Literal["auto", "never"],
        noted(
            "",
            "Start a worker with other models beside the old one where memory allows ('auto'), or after it ('never').",
        ),
    ] = "auto"
    device_memory_size_max: Annotated[
        int, noted("bytes", "Memory that workers may take on one device; 0: as much as there is.", ge=0, le=1 << 50)
    ] = 0
    watch: Annotated[bool, noted("", "Follow changes in the repository.")] = False
    watch_interval_s: Annotated[
        float, noted("s", "How often the repository is looked at, with watch.", ge=0.05, le=3600)
    ] = 2.0
    state_dir: Annotated[
        str, noted("", "Folder for what outlives the gateway; '': the user's state folder.", max_length=4096)
    ] = ""

    clients: Annotated[
        tuple[KeyedClient, ...],
        noted(
            "",
            "Who is known by a key (`Authorization: Bearer KEY`), one table each; only in the file.",
            bound="tables, keys as below",
        ),
    ] = ()
    keys_required: Annotated[bool, noted("", "Answer 401 to predictions without a key.")] = False
    client_rate: Annotated[
        float, noted("images/s", "Images from one address, in the long run; 0: no limit.", ge=0, le=RATE_MAX)
    ] = 0.0
    client_burst: Annotated[
        int, noted("images", "Images from one address at once; 0: one second's worth.", ge=0, le=RATE_MAX)
    ] = 0
    client_batch_rate: Annotated[
        float,
        noted("images/s", "client_rate for the batch class, counted apart; 0: as client_rate.", ge=0, le=RATE_MAX),
    ] = 0.0
    client_batch_burst: Annotated[
        int,
        noted("images", "0: as client_burst, or one second's worth of client_batch_rate.", ge=0, le=RATE_MAX),
    ] = 0
    client_in_flight_max: Annotated[
        int, noted("images", "Images of one address not answered yet; 0: no limit.", ge=0, le=RATE_MAX)
    ] = 0
    clients_max: Annotated[
        int,
        noted("addresses", "Addresses that limits are kept for; more share what is left.", ge=1, le=10_000_000),
    ] = 65_536
    rate_max: Annotated[
        float, noted("images/s", "Images of all clients together; over it is 503; 0: no limit.", ge=0, le=RATE_MAX)
    ] = 0.0
    rate_burst_max: Annotated[
        int, noted("images", "Images of all clients at once; 0: one second's worth.", ge=0, le=RATE_MAX)
    ] = 0
    trusted_proxies: Annotated[
        tuple[str, ...],
        noted(
            "",
            "Networks whose word on where a request comes from is believed.",
            bound="at most 256 networks, as 10.0.0.0/8 or fd00::/8",
            max_length=256,
        ),
    ] = ()
    forwarded: Annotated[
        Literal["", "forwarded", "x-forwarded-for"], noted("", "The header in which they say it; '': none.")
    ] = ""

    def __post_init__(self) -> None:
        """Check what one field alone cannot say. Raises ValueError, which `load` reports with the sources."""
        if 2 * self.body_size_max > self.bodies_size_max:
            raise ValueError("body_size_max is over half of bodies_size_max; raise the latter")
        if self.body_rate_grace_s > self.body_timeout_s:
            raise ValueError("body_rate_grace_s is over body_timeout_s; lower the former")
        if len(set(self.devices)) != len(self.devices):
            raise ValueError("devices names one twice; a device has one worker")
        keyed.check_together(self.clients)
        for key in ("client_rate", "client_batch_rate", "rate_max"):
            keyed.check_rate(key, getattr(self, key))
        if self.keys_required and not self.clients:
            raise ValueError("keys_required is set and there are no clients; make one with `penstock key NAME`")
        for network in self.trusted_proxies:
            _check_network(network)
        if bool(self.trusted_proxies) != bool(self.forwarded):
            raise ValueError("trusted_proxies and forwarded need each other; set both or none")
        if bool(self.admin_port) != bool(self.admin_token_sha256):
            raise ValueError("admin_port and admin_token_sha256 need each other; `penstock admin-token` makes a token")
        if self.admin_port and self.admin_port == self.port:
            raise ValueError("admin_port is the public port; choose another one")

    def decoder_count(self) -> int:
        """Decoder processes to start on this machine."""
        return self.decoders or max(2, cores() // 2)

    def worker_thread_count(self) -> int:
        """Threads for a CPU worker's engine on this machine."""
        return self.worker_threads or cores()


def _check_network(network: str) -> None:
    """Raises ValueError, with the network that was probably meant."""
    try:
        ipaddress.ip_network(network)
    except ValueError:
        try:
            nearest = f"write {ipaddress.ip_network(network, strict=False)}"
        except ValueError:
            nearest = "write one as 10.0.0.0/8, fd00::/8 or 192.0.2.1"
        raise ValueError(f"trusted_proxies holds {ascii(network)[:80]}, which is no network; {nearest}") from None


KEYS = Settings.__struct_fields__


def cores() -> int:
    """CPU cores that this process may run on, which is what a container was given, not what the machine has."""
    return len(os.sched_getaffinity(0))


def load(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """Settings from a TOML file (None: none), the environment, and flags (None values are not given).

    Raises:
        InvalidSettings: the file cannot be read, a key is unknown, or a value is out of its bound. The text names the
            key, the bound and the source.
    """
    values: dict[str, Any] = {}
    for key, value in _from_file(file).items():
        is_table = key == "clients"
        values[key] = keyed.read_clients(value, str(file)) if is_table else _check(key, value, f"{key} in {file}")
    for name, text in _from_environment(environ):
        key = name.removeprefix(PREFIX).lower()
        check_known(key, KEYS, f"{name} in the environment", prefix=PREFIX)
        if key == "clients":
            raise InvalidSettings(f"{name} in the environment is not read; clients stand in the file, as [[clients]].")
        values[key] = _check(key, _fromnoted(key, text), f"{name} in the environment", strict=False)
    for key, value in flags.items():
        if value is not None:
            values[key] = _check(key, value, f"--{key.replace('_', '-')}")
    try:
        return Settings(**values)
    except ValueError as error:
        raise InvalidSettings(f"The settings do not fit together: {error}.") from None


def to_toml(settings: Settings) -> str:
    """The settings as a file that `load` reads back, each key with its meaning, unit and bound."""
    head = "# Settings of penstock. Every key may be left out; PENSTOCK_<KEY> and flags stand over this file.\n"
    return head + "".join(
        f"\n# {row.meaning} ({row.unit_and_bound()})\n{row.key} = {toml(getattr(settings, row.key))}\n"
        for row in rows(Settings)
    )


def docs_table() -> str:
    """The settings as a Markdown table, for docs/settings.md; those of one client follow on `clients`."""
    lines = ["| key | default | unit | bound | meaning |", "|---|---|---|---|---|"]
    for table, prefix in ((Settings, ""), (KeyedClient, "clients.")):
        for row in rows(table):
            default = "" if row.default is NODEFAULT else f"`{toml(row.default)}`"
            lines.append(f"| `{prefix}{row.key}` | {default} | {row.unit} | {row.bound} | {row.meaning} |")
    return "\n".join(lines) + "\n"


def _check(key: str, value: object, where: str, *, strict: bool = True) -> Any:
    """`value` as the type of `key`, which must be known. Raises InvalidSettings."""
    check_known(key, KEYS, where)
    return check(Settings, key, value, where, strict=strict)


def _from_file(file: Path | None) -> dict[str, Any]:
    """The top level of a TOML file. Raises InvalidSettings."""
    if file is None:
        return {}
    try:
        with file.open("rb") as source:
            content = source.read(FILE_SIZE_MAX + 1)
        if len(content) > FILE_SIZE_MAX:
            raise InvalidSettings(f"{file}: larger than {FILE_SIZE_MAX} bytes.")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise InvalidSettings(f"{file}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSettings(f"{file}: not TOML ({error}).") from None


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """The names that are ours, without those that Kubernetes makes up and those that arm failpoints."""
    return [
        (name, text)
        for name, text in environ.items()
        if name.startswith(PREFIX)
        and name not in _NO_SETTINGS
        and not _SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
        and not _SERVICE_URL.match(text)
    ]


def _fromnoted(key: str, text: str) -> object:
    """A variable's text: a list is separated by commas, everything else is itself."""
    if isinstance(getattr(_DEFAULTS, key), tuple):
        return [item for item in map(str.strip, text.split(",")) if item]
    return text


_DEFAULTS = Settings()
