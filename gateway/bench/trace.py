"""Recorded traces: a text file with a line per request, its time in seconds and the size of its image in bytes.

Times may count from anything: the first request is sent at once. Any web server's access log gives such a file.
Lines that begin with '#' are comments, what stands behind the second column is passed over, order does not matter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from gateway.errors import InvalidSettings
from gateway.loadtest.schedules import COUNT_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIZE_MAX = 1 << 40


def parse(name: str, text: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(seconds from the first request, ascending; bytes of each). Raises InvalidSettings, which names the line."""
    times: list[float] = []
    sizes: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            at, size = float(words[0]), int(words[1])
        except (ValueError, IndexError):
            raise InvalidSettings(f"--trace {name}, line {number}: {line[:60]!r} is no 'seconds bytes'") from None
        if not math.isfinite(at) or not 0 <= size <= SIZE_MAX:
            raise InvalidSettings(f"--trace {name}, line {number}: {line[:60]!r} is out of bounds")
        times.append(at)
        sizes.append(size)
        if len(times) > COUNT_MAX:
            raise InvalidSettings(f"--trace {name}: holds more than {COUNT_MAX} requests")
    if not times:
        raise InvalidSettings(f"--trace {name}: holds no request; a line is 'seconds bytes'")
    order = np.argsort(times, kind="stable")
    due = np.array(times)[order]
    return due - due[0], np.array(sizes, np.int64)[order]


def written(due_s: Sequence[float] | NDArray[np.float64], sizes: Sequence[int]) -> str:
    """A trace as a file's content, to the microsecond."""
    lines = [f"{at:.6f} {size}\n" for at, size in zip(due_s, sizes, strict=True)]
    return "".join(["# seconds bytes\n", *lines])


def nearest(sizes: NDArray[np.int64], have: Sequence[int]) -> NDArray[np.int64]:
    """For each size the index of the nearest of those that we have."""
    order = np.argsort(have, kind="stable")
    ascending = np.array(have, np.int64)[order]
    right = np.clip(np.searchsorted(ascending, sizes), 1 if len(have) > 1 else 0, len(have) - 1)
    left = np.maximum(right - 1, 0)
    chosen = np.where(sizes - ascending[left] <= ascending[right] - sizes, left, right)
    found: NDArray[np.int64] = order[chosen].astype(np.int64)
    return found
