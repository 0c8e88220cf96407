"""The ledger of bench/faults.py sees every way in which a server can fail a request: here is one that does them all."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import zlib

import pytest
from PIL import Image

from bench.faults_lab.generator import Generator
from bench.faults_lab.ledger import LATE_TOLERANCE_S, Ledger, Outcome, Row, Verdict
from bench.faults_lab.pictures import CLASS_COUNT, PLAIN, picture

_LENGTH = re.compile(rb"Content-Length: (\d+)")
_ID = re.compile(rb"X-Request-Id: (\S+)")


class Served:
    """One request as the server of a test sees it."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.id = _ID.search(head)[1].decode()
        pixels = Image.open(io.BytesIO(body)).convert("RGB").tobytes()
        self.digest = zlib.crc32(pixels) % CLASS_COUNT
        self.writer = writer

    def answer(self, *, status: int = 200, headers: bytes = b"", **changes) -> None:
        document = {
            "request_id": self.id,
            "version": 1,
            "detail": "why",
            "timing_ms": {"total": 5.0},
            "prediction": [{"index": self.digest}],
        } | changes
        body = json.dumps(document).encode()
        self.writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), headers, body))


def asked(behave, count=3, until=lambda _: True, **options):
    """The ledger after `count` requests, one after the other, to a server that does `behave` with each.

    `until`: what is waited for after each answer.
    """

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(_LENGTH.search(head)[1]))
                behave(Served(head, body, writer))
        except (EOFError, ConnectionError):
            pass
        finally:
            writer.close()

    async def story():
        ledger = Ledger()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        generator = Generator(ledger, port, rate=0, seed=7, fresh_share=0.0, **options)
        generator.start()
        async with asyncio.timeout(20):
            for _ in range(count):
                row = await generator.ask()
                while not until(row):  # noqa: ASYNC110 - whatever a test waits for
                    await asyncio.sleep(0)
            await generator.finish()
        server.close()
        return ledger

    return asyncio.run(story())


def test_an_honest_server_has_nothing_but_right_answers():
    ledger = asked(Served.answer)
    assert ledger.verdicts() == {Verdict.OK: 3}
    assert ledger.codes() == {"ok": 3}
    assert ledger.failures() == 0
    assert len({row.input for row in ledger.rows}) == 3


def swapped(served):
    served.answer(prediction=[{"index": (served.digest + 1) % CLASS_COUNT}])


def of_another(served):
    served.answer(request_id="somebody-else")


def no_document(served):
    served.writer.write(b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok")


def fault_of_ours(served):
    served.answer(status=500, code="internal")


def no_code(served):
    served.answer(status=502)


def no_date(served):
    served.answer(status=503, code="overloaded")


def garbage(served):
    served.writer.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")


@pytest.mark.parametrize("behave", [swapped, of_another, no_document, fault_of_ours, no_code, no_date, garbage])
def test_what_is_not_this_image_s_answer_is_wrong(behave):
    ledger = asked(behave)
    assert ledger.verdicts() == {Verdict.WRONG: 3}
    assert ledger.failures() == 3


def test_two_answers_are_one_too_many():
    def twice(served):
        served.answer()
        served.answer()

    assert asked(twice).verdicts() == {Verdict.TWICE: 3}


def test_an_answer_that_comes_when_nobody_asks_belongs_to_the_one_before():
    def again(served):
        served.answer()
        asyncio.get_running_loop().call_soon(served.answer)

    ledger = asked(again, until=lambda row: row.more)
    assert ledger.verdicts() == {Verdict.TWICE: 3}


def test_a_connection_that_ends_loses_what_it_carried():
    ledger = asked(lambda served: served.writer.transport.abort())
    assert ledger.verdicts() == {Verdict.LOST: 3}
    assert {row.outcome for row in ledger.rows} == {Outcome.RESET}


def test_silence_is_a_lost_request():
    ledger = asked(lambda _: None, count=1, deadline_ms=1, patience_s=0.01)
    assert [(row.outcome, row.verdict) for row in ledger.rows] == [(Outcome.NOTHING, Verdict.LOST)]


def test_nobody_there_is_a_lost_request():
    async def story():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            ledger = Ledger()
            generator = Generator(ledger, unused.getsockname()[1], rate=0, seed=7)
            generator.start()
            await generator.ask()
            await generator.finish()
            return ledger

    assert [(row.outcome, row.verdict) for row in asyncio.run(story()).rows] == [(Outcome.REFUSED, Verdict.LOST)]


def test_a_refusal_with_a_code_is_one():
    ledger = asked(lambda served: served.answer(status=503, code="overloaded", headers=b"Retry-After: 2\r\n"))
    assert ledger.verdicts() == {Verdict.REFUSED: 3}
    assert {row.retry_s for row in ledger.rows} == {2}
    assert ledger.codes() == {"overloaded": 3}


def row(**changes) -> Row:
    fields = {"id": "r-1", "kind": "plain", "input": "", "crc": 7, "answer": 7, "sent_s": 10.0, "deadline_s": 11.0}
    ended = {"outcome": Outcome.ANSWERED, "status": 200, "request_id": "r-1", "got": 7, "answered_s": 10.5}
    return Row(**fields | ended | changes)


def test_a_result_after_its_deadline_is_late_beyond_the_way_back():
    assert row(answered_s=11.0 + LATE_TOLERANCE_S).verdict is Verdict.OK
    assert row(answered_s=11.01 + LATE_TOLERANCE_S).verdict is Verdict.LATE
    assert row(answered_s=99.0, status=504, code="deadline_exceeded", got=-1).verdict is Verdict.REFUSED


def test_only_what_was_not_answered_can_be_excused():
    assert row(outcome=Outcome.RESET, excuse="its gateway was killed").verdict is Verdict.EXCUSED
    assert row(outcome=Outcome.LEFT).verdict is Verdict.EXCUSED
    assert row(got=8, excuse="its gateway was killed").verdict is Verdict.WRONG


def test_recovery_counts_from_the_fault_to_the_first_right_answer_to_what_was_sent_after_it():
    ledger = Ledger()
    ledger.rows += [
        row(sent_s=9.0, answered_s=10.2),
        row(sent_s=10.1, answered_s=12.0, deadline_s=20),
        row(sent_s=10.5, answered_s=11.5, deadline_s=20),
        row(sent_s=10.2, answered_s=10.3, got=8),
    ]
    assert ledger.recoveries_s([10.0, 10.4, 11.0]) == [1.5, pytest.approx(1.1), float("inf")]


def test_the_file_holds_every_request(tmp_path):
    ledger = asked(Served.answer)
    ledger.write(tmp_path / "ledger.jsonl", "a trial")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [(line["id"], line["trial"], line["verdict"]) for line in lines] == [
        (f"r-{number}", "a trial", "ok") for number in (1, 2, 3)
    ]


def test_pictures_are_all_different_and_keep_their_first_pixel():
    made = [picture(1, number) for number in range(50)]
    assert len({one.input for one in made}) == 50
    assert Image.open(io.BytesIO(made[0].file)).convert("RGB").getpixel((0, 0)) == PLAIN
    assert picture(1, 3) == made[3]
