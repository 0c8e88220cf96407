"""A worker dies, hangs or is poisoned under a real gateway: everyone is answered, rightly and once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgpack
import pytest

from tests.support.gateways import (
    CRASH,
    HANG,
    KILL,
    LOST,
    MSGPACK,
    SPIN,
    assert_problem,
    digest,
    gateway,
    pixels,
    png,
    wait_until,
    write_model,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """`m` takes 0.15 s a batch of up to 4. The tests kill more workers within a minute than would be started again."""
    root = tmp_path_factory.mktemp("workers")
    write_model(root, batching={"sizes": [1, 4]}, fake={"base_ms": 150.0})
    with gateway(root, restarts_max=1000) as running:
        yield running
        running.wait_ready()
        running.wait_idle()


@pytest.fixture
def poisoned(tmp_path):
    """`m` runs one image at a time, and some images kill or stop it. For one test: a worker that dies often is kept
    waiting longer and longer before it is started again.
    """
    write_model(tmp_path, special=True, batching={"sizes": [1]}, fake={"base_ms": 5.0})
    with gateway(tmp_path) as running:
        yield running
        running.wait_ready()
        running.wait_idle()


def deaths(running) -> float:
    return running.metric("penstock_child_restarts_total", "0", "worker")


def assert_answered_once(connection, seed):
    """The right answer, and behind it nothing but the answer to the next request."""
    with connection:
        assert connection.read_answer().top == digest(pixels(seed))
        assert connection.ask("GET", "/livez").document == {"status": "alive"}


def test_killed_while_idle(running):
    before = deaths(running)
    os.kill(running.child("worker"), signal.SIGKILL)
    # Nobody is turned away meanwhile: the model is known, and its worker is expected back.
    assert running.predict(png(1)).top == digest(pixels(1))
    assert deaths(running) == before + 1


def test_started_again_it_need_not_measure_again(running):
    def measured():
        (worker,) = running.ask("GET", "/models/m").document["versions"][0]["workers"]
        return [(point["size"], point["p50_ms"], point["p99_ms"]) for point in worker["profile"]]

    before = measured()
    os.kill(running.child("worker"), signal.SIGKILL)
    assert running.predict(png(1)).top == digest(pixels(1))
    assert measured() == before, "two measurements agree to the microsecond"


def test_while_it_is_replaced_the_gateway_says_so_and_keeps_deadlines(running):
    before = deaths(running)
    os.kill(running.child("worker"), signal.SIGKILL)
    answer = wait_until(
        lambda: (found := running.ask("GET", "/readyz")).status == 503 and found, "it is seen to be dead"
    )
    assert answer.document["models"][0]["state"] == "restarting"
    begun = time.monotonic()
    assert_problem(running.predict(png(1), query="?deadline_ms=100"), 504, "deadline_exceeded")
    assert time.monotonic() - begun < 1.0
    running.wait_ready()
    assert deaths(running) == before + 1


def test_killed_in_the_middle_of_a_batch(running):
    before = deaths(running)
    connections = [running.begin(png(seed)) for seed in range(12)]
    wait_until(lambda: running.slots().get("running", 0) >= 4, "a whole batch runs")
    os.kill(running.child("worker"), signal.SIGKILL)
    for seed, connection in enumerate(connections):
        assert_answered_once(connection, seed)
    assert deaths(running) == before + 1


def test_stopped_in_the_middle_of_a_batch_it_is_killed_as_hung(running):
    before = deaths(running)
    connections = [running.begin(png(seed)) for seed in range(3)]
    wait_until(lambda: running.slots().get("running"), "they run")
    os.kill(running.child("worker"), signal.SIGSTOP)
    for seed, connection in enumerate(connections):
        assert_answered_once(connection, seed)
    assert deaths(running) == before + 1
    assert running.wait_event("child_killed", role="worker")["reason"] == "hung"
    died = running.wait_event("child_died", int(before) + 1, role="worker")
    assert died["cause"] == "SIGKILL"


@pytest.mark.parametrize(
    ("pixel", "status", "code", "count"),
    [
        pytest.param(CRASH, 500, "poisoned", 2, id="crash"),
        pytest.param(HANG, 500, "poisoned", 2, id="hang"),
        pytest.param(SPIN, 500, "poisoned", 0, id="interrupted"),
        pytest.param(LOST, 500, "poisoned", 2, id="device lost"),
        pytest.param(KILL, 502, "worker_lost", 5, id="killed from outside"),
    ],
)
def test_an_image_that_takes_every_worker_along_is_refused_and_its_neighbours_are_not(
    poisoned, pixel, status, code, count
):
    innocent = [poisoned.begin(png(seed)) for seed in range(3)]
    poison = poisoned.begin(png(99, pixel))
    innocent += [poisoned.begin(png(seed)) for seed in range(3, 8)]
    for seed, connection in enumerate(innocent):
        assert_answered_once(connection, seed)
    with poison:
        assert_problem(poison.read_answer(), status, code)
    assert deaths(poisoned) == count
    if code == "poisoned":
        assert_problem(poisoned.predict(png(99, pixel)), 500, "poisoned")
        assert deaths(poisoned) == count, "the same image is refused before it reaches a worker"


def test_poison_as_a_tensor_is_known_again(poisoned):
    row = pixels(99, CRASH)
    tensor = {"shape": list(row.shape), "dtype": "uint8", "data": row.tobytes()}
    for _ in range(2):
        answer = poisoned.predict(msgpack.packb({"tensor": tensor}), Content_Type=MSGPACK, Accept="application/json")
        assert_problem(answer, 500, "poisoned")
    assert deaths(poisoned) == 2
    assert poisoned.predict(png(99)).top == digest(pixels(99))


def test_a_batch_that_does_not_fit_in_memory_is_split_and_never_tried_again(tmp_path):
    write_model(tmp_path, batching={"sizes": [1, 2, 4]}, fake={"base_ms": 50.0, "memory_images": 2})
    with gateway(tmp_path) as running:
        begun = [running.begin(png(seed)) for seed in range(9)]
        for seed, connection in enumerate(begun):
            assert_answered_once(connection, seed)
        running.wait_event("batch_given_up", cause="no_memory")
        again = [running.begin(png(seed)) for seed in range(9)]
        for seed, connection in enumerate(again):
            assert_answered_once(connection, seed)
        assert len(running.events("batch_given_up")) == 1
        (version,) = running.ask("GET", "/models/m").document["versions"]
        assert [point["size"] for point in version["workers"][0]["profile"]] == [1, 2]
        assert version["workers"][0]["sizes_given_up"] == [4]
        assert deaths(running) == 0
        running.wait_idle()


def test_a_client_that_keeps_sending_poison_is_refused_and_others_are_not(tmp_path):
    write_model(tmp_path, special=True, batching={"sizes": [1]})
    with gateway(tmp_path, trusted_proxies="127.0.0.0/8", forwarded="x-forwarded-for") as running:
        for seed in range(3):
            refused = running.predict(png(seed, SPIN), X_Forwarded_For="192.0.2.7")
            assert_problem(refused, 500, "poisoned")
        refused = running.predict(png(5), X_Forwarded_For="192.0.2.7")
        assert "crashed" in assert_problem(refused, 429, "rate_limited", retry=True)["detail"]
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        assert running.predict(png(5), X_Forwarded_For="192.0.2.8").top == digest(pixels(5))
        assert deaths(running) == 0
        running.wait_idle()


def test_in_one_request_too_the_poison_is_one_image(poisoned):
    images = [png(1), png(2), png(3, CRASH), png(4)]
    answer = poisoned.predict(msgpack.packb({"images": images}), Content_Type=MSGPACK)
    assert answer.tops == [digest(pixels(1)), digest(pixels(2)), "poisoned", digest(pixels(4))]


def test_clients_that_leave_while_the_worker_dies_leave_nothing(running):
    connections = [running.begin(png(seed)) for seed in range(6)]
    wait_until(lambda: running.slots().get("running"), "they run")
    os.kill(running.child("worker"), signal.SIGKILL)
    for connection in connections[::2]:
        connection.reset()
    for seed in (1, 3, 5):
        assert_answered_once(connections[seed], seed)


def test_it_runs_with_the_threads_and_the_room_it_was_given(running):
    pid = running.child("worker")
    threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    allowed = len(os.sched_getaffinity(0)) + 1  # one listens for interrupts
    assert threads <= allowed, "no library starts threads of its own beside those it was given"
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH, "it does not interrupt the gateway"
    assert os.getpgid(pid) == pid, "Ctrl-C at a terminal is the gateway's to handle"


def test_with_two_workers_the_other_one_takes_over(tmp_path):
    write_model(tmp_path, batching={"sizes": [1]}, fake={"base_ms": 100.0})
    with gateway(tmp_path, devices="cpu,cuda:0") as running:  # a fake model runs anywhere
        begun = [running.begin(png(seed)) for seed in range(6)]
        busy = wait_until(lambda: running.batches()[0] >= 2 and running.children("worker"), "both workers have work")
        assert len(busy) == 2
        os.kill(busy[0], signal.SIGKILL)
        for seed, connection in enumerate(begun):
            assert_answered_once(connection, seed)
        assert sum(running.metric("penstock_child_restarts_total", str(index), "worker") for index in (0, 1)) == 1
        running.wait_idle()


@pytest.mark.parametrize("place", ["before_gather", "before_run", "after_run", "before_reply", "after_reply"])
def test_every_place_at_which_a_worker_may_be_killed_loses_nobody(tmp_path, place):
    write_model(tmp_path, batching={"sizes": [1, 4]})
    # The third pass of each life: the kill comes in the middle of work, and again in the next life.
    with gateway(tmp_path, failpoints=f"worker.{place}=kill@3") as running:
        connections = [running.begin(png(seed)) for seed in range(6)]
        for seed, connection in enumerate(connections):
            assert_answered_once(connection, seed)
        for seed in range(4):
            assert running.predict(png(seed)).top == digest(pixels(seed))
        assert deaths(running) >= 1
        assert running.wait_event("failpoints_armed")["points"] == [f"worker.{place}=kill@3"]
        running.wait_idle()
