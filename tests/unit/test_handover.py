"""The handover, frame by frame: who may call, what passes over, and who accepts when something goes wrong."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path

import msgspec
import pytest
import uvloop

from gateway import handover
from gateway.errors import InvalidSettings
from gateway.handover import Estate, Go, Handover, Hello, Ready, Refused
from gateway.measured import Measured
from shm.wire import ProfilePoint


class Old:
    """A running gateway's side, and what it did."""

    def __init__(self, path: Path) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(str(path))
        self.path = path
        self.reader, self.writer = os.pipe()
        self.let_go_count = 0
        loop = asyncio.get_running_loop()
        self.measured: list[Measured] = []
        self.handover = Handover(
            loop, listening, lambda: {"pipe": self.writer}, self._let_go, lambda: list(self.measured)
        )

    def _let_go(self) -> None:
        self.let_go_count += 1

    def close(self) -> None:
        self.handover.close()
        self.handover.close()
        os.close(self.reader)
        os.close(self.writer)


def play(story, *, run=asyncio.run):
    """Run `story(old)` in a loop."""

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="pst-") as folder:
            old = Old(Path(folder) / "h.sock")
            try:
                async with asyncio.timeout(20):
                    await story(old)
            finally:
                old.close()

    run(main())


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - it is for the loop to make it true
        await asyncio.sleep(0)


async def call(old):
    """A successor that has the estate."""
    return await asyncio.to_thread(handover.call, old.path, 60.0)


def raw(old) -> socket.socket:
    """A caller that says what it likes."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        line.connect(str(old.path))
    except OSError:
        line.close()
        raise
    line.setblocking(False)
    return line


async def said(line: socket.socket):
    """What the running gateway says to it; None when it hangs up."""
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(line, heard.set)
    await heard.wait()
    loop.remove_reader(line)
    frame = line.recv(65536)
    return msgspec.json.decode(frame, type=Estate | Go | Refused) if frame else None


def close(predecessor) -> None:
    predecessor.close()
    for fd in predecessor.fds.values():
        os.close(fd)


@pytest.mark.parametrize(("count", "told"), [(0, 0), (3, 3), (1000, 400)])
def test_a_successor_is_told_what_models_take_as_far_as_there_is_room(count, told):
    async def story(old):
        points = tuple(ProfilePoint(size, 10_000_000, 20_000_000) for size in (1, 2))
        old.measured = [Measured("m", number + 1, "f" * 32, "cpu", points) for number in range(count)]
        found = await call(old)
        assert len(found.measured) >= told
        assert found.measured == old.measured[: len(found.measured)]
        close(found)

    play(story)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_successor_gets_what_there_is_and_accepts_after_the_other_has_stopped(run):
    async def story(old):
        found = await call(old)
        assert (found.pid, old.handover.pending, old.let_go_count) == (os.getpid(), True, 0)
        os.write(found.fds["pipe"], b"mine")
        assert os.read(old.reader, 10) == b"mine"
        assert not os.get_inheritable(found.fds["pipe"]), "children get none of it"
        await found.take_over()
        assert (old.let_go_count, old.handover.done) == (1, True)
        with pytest.raises(ConnectionRefusedError):
            raw(old).close()
        close(found)

    play(story, run=run)


def test_go_is_said_after_the_old_one_has_stopped():
    async def story(old):
        found = await call(old)
        old.handover._let_go = lambda: heard.append(line_is_silent(found))
        heard = []
        await found.take_over()
        assert heard == [True]
        close(found)

    def line_is_silent(found) -> bool:
        try:
            found._line.recv(10, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return False

    play(story)


def test_one_that_leaves_before_it_is_ready_changes_nothing_and_the_next_one_may_come():
    async def story(old):
        found = await call(old)
        close(found)
        await until(lambda: not old.handover.pending)
        again = await call(old)
        await again.take_over()
        assert old.let_go_count == 1
        close(again)

    play(story)


def test_a_second_one_is_refused_whether_it_has_spoken_or_not():
    async def story(old):
        first = await call(old)
        with pytest.raises(InvalidSettings, match="taking over already"):
            await call(old)
        silent = raw(old)
        assert "taking over already" in (await said(silent)).detail
        silent.send(b"{}")
        silent.close()
        await until(lambda: not old.handover._dismissed)
        await first.take_over()
        close(first)

    play(story)


def test_another_protocol_is_refused_by_both_numbers():
    async def story(old):
        line = raw(old)
        line.send(msgspec.json.encode(Hello(7, "9.9.9", 1, 60.0)))
        detail = (await said(line)).detail
        assert f"protocol {handover.PROTOCOL}" in detail
        assert "9.9.9 speaks 7" in detail
        assert not old.handover.pending
        line.close()

    play(story)


@pytest.mark.parametrize(
    "frame", [b"not json", b"{}", msgspec.json.encode(Ready()), msgspec.json.encode(Go())], ids=str
)
def test_what_is_no_hello_is_hung_up_on(frame):
    async def story(old):
        line = raw(old)
        line.send(frame)
        assert await said(line) is None
        assert old.let_go_count == 0
        line.close()

    play(story)


def test_a_second_hello_is_hung_up_on():
    async def story(old):
        line = raw(old)
        hello = msgspec.json.encode(Hello(handover.PROTOCOL, "1", 1, 60.0))
        line.send(hello)
        assert isinstance(await said(line), Estate)
        line.send(hello)
        assert await said(line) is None
        line.close()

    play(story)


def test_one_that_takes_too_long_is_told_so_and_does_not_accept():
    async def story(old):
        found = await call(old)
        old.handover._give_up()
        assert not old.handover.pending
        with pytest.raises(InvalidSettings, match="not ready in time"):
            await found.wait_gone()
        close(found)
        late = await call(old)
        late._line.send(msgspec.json.encode(Ready()))
        old.handover._give_up()
        assert (old.let_go_count, old.handover.done) == (1, True), "it was in time, and is heard first"
        close(late)

    play(story)


def test_one_that_is_ready_after_it_was_given_up_hears_that_and_not_the_hang_up():
    async def story(old):
        found = await call(old)
        old.handover._give_up()
        with pytest.raises(InvalidSettings, match="not ready in time"):
            await found.take_over()
        assert old.let_go_count == 0
        close(found)

    play(story)


def test_one_that_says_nothing_is_given_up_as_well():
    async def story(old):
        line = raw(old)
        await until(lambda: old.handover._successor is not None)
        old.handover._give_up()
        assert "not ready in time" in (await said(line)).detail
        line.close()

    play(story)


def test_when_the_old_one_is_gone_the_successor_knows_and_goes_on():
    async def story(old):
        found = await call(old)
        old.handover.close()
        await found.wait_gone()
        await found.take_over()
        close(found)

    play(story)


def test_an_old_one_that_hangs_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(handover, "GO_TIMEOUT_S", 0.01)

    async def story(old):
        found = await call(old)
        asyncio.get_running_loop().remove_reader(old.handover._successor)  # As if it were stopped.
        await found.take_over()
        close(found)

    play(story)


def test_another_user_is_hung_up_on(monkeypatch):
    async def story(old):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(InvalidSettings, match="not replaced"):
            await call(old)
        assert not old.handover.pending

    play(story)


def test_nobody_there_is_said_with_what_to_do(tmp_path):
    with pytest.raises(InvalidSettings, match="without --replace"):
        handover.call(tmp_path / "no.sock", 1.0)
    with pytest.raises(InvalidSettings, match="not replaced"):
        handover.call(Path("/" + 200 * "x"), 1.0)


@pytest.mark.parametrize(
    "answer", [b"nonsense", msgspec.json.encode(Go()), msgspec.json.encode(Estate(1, "1", ["http"]))], ids=str
)
def test_an_answer_that_is_none_is_refused(answer):
    async def story(old):
        def answer_so(caller, _):
            caller.send(answer)
            old.handover._forget()

        old.handover._greet = answer_so
        with pytest.raises(InvalidSettings, match="not replaced"):
            await call(old)

    play(story)
