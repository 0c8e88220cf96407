"""A link keeps frames whole and in order, bounds nothing itself, and hears of its peer's end once."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import msgspec
import pytest

from gateway.link import Link, socket_pair
from shm import wire


class Ends:
    """A link and its peer's socket; what came in, and how often the end was told."""

    def __init__(self, loop, on_frame=None) -> None:
        ours, self.peer = socket_pair()
        self.peer.setblocking(False)
        self.frames: list[bytes] = []
        self.ends = 0
        self.link = Link(loop, ours, on_frame or (lambda frame: self.frames.append(bytes(frame))), self._end)

    def _end(self) -> None:
        self.ends += 1

    def close(self) -> None:
        self.link.close()
        self.peer.close()

    async def wait(self, condition) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "in vain"
            await asyncio.sleep(0)

    def read(self) -> list[bytes]:
        """Every frame that is there."""
        found = []
        while True:
            try:
                frame = self.peer.recv(wire.FRAME_SIZE_MAX)
            except BlockingIOError:
                return found
            if not frame:
                return found
            found.append(frame)


def with_ends(story, **options):
    async def run() -> None:
        ends = Ends(asyncio.get_running_loop(), **options)
        try:
            await story(ends)
        finally:
            ends.close()

    asyncio.run(run())


def test_frames_arrive_whole_and_in_order_both_ways():
    async def story(ends):
        sent = [bytes([n]) * (1 + n * 999) for n in range(60)]
        for frame in sent:
            ends.link.send(frame)
            ends.peer.send(frame)
        assert ends.read() == sent
        await ends.wait(lambda: len(ends.frames) == len(sent))
        assert ends.frames == sent
        assert ends.ends == 0

    with_ends(story)


def test_what_a_full_socket_does_not_take_waits_in_order():
    async def story(ends):
        sent = [n.to_bytes(2, "big") + bytes(20_000) for n in range(500)]
        for frame in sent:
            ends.link.send(frame)
        waiting = ends.link.backlog_count
        assert 0 < waiting < len(sent), "or the socket was never full"
        found = []
        while len(found) < len(sent):
            found += ends.read()
            await asyncio.sleep(0)
        assert found == sent
        assert ends.link.backlog_count == 0
        # The socket is free again: the next frame does not wait for the loop.
        ends.link.send(b"next")
        assert ends.read() == [b"next"]

    with_ends(story)


def test_a_frame_behind_others_that_wait_does_not_overtake_them():
    async def story(ends):
        while not ends.link.backlog_count:
            ends.link.send(bytes(50_000))
        before = ends.read()  # The socket has room again, and the loop has not turned.
        ends.link.send(b"last")
        assert ends.read() == []
        found = []
        while b"last" not in found:
            await asyncio.sleep(0)
            found += ends.read()
        assert found[-1] == b"last"
        assert all(len(frame) == 50_000 for frame in before + found[:-1])

    with_ends(story)


def test_last_words_are_read_before_the_end_is_told_and_it_is_told_once():
    async def story(ends):
        ends.peer.send(b"last")
        ends.peer.send(b"words")
        ends.peer.close()
        await ends.wait(lambda: ends.ends)
        assert ends.frames == [b"last", b"words"]
        for _ in range(5):
            await asyncio.sleep(0)
        ends.link.drain()
        assert ends.ends == 1

    with_ends(story)


def test_drain_reads_what_is_there_without_a_turn_of_the_loop():
    async def story(ends):
        for n in range(100):
            ends.peer.send(bytes([n]))
        ends.link.drain()
        assert ends.frames == [bytes([n]) for n in range(100)]

    with_ends(story)


def test_a_dead_peer_is_no_error_to_who_sends():
    async def story(ends):
        while not ends.link.backlog_count:
            ends.link.send(bytes(50_000))
        ends.peer.close()
        ends.link.send(b"x")
        await ends.wait(lambda: ends.ends and not ends.link.backlog_count)
        ends.link.send(b"y")
        assert ends.link.backlog_count == 0

    with_ends(story)


def test_closed_it_reads_nothing_more_and_may_be_closed_again():
    async def story(ends):
        ends.peer.send(b"unread")
        ends.link.close()
        ends.link.close()
        for _ in range(5):
            await asyncio.sleep(0)
        assert (ends.frames, ends.ends) == ([], 0)

    with_ends(story)


def test_it_may_be_closed_by_the_one_who_reads():
    """The frame that proves a child broken ends its link."""

    async def run():
        ours, peer = socket_pair()
        seen = []

        def on_frame(frame):
            seen.append(bytes(frame))
            link.close()

        link = Link(asyncio.get_running_loop(), ours, on_frame, lambda: seen.append("eof"))
        peer.send(b"one")
        peer.send(b"two")
        for _ in range(5):
            await asyncio.sleep(0)
        assert seen == [b"one"]
        peer.close()

    asyncio.run(run())


def test_a_frame_over_the_limit_is_cut_and_so_refused_by_the_wire():
    async def story(ends):
        ends.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ends.peer.send(msgspec.msgpack.encode(wire.DecoderReady(["x" * wire.FRAME_SIZE_MAX])))
        await ends.wait(lambda: ends.frames)
        assert len(ends.frames[0]) == wire.FRAME_SIZE_MAX
        with pytest.raises(wire.WireError):
            wire.read_from_decoder(ends.frames[0])

    with_ends(story)


def content(fd):
    """What the one descriptor holds, which is closed."""
    held = os.pread(fd, 100, 0)
    os.close(fd)
    return held


def holding(text):
    """A descriptor of memory with `text` in it."""
    fd = os.memfd_create("test")
    os.write(fd, text)
    return fd


def open_count():
    return len(list(Path("/proc/self/fd").iterdir()))


def receive(peer):
    """(frame, descriptors) or None."""
    try:
        frame, fds, _, _ = socket.recv_fds(peer, wire.FRAME_SIZE_MAX, 4)
    except BlockingIOError:
        return None
    return frame, fds


def test_a_descriptor_comes_with_its_frame_and_stays_the_senders():
    async def story(ends):
        fd = holding(b"slots")
        ends.link.send(b"before")
        ends.link.send_with_fd(b"with", fd)
        ends.link.send(b"after")
        os.close(fd)
        assert receive(ends.peer) == (b"before", [])
        frame, fds = receive(ends.peer)
        assert (frame, [content(fd) for fd in fds]) == (b"with", [b"slots"])
        assert receive(ends.peer) == (b"after", [])

    with_ends(story)


@pytest.mark.parametrize("first", [True, False], ids=["first_to_wait", "behind_others"])
def test_a_descriptor_that_has_to_wait_keeps_its_place(first):
    async def story(ends):
        before = open_count()
        fd = holding(b"slots")
        sent = []
        while not ends.link.backlog_count:
            frame = len(sent).to_bytes(2, "big") + bytes(20_000)
            sent.append(frame)
            # The frame that fills the socket is the one with the descriptor, or one before it.
            if first:
                ends.link.send_with_fd(frame, fd)
            else:
                ends.link.send(frame)
        ends.link.send_with_fd(b"with", fd)
        ends.link.send(b"after")
        os.close(fd)
        assert ends.link.backlog_count == 3
        found = []
        end = time.monotonic() + 10
        while len(found) < len(sent) + 2:
            assert time.monotonic() < end
            while (got := receive(ends.peer)) is not None:
                frame, fds = got
                found.append((frame, [content(fd) for fd in fds]))
            await asyncio.sleep(0)
        own = [b"slots"] if first else []
        assert found == [*[(frame, own) for frame in sent], (b"with", [b"slots"]), (b"after", [])]
        assert ends.link.backlog_count == 0
        assert open_count() == before

    with_ends(story)


@pytest.mark.parametrize("how", ["closed", "peer_dies"])
def test_descriptors_that_wait_in_vain_are_closed(how):
    async def story(ends):
        before = open_count()
        fd = holding(b"slots")
        while not ends.link.backlog_count:
            ends.link.send(bytes(50_000))
        ends.link.send_with_fd(b"with", fd)
        assert open_count() == before + 2
        os.close(fd)
        if how == "closed":
            ends.link.close()
            assert open_count() == before - 1, "the socket is closed too"
            ends.link.send_with_fd(b"late", 0)
        else:
            ends.peer.close()
            await ends.wait(lambda: ends.ends and not ends.link.backlog_count)
            assert open_count() == before - 1, "the peer's socket is closed too"
            ends.link.send_with_fd(b"late", 0)
            assert ends.link.backlog_count == 0

    with_ends(story)


def test_last_words_of_a_peer_that_left_frames_unread_are_read():
    """A worker that ends behind its answer leaves the batch staged behind it unread."""

    async def story(ends):
        ends.link.send(b"unread")
        ends.peer.send(b"last")
        ends.peer.send(b"words")
        ends.peer.close()
        await ends.wait(lambda: ends.ends)
        assert ends.frames == [b"last", b"words"]
        assert ends.ends == 1

    with_ends(story)


def test_drain_reads_them_too():
    async def story(ends):
        ends.link.send(b"unread")
        ends.peer.send(b"last")
        ends.peer.close()
        ends.link.drain()
        assert (ends.frames, ends.ends) == ([b"last"], 1)

    with_ends(story)


def test_a_descriptor_does_not_overtake_frames_that_wait():
    async def story(ends):
        fd = holding(b"slots")
        while not ends.link.backlog_count:
            ends.link.send(bytes(50_000))
        ends.read()  # The socket has room again, and the loop has not turned.
        ends.link.send_with_fd(b"with", fd)
        os.close(fd)
        assert receive(ends.peer) is None
        found = []
        while not found or found[-1][0] != b"with":
            await asyncio.sleep(0)
            while (got := receive(ends.peer)) is not None:
                found.append(got)
        assert [content(fd) for fd in found[-1][1]] == [b"slots"]

    with_ends(story)
