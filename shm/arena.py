"""Who owns every slot and every body region. Pure bookkeeping in the gateway's heap; no shared byte is read or written.

A slot moves only along TRANSITIONS; any other move is a bug and an assertion failure::

    FREE -admit-> FILLING -ready-> QUEUED -send-> RUNNING -reply-> DONE -output read-> FREE
                  [decoder]        [gateway]      [worker]         [gateway]
    FILLING, RUNNING -cancel | deadline-> ZOMBIE -holder answers, or is reaped-> FREE
    QUEUED -cancel | deadline-> FREE      FILLING -decode failed-> FREE
    FILLING -decoder died, image goes to another-> FREE      RUNNING -worker died, batch runs again-> QUEUED
"""

from __future__ import annotations

import bisect
import enum
from typing import NamedTuple

from shm import layout


class SlotState(enum.IntEnum):
    """Where a slot is in its life; the comment names who holds its bytes."""

    FREE = 0  # nobody
    FILLING = 1  # a decoder, or the gateway copying a tensor
    QUEUED = 2  # the gateway
    RUNNING = 3  # a worker
    DONE = 4  # the gateway, until the output was read
    ZOMBIE = 5  # a decoder or a worker, for a ticket that is already answered


_S = SlotState
TRANSITIONS: frozenset[tuple[SlotState, SlotState]] = frozenset(
    {
        (_S.FREE, _S.FILLING),
        (_S.FILLING, _S.QUEUED),
        (_S.FILLING, _S.ZOMBIE),
        (_S.FILLING, _S.FREE),
        (_S.QUEUED, _S.RUNNING),
        (_S.QUEUED, _S.FREE),
        (_S.RUNNING, _S.DONE),
        (_S.RUNNING, _S.ZOMBIE),
        (_S.RUNNING, _S.QUEUED),
        (_S.RUNNING, _S.FREE),
        (_S.DONE, _S.FREE),
        (_S.ZOMBIE, _S.FREE),
    }
)

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7.
_FREE, _FILLING = SlotState.FREE, SlotState.FILLING

_ALLOWED = [[(a, b) in TRANSITIONS for b in _S] for a in _S]


class SlotArena:
    """The slots of one model. `free_count` is what admission looks at."""

    __slots__ = ("_free", "_states", "count")

    def __init__(self, count: int) -> None:
        assert count > 0
        self.count = count
        self._states = [SlotState.FREE] * count
        # Last freed is first granted: its pages are warm in some cache.
        self._free = list(range(count - 1, -1, -1))

    @property
    def free_count(self) -> int:
        """Slots that can be admitted now."""
        return len(self._free)

    def state(self, slot: int) -> SlotState:
        """The state of one slot."""
        return self._states[slot]

    def admit_nowait(self) -> int | None:
        """Grant a slot (FREE → FILLING), or None when all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._states[slot] = _FILLING
        return slot

    def move(self, slot: int, target: SlotState) -> None:
        """Move a granted slot along TRANSITIONS; to FREE it becomes grantable again."""
        assert _ALLOWED[self._states[slot]][target], f"slot {slot}: {self._states[slot].name} to {target.name}"
        self._states[slot] = target
        if target is _FREE:
            self._free.append(slot)

    def statistics(self) -> dict[str, int]:
        """Slots per state, by lower-case name."""
        counts = [0] * len(SlotState)
        for state in self._states:
            counts[state] += 1
        return {state.name.lower(): counts[state] for state in SlotState}


class Region(NamedTuple):
    """A range of the bodies segment: `offset` and `size` in bytes; `size` is what was asked for."""

    offset: int
    size: int


class BodyArena:
    """Regions of the bodies segment, first fit by address, so that a quiet server touches only its lowest pages."""

    __slots__ = ("_ends", "_starts", "held_size", "size")

    def __init__(self, size: int) -> None:
        assert size >= layout.BODY_ALIGN
        self.size = size - size % layout.BODY_ALIGN
        self.held_size = 0
        # Free ranges [start, end), sorted by address, never touching each other.
        self._starts = [0]
        self._ends = [self.size]

    def allocate_nowait(self, size: int) -> Region | None:
        """Take `size` bytes (at least one), or None when no free range is long enough."""
        taken = layout.align(max(size, 1), layout.BODY_ALIGN)
        for index, start in enumerate(self._starts):
            end = self._ends[index]
            if end - start >= taken:
                if end - start == taken:
                    del self._starts[index], self._ends[index]
                else:
                    self._starts[index] = start + taken
                self.held_size += taken
                return Region(start, size)
        return None

    def shrink(self, region: Region, size: int) -> Region:
        """Keep the first `size` bytes of a region and free the rest."""
        assert 0 < size <= region.size
        kept = layout.align(size, layout.BODY_ALIGN)
        taken = layout.align(region.size, layout.BODY_ALIGN)
        if kept < taken:
            self.free(Region(region.offset + kept, taken - kept))
        return Region(region.offset, size)

    def free(self, region: Region) -> None:
        """Give a region back; freeing what is not held is an assertion failure."""
        start = region.offset
        taken = layout.align(max(region.size, 1), layout.BODY_ALIGN)
        end = start + taken
        index = bisect.bisect_left(self._starts, start)
        joins_left = index > 0 and self._ends[index - 1] == start
        joins_right = index < len(self._starts) and self._starts[index] == end
        assert index == 0 or self._ends[index - 1] <= start, f"region at {start} is freed twice"
        assert index == len(self._starts) or end <= self._starts[index], f"region at {start} is freed twice"
        self.held_size -= taken
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif joins_left:
            self._ends[index - 1] = end
        elif joins_right:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)
