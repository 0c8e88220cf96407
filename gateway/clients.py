"""Clients that are known by a key: what the settings say of each, and the making of keys. A key itself is never kept.

A key is 192 random bits, so its plain SHA-256 gives nothing away and needs no salt; finding it takes one look-up.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any

import msgspec

from gateway.errors import InvalidSettings
from gateway.fields import check, check_known, noted

KEY_PREFIX = "psk_"
"""What leaked keys are searched for by."""

ADMIN_PREFIX = "psa_"
"""The same of the admin front's token."""

KEY_SIZE = 24
"""Random bytes of a key."""

CLIENTS_MAX = 10_000
"""Keys in one file."""

RATE_MIN, RATE_MAX = 0.001, 1_000_000
"""Images a second, where there is a limit."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"


class KeyedClient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[clients]]` of the settings."""

    name: Annotated[
        str,
        noted(
            "",
            "Whose key it is, for the metrics.",
            bound="1 to 64 letters, digits, '.', '_' or '-', a letter or digit first",
            pattern=_NAME,
        ),
    ]
    key_sha256: Annotated[
        str,
        noted(
            "",
            "SHA-256 of the key; `penstock key NAME` makes both.",
            bound="64 hexadecimal digits, small letters",
            pattern=r"^[0-9a-f]{64}\Z",
        ),
    ]
    rate: Annotated[float, noted("images/s", "Images, in the long run; 0: no limit.", ge=0, le=RATE_MAX)] = 0.0
    burst: Annotated[int, noted("images", "Images at once; 0: one second's worth.", ge=0, le=RATE_MAX)] = 0
    batch_rate: Annotated[
        float, noted("images/s", "The same for the batch class, counted apart; 0: as rate.", ge=0, le=RATE_MAX)
    ] = 0.0
    batch_burst: Annotated[
        int, noted("images", "0: as burst, or one second's worth of batch_rate.", ge=0, le=RATE_MAX)
    ] = 0
    in_flight_max: Annotated[int, noted("images", "Images not answered yet; 0: no limit.", ge=0, le=RATE_MAX)] = 0


_KEYS = KeyedClient.__struct_fields__
_NEEDED = ("name", "key_sha256")


def read_clients(found: object, where: str) -> tuple[KeyedClient, ...]:
    """The `[[clients]]` of a file. Raises InvalidSettings, which names the client and the key."""
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise InvalidSettings(f"clients in {where} must be tables, each under [[clients]].")
    if len(found) > CLIENTS_MAX:
        raise InvalidSettings(f"clients in {where} are {len(found)}; {CLIENTS_MAX} are allowed.")
    return tuple(_read_client(table, f"clients[{index}]", where) for index, table in enumerate(found))


def _read_client(table: dict[str, Any], client: str, where: str) -> KeyedClient:
    values = {}
    for key, value in table.items():
        check_known(key, _KEYS, f"{client}.{key} in {where}")
        values[key] = check(KeyedClient, key, value, f"{client}.{key} in {where}")
    for key in _NEEDED:
        if key not in values:
            raise InvalidSettings(f"{client} in {where} has no {key}; `penstock key NAME` makes a whole one.")
    return KeyedClient(**values)


def check_together(clients: tuple[KeyedClient, ...]) -> None:
    """Check what one client's table alone cannot say: names and keys are each one client's. Raises ValueError."""
    for field in _NEEDED:
        seen: dict[str, int] = {}
        for index, client in enumerate(clients):
            value = getattr(client, field)
            if value in seen:
                raise ValueError(f"clients[{seen[value]}] and clients[{index}] have the same {field}")
            seen[value] = index
    for index, client in enumerate(clients):
        check_rate(f"clients[{index}].rate", client.rate)
        check_rate(f"clients[{index}].batch_rate", client.batch_rate)


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError for a rate that is neither nothing nor something."""
    if 0 < rate < RATE_MIN:
        raise ValueError(f"{name} is {rate:g}; it must be {RATE_MIN:g} or more, or 0 for no limit")


def new_key(prefix: str = KEY_PREFIX) -> str:
    """A fresh key."""
    return prefix + secrets.token_urlsafe(KEY_SIZE)


def digest_of(key: str) -> str:
    """What the settings hold of a key, and what a key that comes in is looked up by."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def to_toml(name: str, key: str) -> str:
    """A `[[clients]]` table for the settings, without the key. Raises InvalidSettings when the name cannot be one."""
    check(KeyedClient, "name", name, "the name")
    return f'\n[[clients]]\nname = "{name}"\nkey_sha256 = "{digest_of(key)}"\nrate = 0.0 # images/s; 0: no limit\n'
