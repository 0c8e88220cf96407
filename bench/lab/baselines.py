"""What others do, reduced to the policy: each a few lines in front of the same batches and the same workers.

All of them know l(b) exactly and may run any size without padding, which the core may not. Classes are served strictly
by priority, models by the oldest head.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

from bench.lab.law import MS

if TYPE_CHECKING:
    from bench.lab.machine import Machine, Run


class Batching:
    """One queue per class and model; an idle worker pulls. Eager: whatever waits, up to `size_max`.

    Without a size it is B*. `size_max` of 0: no bound at all.
    """

    name = "eager"

    def __init__(self, size_max: int | None = None) -> None:
        self._size_asked = size_max

    def begin(self, machine: Machine) -> None:
        self.machine = machine
        law, models = machine.law, machine.trace.model_count
        best = law.size_best(machine.worker_count, models)
        self.size_max = (best if self._size_asked is None else self._size_asked) or 1 << 30
        self._queues: list[deque[int]] = [deque() for _ in range(2 * models)]
        self._models = models
        self._idle = list(range(machine.worker_count))

    def offer(self, request: int, now_ns: int) -> bool:
        machine = self.machine
        self._queues[machine.priority[request] * self._models + machine.model[request]].append(request)
        return True

    def batch_done(self, worker: int, run: Run, *, ran: bool, now_ns: int) -> None:
        heapq.heappush(self._idle, worker)
        for request in run.requests:
            self.machine.answer(request)

    def decide(self, now_ns: int) -> int | None:
        wake_ns = None
        while self._idle:
            for queue in self._order():
                taken = self.take(queue, now_ns)
                if isinstance(taken, int):
                    wake_ns = taken if wake_ns is None else min(taken, wake_ns)
                elif taken:
                    self.machine.run(heapq.heappop(self._idle), taken, len(taken))
                    break
            else:
                return wake_ns
        return None

    def _order(self) -> list[deque[int]]:
        """Queues that are not empty, the one to serve first first."""
        waiting = [(index // self._models, queue[0], queue) for index, queue in enumerate(self._queues) if queue]
        waiting.sort(key=lambda entry: entry[:2])
        return [queue for *_, queue in waiting]

    def take(self, queue: deque[int], now_ns: int) -> list[int] | int:
        """Take the next batch out of a queue that is not empty; or say when to ask again. May give requests up."""
        return [queue.popleft() for _ in range(min(self.size_max, len(queue)))]


class Fifo(Batching):
    """FIFO with a window and preferred sizes, no admission: Triton's dynamic batcher.

    A batch is closed when it is full, when it has reached a preferred size (the largest that it reached), or when its
    oldest request has waited for `delay_ns`.
    Source: triton-inference-server/core, dynamic_batch_scheduler.cc, GetDynamicBatch.
    """

    name = "fifo"

    def __init__(self, size_max: int | None = None, *, delay_ns: int = 2 * MS, preferred: tuple[int, ...] = ()) -> None:
        super().__init__(size_max)
        self._delay_ns = delay_ns
        self._preferred = preferred

    def take(self, queue: deque[int], now_ns: int) -> list[int] | int:
        count = min(self.size_max, len(queue))
        if count < self.size_max:
            end_ns = self.machine.arrival_ns[queue[0]] + self._delay_ns
            reached = max((size for size in self._preferred if size <= count), default=0)
            if now_ns < end_ns and not reached:
                return end_ns
            count = reached if now_ns < end_ns else count
        return [queue.popleft() for _ in range(count)]


class EarlyDrop(Batching):
    """Nexus's early drop: a head that would be late in the batch that could be had without it is given up.

    Source: uwsampl/nexus, backend/model_exec.cpp, the sliding window policy.
    """

    name = "early drop"

    def take(self, queue: deque[int], now_ns: int) -> list[int] | int:
        machine = self.machine
        expected = min(self.size_max, len(queue))
        end_ns = now_ns + machine.law.time_ns(expected)
        taken: list[int] = []
        while queue and len(taken) < expected:
            head = queue.popleft()
            if machine.deadline_ns[head] < end_ns:
                machine.give_up(head)
            else:
                taken.append(head)
            if len(queue) + len(taken) < expected:
                expected = len(queue) + len(taken)
                end_ns = now_ns + machine.law.time_ns(expected)
        return taken


class Gradient2(Batching):
    """Adaptive concurrency in front of FIFO batches: the limit follows the ratio of long-term to present latency.

    Source: Netflix/concurrency-limits, Gradient2Limit and ExpAvgMeasurement with their defaults, in a WindowedLimit:
    one sample is the mean over a window, here one batch. `limit_max` is 1000 for each worker rather than 200 in all.
    """

    name = "gradient2"

    TOLERANCE, SMOOTHING, QUEUE_SIZE, LONG_WINDOW, WARMUP = 1.5, 0.2, 4, 600, 10

    def __init__(self, size_max: int | None = None, *, limit_min: float = 20, limit_max: float = 1000) -> None:
        super().__init__(size_max)
        self.limit = self._limit_min = limit_min
        self._limit_max_each = limit_max
        self._long_ns, self._sum_ns, self._samples = 0.0, 0.0, 0
        self._in_flight = 0

    def offer(self, request: int, now_ns: int) -> bool:
        if self._in_flight >= self.limit:
            return False
        self._in_flight += 1
        return super().offer(request, now_ns)

    def batch_done(self, worker: int, run: Run, *, ran: bool, now_ns: int) -> None:
        arrival_ns, count = self.machine.arrival_ns, len(run.requests)
        self._sample(now_ns - sum(arrival_ns[request] for request in run.requests) / count, self._in_flight)
        self._in_flight -= count
        super().batch_done(worker, run, ran=ran, now_ns=now_ns)

    def _sample(self, latency_ns: float, in_flight: int) -> None:
        if self._samples < self.WARMUP:
            self._samples += 1
            self._sum_ns += latency_ns
            self._long_ns = self._sum_ns / self._samples
        else:
            self._long_ns += (latency_ns - self._long_ns) * 2 / (self.LONG_WINDOW + 1)
        long_ns = self._long_ns
        if long_ns > 2 * latency_ns:
            self._long_ns *= 0.95
        if in_flight < self.limit / 2:
            return
        gradient = max(0.5, min(1.0, self.TOLERANCE * long_ns / latency_ns))
        target = self.limit * gradient + self.QUEUE_SIZE
        self.limit += self.SMOOTHING * (target - self.limit)
        self.limit = max(self._limit_min, min(self._limit_max_each * self.machine.worker_count, self.limit))


class Codel(Batching):
    """CoDel as folly has it, with adaptive LIFO: newest first while a queue forms, and who has timed out is given up.

    A queue forms: more waits than a batch. CoDel: if over the last interval the shortest wait was longer than the
    target, whoever has waited for more than twice the target is given up. `lifo` False is CoDel alone.
    Source: facebook/folly, executors/Codel.cpp; "Fail at Scale" (ACM Queue 2015).
    """

    name = "codel+lifo"

    def __init__(
        self, size_max: int | None = None, *, lifo: bool = True, target_ns: int = 5 * MS, interval_ns: int = 100 * MS
    ) -> None:
        super().__init__(size_max)
        self.name = "codel+lifo" if lifo else "codel"
        self._lifo = lifo
        self._target_ns, self._interval_ns = target_ns, interval_ns
        self._interval_end_ns = 0
        self._delay_min_ns = 0
        self.overloaded = False

    def take(self, queue: deque[int], now_ns: int) -> list[int] | int:
        machine = self.machine
        if self._lifo:
            while queue and machine.deadline_ns[queue[0]] < now_ns:
                machine.give_up(queue.popleft())
        newest = self._lifo and len(queue) > self.size_max
        taken: list[int] = []
        while queue and len(taken) < self.size_max:
            request = queue.pop() if newest else queue.popleft()
            if self._sloughs(now_ns - machine.arrival_ns[request], now_ns):
                machine.give_up(request)
            else:
                taken.append(request)
        return taken

    def _sloughs(self, delay_ns: int, now_ns: int) -> bool:
        """Codel::overloaded: note one wait; whether its owner is given up."""
        if now_ns > self._interval_end_ns:
            self._interval_end_ns = now_ns + self._interval_ns
            self.overloaded = self._delay_min_ns > self._target_ns
            self._delay_min_ns = delay_ns
            return False
        self._delay_min_ns = min(self._delay_min_ns, delay_ns)
        return self.overloaded and delay_ns > 2 * self._target_ns
