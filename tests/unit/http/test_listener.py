"""Everyone who waits is accepted in one tick; running out of descriptors is a pause, a client that left is not."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest
import uvloop

from gateway.http import listener
from gateway.http.listener import ACCEPTS_PER_TICK, Listener


class Accepted(asyncio.Protocol):
    """A connection that says it is there, and what became of it."""

    def __init__(self, made: list[Accepted]) -> None:
        self.made = made
        self.transport = None
        self.lost: list[Exception | None] = []
        made.append(self)

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(b"hello")

    def connection_lost(self, exc) -> None:
        self.lost.append(exc)


class Failing:
    """A bound socket whose `accept` fails first, once for each of `numbers`."""

    def __init__(self, bound, numbers) -> None:
        self._bound = bound
        self._numbers = list(numbers)
        self.accept_count = 0

    def accept(self):
        self.accept_count += 1
        if self._numbers:
            raise OSError(self._numbers.pop(0), "no")
        return self._bound.accept()

    def __getattr__(self, name):
        return getattr(self._bound, name)


def listen(story, *, numbers=(), run=asyncio.run):
    """Run `story(listener, bound, address, made)` in a loop."""

    async def main() -> None:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        failing = Failing(bound, numbers)
        made: list[Accepted] = []
        listening = Listener(asyncio.get_running_loop(), failing if numbers else bound, lambda: Accepted(made))
        try:
            async with asyncio.timeout(20):
                await story(listening, failing, bound.getsockname(), made)
        finally:
            listening.close()
            for connection in made:
                if connection.transport is not None:
                    connection.transport.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    run(main())


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - it is for the loop to make it true
        await asyncio.sleep(0)


def dial(address, count):
    """Clients whose connections the kernel has made, and nobody has accepted."""
    return [socket.create_connection(address) for _ in range(count)]


def hang_up(clients) -> None:
    for client in clients:
        client.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_all_who_wait_are_accepted_in_one_tick(run):
    async def story(_listening, _bound, address, made):
        clients = dial(address, 2 * ACCEPTS_PER_TICK)
        await until(lambda: made)
        assert len(made) == ACCEPTS_PER_TICK, "and no more: those who are there get their turn"
        loop = asyncio.get_running_loop()
        for client in clients:
            client.setblocking(False)
            assert await loop.sock_recv(client, 5) == b"hello"
        assert len(made) == 2 * ACCEPTS_PER_TICK
        hang_up(clients)

    listen(story, run=run)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_without_descriptors_it_pauses_and_comes_back(number, monkeypatch):
    monkeypatch.setattr(listener, "RETRY_S", 0.02)

    async def story(_listening, bound, address, made):
        clients = dial(address, 1)
        await until(lambda: bound.accept_count)
        for _ in range(5):
            await asyncio.sleep(0)
        assert bound.accept_count == 1, "it does not spin"
        await until(lambda: made)
        hang_up(clients)

    listen(story, numbers=[number])


def test_a_client_that_left_does_not_keep_the_next_one_waiting():
    async def story(_listening, bound, address, made):
        clients = dial(address, 1)
        await until(lambda: made)
        assert bound.accept_count >= 2
        hang_up(clients)

    listen(story, numbers=[errno.ECONNABORTED])


def test_a_connection_that_cannot_be_opened_is_lost():
    async def story(_listening, _bound, address, made):
        async def fail(*_):
            raise OSError(errno.EBADF, "no")

        asyncio.get_running_loop().connect_accepted_socket = fail
        clients = dial(address, 1)
        await until(lambda: made and made[0].lost)
        assert clients[0].recv(1) == b"", "the socket is closed"
        hang_up(clients)

    listen(story)


@pytest.mark.parametrize("numbers", [(), [errno.EMFILE]])
def test_closing_ends_it_also_in_the_middle_of_a_pause_and_twice(numbers):
    async def story(listening, bound, address, _made):
        if numbers:
            hang_up(dial(address, 1))
            await until(lambda: bound.accept_count)
        listening.close()
        listening.close()
        with pytest.raises(ConnectionRefusedError):
            dial(address, 1)

    listen(story, numbers=numbers)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_drain_accepts_all_who_have_connected_and_nobody_new(run):
    async def story(listening, bound, address, made):
        clients = dial(address, 3 * ACCEPTS_PER_TICK)
        loop = asyncio.get_running_loop()
        draining = loop.create_task(listening.drain(loop.time() + 10))
        await asyncio.sleep(0)
        with socket.socket() as late:
            late.settimeout(0.05)
            with pytest.raises(TimeoutError):  # Neither taken nor refused: it tries again later.
                late.connect(address)
        await draining
        assert bound.fileno() == -1
        assert len(made) == len(clients)
        await until(lambda: all(connection.transport for connection in made))
        for client in clients:
            client.setblocking(False)
            assert await loop.sock_recv(client, 5) == b"hello", "nobody was reset"
        hang_up(clients)
        await listening.drain(loop.time() + 10)  # Twice does no harm.

    listen(story, run=run)


def test_a_drain_waits_for_descriptors_until_its_end(monkeypatch):
    monkeypatch.setattr(listener, "SETTLE_S", 0.0)
    monkeypatch.setattr(listener, "RETRY_S", 0.01)

    async def story(listening, bound, address, made):
        clients = dial(address, 1)
        loop = asyncio.get_running_loop()
        await until(lambda: bound.accept_count)
        await listening.drain(loop.time() + 10)
        assert len(made) == 1
        assert bound.accept_count >= 4, "it was tried again"
        hang_up(clients)

    listen(story, numbers=[errno.EMFILE] * 3)

    async def in_vain(listening, bound, address, made):
        clients = dial(address, 1)
        await until(lambda: bound.accept_count)
        await listening.drain(asyncio.get_running_loop().time() + 0.05)
        assert not made
        assert bound.fileno() == -1
        hang_up(clients)

    listen(in_vain, numbers=[errno.EMFILE] * 1000)


def test_where_the_kernel_has_no_filter_a_drain_does_without(monkeypatch):
    monkeypatch.setattr(listener, "_SO_ATTACH_FILTER", -1)

    async def story(listening, _bound, address, made):
        clients = dial(address, 5)
        await listening.drain(asyncio.get_running_loop().time() + 10)
        assert len(made) == 5
        hang_up(clients)

    listen(story)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_closing_one_of_two_copies_leaves_the_other_all_who_wait_and_lets_the_loop_rest(run):
    async def story(listening, bound, address, made):
        loop = asyncio.get_running_loop()
        with socket.socket(fileno=socket.dup(bound.fileno())) as copy:
            listening.close()
            clients = dial(address, 2)
            await loop.run_in_executor(None, lambda: None)  # A turn of the loop in which it would be woken.
            assert not made
            second: list[Accepted] = []
            other = Listener(loop, copy, lambda: Accepted(second))
            await until(lambda: len(second) == 2 and all(connection.transport for connection in second))
            for connection in second:
                connection.transport.abort()
            other.close()
            hang_up(clients)

    listen(story, run=run)


def test_a_pause_and_its_end_are_said_once(monkeypatch, caplog):
    monkeypatch.setattr(listener, "RETRY_S", 0.001)

    async def story(_listening, _bound, address, made):
        clients = dial(address, 1)
        await until(lambda: made)
        hang_up(clients)

    with caplog.at_level("INFO"):
        listen(story, numbers=[errno.EMFILE] * 5)
    assert [record.getMessage() for record in caplog.records] == ["accept_failed", "accept_resumed"]


def test_a_drain_without_time_still_accepts_who_waits():
    async def story(listening, _bound, address, made):
        clients = dial(address, 2 * ACCEPTS_PER_TICK + 1)
        await listening.drain(asyncio.get_running_loop().time())
        assert len(made) == len(clients)
        hang_up(clients)

    listen(story)
