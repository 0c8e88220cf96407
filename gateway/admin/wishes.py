"""From the options of `penstock set` to the document of a want. Pure; whether it can be so is for the server to say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEYS = ("versions", "default", "aliases", "weights", "shadow")

_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def read_changes(
    *,
    default: int | None = None,
    weights: Iterable[str] | None = None,
    aliases: Iterable[str] | None = None,
    shadow: str | None = None,
    clear: Iterable[str] | None = None,
) -> dict[str, Any]:
    """What the options change, by key; None: as if it had never been set. Raises ValueError, which says what is wrong.

    An alias whose version is None is taken away.
    """
    changed: dict[str, Any] = {}
    for key in clear or ():
        if key not in KEYS:
            raise ValueError(f"--clear {key}: there is no such thing to clear; it is one of {', '.join(KEYS)}")
        changed[key] = None
    given = {
        "default": default,
        "weights": dict(map(_weight, weights or ())),
        "aliases": dict(map(_alias, aliases or ())),
        "shadow": None if shadow is None else _shadow(shadow),
    }
    for key, value in given.items():
        if value is None or value == {}:
            continue
        if key in changed:
            raise ValueError(f"--clear {key} and a new value for it do not go together")
        changed[key] = value
    if not changed:
        raise ValueError("there is nothing to set; give --default, --weight, --alias, --shadow or --clear")
    return changed


def apply(want: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The document of `want` with the changes in it: aliases one by one, all else as a whole."""
    found = {**want, **changed}
    if changed.get("aliases") is not None:
        merged = {**(want.get("aliases") or {}), **changed["aliases"]}
        found["aliases"] = {alias: version for alias, version in merged.items() if version is not None}
    return {key: value for key, value in found.items() if value is not None}


def _weight(text: str) -> tuple[str, float]:
    version, _, weight = text.partition("=")
    try:
        return _version(version), float(weight)
    except ValueError:
        raise ValueError(f"--weight {text}: write VERSION=WEIGHT, e.g. --weight 2=0.1") from None


def _alias(text: str) -> tuple[str, int | None]:
    alias, equals, version = text.partition("=")
    try:
        if alias and equals:
            return alias, int(_version(version)) if version else None
    except ValueError:
        pass
    raise ValueError(f"--alias {text}: write NAME=VERSION, or NAME= to take it away")


def _shadow(text: str) -> dict[str, Any]:
    version, colon, share = text.partition(":")
    try:
        return {"version": int(_version(version)), **({"share": float(share)} if colon else {})}
    except ValueError:
        raise ValueError(f"--shadow {text}: write VERSION or VERSION:SHARE, e.g. --shadow 3:0.1") from None


def _version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise ValueError(text)
    return text
