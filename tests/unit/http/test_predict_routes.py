"""Which version a request comes to: a real front and socket, over a core that answers with its line's version."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from gateway import config, errors
from gateway.calls import Call, Classes
from gateway.driver import Driver
from gateway.http.front import Front
from gateway.lifecycle.desired import Shadow, Want
from gateway.lifecycle.routes import Standing, build
from gateway.models.repository import ModelVersion
from gateway.models.spec import parse_contract

CONTRACT = parse_contract('[input]\nwidth = 4\nheight = 4\n[output]\ntask = "classification"\n')
SETTINGS = {"decoders": 1, "bodies_size_max": 1 << 20, "body_size_max": 1 << 16, "lazy_wait_s": 5.0}
VERSIONS = (1, 2, 3)


class House:
    """A front over models m/1, m/2 and m/3. A line answers class `version`; `asked` has who was asked, in order."""

    def __init__(self, **settings) -> None:
        read = config.load(None, {}, SETTINGS | settings)
        models = [ModelVersion("m", version, Path("/nowhere"), CONTRACT, ()) for version in VERSIONS]
        self.driver = Driver(read, models)
        self.lines = dict(zip(VERSIONS, self.driver.core.lines, strict=True))
        self.asked: list[int] = []
        self.silent = 0
        """A version that takes what it is given and says nothing."""
        self.driver.core.precheck = lambda line, *_args, **_named: self.prechecked(self.version(line))
        self.driver.submit = self.submit
        self.front = Front(self.driver, read)
        self.predict = self.front.predict
        self.bound = socket.create_server(("127.0.0.1", 0))

    def version(self, line) -> int:
        return next(version for version, known in self.lines.items() if known is line)

    def prechecked(self, version: int) -> None:
        """A request's headers were accepted; its body is read next."""

    def submit(self, line, body, parts, **_named) -> Call:
        assert not line.closed
        self.asked.append(self.version(line))

        class Ticket:
            number = done_ns = sent_ns = submitted_ns = decoded_ns = run_ns = 0

        tickets = [Ticket() for _ in parts]
        for number, ticket in enumerate(tickets):
            ticket.number = number
        call = Call(tickets, asyncio.get_running_loop().create_future())
        for ticket in tickets if self.version(line) != self.silent else ():
            asyncio.get_running_loop().call_soon(call.end, ticket, Classes([self.version(line)], [1.0]))
        return call

    def route(self, want: Want | None = None, served=VERSIONS, **places) -> None:
        lines = {version: self.lines[version] for version in served}
        placed = {place: frozenset(versions) for place, versions in places.items()}
        self.predict.routes = build({"m": Standing(want or Want(), lines, **placed)})

    async def ask(self, path: str = "/predictions/m", body: bytes = b"x", **headers: str) -> tuple[int, dict]:
        reader, writer = await asyncio.open_connection(*self.bound.getsockname())
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split()[0])
        document = json.loads(await reader.readexactly(size))
        writer.close()
        return int(head.split()[1]), document

    async def version_of(self, path: str = "/predictions/m", **headers: str) -> int:
        """Who answered, as the answer says and as it was."""
        status, document = await self.ask(path, **headers)
        assert status == 200, document
        assert document["prediction"][0]["index"] == document["version"] == self.asked[-1]
        return document["version"]


def story(play, **settings):
    async def main() -> None:
        house = House(**settings)
        await house.front.start(house.bound)
        try:
            async with asyncio.timeout(20):
                await play(house)
            assert house.driver.core.bodies.held_size == 0
        finally:
            await house.front.close(1.0)
            house.driver.memory.close()

    asyncio.run(main())


# -- numbers, default, aliases -------------------------------------------------------------------------------------


def test_at_first_the_largest_version_of_what_the_driver_has_answers():
    async def play(house):
        assert await house.version_of() == 3
        assert await house.version_of("/predictions/m/1") == 1

    story(play)


def test_numbers_default_and_aliases():
    async def play(house):
        house.route(Want(default=2, aliases={"stable": 1}))
        assert await house.version_of() == 2
        assert await house.version_of("/predictions/m/3") == 3
        assert await house.version_of("/predictions/m/stable") == 1
        house.route(Want(default=1, aliases={"stable": 3}))
        assert await house.version_of() == 1
        assert await house.version_of("/predictions/m/stable") == 3

    story(play)


@pytest.mark.parametrize(
    ("path", "places", "status", "code", "words"),
    [
        ("/predictions/n", {}, 404, "unknown_model", "no such model"),
        ("/predictions/m/9", {}, 404, "unknown_model", "no such version"),
        ("/predictions/m/stable", {}, 404, "unknown_model", "no such version"),
        ("/predictions/m/2", {"served": [1], "unloaded": [2]}, 404, "unknown_model", "not loaded"),
        ("/predictions/m", {"served": [], "unloaded": [1]}, 404, "unknown_model", "not loaded"),
        ("/predictions/m", {"served": [], "loading": [1]}, 503, "model_not_ready", "not serving yet"),
        ("/predictions/m/2", {"served": [1], "failed": [2]}, 503, "model_not_ready", "could not be loaded"),
        ("/predictions/m", {"served": [], "lazy": [1]}, 503, "model_not_ready", "not serving yet"),
    ],
)
def test_who_cannot_answer_says_why(path, places, status, code, words):
    async def play(house):
        house.route(**places)
        found, document = await house.ask(path)
        assert (found, document["code"]) == (status, code)
        assert words in document["detail"]

    story(play)


# -- weights -------------------------------------------------------------------------------------------------------


def test_a_key_stays_with_its_version():
    async def play(house):
        house.route(Want(weights={1: 1.0, 2: 1.0, 3: 1.0}))
        first = {key: await house.version_of(X_Route_Key=key) for key in map(str, range(30))}
        assert set(first.values()) == {1, 2, 3}
        for key, version in first.items():
            assert await house.version_of(X_Route_Key=key) == version
        house.route(Want(weights={1: 1.0, 2: 1.0, 3: 2.0}))
        for key, version in first.items():
            assert await house.version_of(X_Route_Key=key) in (version, 3)

    story(play)


@pytest.mark.parametrize("key", [{}, {"X_Route_Key": ""}])
def test_without_a_key_each_request_is_drawn(key):
    async def play(house):
        house.route(Want(weights={1: 1.0, 3: 3.0}))
        found = Counter([await house.version_of(**key) for _ in range(60)])
        assert found[1] > 3
        assert found[3] > 30
        assert len({await house.version_of(X_Request_Id="the-same", **key) for _ in range(5)}) == 1

    story(play)


def test_a_named_version_is_not_drawn():
    async def play(house):
        house.route(Want(weights={1: 1.0, 2: 1.0}))
        assert {await house.version_of("/predictions/m/2") for _ in range(10)} == {2}

    story(play)


@pytest.mark.parametrize("weights", [{}, {1: 1.0, 2: 1.0}])
@pytest.mark.parametrize(("key", "status"), [("x" * 256, 200), ("x" * 257, 400), ("й" * 128, 200), ("й" * 129, 400)])
def test_a_key_has_256_bytes(weights, key, status):
    async def play(house):
        house.route(Want(weights=weights))
        found, document = await house.ask(X_Route_Key=key)
        assert found == status
        if status == 400:
            assert "256 bytes" in document["detail"]

    story(play)


# -- lines that close while a body comes ---------------------------------------------------------------------------


def test_a_request_whose_line_closed_meanwhile_goes_where_the_routes_lead():
    async def play(house):
        def prechecked(version):
            if version == 3:
                house.route(served=[1, 2])
                house.lines[3].closed = True

        house.prechecked = prechecked
        assert await house.version_of() == 2
        assert house.asked == [2]

    story(play)


def test_a_request_that_named_a_version_which_was_unloaded_meanwhile_is_told():
    async def play(house):
        def prechecked(_version):
            house.route(served=[1, 2], unloaded=[3])
            house.lines[3].closed = True

        house.prechecked = prechecked
        status, document = await house.ask("/predictions/m/3")
        assert (status, document["code"]) == (404, "unknown_model")
        assert not house.asked

    story(play)


def test_a_line_that_closed_before_its_routes_turn_is_refused_and_not_asked():
    async def play(house):
        house.lines[3].closed = True
        status, document = await house.ask()
        assert (status, document["code"]) == (503, "model_not_ready")
        assert not house.asked

    story(play)


def test_the_contract_is_that_of_who_answers():
    async def play(house):
        house.driver.models[0] = ModelVersion(
            "m", 1, Path("/nowhere"), parse_contract(
                '[input]\nwidth = 4\nheight = 4\n[output]\ntask = "classification"\ntop_k_max = 5\n'
            ), ()
        )  # fmt: skip

        def prechecked(_version):
            house.route(served=[1])
            house.lines[3].closed = True

        house.route()
        house.prechecked = prechecked
        status, document = await house.ask("/predictions/m?top_k=50")
        assert status == 400
        assert "ranks 5 at most" in document["detail"]

    story(play)


# -- lazy versions -------------------------------------------------------------------------------------------------


def test_a_lazy_version_is_loaded_before_the_body_is_read():
    async def play(house):
        waited = []

        async def wait_loaded(name, version, until_ns):
            waited.append((name, version, round((until_ns - time.monotonic_ns()) / 1e9, 1)))
            await asyncio.sleep(0)
            house.route()

        house.route(served=[1], lazy=[3])
        house.predict.wait_loaded = wait_loaded
        assert await house.version_of() == 3
        assert waited == [("m", 3, 5.0)]
        assert await house.version_of() == 3
        assert len(waited) == 1, "it is there now"

    story(play)


def test_a_request_waits_no_longer_than_its_own_deadline():
    async def play(house):
        async def wait_loaded(_name, _version, until_ns):
            assert until_ns - time.monotonic_ns() < 1.5e9
            raise errors.ModelNotReady("still loading", retry_after_s=1)

        house.route(served=[], lazy=[3])
        house.predict.wait_loaded = wait_loaded
        status, document = await house.ask("/predictions/m?deadline_ms=1500")
        assert (status, document["code"]) == (503, "model_not_ready")
        assert document["detail"] == "still loading"
        assert (await house.ask("/predictions/m?deadline_ms=0"))[0] == 400

    story(play)


def test_a_version_that_stays_lazy_is_not_waited_for_for_ever():
    async def play(house):
        waited = []

        async def wait_loaded(*_):
            waited.append(1)

        house.route(served=[], lazy=[3])
        house.predict.wait_loaded = wait_loaded
        status, document = await house.ask()
        assert (status, document["code"]) == (503, "model_not_ready")
        assert len(waited) == 2

    story(play)


def test_a_weight_may_name_a_lazy_version():
    async def play(house):
        async def wait_loaded(_name, version, _until_ns):
            house.route(want, served=[1, version])

        want = Want(weights={1: 1.0, 2: 1.0})
        house.route(want, served=[1], lazy=[2])
        house.predict.wait_loaded = wait_loaded
        assert {await house.version_of(X_Route_Key=str(key)) for key in range(12)} == {1, 2}

    story(play)


def test_who_has_no_key_loads_nothing(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(f'keys_required = true\n[[clients]]\nname = "c"\nkey_sha256 = "{"0" * 64}"\n')

    async def play(house):
        async def wait_loaded(*_):
            raise AssertionError

        house.route(served=[], lazy=[3])
        house.predict.wait_loaded = wait_loaded
        status, document = await house.ask()
        assert (status, document["code"]) == (401, "unauthorized")

    read = config.load(file, {}, {})
    story(play, clients=read.clients, keys_required=True)


# -- shadows -------------------------------------------------------------------------------------------------------


def test_a_shadow_gets_a_copy_and_the_client_does_not_see_it():
    async def play(house):
        house.route(Want(default=1, shadow=Shadow(2)))
        house.driver.core.feeder.ready_count = 1
        for path in ("/predictions/m", "/predictions/m/1"):
            assert (await house.ask(path))[1]["version"] == 1
        assert house.asked == [1, 2, 1, 2]
        assert (await house.ask("/predictions/m/3"))[1]["version"] == 3
        assert house.asked[4:] == [3], "only the default's requests are copied"
        while house.driver.core.bodies.held_size:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert house.driver.metrics.shadow("m/1", "2").images == {"different": 2}

    story(play)


@pytest.mark.parametrize("end", ["routes", "stop"])
def test_copies_end_with_the_shadow_and_with_the_gateway(end):
    async def play(house):
        given_up = []
        house.driver.abandon = given_up.append
        house.driver.core.feeder.ready_count = 1
        house.silent = 2
        house.route(Want(default=1, shadow=Shadow(2)))
        assert (await house.ask())[1]["version"] == 1
        while house.asked != [1, 2]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert house.driver.core.bodies.held_size
        if end == "routes":
            house.route(Want(default=1))
        else:
            house.front.announce_drain()
        assert len(given_up) == 1
        assert not house.driver.core.bodies.held_size

    story(play)


def test_a_share_of_nothing_is_copied_nowhere():
    async def play(house):
        house.route(Want(default=1, shadow=Shadow(2, share=0.0)))
        await house.version_of()
        assert house.asked == [1]

    story(play)
