"""The backend without a model: answers at once or after a set time, and dies, hangs or fails on demand.

For measuring the server around it and for testing what it does when workers misbehave. At zero latency it costs
next to nothing: the answer is made once and only a digest, where the contract asks for it, looks at the pixels.
"""

from __future__ import annotations

import signal
import threading
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np

from gateway.errors import InvalidModel
from gpuworker.backend import DeviceLost, Interrupted, Outputs
from gpuworker.profile import noise
from shm import failpoints
from shm.layout import Field

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gateway.models.spec import Contract
    from gpuworker.backend import Report, Setup

_NS_PER_MS = 1_000_000

_SPIN_NS = 150_000
"""The end of the set time is waited out awake: a wait ends 90 to 130 µs late, and that would count as the server's."""

_NEWS_NS = 20_000_000
"""How often it says that it builds."""

_BLACK = (0, 0, 0)

_PIXELS = ("crash", "kill", "hang", "spin", "fail", "lost")
"""What can be asked for by pixel, in the order in which a batch that asks for several gets it."""

_SIGNALS = {"crash": signal.SIGSEGV, "kill": signal.SIGKILL, "hang": signal.SIGSTOP}


class FakeBackend:
    """See `gateway.models.spec.Fake` for what it does. It runs on any device, for it uses none.

    A classification answer is class `digest % class_count` with probability 1; the classes after it, by index, have 0.
    Any other task gives one field, `digest`: uint32[1].
    """

    provider = "fake"

    def __init__(self, contract: Contract, directory: Path, setup: Setup) -> None:
        del directory, setup
        assert contract.fake is not None, "the contract checks that [fake] is there"
        self._fake = contract.fake
        self._input = contract.input
        self.ranked_class_count = self._fake.class_count if contract.output.task == "classification" else 0
        self._rank_count = min(contract.output.top_k_max, self._fake.class_count)
        self._specials = {
            name: bytes(pixel[: self._input.channels])
            for name in _PIXELS
            if (pixel := getattr(self._fake, f"{name}_pixel")) is not None
        }
        self._interrupted = threading.Event()
        self._ballast: NDArray[np.uint8] | None = None
        self._noise = noise(int(np.prod(self._input.shape))) if self._fake.memory_images else None
        batch_max = contract.batching.sizes[-1]
        self._staging = list(np.zeros((batch_max, int(np.prod(self._input.shape))), np.uint8))
        if self.ranked_class_count:
            ranks = (self._rank_count,)
            self.fields = [Field("index", "uint32", ranks), Field("probability", "float32", ranks)]
            self._ascending = np.arange(self._rank_count, dtype=np.uint32)
            probability = np.zeros((batch_max, self._rank_count), np.float32)
            probability[:, 0] = 1
            index = np.tile(self._ascending, (batch_max, 1))
            self._arrays = {"index": index, "probability": probability}
        else:
            self.fields = [Field("digest", "uint32", (1,))]
            self._arrays = {"digest": np.zeros((batch_max, 1), np.uint32)}

    def load(self, report: Report) -> None:
        """End as the contract says. Special pixels that would fire on warm-up, which runs on black, are refused.

        Raises InvalidModel, MemoryError.
        """
        for name in _PIXELS:
            if getattr(self._fake, f"{name}_pixel") == _BLACK:
                raise InvalidModel(
                    f"fake.{name}_pixel = [0, 0, 0] would fire on warm-up; choose a pixel that is not black"
                )
        self._build(report)
        report("session", 0.0)
        time.sleep(self._fake.load_ms / 1e3)
        if self._fake.load == "refuse":
            raise InvalidModel("fake.load = 'refuse' asks for a refusal; set it to 'ok'")
        if self._fake.load == "crash":
            failpoints.strike(signal.SIGSEGV)
        if self._fake.load == "no_memory":
            raise MemoryError("fake.load")
        if self._fake.memory_size:
            self._ballast = np.ones(self._fake.memory_size, np.uint8)

    def _build(self, report: Report) -> None:
        """Build the engine that it has not, and say so again and again."""
        begin, whole_ns = time.monotonic_ns(), int(self._fake.build_ms * _NS_PER_MS)
        while (done_ns := time.monotonic_ns() - begin) < whole_ns:
            report("building", done_ns / whole_ns)
            time.sleep(min(_NEWS_NS, whole_ns - done_ns) / 1e9)

    def warmup(self, size: int) -> None:
        """Run the size once. Raises MemoryError."""
        if size > self._fake.warmup_images > 0:
            raise MemoryError(f"{size} images, fake.warmup_images = {self._fake.warmup_images}")
        self.run(size, 0)

    def staging(self, size: int) -> list[NDArray[np.uint8]]:
        """Rows for the next batch."""
        del size
        return self._staging

    def run(self, size: int, count: int) -> Outputs:
        """Take the set time, then answer; or do what a first pixel asks for.

        Raises Interrupted, MemoryError, DeviceLost.
        """
        end = time.monotonic_ns() + int((self._fake.base_ms + self._fake.image_ms * size) * _NS_PER_MS)
        self._interrupted.clear()
        self._check_memory(count)
        failed = self._act_on_pixels(count) if self._specials else ()
        if self._fake.digest:
            self._write_digests(count)
        if (rest := end - time.monotonic_ns() - _SPIN_NS) > 0:
            self._wait(rest / 1e9)
        while time.monotonic_ns() < end:
            pass
        return Outputs(self._arrays, failed)

    def interrupt(self) -> None:
        """End the wait."""
        self._interrupted.set()

    def close(self) -> None:
        """Let go of what was taken."""
        self._ballast = None

    def _wait(self, seconds: float | None) -> None:
        """Wait that long, or for ever. Raises Interrupted."""
        if self._interrupted.wait(seconds):
            raise Interrupted

    def _check_memory(self, count: int) -> None:
        """Raise MemoryError for too many images, but for those that a load measures with: it has to succeed first."""
        if self._noise is not None and count > self._fake.memory_images and (self._staging[0] != self._noise).any():
            raise MemoryError(f"{count} images, fake.memory_images = {self._fake.memory_images}")

    def _act_on_pixels(self, count: int) -> list[int]:
        """Do what the first pixel of a row asks for; return the rows to fail. Raises Interrupted, DeviceLost."""
        first = [row[: self._input.channels].tobytes() for row in self._staging[:count]]
        for name, pixel in self._specials.items():
            if pixel not in first:
                continue
            if name in _SIGNALS:
                failpoints.strike(_SIGNALS[name])
            elif name == "spin":
                self._wait(None)
            elif name == "lost":
                raise DeviceLost("fake.lost_pixel")
        fail = self._specials.get("fail")
        return [row for row, pixel in enumerate(first) if pixel == fail]

    def _write_digests(self, count: int) -> None:
        """Put the CRC-32 of each row's pixels into its answer."""
        if not self.ranked_class_count:
            self._arrays["digest"][:count, 0] = [zlib.crc32(row.data) for row in self._staging[:count]]
            return
        for pixels, index in zip(self._staging[:count], self._arrays["index"], strict=False):
            best = zlib.crc32(pixels.data) % self._fake.class_count
            index[0] = best
            # The others follow in ascending order, without the best: equal probabilities go by lower index.
            index[1 : best + 1] = self._ascending[:best][: self._rank_count - 1]
            index[best + 1 :] = self._ascending[best + 1 :]
