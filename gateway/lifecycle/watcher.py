"""Which versions of a repository are complete, told by looking at it again and again. Loads nothing, writes nothing.

A version counts once its files were the same in two looks and its contract can be read. Whoever copies a version in
place is never read half-way; a folder that is renamed into the repository is whole at once and counts at the next look
but one. State: what the last look saw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import InvalidModel
from gateway.models.repository import list_versions, read_version, sign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.models.repository import ModelVersion, Signature


class Found(NamedTuple):
    """A complete version and the signature of the files that it was read from."""

    model: ModelVersion
    signature: Signature


class Look(NamedTuple):
    """What one look saw."""

    versions: dict[str, dict[int, Found]]
    """Complete versions by model and number; models without any are not there."""
    faults: dict[tuple[str, int], str]
    """Why a version that nobody writes to any more cannot be read."""


def _nobody(_: tuple[str, int]) -> bool:
    return False


def everybody(_: tuple[str, int]) -> bool:
    """Trust whatever is there."""
    return True


class Watcher:
    """One repository. `look` reads disks: call it where that may take its time, and never twice at once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[tuple[str, int], Signature] = {}
        self._found: dict[tuple[str, int], Found] = {}
        self._faults: dict[tuple[str, int], str] = {}

    def look(self, trusted: Callable[[tuple[str, int]], bool] = _nobody) -> Look:
        """Look once. What is `trusted` counts as it is now: at the start of the gateway, or on an operator's word.

        Raises: InvalidModel when the repository itself cannot be read; what was seen before stays.
        """
        seen: dict[tuple[str, int], Signature] = {}
        for name, numbers in list_versions(self._root).items():
            for number in numbers:
                signature = sign(self._root / name / str(number))
                if signature is not None:
                    seen[name, number] = signature
        for key, signature in seen.items():
            if trusted(key) or self._seen.get(key) == signature:
                self._settle(key, signature)
        self._seen = seen
        self._forget()
        versions: dict[str, dict[int, Found]] = {}
        for (name, number), found in sorted(self._found.items()):
            versions.setdefault(name, {})[number] = found
        return Look(versions, dict(self._faults))

    def _settle(self, key: tuple[str, int], signature: Signature) -> None:
        """Nobody writes to it any more: read it, unless these very files were read before.

        One that cannot be read leaves what was read of it before: files are no reason to stop serving a model.
        """
        before = self._found.get(key)
        if before is not None and before.signature == signature:
            self._faults.pop(key, None)
            return
        name, number = key
        directory = self._root / name / str(number)
        try:
            found = Found(read_version(directory), signature)
        except InvalidModel as error:
            self._faults[key] = str(error)
            return
        if sign(directory) == signature:  # else somebody began to write again while it was read
            self._found[key] = found
            self._faults.pop(key, None)

    def _forget(self) -> None:
        """What has gone from the repository; but the last version of a model stays while the model's folder does.

        Who replaces a version removes the old one first, perhaps: in between, the old one is better than none.
        """
        for key in [key for key in self._faults if key not in self._seen]:
            del self._faults[key]
        there = {name for name, number in self._found if (name, number) in self._seen}
        for key in [key for key in self._found if key not in self._seen]:
            if key[0] in there or not (self._root / key[0]).is_dir():
                del self._found[key]
