"""The real worker process with a real heritage, and the gateway's ends of everything that it holds."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from shm import failpoints, layout, views, wire
from shm.heritage import DeviceGrant, Grant, Heritage, ModelGrant
from shm.segment import Segment
from shm.wire import ItemStatus, Run, WorkerReady
from tests.support import graphs

ROOT = Path(__file__).resolve().parents[2]
SLOTS = 8
NEVER_LATE = 1 << 62
OK, FAILED, LATE = ItemStatus.OK, ItemStatus.FAILED, ItemStatus.LATE


class Served:
    """One model of the harness: its slots as arrays, and what the worker said about it."""

    def __init__(self, index, contract, directory):
        self.index, self.contract = index, contract
        size = contract.output.size_max
        if contract.output.task == "classification":
            size = contract.output.top_k_max * 8 + layout.SLOT_ALIGN
        self.input = Segment.create("test-in", layout.stride(int(np.prod(contract.input.shape))) * SLOTS)
        self.output = Segment.create("test-out", layout.stride(size) * SLOTS)
        self.readonly = self.input.readonly_fd()
        self.pixels = views.pixel_rows(self.input.map, contract.input.shape, SLOTS)
        self._slot_size = layout.stride(size)
        self.grant = ModelGrant(
            index=index,
            name=f"model{index}",
            version=1,
            directory=str(directory),
            contract=msgspec.json.encode(contract).decode(),
            slot_count=SLOTS,
            input=Grant(self.readonly, self.input.size, writable=False),
            output=Grant(self.output.fd, self.output.size, writable=True),
        )

    def outputs(self, loaded):
        return views.slot_arrays(self.output.map, loaded.fields, slot_size=self._slot_size, slot_count=SLOTS)


class Worker:
    """A child, its socket and its segments, all of it gone at the end of the test."""

    def __init__(self, models, *, device="cpu", armed="", environment=None, device_grant=None):
        self.models = models
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(30)
        self.recorder = Segment.create("test-recorder", layout.RECORDER_SIZE)
        heritage = Heritage(
            parent=os.getpid(),
            socket_fd=theirs.fileno(),
            recorder=Grant(self.recorder.fd, self.recorder.size, writable=True),
            models=[model.grant for model in models],
            device=device,
            device_grant=device_grant or DeviceGrant(),
        )
        fd = heritage.bequeath()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "gpuworker", str(fd)],
            pass_fds=(fd, *heritage.fds()),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            env={**(os.environ if environment is None else environment), failpoints.VARIABLE: armed},
        )
        os.close(fd)
        theirs.close()

    def receive(self):
        try:
            frame = self.control.recv(wire.FRAME_SIZE_MAX)
        except ConnectionResetError:  # it died with frames of ours unread, which is said once, before its last words
            frame = self.control.recv(wire.FRAME_SIZE_MAX)
        return wire.read_from_worker(frame) if frame else None

    def born(self):
        """Everything up to and with WorkerReady."""
        said = [self.receive()]
        while not isinstance(said[-1], WorkerReady | None):
            said.append(self.receive())
        return said

    def send(self, slots, *, model=0, size=None, top_k=1, latest=NEVER_LATE, batch=1):
        self.control.send(wire.encode(Run(batch, model, size or len(slots), slots, top_k, latest)))

    def run(self, slots, **how):
        self.send(slots, **how)
        return self.receive()

    def end(self):
        """Close the socket; return the exit code and what was logged."""
        self.control.close()
        _, log = self.child.communicate(timeout=30)
        return self.child.returncode, [json.loads(line) for line in log.splitlines()]

    def close(self):
        self.child.kill()
        self.child.communicate()
        self.control.close()
        self.recorder.close()
        for model in self.models:
            os.close(model.readonly)
            model.input.close()
            model.output.close()


@contextlib.contextmanager
def spawning():
    """Start workers with (contract, directory) each; all are gone at the end."""
    with contextlib.ExitStack() as stack:

        def start(*models, **how):
            served = [Served(index, contract, directory) for index, (contract, directory) in enumerate(models)]
            worker = Worker(served, **how)
            stack.callback(worker.close)
            return worker

        yield start


def fake(**settings):
    lines = "\n".join(f"{name} = {str(value).lower()}" for name, value in settings.items())
    return graphs.contract('backend = "fake"', fake=lines), "/nonexistent"
