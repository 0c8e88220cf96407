"""Takes the readings: ours and one peer at a time, both alive, row by row and in turn.

Only two servers run at once, and an idle one costs next to nothing, ours included; a minute that is slow for one is
slow for the other. Who goes first changes from row to row.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from bench import rig
from bench.peers_lab import loop, trees
from bench.peers_lab.account import Pair, Reading, Row
from bench.peers_lab.catalogue import OURS
from bench.peers_lab.serving import PeerFailed, Workload, ask_once, served

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bench.peers_lab.catalogue import Peer
    from bench.peers_lab.serving import Server

NULL, REAL = "null", "efficientnet_lite0"


class Plan(NamedTuple):
    """What is measured. `photos`: JPEGs by name. `seconds` a reading, after `warmup_s` that is thrown away.

    `plain`: peers decode with Pillow alone, as their tutorials do; else with this project's own decoder.
    """

    models: Sequence[str]
    cores: Sequence[int]
    photos: dict[str, bytes]
    connections: Sequence[int]
    rounds: int
    seconds: float
    warmup_s: float
    plain: bool = False


class LeftOut(NamedTuple):
    """A peer that is missing from some or all rows, where, and why."""

    peer: str
    where: str
    reason: str


class Found(NamedTuple):
    """Everything that was read."""

    pairs: list[Pair]
    left_out: list[LeftOut]


def placed(available: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """(cores of the server, cores of the generator): it gets those that are left over, or shares all where none is."""
    ordered = sorted(available)
    server, rest = ordered[:count], ordered[count:]
    return server, rest or ordered


@contextlib.contextmanager
def workloads(names: Sequence[str], *, plain: bool) -> Iterator[dict[str, Workload]]:
    """The models as the gateway reads them and as bench/peers does, in folders that are removed afterwards."""
    with rig.temporary_repository() as repository, rig.temporary_repository() as prepared:
        made = {}
        for name in names:
            if name == NULL:
                rig.write_null(repository, NULL)
            root = repository if name == NULL else rig.demo_repository()
            made[name] = Workload(name, root, _prepare(root / name / "1", prepared / name / "1", plain=plain))
        yield made


def _prepare(source: Path, target: Path, *, plain: bool) -> Path:
    """A version for the peers: with the normalisation in front of its graph, as the gateway's worker runs it."""
    from gateway.models.repository import read_version  # noqa: PLC0415 - beside the next, which is slow to import
    from gpuworker import graph  # noqa: PLC0415 - imports onnx

    shutil.copytree(source, target)
    if plain:
        contract = target / "model.toml"
        contract.write_text(contract.read_text().replace("[input]\n", "[input]\nexact = true\n"))
    if (source / "model.onnx").is_file():
        ready = graph.prepare(source / "model.onnx", read_version(source).contract)
        (target / "model.onnx").write_bytes(ready.content)
    return target


def take(peers: Sequence[Peer], plan: Plan, say: Callable[[str], None], keep: Callable[[Found], None]) -> Found:
    """Every row against every peer, round by round. A peer that fails is named and skipped there, never silently.

    `keep` gets what was found so far after each peer: a run of hours may be cut short.

    Raises:
        PeerFailed: our own gateway failed.
    """
    found = Found([], [])
    available = sorted(os.sched_getaffinity(0))
    counts = [count for count in plan.cores if count <= len(available)]
    found.left_out.extend(
        LeftOut("all", f"{count} cores", f"this machine gives us {len(available)}")
        for count in plan.cores
        if count not in counts
    )
    with workloads(plan.models, plain=plan.plain) as made:
        for number in range(plan.rounds):
            for workload in made.values():
                for count in counts:
                    for peer in peers:
                        where = f"{workload.name}, {count} core{'s'[: count > 1]}, round {number + 1}"
                        say(f"{peer.name}: {where}")
                        _against(peer, workload, placed(available, count), plan, number, found, where)
                        keep(found)
    return found


def _against(
    peer: Peer,
    workload: Workload,
    places: tuple[list[int], list[int]],
    plan: Plan,
    number: int,
    found: Found,
    where: str,
) -> None:
    """All rows of one peer on these cores, ours beside each."""
    cores, generator = places
    first = next(iter(plan.photos.values()))
    with served(OURS, workload, cores, first, None) as ours:
        tops = {name: ask_once(ours, workload, photo) for name, photo in plan.photos.items()}
        try:
            with served(peer, workload, cores, first, tops[next(iter(tops))]) as theirs:
                for name, photo in plan.photos.items():
                    if (top := ask_once(theirs, workload, photo)) != tops[name]:
                        raise PeerFailed(f"its best class of {name} is {top}, ours is {tops[name]}: not the same work")
                    for place, connections in enumerate(plan.connections):
                        row = Row(workload.name, len(cores), name, connections)
                        order = (ours, theirs) if (place + number) % 2 == 0 else (theirs, ours)
                        read = {
                            server.mark: reading(server, workload, photo, connections, plan, generator)
                            for server in order
                        }
                        found.pairs.append(Pair(row, peer.name, read[ours.mark], read[theirs.mark]))
        except _OursFailed as error:
            raise PeerFailed(f"ours: {error}") from error
        except (PeerFailed, OSError, TimeoutError, ValueError, LookupError) as error:
            found.left_out.append(LeftOut(peer.name, where, str(error) or type(error).__name__))


class _OursFailed(Exception):
    """Not the peer's fault."""


def reading(
    server: Server, workload: Workload, photo: bytes, connections: int, plan: Plan, generator: Sequence[int]
) -> Reading:
    """Load it and say what that took.

    Raises:
        PeerFailed: it answered with anything but 200, or not at all.
    """
    failure = _OursFailed if server.peer is OURS else PeerFailed
    request = loop.message(server.peer.ask(workload.name, photo), server.port)
    before_us = os.sched_getaffinity(0)
    os.sched_setaffinity(0, generator)
    try:
        uvloop.run(loop.closed(server.port, request, connections, plan.warmup_s))
        before = trees.cpu_ns(server.mark)
        result = uvloop.run(loop.closed(server.port, request, connections, plan.seconds))
        after = trees.cpu_ns(server.mark)
    except (OSError, TimeoutError) as error:
        raise failure(f"{connections} connections: {type(error).__name__} {error}") from error
    finally:
        os.sched_setaffinity(0, before_us)
    if set(result.statuses) != {200}:
        raise failure(f"{connections} connections: it answered {result.statuses} (status: count; 0: hung up)")
    return Reading(
        result.rate,
        result.percentile(50),
        result.percentile(99),
        trees.spent_ns(before, after) / result.answered / 1e3,
        trees.pss(server.mark) / 2**20,
    )
