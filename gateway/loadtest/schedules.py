"""When requests are due: float64[count] seconds from the begin of a run, ascending. A seed draws the same each time.

Source: Schroeder, Wierman, Harchol-Balter, "Open Versus Closed: A Cautionary Tale" (NSDI 2006): users who do not know
of each other arrive as a Poisson process, whatever the server does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

COUNT_MAX = 5_000_000
"""Requests in one schedule: a slip of the pen in a rate is told, not tried."""


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Independent arrivals, `rate` a second on average. Raises ValueError over COUNT_MAX."""
    _check(rate, seconds)
    draw = np.random.default_rng(seed)
    # Given how many there are, the times of a Poisson process are uniform.
    return np.sort(draw.uniform(0.0, seconds, draw.poisson(rate * seconds)))


def constant(rate: float, seconds: float) -> NDArray[np.float64]:
    """Arrivals at even distances, the first at 0. Raises ValueError over COUNT_MAX."""
    _check(rate, seconds)
    return np.arange(math.ceil(rate * seconds), dtype=np.float64) / rate if rate else np.empty(0)


def bursts(rate: float, seconds: float, size: int, seed: int) -> NDArray[np.float64]:
    """`size` requests at one instant, at Poisson instants, so that `rate` a second come on average.

    Raises: ValueError over COUNT_MAX, or for a size below 1.
    """
    if size < 1:
        raise ValueError(f"a burst has 1 request or more, not {size}")
    _check(rate, seconds)
    return np.repeat(poisson(rate / size, seconds, seed), size)


def steps(phases: Sequence[tuple[float, float]], seed: int) -> NDArray[np.float64]:
    """Poisson arrivals whose rate changes: (rate, seconds) of each phase in turn. Raises ValueError over COUNT_MAX."""
    _check(1.0, sum(rate * seconds for rate, seconds in phases))
    due, begin = [np.empty(0)], 0.0
    for number, (rate, seconds) in enumerate(phases):
        due.append(begin + poisson(rate, seconds, seed + number))
        begin += seconds
    return np.concatenate(due)


def _check(rate: float, seconds: float) -> None:
    if not (rate >= 0 and seconds >= 0 and math.isfinite(rate) and math.isfinite(seconds)):
        raise ValueError(f"a rate and a time are 0 or more, not {rate} and {seconds}")
    if rate * seconds > COUNT_MAX:
        raise ValueError(f"{rate * seconds:.0f} requests are over {COUNT_MAX}; lower the rate or the time")
