"""What comes in: bodies and queries, checked whole before anything is done. What is wrong with one is said in words."""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Struct

from gateway import errors
from gateway.lifecycle.desired import Version, Want
from gateway.lifecycle.routes import faults
from gateway.models.repository import NAME_GRAMMAR, VERSION_GRAMMAR, is_name, is_version
from gateway.models.spec import explain

if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_SIZE_MAX = 64 << 10
"""Bytes of a request's body."""

WAIT_S_MAX = 60.0
"""How long a request may wait for its operation to end."""

ITEM_COUNT_MAX = 256
"""Versions, aliases, weights of one model, each."""

FAULTS_LENGTH_MAX = 1000
"""Characters of what is wrong with a want."""

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_OPERATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


class VersionWanted(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /admin/models/{name}/versions`."""

    version: Version | None = None
    """None: as the settings and the repository say."""
    default: bool = False
    """Whether requests that name no version go to this one."""


class ReloadWanted(Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /admin/models/{name}/reload`."""

    version: Version | None = None
    """None: every version that is served."""


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """A body without anything in it."""


class Query(Struct, frozen=True):
    """The parameters of a URL."""

    wait: float = 0.0
    version: int | None = None


def read_body(content: bytes, content_type: str, kind: type[Struct]) -> Any:
    """A body as `kind`; no body at all is an empty object.

    Raises: UnsupportedMediaType, BadRequest.
    """
    if not content.strip():
        return kind()
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise errors.UnsupportedMediaType("bodies are JSON here; send Content-Type: application/json")
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise errors.BadRequest("the body is no JSON") from None
    try:
        wanted = msgspec.convert(found, kind, str_keys=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise errors.BadRequest(f"the body does not fit: {explain(str(error), kind)}") from None
    _check_wanted(wanted)
    return wanted


def _check_wanted(wanted: Struct) -> None:
    """Raises BadRequest for what the types alone do not say."""
    if isinstance(wanted, Want):
        _check_want(wanted)
    elif isinstance(wanted, VersionWanted) and wanted.default and wanted.version is None:
        raise errors.BadRequest("default needs a version; name the one that is to be the default")


def _check_want(want: Want) -> None:
    """What contradicts itself. What is not there (yet) may be named."""
    versions = want.versions or ()
    for key, items in (("versions", versions), ("aliases", want.aliases), ("weights", want.weights)):
        if len(items) > ITEM_COUNT_MAX:
            raise errors.BadRequest(f"{key} holds {len(items)}; {ITEM_COUNT_MAX} are allowed")
    if len(set(versions)) != len(versions):
        raise errors.BadRequest("versions names one twice")
    if want.weights and not any(want.weights.values()):
        raise errors.BadRequest("weights are all 0; give one version a weight at least, or none any")
    found = faults(want)
    if found:
        raise errors.BadRequest("; ".join(found)[:FAULTS_LENGTH_MAX])


def read_query(text: str, known: tuple[str, ...]) -> Query:
    """The parameters of a URL, of which those in `known` are read here. Raises BadRequest."""
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=8, errors="strict")
    except ValueError:
        raise errors.BadRequest("the query is not of the form name=value&name=value") from None
    for key, value in pairs:
        if key not in known:
            raise errors.BadRequest(f"unknown parameter {_quoted(key)}; {_nearest(key, known)}")
        if key in found:
            raise errors.BadRequest(f"{key} is given twice")
        found[key] = value
    version = found.get("version")
    return Query(_read_wait(found.get("wait", "0")), None if version is None else read_version(version))


def _read_wait(text: str) -> float:
    try:
        wait = float(text)
    except ValueError:
        wait = math.nan
    if not 0.0 <= wait <= WAIT_S_MAX:
        raise errors.BadRequest(f"wait is {_quoted(text)}; it is a number of seconds, 0 to {WAIT_S_MAX:g}")
    return wait


def read_version(text: str) -> int:
    """A version. Raises BadRequest."""
    if not is_version(text):
        raise errors.BadRequest(f"{_quoted(text)} is no version; one is {VERSION_GRAMMAR}")
    return int(text)


def check_parameters(parameters: Mapping[str, str]) -> None:
    """Check what stands in the path. Raises BadRequest."""
    name, index, operation = (parameters.get(key) for key in ("name", "index", "id"))
    if name is not None and not is_name(name):
        raise errors.BadRequest(f"this is no model's name; one is {NAME_GRAMMAR}")
    if index is not None and not _INDEX.fullmatch(index):
        raise errors.BadRequest("this is no worker's index; one is a whole number; see /admin/workers")
    if operation is not None and not _OPERATION.fullmatch(operation):
        raise errors.BadRequest("this is no operation's id; see /admin/operations")


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known here: {', '.join(known)}" if known else "this path takes none"


def _quoted(text: str) -> str:
    """A client's text, in ASCII and cut."""
    return ascii(text[:64])
