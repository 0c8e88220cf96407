"""What an overload round says: the model's world at a scale, what was seen, and the figures that follow. No I/O."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from gateway.loadtest.shots import Shots

SETTLE_S = 0.5
"""Begin of an overload phase that is left out: what was accepted before it is still being answered."""

BUCKET_S = 0.1
"""Resolution of the recovery."""

TOLERANCE = 1.2
"""p99 of the recovery over p99 of the same load before: two samples of one thing differ by so much."""

MODEL = """backend = "fake"
[input]
width = 224
height = 224
crop_fraction = 1.0
[output]
task = "classification"
[batching]
sizes = {sizes}
[limits]
deadline_ms = {deadline_ms}
queue_max = {queue_max}
[fake]
base_ms = {base_ms}
image_ms = {image_ms}
"""


class Phase(NamedTuple):
    """A stretch of a round. `load`: arrivals over capacity; Poisson, or `even`, so that none waits for another."""

    name: str
    load: float
    seconds: float
    even: bool = False


GOALS = {
    "live_goodput_2x": ("ratio", ">=", 0.90),
    "live_goodput_10x": ("ratio", ">=", 0.85),
    "live_late_share": ("ratio", "<=", 0.001),
    "refusal_p99_ms": ("ms", "<=", 5.0),
    "refusal_cpu_us": ("us", "<=", 100.0),
    "overload_memory_mib": ("MiB", "<=", 64.0),
    "overload_recovery_s": ("s", "<=", 1.0),
    "low_load_added_ms": ("ms", "<=", 1.0),
}
"""Every figure: its unit and its goal."""


class World:
    """The model's times at a scale."""

    def __init__(self, scale: float, queue_max: int) -> None:
        self.scale = scale
        self.queue_max = queue_max
        self.base_ms = 2.9 * scale
        self.image_ms = 0.77 * scale
        self.deadline_ms = 50.0 * scale
        self.batch_max = math.floor((self.deadline_ms - self.base_ms) / self.image_ms)

    def run_ms(self, size: int) -> float:
        """l(b)."""
        return self.base_ms + self.image_ms * size

    @property
    def capacity(self) -> float:
        """Images per second at the largest batch that meets the deadline."""
        return self.batch_max / self.run_ms(self.batch_max) * 1e3

    def contract(self) -> str:
        """The model.toml."""
        sizes = [1, 2, *range(4, self.batch_max + 1, 4)]
        return MODEL.format(
            sizes=sizes,
            deadline_ms=self.deadline_ms,
            queue_max=self.queue_max,
            base_ms=round(self.base_ms, 6),
            image_ms=round(self.image_ms, 6),
        )


class Seen(NamedTuple):
    """The gateway at one instant, `at_s` into the round. `images`: outcomes of accepted images so far, by code."""

    at_s: float
    cpu_ns: dict[str, int]
    memory: int
    images: dict[str, float]


class Round(NamedTuple):
    """What one round gave: requests, what was seen at the begin of each phase and at the end, and in between."""

    shots: Shots
    seen: list[Seen]
    memory: list[tuple[float, int]]


class Account:
    """One round's figures."""

    def __init__(self, world: World, phases: tuple[Phase, ...], taken: Round) -> None:
        self.world = world
        self.taken = taken
        self.deadline_s = world.deadline_ms / 1e3
        self.places = {phase.name: place for place, phase in enumerate(phases)}
        ends = np.cumsum([phase.seconds for phase in phases]).tolist()
        self.spans = {phase.name: (end - phase.seconds, end) for phase, end in zip(phases, ends, strict=True)}
        shots = taken.shots
        took = shots.answered - shots.sent
        # A refusal is made at once: a 504 that took half the deadline was accepted before.
        self.refused = (shots.status >= 400) & ~((shots.status == 504) & (took > self.deadline_s / 2))
        self.accepted = (shots.status > 0) & ~self.refused

    def part(self, name: str) -> Shots:
        return self.taken.shots.between(*self.spans[name])

    def goodput(self, name: str, *, by_gateway: bool = False) -> float:
        """Good answers that came in the phase, a second, over capacity.

        By the client's clock from when they were due; `by_gateway`: by its own, from when it had their headers.
        """
        shots = self.taken.shots
        begin, end = self.spans[name]
        begin += SETTLE_S
        good = shots.good(self.deadline_s)
        if by_gateway:
            good = np.zeros(len(shots), bool)
            good[[one.place for one in shots.samples(200) if one.timing_ms["total"] <= self.world.deadline_ms]] = True
        came = (shots.answered >= begin) & (shots.answered < end)
        return float(np.count_nonzero(good & came)) / (end - begin) / self.world.capacity

    def late(self) -> tuple[float, float]:
        """(late or dropped, accepted) images, from the begin of the 2x phase to the end."""
        before, after = self.taken.seen[self.places["2x"]].images, self.taken.seen[-1].images
        delta = {code: count - before.get(code, 0.0) for code, count in after.items()}
        begin = self.spans["2x"][0]
        loaded = self.taken.shots.between(begin, math.inf)
        over = sum(sample.timing_ms.get("total", 0.0) > self.world.deadline_ms for sample in loaded.samples(200))
        return sum(delta.values()) - delta.get("ok", 0.0) + over, sum(delta.values())

    def refusal_ms(self, share: float, *, from_sent: bool) -> float:
        shots = self.taken.shots
        begin, end = self.spans["10x"]
        chosen = self.refused & (shots.due >= begin) & (shots.due < end)
        took = shots.answered[chosen] - (shots.sent if from_sent else shots.due)[chosen]
        return float(np.percentile(took, share)) * 1e3 if len(took) else math.nan

    def cpu(self, name: str) -> tuple[float, int, int]:
        """(µs of the gateway, answers to accepted requests, refusals) of a phase."""
        first, last = (self.taken.seen[self.places[name] + step] for step in (0, 1))
        came = (self.taken.shots.answered >= first.at_s) & (self.taken.shots.answered < last.at_s)
        used = (last.cpu_ns["gateway"] - first.cpu_ns["gateway"]) / 1e3
        return used, int(np.count_nonzero(came & self.accepted)), int(np.count_nonzero(came & self.refused))

    def refusal_cpu_us(self) -> tuple[float, float]:
        """(by difference: 10x less what its accepted cost at half the load; by slope: from 2x to 10x), each refusal."""
        half_us, half_accepted, _ = self.cpu("half")
        low_us, _, low_refused = self.cpu("2x")
        high_us, accepted, refused = self.cpu("10x")
        by_difference = (high_us - half_us / max(half_accepted, 1) * accepted) / refused if refused else math.nan
        rates = [(self.spans[name][1] - self.spans[name][0]) for name in ("2x", "10x")]
        more = refused / rates[1] - low_refused / rates[0]
        by_slope = (high_us / rates[1] - low_us / rates[0]) / more if more > 0 else math.nan
        return by_difference, by_slope

    def memory_mib(self) -> float:
        seen = self.taken.seen
        begin, end = self.spans["2x"][0], self.spans["recovery"][1]
        peak = max([size for at_s, size in self.taken.memory if begin <= at_s <= end] + [one.memory for one in seen])
        return (peak - seen[self.places["2x"]].memory) / (1 << 20)

    def recovery_s(self) -> float:
        """Until nothing is refused or lost any more and p99 is what it was before; the whole phase if never."""
        begin, end = self.spans["recovery"]
        limit_ms = self.part("half").percentile_ms(99) * TOLERANCE
        for step in range(round((end - begin) / BUCKET_S)):
            rest = self.taken.shots.between(begin + step * BUCKET_S, end)
            if rest.count(200) == len(rest) and rest.percentile_ms(99) <= limit_ms:
                return step * BUCKET_S
        return end - begin

    def added_ms(self) -> float:
        part = self.part("low")
        decoding = [sample.timing_ms["decode"] for sample in part.samples(200) if "decode" in sample.timing_ms]
        if not decoding:
            return math.nan
        return part.percentile_ms(50, 200) - self.world.run_ms(1) - statistics.median(decoding)

    def figures(self) -> dict[str, float]:
        late, accepted = self.late()
        return {
            "live_goodput_2x": self.goodput("2x"),
            "live_goodput_10x": self.goodput("10x"),
            "live_late_share": late / accepted if accepted else math.nan,
            "refusal_p99_ms": self.refusal_ms(99, from_sent=True),
            "refusal_cpu_us": max(self.refusal_cpu_us()),
            "overload_memory_mib": self.memory_mib(),
            "overload_recovery_s": self.recovery_s(),
            "low_load_added_ms": self.added_ms(),
        }
