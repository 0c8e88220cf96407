"""Every request ends exactly once, one is on a connection at a time, and no answer is waited for."""

from __future__ import annotations

import asyncio
import math

import pytest

from gateway.loadtest.answers import UnreadableAnswer
from gateway.loadtest.openloop import fire, post
from gateway.loadtest.shots import BROKEN, TIMED_OUT, UNSENT

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Served(asyncio.Protocol):
    """A server's end of one connection. Each whole request is given to the server's `on_request`."""

    def __init__(self, server) -> None:
        self.server = server
        self.buffer = b""
        self.open_requests = 0

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.server.connections.append(self)

    def data_received(self, data) -> None:
        self.buffer += data
        size = self.server.size
        while len(self.buffer) >= size:
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            self.open_requests += 1
            self.server.most_at_once = max(self.server.most_at_once, self.open_requests)
            self.server.requests.append(request)
            self.server.on_request(self)

    def answer(self, data=ANSWER) -> None:
        self.open_requests -= 1
        self.transport.write(data)


class Server:
    """What a server saw. `size`: bytes of every request."""

    def __init__(self, size, on_request) -> None:
        self.size = size
        self.on_request = on_request
        self.requests: list[bytes] = []
        self.connections: list[Served] = []
        self.most_at_once = 0


BODY = post("127.0.0.1", 1, "/p", b"image", "image/jpeg")


def paths(*names) -> list[bytes]:
    """A request for each name; names of one length make requests of one size."""
    return [post("127.0.0.1", 1, f"/{name}", b"image", "image/jpeg") for name in names]


def shoot(due, on_request=Served.answer, *, requests=(BODY,), **options):
    """(shots, server) of one run against a server in the same loop."""

    async def run():
        server = Server(len(requests[0]), on_request)
        listener = await asyncio.get_running_loop().create_server(lambda: Served(server), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(20):
                return await fire("127.0.0.1", port, requests, due, **options), server
        finally:
            listener.close()
            for served in server.connections:
                served.transport.abort()
            await asyncio.sleep(0)

    return asyncio.run(run())


def test_a_request_is_well_formed():
    assert post("::1", 80, "/a?b", b"xy", "image/png", "Accept: a/b") == (
        b"POST /a?b HTTP/1.1\r\nHost: [::1]:80\r\nContent-Type: image/png\r\nAccept: a/b\r\nContent-Length: 2\r\n\r\nxy"
    )


def test_each_request_is_sent_and_answered_once():
    shots, server = shoot([0.0, 0.0, 0.01, 0.02, 0.02], sample_every=2)

    assert shots.counts() == {200: 5}
    assert len(server.requests) == 5
    assert shots.bodies == {0: b"ok", 2: b"ok", 4: b"ok"}
    assert (shots.sent >= shots.due).all()
    assert (shots.answered >= shots.sent).all()


def test_an_empty_schedule_ends_at_once():
    shots, server = shoot([])
    assert len(shots) == 0
    assert server.requests == []


def test_requests_are_sent_in_turn():
    one, other = paths("a", "b")
    _, server = shoot([0.0, 0.005, 0.010], requests=[one, other], connections_warm=1)

    assert server.requests == [one, other, one]


def test_idle_connections_are_used_again():
    _, server = shoot([index * 0.01 for index in range(5)])
    assert len(server.connections) == 1


def test_no_answer_is_waited_for():
    held = []

    def hold_all(served) -> None:
        held.append(served)
        if len(held) == 40:
            for waiting in held:
                waiting.answer()

    shots, server = shoot([index * 0.001 for index in range(40)], hold_all)

    assert shots.counts() == {200: 40}, "the server answers nobody before all have asked"
    assert server.most_at_once == 1
    assert len(server.connections) == 40


def test_one_request_is_on_a_connection_at_a_time():
    def later(served) -> None:
        asyncio.get_running_loop().call_soon(served.answer)

    shots, server = shoot([0.0] * 50 + [0.02] * 50, later)

    assert shots.counts() == {200: 100}
    assert server.most_at_once == 1


def test_answers_in_another_order_belong_to_their_requests():
    held = []

    def backwards(served) -> None:
        held.append((served, served.server.requests[-1]))
        if len(held) == 3:
            for waiting, request in reversed(held):
                waiting.answer(b"HTTP/1.1 %b X\r\nContent-Length: 0\r\n\r\n" % request[6:9])

    shots, _ = shoot([0.0, 0.01, 0.02], backwards, requests=paths("200", "503", "429"), connections_warm=3)

    assert shots.status.tolist() == [200, 503, 429]


def test_past_the_bound_of_connections_requests_are_counted_as_unsent():
    held = []

    def hold(served) -> None:
        held.append(served)

    def answer_all(_sent, ended) -> None:
        if ended == 3:
            for served in held:
                served.answer()

    shots, server = shoot([0.0, 0.0, 0.001, 0.001, 0.002], hold, connections_max=2, progress=answer_all)

    assert shots.status.tolist() == [200, 200, UNSENT, UNSENT, UNSENT]
    assert math.isnan(shots.sent[2])
    assert len(server.requests) == 2


def test_a_connection_that_the_server_closes_after_its_answer_is_replaced():
    def answer_and_close(served) -> None:
        served.answer(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        served.transport.close()

    shots, server = shoot([0.0, 0.01, 0.02], answer_and_close)

    assert shots.counts() == {503: 3}
    assert len(server.connections) == 3


def test_an_idle_connection_that_the_server_closes_is_replaced():
    def answer_then_hang_up(served) -> None:
        served.answer()
        asyncio.get_running_loop().call_later(0.005, served.transport.close)

    shots, server = shoot([0.0, 0.05], answer_then_hang_up)

    assert shots.counts() == {200: 2}
    assert len(server.connections) == 2


def test_a_connection_that_breaks_costs_its_own_request_only():
    def break_first(served) -> None:
        if b"/first" in served.server.requests[-1]:
            served.transport.abort()
        else:
            served.answer()

    shots, _ = shoot([0.0, 0.01], break_first, requests=paths("first", "other"))

    assert shots.status.tolist() == [BROKEN, 200]
    assert math.isnan(shots.answered[0])


def test_words_that_nobody_asked_for_end_the_connection():
    def say_more(served) -> None:
        served.answer(ANSWER + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")

    shots, server = shoot([0.0, 0.01], say_more)

    assert shots.counts() == {200: 2}
    assert len(server.connections) == 2


def test_farewells_on_idle_connections_are_not_answers():
    def answer_then_say_goodbye(served) -> None:
        served.answer()
        asyncio.get_running_loop().call_later(
            0.005, served.transport.write, b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
        )

    shots, server = shoot([0.0, 0.05], answer_then_say_goodbye)

    assert shots.counts() == {200: 2}
    assert len(server.connections) == 2


def test_answers_in_pieces_are_put_together():
    def dribble(served) -> None:
        data = b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER
        for place in range(len(data)):
            asyncio.get_running_loop().call_later(place * 0.0005, served.transport.write, data[place : place + 1])
        served.open_requests -= 1

    shots, _ = shoot([0.0], dribble, sample_every=1)

    assert shots.counts() == {200: 1}
    assert shots.bodies == {0: b"ok"}


def test_interim_answers_are_passed_over():
    shots, _ = shoot([0.0], lambda served: served.answer(b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER), sample_every=1)
    assert shots.bodies == {0: b"ok"}


def test_chunked_answers_end_the_run_with_a_reason():
    with pytest.raises(UnreadableAnswer, match="in chunks"):
        shoot(
            [0.0, 0.01],
            lambda served: served.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        )


def test_what_is_not_answered_in_time_is_counted_and_its_connection_closed():
    def ignore_first(served) -> None:
        if b"/other" in served.server.requests[-1]:
            served.answer()

    shots, server = shoot([0.0, 0.1], ignore_first, requests=paths("first", "other"), timeout_s=0.1)

    assert shots.status.tolist() == [TIMED_OUT, 200]
    assert math.isnan(shots.answered[0])
    assert len(server.connections) == 2


def test_where_nobody_listens_every_request_is_broken():
    async def run():
        listener = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        listener.close()
        shots = await fire("127.0.0.1", port, [BODY], [0.0, 0.005])
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await fire("127.0.0.1", port, [BODY], [0.0], connections_warm=1)
        return shots

    assert asyncio.run(run()).counts() == {BROKEN: 2}


def test_connections_that_never_open_time_out_and_do_not_hold_the_run():
    async def run():
        loop = asyncio.get_running_loop()

        async def never(*_):
            await loop.create_future()

        loop.create_connection = never
        return await fire("127.0.0.1", 1, [BODY], [0.0], timeout_s=0.02)

    assert asyncio.run(run()).counts() == {TIMED_OUT: 1}


def test_a_run_can_be_stopped():
    async def run():
        listener = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(0.02):
                await fire("127.0.0.1", port, [BODY], [0.0, 60.0])
        finally:
            listener.close()
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        asyncio.run(run())


def test_progress_is_told():
    told = []
    shoot([0.0, 0.12], progress=lambda *counts: told.append(counts))

    assert told[0] == (0, 0)
    assert len(told) > 1
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("due", "options"),
    [
        ([0.1, 0.0], {}),
        ([-0.1], {}),
        ([math.nan], {}),
        ([0.0], {"connections_max": 0}),
        ([0.0], {"connections_max": 1, "connections_warm": 2}),
    ],
)
def test_what_is_no_schedule_is_refused(due, options):
    with pytest.raises(ValueError, match=r"ascend|within the bound"):
        shoot(due, **options)


def test_without_a_request_there_is_nothing_to_send():
    async def run():
        await fire("127.0.0.1", 1, [], [0.0])

    with pytest.raises(ValueError, match="one request"):
        asyncio.run(run())
