"""How fast the sample is decoded here: real decoder processes that are kept busy, one alone, then all together."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gateway.errors import InvalidSettings
from gateway.memory import Memory
from gateway.scheduling.ticket import Role
from gateway.tuning.crew import supervised
from shm import wire
from shm.heritage import Limits
from shm.wire import DecodeItem, Encoding, ItemStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion
    from gateway.supervisor import Child, Obituary, Supervisor
    from gateway.tuning.photos import Photo

FRAME_COUNT = 2
"""Frames that a decoder has at a time: the one it works on, and the next."""

START_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 30.0


class DecodeRate(NamedTuple):
    """`p50_ms`, `p99_ms`: one image on a decoder that works alone. `rate`: images/s of `decoder_count` together."""

    p50_ms: float
    p99_ms: float
    rate: float
    decoder_count: int


class Skipped(NamedTuple):
    """A file that is not sent, and why."""

    name: str
    detail: str


async def measure(
    model: ModelVersion,
    settings: Settings,
    photos: Sequence[Photo],
    seconds: float,
    progress: Callable[[str], None],
) -> tuple[DecodeRate, list[Photo], list[Skipped]]:
    """Decode for about `seconds`; the photos that can be, and those that cannot.

    Raises: InvalidSettings when none can be decoded, or a decoder does not start or dies.
    """
    decoders = _Decoders(model, settings, photos)
    try:
        async with supervised() as supervisor:
            progress("starting decoders")
            await decoders.start(supervisor)
            progress(f"decoding each of {len(photos)} once")
            skipped = await decoders.check()
            progress("decoding on one decoder")
            alone_ns, _ = await decoders.run(1, seconds / 2)
            progress(f"decoding on {decoders.decoder_count} decoders")
            _, rate = await decoders.run(decoders.decoder_count, seconds / 2)
    finally:
        decoders.memory.close()
    p50_ms, p99_ms = (float(found) / 1e6 for found in np.percentile(alone_ns, (50, 99)))
    good = [photos[index] for index in decoders.good]
    return DecodeRate(p50_ms, p99_ms, rate, decoders.decoder_count), good, skipped


class _Decoders:
    """Decoders and the frames they hold. A ticket is the index of its photo, plus one."""

    def __init__(self, model: ModelVersion, settings: Settings, photos: Sequence[Photo]) -> None:
        self.decoder_count = settings.decoder_count()
        self.good = list(range(len(photos)))
        self._frame = settings.decode_frame_count_max
        self._photos = photos
        self._settings = settings
        self._children: dict[int, Child] = {}
        self._news = asyncio.Event()
        self._dead = ""
        self._done: list[wire.DecodedItem] = []
        self._held = [0] * self.decoder_count
        self._running = 0
        self._next = 0
        self._offsets: list[int] = []
        size = 0
        for photo in photos:
            self._offsets.append(size)
            size += len(photo.body)
        self.memory = Memory(bodies_size=size)
        self.memory.add(0, model, self._frame * FRAME_COUNT * self.decoder_count)
        for photo, offset in zip(photos, self._offsets, strict=True):
            self.memory.bodies_view[offset : offset + len(photo.body)] = photo.body

    async def start(self, supervisor: Supervisor) -> None:
        """Start the decoders and wait until they are ready."""
        limits = Limits(
            cpu_ns_max=int(self._settings.decode_cpu_ms_max * 1e6),
            address_space_size_max=self._settings.decoder_memory_size_max,
            nice=self._settings.decoder_nice,
        )
        for index in range(self.decoder_count):
            supervisor.spawn(
                Role.DECODER,
                index,
                seat=index,
                module="gateway.decoding",
                heritage=lambda fd, recorder: self.memory.decoder_heritage(os.getpid(), fd, recorder, limits),
                on_frame=self._on_frame,
                on_eof=lambda _child: None,
                on_death=self._on_death,
            )
        await self._wait(lambda: len(self._children) == self.decoder_count, START_TIMEOUT_S, "a decoder did not start")

    async def check(self) -> list[Skipped]:
        """Decode every photo once; `good` are those that could be. Raises InvalidSettings when there is none."""
        self._done = []
        for begin in range(0, len(self._photos), self._frame):
            self._send(0, range(begin, min(begin + self._frame, len(self._photos))))
            await self._wait(lambda: not self._held[0], CHECK_TIMEOUT_S, "a photo took too long to decode")
        refused = {item.ticket - 1: item.detail for item in self._done if item.status is not ItemStatus.OK}
        self.good = [index for index in self.good if index not in refused]
        skipped = [Skipped(self._photos[index].name, detail) for index, detail in sorted(refused.items())]
        if not self.good:
            raise InvalidSettings(f"none of the images can be decoded; {skipped[0].name}: {skipped[0].detail}")
        return skipped

    async def run(self, decoder_count: int, seconds: float) -> tuple[list[int], float]:
        """Keep the first `decoder_count` busy: decode_ns of every image, and images/s."""
        loop = asyncio.get_running_loop()
        self._done = []
        self._running = decoder_count
        begin = loop.time()
        for index in range(decoder_count):
            for _ in range(FRAME_COUNT):
                self._send_next(index)
        try:
            await self._wait(lambda: bool(self._done) and loop.time() >= begin + seconds, seconds + CHECK_TIMEOUT_S, "")
        finally:
            self._running = 0
        done, elapsed = self._done, loop.time() - begin
        rate = len(done) / elapsed
        await self._wait(lambda: not any(self._held), CHECK_TIMEOUT_S, "a photo took too long to decode")
        return [item.decode_ns for item in done], rate

    def _send_next(self, index: int) -> None:
        chosen = [self.good[(self._next + step) % len(self.good)] for step in range(self._frame)]
        self._next += self._frame
        self._send(index, chosen)

    def _send(self, index: int, chosen: Sequence[int]) -> None:
        base = index * self._frame * FRAME_COUNT
        items = [
            DecodeItem(photo + 1, 0, base + row, self._offsets[photo], len(self._photos[photo].body), Encoding.BINARY)
            for row, photo in enumerate(chosen)
        ]
        self._held[index] += len(items)
        self._children[index].link.send(wire.encode(wire.Decode(items)))

    def _on_frame(self, child: Child, frame: memoryview) -> None:
        message = wire.read_from_decoder(frame)
        if isinstance(message, wire.DecoderReady):
            self._children[child.index] = child
        else:
            self._done += message.items
            self._held[child.index] -= len(message.items)
            while child.index < self._running and self._held[child.index] <= self._frame * (FRAME_COUNT - 1):
                self._send_next(child.index)
        self._news.set()

    def _on_death(self, _child: Child, obituary: Obituary) -> None:
        if 0 < obituary.blamed <= len(self._photos):
            name = self._photos[obituary.blamed - 1].name
            self._dead = f"a decoder died of {name} ({obituary.cause}); take it out of the folder"
        else:
            self._dead = f"a decoder died ({obituary.cause}); its last words are above"
        self._news.set()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float, late: str) -> None:
        """Until `condition`, which only frames change. Raises InvalidSettings when a decoder died, or at the bound."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    if self._dead:
                        raise InvalidSettings(self._dead)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise InvalidSettings(late) from None
