"""Copies of requests to a shadow version: sent when the original was answered, compared, counted, never returned.

A copy must never delay or fail an original. So it is of the batch class and nobody waits for it; it is made only while
there is room for it (images, bytes, decoding); and after a copy that may have killed its worker, none is made for a
while, because that worker may be the original's too. State: the copies on their way, and how long each shadow rests.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import time
from typing import TYPE_CHECKING

from gateway import errors, logs
from gateway.http.likeness import compare, remember
from gateway.scheduling.ticket import TENSOR, Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway.calls import Call
    from gateway.driver import Driver
    from gateway.http.likeness import Remembered
    from gateway.http.payloads import Query
    from gateway.http.predict import Served
    from gateway.scheduling.ticket import Body

_log = logs.get("shadow")

IMAGES_MAX = 64
"""Images of copies at a time, from the acceptance of the original to the answer of the shadow."""

BODIES_SHARE = 1 / 8
"""Part of the memory for bodies that copies may hold; and none is made while more than half of it is in use."""

DECODING_SHARE = 0.1
"""Part of the shortest deadline that decoding may take with a copy's images among what waits. Admission counts all of
it: a request that had just been promised an answer would be refused beside more.
"""

REST_S, REST_S_MAX = 60.0, 3600.0
"""How long nothing is copied after a copy's worker died; doubled each time until a copy is answered. A worker may die 5
times in 60 s before it is given up.
"""

DEADLY = (errors.WorkerLost,)
"""Outcomes that say that a worker died of a copy: by it, as far as can be told."""


class _Rest:
    """How long one shadow is left alone, as long as its line is the same."""

    __slots__ = ("length_s", "line_index", "until_ns")

    def __init__(self, line_index: int) -> None:
        self.line_index = line_index
        self.length_s = REST_S
        self.until_ns = 0


class _Copy:
    """One request on its way to a shadow. `call` is the original's, then the shadow's; `body` is held all the way."""

    __slots__ = ("body", "call", "image_count", "original", "ours", "query", "sent", "shadow")

    def __init__(self, original: Served, shadow: Served, call: Call, body: Body, query: Query) -> None:
        self.original = original
        self.shadow = shadow
        self.call = call
        self.body = body
        self.query = query
        self.image_count = len(call.tickets)
        self.sent = False
        self.ours: list[Remembered] = []
        """What the original said of each image that was sent."""


class Shadows:
    """All copies. `clock` tells ns; `draw` a number in [0, 1) for each request that could be copied.

    Copies are moved by the futures of the two calls: no coroutine waits for one.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        # No secret hangs on it, and one traffic is copied the same way twice.
        self._draw = draw or random.Random(0).random  # noqa: S311
        self._copies: set[_Copy] = set()
        self._stopped = False
        self._rests: dict[tuple[str, int], _Rest] = {}
        self.image_count = 0
        self.held_size = 0

    def follow(self, original: Served, call: Call, body: Body, query: Query) -> None:
        """A request to a version with a shadow was accepted: copy it once it is answered, if it is drawn, in what room
        there is. The caller's hold of the body stays the caller's.
        """
        assert original.shadow is not None
        shadow, share = original.shadow
        if self._stopped or self._draw() >= share:
            return
        copy = _Copy(original, shadow, call, body, query)
        if not self._has_room(copy):
            self._count(copy, "refused", copy.image_count)
            return
        body.hold()
        self._copies.add(copy)
        self.image_count += copy.image_count
        self.held_size += body.region.size
        call.answered.add_done_callback(functools.partial(self._original_done, copy))

    def keep(self, line_indexes: Collection[int]) -> None:
        """The shadows are these lines from now on: copies to others are given up, which would keep a line from
        becoming empty, and so its worker from going.
        """
        self._give_up([copy for copy in self._copies if copy.shadow.line.index not in line_indexes], "refused")

    def stop(self) -> None:
        """The gateway goes down, and is not to wait for copies."""
        self._stopped = True
        self.keep(())

    def _give_up(self, copies: list[_Copy], outcome: str) -> None:
        """Those that were sent are cancelled. The others end with their original, or when they would be sent."""
        for copy in copies:
            if copy.sent:
                self._driver.abandon(copy.call)
                self._count(copy, outcome, len(copy.ours))
                self._end(copy)

    def _has_room(self, copy: _Copy) -> bool:
        bodies, size = self._driver.core.bodies, copy.body.region.size
        return (
            self._clock() >= self._rest(copy.shadow).until_ns
            and self.image_count + copy.image_count <= IMAGES_MAX
            and copy.image_count <= copy.shadow.limits.images_max
            and self.held_size + size <= BODIES_SHARE * bodies.size
            and 2 * bodies.held_size <= bodies.size
        )

    def _original_done(self, copy: _Copy, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            self._end(copy)  # The client is gone, and with it what there is to compare with.
        else:
            # Behind the request's own coroutine, which is woken by the same future and writes the answer first.
            self._loop.call_soon(self._send, copy)

    def _send(self, copy: _Copy) -> None:
        """The original is answered: its turn."""
        try:
            copy.call = self._submit(copy)
        except errors.Refusal:
            self._count(copy, "refused", len(copy.ours))
            self._end(copy)
        except Exception:  # noqa: BLE001 - nobody waits for it, so the log has to know
            _log.exception("shadow_failed", model=copy.shadow.name)
            self._count(copy, "failed", len(copy.ours))
            self._end(copy)
        else:
            copy.sent = True
            copy.call.answered.add_done_callback(functools.partial(self._shadow_done, copy))

    def _submit(self, copy: _Copy) -> Call:
        """Hand the images that the original answered to the core. Raises Refusal."""
        shadow, now_ns = copy.shadow, self._clock()
        answered = [not isinstance(outcome, errors.Refusal) for outcome in copy.call.outcomes]
        copy.ours = [
            remember(outcome, copy.original.labels)
            for outcome in copy.call.outcomes
            if not isinstance(outcome, errors.Refusal)
        ]
        if not copy.ours:
            raise errors.Refusal("there is nothing to compare with")
        if self._stopped or now_ns < self._rest(shadow).until_ns:
            raise errors.Overloaded("the shadow rests")
        parts = list(itertools.compress(shadow.parts(copy.query, copy.body.region.offset), answered))
        if not self._can_decode(sum(size for _, size, encoding in parts if encoding is not TENSOR)):
            raise errors.Overloaded("decoders are busy with what somebody waits for")
        return self._driver.submit(
            shadow.line,
            copy.body,
            parts,
            priority=Priority.BATCH,
            deadline_ns=shadow.deadline_ns(now_ns, None, Priority.BATCH),
            top_k=shadow.top_k(None),
            expendable=True,
        )

    def _can_decode(self, size: int) -> bool:
        """Whether so many more encoded bytes would leave everybody's promises possible."""
        if not size:
            return True
        core = self._driver.core
        shortest_ns = min((line.deadline_ns for line in core.lines), default=0)
        load_ns = core.feeder.load_ns + core.feeder.estimate_ns(size)
        return load_ns <= DECODING_SHARE * shortest_ns * core.feeder.ready_count

    def _shadow_done(self, copy: _Copy, future: asyncio.Future[None]) -> None:
        """The shadow said something about every image."""
        if copy not in self._copies:
            return  # It was given up.
        del future
        deadly = False
        counts = self._driver.metrics.shadow(*_names(copy))
        for ours, outcome in zip(copy.ours, copy.call.outcomes, strict=True):
            if isinstance(outcome, errors.Refusal):
                deadly = deadly or isinstance(outcome, DEADLY)
                counts.image_done("failed")
                continue
            same, difference = compare(ours, remember(outcome, copy.shadow.labels))
            counts.image_done("same" if same else "different")
            if difference is not None:
                counts.differed(difference)
        self._end(copy)
        if deadly:
            self._leave_alone(copy.shadow)
        else:
            self._rest(copy.shadow).length_s = REST_S

    def _leave_alone(self, shadow: Served) -> None:
        """A copy's worker died. None is made for a while, and those that are on their way go no further."""
        rest = self._rest(shadow)
        rest.until_ns = self._clock() + int(rest.length_s * 1e9)
        _log.warning("shadow_rests", model=f"{shadow.name}/{shadow.version}", seconds=rest.length_s)
        rest.length_s = min(2 * rest.length_s, REST_S_MAX)
        self._give_up([copy for copy in self._copies if copy.shadow.line is shadow.line], "failed")

    def _end(self, copy: _Copy) -> None:
        self._copies.remove(copy)
        self.image_count -= copy.image_count
        self.held_size -= copy.body.region.size
        copy.body.release()

    def _count(self, copy: _Copy, outcome: str, image_count: int) -> None:
        if image_count:
            self._driver.metrics.shadow(*_names(copy)).image_done(outcome, image_count)

    def _rest(self, shadow: Served) -> _Rest:
        """A version that was loaded anew begins anew."""
        rest = self._rests.get((shadow.name, shadow.version))
        if rest is None or rest.line_index != shadow.line.index:
            rest = self._rests[shadow.name, shadow.version] = _Rest(shadow.line.index)
        return rest


def _names(copy: _Copy) -> tuple[str, str]:
    return f"{copy.original.name}/{copy.original.version}", str(copy.shadow.version)
