"""One request is on a connection at a time; a connection that ends, however it ends, costs its own request at most."""

from __future__ import annotations

import asyncio
import math

import pytest
import uvloop

from gateway.loadtest.openloop import fire
from gateway.loadtest.shots import BROKEN, TIMED_OUT, UNSENT
from tests.support.raw_server import ANSWER, BODY, paths, shoot, shoot_dialling


def test_idle_connections_are_used_again():
    _, server = shoot([index * 0.01 for index in range(5)])
    assert len(server.connections) == 1


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_one_request_is_on_a_connection_at_a_time(run):
    def later(served) -> None:
        asyncio.get_running_loop().call_soon(served.answer)

    shots, server = shoot([0.0] * 50 + [0.02] * 50, later, run=run)

    assert shots.counts() == {200: 100}
    assert server.most_at_once == 1


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


def test_a_connection_that_is_closed_as_soon_as_it_is_open_is_dialled_again():
    dials = []

    async def close_first(create, *arguments):
        made = await create(*arguments)
        dials.append(made)
        if len(dials) == 1:
            made[0].abort()
        return made

    assert shoot_dialling(close_first, [0.0]).counts() == {200: 1}
    assert len(dials) == 2


def test_a_dial_that_fails_after_its_request_found_another_connection_costs_nothing():
    asked = []

    async def second_fails_late(create, *arguments):
        asked.append(1)
        if len(asked) == 1:
            return await create(*arguments)
        await asyncio.sleep(0.05)
        raise ConnectionRefusedError

    shots = shoot_dialling(second_fails_late, [0.0, 0.0, 0.1], answer_after=0.01)

    assert shots.counts() == {200: 3}
    assert len(asked) == 2
