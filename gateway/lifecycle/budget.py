"""How much memory models need, and who has to go so that another one fits. Pure: figures in, decisions out.

A need is what loading a model added to its worker, measured the last time it was loaded. It belongs to the model's
files: another file under the same name has a need of its own, unknown until it was loaded once.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.models.repository import Signature

NEED_COUNT_MAX = 4096
"""Needs that are remembered; the one that was measured longest ago is forgotten first."""


def identity(signature: Signature) -> str:
    """What tells the files of one version from any others."""
    return hashlib.sha256(repr(signature).encode()).hexdigest()


class Needs:
    """Measured needs in bytes, by the identity of a model's files and the kind of device."""

    __slots__ = ("_base", "_measured")

    def __init__(self) -> None:
        self._measured: dict[tuple[str, str], int] = {}
        self._base: dict[str, int] = {}

    def measured(self, files: str, kind: str, size: int) -> None:
        """A model was loaded, and that is what it added."""
        self._measured.pop((files, kind), None)
        self._measured[files, kind] = size
        if len(self._measured) > NEED_COUNT_MAX:
            del self._measured[next(iter(self._measured))]

    def base_measured(self, kind: str, size: int) -> None:
        """A worker without models holds so much on this kind of device."""
        self._base[kind] = size

    def of(self, files: str, kind: str) -> int | None:
        """What these files need; None when they were never loaded."""
        return self._measured.get((files, kind))

    def total(self, files: Iterable[str], kind: str) -> int:
        """What a worker with these models needs. What was never measured counts as nothing: it is assumed to fit."""
        needs = [self.of(each, kind) or 0 for each in files]
        return sum(needs) + self._base.get(kind, 0) if needs else 0


class Candidate(NamedTuple):
    """A loaded model that might be evicted."""

    key: tuple[str, int]
    need: int
    """Bytes."""
    used: int
    """When it was last used, on any clock."""
    lazy: bool
    """Whether it comes back by itself when it is wanted. Others are never evicted."""


def fits(need: int, free: int | None) -> bool:
    """Whether `need` bytes fit into `free`; when nobody knows what is free, they do."""
    return free is None or need <= free


def evict(candidates: Sequence[Candidate], lacking: int) -> list[tuple[str, int]] | None:
    """Whom to unload so that `lacking` bytes come free: least recently used first, as few as that takes.

    None when all of them together are not enough. Nothing is lacking: nobody.
    """
    chosen: list[tuple[str, int]] = []
    for candidate in sorted((each for each in candidates if each.lazy), key=lambda each: each.used):
        if lacking <= 0:
            break
        if candidate.need <= 0:
            continue  # whose need nobody has measured frees nothing that could be counted on
        chosen.append(candidate.key)
        lacking -= candidate.need
    return chosen if lacking <= 0 else None
