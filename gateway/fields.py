"""How a setting is described, bounded, checked and written: one annotation for the parser, the documentation and TOML.

A field is `Annotated[type, noted(unit, meaning, bounds...)]` of a frozen msgspec Struct. No state.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta

from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

_HINT_CUTOFF = 0.5


def noted(unit: str, description: str, *, bound: str = "", **bounds: Any) -> Meta:
    """A field's unit ("" for none), meaning and bounds, as msgspec checks them and as the documentation shows them.

    `bound`: the bound in words, where msgspec's would say too little.
    """
    return Meta(description=description, extra={"unit": unit, "bound": bound}, **bounds)


class Row(NamedTuple):
    """One setting, for people."""

    key: str
    default: Any
    unit: str
    bound: str
    meaning: str

    def unit_and_bound(self) -> str:
        """E.g. "1024 to 1073741824 bytes"."""
        return " ".join(filter(None, (self.bound, self.unit)))


def rows(table: type[msgspec.Struct]) -> list[Row]:
    """Every field of a table of settings, in order."""
    info = msgspec.inspect.type_info(table)
    assert isinstance(info, msgspec.inspect.StructType)
    found = []
    for field in info.fields:
        about = field.type
        assert isinstance(about, msgspec.inspect.Metadata), f"{field.name} has no unit"
        extra, schema = about.extra or {}, about.extra_json_schema or {}
        bound = extra["bound"] or _bound(about.type)
        found.append(Row(field.name, field.default, extra["unit"], bound, schema["description"]))
    return found


def _bound(kind: msgspec.inspect.Type) -> str:
    """A field's bound in words."""
    if isinstance(kind, msgspec.inspect.LiteralType):
        return " or ".join(f"'{value}'" for value in kind.values)
    if isinstance(kind, msgspec.inspect.BoolType):
        return "true or false"
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        low = f"{kind.ge} to" if kind.ge is not None else f"over {kind.gt}, up to"
        return f"{low} {kind.le}"
    return "text"


@functools.cache
def _types(table: type[msgspec.Struct]) -> dict[str, Any]:
    """The annotations of a table, resolved."""
    return get_type_hints(table, include_extras=True)


def check(table: type[msgspec.Struct], key: str, value: object, where: str, *, strict: bool = True) -> Any:
    """`value` as the type of the known field `key`. Raises InvalidSettings."""
    try:
        checked = msgspec.convert(value, _types(table)[key], strict=strict)
    except msgspec.ValidationError:
        checked = None
    if checked is None or not all(map(_is_sane, checked if isinstance(checked, tuple) else (checked,))):
        bound = next(row for row in rows(table) if row.key == key).unit_and_bound()
        raise InvalidSettings(f"{where} is {ascii(value)[:80]}; it must be {bound}.")
    return checked


def _is_sane(value: object) -> bool:
    """Whether a value of the right type means something: a NaN is in no interval, a control character in no path."""
    return value.isprintable() if isinstance(value, str) else not (isinstance(value, float) and math.isnan(value))


def check_known(key: str, keys: Iterable[str], where: str, *, prefix: str = "") -> None:
    """Raises InvalidSettings, naming the nearest known key, when `key` is not one of `keys`."""
    if key in keys:
        return
    found = difflib.get_close_matches(key, keys, n=1, cutoff=_HINT_CUTOFF)
    hint = f"did you mean '{prefix}{found[0].upper() if prefix else found[0]}'?" if found else "see --print-config."
    raise InvalidSettings(f"Unknown setting: {where}; {hint}")


def toml(value: object) -> str:
    """A value as TOML. JSON's strings, lists and numbers are TOML's too, once DEL is escaped; its objects are not."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value).items()
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in fields) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
