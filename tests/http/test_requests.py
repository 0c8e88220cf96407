"""What holds for every request: ids, HEAD, keep-alive, pipelining, many at once, and the end of the server."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.support.gateways import assert_problem, digest, gateway, head, pixels, png, wait_until, write_model

SANE = ["abc-123", "A" * 128, "01HZX.trace:1/2+3=4@host", "0"]
ODD = ["A" * 129, "", "-abc", "a b", 'a"b', "<script>", "é", "a,b", "${jndi:x}"]


# -- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/nowhere", "/predictions/m"])
@pytest.mark.parametrize("given", SANE)
def test_a_sane_request_id_is_kept(plain, path, given):
    answer = plain.ask("GET", path, X_Request_Id=given)
    assert answer.headers["x-request-id"] == given
    assert answer.status == 200 or answer.document["request_id"] == given


@pytest.mark.parametrize("given", ODD)
def test_any_other_request_id_is_replaced(plain, given):
    answer = plain.predict(png(1), X_Request_Id=given)
    found = answer.headers["x-request-id"]
    assert found != given
    assert answer.document["request_id"] == found
    assert answer.status == 200


def test_ids_that_are_made_differ(plain):
    found = {plain.ask("GET", path).headers["x-request-id"] for path in ("/livez", "/x", "/livez", "/x")}
    assert len(found) == 4


# -- connections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/models", "/models/m", "/openapi.json", "/readyz"])
def test_head_is_get_without_its_body(plain, path):
    with plain.connect() as connection:
        answer = connection.ask("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["content-length"]) > 10
        # Had a body followed, it would stand in front of this answer.
        assert connection.ask("GET", "/livez").document == {"status": "alive"}


def test_a_connection_is_kept_over_answers_and_refusals(plain):
    with plain.connect() as connection:
        for seed in range(3):
            assert connection.ask("POST", "/predictions/m", png(seed)).top == digest(pixels(seed))
            assert_problem(connection.ask("POST", "/predictions/none", png(seed)), 404, "unknown_model")
            assert_problem(
                connection.ask("POST", "/predictions/m", b"", Content_Type="a/b"), 415, "unsupported_media_type"
            )


def test_a_connection_that_asks_to_be_closed_is(plain):
    with plain.connect() as connection:
        assert connection.ask("POST", "/predictions/m", png(1), Connection="close").status == 200
        assert connection.wait_closed() == b""


def test_http_1_0_is_answered_and_closed(plain):
    with plain.connect() as connection:
        connection.send(b"GET /livez HTTP/1.0\r\n\r\n")
        assert connection.read_answer().status == 200
        assert connection.wait_closed() == b""


def test_absolute_form_is_the_same_request(plain):
    body = png(1)
    for path in ("http://any.host:80/predictions/m?top_k=1", "HTTP://h/predictions/m/3"):
        assert plain.ask("POST", path, body, Content_Type="image/png").top == digest(pixels(1))
    assert plain.ask("GET", "http://any.host/livez").status == 200
    assert_problem(plain.ask("GET", "http://any.host"), 404, "not_found")
    assert_problem(plain.ask("OPTIONS", "*"), 404, "not_found")


def test_pipelined_requests_are_answered_in_order(plain):
    with plain.connect() as connection:
        requests = []
        for seed in range(20):
            body = png(seed)
            requests.append(head("POST", "/predictions/m", {"Content-Length": str(len(body))}) + body)
            requests.append(head("GET", "/livez", {}))
        connection.send(b"".join(requests))
        for seed in range(20):
            assert connection.read_answer().top == digest(pixels(seed))
            assert connection.read_answer().document == {"status": "alive"}


@pytest.mark.slow
def test_an_idle_connection_and_one_with_half_a_header_are_closed(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, header_timeout_s=0.5) as running, running.connect() as idle, running.connect() as half:
        half.send(b"GET /livez HTTP/1.1\r\nHost:")
        assert idle.wait_closed() == b""
        assert not half.wait_closed().startswith(b"HTTP/1.1 200")
        wait_until(lambda: running.metric("penstock_connections") == 1, "both are gone")


# -- many ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_five_hundred_different_images_at_once_are_each_answered_as_themselves(plain):
    async def all_at_once() -> list[int]:
        limit = aiohttp.TCPConnector(limit=100)
        async with aiohttp.ClientSession(plain.url, connector=limit) as session:

            async def ask(seed: int) -> int:
                async with session.post("/predictions/m", data=png(seed)) as answer:
                    assert answer.status == 200, await answer.text()
                    return (await answer.json())["prediction"][0]["index"]

            return await asyncio.gather(*map(ask, range(500)))

    before = plain.metric("penstock_images_total", "ok", "m/3")
    assert asyncio.run(all_at_once()) == [digest(pixels(seed)) for seed in range(500)]
    assert plain.metric("penstock_images_total", "ok", "m/3") == before + 500
    plain.wait_idle("m/3")


# -- the end -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_while_it_drains_it_serves_who_is_there_and_says_so(tmp_path):
    write_model(tmp_path, batching={"sizes": [1]}, fake={"base_ms": 700.0})
    with gateway(tmp_path) as running, running.connect() as kept, running.connect() as other:
        assert kept.ask("GET", "/livez").status == 200
        assert other.ask("GET", "/livez").status == 200
        with running.begin(png(1)) as accepted:
            wait_until(lambda: running.slots() == {"running": 1}, "it runs")
            running.process.terminate()
            running.wait_drained()
            answer = other.ask("GET", "/readyz")
            assert (answer.status, answer.document["status"]) == (503, "draining")
            last = kept.ask("POST", "/predictions/m", png(2))
            for answer, seed in ((accepted.read_answer(), 1), (last, 2)):
                assert answer.top == digest(pixels(seed))
                assert answer.headers["connection"] == "close"
            for connection in (kept, other, accepted):
                assert connection.wait_closed() == b""
        assert running.process.wait(20) == 0
        assert running.events("stopped")[0]["everything_answered"] is True
