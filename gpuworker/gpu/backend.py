"""The way of the bytes over a card: pixels in, outputs out, two batches at a time. What computes is a `Runner`.

Each batch has a lane of its own; a lane is used again once its batch was finished::

    slots ─gather─▶ lane's pinned rows ─copy stream─▶ lane's device rows
                                                       │ compute stream, behind the batch before
                    lane's pinned outputs ◀── outputs ◀─ runner ◀─ input         (one input and one set of outputs
                                                                                  for all: recorded graphs know them)

So the host gathers and copies batch k+1 while batch k is computed, and ranks batch k while k+1 is. The copy on the
device costs a few µs a batch and spares a graph for each lane. Only rows that hold images are copied.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gateway.errors import InvalidModel
from gpuworker import log
from gpuworker.backend import DeviceLost, Outputs
from gpuworker.gpu.card import Card, CudaError, Event, Memory
from gpuworker.wording import shown
from shm import layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gateway.models.spec import Contract
    from gpuworker.backend import Report
    from gpuworker.gpu.card import Graph
    from shm.layout import Field

DEPTH = 2
"""One batch computes and the next one waits on the device. More hides nothing and adds to every deadline."""

WARM_RUNS = 2
"""Before a size is recorded: the first run chooses algorithms and takes memory, the second shows that it has enough."""


class Runner(Protocol):
    """An engine on the card. All calls come from one thread."""

    @property
    def provider(self) -> str:
        """What runs it, by the engine's own name."""

    def open(self, card: Card, report: Report) -> tuple[Field, ...]:
        """Load the model, or build it first; return its outputs without their batch axis. Raises InvalidModel."""

    def bind(self, size: int, source: int, targets: Mapping[str, int]) -> None:
        """From now on a batch of `size` reads uint8[size, h, w, c] at `source` and writes each output at its address.

        Raises InvalidModel: this size cannot be run.
        """

    def enqueue(self, size: int) -> None:
        """Begin a bound size on the card's compute stream. Does not wait, and does not copy."""

    def close(self) -> None:
        """Let go of the model."""


class _Lane(NamedTuple):
    """What one batch in flight has for itself."""

    pinned: Memory
    rows: list[NDArray[np.uint8]]
    pixels: Memory
    copied: Event
    begun: Event
    computed: Event
    done: Event
    results: tuple[Memory, ...]
    arrays: dict[str, NDArray[Any]]


class CardBackend:
    """A Runner with lanes around it: an `Overlapping` backend."""

    ranked_class_count = 0
    depth = DEPTH

    def __init__(self, contract: Contract, runner: Runner) -> None:
        self.fields: Sequence[Field] = ()
        self.compute_ns = 0
        """Device time of the batch that `finish` gave last, without its copies from and to the host."""
        self.graphs: dict[int, Graph] = {}
        """By size: those that could be recorded."""
        self._contract = contract
        self._runner = runner
        self._card: Card | None = None
        self._row_size = math.prod(contract.input.shape)
        self._source: Memory | None = None
        self._targets: dict[str, Memory] = {}
        self._lanes: list[_Lane] = []
        self._started = 0
        self._finished = 0
        self._counts = [0] * DEPTH

    @property
    def provider(self) -> str:
        """What runs it, by the engine's own name."""
        return self._runner.provider

    def load(self, report: Report) -> None:
        """Open the card and the model, and take all the memory that batches need. Raises InvalidModel, MemoryError."""
        try:
            card = self._card = Card.open()
        except CudaError as error:
            raise InvalidModel(f"there is no GPU to run this model on ({error}); see `penstock doctor`") from error
        self.fields = self._runner.open(card, report)
        batch_max = self._contract.batching.sizes[-1]
        self._source = Memory.on_device(batch_max * self._row_size)
        self._targets = {field.name: Memory.on_device(batch_max * field.size) for field in self.fields}
        self._lanes = [self._make_lane(batch_max) for _ in range(DEPTH)]

    def _make_lane(self, batch_max: int) -> _Lane:
        pinned = Memory.pinned(batch_max * self._row_size)
        rows = pinned.array()
        rows[:] = 0
        results, arrays = [], {}
        for field in self.fields:
            memory = Memory.pinned(batch_max * field.size)
            results.append(memory)
            arrays[field.name] = memory.array().view(field.dtype).reshape(batch_max, *field.shape)
        return _Lane(
            pinned=pinned,
            rows=list(rows.reshape(batch_max, self._row_size)),
            pixels=Memory.on_device(batch_max * self._row_size),
            copied=Event(),
            begun=Event(timed=True),
            computed=Event(timed=True),
            done=Event(),
            results=tuple(results),
            arrays=arrays,
        )

    def warmup(self, size: int) -> None:
        """Bind the size, run it, and record it where it can be. Raises InvalidModel, MemoryError, DeviceLost."""
        assert self._card is not None
        assert self._source is not None
        compute = self._card.compute
        self._runner.bind(size, self._source.address, {name: each.address for name, each in self._targets.items()})
        for _ in range(WARM_RUNS):
            self._runner.enqueue(size)
        compute.wait()
        if self._contract.gpu.cuda_graph:
            try:
                self.graphs[size] = compute.capture(lambda: self._runner.enqueue(size))
            except (DeviceLost, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - an engine says in its own words what it cannot record
                log.event("cuda_graph_refused", level="warning", error=error, size=size, provider=self.provider)
        self.run(size, size)

    def staging(self, size: int) -> list[NDArray[np.uint8]]:
        """Rows for the next batch."""
        del size
        return self._lanes[self._started % DEPTH].rows

    def start(self, size: int, count: int) -> None:
        """Copy the first `count` rows and run them behind what was started. Raises as `run`."""
        assert self._card is not None
        assert self._source is not None
        assert self._started - self._finished < DEPTH, "a lane is used again once its batch was finished"
        place = self._started % DEPTH
        lane, copy, compute = self._lanes[place], self._card.copy, self._card.compute
        try:
            copy.copy_in(lane.pixels.address, lane.pinned.address, count * self._row_size)
            copy.record(lane.copied)
            compute.follow(lane.copied)
            compute.record(lane.begun)
            compute.copy_on(self._source.address, lane.pixels.address, count * self._row_size)
            graph = self.graphs.get(size)
            if graph is None:
                self._runner.enqueue(size)
            else:
                graph.launch(compute)
            compute.record(lane.computed)
            for field, memory in zip(self.fields, lane.results, strict=True):
                compute.copy_out(memory.address, self._targets[field.name].address, count * field.size)
            compute.record(lane.done)
        except DeviceLost:
            raise
        except Exception:
            # The next batch gets this lane: nothing that was begun may still read its rows.
            copy.wait()
            compute.wait()
            raise
        self._counts[place] = count
        self._started += 1

    def finish(self) -> Outputs:
        """Wait for the oldest batch. Raises as `run`."""
        assert self._finished < self._started, "nothing was started"
        place = self._finished % DEPTH
        lane, count = self._lanes[place], self._counts[place]
        # Counted before it is known how it went: a batch that failed is done with.
        self._finished += 1
        lane.done.wait()
        self.compute_ns = lane.computed.elapsed_ns(lane.begun)
        return Outputs({name: array[:count] for name, array in lane.arrays.items()})

    def run(self, size: int, count: int) -> Outputs:
        """Run a warmed size and wait for it. Raises MemoryError, DeviceLost, and whatever the engine does."""
        self.start(size, count)
        return self.finish()

    def interrupt(self) -> None:
        """Nothing ends a kernel but the process' death, which the gateway brings soon after."""

    def close(self) -> None:
        """Let go of the model and its memory, as far as a process can."""
        with contextlib.suppress(DeviceLost, CudaError):
            if self._card is not None:
                self._card.copy.wait()
                self._card.compute.wait()
            for graph in self.graphs.values():
                graph.close()
            self._runner.close()
            for lane in self._lanes:
                for memory in (lane.pinned, lane.pixels, *lane.results):
                    memory.close()
            if self._source is not None:
                self._source.close()
            for target in self._targets.values():
                target.close()
        self.graphs.clear()
        self._lanes.clear()


def check_field(name: str, dtype: str, shape: Sequence[int]) -> Field:
    """An output as a slot can hold it. Raises InvalidModel."""
    if dtype not in layout.DTYPE_SIZES:
        raise InvalidModel(f"the model's output '{shown(name)}' is {dtype}, which cannot be passed on; make it float32")
    if any(axis < 1 for axis in shape):
        raise InvalidModel(
            f"the model's output '{shown(name)}' is {['N', *shape]}; export it with fixed axes but for the first"
        )
    return layout.Field(name, dtype, tuple(shape))
