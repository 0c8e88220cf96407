"""A closed loop keeps its connections busy, ends when it was told to, and loses no request."""

from __future__ import annotations

import asyncio

import pytest

from gateway.loadtest.answers import UnreadableAnswer
from gateway.loadtest.closed import Extent, circulate
from gateway.loadtest.shots import BROKEN, TIMED_OUT, WRONG
from tests.support.raw_server import ANSWER, BODY, Served, Server, paths


def turn(connections, extent, on_request=Served.answer, *, requests=(BODY,), **options):
    """(shots, server) of one run against a server in the same loop."""

    async def story():
        server = Server(len(requests[0]), on_request)
        listener = await asyncio.get_running_loop().create_server(lambda: Served(server), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        server.listener = listener
        try:
            async with asyncio.timeout(20):
                return await circulate("127.0.0.1", port, requests, connections, extent, **options), server
        finally:
            listener.close()
            for served in server.connections:
                served.transport.abort()
            await asyncio.sleep(0)

    return asyncio.run(story())


def test_as_many_are_under_way_as_there_are_connections():
    held = []

    def in_fours(served) -> None:
        held.append(served)
        if len(held) == 4:
            for waiting in held[:]:
                held.remove(waiting)
                waiting.answer()

    shots, server = turn(4, Extent(0.0, count_min=40, count_max=40), in_fours)

    assert shots.counts() == {200: 40}, "the server answers nobody before four have asked"
    assert (len(server.connections), server.most_at_once) == (4, 1)


def test_requests_are_sent_in_turn():
    one, other = paths("a", "b")
    _, server = turn(1, Extent(0.0, count_min=3), requests=[one, other])
    assert server.requests == [one, other, one]


def test_it_ends_after_both_the_time_and_the_count():
    shots, _ = turn(2, Extent(0.0, count_min=7))
    assert len(shots) == 7
    shots, _ = turn(2, Extent(0.1))
    assert shots.due[-1] < 0.1
    assert shots.due.tolist() == sorted(shots.due.tolist())
    shots, _ = turn(2, Extent(60.0, count_max=5))
    assert len(shots) == 5
    shots, _ = turn(2, Extent(0.0))
    assert len(shots) == 0


def test_a_connection_that_the_server_closes_is_replaced():
    closing = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    shots, server = turn(1, Extent(0.0, count_min=3), lambda served: served.answer(closing))
    assert shots.counts() == {200: 3}
    assert len(server.connections) == 3


def test_what_breaks_is_counted_and_the_others_go_on():
    def cut_second(served) -> None:
        if len(served.server.requests) == 2:
            served.transport.abort()
        else:
            served.answer()

    shots, _ = turn(1, Extent(0.0, count_min=4), cut_second)
    assert shots.status.tolist() == [200, BROKEN, 200, 200]


def test_a_server_that_went_away_is_counted_and_tried_again():
    def leave(served) -> None:
        served.server.listener.close()
        served.transport.abort()

    shots, _ = turn(1, Extent(0.0, count_min=3), leave)
    assert shots.counts() == {BROKEN: 3}


def test_what_is_not_answered_in_time_is_given_up():
    def ignore_first(served) -> None:
        if len(served.server.requests) > 1:
            served.answer()

    shots, _ = turn(1, Extent(0.0, count_min=2), ignore_first, timeout_s=0.05)
    assert shots.status.tolist() == [TIMED_OUT, 200]


def test_answers_are_judged():
    shots, _ = turn(1, Extent(0.0, count_min=2), judge=lambda status, body: status if body == b"no" else WRONG)
    assert shots.counts() == {WRONG: 2}


def test_words_that_nobody_asked_for_cost_the_connection_only():
    shots, server = turn(1, Extent(0.0, count_min=2), lambda served: served.answer(ANSWER + b"more"))
    assert shots.counts() == {200: 2}
    assert len(server.connections) == 2


def test_what_is_no_answer_ends_the_run():
    with pytest.raises(UnreadableAnswer, match="this is no HTTP"):
        turn(1, Extent(1.0), lambda served: served.answer(b"SSH-2.0-OpenSSH\r\n"))


def test_progress_is_told():
    told = []
    turn(1, Extent(0.12), progress=lambda sent, ended: told.append((sent, ended)))
    assert told
    assert told[-1][0] == told[-1][1] > 0


@pytest.mark.parametrize("extent", [Extent(float("inf")), Extent(1.0, count_max=10**9), Extent(-1.0)])
def test_an_extent_that_is_none_is_refused(extent):
    with pytest.raises(ValueError, match="the least"):
        turn(1, extent)


def test_a_server_that_is_not_there_is_told():
    async def story():
        await circulate("127.0.0.1", 1, [BODY], 1, Extent(1.0))

    with pytest.raises(OSError, match="1"):
        asyncio.run(story())
