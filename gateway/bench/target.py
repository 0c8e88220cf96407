"""The server under load: which it is, and where its requests go. Asks /models and /metrics; both may be missing."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gateway.bench.wish import Address, address
from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from gateway.bench.wish import Wish

TIMEOUT_S = 10.0
PAGE_SIZE_MAX = 32 << 20
NAMES_SHOWN = 10

_PREDICTIONS = re.compile(r"/predictions/([^/]+)(?:/([^/]+))?")


class Unanswered(Exception):
    """There is no server, or it does not answer so that it could be loaded. The text is for a person."""


class Target(NamedTuple):
    """`path`: of the requests. `model`: NAME/VERSION where it is Penstock. `side`: (width, height) of its input."""

    address: Address
    path: str
    penstock: bool
    model: str
    side: tuple[int, int] | None


def find(wish: Wish) -> Target:
    """Ask the server what it is. Raises InvalidSettings, Unanswered."""
    where = address(wish.url)
    if where.path:
        if wish.model is not None:
            raise InvalidSettings(
                f"{wish.url} names a path already; --model goes with the address of a Penstock server"
            )
        ours = _PREDICTIONS.fullmatch(where.path.partition("?")[0])
        if wish.body is not None or ours is None:
            penstock = b"penstock_" in (page(where, "/metrics") or b"")
            return Target(where, where.path, penstock, "", None)
        name, version = ours[1], ours[2] or ""
        found = _models(where)
        if found is None:
            return Target(where, where.path, penstock=False, model="", side=None)
        model, side = _model(where, found, urllib.parse.unquote(name), version)
        return Target(where, where.path, penstock=True, model=model, side=side)
    found = _models(where)
    if found is None:
        if wish.body is None:
            raise Unanswered(f"{where.base} answers, but is no Penstock server; give the whole URL of its endpoint")
        return Target(where, "/", penstock=False, model="", side=None)
    name, _, version = (wish.model or _only(where, found)).partition("/")
    model, side = _model(where, found, name, version)
    path = "/predictions/" + "/".join(urllib.parse.quote(part, safe="") for part in (name, version) if part)
    return Target(where, path, penstock=True, model=model, side=side)


def page(where: Address, path: str) -> bytes | None:
    """The body of a GET, None when it is not answered with 200. Raises Unanswered where there is no server."""
    try:
        with urllib.request.urlopen(where.base + path, timeout=TIMEOUT_S) as answer:  # noqa: S310 - http:// by its type
            body: bytes = answer.read(PAGE_SIZE_MAX)
            return body if answer.status == http.HTTPStatus.OK else None
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Unanswered(f"no answer from {where.base}: {reason}") from None


def _models(where: Address) -> list[dict[str, Any]] | None:
    """The models of a Penstock server; None where it is none."""
    document = _document(page(where, "/models"))
    found = document.get("models") if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(model, dict) and "name" in model for model in found):
        return None
    return found


def _only(where: Address, found: list[dict[str, Any]]) -> str:
    """The name of its only model. Raises InvalidSettings where there are more, Unanswered where there is none."""
    if not found:
        raise Unanswered(f"{where.base} serves no model")
    if len(found) > 1:
        raise InvalidSettings(f"{where.base} serves {_names(found)}; choose one with --model")
    return str(found[0]["name"])


def _model(where: Address, found: list[dict[str, Any]], name: str, version: str) -> tuple[str, tuple[int, int] | None]:
    """(NAME/VERSION, the input's width and height) of a model. Raises InvalidSettings."""
    if all(model["name"] != name for model in found):
        raise InvalidSettings(f"{where.base} has no model {name}; it serves {_names(found) or 'none'}")
    document = _document(page(where, "/models/" + urllib.parse.quote(name, safe="")))
    if not isinstance(document, dict):
        return f"{name}/{version}" if version else name, None
    wanted = version or str(document.get("default_version"))
    versions = document.get("versions")
    for one in versions if isinstance(versions, list) else ():
        if str(one.get("version")) == wanted:
            size = one.get("contract", {}).get("input", {})
            side = (int(size["width"]), int(size["height"])) if {"width", "height"} <= set(size) else None
            return f"{name}/{wanted}", side
    raise InvalidSettings(f"{where.base} has no version {wanted} of {name}")


def _names(found: list[dict[str, Any]]) -> str:
    return ", ".join(sorted(str(model["name"]) for model in found)[:NAMES_SHOWN])


def _document(body: bytes | None) -> Any:
    try:
        return orjson.loads(body) if body is not None else None
    except orjson.JSONDecodeError:
        return None
