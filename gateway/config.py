"""The settings: one frozen table, each field with its unit, bound and meaning. Parsed once, then passed in slices.

Flags stand over `PENSTOCK_*` in the environment, that over a TOML file, that over the defaults. A key that nobody knows
is an error that names the nearest one, wherever it stands. `docs/settings.md`, `--print-config` and the parser all read
the annotations of `Settings`; there is no second list.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta, Struct

from gateway.errors import InvalidSettings

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

Device = Annotated[str, Meta(pattern=r"^(cpu|cuda:(0|[1-9][0-9]?))$")]
_HINT_CUTOFF = 0.5


def _text(unit: str, description: str, **bounds: Any) -> Meta:
    """A field's unit ("" for none), meaning and bounds, as msgspec checks them and as the documentation shows them."""
    return Meta(description=description, extra={"unit": unit}, **bounds)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. What a model may be asked for stands in its model.toml instead."""

    models: Annotated[str, _text("", "Model repository: MODEL/VERSION/model.toml.", min_length=1)] = "models"
    versions: Annotated[
        Literal["latest", "all"], _text("", "Serve the largest version of each model, or all of them.")
    ] = "latest"
    host: Annotated[
        str, _text("", "Address to listen on; 0.0.0.0 for every IPv4 interface.", min_length=1, max_length=255)
    ] = "127.0.0.1"
    port: Annotated[int, _text("", "Port to listen on; 0 takes any free one and logs it.", ge=0, le=65_535)] = 8080
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _text("", "Lowest level that is logged.")] = (
        "info"
    )

    devices: Annotated[
        tuple[Device, ...],
        _text("", "One worker process each: 'cpu', 'cuda:0', 'cuda:1' and so on.", min_length=1, max_length=64),
    ] = ("cpu",)
    worker_threads: Annotated[
        int, _text("threads", "Threads of a worker's engine on the CPU; 0: one per core.", ge=0, le=1024)
    ] = 0
    child_start_timeout_s: Annotated[
        float,
        _text("s", "Time a child has to be ready, with every model warm, else it is killed.", gt=0, le=3600),
    ] = 120.0

    decoders: Annotated[
        int, _text("processes", "Decoder processes; 0: half of the cores, at least 2.", ge=0, le=256)
    ] = 0
    decoder_nice: Annotated[
        int, _text("", "Added niceness of decoders, so that they yield to the gateway and the workers.", ge=0, le=19)
    ] = 5
    decoder_memory_size_max: Annotated[
        int, _text("bytes", "Address space of one decoder.", ge=128 * MIB, le=64 * GIB)
    ] = GIB
    decode_cpu_ms_max: Annotated[
        int,
        _text(
            "ms", "CPU time for one image; past it the decoder is killed and the image is refused.", ge=10, le=60_000
        ),
    ] = 2000
    decode_frame_count_max: Annotated[
        int, _text("images", "Images handed to a decoder in one message.", ge=1, le=256)
    ] = 8

    body_size_max: Annotated[int, _text("bytes", "One request body.", ge=1024, le=GIB)] = 16 * MIB
    bodies_size_max: Annotated[int, _text("bytes", "All request bodies in memory together.", ge=MIB, le=64 * GIB)] = (
        256 * MIB
    )
    body_timeout_s: Annotated[float, _text("s", "Time a whole body has to arrive.", gt=0, le=600)] = 10.0
    body_rate_min: Annotated[
        int, _text("bytes/s", "Slowest a body may come, after the grace; 0: any rate.", ge=0, le=GIB)
    ] = 16 * 1024
    body_rate_grace_s: Annotated[float, _text("s", "Time before body_rate_min holds.", ge=0, le=60)] = 2.0
    header_timeout_s: Annotated[
        float, _text("s", "Time a connection may be idle, or take to send its headers.", gt=0, le=600)
    ] = 10.0
    header_line_size_max: Annotated[int, _text("bytes", "The request line, and each header.", ge=256, le=65_536)] = 8190
    header_count_max: Annotated[int, _text("headers", "Headers of one request.", ge=8, le=1024)] = 128
    connections_max: Annotated[int, _text("connections", "Open connections.", ge=1, le=1_000_000)] = 2048
    drain_timeout_s: Annotated[
        float, _text("s", "Time that requests in flight have to finish on SIGTERM.", ge=0, le=3600)
    ] = 25.0

    def __post_init__(self) -> None:
        """Check what one field alone cannot say. Raises ValueError, which `load` reports with the sources."""
        if 2 * self.body_size_max > self.bodies_size_max:
            raise ValueError("body_size_max is over half of bodies_size_max; raise the latter")
        if self.body_rate_grace_s > self.body_timeout_s:
            raise ValueError("body_rate_grace_s is over body_timeout_s; lower the former")
        if len(set(self.devices)) != len(self.devices):
            raise ValueError("devices names one twice; a device has one worker")

    def decoder_count(self) -> int:
        """Decoder processes to start on this machine."""
        return self.decoders or max(2, cores() // 2)

    def worker_thread_count(self) -> int:
        """Threads for a CPU worker's engine on this machine."""
        return self.worker_threads or cores()


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
        values[key] = _check(key, value, f"{key} in {file}")
    for name, text in _from_environment(environ):
        key = name.removeprefix(PREFIX).lower()
        _known(key, f"{name} in the environment", prefix=PREFIX)
        values[key] = _check(key, _from_text(key, text), f"{name} in the environment", strict=False)
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
        f"\n# {row.meaning} ({row.unit_and_bound()})\n{row.key} = {_toml(getattr(settings, row.key))}\n"
        for row in _rows()
    )


def docs_table() -> str:
    """The settings as a Markdown table, for docs/settings.md."""
    lines = ["| key | default | unit | bound | meaning |", "|---|---|---|---|---|"]
    lines += [f"| `{row.key}` | `{_toml(row.default)}` | {row.unit} | {row.bound} | {row.meaning} |" for row in _rows()]
    return "\n".join(lines) + "\n"


class _Row(NamedTuple):
    """One setting, for people."""

    key: str
    default: Any
    unit: str
    bound: str
    meaning: str

    def unit_and_bound(self) -> str:
        """E.g. "1024 to 1073741824 bytes"."""
        return " ".join(filter(None, (self.bound, self.unit)))


def _rows() -> list[_Row]:
    """Every field of Settings, in order."""
    info = msgspec.inspect.type_info(Settings)
    assert isinstance(info, msgspec.inspect.StructType)
    rows = []
    for field in info.fields:
        noted = field.type
        assert isinstance(noted, msgspec.inspect.Metadata), f"{field.name} has no unit"
        extra, schema = noted.extra or {}, noted.extra_json_schema or {}
        rows.append(_Row(field.name, field.default, extra["unit"], _bound(noted.type), schema["description"]))
    return rows


def _bound(kind: msgspec.inspect.Type) -> str:
    """A field's bound in words."""
    if isinstance(kind, msgspec.inspect.LiteralType):
        return " or ".join(f"'{value}'" for value in kind.values)
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        low = f"{kind.ge} to" if kind.ge is not None else f"over {kind.gt}, up to"
        return f"{low} {kind.le}"
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return f"{kind.min_length} to {kind.max_length} times 'cpu' or 'cuda:INDEX'"
    return "text"


def _check(key: str, value: object, where: str, *, strict: bool = True) -> Any:
    """`value` as the type of `key`. Raises InvalidSettings."""
    _known(key, where)
    try:
        checked = msgspec.convert(value, _TYPES[key], strict=strict)
    except msgspec.ValidationError:
        checked = None
    if checked is None or not all(map(_is_sane, checked if isinstance(checked, tuple) else (checked,))):
        bound = next(row for row in _rows() if row.key == key).unit_and_bound()
        raise InvalidSettings(f"{where} is {ascii(value)[:80]}; it must be {bound}.")
    return checked


def _is_sane(value: object) -> bool:
    """Whether a value of the right type means something: a NaN is in no interval, a control character in no path."""
    return value.isprintable() if isinstance(value, str) else not (isinstance(value, float) and math.isnan(value))


def _known(key: str, where: str, *, prefix: str = "") -> None:
    """Raises InvalidSettings, naming the nearest known key, when nobody knows `key`."""
    if key in KEYS:
        return
    found = difflib.get_close_matches(key, KEYS, n=1, cutoff=_HINT_CUTOFF)
    hint = f"did you mean '{prefix}{found[0].upper() if prefix else found[0]}'?" if found else "see --print-config."
    raise InvalidSettings(f"Unknown setting: {where}; {hint}")


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
    """The names that are ours, without those that Kubernetes makes up."""
    return [
        (name, text)
        for name, text in environ.items()
        if name.startswith(PREFIX)
        and not _SERVICE_LINK.fullmatch(name.removeprefix(PREFIX))
        and not _SERVICE_URL.match(text)
    ]


def _from_text(key: str, text: str) -> object:
    """A variable's text: a list is separated by commas, everything else is itself."""
    if isinstance(getattr(_DEFAULTS, key), tuple):
        return [item for item in map(str.strip, text.split(",")) if item]
    return text


def _toml(value: object) -> str:
    """A value as TOML. JSON's strings, lists and numbers are TOML's too, once DEL is escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_DEFAULTS = Settings()
_TYPES = get_type_hints(Settings, include_extras=True)
