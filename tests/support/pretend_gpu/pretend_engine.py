"""An engine on the pretend card: does what `[fake]` of a contract says, in the card's compute stream, with the lanes,
streams and graphs of the real backends around it.

The answer is the CRC-32 of an image's pixels, as class or as `digest`. Of the special pixels it knows crash, kill, spin
(it computes until the process dies) and lost.

PENSTOCK_PRETEND_MEET   a pixel, "R,G,B": a batch that begins with it computes until the next one was started
"""

import ctypes
import os
import signal
import threading
import time
import zlib
from collections import deque

import numpy as np
import pretend_cuda
from pretend_rows import ENGINE

from gpuworker.gpu.backend import CardBackend
from shm.layout import Field

MEET = "PENSTOCK_PRETEND_MEET"
SIGNALS = {"crash": signal.SIGSEGV, "kill": signal.SIGKILL}
STICKY = 700


class PretendRunner:
    provider = "pretend"

    def __init__(self, contract):
        self.fake = contract.fake
        self.row_size = int(np.prod(contract.input.shape))
        self.class_count = self.fake.class_count if contract.output.task == "classification" else 0
        self.bound = {}
        specials = ((name, getattr(self.fake, f"{name}_pixel")) for name in ("crash", "kill", "spin", "lost"))
        self.specials = {bytes(pixel): name for name, pixel in specials if pixel is not None}
        self.changed = threading.Condition()
        self.started = 0
        self.waiting = deque()
        """Numbers of the batches that were started and not computed; warm-up is computed without being started."""
        if os.environ.get(MEET):
            self.specials[bytes(map(int, os.environ[MEET].split(",")))] = "meet"

    def open(self, card, report):
        report("session", 0.0)
        self.stream = card.compute.address
        self.field = Field("digest", "uint32", (1,))
        if self.class_count:
            self.field = Field("scores", "float32", (self.class_count,))
        return (self.field,)

    def bind(self, size, source, targets):
        self.bound[size] = source, targets[self.field.name]

    def enqueue(self, size):
        source, target = self.bound[size]
        pretend_cuda.card.enqueue(self.stream, lambda: self.compute(size, source, target))

    def compute(self, size, source, target):
        number = self.waiting.popleft() if self.waiting else 0
        raw = ctypes.string_at(source, size * self.row_size)
        rows = [raw[start : start + self.row_size] for start in range(0, len(raw), self.row_size)]
        # Rows behind the last image hold what an earlier batch left there: only the first may do mischief.
        self.act(self.specials.get(rows[0][:3]), number)
        time.sleep((self.fake.base_ms + self.fake.image_ms * size) / 1e3)
        digests = np.array([zlib.crc32(row) for row in rows], np.uint32)[:, None]
        if self.class_count:
            digests = (np.arange(self.class_count) == digests % self.class_count).astype(np.float32)
        ctypes.memmove(target, np.ascontiguousarray(digests).ctypes.data, digests.nbytes)

    def act(self, special, number):
        if special in SIGNALS:
            signal.raise_signal(SIGNALS[special])  # nobody has set another action for it
        elif special == "spin":
            threading.Event().wait()
        elif special == "lost":
            raise pretend_cuda.Fault(STICKY)
        elif special == "meet":
            with self.changed:
                self.changed.wait_for(lambda: self.started > number)

    def close(self):
        self.bound.clear()


class PretendBackend(CardBackend):
    def __init__(self, contract, directory, setup):
        self.runner = PretendRunner(contract)
        super().__init__(contract, self.runner)
        if os.environ[ENGINE] == "alone":
            self.depth = 1

    def start(self, size, count):
        self.runner.waiting.append(self.runner.started + 1)
        super().start(size, count)
        with self.runner.changed:
            self.runner.started += 1
            self.runner.changed.notify_all()
