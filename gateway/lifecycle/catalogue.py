"""What the repository has, what is wanted of it, and what is resident: the tables, and what follows from them.

Pure but for the tables themselves, which `changes` alone writes to. A version is *resident* once it has a line; others
are files.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from gateway.lifecycle.budget import identity
from gateway.lifecycle.desired import Desired, Want
from gateway.lifecycle.routes import Standing, build
from gateway.lifecycle.watcher import Found, Look

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from gateway.lifecycle.routes import Routes
    from gateway.models.repository import Signature
    from gateway.scheduling.line import Line

Key = tuple[str, int]
"""(name, version)."""


class Failure(NamedTuple):
    """Why a version could not be loaded from those files, and when (monotonic) that was."""

    signature: Signature
    detail: str
    time_ns: int


class Resident:
    """One version with a line, and the files that it was read from."""

    __slots__ = ("files", "found", "line", "serving", "used_count", "used_ns")

    def __init__(self, found: Found, line: Line, now_ns: int) -> None:
        self.found = found
        self.line = line
        self.files = identity(found.signature)
        self.serving = False
        """Whether requests are sent its way; before that it is being loaded."""
        self.used_count = 0
        self.used_ns = now_ns

    @property
    def key(self) -> Key:
        """Its name and version."""
        return key_of(self.found)

    @property
    def is_lazy(self) -> bool:
        """Whether it may go when others need its memory."""
        return self.found.model.contract.residency.lazy

    def used(self, count: int, now_ns: int) -> None:
        """It has been asked `count` times by now."""
        if count != self.used_count:
            self.used_count, self.used_ns = count, now_ns

    def is_placed(self, device: str) -> bool:
        """Whether this device is to have it."""
        return is_placed(self.found, device)

    def is_idle(self, now_ns: int) -> bool:
        """Whether nobody has asked for longer than its contract lets it stay."""
        idle_s = self.found.model.contract.residency.idle_s
        return bool(idle_s) and now_ns - self.used_ns >= idle_s * 1e9


def key_of(found: Found) -> Key:
    """A version's name and number."""
    return found.model.name, found.model.version


def name_of(key: Key) -> str:
    """A version for people."""
    return f"{key[0]}/{key[1]}"


def is_placed(found: Found, device: str) -> bool:
    """Whether this device is to have a version."""
    devices = found.model.contract.residency.devices
    return not devices or device in devices


class Catalogue:
    """The tables of one gateway. `policy`: which versions are wanted of a model that no operator spoke about."""

    def __init__(self, policy: Literal["latest", "all"], desired: Desired) -> None:
        self.policy = policy
        self.desired = desired
        self.look = Look({}, {})
        self.residents: dict[Key, Resident] = {}
        self.failures: dict[Key, Failure] = {}
        self.held: frozenset[Key] = frozenset()
        """Resident ones without a worker while one worker follows another: requests wait for the new one."""

    # -- what is wanted ------------------------------------------------------------------------------------------

    def want(self, name: str) -> Want:
        """What an operator wants of a model; what everybody wants where none has spoken."""
        return self.desired.models.get(name) or Want()

    def names(self) -> list[str]:
        """Every model that is known, ascending."""
        return sorted({*self.look.versions, *(name for name, _ in (*self.residents, *self.look.faults))})

    def wanted(self, name: str, want: Want | None = None) -> dict[int, Found]:
        """The versions that are to be served, of those that are there. `want`: another one than what is kept."""
        want = want or self.want(name)
        there = self.look.versions.get(name, {})
        if want.versions is not None:
            numbers = set(want.versions)
        else:
            numbers = set(there) if self.policy == "all" else self._latest(name)
            numbers |= _named(want)
        return {number: found for number, found in there.items() if number in numbers}

    def _latest(self, name: str) -> set[int]:
        """The largest version that did not fail; when all did, the largest."""
        there = self.look.versions.get(name, {})
        able = [number for number, found in there.items() if not self.has_failed((name, number), found)]
        return {max(able or there)} if there else set()

    def has_failed(self, key: Key, found: Found) -> bool:
        """Whether these very files could not be loaded before."""
        failure = self.failures.get(key)
        return failure is not None and failure.signature == found.signature

    def target(
        self,
        wants: Mapping[str, Want] = MappingProxyType({}),
        *,
        awake: Collection[Key] = (),
        gone: Collection[Key] = (),
    ) -> dict[Key, Found]:
        """What is to be resident: what is wanted, less what failed and less lazy ones that nobody has asked for.

        `wants` stand over those that are kept. `awake` are loaded all the same, `gone` are not.
        """
        found: dict[Key, Found] = {}
        for name in self.names():
            for number, version in self.wanted(name, wants.get(name)).items():
                key = name, number
                resident = self.residents.get(key)
                if key in gone:
                    continue
                if key in awake:
                    found[key] = version
                elif self.has_failed(key, version):
                    # What was read of it before serves on; one that never served stays, to say so.
                    if resident is not None:
                        found[key] = resident.found
                elif resident is not None or not version.model.contract.residency.lazy:
                    found[key] = version
        return found

    def difference(
        self, target: Mapping[Key, Found], fresh: Collection[Key] = ()
    ) -> tuple[list[Found], list[Resident]]:
        """(what is to be loaded, what is to go) on the way to `target`. `fresh` are loaded anew whatever they are."""
        kept = {
            key
            for key, found in target.items()
            if key not in fresh and key in self.residents and self.residents[key].found.signature == found.signature
        }
        new = [found for key, found in target.items() if key not in kept]
        old = [resident for key, resident in self.residents.items() if key not in kept]
        return new, old

    def has_failed_resident(self, key: Key) -> bool:
        """Whether it has a line that serves nobody, since its files could not be loaded."""
        resident = self.residents.get(key)
        return resident is not None and self.has_failed(key, resident.found)

    def asleep(self) -> set[Key]:
        """Lazy versions that are not resident."""
        return {
            (name, number)
            for name, there in self.look.versions.items()
            for number, found in there.items()
            if found.model.contract.residency.lazy and (name, number) not in self.residents
        }

    # -- what is served ------------------------------------------------------------------------------------------

    def routes(self) -> Routes:
        """The table for the front, as things stand."""
        return build({name: self._standing(name) for name in self.names()})

    def _standing(self, name: str) -> Standing:
        served: dict[int, Line] = {}
        lazy: set[int] = set()
        loading: set[int] = set()
        failed: set[int] = set()
        there = self.look.versions.get(name, {})
        wanted = self.wanted(name)
        numbers = {*there, *(number for other, number in self.residents if other == name)}
        for number in numbers:
            key = name, number
            resident = self.residents.get(key)
            if key in self.held:
                lazy.add(number)
            elif resident is not None and resident.serving:
                served[number] = resident.line
            elif number not in wanted:
                continue
            elif there[number].model.contract.residency.lazy:
                lazy.add(number)
            else:
                (failed if self.has_failed(key, there[number]) else loading).add(number)
        unloaded = numbers - served.keys() - lazy - loading - failed
        return Standing(
            self.want(name), served, frozenset(lazy), frozenset(loading), frozenset(failed), frozenset(unloaded)
        )

    def document(self, name: str, states: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
        """One model as plain data. `states`: what `changes` knows of versions, by key."""
        routes = self.routes()
        there = self.look.versions.get(name, {})
        numbers = {*there, *(number for other, number in (*self.residents, *self.look.faults) if other == name)}
        wanted = self.wanted(name)
        versions = []
        for number in sorted(numbers):
            key = name, number
            failure, fault = self.failures.get(key), self.look.faults.get(key)
            described: dict[str, Any] = {"version": number, "state": "unloaded", "wanted": number in wanted}
            if failure is not None:
                described |= {"state": "failed", "error": failure.detail}
            elif fault is not None:
                described |= {"state": "failed", "error": fault}
            described |= states.get(key, {})
            versions.append(described)
        return {
            "name": name,
            "want": msgspec.to_builtins(self.want(name), str_keys=True),
            "default_version": routes.defaults.get(name),
            "reports": list(routes.reports.get(name, ())),
            "versions": versions,
        }


# -- what an operator's word makes of a want -------------------------------------------------------------------------


def _named(want: Want) -> set[int]:
    """Versions that a want speaks of, and so asks for."""
    named = {*want.aliases.values(), *(version for version, weight in want.weights.items() if weight)}
    if want.default is not None:
        named.add(want.default)
    if want.shadow is not None:
        named.add(want.shadow.version)
    return named


def with_versions(want: Want, wanted: Iterable[int], added: Iterable[int]) -> Want:
    """`want`, and those versions too. `wanted`: the versions that are wanted now."""
    before = want.versions if want.versions is not None else tuple(wanted)
    return msgspec.structs.replace(want, versions=tuple(sorted({*before, *added})))


def without_version(want: Want, wanted: Iterable[int], removed: int) -> Want:
    """`want`, and no word of that version any more."""
    before = want.versions if want.versions is not None else tuple(wanted)
    weights = {version: weight for version, weight in want.weights.items() if version != removed}
    return Want(
        versions=tuple(version for version in before if version != removed),
        default=want.default if want.default != removed else None,
        aliases={alias: version for alias, version in want.aliases.items() if version != removed},
        weights=weights if any(weights.values()) else {},
        shadow=want.shadow if want.shadow is None or want.shadow.version != removed else None,
    )


def resumed(want: Want) -> Want:
    """`want`, no longer unloaded on purpose."""
    return msgspec.structs.replace(want, versions=None) if want.versions == () else want
