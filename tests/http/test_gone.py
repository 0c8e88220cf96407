"""A client that leaves, in every phase of its request and in both ways: what it held comes back, what it queued is
never run, and nobody else notices.
"""

from __future__ import annotations

import pytest

from tests.support.gateways import digest, head, multipart, pixels, png, wait_until

pytestmark = pytest.mark.slow

WAYS = pytest.mark.parametrize("leave", [lambda c: c.socket.close(), lambda c: c.reset()], ids=["FIN", "RST"])


@pytest.fixture(autouse=True)
def left(slow):
    """How many clients have left; and every slot and byte is back after each test."""
    before = slow.metric("penstock_client_closed_total", "m/1")
    yield lambda: slow.metric("penstock_client_closed_total", "m/1") - before
    slow.wait_idle()


@WAYS
@pytest.mark.parametrize(
    "coding", [{"Content-Length": "1000"}, {"Transfer-Encoding": "chunked"}], ids=["length", "chunks"]
)
def test_while_it_uploads(slow, left, leave, coding):
    connection = slow.connect()
    connection.send(head("POST", "/predictions/m", coding) + b"3\r\nabc\r\n")
    wait_until(lambda: slow.metric("penstock_body_bytes"), "its body has its room")
    leave(connection)
    wait_until(left, "it is seen to leave")


@WAYS
def test_while_it_is_queued(slow, left, leave):
    batches, images = slow.batches()
    with slow.begin(png(1)) as first:
        wait_until(lambda: slow.slots().get("running"), "the first runs")
        gone = [slow.begin(png(number)) for number in range(2, 5)]
        wait_until(lambda: sum(slow.slots().values()) == 4, "the others have their slots")
        for connection in gone:
            leave(connection)
        wait_until(lambda: left() == 3, "they are seen to leave")
        assert first.read_answer().top == digest(pixels(1))
    slow.wait_idle()
    assert slow.batches() == (batches + 1, images + 1), "nobody ran what nobody waits for"


@WAYS
def test_while_it_runs(slow, left, leave):
    connection = slow.begin(png(1))
    wait_until(lambda: slow.slots() == {"running": 1}, "it runs")
    leave(connection)
    wait_until(lambda: slow.slots() == {"zombie": 1}, "its slot waits for the worker's word")
    with slow.begin(png(2)) as neighbour:
        assert neighbour.read_answer().top == digest(pixels(2))
    assert left() == 1


@WAYS
def test_between_requests(slow, left, leave):
    connection = slow.connect()
    assert connection.ask("GET", "/livez").status == 200
    leave(connection)
    wait_until(lambda: slow.metric("penstock_connections") == 1, "its place is free")
    assert left() == 0


@WAYS
def test_with_half_a_header(slow, left, leave):
    connection = slow.connect()
    connection.send(b"POST /predictions/m HTTP/1.1\r\nHo")
    wait_until(lambda: slow.metric("penstock_connections") == 2, "it is there")
    leave(connection)
    wait_until(lambda: slow.metric("penstock_connections") == 1, "its place is free")


@WAYS
def test_with_many_images_in_all_stages(slow, left, leave):
    """Its images are running and queued at once; all of them go."""
    body, kind = multipart(*((f"f{number}", "x.png", png(number)) for number in range(4)))
    connection = slow.connect()
    connection.send(head("POST", "/predictions/m", {"Content-Type": kind, "Content-Length": str(len(body))}) + body)
    wait_until(lambda: sum(slow.slots().values()) == 4, "its images have their slots")
    leave(connection)
    wait_until(lambda: left() == 1, "it is seen to leave")
