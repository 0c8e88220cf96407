"""Whether what was promised can be kept: the plan of batches on workers, earliest due time first.

The plan is never stored. It is what would happen if nothing more came: each model's images in order of their due times,
cut into batches of the size that its `pace` plans with, each on the worker that is free first. A promise is made only
if the plan keeps all of them; whoever leaves the plan's order asks `slack_ns` first.

Source: reference 7.2, `feasible`.
"""

from __future__ import annotations

import bisect
import heapq
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.scheduling.line import Line
    from gateway.scheduling.placement import WorkerState

STALE_NS = 500_000
"""With an idle worker, planned starts move with time; older than this they are worked out anew when they matter."""

NEVER_NS = 1 << 62

FEW_BATCHES = 4
"""With more batches than this waiting, one worker alone is not going to have room for them."""

FEW = 0.5
"""Where fewer real-time images come within a deadline, no room is kept free for them."""


_BY_DUE = operator.itemgetter(0, 1)
"""Of chunks; those of one model that are due together stay as they were cut, whole ones first."""


class _Starts:
    """When the coming batches of one line start and end, were it alone; kept until a worker or the size changes.

    `at_ns`: the earliest time that one sent then could start, which is later than then where devices overlap batches.
    """

    __slots__ = ("_heap", "at_ns", "by_counts", "ends_ns", "idle_count", "size", "starts_ns", "version")

    def __init__(self, line: Line, workers: Iterable[WorkerState], version: int, at_ns: int) -> None:
        self.version = version
        self.size = line.pace.size
        self.at_ns = at_ns
        lead_ns = line.lead_ns
        self._heap = []
        self.idle_count = 0
        for worker in workers:
            profile = worker.profiles.get(line.index)
            if profile is None:
                continue
            free_ns = worker.begins_ns(at_ns - lead_ns, lead_ns)
            if free_ns <= at_ns:
                free_ns = at_ns
                self.idle_count += 1
            self._heap.append((free_ns, worker.index, profile.by_count))
        heapq.heapify(self._heap)
        self.starts_ns: list[int] = []
        self.ends_ns: list[int] = []
        """Of each batch, were it full."""
        self.by_counts: list[list[int]] = []
        """What n images take on the worker of each batch."""

    def reach(self, count: int) -> None:
        """Work out the first `count` batches."""
        heap, size = self._heap, self.size
        while len(self.starts_ns) < count:
            start_ns, index, by_count = heap[0]
            end_ns = start_ns + by_count[size]
            self.starts_ns.append(start_ns)
            self.ends_ns.append(end_ns)
            self.by_counts.append(by_count)
            heapq.heapreplace(heap, (end_ns, index, by_count))

    def is_stale(self, count: int, now_ns: int) -> bool:
        """Whether time has moved the first `count` batches: an idle worker starts later, a busy one is overdue."""
        if self.idle_count:
            return count > self.idle_count
        return bool(self.starts_ns) and now_ns > self.starts_ns[0] + STALE_NS

    def __bool__(self) -> bool:
        return bool(self._heap)


class Plan:
    """All lines on all workers; `busy`: those of which images wait, by index.

    Whoever changes when a worker is free, or what a batch costs, calls `changed`.
    """

    __slots__ = ("_busy", "_lines", "_starts", "_workers", "version")

    def __init__(self, lines: Sequence[Line], workers: Sequence[WorkerState], busy: Sequence[Line]) -> None:
        self._lines = lines
        self._busy = busy
        self._workers = workers
        self.version = 0
        self._starts: dict[int, _Starts] = {}

    def changed(self) -> None:
        """A worker's free time, a profile or a size is not what it was."""
        self.version += 1

    def forget(self, line: Line) -> None:
        """The line is gone."""
        self._starts.pop(line.index, None)
        self.changed()

    def lateness_ns(
        self, line: Line, due_ns: int, count: int, ready_ns: int, now_ns: int, *, growing: bool = True
    ) -> int:
        """By how much the worst promise would be broken if `count` images more were promised for `due_ns`.

        0 or less: none. They will be decoded at `ready_ns`. NEVER_NS: no worker could run them. `growing`: their batch
        is expected to grow until it starts; under overload that keeps out those who would keep it small.
        """
        if len(line.dues) < FEW_BATCHES * line.pace.size and self._has_room(line, due_ns, count, max(ready_ns, now_ns)):
            return 0
        busy = self._busy
        if len(busy) > 1 or (busy and busy[0] is not line):
            company = self._busy_company(line)
            if any(other is not line for other in company):
                if not line.dues:
                    company.append(line)
                return self._together_ns(now_ns, company, line, due_ns, count, ready_ns)
        return self._alone_ns(line, due_ns, count, ready_ns, now_ns, growing=growing)

    def _has_room(self, line: Line, due_ns: int, count: int, now_ns: int) -> bool:
        """Whether one worker alone would do everything, in whole batches, before the first due time. Costs a fraction
        of the plan, and is all that is needed while there is time enough.
        """
        for worker in self._workers:
            if worker.ready and line.index in worker.profiles:
                break
        else:
            return False
        work_ns = lead_ns = 0
        for other in self._busy if line.dues else (*self._busy, line):
            waiting = len(other.dues)
            if other is line:
                waiting += count
            if other.dues and other.dues[0] < due_ns:
                due_ns = other.dues[0]
            if other.profile is None or other.index not in worker.profiles or not other.alike:
                return False
            work_ns += -(-waiting // other.pace.size) * other.batch_ns
            lead_ns = max(lead_ns, other.lead_ns)
        return max(now_ns, worker.begins_ns(now_ns, lead_ns)) + work_ns <= due_ns

    def company(self, line: Line) -> list[Line]:
        """The lines, itself among them, that share workers, or share them with one that does: whatever is promised to
        one of them can be in the way of the others. What becomes of any other line is nothing to them.
        """
        members = self._members(line)
        return [other for other in self._lines if other.index in members]

    def _busy_company(self, line: Line) -> list[Line]:
        """Of the line's company those of which images wait."""
        busy = self._busy
        if len(busy) == 1 and busy[0] is line:
            return [line]
        members = self._members(line)
        return [other for other in busy if other.index in members]

    def _members(self, line: Line) -> set[int]:
        """The company, by index."""
        members = {line.index}
        grown = len(self._lines) > 1
        while grown:
            grown = False
            for worker in self._workers:
                models = worker.profiles.keys()
                if not models <= members and not members.isdisjoint(models):
                    members |= models
                    grown = len(members) < len(self._lines)
        return members

    def slack_ns(self, now_ns: int, line: Line) -> int:
        """How much later everything in the line's company could start with no promise broken; negative: how late the
        worst one will be.
        """
        return -self._together_ns(now_ns, self._busy_company(line))

    def crowds(self, now_ns: int, line: Line) -> bool:
        """Whether real-time images that come as they lately did would find no room: the batch class of the line, and
        of its company, has too much.

        The k-th worker to be free takes the k-th batch of them, whose first image comes when the k before are full.
        """
        for other in self.company(line):
            rate = other.pace.rate(now_ns)
            if not other.serving or rate * other.deadline_ns < FEW:
                continue
            able = [w for w in self._workers if w.is_expected and other.index in w.profiles]
            budget_ns = other.deadline_ns - other.pace.margin_ns(other.deadline_ns)
            lead_ns = other.lead_ns
            waits = sorted(
                (max(lead_ns, w.begins_ns(now_ns, lead_ns) - now_ns), w.profiles[other.index].by_count) for w in able
            )
            for place, (wait_ns, by_count) in enumerate(waits):
                grown = min(other.pace.size, 1 + int(rate * (wait_ns - lead_ns)))
                if wait_ns + by_count[grown] > place * grown / rate + budget_ns:
                    return True
        return False

    def _alone_ns(self, line: Line, due_ns: int, count: int, ready_ns: int, now_ns: int, *, growing: bool) -> int:
        """`lateness_ns` where nothing else waits: only batches from the newcomers' on can change."""
        sent_ns, decoded_ns = now_ns, ready_ns
        # Here a batch that is sent now, or is decoded then, starts when the device can begin with it.
        now_ns += line.lead_ns
        ready_ns += line.lead_ns
        dues, size = line.dues, line.pace.size
        total = len(dues) + count
        place = len(dues) if not dues or due_ns >= dues[-1] else bisect.bisect_right(dues, due_ns)
        first, last = place // size, (total - 1) // size
        starts = self._starts_of(line, last + 1, now_ns)
        if not starts:
            return NEVER_NS
        drift_ns = now_ns - starts.at_ns if starts.idle_count else 0
        behind = (place + count - 1) // size + 1
        # Where the batch class waits, batches are full anyway.
        rate = line.pace.rate(now_ns) if growing and not line.batch_count else 0.0
        delay_ns = 0
        worst_ns = -NEVER_NS
        for chunk in range(first, behind):
            start_ns = starts.starts_ns[chunk] + (drift_ns if chunk >= starts.idle_count else 0)
            start_ns = max(start_ns, now_ns) + delay_ns
            if start_ns < ready_ns:
                # A newcomers' batch waits until they are decoded, and what is behind it waits with it.
                delay_ns, start_ns = ready_ns - start_ns, ready_ns
            by_count, head = starts.by_counts[chunk], chunk * size
            # Of the batch class only what is due before them: the rest fills up what room there is, or waits.
            held = min(size, max(place + count, total - line.batch_count) - head)
            grown = min(size, held + int(rate * (start_ns - now_ns)))
            late_ns = start_ns + by_count[grown] - due_ns
            if head < place:
                late_ns = max(late_ns, start_ns + by_count[held] - dues[head])
            worst_ns = max(worst_ns, late_ns)
        moved_ns = drift_ns + delay_ns
        if behind < last:
            # Whole batches, whose first images move back by `count` places.
            heads = dues[behind * size - count : last * size - count : size]
            worst_ns = max(worst_ns, moved_ns + max(map(operator.sub, starts.ends_ns[behind:last], heads)))
        if behind <= last:
            start_ns = max(now_ns, starts.starts_ns[last] + moved_ns)
            worst_ns = max(worst_ns, start_ns + starts.by_counts[last][total - last * size] - dues[last * size - count])
        if delay_ns and not line.alike:
            # Whoever waits for them may find another worker free first, a slower one, than the kept starts say.
            worst_ns = max(worst_ns, self._together_ns(sent_ns, [line], line, due_ns, count, decoded_ns))
        return worst_ns

    def _starts_of(self, line: Line, count: int, now_ns: int) -> _Starts:
        starts = self._starts.get(line.index)
        if (
            starts is None
            or starts.version != self.version
            or starts.size != line.pace.size
            or (now_ns - starts.at_ns > STALE_NS and starts.is_stale(count, now_ns))
        ):
            able = (worker for worker in self._workers if worker.is_expected)
            starts = self._starts[line.index] = _Starts(line, able, self.version, now_ns)
        if starts:
            starts.reach(count)
        return starts

    def _together_ns(
        self,
        now_ns: int,
        lines: Sequence[Line],
        line: Line | None = None,
        due_ns: int = 0,
        count: int = 0,
        ready_ns: int = 0,
    ) -> int:
        """`lateness_ns` with the batches of all these lines in one order of their first images' due times."""
        chunks: list[tuple[int, int, int, bool]] = []
        for other in lines:
            dues, size = other.dues, other.pace.size
            place = more = 0
            if other is line:
                place, more = bisect.bisect_right(dues, due_ns), count
            total = len(dues) + more
            for head in range(0, total, size):
                held = min(size, total - head)
                if not more:
                    chunks.append((dues[head], other.index, held, False))
                else:
                    head_ns = dues[head] if head < place else due_ns if head < place + more else dues[head - more]
                    fresh = head < place + more and head + held > place
                    chunks.append((head_ns, other.index, held, fresh))
        chunks.sort(key=_BY_DUE)
        return self._lateness_of(chunks, {other.index: other.lead_ns for other in lines}, ready_ns, now_ns)

    def _lateness_of(
        self, chunks: list[tuple[int, int, int, bool]], leads_ns: Mapping[int, int], ready_ns: int, now_ns: int
    ) -> int:
        """Put batches (due, model, images, holds newcomers) on workers in this order; the worst lateness.

        `leads_ns`: of each model.
        """
        if not chunks:
            return -NEVER_NS
        able = [worker for worker in self._workers if worker.is_expected]
        heap = [(max(now_ns, worker.expected_free_ns(now_ns)), worker.index) for worker in able]
        heapq.heapify(heap)
        profiles = {worker.index: worker.profiles for worker in able}
        sendable_ns = {worker.index: worker.sendable_ns(now_ns) for worker in able} if any(leads_ns.values()) else {}
        worst_ns = -NEVER_NS
        for head_ns, model, held, fresh in chunks:
            skipped = []
            while heap and model not in profiles[heap[0][1]]:
                skipped.append(heapq.heappop(heap))
            if not heap:
                if fresh:
                    return NEVER_NS
                heap = skipped  # nobody can keep this promise, and it takes nobody's room
                continue
            start_ns, index = heap[0]
            if sendable_ns:
                start_ns = max(start_ns, sendable_ns[index] + leads_ns[model])
            if fresh and ready_ns + leads_ns[model] > start_ns:
                start_ns = ready_ns + leads_ns[model]
            end_ns = start_ns + profiles[index][model].by_count[held]
            heapq.heapreplace(heap, (end_ns, index))
            for entry in skipped:
                heapq.heappush(heap, entry)
            worst_ns = max(worst_ns, end_ns - head_ns)
        return worst_ns
