"""A backend that overlaps and does only what its test lets it: in this process, on no device."""

import contextlib
import queue
import socket
import threading

import numpy as np

from gpuworker.answers import make_answer
from gpuworker.backend import Outputs
from gpuworker.interrupts import Interrupts
from gpuworker.model import Model
from gpuworker.pipeline import Pipeline
from shm import layout, views, wire
from shm.recorder import Recorder
from shm.segment import Segment
from shm.wire import Run
from tests.support import graphs

NEVER_LATE = 1 << 62
SLOTS = 6
WAIT_S = 30


class Held:
    """Answers each image with its first pixel. A batch ends when the test says so, by `end`."""

    provider = "held"
    ranked_class_count = 0
    depth = 2
    fields = (layout.Field("first", "uint8", (1,)),)

    def __init__(self):
        self.threads = set()
        self.steps = queue.SimpleQueue()
        """What was called, in order, as (word, first pixels or None)."""
        self.start_errors = {}
        """First pixel of a batch → what starting it raises."""
        self.interrupted = 0
        self.compute_ns = 0
        self._lanes = [np.zeros((4, 12), np.uint8) for _ in range(2)]
        self._started = 0
        self._flights = queue.SimpleQueue()
        self._ends = queue.SimpleQueue()

    def staging(self, size):
        return list(self._lanes[self._started % 2])

    def start(self, size, count):
        self.threads.add(threading.get_ident())
        firsts = self._lanes[self._started % 2][:count, 0].tolist()
        self.steps.put(("start", firsts))
        if firsts[0] in self.start_errors:
            raise self.start_errors[firsts[0]]
        self._flights.put(firsts)
        self._started += 1

    def end(self, error=None):
        """Let the oldest batch end."""
        self._ends.put(error)

    def finish(self):
        firsts = self._flights.get(timeout=WAIT_S)
        error = self._ends.get(timeout=WAIT_S)
        self.steps.put(("finish", firsts))
        self.compute_ns = 1000 * firsts[0]
        if error is not None:
            raise error
        return Outputs({"first": np.array(firsts, np.uint8)[:, None]})

    def run(self, size, count):
        self.start(size, count)
        return self.finish()

    def interrupt(self):
        self.interrupted += 1


class Alone(Held):
    """One that does not overlap."""

    depth = 1


class Rig:
    """A pipeline in a thread of its own, its models, and the gateway's end of its socket."""

    def __init__(self, backends):
        self.backends = backends
        self.gateway, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.gateway.settimeout(WAIT_S)
        segment = Segment.create("test-recorder", layout.RECORDER_SIZE)
        self._recorder = Recorder(segment)
        self.interrupts = Interrupts()
        self.pixels = np.zeros((SLOTS, 12), np.uint8)
        self.pixels[:, 0] = range(SLOTS)
        contract = graphs.contract('backend = "fake"', task="raw", fake="")
        self.models = {}
        self.outputs = {}
        for index, backend in enumerate(backends):
            buffer = bytearray(layout.stride(contract.output.size_max) * SLOTS)
            answer = make_answer(contract, backend, 0, buffer, SLOTS)
            self.models[index] = Model(f"m{index}", (1, 2, 4), backend, answer, list(self.pixels))
            slot_size = layout.stride(contract.output.size_max)
            slots = views.slot_arrays(buffer, answer.fields, slot_size=slot_size, slot_count=SLOTS)
            self.outputs[index] = slots["first"][:, 0]
        self.raised = None
        self.pipeline = Pipeline(self._theirs, self._recorder, self.interrupts)
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        try:
            with self.pipeline:
                self.pipeline.serve(self.models)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.raised = error
        finally:
            self._theirs.close()

    def send(self, batch, slots, *, model=0, latest=NEVER_LATE, size=4):
        self.gateway.send(wire.encode(Run(batch, model, size, slots, 1, latest)))

    def receive(self):
        frame = self.gateway.recv(wire.FRAME_SIZE_MAX)
        return wire.read_from_worker(frame) if frame else None

    def step(self, which=0):
        """What the backend was asked for next."""
        return self.backends[which].steps.get(timeout=WAIT_S)

    @property
    def recorded(self):
        return self._recorder.last()

    def over(self):
        """Wait for its end; what it raised."""
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        return self.raised


@contextlib.contextmanager
def serving(*backends):
    """A rig; at its end the gateway is gone, and so is every thread."""
    rig = Rig(backends or (Held(),))
    try:
        yield rig
    finally:
        rig.gateway.close()
        for backend in rig.backends:
            for _ in range(8):
                backend.end()
        rig.over()
