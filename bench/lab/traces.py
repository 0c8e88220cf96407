"""Who comes when, wanting what by when: arrivals drawn from a seed. Knows no policy.

Times are absolute ns and begin at START_NS, because the core reads 0 as "never". Rates are multiples of a capacity in
images/s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

START_NS = 1_000_000_000

REALTIME, BATCH = 0, 1
"""Priorities, as the core numbers them."""


@dataclass(frozen=True)
class Trace:
    """Requests of one image each, ordered by arrival. Arrays are int64[n]; `end_ns` is the horizon."""

    arrival_ns: NDArray[np.int64]
    deadline_ns: NDArray[np.int64]
    priority: NDArray[np.int64]
    model: NDArray[np.int64]
    end_ns: int
    model_count: int = 1

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def seconds(self) -> float:
        """Length of the horizon."""
        return (self.end_ns - START_NS) / 1e9

    @property
    def rate(self) -> float:
        """Images/s offered over the whole horizon."""
        return len(self) / self.seconds


def _arrivals(
    draw: np.random.Generator, phases: Sequence[tuple[float, float]], start_ns: int = START_NS
) -> tuple[NDArray[np.int64], int]:
    """Poisson arrivals whose rate is constant within each phase of (images/s, seconds); and the end of the last.

    Given their number, arrivals of a Poisson process are uniform.
    """
    parts, begin = [], float(start_ns)
    for rate, seconds in phases:
        count = draw.poisson(rate * seconds)
        parts.append(np.sort(draw.uniform(begin, begin + seconds * 1e9, count)))
        begin += seconds * 1e9
    return np.concatenate(parts).astype(np.int64), int(begin)


def _trace(arrival_ns: NDArray[np.int64], end_ns: int, relative_ns: NDArray[np.int64] | int) -> Trace:
    zeros = np.zeros(len(arrival_ns), np.int64)
    return Trace(arrival_ns, arrival_ns + relative_ns, zeros, zeros, end_ns)


def phased(seed: int, phases: Sequence[tuple[float, float]], deadline_ns: int) -> Trace:
    """Poisson with a rate that changes: (images/s, seconds) each."""
    return _trace(*_arrivals(np.random.default_rng(seed), phases), deadline_ns)


def poisson(seed: int, rate: float, seconds: float, deadline_ns: int) -> Trace:
    """Poisson at `rate` images/s, all with the same relative deadline."""
    return phased(seed, [(rate, seconds)], deadline_ns)


def bursts(seed: int, rate: float, seconds: float, deadline_ns: int, *, phase_s: float = 0.05) -> Trace:
    """On and off in turns of `phase_s`: twice the rate, then nothing."""
    count = max(1, round(seconds / (2 * phase_s)))
    return phased(seed, [(2 * rate, phase_s), (0.0, phase_s)] * count, deadline_ns)


def diurnal(seed: int, peak: float, seconds: float, deadline_ns: int, *, trough_share: float = 0.1) -> Trace:
    """A day squeezed into `seconds`: a sine from `trough_share` of the peak rate up to the peak and back."""
    steps = 96
    angles = 2 * np.pi * (np.arange(steps) + 0.5) / steps
    level = trough_share + (1 - trough_share) * (1 - np.cos(angles)) / 2
    return phased(seed, [(peak * share, seconds / steps) for share in level], deadline_ns)


def mixed_deadlines(seed: int, rate: float, seconds: float, deadlines_ns: Sequence[int]) -> Trace:
    """Poisson, each request with one of several relative deadlines, equally often."""
    draw = np.random.default_rng(seed)
    arrival_ns, end_ns = _arrivals(draw, [(rate, seconds)])
    return _trace(arrival_ns, end_ns, draw.choice(np.array(deadlines_ns, np.int64), len(arrival_ns)))


def classes(
    seed: int, realtime: float, batch: float, seconds: float, *, deadline_ns: int, batch_deadline_ns: int
) -> Trace:
    """A real-time class at `realtime` images/s beside a batch class at `batch` images/s with a deadline of its own."""
    draw = np.random.default_rng(seed)
    first, end_ns = _arrivals(draw, [(realtime, seconds)])
    second, _ = _arrivals(draw, [(batch, seconds)])
    arrival_ns = np.concatenate([first, second])
    priority = np.repeat(np.array([REALTIME, BATCH], np.int64), [len(first), len(second)])
    order = np.argsort(arrival_ns, kind="stable")
    arrival_ns, priority = arrival_ns[order], priority[order]
    relative_ns = np.where(priority == REALTIME, deadline_ns, batch_deadline_ns)
    return Trace(arrival_ns, arrival_ns + relative_ns, priority, np.zeros_like(priority), end_ns)


def models(seed: int, rates: Sequence[float], seconds: float, deadline_ns: int) -> Trace:
    """One Poisson stream per model, at `rates[model]` images/s."""
    draw = np.random.default_rng(seed)
    arrival_ns, end_ns = _arrivals(draw, [(sum(rates), seconds)])
    model = draw.choice(len(rates), len(arrival_ns), p=np.array(rates) / sum(rates)).astype(np.int64)
    zeros = np.zeros_like(model)
    return Trace(arrival_ns, arrival_ns + deadline_ns, zeros, model, end_ns, len(rates))


def zipf(rate: float, model_count: int, *, exponent: float = 1.0) -> list[float]:
    """`rate` shared out by popularity: the k-th model gets a share proportional to 1 / k**exponent."""
    weights = 1 / np.arange(1, model_count + 1) ** exponent
    return [float(share) for share in rate * weights / weights.sum()]


def greedy(rate: float, model_count: int, *, greedy_rate: float) -> list[float]:
    """Models of equal popularity, but for model 0, which asks for `greedy_rate`."""
    return [greedy_rate] + [rate / (model_count - 1)] * (model_count - 1)


def joined(first: Trace, second: Trace) -> Trace:
    """`second` begins where `first` ends."""
    shift = first.end_ns - START_NS
    return Trace(
        np.concatenate([first.arrival_ns, second.arrival_ns + shift]),
        np.concatenate([first.deadline_ns, second.deadline_ns + shift]),
        np.concatenate([first.priority, second.priority]),
        np.concatenate([first.model, second.model]),
        second.end_ns + shift,
        max(first.model_count, second.model_count),
    )
