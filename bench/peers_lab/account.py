"""What the numbers say: pairs of ours and a peer in one row, who won it, and by how much. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Row(NamedTuple):
    """What is asked of a server: the model, the cores that it has, the photo's size and the connections."""

    model: str
    cores: int
    photo: str
    connections: int


class Reading(NamedTuple):
    """One stretch of load on one server. CPU time is of all its processes; memory their proportional share."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    pss_mib: float


class Pair(NamedTuple):
    """Ours and a peer's reading of the same row, taken one right after the other."""

    row: Row
    peer: str
    ours: Reading
    theirs: Reading


class Standing(NamedTuple):
    """A peer in a row over all rounds. Margins above 1 are in our favour: their CPU over ours, our rate over theirs.

    Margins are medians of what each pair said, not ratios of medians: a slow minute hits both of a pair.
    """

    row: Row
    peer: str
    ours: Reading
    theirs: Reading
    cpu_margin: float
    rate_margin: float


def standings(pairs: Iterable[Pair]) -> list[Standing]:
    """One for each row and peer, in the order in which they came first."""
    grouped: dict[tuple[Row, str], list[Pair]] = {}
    for pair in pairs:
        grouped.setdefault((pair.row, pair.peer), []).append(pair)
    return [
        Standing(
            row,
            peer,
            median([pair.ours for pair in group]),
            median([pair.theirs for pair in group]),
            statistics.median(pair.theirs.cpu_us / pair.ours.cpu_us for pair in group),
            statistics.median(pair.ours.rate / pair.theirs.rate for pair in group),
        )
        for (row, peer), group in grouped.items()
    ]


def median(readings: Sequence[Reading]) -> Reading:
    """Column by column."""
    return Reading(*(statistics.median(column) for column in zip(*readings, strict=True)))


def figures(found: Sequence[Standing], model: str) -> dict[str, float]:
    """Rows of a model, those in which ours beat every peer, the smallest margin, and ours over the median memory.

    A row is won when each peer that was measured in it is beaten; a tie is not a win. Empty without rows.
    """
    rows: dict[Row, list[Standing]] = {}
    for standing in found:
        if standing.row.model == model:
            rows.setdefault(standing.row, []).append(standing)
    if not rows:
        return {}
    all_of_them = [standing for group in rows.values() for standing in group]
    memory = {
        peer: statistics.median(one.theirs.pss_mib for one in all_of_them if one.peer == peer)
        for peer in {one.peer for one in all_of_them}
    }
    ours = statistics.median(one.ours.pss_mib for one in all_of_them)
    return {
        "peer_rows": len(rows),
        "peer_rows_cpu_won": sum(all(one.cpu_margin > 1 for one in group) for group in rows.values()),
        "peer_rows_rate_won": sum(all(one.rate_margin > 1 for one in group) for group in rows.values()),
        "cpu_margin_min": min(one.cpu_margin for one in all_of_them),
        "peer_memory_over_median": ours / statistics.median(memory.values()),
    }
