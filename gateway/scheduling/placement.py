"""Which worker takes the next batch, and whether it may already be given one while it still runs another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.restarts import ChildState, State
from gateway.scheduling.ticket import Seal
from gateway.scheduling.watch import GRACE_NS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.scheduling.profile import Profile
    from gateway.scheduling.restarts import Restarts
    from gateway.scheduling.ticket import Batch

STAGE_LEAD_NS = 500_000
"""A second batch goes to a worker when its first is expected to end within this: it hides the hop, and binds late."""

STAGE_WORTH_NS = 1_000_000
"""Behind a batch shorter than this nothing is staged unless it is full: the hop is cheaper than the wake-ups."""

HANG_NS_MIN = 1_000_000_000
HANG_FACTOR = 5
"""A worker that has not answered a batch after max(HANG_NS_MIN, HANG_FACTOR * l(b)) is hung."""

OVERLAP_NS, OVERLAP_SHARE = 1_500_000, 8
"""Where batches overlap, a second one is sent so much, and an OVERLAP_SHARE-th of the first, before it has to be: a
timer is up to 1 ms late, the first may be quicker than expected, and what comes too late leaves the device idle.
"""

BUILD_SILENCE_NS = 60_000_000_000
"""A worker that builds an engine and has said nothing for this long is hung."""

BATCHES_MAX = 2
"""One running, one staged. More would hide nothing and add l(B) to every deadline."""


class WorkerState(ChildState):
    """One worker as the core sees it: a set of models on one seat, through all the lives of its process.

    `batches[0]` runs, `batches[1]` is staged.
    """

    __slots__ = (
        "batches",
        "building",
        "building_from_ns",
        "built_ns",
        "came_up",
        "free_at_ns",
        "heir",
        "interrupted_ns",
        "kind",
        "models",
        "news_ns",
        "profiles",
        "retiring",
        "seat",
        "start_ns",
        "was_ready",
    )

    def __init__(
        self, index: int, seat: int = 0, models: frozenset[int] = frozenset(), restarts: Restarts | None = None
    ) -> None:
        super().__init__(index, restarts)
        self.seat = seat
        """Which of the configured devices it is on; for a while it may share that with its successor."""
        self.models = models
        """By index: what it is started with."""
        self.retiring = False
        """Another one takes its place: it finishes what nobody else can, and goes."""
        self.heir: WorkerState | None = None
        """Who is started on its seat once it is gone."""
        self.interrupted_ns = 0
        """When it was asked to give up what it runs; 0 unless it owes the answer."""
        self.was_ready = False
        """Whether it, or whose heir it is, came up before: it is expected to again."""
        self.came_up = False
        """Whether it ever said which of its models it could load."""
        self.batches: list[Batch] = []
        self.profiles: dict[int, Profile] = {}
        """By model index: what this worker (or, while it restarts, its last incarnation) has loaded."""
        self.free_at_ns = 0
        """When everything it was given is expected to be done."""
        self.kind = ""
        """What kind of device it runs on."""
        self.start_ns = 0
        """How long its last start took, less what it built, which it need not build again."""
        self.building: int | None = None
        """The model, by index, whose engine it builds."""
        self.building_from_ns = 0
        """Since when."""
        self.news_ns = 0
        """When it last said so."""
        self.built_ns = 0
        """How long it took over engines since it was started, but for the one that it builds."""

    @property
    def is_expected(self) -> bool:
        """Whether it will take batches: it is up, or was and is coming back."""
        return self.ready or (self.was_ready and not self.is_hopeless)

    def begin(self, now_ns: int) -> None:
        """It is being started."""
        super().begin(now_ns)
        self.building, self.built_ns = None, 0

    def builds(self, model: int, now_ns: int) -> None:
        """It said that it builds the engine of a model. The clock of its start stands still meanwhile."""
        if self.building != model:
            self.loads(now_ns)
            self.move(State.BUILDING)
            self.building, self.building_from_ns = model, now_ns
        self.news_ns = now_ns

    def loads(self, now_ns: int) -> None:
        """It said that it does anything else with a model."""
        if self.building is not None:
            self.built_ns += now_ns - self.building_from_ns
            self.building = None
        if self.state in (State.STARTING, State.BUILDING):
            self.move(State.WARMING)

    def up_by_ns(self, start_timeout_ns: int, build_timeout_ns: int) -> int:
        """When it must have come up, or while it builds: have built, or have said that it still does."""
        if self.building is None:
            return self.started_ns + start_timeout_ns + self.built_ns
        return min(self.building_from_ns + build_timeout_ns, self.news_ns + BUILD_SILENCE_NS)

    def lateness(self, now_ns: int) -> str:
        """What one that has not come up by then did not do."""
        if self.building is None:
            return super().lateness(now_ns)
        if now_ns >= self.news_ns + BUILD_SILENCE_NS:
            return "hung while it built an engine"
        return "did not build an engine in time"

    def expected_free_ns(self, now_ns: int) -> int:
        """When it can start another batch. What is overdue is expected to take as long again as it is overdue."""
        if not self.ready:
            begun_ns = self.started_ns or self.spawn_at_ns or now_ns
            return begun_ns + self.start_ns
        if self.batches and now_ns > self.free_at_ns:
            return 2 * now_ns - self.free_at_ns
        return self.free_at_ns

    def sendable_ns(self, now_ns: int) -> int:
        """When it can be given another batch: now, or when its first of two is answered."""
        if not self.ready:
            return self.expected_free_ns(now_ns)
        return now_ns if len(self.batches) < BATCHES_MAX else self.free_at_ns - self.batches[1].expected_ns

    def begins_ns(self, now_ns: int, lead_ns: int) -> int:
        """When its device can begin with another batch, which has to be sent `lead_ns` before."""
        free_ns = self.expected_free_ns(now_ns)
        return max(free_ns, self.sendable_ns(now_ns) + lead_ns) if lead_ns else free_ns

    def owes_by_ns(self) -> int | None:
        """When the batch that it runs must have been answered; None while it has none."""
        if not self.batches:
            return None
        if self.interrupted_ns:
            return self.interrupted_ns + GRACE_NS
        batch = self.batches[0]
        return batch.started_ns + max(HANG_NS_MIN, HANG_FACTOR * batch.expected_ns)

    def interrupt(self, now_ns: int) -> bool:
        """Note that it is asked to give up what it runs; False when it was asked before."""
        if self.interrupted_ns:
            return False
        self.interrupted_ns = now_ns
        return True

    def serves(self, model: int) -> bool:
        """Whether it has the model, or is expected to have it again."""
        return self.was_ready and not self.is_hopeless and model in self.profiles


def takers(workers: Iterable[WorkerState]) -> list[WorkerState]:
    """Workers that could be given a batch: the idle ones, else the one that is free first.

    Behind a suspect nothing is staged: where batches overlap, the one behind could be what it is convicted of.
    """
    idle, busy = [], None
    for worker in workers:
        if not worker.ready:
            continue
        if not worker.batches:
            idle.append(worker)
        elif len(worker.batches) == BATCHES_MAX or worker.batches[0].seal is Seal.SUSPECT:
            continue
        elif busy is None or worker.free_at_ns < busy.free_at_ns:
            busy = worker
    return idle or ([busy] if busy is not None else [])


def staging_from_ns(worker: WorkerState, lead_ns: int = 0) -> int:
    """From when on a busy worker may be given its second batch even though that is not full. `lead_ns`: how long before
    its device can begin with that one it has to be sent.
    """
    batch = worker.batches[0]
    if lead_ns + batch.expected_ns < STAGE_WORTH_NS:
        return worker.free_at_ns + STAGE_WORTH_NS  # by then it has answered, or was measured wrongly
    if lead_ns:
        return worker.free_at_ns - lead_ns - OVERLAP_NS - batch.expected_ns // OVERLAP_SHARE
    return worker.free_at_ns - STAGE_LEAD_NS
