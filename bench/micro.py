"""Small costs, one by one: decoding per size and format, a hop over a control socket, a step of the scheduling core.

python bench/micro.py [--long]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import io
import os
import socket
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import rig
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.models.spec import Contract, Input, Output
from gateway.scheduling.line import Line
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import Finish, RunBatch, Send
from shm import wire
from shm.arena import BodyArena

if TYPE_CHECKING:
    from collections.abc import Callable

console = Console()


def timed(call: Callable[[], object], seconds: float) -> float:
    """Median CPU ns of one call, over five interleavable stretches."""
    call()
    stretches = []
    for _ in range(5):
        count, begin, end = 0, time.process_time_ns(), time.perf_counter() + seconds / 5
        while time.perf_counter() < end:
            call()
            count += 1
        stretches.append((time.process_time_ns() - begin) / count)
    return statistics.median(stretches)


def decoding(seconds: float) -> dict[str, float]:
    """µs per image from encoded bytes to a 224x224 slot, against Pillow's plain pipeline."""
    contract = Contract(input=Input(width=224, height=224), output=Output(task="classification"))
    direct = Contract(input=Input(width=224, height=224, crop_fraction=1.0), output=Output(task="classification"))
    photos: list[tuple[str, bytes, Contract]] = [
        ("jpeg_224_direct", rig.jpeg(224, 224, 85), direct),
        ("jpeg_500", rig.jpeg(500, 375, 90), contract),
        ("jpeg_500_progressive", rig.jpeg(500, 375, 90, progressive=True), contract),
        ("jpeg_1080p", rig.jpeg(1920, 1080, 90), contract),
        ("jpeg_12mp", rig.jpeg(4000, 3000, 85), contract),
    ]
    for kind in ("PNG", "WEBP", "GIF", "TIFF", "BMP"):
        out = io.BytesIO()
        rig.photo(500, 375).save(out, kind)
        photos.append((f"{kind.lower()}_500", out.getvalue(), contract))
    slot = np.zeros((224, 224, 3), np.uint8)
    table, found = Table("image", "bytes", "µs", "exact (plain Pillow) µs", "ratio"), {}
    for name, body, kept in photos:
        fast, scratch = Recipe(kept), Scratch()
        exact = Recipe(Contract(input=_exact(kept.input), output=kept.output))
        ours = timed(lambda body=body, fast=fast, scratch=scratch: decode_into(body, slot, fast, scratch), seconds)
        plain = timed(lambda body=body, exact=exact, scratch=scratch: decode_into(body, slot, exact, scratch), seconds)
        table.add_row(name, f"{len(body):,}", f"{ours / 1e3:.0f}", f"{plain / 1e3:.0f}", f"{ours / plain:.2f}")
        found[f"decode_{name}"] = ours / 1e3
    console.print(table)
    return found


def _exact(image: Input) -> Input:
    return Input(width=image.width, height=image.height, crop_fraction=image.crop_fraction, exact=True)


def hop(seconds: float) -> dict[str, float]:
    """Round trip of a frame of eight images to another process and back: wall µs, at once and from sleep."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    frame = wire.encode(
        wire.Decode([wire.DecodeItem(n, 0, n, n * 4096, 13_000, wire.Encoding.BINARY) for n in range(8)])
    )
    pid = os.fork()
    if pid == 0:
        ours.close()
        while data := theirs.recv(wire.FRAME_SIZE_MAX):
            theirs.send(data)
        os._exit(0)
    theirs.close()
    trips: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter_ns()
        ours.send(frame)
        ours.recv(wire.FRAME_SIZE_MAX)
        trips.append((time.perf_counter_ns() - begin) / 1e3)
    ours.close()
    os.waitpid(pid, 0)
    encode = timed(lambda: wire.encode(wire.Decode([])), 0.2) / 1e3
    read = timed(lambda: wire.read_for_decoder(frame), 0.2) / 1e3
    console.print(f"frame of 8 images: {len(frame)} bytes, decode {read:.2f} µs; empty frame: encode {encode:.2f} µs")
    return {"hop_round_trip": statistics.median(trips)}


def core_step(seconds: float) -> dict[str, float]:
    """CPU µs per image of the scheduling core alone: submit, feed, decoded, dispatch, done, release; 8 at a time."""
    line = Line(0, "m", slot_count=64, queue_max=1024, window_ns=0, deadline_ns=10**10)
    core = Scheduler(
        [line],
        bodies=BodyArena(1 << 26),
        worker_count=1,
        decoder_count=1,
        frame_count_max=8,
        decoder_hang_ns=10**10,
        start_timeout_ns=10**11,
    )
    now = 1
    core.advance(now)
    core.decoder_ready(0, now)
    core.worker_ready(
        0, {0: [wire.ProfilePoint(b, 100_000 + 10_000 * b, 100_000 + 10_000 * b) for b in (1, 2, 4, 8)]}, now
    )

    def step() -> None:
        nonlocal now
        for _ in range(8):
            body = core.allocate_body(13_000)
            core.precheck(line, now + 10**10, now, size=13_000)
            core.submit(line, body, [(0, 13_000, 0)], priority=0, deadline_ns=now + 10**10, top_k=5, now_ns=now)
            body.release()
        pending = core.advance(now)
        while pending:
            now += 1000
            for effect in pending:
                if type(effect) is Send:
                    for ticket in effect.tickets:
                        core.decoded(effect.decoder, ticket.number, None, 120_000, now)
                elif type(effect) is RunBatch:
                    core.batch_done(
                        effect.worker, effect.batch.number, [wire.ItemStatus.OK] * len(effect.batch.tickets), now
                    )
                elif type(effect) is Finish:
                    core.release(effect.ticket)
            pending = core.advance(now)
            core.wake_at_ns()

    return {"core_step": timed(step, seconds) / 8 / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="ten times as long")
    seconds = 5.0 if parser.parse_args().long else 0.5
    found: dict[str, float] = {}
    for name, part in (("decoding", decoding), ("channel hop", hop), ("core step", core_step)):
        console.rule(name)
        found |= part(seconds)
    print("raw results:", rig.save("micro", found))
    for name, value in found.items():
        rig.figure(name, value, "us")


if __name__ == "__main__":
    main()
