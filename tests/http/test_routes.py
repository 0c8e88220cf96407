"""Which version answers, over real processes: default, aliases, weights by key, and shadows that do no harm."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.lifecycle.desired import Shadow, Want
from tests.support.commanded import Commanded, commanded
from tests.support.gateways import (
    CRASH,
    HANG,
    assert_problem,
    digest,
    head,
    pixels,
    png,
    wait_until,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.gateways import Connection

pytestmark = pytest.mark.slow


class Routed(Commanded):
    """A gateway with a few more words."""

    def want(self, name: str, want: Want) -> None:
        """Have this of a model from now on."""
        self.done("configure", name, msgspec.to_builtins(want, str_keys=True))

    def shadowed(self, original: str = "m/1", version: str = "2") -> dict[str, int]:
        """Images of copies by outcome."""
        return {
            key[2]: int(value)
            for key, value in self.metrics().items()
            if key[0] == "penstock_shadow_images_total" and (key[1], key[3]) == (original, version)
        }

    def worker_deaths(self) -> int:
        return int(self.metric("penstock_child_restarts_total", "0", "worker"))


@contextlib.contextmanager
def routed(root: Path, **settings: object) -> Iterator[Routed]:
    with commanded(root, root.parent / "state", kind=Routed, versions="all", decoders=2, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """`m`: version 1 and 2 say the same, 3 says something else."""
    root = tmp_path_factory.mktemp("three") / "models"
    write_model(root, "m", 1)
    write_model(root, "m", 2)
    write_model(root, "m", 3, fake={"digest": False})
    write_model(root, "n", 1, output={"task": "raw"})
    write_model(root, "n", 2, output={"task": "raw"})
    with routed(root, body_rate_min=0, body_timeout_s=60, lazy_wait_s=20) as running:
        yield running


def test_default_and_aliases(three):
    three.want("m", Want(default=2, aliases={"stable": 1}))
    assert three.predict(png(1)).document["version"] == 2
    assert three.predict(png(1), "m/stable").document["version"] == 1
    assert three.predict(png(1), "m/3").document["version"] == 3
    assert_problem(three.predict(png(1), "m/next"), 404, "unknown_model")
    three.want("m", Want())
    assert three.predict(png(1)).document["version"] == 3
    assert_problem(three.predict(png(1), "m/stable"), 404, "unknown_model")


def test_the_pages_say_which_version_is_the_default_and_what_cannot_be(three):
    three.want("m", Want(default=2, aliases={"next": 9}))
    (found,) = [model for model in three.ask("GET", "/models").document["models"] if model["name"] == "m"]
    assert found["default_version"] == three.ask("GET", "/models/m").document["default_version"] == 2
    assert found["notes"] == ["alias next names version 9, which is not there"]
    three.want("m", Want())
    found = three.ask("GET", "/models/m").document
    assert found["default_version"] == 3
    assert "notes" not in found


def test_keys_stay_while_weights_stay_and_move_to_what_was_raised(three):
    three.want("m", Want(weights={1: 1.0, 2: 1.0}))
    with three.connect() as connection:

        def versions() -> list[int]:
            return [
                connection.ask("POST", "/predictions/m", png(1), X_Route_Key=f"user-{number}").document["version"]
                for number in range(40)
            ]

        before = versions()
        assert versions() == before
        assert min(Counter(before).values()) > 8
        three.want("m", Want(weights={1: 1.0, 2: 3.0}))
        after = versions()
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert moved
    assert set(moved) == {(1, 2)}


def test_requests_are_counted_under_the_version_that_answered(three):
    three.want("m", Want(weights={1: 1.0, 2: 1.0}))
    before = {version: three.metric("penstock_requests_total", "ok", f"m/{version}") for version in (1, 2)}
    found = Counter(three.predict(png(1), X_Route_Key=str(key)).document["version"] for key in range(10))
    assert len(found) == 2
    for version, count in found.items():
        assert three.metric("penstock_requests_total", "ok", f"m/{version}") == before[version] + count


@pytest.mark.parametrize(("version", "outcome"), [(2, "same"), (3, "different")])
def test_a_shadow_is_compared_and_not_returned(three, version, outcome):
    three.want("m", Want(default=1, shadow=Shadow(version)))
    before = three.shadowed(version=str(version))
    answered = three.metric("penstock_requests_total", "ok", f"m/{version}")
    for seed in range(5):
        answer = three.predict(png(seed))
        assert (answer.document["version"], answer.top) == (1, digest(pixels(seed)))
    key = ("penstock_shadow_images_total", "m/1", outcome, str(version))
    wait_until(lambda: three.metric(*key) == before.get(outcome, 0) + 5, "five copies are compared")
    assert three.shadowed(version=str(version)).keys() == {outcome}
    assert three.metric("penstock_shadow_difference_count", "m/1", str(version)) >= 5
    assert three.metric("penstock_requests_total", "ok", f"m/{version}") == answered, "nobody asked it"
    three.wait_idle(f"m/{version}")


def test_raw_outputs_are_compared(three):
    three.want("n", Want(default=1, shadow=Shadow(2)))
    assert three.predict(png(1), "n").document["version"] == 1
    wait_until(lambda: three.shadowed("n/1"), "the copy is compared")
    assert three.shadowed("n/1") == {"same": 1}
    assert three.metric("penstock_shadow_difference_sum", "n/1", "2") == 0.0


def test_several_images_of_which_one_is_none(three):
    three.want("m", Want(default=1, shadow=Shadow(2)))
    before = three.shadowed().get("same", 0)
    body = msgspec.json.encode({"images": [png(1), b"no image", png(2)]})
    answer = three.predict(body, Content_Type="application/json")
    assert answer.tops == [digest(pixels(1)), "unsupported_media_type", digest(pixels(2))]
    wait_until(lambda: three.shadowed().get("same", 0) == before + 2, "two copies are compared")


@contextlib.contextmanager
def half_sent(house: Routed, path: str, body: bytes) -> Iterator[Connection]:
    """A request whose headers were accepted, and of whose body the last byte is missing."""
    before = house.metric("penstock_body_bytes")
    with house.connect() as connection:
        connection.send(head("POST", path, {"Content-Length": str(len(body)), "Content-Type": "image/png"}))
        connection.send(body[:-1])
        wait_until(lambda: house.metric("penstock_body_bytes") > before, "its body is being read")
        yield connection


def test_a_reload_while_a_body_comes_costs_no_request(three):
    three.want("m", Want())
    with half_sent(three, "/predictions/m/1", png(7)) as named, half_sent(three, "/predictions/m", png(8)) as unnamed:
        lines = [three.version("m", version)["line"] for version in (1, 3)]
        three.done("reload", "m")
        assert all(three.version("m", version)["line"] not in lines for version in (1, 3))
        named.send(png(7)[-1:])
        answer = named.read_answer()
        assert (answer.document["version"], answer.top) == (1, digest(pixels(7)))
        unnamed.send(png(8)[-1:])
        assert unnamed.read_answer().document["version"] == 3


def test_a_version_that_is_unloaded_while_a_body_comes_is_told_from_one_that_never_was(three):
    three.want("m", Want())
    try:
        with (
            half_sent(three, "/predictions/m/3", png(7)) as named,
            half_sent(three, "/predictions/m", png(8)) as unnamed,
        ):
            three.done("unload", "m", 3)
            named.send(png(7)[-1:])
            assert "not loaded" in assert_problem(named.read_answer(), 404, "unknown_model")["detail"]
            unnamed.send(png(8)[-1:])
            answer = unnamed.read_answer()
            assert (answer.document["version"], answer.top) == (2, digest(pixels(8)))
    finally:
        three.want("m", Want())


@pytest.mark.parametrize("deadly", [CRASH, HANG])
def test_a_shadow_that_kills_its_worker_costs_no_answer_and_one_worker(tmp_path, deadly):
    root = tmp_path / "models"
    write_model(root, "m", 1)
    write_model(root, "m", 2, special=True)
    with routed(root) as house:
        house.want("m", Want(default=1, shadow=Shadow(2)))
        with house.connect() as connection:
            for seed in range(30):
                first = deadly if seed % 3 == 0 else (1, 2, 3)
                answer = connection.ask("POST", "/predictions/m", png(seed, first))
                assert (answer.status, answer.document["version"]) == (200, 1), answer.body
                assert answer.top == digest(pixels(seed, first))
        wait_until(lambda: house.events("shadow_rests"), "the shadow rests")
        house.wait_ready()
        assert house.worker_deaths() == 1
        found = house.shadowed()
        assert found["failed"] >= 1
        assert found["refused"] >= 1
        assert sum(found.values()) == 30, "every copy is counted once"
        house.wait_idle("m/1")
        house.wait_idle("m/2")


def test_a_copy_that_runs_is_nothing_that_a_stop_leaves_unanswered(tmp_path):
    root = tmp_path / "models"
    write_model(root, "m", 1)
    write_model(root, "m", 2, batching={"sizes": [1]}, fake={"base_ms": 1500.0})
    with routed(root) as house:
        house.want("m", Want(default=1, shadow=Shadow(2)))
        assert house.predict(png(1)).top == digest(pixels(1))
        wait_until(lambda: house.slots("m/2") == {"running": 1}, "the copy runs")
        house.process.stdin.close()  # else its thread would wait for another command
        assert house.stop() == 0
        assert house.wait_event("stopped")["everything_answered"]


def test_a_shadow_that_is_slow_fills_nothing_but_its_own_bounds(tmp_path):
    root = tmp_path / "models"
    write_model(root, "m", 1)
    write_model(root, "m", 2, batching={"sizes": [1]}, fake={"base_ms": 50.0})
    with routed(root, bodies_size_max=2 << 20, body_size_max=1 << 20) as house:
        house.want("m", Want(default=1, shadow=Shadow(2)))
        with house.connect() as connection:
            for seed in range(200):
                answer = connection.ask("POST", "/predictions/m", png(seed))
                assert (answer.status, answer.top) == (200, digest(pixels(seed))), answer.body
        wait_until(lambda: sum(house.shadowed().values()) == 200, "every copy is compared or refused")
        assert house.shadowed().get("failed", 0) == 0
        house.wait_idle("m/2")
