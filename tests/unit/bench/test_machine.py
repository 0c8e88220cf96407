from __future__ import annotations

import numpy as np
import pytest

from bench.lab import traces
from bench.lab.baselines import Batching, Codel, EarlyDrop, Fifo, Gradient2
from bench.lab.core import Core
from bench.lab.law import GPU, MS, T4, Law
from bench.lab.machine import Machine, Noise, Outcome
from bench.lab.traces import START_NS, Trace

TEN = Law("ten", 1 * MS, 9 * MS, 40 * MS, (1, 2, 4))
"""l(1) = 10 ms, l(2) = 11 ms, l(4) = 13 ms."""

POLICIES = {
    "core": Core,
    "core with decoding": lambda: Core(decode_ns=100_000, decoder_count=2),
    "eager": Batching,
    "fifo": Fifo,
    "early drop": EarlyDrop,
    "gradient2": Gradient2,
    "codel": lambda: Codel(lifo=False),
    "codel+lifo": Codel,
}


def trace(*arrivals_ms: float, deadline_ms: float = 40, end_ms: float = 1000) -> Trace:
    arrival_ns = np.array([START_NS + round(at * MS) for at in arrivals_ms], np.int64)
    zeros = np.zeros_like(arrival_ns)
    return Trace(arrival_ns, arrival_ns + round(deadline_ms * MS), zeros, zeros, START_NS + round(end_ms * MS))


class Script(Batching):
    """Accepts everything; `decide` is what the test says."""

    def __init__(self, decide):
        super().__init__()
        self._decide = decide
        self.ran: list[tuple[int, list[int], bool, int]] = []

    def batch_done(self, worker, run, *, ran, now_ns):
        self.ran.append((worker, run.requests, ran, (now_ns - START_NS) // MS))
        for request in run.requests:
            (self.machine.answer if ran else self.machine.give_up)(request)

    def decide(self, now_ns):
        self._decide(self.machine, (now_ns - START_NS) // MS)


def test_a_worker_runs_its_batches_in_order_and_takes_exactly_their_time():
    def decide(machine, at):
        if at == 5:
            machine.run(0, [0], 1)
            machine.run(0, [1, 2], 4)

    script = Script(decide)

    played = Machine(trace(0, 1, 5), TEN, script).play()

    assert script.ran == [(0, [0], True, 15), (0, [1, 2], True, 28)]
    assert played.latency_ms.tolist() == [15, 27, 23]
    assert played.batch_mean == 1.5
    assert played.busy_share == pytest.approx(0.023)


def test_a_worker_refuses_a_batch_whose_latest_start_has_passed():
    def decide(machine, at):
        if at == 1:
            machine.run(0, [0], 1, latest_start_ns=START_NS + 1 * MS)
            machine.run(0, [1], 1, latest_start_ns=START_NS + 10 * MS)

    script = Script(decide)

    played = Machine(trace(0, 1), TEN, script).play()

    assert script.ran == [(0, [0], True, 11), (0, [1], False, 11)]
    assert played.outcome.tolist() == [Outcome.ON_TIME, Outcome.DROPPED]


def test_an_answer_at_the_deadline_is_in_time_and_one_behind_it_is_late():
    eager = Machine(trace(0, deadline_ms=10), TEN, Batching()).play()
    later = Machine(trace(0, deadline_ms=9.999), TEN, Batching()).play()

    assert (eager.on_time, eager.late) == (1, 0)
    assert (later.on_time, later.late) == (0, 1)


@pytest.mark.parametrize(("at", "outcome"), [(30, Outcome.DROPPED), (31, Outcome.EXPIRED)])
def test_given_up_is_dropped_while_a_worker_could_still_have_answered(at, outcome):
    def decide(machine, now):
        if now == at:
            machine.give_up(0)

    played = Machine(trace(0, at), TEN, Script(lambda m, now: (decide(m, now), now == at and m.run(0, [1], 1)))).play()

    assert played.outcome[0] == outcome


@pytest.mark.parametrize(("staged", "outcome"), [(1, Outcome.DROPPED), (2, Outcome.EXPIRED)])
def test_given_up_behind_a_running_batch_is_judged_by_its_end(staged, outcome):
    """The batch runs until 20 + l(1) = 30 ms, or 20 + l(2) = 31 ms; alone, the other is then done at 40 or 41."""

    def decide(machine, now):
        if now == 20:
            machine.run(0, list(range(1, 1 + staged)), staged)
            machine.give_up(0)

    played = Machine(trace(0, *[20] * staged), TEN, Script(decide)).play()

    assert played.outcome[0] == outcome


@pytest.mark.parametrize(
    ("decide", "words"),
    [
        (lambda machine, at: machine.answer(0), "before it was run"),
        (lambda machine, at: [machine.give_up(0), machine.give_up(0)], "ends twice"),
        (lambda machine, at: [machine.run(0, [0], 1), machine.run(0, [0], 1)], "in two batches"),
        (lambda machine, at: machine.run(0, [0, 1], 2), "COMING"),
        (lambda machine, at: machine.run(0, [0], 0), "in a batch of 0"),
        (lambda machine, at: [machine.run(0, [0], 1), machine.give_up(0)], "ends twice"),
        (lambda machine, at: None, "wait for ever"),
    ],
)
def test_a_policy_that_breaks_the_laws_is_found_out(decide, words):
    def once(machine, at):
        if at == 0 and machine._live_count:
            decide(machine, at)

    with pytest.raises(AssertionError, match=words):
        Machine(trace(0, 50), TEN, Script(once)).play()


def test_a_third_batch_is_one_too_many():
    def decide(machine, at):
        if at == 2:
            for request in range(3):
                machine.run(0, [request], 1)

    with pytest.raises(AssertionError, match="a third batch"):
        Machine(trace(0, 1, 2), TEN, Script(decide)).play()


def test_goodput_counts_from_the_warm_up_to_the_horizon():
    played = Machine(trace(0, 500, 995), TEN, Batching()).play(warmup_s=0.5)

    assert played.on_time == 3
    assert played.goodput == 2  # one in half a second: the first is too early, the last too late


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_exactly_once_and_in_its_own_time(policy, workers):
    mixed = traces.mixed_deadlines(3, 2.5 * T4.capacity(workers), 0.2, (50 * MS, 150 * MS))

    played = Machine(mixed, T4, POLICIES[policy](), worker_count=workers, noise=Noise(1)).play()

    ended = played.outcome >= Outcome.REFUSED
    assert ended.all()
    assert Outcome.ACCEPTED not in played.outcome
    assert played.accepted == played.on_time + played.late + played.dropped
    assert (played.ended_ns >= mixed.arrival_ns).all()
    in_time = played.outcome == Outcome.ON_TIME
    assert (played.ended_ns <= mixed.deadline_ns)[in_time].all()
    assert (played.ended_ns > mixed.deadline_ns)[played.outcome == Outcome.LATE].all()
    assert 0 < played.busy_share <= 1
    assert played.goodput_share <= 1.3


@pytest.mark.parametrize("policy", POLICIES)
def test_two_runs_of_a_seed_are_equal(policy):
    mixed = traces.classes(4, 600, 900, 0.2, deadline_ns=50 * MS, batch_deadline_ns=500 * MS)

    one, two = (Machine(mixed, T4, POLICIES[policy](), worker_count=2, noise=Noise(5)).play() for _ in range(2))

    assert np.array_equal(one.outcome, two.outcome)
    assert np.array_equal(one.ended_ns, two.ended_ns)


def test_noise_has_its_spread_and_its_spikes():
    noise = Noise(1)
    factors = np.array([noise.factor() for _ in range(50_000)])

    calm = factors[factors < 1.2]
    assert np.log(calm).std() == pytest.approx(0.03, rel=0.03)
    assert (factors > 1.3).mean() == pytest.approx(0.005, rel=0.2)


def test_the_laws_are_those_of_the_literature():
    assert (T4.size_max, T4.size_best(1), T4.size_best(4), T4.size_best(8)) == (61, 28, 48, 53)
    assert T4.capacity(1) == pytest.approx(1223.2, abs=0.1)
    assert GPU.beta_ns / GPU.alpha_ns == 40
    assert (GPU.size_max, GPU.size_best(1)) == (1160, 560)
    for law in (T4, GPU):
        assert law.time_ns(law.sizes[-1]) <= law.deadline_ns
