"""What grows in bench/growth.py: connections, models, workers, images in a request, and the queue.

Each part measures CPU per request (or image) of every process, and resident memory, at ascending sizes: several times,
the sizes in turn where one gateway can have all of them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bench import load, rig
from bench.growth_lab.crowd import Crowd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

CONFIG = """header_timeout_s = 600
connections_max = 12000
"""
"""Silent connections are not closed while anything is measured, and nobody is refused for their number."""

MODEL = """backend = "fake"
[input]
width = 224
height = 224
resize = "crop"
crop_fraction = 1.0
[output]
task = "classification"
top_k = 1
[batching]
sizes = {sizes}
[limits]
images_max = 256
queue_max = 65536
deadline_ms = 60000
[fake]
class_count = 10
base_ms = {base_ms}
"""

QUEUE_BASE_MS, QUEUE_SIZE = 8.0, 8
"""The worker of the queue's part: 8 images in 8 ms, so that decoding is not what everybody waits for."""

QUEUE_IMAGES = 64
"""Images of one request in the queue's part, so that few connections make a long queue."""


class Point(NamedTuple):
    """One measurement at one size."""

    size: int
    cpu_us: dict[str, float]
    """By role: per request, or per image where the part says so."""
    memory: dict[str, int]
    """Resident bytes, by role."""
    rate: float
    """Requests (or images) a second."""

    @property
    def cpu_total_us(self) -> float:
        """Of all processes."""
        return sum(self.cpu_us.values())

    @property
    def memory_total(self) -> int:
        """Of all processes; pages that are shared count in each."""
        return sum(self.memory.values())


class Part(NamedTuple):
    """One thing that grows."""

    name: str
    what: str
    """What a size is, on the plot's axis."""
    per: str
    """What CPU is counted per."""
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    small: tuple[int, ...]
    measure: Callable[[Effort, Sequence[int]], Awaitable[list[Point]]]


class Effort(NamedTuple):
    """How much is measured."""

    requests: int
    """At each size, each time."""
    rounds: int
    connections_max: int
    """Descriptors allow no more."""


def write_model(repository: Path, name: str, *, sizes: Sequence[int] = (1, 2, 4, 8), base_ms: float = 0.0) -> None:
    """A fake model that costs next to nothing; what is left is the server."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(MODEL.format(sizes=list(sizes), base_ms=base_ms))


@contextlib.contextmanager
def served(
    names: Sequence[str], *flags: str, sizes: Sequence[int] = (1, 2, 4, 8), base_ms: float = 0.0
) -> Iterator[rig.Gateway]:
    """A gateway with these models."""
    with rig.temporary_repository() as folder:
        repository = folder / "models"
        for name in names:
            write_model(repository, name, sizes=sizes, base_ms=base_ms)
        config = folder / "penstock.toml"
        config.write_text(CONFIG)
        with rig.gateway(repository, "--config", str(config), *flags) as running:
            yield running


@contextlib.asynccontextmanager
async def crowd(running: rig.Gateway) -> AsyncIterator[Crowd]:
    """Connections to a gateway, closed afterwards."""
    made = Crowd("127.0.0.1", running.port)
    try:
        yield made
    finally:
        await made.close()


def message(running: rig.Gateway, name: str, body: bytes, content_type: str = "image/jpeg") -> bytes:
    """One request for a model, as it goes over the wire."""
    return load.request_bytes(f"{running.url}/predictions/{name}", body, content_type)[2]


def many(image: bytes, count: int) -> bytes:
    """A msgpack body of `count` images."""
    return msgspec.msgpack.encode({"images": [image] * count})


async def once(
    running: rig.Gateway,
    clients: Crowd,
    messages: Sequence[bytes],
    size: int,
    *,
    connections: int,
    count: int,
    each: int = 1,
) -> Point:
    """Send `count` requests of `each` images; the CPU is counted per `each`-th of them. Raises SystemExit."""
    before = running.cpu_ns()
    took_s = await clients.ask(messages, connections=connections, count=count)
    after = running.cpu_ns()
    clients.check()
    used = {role: (after[role] - before[role]) / 1e3 / count / each for role in after}
    return Point(size, used, running.rss(), count * each / took_s)


def middle(points: Sequence[Point]) -> Point:
    """Of several measurements of one size: the one in the middle by CPU, with the most memory that was seen."""
    chosen = sorted(points, key=lambda point: point.cpu_total_us)[len(points) // 2]
    largest = max(points, key=lambda point: point.memory_total)
    return chosen._replace(memory=largest.memory, rate=statistics.median(point.rate for point in points))


# -- parts ----------------------------------------------------------------------------------------------------------


async def active(effort: Effort, sizes: Sequence[int]) -> list[Point]:
    """Connections that all ask at once."""
    body = rig.jpeg(224, 224, 85)
    found: list[Point] = []
    with served(["m"]) as running:
        ours = message(running, "m", body)
        async with crowd(running) as clients:
            await clients.ask([ours], connections=min(32, sizes[-1]), count=min(500, effort.requests))
            for _ in range(effort.rounds):
                found += [
                    await once(running, clients, [ours], size, connections=size, count=max(size, effort.requests))
                    for size in sizes
                ]
    return found


async def idle(effort: Effort, sizes: Sequence[int]) -> list[Point]:
    """Silent connections beside a thousand that ask. They only grow in number, so all rounds of a size are together."""
    body = rig.jpeg(224, 224, 85)
    asking = min(1000, effort.connections_max // 10, effort.requests)
    found: list[Point] = []
    with served(["m"]) as running:
        ours = message(running, "m", body)
        async with crowd(running) as clients:
            await clients.ask([ours], connections=asking, count=max(asking, min(2000, effort.requests)))
            for size in sizes:
                await clients.keep_idle(size - clients.idle_count)
                found += [
                    await once(running, clients, [ours], size, connections=asking, count=max(asking, effort.requests))
                    for _ in range(effort.rounds)
                ]
                if clients.idle_count != size:
                    raise SystemExit(f"of {size} silent connections {clients.idle_count} are left")
    return found


async def models_one(effort: Effort, sizes: Sequence[int]) -> list[Point]:
    """Models that are loaded, one of which is asked for."""
    return await _models(effort, sizes, all_of_them=False)


async def models_all(effort: Effort, sizes: Sequence[int]) -> list[Point]:
    """Models that are loaded, and asked for in turn."""
    return await _models(effort, sizes, all_of_them=True)


async def _models(effort: Effort, sizes: Sequence[int], *, all_of_them: bool) -> list[Point]:
    body = rig.jpeg(224, 224, 85)
    found: list[Point] = []
    for size in sizes:
        names = [f"m{number}" for number in range(size)]
        with served(names) as running:
            messages = [message(running, name, body) for name in (names if all_of_them else names[:1])]
            async with crowd(running) as clients:
                await clients.ask(messages, connections=32, count=max(size, min(500, effort.requests)))
                found += [
                    await once(running, clients, messages, size, connections=32, count=effort.requests)
                    for _ in range(effort.rounds)
                ]
    return found


async def workers(effort: Effort, sizes: Sequence[int]) -> list[Point]:
    """Workers, each on a device of its own that nobody has to have: the fake backend uses none."""
    body = rig.jpeg(224, 224, 85)
    found: list[Point] = []
    for size in sizes:
        devices = ["cpu", *(f"cuda:{number}" for number in range(size - 1))]
        flags = [flag for device in devices for flag in ("--device", device)]
        with served(["m"], *flags) as running:
            ours = message(running, "m", body)
            async with crowd(running) as clients:
                await clients.ask([ours], connections=64, count=min(500, effort.requests))
                found += [
                    await once(running, clients, [ours], size, connections=64, count=effort.requests)
                    for _ in range(effort.rounds)
                ]
    return found


async def images(effort: Effort, sizes: Sequence[int]) -> list[Point]:
    """Images in one request; CPU is counted per image."""
    image = rig.jpeg(224, 224, 85)
    found: list[Point] = []
    with served(["m"], sizes=(1, 4, 32)) as running:
        async with crowd(running) as clients:
            await clients.ask([message(running, "m", image)], connections=8, count=min(500, effort.requests))
            for _ in range(effort.rounds):
                for size in sizes:
                    ours = message(running, "m", many(image, size), "application/msgpack")
                    count = max(8, effort.requests // size)
                    found.append(await once(running, clients, [ours], size, connections=4, count=count, each=size))
    return found


async def queue(effort: Effort, sizes: Sequence[int]) -> list[Point]:
    """Images that wait; CPU is counted per image. The queue is as long as its connections ask for."""
    image = rig.jpeg(224, 224, 85)
    found: list[Point] = []
    with served(["m"], sizes=(1, QUEUE_SIZE), base_ms=QUEUE_BASE_MS) as running:
        async with crowd(running) as clients:
            ours = message(running, "m", many(image, QUEUE_IMAGES), "application/msgpack")
            await clients.ask([ours], connections=1, count=2)
            for _ in range(effort.rounds):
                for size in sizes:
                    connections = max(1, size // QUEUE_IMAGES)
                    # As many again as wait, so that most of them meet the whole queue.
                    count = max(2 * connections, effort.requests // QUEUE_IMAGES)
                    found.append(
                        await once(
                            *(running, clients, [ours], size), connections=connections, count=count, each=QUEUE_IMAGES
                        )
                    )
    return found


PARTS = (
    Part("active", "connections that ask", "request", (1, 10, 100, 1000), (1, 10, 100), (1, 4), active),
    Part(
        *("idle", "silent connections beside 1,000 that ask", "request"),
        *((1, 10, 100, 1000, 10_000), (1, 100, 1000), (1, 8)),
        idle,
    ),
    Part("models_one", "models loaded, one asked for", "request", (1, 3, 10, 30, 100), (1, 10, 30), (1, 3), models_one),
    Part(
        "models_all",
        "models loaded, asked for in turn",
        "request",
        (1, 3, 10, 30, 100),
        (1, 10, 30),
        (1, 3),
        models_all,
    ),
    Part("workers", "workers on fake devices", "request", (1, 2, 4, 8), (1, 4), (1, 2), workers),
    Part("images", "images in a request", "image", (1, 4, 16, 64, 256), (1, 16, 256), (1, 4), images),
    Part("queue", "images that wait", "image", (64, 256, 1024, 4096), (64, 512), (64, 128), queue),
)


async def run(part: Part, effort: Effort, sizes: Sequence[int]) -> tuple[list[Point], float, float]:
    """(one point for each size, the noise of CPU as a share, the seconds that it took)."""
    begin = time.monotonic()
    points = await part.measure(effort, sizes)
    took_s = time.monotonic() - begin
    grouped = [[point for point in points if point.size == size] for size in sizes]
    shares = [
        statistics.pstdev(point.cpu_total_us for point in group) / statistics.fmean(p.cpu_total_us for p in group)
        for group in grouped
    ]
    return [middle(group) for group in grouped], statistics.median(shares), took_s
