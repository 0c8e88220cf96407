"""A card that is not there, at the narrowest seam: the functions of cuda.bindings.runtime that penstock calls.

Everything around them is the real library. The card is honest about time: a stream is a thread that does what it was
given in order, later. Who reads a result before its event, writes rows that are still being copied, or frees what is in
use, gets wrong bytes here as on a card. Device memory is poisoned when it is given out.

Which GPUs there are: pretend_gpus.

PENSTOCK_PRETEND_COPY_MS        how long each copy from and to the host takes
PENSTOCK_PRETEND_CAPTURE_FAILS  cudaError_t with which captures end
"""

import ctypes
import itertools
import os
import queue
import threading
import time
import traceback

import numpy as np
import pretend_gpus

COPY_MS = "PENSTOCK_PRETEND_COPY_MS"
CAPTURE_FAILS = "PENSTOCK_PRETEND_CAPTURE_FAILS"
CONTEXT_SIZE = 300 << 20
"""What a process holds once it has opened the card."""
POISON = 0xCD
UNKNOWN = 999
"""cudaErrorUnknown."""
NAME, UUID, FOLDER = pretend_gpus.NAME, pretend_gpus.uuid(0), pretend_gpus.FOLDER


class Fault(Exception):
    """Something that a kernel did. `code`: cudaError_t, sticky."""

    def __init__(self, code):
        super().__init__(f"pretend fault {code}")
        self.code = code


class Stream:
    def __init__(self, card):
        self.card = card
        self.work = queue.SimpleQueue()
        self.recording = None
        self.spoiled = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def put(self, step):
        if self.recording is not None:
            self.recording.append(step)
            return
        self.work.put(step)

    def _run(self):
        while True:
            step = self.work.get()
            if self.card.sticky == 0 or isinstance(step, Turn):
                try:
                    step()
                except Fault as fault:
                    self.card.sticky = fault.code
                except Exception:  # noqa: BLE001 - a defect of the pretence: seen, and no reason to wait for ever
                    traceback.print_exc()
                    self.card.sticky = UNKNOWN
            elif isinstance(step, Mark):
                step.event.reach()
            # What it holds may be asked for: an engine that is let go of gives its memory back.
            step = None

    def wait(self):
        """Until everything that was put is done. Whoever is let go of on the stream itself does not wait for it."""
        if threading.current_thread() is self.thread:
            return
        turn = Turn()
        self.work.put(turn)
        turn.come.wait()


class Turn:
    """A step that says that it is its turn."""

    def __init__(self):
        self.come = threading.Event()

    def __call__(self):
        self.come.set()


class Event:
    """`asked` counts records, `reached` those that a stream came to."""

    def __init__(self):
        self.asked = self.reached = self.at_ns = 0
        self.changed = threading.Condition()

    def reach(self):
        with self.changed:
            self.reached += 1
            self.at_ns = time.perf_counter_ns()
            self.changed.notify_all()

    def wait(self, until):
        with self.changed:
            self.changed.wait_for(lambda: self.reached >= until)


class Mark:
    def __init__(self, event):
        self.event = event

    def __call__(self):
        self.event.reach()


class Copy:
    """A step that moves bytes; recorded, it is a node of its own kind."""

    def __init__(self, source, step):
        self.source, self.step = source, step

    def __call__(self):
        self.step()


class HostCall:
    """A step that calls the host back, as engines record one to free what a run used."""

    def __call__(self):
        pass


class PretendCard:
    def __init__(self, cudart):
        self.cudart = cudart
        self.ok = cudart.cudaError_t.cudaSuccess
        self.sticky = 0
        self.opened = False
        self.uuid = None
        """Of the GPU that was opened."""
        self.handles = itertools.count(1)
        self.streams, self.events, self.graphs, self.execs = {}, {}, {}, {}
        self.device, self.pinned, self.nodes = {}, {}, {}
        self.capturing_fails = int(os.environ.get(CAPTURE_FAILS, "0"))
        """cudaError_t with which captures end, if not 0."""

    # -- results ---------------------------------------------------------------------------------------------------

    def error(self, code):
        return self.cudart.cudaError_t(code)

    def answer(self, *values):
        return (self.error(self.sticky), *(None for _ in values)) if self.sticky else (self.ok, *values)

    def handle(self, kind, table, value):
        number = next(self.handles)
        table[number] = value
        return self.answer(getattr(self.cudart, kind)(number))

    # -- memory ----------------------------------------------------------------------------------------------------

    @property
    def memory_size(self):
        return pretend_gpus.memory_size(self.uuid)

    def held(self):
        return sum(size for _, size in self.device.values()) + CONTEXT_SIZE * self.opened

    def publish(self):
        pretend_gpus.publish(self.held(), self.uuid)

    def others(self):
        found = 0
        for pid, size in pretend_gpus.holdings(self.uuid).items():
            found += size if pid != os.getpid() else 0
        return found

    def cudaMalloc(self, size):
        if self.sticky:
            return self.answer(None)
        if size > self.memory_size - self.others() - self.held():
            return self.error(2), None
        data = np.empty(size, np.uint8)
        data[: 64 << 20] = POISON
        self.device[data.ctypes.data] = (data, size)
        self.publish()
        return self.ok, data.ctypes.data

    def cudaFree(self, address):
        if address not in self.device:
            return (self.error(1),)
        # A real free waits for the device.
        for stream in self.streams.values():
            stream.wait()
        self.give_back(address)
        return self.answer()

    def give_back(self, address):
        """Of what no step uses any more; on any thread, for a stream's own may collect garbage."""
        self.device[address][0][: 64 << 20] = POISON
        del self.device[address]
        self.publish()

    def cudaHostAlloc(self, size, flags):
        data = np.full(size, POISON, np.uint8)
        self.pinned[data.ctypes.data] = (data, size)
        return self.answer(data.ctypes.data)

    def cudaFreeHost(self, address):
        if self.pinned.pop(address, None) is None:
            return (self.error(1),)
        return self.answer()

    def cudaHostRegister(self, address, size, flags):
        self.pinned[int(address)] = (None, size)
        return self.answer()

    def cudaHostUnregister(self, address):
        if self.pinned.pop(int(address), None) is None:
            return (self.error(1),)
        return self.answer()

    def cudaMemGetInfo(self):
        return self.answer(self.memory_size - self.others() - self.held(), self.memory_size)

    def _check(self, table, address, size):
        if not any(start <= address and address + size <= start + length for start, (_, length) in table.items()):
            raise Fault(700)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        kinds = self.cudart.cudaMemcpyKind
        tables = {
            kinds.cudaMemcpyHostToDevice: (self.device, self.pinned),
            kinds.cudaMemcpyDeviceToDevice: (self.device, self.device),
            kinds.cudaMemcpyDeviceToHost: (self.pinned, self.device),
        }[kind]

        def copy():
            self._check(tables[0], target, size)
            self._check(tables[1], source, size)
            if kind != kinds.cudaMemcpyDeviceToDevice:
                time.sleep(float(os.environ.get(COPY_MS, "0")) / 1e3)
            ctypes.memmove(target, source, size)

        return self.enqueue(int(stream), Copy(source, copy))

    # -- streams, events, graphs -----------------------------------------------------------------------------------

    def enqueue(self, stream, step):
        """Also for pretend engines: have a stream do something, which may raise Fault."""
        if not self.sticky:
            self.streams[stream].put(step)
        return self.answer()

    def cudaStreamCreateWithFlags(self, flags):
        return self.handle("cudaStream_t", self.streams, Stream(self))

    def cudaStreamSynchronize(self, stream):
        found = self.streams[int(stream)]
        if found.recording is not None:
            return (self.error(900),)
        found.wait()
        return self.answer()

    def cudaEventCreateWithFlags(self, flags):
        return self.handle("cudaEvent_t", self.events, Event())

    def cudaEventRecord(self, event, stream):
        found = self.events[int(event)]
        found.asked += 1
        return self.enqueue(int(stream), Mark(found))

    def cudaStreamWaitEvent(self, stream, event, flags):
        found = self.events[int(event)]
        until = found.asked
        return self.enqueue(int(stream), lambda: found.wait(until))

    def cudaEventSynchronize(self, event):
        found = self.events[int(event)]
        if not self.sticky:
            found.wait(found.asked)
        return self.answer()

    def cudaEventElapsedTime(self, start, end):
        return self.answer((self.events[int(end)].at_ns - self.events[int(start)].at_ns) / 1e6)

    def cudaStreamBeginCapture(self, stream, mode):
        self.streams[int(stream)].recording = []
        return self.answer()

    def cudaStreamEndCapture(self, stream):
        found = self.streams[int(stream)]
        steps, found.recording = found.recording, None
        spoiled, found.spoiled = found.spoiled or self.capturing_fails, 0
        if spoiled:
            return self.error(spoiled), None
        return self.handle("cudaGraph_t", self.graphs, steps)

    def cudaGraphGetNodes(self, graph, numNodes=0):
        steps = self.graphs[int(graph)]
        if numNodes == 0:
            return self.answer(None, len(steps))
        nodes = []
        for step in steps:
            number = next(self.handles)
            self.nodes[number] = int(graph), step
            nodes.append(self.cudart.cudaGraphNode_t(number))
        return self.answer(nodes, len(nodes))

    def cudaGraphNodeGetType(self, node):
        kinds = self.cudart.cudaGraphNodeType
        _, step = self.nodes[int(node)]
        if isinstance(step, Copy):
            return self.answer(kinds.cudaGraphNodeTypeMemcpy)
        return self.answer(kinds.cudaGraphNodeTypeHost if isinstance(step, HostCall) else kinds.cudaGraphNodeTypeKernel)

    def cudaGraphMemcpyNodeGetParams(self, node):
        found = self.cudart.cudaMemcpy3DParms()
        pointer = self.cudart.cudaPitchedPtr()
        pointer.ptr = self.nodes[int(node)][1].source
        found.srcPtr = pointer
        return self.answer(found)

    def cudaPointerGetAttributes(self, address):
        places = self.cudart.cudaMemoryType
        found = self.cudart.cudaPointerAttributes()
        kinds = ((self.device, places.cudaMemoryTypeDevice), (self.pinned, places.cudaMemoryTypeHost))
        inside = [
            place
            for table, place in kinds
            if any(start <= int(address) < start + size for start, (_, size) in table.items())
        ]
        found.type = inside[0] if inside else places.cudaMemoryTypeUnregistered
        return self.answer(found)

    def cudaGraphInstantiate(self, graph, flags):
        return self.handle("cudaGraphExec_t", self.execs, list(self.graphs[int(graph)]))

    def cudaGraphDestroy(self, graph):
        del self.graphs[int(graph)]
        self.nodes = {node: found for node, found in self.nodes.items() if found[0] != int(graph)}
        return self.answer()

    def cudaGraphLaunch(self, graph, stream):
        for step in self.execs[int(graph)]:
            self.enqueue(int(stream), step)
        return self.answer()

    def cudaGraphExecDestroy(self, graph):
        del self.execs[int(graph)]
        return self.answer()

    def cudaMemcpy(self, target, source, size, kind):
        """From or to any host memory, done when it returns. Streams that do not block do not wait for it."""
        on_device = target if kind == self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice else source
        try:
            self._check(self.device, int(on_device), size)
        except Fault as fault:
            self.sticky = fault.code
            return self.answer()
        ctypes.memmove(target, source, size)
        return self.answer()

    def cudaMemcpyBatchAsync(self, targets, sources, sizes, count, attributes, places, attribute_count, stream):
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        for target, source, size in zip(targets, sources, sizes, strict=True):
            self.cudaMemcpyAsync(target, source, size, kind, stream)
        return self.answer()

    # -- the device ------------------------------------------------------------------------------------------------

    def cudaSetDevice(self, ordinal):
        uuid = pretend_gpus.opened(os.environ.get("CUDA_VISIBLE_DEVICES"))
        if uuid is None:
            return (self.error(100),)
        if not self.opened:
            self.opened, self.uuid = True, uuid
            self.publish()
        return self.answer()

    def cudaDeviceSynchronize(self):
        for stream in list(self.streams.values()):
            stream.wait()
        return self.answer()

    def cudaGetDeviceCount(self):
        visible = pretend_gpus.opened(os.environ.get("CUDA_VISIBLE_DEVICES")) is not None
        return (self.ok, 1) if visible else (self.error(100), 0)

    def cudaGetDeviceProperties(self, ordinal):
        found = self.cudart.cudaDeviceProp()
        found.name = NAME.encode().ljust(256, b"\0")
        found.totalGlobalMem = self.memory_size
        found.major, found.minor = 9, 0
        found.multiProcessorCount = 4
        return self.answer(found)

    def cudaDriverGetVersion(self):
        return self.answer(13000)

    def cudaGetLastError(self):
        return (self.error(self.sticky),)


CALLS = [name for name in vars(PretendCard) if name.startswith("cuda")]
card = None


def install(cudart):
    """Put a fresh card behind cuda.bindings.runtime. Returns it."""
    global card  # noqa: PLW0603 - there is one
    card = PretendCard(cudart)
    for name in CALLS:
        assert hasattr(cudart, name), f"cuda.bindings.runtime has no {name}"
        setattr(cudart, name, getattr(card, name))
    return card
