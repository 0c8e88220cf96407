"""Clients and their limits over a real socket: keys, addresses behind proxies, rates, in flight, and what is told."""

from __future__ import annotations

import asyncio
import json
import re
import time
from base64 import b64encode

import numpy as np
import pytest

from gateway.clients import digest_of, new_key
from gateway.loadtest import openloop, schedules
from tests.support.gateways import (
    assert_problem,
    digest,
    gateway,
    head,
    multipart,
    pixels,
    png,
    wait_until,
    write_model,
)

IMAGE = {"Content_Type": "image/png"}
KEYS = {name: new_key() for name in ("app", "free", "narrow", "patient", "quick")}
CONFIG = f"""
client_rate = 0.05
client_burst = 4
trusted_proxies = ["127.0.0.0/8"]
forwarded = "x-forwarded-for"

[[clients]]
name = "app"
key_sha256 = "{digest_of(KEYS["app"])}"
rate = 0.01
burst = 6
batch_rate = 0.02
batch_burst = 2

[[clients]]
name = "free"
key_sha256 = "{digest_of(KEYS["free"])}"

[[clients]]
name = "narrow"
key_sha256 = "{digest_of(KEYS["narrow"])}"
in_flight_max = 2

[[clients]]
name = "patient"
key_sha256 = "{digest_of(KEYS["patient"])}"
rate = 0.001
burst = 3

[[clients]]
name = "quick"
key_sha256 = "{digest_of(KEYS["quick"])}"
rate = 1.0
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model `m` and a file of settings."""
    root = tmp_path_factory.mktemp("limits")
    write_model(root / "models")
    (root / "penstock.toml").write_text(CONFIG)
    return root


@pytest.fixture(scope="module")
def limited(root):
    """Clients by key and by address, this machine being a trusted proxy."""
    sizes = {"body_size_max": 1 << 20, "bodies_size_max": 2 << 20}
    with gateway(root / "models", config=root / "penstock.toml", **sizes) as running:
        yield running


def by_key(name, key=None):
    return {"Authorization": f"Bearer {key or KEYS[name]}", **IMAGE}


def from_address(address):
    return {"X_Forwarded_For": address, **IMAGE}


def standing(answer):
    """(policy name, remaining, seconds) of each limit that the answer tells."""
    found = re.findall(r'"(\w+)";r=(\d+)(?:;t=(\d+))?', answer.headers["ratelimit"])
    return [(name, int(remaining), int(seconds or 0)) for name, remaining, seconds in found]


def several(count):
    return multipart(*(("f", "a.png", png(number)) for number in range(count)))


# -- rates ---------------------------------------------------------------------------------------------------------


def test_over_the_rate_is_429_before_the_body_and_the_headers_count_down(limited):
    for left in (3, 2, 1, 0):
        answer = limited.predict(png(1), **from_address("192.0.2.1"))
        assert answer.top == digest(pixels(1))
        assert answer.headers["ratelimit-policy"] == '"realtime";q=4;w=80;qu="images"'
        assert standing(answer)[0][:2] == ("realtime", left)
    with limited.connect() as connection:
        connection.send(head("POST", "/predictions/m", {**from_address("192.0.2.1"), "Content-Length": "1000"}))
        answer = connection.read_answer()
    problem = assert_problem(answer, 429, "rate_limited", retry=True)
    assert "0.05 realtime images a second, 4 at once" in problem["detail"]
    assert standing(answer) == [("realtime", 0, int(answer.headers["retry-after"]))]
    assert limited.predict(png(1), **from_address("192.0.2.2")).status == 200


@pytest.mark.slow
def test_who_waits_as_long_as_told_is_served(limited):
    quick = by_key("quick")

    def refused():
        answer = limited.predict(png(1), **quick)
        return answer if answer.status != 200 else None

    answer = wait_until(refused, "it is over its rate")
    assert_problem(answer, 429, "rate_limited", retry=True)
    assert answer.headers["retry-after"] == "1"
    time.sleep(1)
    assert limited.predict(png(1), **quick).status == 200


def test_images_of_one_request_are_all_or_none(limited):
    client = {"X_Forwarded_For": "192.0.2.4"}
    body, kind = several(3)
    answer = limited.predict(body, Content_Type=kind, **client)
    assert (answer.tops, standing(answer)[0][1]) == ([digest(pixels(number)) for number in range(3)], 1)
    refused = limited.predict(body, Content_Type=kind, **client)
    assert_problem(refused, 429, "rate_limited", retry=True)
    assert 20 < int(refused.headers["retry-after"]) <= 40
    assert limited.predict(png(1), **from_address("192.0.2.4")).status == 200, "what was left is left"
    body, kind = several(5)
    answer = limited.predict(body, Content_Type=kind, X_Forwarded_For="192.0.2.5")
    assert "4 at once" in assert_problem(answer, 413, "payload_too_large")["detail"]


def test_a_class_named_in_the_body_is_charged_there(limited):
    body = json.dumps({"image": b64encode(png(1)).decode(), "priority": "batch"}).encode()
    client = by_key("app") | {"Content_Type": "application/json"}
    answer = limited.predict(body, **client)
    assert answer.headers["ratelimit-policy"] == '"batch";q=2;w=100;qu="images"'
    assert standing(answer)[0][:2] == ("batch", 1)
    answer = limited.predict(png(1), query="?priority=batch", **by_key("app"))
    assert standing(answer)[0][:2] == ("batch", 0)
    answer = limited.predict(body, **client)
    assert_problem(answer, 429, "rate_limited", retry=True)
    assert standing(answer) == [("batch", 0, int(answer.headers["retry-after"]))]
    answer = limited.predict(png(1), **by_key("app"))
    assert standing(answer)[0][:2] == ("realtime", 5), "no charge was left in the class of the headers"


def test_a_bad_body_costs_its_image(limited):
    answer = limited.predict(b"no image", **from_address("192.0.2.6"))
    assert_problem(answer, 415, "unsupported_media_type")
    assert standing(answer)[0][:2] == ("realtime", 3)


def test_pages_and_what_is_no_prediction_are_not_limited(limited):
    client = {"X_Forwarded_For": "192.0.2.7"}
    for path in ("/livez", "/readyz", "/models", "/metrics") * 3:
        answer = limited.ask("GET", path, **client)
        assert answer.status == 200
        assert "ratelimit" not in answer.headers
    for query, model in (("?top_k=0", "m"), ("", "none")):
        answer = limited.predict(png(1), model, query, **client)
        assert answer.status in (400, 404)
        assert "ratelimit" not in answer.headers
    assert standing(limited.predict(png(1), **from_address("192.0.2.7")))[0][1] == 3


def test_what_overload_refused_is_given_back(limited):
    with limited.connect() as first, limited.connect() as second:
        for connection in (first, second):
            headers = {**by_key("free"), "Content-Length": str(1 << 20)}
            connection.send(head("POST", "/predictions/m?deadline_ms=10000", headers))
        wait_until(lambda: limited.metric("penstock_body_bytes") >= 2 << 20, "both have their room")
        for _ in range(5):
            answer = limited.predict(png(1), **by_key("patient"))
            assert_problem(answer, 503, "overloaded", retry=True)
            assert standing(answer) == [("realtime", 3, 0)]
    limited.wait_idle()
    assert standing(limited.predict(png(1), **by_key("patient")))[0][:2] == ("realtime", 2)


# -- in flight -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_images_in_flight_are_bounded(limited):
    with limited.connect() as first, limited.connect() as second:
        headers = {**by_key("narrow"), "Content-Length": "100"}
        for connection in (first, second):
            connection.send(head("POST", "/predictions/m", headers))
        wait_until(lambda: limited.metric("penstock_body_bytes"), "the gateway reads them")

        def refused():
            answer = limited.predict(png(1), **by_key("narrow"))
            return answer if answer.status == 429 else None

        answer = wait_until(refused, "both are in flight")
        assert "2 images in flight" in assert_problem(answer, 429, "rate_limited", retry=True)["detail"]
        assert standing(answer) == [("in_flight", 0, 0)]
        assert limited.predict(png(1), **by_key("free")).status == 200
    wait_until(lambda: standing(limited.predict(png(1), **by_key("narrow"))) == [("in_flight", 2, 0)], "they are gone")


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credentials", ["Bearer psk_wrong", "Basic YTpi", "psk", "Bearer "])
def test_a_wrong_key_is_401_with_a_challenge(limited, credentials):
    answer = limited.predict(png(1), Authorization=credentials, **IMAGE)
    assert_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="penstock"'
    assert "ratelimit" not in answer.headers


def test_a_key_without_limits_has_none_and_is_told_none(limited):
    for _ in range(10):
        answer = limited.predict(png(1), **by_key("free"))
        assert answer.status == 200
        assert "ratelimit" not in answer.headers


def test_images_are_counted_by_the_names_of_keys_only(limited):
    before = limited.metrics()
    body, kind = several(2)
    assert limited.predict(body, Content_Type=kind, Authorization=f"Bearer {KEYS['free']}").status == 200
    for number in range(20):
        limited.predict(png(1), **from_address(f"198.51.100.{number}"))
    after = limited.metrics()
    name = "penstock_client_images_total"
    assert after[name, "free", "accepted"] == before[name, "free", "accepted"] + 2
    assert after[name, "", "accepted"] == before[name, "", "accepted"] + 20
    assert {key[1] for key in after if key[0] == name} == {"", *KEYS}
    assert after["penstock_clients",] >= 20


@pytest.mark.slow
def test_keys_can_be_required_and_all_rates_together_bounded(root, tmp_path):
    file = tmp_path / "penstock.toml"
    file.write_text(f'[[clients]]\nname = "app"\nkey_sha256 = "{digest_of(KEYS["app"])}"\n')
    with gateway(root / "models", config=file, keys_required=True, rate_max=0.1, rate_burst_max=2) as running:
        answer = running.predict(png(1))
        assert "Authorization: Bearer KEY" in assert_problem(answer, 401, "unauthorized")["detail"]
        assert running.ask("GET", "/models").status == 200
        for _ in range(2):
            assert running.predict(png(1), **by_key("app")).status == 200
        answer = running.predict(png(1), **by_key("app"))
        assert_problem(answer, 503, "overloaded", retry=True)
        assert 8 <= int(answer.headers["retry-after"]) <= 10


# -- addresses -----------------------------------------------------------------------------------------------------


def test_behind_a_trusted_proxy_the_first_address_that_is_none_counts(limited):
    for made_up in ("6.6.6.1", "6.6.6.2", "6.6.6.3", "6.6.6.4"):
        answer = limited.predict(png(1), **from_address(f"{made_up}, 192.0.2.8, 127.0.0.2"))
        assert answer.status == 200
    assert limited.predict(png(1), **from_address("192.0.2.8")).status == 429


@pytest.mark.slow
def test_without_trust_a_header_is_nothing(root):
    with gateway(root / "models", client_rate=0.01, client_burst=2) as running:
        statuses = [running.predict(png(1), **from_address(f"192.0.2.{number}")).status for number in range(3)]
        assert statuses == [200, 200, 429]
        assert running.predict(png(1), Forwarded="for=192.0.2.9", **IMAGE).status == 429
        assert running.metric("penstock_clients") == 1


RATE, BURST = 60.0, 15


@pytest.mark.slow
def test_a_rate_is_exact_over_any_window(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, client_rate=RATE, client_burst=BURST) as running:
        request = openloop.post("127.0.0.1", running.port, "/predictions/m", png(1), "image/png")
        due = schedules.poisson(4 * RATE, 3.0, seed=1)
        shots = asyncio.run(openloop.fire("127.0.0.1", running.port, [request], due, connections_max=64))

    assert set(shots.counts()) == {200, 429}
    sent, answered = (times[shots.status == 200] for times in (shots.sent, shots.answered))
    # An image was charged between its sending and its answer, so a window of the server's lies within these.
    order = np.argsort(sent)
    begins, ends = sent[order], np.sort(answered)
    for first, begin in enumerate(begins):
        for last in range(first, len(ends)):
            assert last - first + 1 <= RATE * (ends[last] - begin) + BURST + 1e-6, "more than the limit allows"
    refused = shots.status == 429
    longest_s = np.max(shots.answered[refused]) - np.min(shots.sent[refused])
    assert np.count_nonzero(shots.status == 200) >= RATE * longest_s + BURST - 1, "fewer than the limit allows"
