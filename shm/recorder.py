"""A child's flight recorder: which image or batch it is working on, read only after its death.

Not a flag: nobody acts on it while the child lives, so it needs no memory ordering. The reaped death publishes it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shm.segment import Segment

_WORD = struct.Struct("<Q")


class Recorder:
    """One word in a segment of layout.RECORDER_SIZE bytes."""

    __slots__ = ("_map",)

    def __init__(self, segment: Segment) -> None:
        self._map = segment.map

    def note(self, number: int) -> None:
        """Say what is being worked on; 0 for nothing."""
        _WORD.pack_into(self._map, 0, number)

    def last(self) -> int:
        """What the dead child was working on; 0 for nothing."""
        number: int = _WORD.unpack_from(self._map, 0)[0]
        return number
