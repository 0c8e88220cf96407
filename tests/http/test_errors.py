"""Every row of the error table over a real socket: status, type, code, a sentence that helps, an id, when to retry."""

from __future__ import annotations

import io

import msgpack
import pytest
from PIL import Image

from tests.support.gateways import (
    FAIL,
    KILL,
    assert_problem,
    chunked,
    digest,
    encode,
    gateway,
    head,
    pixels,
    png,
    png_header,
    wait_until,
    write_model,
)

IMAGE = {"Content_Type": "image/png"}


# -- 400 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?top_k=0", "from 1 to"),
        ("?top_k=x", "whole number"),
        ("?top_k=101", "100 at most"),
        ("?topk=1", "did you mean 'top_k'"),
        ("?deadline_ms=0", "over 0"),
        ("?deadline_ms=60001", "60000 at most"),
        ("?priority=high", "'realtime' or 'batch'"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_bound(plain, query, says):
    problem = assert_problem(plain.predict(png(1), query=query), 400, "bad_request")
    assert says in problem["detail"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"image": 1}', b'{"image":"","images":[]}', b'{"images":[]}'])
def test_malformed_json_is_400(plain, body):
    assert_problem(plain.predict(body, Content_Type="application/json"), 400, "bad_request")


@pytest.mark.parametrize("body", [b"\xc1", b"\x80", msgpack.packb([1]), msgpack.packb({"image": "text"})])
def test_malformed_msgpack_is_400(plain, body):
    assert_problem(plain.predict(body, Content_Type="application/msgpack"), 400, "bad_request")


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=nowhere"])
def test_malformed_multipart_is_400(plain, kind):
    assert_problem(plain.predict(b"no boundary in here", Content_Type=kind), 400, "bad_request")


def test_an_empty_body_is_400_with_and_without_a_length(plain):
    assert_problem(plain.predict(b""), 400, "bad_request")
    with plain.connect() as connection:
        connection.send(head("POST", "/predictions/m", IMAGE))
        assert_problem(connection.read_answer(), 400, "bad_request")
        connection.send(head("POST", "/predictions/m", {**IMAGE, "Transfer-Encoding": "chunked"}) + chunked())
        assert_problem(connection.read_answer(), 400, "bad_request")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nbroken\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(200)) + b"\r\n",
        b"POST /predictions/m HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /predictions/m HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /predictions/m HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\n",
        b"POST /predictions/m HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["garbage", "header", "long-header", "long-line", "headers", "cl-te", "negative", "underscore", "two-lengths"],
)
def test_malformed_http_is_400_in_our_words_and_the_end_of_the_connection(plain, request_bytes):
    with plain.connect() as connection:
        connection.send(request_bytes)
        assert_problem(connection.read_answer(), 400, "bad_request")
        assert connection.wait_closed() == b""


def test_a_chunk_that_is_none_is_400(plain):
    with plain.connect() as connection:
        connection.send(head("POST", "/predictions/m", {**IMAGE, "Transfer-Encoding": "chunked"}) + b"zz\r\nabc\r\n")
        assert_problem(connection.read_answer(), 400, "bad_request")


# -- 404, 405, 505 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/x", "/predictions", "/predictions/", "/predictions/m/1/x", "/models/", "/livez/", "//livez"]
)
def test_a_path_that_is_none_is_not_found(plain, path):
    assert_problem(plain.ask("GET", path), 404, "not_found")


@pytest.mark.parametrize("name", ["x", "..", "m%2f1", "M", "m/2", "m/x", "m/01", "%00"])
def test_a_model_or_version_that_is_none_is_unknown(plain, name):
    problem = assert_problem(plain.predict(png(1), name), 404, "unknown_model")
    assert "/models" in problem["detail"]
    assert ("version" in problem["detail"]) == name.startswith("m/")


def test_a_model_that_is_none_has_no_page(plain):
    assert_problem(plain.ask("GET", "/models/x"), 404, "unknown_model")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/predictions/m", "POST"),
        ("PUT", "/predictions/m/1", "POST"),
        ("POST", "/livez", "GET, HEAD"),
        ("DELETE", "/models/m", "GET, HEAD"),
        ("OPTIONS", "/metrics", "GET, HEAD"),
    ],
)
def test_another_method_is_405_with_those_that_are_allowed(plain, method, path, allow):
    answer = plain.ask(method, path)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9"])
def test_another_version_of_http_is_505_or_malformed(plain, version):
    with plain.connect() as connection:
        connection.send(f"GET /livez {version}\r\nHost: x\r\n\r\n".encode())
        answer = connection.read_answer()
        if answer.status != 400:
            assert_problem(answer, 505, "http_version_not_supported")


# -- 408 -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_body_that_does_not_come_is_408(slow):
    with slow.connect() as connection:
        connection.send(head("POST", "/predictions/m", {**IMAGE, "Content-Length": "1000"}) + b"x")
        assert_problem(connection.read_answer(), 408, "body_timeout")
    slow.wait_idle()


@pytest.mark.slow
def test_a_body_that_trickles_is_408_whatever_its_coding(slow):
    with slow.connect() as connection:
        connection.send(head("POST", "/predictions/m", {**IMAGE, "Transfer-Encoding": "chunked"}) + b"1\r\nx\r\n")
        assert_problem(connection.read_answer(), 408, "body_timeout")
    slow.wait_idle()


# -- 413 -----------------------------------------------------------------------------------------------------------


def test_a_length_over_the_limit_is_413_before_the_body_is_sent(plain):
    with plain.connect() as connection:
        connection.send(head("POST", "/predictions/m", {**IMAGE, "Content-Length": str((1 << 20) + 1)}))
        assert "1048576 bytes" in assert_problem(connection.read_answer(), 413, "payload_too_large")["detail"]
        assert plain.metric("penstock_body_bytes") == 0


def test_a_client_that_waits_for_leave_is_not_given_it_for_a_body_that_is_too_large(plain):
    with plain.connect() as connection:
        asked = {**IMAGE, "Content-Length": str((1 << 20) + 1), "Expect": "100-continue"}
        connection.send(head("POST", "/predictions/m", asked))
        assert_problem(connection.read_answer(), 413, "payload_too_large")


def test_chunks_over_the_limit_are_413(plain):
    with plain.connect() as connection:
        coded = {**IMAGE, "Transfer-Encoding": "chunked"}
        connection.send(head("POST", "/predictions/m", coded) + chunked(*[b"x" * 65536] * 17))
        assert_problem(connection.read_answer(), 413, "payload_too_large")
    plain.wait_idle()


def test_a_body_of_exactly_the_limit_is_read(plain):
    body = png(1)
    answer = plain.predict(body + b"\0" * ((1 << 20) - len(body)))
    assert answer.top == digest(pixels(1))


def test_too_many_pixels_are_413_by_the_header_alone(plain):
    assert_problem(plain.predict(png_header(3000, 3000), "m/1"), 413, "payload_too_large")
    assert_problem(plain.predict(png_header(3000, 3000), "m/3"), 422, "undecodable_image")


@pytest.mark.parametrize("count", [2, 3])
def test_more_images_than_the_model_takes_are_413(plain, count):
    answer = plain.predict(msgpack.packb({"images": [png(1)] * count}), "few", Content_Type="application/msgpack")
    if count == 2:
        assert answer.status == 200
    else:
        assert_problem(answer, 413, "payload_too_large")


# -- 415, 422 ------------------------------------------------------------------------------------------------------


def test_a_type_that_is_not_read_is_415_with_those_that_are(plain):
    problem = assert_problem(plain.predict(b"a,b", Content_Type="text/csv"), 415, "unsupported_media_type")
    assert "image/*" in problem["detail"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_body_is_415_unread(plain, coding):
    assert_problem(plain.predict(png(1), Content_Encoding=coding), 415, "unsupported_media_type")


def test_identity_is_no_coding(plain):
    assert plain.predict(png(1), Content_Encoding="identity").top == digest(pixels(1))


def test_an_image_format_that_is_not_read_is_415(plain):
    out = io.BytesIO()
    Image.fromarray(pixels(1)).save(out, "PDF")
    assert_problem(plain.predict(out.getvalue()), 415, "unsupported_media_type")


@pytest.mark.parametrize("cut", [30, 60])
def test_half_an_image_is_422(plain, cut):
    assert_problem(plain.predict(encode(pixels(1))[:cut]), 422, "undecodable_image")


def test_base64_that_is_none_is_400(plain):
    assert_problem(plain.predict(b'{"image": "!!!!"}', Content_Type="application/json"), 400, "bad_request")


# -- 500, 502, 504 -------------------------------------------------------------------------------------------------


def test_an_image_that_the_model_fails_on_is_500_without_its_reasons(plain):
    assert_problem(plain.predict(png(1, FAIL)), 500, "inference_failed")


@pytest.mark.slow
def test_an_image_whose_workers_are_killed_again_and_again_is_502(tmp_path):
    write_model(tmp_path, special=True)
    with gateway(tmp_path) as running:
        assert_problem(running.predict(png(1, KILL)), 502, "worker_lost")
        running.wait_event("child_died", 5, role="worker")
        assert len(running.events("child_started", role="worker")) <= 6
        running.wait_ready()
        assert running.predict(png(2)).top == digest(pixels(2))
        running.wait_idle()


@pytest.mark.slow
def test_a_deadline_that_cannot_be_met_is_504_and_nothing_runs(slow):
    before = slow.batches("wide/1")
    assert_problem(slow.predict(png(1), "wide", "?deadline_ms=100"), 504, "deadline_exceeded")
    assert slow.batches("wide/1") == before
    slow.wait_idle("wide/1")


# -- 503 -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_queue_is_503_at_once_and_the_accepted_are_answered(slow):
    # One runs, one is staged with the worker or waits, four wait: whatever comes beside them is one too many.
    connections = [slow.begin(png(number)) for number in range(10)]
    try:
        answers = [connection.read_answer() for connection in connections]
    finally:
        for connection in connections:
            connection.socket.close()
    refused = [answer for answer in answers if answer.status == 503]
    assert 3 <= len(refused) <= 6
    for answer in refused:
        assert_problem(answer, 503, "overloaded", retry=True)
    for number, answer in enumerate(answers):
        if answer not in refused:
            assert answer.top == digest(pixels(number))
    slow.wait_idle()


@pytest.mark.slow
def test_what_is_only_announced_takes_little_of_the_budget(plain):
    """Sixteen clients that announce 16 MiB each and send nothing would otherwise hold the default budget."""
    with plain.connect() as connection:
        connection.send(head("POST", "/predictions/m", {**IMAGE, "Content-Length": str(1 << 20)}))
        wait_until(lambda: plain.metric("penstock_body_bytes"), "it has its room")
        assert plain.metric("penstock_body_bytes") <= 1 << 20


@pytest.mark.slow
def test_the_deadline_holds_while_the_body_is_read(plain):
    with plain.connect() as connection:
        connection.send(head("POST", "/predictions/m?deadline_ms=50", {**IMAGE, "Content-Length": "5000"}) + b"abc")
        assert_problem(connection.read_answer(), 504, "deadline_exceeded")


def test_bodies_over_the_budget_are_503_and_the_budget_comes_back(slow):
    with slow.connect() as first, slow.connect() as second:
        for connection in (first, second):
            connection.send(head("POST", "/predictions/m", {**IMAGE, "Content-Length": str(1 << 20)}))
        wait_until(lambda: slow.metric("penstock_body_bytes") >= 2 << 20, "both have their room")
        answer = slow.predict(png(1))
        assert_problem(answer, 503, "overloaded", retry=True)
        assert "memory for request bodies" in answer.document["detail"]
    slow.wait_idle()
    assert slow.predict(png(1)).top == digest(pixels(1))


@pytest.mark.slow
def test_a_connection_over_the_limit_is_told_so_also_when_it_has_sent_its_request(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, connections_max=3) as running:
        held = [running.connect()]
        alone = b"penstock_connections 1.0"
        wait_until(lambda: alone in held[0].ask("GET", "/metrics").body, "those that asked whether it is up are gone")
        held += [running.connect() for _ in range(2)]
        for connection in held:
            assert connection.ask("GET", "/livez").status == 200
        with running.connect() as one_more:
            assert_problem(one_more.read_answer(), 503, "overloaded", retry=True)
            assert one_more.wait_closed() == b""
        for _ in range(20):
            with running.connect() as one_more:
                one_more.send(head("POST", "/predictions/m", {**IMAGE, "Content-Length": "3"}) + b"abc")
                assert_problem(one_more.read_answer(), 503, "overloaded", retry=True)
        held.pop().socket.close()
        wait_until(lambda: held[0].ask("GET", "/metrics").body.count(b"penstock_connections 2.0"), "its place is free")
        assert running.ask("GET", "/livez").status == 200
        for connection in held:
            connection.socket.close()


@pytest.mark.slow
def test_a_model_that_still_loads_is_503_and_then_serves(tmp_path):
    write_model(tmp_path, batching={"sizes": [1]}, fake={"base_ms": 300.0})
    with gateway(tmp_path, ready=False) as running:
        problem = assert_problem(running.predict(png(1)), 503, "model_not_ready", retry=True)
        assert "/readyz" in problem["detail"]
        ready = running.ask("GET", "/readyz")
        assert (ready.status, ready.document["status"]) == (503, "not_ready")
        running.wait_ready()
        assert running.predict(png(1)).top == digest(pixels(1))
