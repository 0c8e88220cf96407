"""Every request ends exactly once, and no answer is waited for."""

from __future__ import annotations

import asyncio
import math

import pytest
import uvloop

from gateway.loadtest.answers import UnreadableAnswer
from gateway.loadtest.openloop import fire, post
from gateway.loadtest.shots import TIMED_OUT, WRONG
from tests.support.raw_server import ANSWER, BODY, paths, shoot


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


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_no_answer_is_waited_for(run):
    held = []

    def hold_all(served) -> None:
        held.append(served)
        if len(held) == 40:
            for waiting in held:
                waiting.answer()

    shots, server = shoot([index * 0.001 for index in range(40)], hold_all, run=run)

    assert shots.counts() == {200: 40}, "the server answers nobody before all have asked"
    assert server.most_at_once == 1
    assert len(server.connections) == 40


def test_answers_in_another_order_belong_to_their_requests():
    held = []

    def backwards(served) -> None:
        held.append((served, served.server.requests[-1]))
        if len(held) == 3:
            for waiting, request in reversed(held):
                waiting.answer(b"HTTP/1.1 %b X\r\nContent-Length: 0\r\n\r\n" % request[6:9])

    shots, _ = shoot([0.0, 0.01, 0.02], backwards, requests=paths("200", "503", "429"), connections_warm=3)

    assert shots.status.tolist() == [200, 503, 429]


def test_answers_in_pieces_are_put_together():
    def dribble(served) -> None:
        data = b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER
        for place in range(len(data)):
            asyncio.get_running_loop().call_later(place * 0.0005, served.transport.write, data[place : place + 1])
        served.open_requests -= 1

    shots, _ = shoot([0.0], dribble, sample_every=1)

    assert shots.counts() == {200: 1}
    assert shots.bodies == {0: b"ok"}


def test_a_body_in_three_pieces_is_one_answer():
    def in_pieces(served) -> None:
        served.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        asyncio.get_running_loop().call_later(0.01, served.transport.write, b"abc")
        asyncio.get_running_loop().call_later(0.02, served.transport.write, b"def")

    shots, _ = shoot([0.0], in_pieces, sample_every=1)

    assert shots.bodies == {0: b"abcdef"}


def test_interim_answers_are_passed_over():
    shots, _ = shoot([0.0], lambda served: served.answer(b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWER), sample_every=1)
    assert shots.bodies == {0: b"ok"}


def test_chunked_answers_are_read_and_judged_without_their_frames():
    seen = []

    def judge(status: int, body: bytes) -> int:
        seen.append(body)
        return WRONG if len(seen) == 2 else status

    shots, _ = shoot(
        [0.0, 0.01, 0.02],
        lambda served: served.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        judge=judge,
        sample_every=3,
    )

    assert shots.status.tolist() == [200, WRONG, 200]
    assert seen == [b"ok"] * 3
    assert shots.bodies == {0: b"ok"}


def test_an_answer_without_an_end_ends_the_run_with_a_reason():
    with pytest.raises(UnreadableAnswer, match="without a Content-Length"):
        shoot([0.0, 0.0, 0.01], lambda served: served.answer(b"HTTP/1.1 200 OK\r\n\r\n"))


def test_what_is_not_answered_in_time_is_counted_and_its_connection_closed():
    def ignore_first(served) -> None:
        if b"/other" in served.server.requests[-1]:
            served.answer()

    shots, server = shoot([0.0, 0.1], ignore_first, requests=paths("first", "other"), timeout_s=0.1)

    assert shots.status.tolist() == [TIMED_OUT, 200]
    assert math.isnan(shots.answered[0])
    assert len(server.connections) == 2


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
