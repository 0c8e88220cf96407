"""Which version answers a request: numbers, aliases, the default, weights, shadows. Pure: tables in, one table out.

A table is made anew with every change and replaced as a whole, so that no request ever sees half of one.
"""

from __future__ import annotations

import enum
import hashlib
import math
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from gateway import errors
from gateway.lifecycle.desired import Want
from gateway.models.repository import NAME_GRAMMAR, is_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import TypeAlias

    from gateway.scheduling.line import Line

    Entry: TypeAlias = "Line | Lazy | Split | Absent"
    """What becomes of a request."""

RETRY_S = 1
"""When to ask again for a model that is being loaded."""

WEIGHTS_MAX = 16
"""Versions that share a model's requests. Each costs 2 µs of every request that names none."""

_POINTS = 1 << 64


class Standing(NamedTuple):
    """How one model stands: what is wanted of it, and where each of its versions is. A version is in one place."""

    want: Want = Want()
    served: Mapping[int, Line] = MappingProxyType({})
    """Answers requests, or queues them while its worker restarts."""
    lazy: frozenset[int] = frozenset()
    """Wanted; loaded when the first request for it comes. Stays here until it is served."""
    loading: frozenset[int] = frozenset()
    """Wanted, and not served yet."""
    failed: frozenset[int] = frozenset()
    """Wanted, and could not be loaded."""
    unloaded: frozenset[int] = frozenset()
    """There, and not wanted."""


class Lazy(NamedTuple):
    """A version that is to be loaded before it answers."""

    version: int


class Split(NamedTuple):
    """Versions that share the requests which name none, by weight. Each is served, or lazy."""

    name: str
    versions: tuple[int, ...]
    weights: tuple[float, ...]

    def choose(self, key: str) -> int:
        """The version for a key; the same one as long as the weights stay.

        Every version draws a number for the key, from the model's name, its own number and the key alone. The drawn
        numbers are stretched by the weights, and the smallest wins: version v wins weight v / sum of weights of all
        keys. So raising one weight takes keys from the others in proportion and moves none between them; a version
        that goes away leaves its own keys only, and gets the same ones back. (Points on a line cut by cumulative
        weights would move keys between versions whose weights nobody touched, from three versions on.)
        Source: Schindelhauer and Schomaker, Weighted Distributed Hash Tables, SPAA 2005, the logarithmic method.
        """
        drawn = [
            -math.log((_draw(f"{self.name}/{version}/{key}") + 1) / _POINTS) / weight
            for version, weight in zip(self.versions, self.weights, strict=True)
        ]
        return self.versions[drawn.index(min(drawn))]


class Absent(enum.Enum):
    """Why a name that is known has no version that could answer."""

    LOADING = enum.auto()
    FAILED = enum.auto()
    UNLOADED = enum.auto()
    UNNAMED = enum.auto()

    def refusal(self, name: str) -> errors.Refusal:
        """The same for whoever asked for model `name`."""
        if self is Absent.LOADING:
            return errors.ModelNotReady(f"model {name} is not serving yet; see /readyz", retry_after_s=RETRY_S)
        if self is Absent.FAILED:
            return errors.ModelNotReady(f"model {name} could not be loaded; see /readyz")
        if self is Absent.UNLOADED:
            return errors.UnknownModel(f"model {name} is not loaded here; ask whoever runs the server to load it")
        return errors.UnknownModel(f"model {name} has no version for requests that name none; name one, see /models")


class Copies(NamedTuple):
    """Where copies of a version's requests go."""

    version: int
    line: Line
    share: float


class Routes(NamedTuple):
    """The table. `reports`: per model, what was asked for and cannot be done now, in words."""

    entries: Mapping[tuple[str, str], Entry]
    """By (model, version number, alias, or "" where a request names none)."""
    shadows: Mapping[tuple[str, int], Copies]
    """By (model, version that answers)."""
    defaults: Mapping[str, int]
    """The version that answers where nothing else is said; models that have one."""
    reports: Mapping[str, tuple[str, ...]]


def build(models: Mapping[str, Standing]) -> Routes:
    """The table for these models."""
    entries: dict[tuple[str, str], Entry] = {}
    shadows: dict[tuple[str, int], Copies] = {}
    defaults: dict[str, int] = {}
    reports: dict[str, tuple[str, ...]] = {}
    for name, standing in models.items():
        words: list[str] = []
        versions = dict(_versions(standing))
        for alias, version in _aliases(standing.want, versions, words):
            entries[name, alias] = versions[version]
        for version, entry in versions.items():
            entries[name, str(version)] = entry
        default = _default(standing, versions, words)
        if default is not None:
            defaults[name] = default
            copies = _shadow(standing, default, words)
            if copies is not None:
                shadows[name, default] = copies
        entries[name, ""] = _unnamed(name, standing, default, versions, words)
        if words:
            reports[name] = tuple(words)
    return Routes(*map(MappingProxyType, (entries, shadows, defaults, reports)))  # type: ignore[arg-type]


def faults(want: Want) -> list[str]:
    """What does not fit together in a want, each with what to do. What is there to serve is not looked at."""
    found = []
    if want.versions:
        named = {
            "default": () if want.default is None else (want.default,),
            "aliases": want.aliases.values(),
            "weights": want.weights,
            "shadow": () if want.shadow is None else (want.shadow.version,),
        }
        found += [
            f"{key} names version {version}, which versions does not; add it there"
            for key, versions in named.items()
            for version in dict.fromkeys(versions)
            if version not in want.versions
        ]
    if want.shadow is not None and want.shadow.version == want.default:
        found.append("shadow names the default version, which is not compared with itself; name another")
    if len(want.weights) > WEIGHTS_MAX:
        found.append(f"weights names {len(want.weights)} versions; requests are divided among {WEIGHTS_MAX} at most")
    found += [
        f"the alias {ascii(alias)[:80]} is none; {_ALIAS_GRAMMAR}" for alias in want.aliases if not _is_alias(alias)
    ]
    return found


_ALIAS_GRAMMAR = f"an alias is {NAME_GRAMMAR}, and not a number"


def _is_alias(alias: str) -> bool:
    return is_name(alias) and not alias.isdecimal()


def _draw(text: str) -> int:
    """A number below _POINTS, as good as drawn."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _versions(standing: Standing) -> Iterator[tuple[int, Line | Lazy | Absent]]:
    """Every version that is known, and what becomes of a request that names it."""
    yield from ((version, Absent.UNLOADED) for version in standing.unloaded)
    yield from ((version, Absent.FAILED) for version in standing.failed)
    yield from ((version, Absent.LOADING) for version in standing.loading)
    yield from ((version, Lazy(version)) for version in standing.lazy)
    yield from standing.served.items()


def _aliases(want: Want, versions: Mapping[int, object], words: list[str]) -> Iterator[tuple[str, int]]:
    for alias, version in want.aliases.items():
        if not _is_alias(alias):
            words.append(f"the alias {ascii(alias)[:80]} is none; {_ALIAS_GRAMMAR}")
        elif version not in versions:
            words.append(f"alias {alias} names version {version}, which is not there")
        else:
            yield alias, version


def _able(standing: Standing) -> list[int]:
    """Versions that can answer, ascending."""
    return sorted({*standing.served, *standing.lazy})


def _default(standing: Standing, versions: Mapping[int, object], words: list[str]) -> int | None:
    """The default version: as wanted, else the largest that can answer and is no shadow."""
    want = standing.want
    able = _able(standing)
    if want.default is not None:
        if want.default in able:
            return want.default
        gone = "cannot answer now" if want.default in versions else "is not there"
        words.append(f"version {want.default} is the default and {gone}; the largest that can answers instead")
    shadow = None if want.shadow is None else want.shadow.version
    return max((version for version in able if version != shadow), default=None)


def _shadow(standing: Standing, default: int, words: list[str]) -> Copies | None:
    shadow = standing.want.shadow
    if shadow is None:
        return None
    line = standing.served.get(shadow.version)
    if shadow.version == default:
        words.append(f"version {default} is the default and its own shadow; nothing is copied")
    elif line is None:
        words.append(f"version {shadow.version} is the shadow and is not loaded; nothing is copied")
    elif shadow.share > 0:
        return Copies(shadow.version, line, shadow.share)
    return None


def _unnamed(
    name: str,
    standing: Standing,
    default: int | None,
    versions: Mapping[int, Line | Lazy | Absent],
    words: list[str],
) -> Entry:
    """What becomes of a request that names no version."""
    able, weights = _able(standing), standing.want.weights
    left_out = sorted(version for version, weight in weights.items() if weight > 0 and version not in able)
    if left_out:
        words.append(f"weights name {_listed(left_out)} that cannot answer now; the others share all requests")
    weighted = sorted((version, weight) for version, weight in weights.items() if weight > 0 and version in able)
    if len(weighted) > 1:
        weighted = weighted[:WEIGHTS_MAX]
        return Split(name, tuple(version for version, _ in weighted), tuple(weight for _, weight in weighted))
    if weighted:
        return versions[weighted[0][0]]
    if default is not None:
        return versions[default]
    if standing.loading:
        return Absent.LOADING
    if able:
        words.append("only the shadow can answer now, and its answers are not returned")
    return Absent.FAILED if standing.failed else Absent.UNNAMED if able else Absent.UNLOADED


def _listed(versions: Sequence[int]) -> str:
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"
