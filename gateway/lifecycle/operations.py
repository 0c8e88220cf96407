"""Long work that somebody asked for: what it is, how far it got, how it ended. Bounded; performs nothing itself.

State: LIVE_COUNT_MAX operations that have not ended, and the last ENDED_COUNT_MAX that have.
"""

from __future__ import annotations

import asyncio
import enum
import secrets
import time
from typing import TYPE_CHECKING, Any

from gateway import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIVE_COUNT_MAX = 64
"""Operations that wait or run; one more is refused."""

ENDED_COUNT_MAX = 256
"""Operations that have ended and can still be asked for."""

KINDS = ("load", "unload", "reload", "configure", "evaluate", "restart", "wake", "unload_idle", "evict")
"""What there is to ask for: by operators, by the repository, by a request for a lazy model, by its use."""

_RETRY_AFTER_S = 5


class State(enum.StrEnum):
    """Where an operation is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Operation:
    """One piece of long work. `stage`: one word; `share`: 0 to 1 of it done; times are for people, in UTC."""

    __slots__ = (
        "_changed",
        "_ended",
        "created",
        "ended",
        "error",
        "id",
        "kind",
        "model",
        "result",
        "share",
        "stage",
        "started",
        "state",
    )

    def __init__(self, kind: str, model: str, changed: Callable[[Operation], None]) -> None:
        self.id = secrets.token_hex(8)
        self.kind = kind
        self.model = model
        self.state = State.QUEUED
        self.stage = "waiting"
        self.share = 0.0
        self.created = _now()
        self.started: str | None = None
        self.ended: str | None = None
        self.result: dict[str, Any] = {}
        self.error: dict[str, str] | None = None
        self._changed = changed
        self._ended: asyncio.Event | None = None
        """There once somebody has waited: hundreds of operations are remembered, few are waited for."""
        changed(self)

    def start(self) -> None:
        """Its turn has come."""
        assert self.state is State.QUEUED, self.state
        self.state = State.RUNNING
        self.started = _now()
        self._changed(self)

    def progress(self, stage: str, share: float) -> None:
        """How far it is. The share of an operation never falls."""
        self.stage = stage
        self.share = max(self.share, min(1.0, share))

    def succeed(self) -> None:
        """It ended well."""
        self.share = 1.0
        self._end(State.SUCCEEDED, "done")

    def fail(self, refusal: errors.Refusal) -> None:
        """It ended, and not as it was asked to."""
        self.error = {"code": refusal.code, "detail": refusal.detail}
        self._end(State.FAILED, "failed")

    def _end(self, state: State, stage: str) -> None:
        assert not self.is_ended, self.state
        self.state = state
        self.stage = stage
        self.ended = _now()
        self._changed(self)
        if self._ended is not None:
            self._ended.set()

    @property
    def is_ended(self) -> bool:
        """Whether it is over, one way or the other."""
        return self.state in {State.SUCCEEDED, State.FAILED}

    async def wait_ended(self, timeout_s: float | None = None) -> bool:
        """Until it is over; False when that takes longer than `timeout_s`."""
        if self.is_ended:
            return True
        self._ended = self._ended or asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def document(self) -> dict[str, Any]:
        """As plain data, for the admin front."""
        return {
            "id": self.id,
            "kind": self.kind,
            "model": self.model,
            "state": self.state.value,
            "stage": self.stage,
            "share": round(self.share, 3),
            "created": self.created,
            "started": self.started,
            "ended": self.ended,
            "result": self.result,
            "error": self.error,
        }


class Operations:
    """Every operation that is remembered, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.counts = {(kind, state.value): 0 for kind in KINDS for state in State}
        """How many of each kind came into each state, for the metrics."""
        self._live: dict[str, Operation] = {}
        self._over: dict[str, Operation] = {}

    def begin(self, kind: str, model: str = "") -> Operation:
        """A new operation, queued; `kind` is one of KINDS. Raises Overloaded."""
        assert kind in KINDS, kind
        if len(self._live) >= LIVE_COUNT_MAX:
            raise errors.Overloaded(
                f"{LIVE_COUNT_MAX} operations are waiting already; try again when some have ended",
                retry_after_s=_RETRY_AFTER_S,
            )
        operation = Operation(kind, model, self._changed)
        self._live[operation.id] = operation
        return operation

    def get(self, number: str) -> Operation | None:
        """The operation with this id, if it is remembered."""
        return self._live.get(number) or self._over.get(number)

    def __iter__(self) -> Iterator[Operation]:
        """The ended ones in the order in which they ended, then the live ones in the order in which they began."""
        yield from self._over.values()
        yield from self._live.values()

    @property
    def live_count(self) -> int:
        """Operations that have not ended."""
        return len(self._live)

    def _changed(self, operation: Operation) -> None:
        key = operation.kind, operation.state.value
        self.counts[key] += 1
        if operation.is_ended:
            self._over[operation.id] = self._live.pop(operation.id)
            if len(self._over) > ENDED_COUNT_MAX:
                del self._over[next(iter(self._over))]


def _now() -> str:
    """This moment for people: UTC, ISO 8601, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
