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

import numpy as np

from gateway.errors import InvalidModel
from gpuworker import log
from gpuworker.backend import DeviceLost, Outputs
from gpuworker.gpu.card import Card, CudaError, Event, Memory
from gpuworker.gpu.diagnosis import card_problem
from gpuworker.wording import shown
from shm import layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gateway.models.spec import Contract
    from gpuworker.backend import Report
    from gpuworker.gpu.card import Graph
    from shm.layout import Field

DEPTH = 2
"""One batch computes and the next one waits on the device. More hides nothing and adds to every deadline."""

WARM_RUNS = 2
"""Before a size is recorded: the first run chooses algorithms and takes memory, the second shows that it has enough."""


_SPOILT = 0xFF
"""In every byte of an output, what no engine means: NaN, or -1."""

_TOLERANCE = 1e-2
"""Of the largest value. Kernels that add in another order differ by 1e-3 in float16, wrong ones by all of it."""


class Unfaithful(Exception):
    """Recorded work that gives other answers than it did when it was not recorded."""


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
        self._memories: list[Memory] = []
        """All of it, in the order in which it was taken."""
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
            problem = card_problem(error.code) or "look into the NVIDIA driver's words in the kernel's log"
            raise InvalidModel(
                f"there is no GPU to run this model on ({error}): {problem}; see `penstock doctor`"
            ) from error
        self.fields = self._runner.open(card, report)
        # Engines upload weights on the default stream, or on streams of their own; ours wait for neither by themselves.
        card.wait()
        batch_max = self._contract.batching.sizes[-1]
        self._source = self._take(Memory.on_device(batch_max * self._row_size))
        self._targets = {field.name: self._take(Memory.on_device(batch_max * field.size)) for field in self.fields}
        self._lanes = [self._make_lane(batch_max) for _ in range(DEPTH)]

    def _take(self, memory: Memory) -> Memory:
        self._memories.append(memory)
        return memory

    def _make_lane(self, batch_max: int) -> _Lane:
        pinned = self._take(Memory.pinned(batch_max * self._row_size))
        rows = pinned.array()
        rows[:] = 0
        results, arrays = [], {}
        for field in self.fields:
            memory = self._take(Memory.pinned(batch_max * field.size))
            results.append(memory)
            arrays[field.name] = memory.array().view(field.dtype).reshape(batch_max, *field.shape)
        return _Lane(
            pinned=pinned,
            rows=list(rows.reshape(batch_max, self._row_size)),
            pixels=self._take(Memory.on_device(batch_max * self._row_size)),
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
        # What fresh memory holds may be more than a model can take; what the lane holds are images.
        compute.copy_in(self._source.address, self._lanes[0].pinned.address, size * self._row_size)
        self._runner.bind(size, self._source.address, {name: each.address for name, each in self._targets.items()})
        for _ in range(WARM_RUNS):
            self._runner.enqueue(size)
        expected = {name: array.copy() for name, array in self.run(size, size).arrays.items()}
        if not self._contract.gpu.cuda_graph:
            return
        try:
            self.graphs[size] = compute.capture(lambda: self._runner.enqueue(size))
            self._check_replay(size, expected)
        except DeviceLost:
            raise
        except Exception as error:  # noqa: BLE001 - an engine says in its own words what it cannot record
            # Lack of memory is among them: an engine cannot take any while it is recorded. Without, it had enough.
            log.event("cuda_graph_refused", level="warning", error=error, size=size, provider=self.provider)
            graph = self.graphs.pop(size, None)
            if graph is not None:
                graph.close()

    def _check_replay(self, size: int, expected: Mapping[str, NDArray[Any]]) -> None:
        """Raise Unfaithful unless the recorded work gives what the engine gave on the same pixels.

        An engine that works on another stream than ours records nothing, and leaves old answers in the outputs.
        """
        assert self._card is not None
        lane, compute = self._lanes[self._started % DEPTH], self._card.compute
        for field, memory in zip(self.fields, lane.results, strict=True):
            memory.array()[:] = _SPOILT
            compute.copy_in(self._targets[field.name].address, memory.address, memory.size)
        # `expected` was made of the pixels in the other lane.
        lane.pinned.array()[:] = self._lanes[(self._started - 1) % DEPTH].pinned.array()
        for name, array in self.run(size, size).arrays.items():
            if not agree(array, expected[name]):
                raise Unfaithful(f"what was recorded gives other values of '{shown(name)}' than the engine did")

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
            self.launch(size)
            compute.record(lane.computed)
            for field, memory in zip(self.fields, lane.results, strict=True):
                compute.copy_out(memory.address, self._targets[field.name].address, count * field.size)
            compute.record(lane.done)
        except DeviceLost:
            raise
        except CudaError as error:
            raise _lost(error) from error
        except Exception:
            # The next batch gets this lane: nothing that was begun may still read its rows.
            copy.wait()
            compute.wait()
            raise
        self._counts[place] = count
        self._started += 1

    def launch(self, size: int) -> None:
        """Begin a warmed size on the pixels that lie in the input: what `start` does between its copies."""
        assert self._card is not None
        graph = self.graphs.get(size)
        if graph is None:
            self._runner.enqueue(size)
        else:
            graph.launch(self._card.compute)

    def finish(self) -> Outputs:
        """Wait for the oldest batch. Raises as `run`."""
        assert self._finished < self._started, "nothing was started"
        place = self._finished % DEPTH
        lane, count = self._lanes[place], self._counts[place]
        try:
            lane.done.wait()
            self.compute_ns = lane.computed.elapsed_ns(lane.begun)
        except CudaError as error:
            raise _lost(error) from error
        finally:
            # Not earlier, for the lane is free from here on; and however it went, for a batch that failed is done with.
            self._finished += 1
        return Outputs({name: array[:count] for name, array in lane.arrays.items()})

    def run(self, size: int, count: int) -> Outputs:
        """Run a warmed size and wait for it. Raises MemoryError, DeviceLost, and whatever the engine does."""
        self.start(size, count)
        return self.finish()

    def interrupt(self) -> None:
        """Nothing ends a kernel but the process' death, which the gateway brings soon after."""

    def close(self) -> None:
        """Let go of the model and its memory, as far as a process can."""
        waits = [] if self._card is None else [self._card.copy.wait, self._card.compute.wait]
        graphs = [graph.close for graph in self.graphs.values()]
        for step in (*waits, *graphs, self._runner.close, *(memory.close for memory in self._memories)):
            # What fails here keeps nothing else from being given back: other models may run on.
            with contextlib.suppress(DeviceLost, CudaError):
                step()
        self.graphs.clear()
        self._lanes.clear()
        self._memories.clear()


def agree(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether two runs of an engine on the same pixels gave the same, but for the order in which floats were added."""
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    # Compared in float64: neither float16's range nor its steps decide.
    wide, scale = expected.astype(np.float64), np.abs(expected[np.isfinite(expected)])
    tolerance = _TOLERANCE * float(scale.max(initial=0))
    return bool(np.allclose(found.astype(np.float64), wide, rtol=_TOLERANCE, atol=tolerance, equal_nan=True))


def _lost(error: CudaError) -> DeviceLost:
    """What a refused call means once a model was loaded: all of them were allowed before, and none takes memory."""
    return DeviceLost(str(error))


def check_field(name: str, dtype: str, shape: Sequence[int]) -> Field:
    """An output as a slot can hold it. Raises InvalidModel."""
    if dtype not in layout.DTYPE_SIZES:
        raise InvalidModel(f"the model's output '{shown(name)}' is {dtype}, which cannot be passed on; make it float32")
    if any(axis < 1 for axis in shape):
        raise InvalidModel(
            f"the model's output '{shown(name)}' is {['N', *shape]}; export it with fixed axes but for the first"
        )
    return layout.Field(name, dtype, tuple(shape))
