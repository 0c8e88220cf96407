"""A gateway that is asked to stop answers everybody who was connected, whatever they had sent by then."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time

import pytest

from tests.support.gateways import (
    Connection,
    all_children,
    assert_problem,
    digest,
    gateway,
    head,
    pixels,
    png,
    wait_until,
    write_model,
)
from tests.support.processes import assert_gone_within, watch

pytestmark = pytest.mark.slow

SLOW = {"batching": {"sizes": [1, 2]}, "fake": {"base_ms": 100.0}}
ONE = {"batching": {"sizes": [1]}, "fake": {"base_ms": 300.0}}


def whole(seed: int, path: str = "/predictions/m") -> bytes:
    """A request, as it is sent."""
    body = png(seed)
    return head("POST", path, {"Content-Length": str(len(body)), "Content-Type": "image/png"}) + body


def is_draining(running) -> bool:
    return bool(running.events("draining"))


def accepted_count(running) -> int:
    return int(running.metric("penstock_connections"))


def assert_answered(connection: Connection, seed: int, *, last: bool = True) -> None:
    answer = connection.read_answer()
    assert (answer.status, answer.top) == (200, digest(pixels(seed)))
    assert answer.headers.get("connection") == ("close" if last else None)
    if last:
        assert connection.wait_closed() == b""


# -- what each connection was at, and what becomes of it -------------------------------------------------------------


@pytest.fixture
def plain(tmp_path):
    """A gateway whose model answers at once."""
    write_model(tmp_path)
    with gateway(tmp_path) as running:
        yield running


@contextlib.contextmanager
def asked_to_stop(running):
    """SIGTERM, the story, and an exit that refused nobody."""
    running.process.terminate()
    wait_until(lambda: is_draining(running), "it drains")
    yield
    assert running.process.wait(20) == 0
    assert running.events("stopped")[0]["everything_answered"] is True


def test_kept_alive_and_idle_it_is_served_once_more(plain):
    with plain.connect() as connection:
        assert connection.ask("POST", "/predictions/m", png(1), Content_Type="image/png").status == 200
        with asked_to_stop(plain):
            connection.send(whole(2))
            assert_answered(connection, 2)


def test_half_of_the_headers_sent_the_rest_may_come(plain):
    request = whole(1)
    with plain.connect() as connection, plain.connect() as seen:
        connection.send(request[:30])
        seen.ask("GET", "/livez")  # What was sent before this was read before it was answered.
        with asked_to_stop(plain):
            plain.wait_drained()
            connection.send(request[30:60])
            connection.send(request[60:])
            assert_answered(connection, 1)


def test_half_of_the_body_sent_the_rest_may_come(plain):
    request = whole(1)
    with plain.connect() as connection:
        connection.send(request[:-40])
        wait_until(lambda: plain.metric("penstock_body_bytes"), "its body has its room")
        with asked_to_stop(plain):
            plain.wait_drained()
            connection.send(request[-40:])
            assert_answered(connection, 1)


def test_connected_and_silent_it_may_still_ask(plain):
    with plain.connect() as connection:
        wait_until(lambda: accepted_count(plain) == 2, "it is accepted")
        with asked_to_stop(plain):
            plain.wait_drained()
            connection.send(whole(1))
            assert_answered(connection, 1)


def test_connected_and_never_accepted_it_is_answered_all_the_same(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path) as running:
        # Stopped, it accepts nobody; the kernel does, and holds what they send. SIGTERM waits until it goes on.
        running.process.send_signal(signal.SIGSTOP)
        connections = [running.connect() for _ in range(200)]
        for seed, connection in enumerate(connections[:190]):
            connection.send(whole(seed))
        running.process.terminate()
        running.process.send_signal(signal.SIGCONT)
        for seed, connection in enumerate(connections[190:], 190):
            connection.send(whole(seed))
        for seed, connection in enumerate(connections):
            with connection:
                answer = connection.read_answer()
                assert (answer.status, answer.top) == (200, digest(pixels(seed)))
                assert connection.wait_closed() == b""
        assert running.process.wait(20) == 0
        assert running.events("stopped")[0]["everything_answered"] is True


def test_a_request_that_is_at_work_is_answered(tmp_path):
    write_model(tmp_path, **ONE)
    with gateway(tmp_path) as running, running.begin(png(1)) as connection:
        wait_until(lambda: running.slots().get("running"), "it is at work")
        with asked_to_stop(running):
            assert_answered(connection, 1)


def test_requests_behind_each_other_are_all_answered_and_the_last_one_ends_the_connection(tmp_path):
    write_model(tmp_path, **ONE)
    with gateway(tmp_path) as running, running.connect() as connection:
        third = whole(3)
        connection.send(whole(1))
        wait_until(lambda: running.slots().get("running"), "the first is at work")
        connection.send(whole(2))
        with asked_to_stop(running):
            connection.send(third[:20])
            assert_answered(connection, 1, last=False)
            assert_answered(connection, 2, last=False)
            connection.send(third[20:])
            assert_answered(connection, 3)


def test_silent_connections_hold_nobody_up_for_long(plain):
    with plain.connect() as kept, plain.connect() as fresh:
        assert kept.ask("GET", "/livez").status == 200
        wait_until(lambda: accepted_count(plain) == 3, "both are accepted")
        begun = time.monotonic()
        with asked_to_stop(plain):
            assert kept.wait_closed() == b""
            assert fresh.wait_closed() == b""
        assert time.monotonic() - begun < 10, "far less than the drain may take"


# -- the delay ---------------------------------------------------------------------------------------------------------


def test_until_the_delay_is_over_it_is_not_ready_and_serves_also_who_is_new(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, stop_delay_s=20, drain_timeout_s=25) as running, running.connect() as kept:
        assert kept.ask("GET", "/readyz").status == 200
        running.process.terminate()
        wait_until(lambda: is_draining(running), "it drains")
        answer = kept.ask("GET", "/readyz")
        assert (answer.status, answer.document["status"]) == (503, "draining")
        assert answer.headers["connection"] == "close"
        for seed in range(3):
            answer = running.predict(png(seed))
            assert (answer.top, answer.headers["connection"]) == (digest(pixels(seed)), "close")
        assert running.ask("GET", "/livez").status == 200
        assert running.stop() == 0  # The second signal ends the delay.


def test_the_delay_is_a_part_of_the_time_to_drain(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, stop_delay_s=3600, drain_timeout_s=0.2) as running:
        assert running.stop() == 0


def test_ctrl_c_has_no_delay(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, stop_delay_s=20, drain_timeout_s=25) as running:
        begun = time.monotonic()
        assert running.stop(signal.SIGINT) == 0
        assert time.monotonic() - begun < 15


# -- under load --------------------------------------------------------------------------------------------------------


class Client(threading.Thread):
    """One client with one connection that asks until it is told that the connection ends."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._connection = Connection(port)
        self.statuses: list[int] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        body, wanted = png(self._seed), digest(pixels(self._seed))
        try:
            while True:
                answer = self._connection.ask("POST", "/predictions/m", body, Content_Type="image/png")
                self.statuses.append(answer.status)
                if answer.status == 200:
                    assert answer.top == wanted
                else:
                    assert_problem(answer, 503, "draining", retry=True)
                if answer.headers.get("connection") == "close":
                    assert self._connection.wait_closed() == b""
                    return
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            self.error = error
        finally:
            self._connection.socket.close()


def test_asked_to_stop_under_load_it_answers_whatever_it_took(tmp_path):
    write_model(tmp_path, **SLOW)
    with gateway(tmp_path) as running:
        clients = [Client(running.port, seed) for seed in range(12)]
        for client in clients:
            client.start()
        wait_until(lambda: sum(len(client.statuses) for client in clients) > 20, "they are served")
        running.process.terminate()
        for client in clients:
            client.join(20)
        assert [client.error for client in clients if client.error] == []
        assert {status for client in clients for status in client.statuses} == {200}
        assert running.process.wait(20) == 0
        assert running.events("stopped")[0]["everything_answered"] is True


class Mixed(threading.Thread):
    """New connections of all kinds, one after the other, until nobody listens any more. Every request is answered."""

    KINDS = ("whole", "head first", "body late", "silent first", "kept", "pipelined")

    def __init__(self, port: int, seed: int) -> None:
        super().__init__()
        self._port = port
        self._random = random.Random(seed)
        self.answered = dict.fromkeys(self.KINDS, 0)
        self.error: BaseException | None = None
        self.kind = ""

    def run(self) -> None:
        try:
            while True:
                self.kind = self._random.choice(self.KINDS)
                try:
                    connection = Connection(self._port)
                except ConnectionRefusedError:
                    return
                with connection:
                    self._story(connection)
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            self.error = error

    def _story(self, connection: Connection) -> None:
        seed = self._random.randrange(1000)
        request = whole(seed)
        cut = {"head first": 30, "body late": len(request) - 30, "silent first": 0}.get(self.kind)
        if cut is not None:
            connection.send(request[:cut])
            with contextlib.suppress(ConnectionRefusedError), Connection(self._port) as other:
                other.ask("GET", "/livez")  # Meanwhile.
            connection.send(request[cut:])
        else:
            connection.send(request * (3 if self.kind == "pipelined" else 1))
        for _ in range(3 if self.kind == "pipelined" else 1):
            answer = connection.read_answer()
            assert (answer.status, answer.top) == (200, digest(pixels(seed)))
        self.answered[self.kind] += 1
        left = self._random.randrange(100) if self.kind == "kept" else 0
        while left and answer.headers.get("connection") != "close":
            connection.send(request)
            answer = connection.read_answer()
            assert (answer.status, answer.top) == (200, digest(pixels(seed)))
            left -= 1


def test_asked_to_stop_in_the_middle_of_requests_of_all_kinds_it_resets_nobody(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path) as running:
        clients = [Mixed(running.port, seed) for seed in range(16)]
        for client in clients:
            client.start()
        wait_until(lambda: sum(sum(client.answered.values()) for client in clients) > 100, "they are served")
        running.process.terminate()
        for client in clients:
            client.join(30)
        assert [(client.kind, client.error) for client in clients if client.error] == []
        assert running.process.wait(20) == 0
        assert running.events("stopped")[0]["everything_answered"] is True


# -- and when it takes too long ------------------------------------------------------------------------------------


def test_an_upload_that_is_not_whole_when_the_drain_ends_is_refused(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path, drain_timeout_s=0.5) as running, running.connect() as uploading:
        uploading.send(head("POST", "/predictions/m", {"Content-Length": "1000"}) + bytes(20))
        wait_until(lambda: running.metric("penstock_body_bytes"), "its body has its room")
        running.process.terminate()
        assert_problem(uploading.read_answer(), 503, "draining", retry=True)
        assert running.process.wait(20) == 0
        assert running.events("stopped")[0]["everything_answered"] is False


def test_a_second_signal_ends_the_drain_at_once(tmp_path):
    write_model(tmp_path, batching={"sizes": [1]}, fake={"base_ms": 300.0})
    with gateway(tmp_path, drain_timeout_s=60) as running:
        children = watch(all_children(running.pid))
        # Twenty seconds of work, so that it cannot be done in time by doing it.
        connections = [running.begin(png(seed)) for seed in range(66)]
        wait_until(lambda: running.slots().get("running"), "it is at work")
        running.process.terminate()
        wait_until(lambda: is_draining(running), "it drains")
        begun = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - begun < 5
        assert_gone_within(children, 0.0)
        for connection in connections:
            connection.socket.close()


def test_what_is_not_done_when_the_drain_ends_is_refused_not_dropped(tmp_path):
    write_model(tmp_path, batching={"sizes": [1]}, fake={"base_ms": 300.0})
    with gateway(tmp_path, drain_timeout_s=0.1) as running:
        connections = [running.begin(png(seed)) for seed in range(4)]
        wait_until(lambda: sum(running.slots().values()) == 4, "all are taken")
        running.process.terminate()
        for connection in connections:
            with connection:
                answer = connection.read_answer()
                if answer.status != 200:
                    assert_problem(answer, 503, "draining", retry=True)
        assert running.process.wait(20) == 0
