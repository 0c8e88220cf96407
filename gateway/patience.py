"""How long to wait for workers that come up: a time limit that stands still while they build engines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Patience:
    """Begins to run out when it is made. How long a build may take is the core's business, which kills whoever takes
    longer.

    `is_building` is asked at each look, and what it says holds for the time since the look before.
    """

    def __init__(
        self, limit_s: float, is_building: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left_s = limit_s
        self._is_building = is_building
        self._clock = clock
        self._looked_s = clock()

    def left_s(self) -> float:
        """Seconds that are left, 0 and less when it is over. To be asked often."""
        now_s = self._clock()
        if not self._is_building():
            self._left_s -= now_s - self._looked_s
        self._looked_s = now_s
        return self._left_s
