"""The short form of bench/faults.py: a gateway under load, its children taken away, every request accounted for.

Counts are small here; what is checked is the same. A trial's problems are what its checker says: an outcome missing, a
wrong or late answer, counters that disagree, slots, descriptors or memory that did not come back, a death without a
line in the log.
"""

from __future__ import annotations

import asyncio
import functools
import signal

import pytest

from bench.faults_lab import changes, ends, kills, strains, suspects
from bench.faults_lab.ledger import Verdict
from bench.faults_lab.trial import Lab

pytestmark = pytest.mark.slow


def tried(fault, count) -> Lab:
    lab = Lab(seed=1)
    asyncio.run(fault(lab, count))
    return lab


def assert_clean(lab: Lab, *, refusals: bool = False) -> None:
    """The checker has nothing to say, and every request has its right answer; or, with `refusals`, an error."""
    for row in lab.rows.values():
        assert row.problems == []
        assert row.faults > 0
        assert row.verdicts[Verdict.OK] > 0
        assert refusals or row.requests == row.verdicts[Verdict.OK] + row.verdicts[Verdict.EXCUSED], row.codes


def test_an_idle_worker_is_killed():
    assert_clean(tried(kills.idle, 4))


def test_a_worker_is_killed_in_the_middle_of_a_batch():
    # Two blows can hit the same image: then it is refused, by name.
    lab = tried(kills.midbatch, 5)
    assert_clean(lab, refusals=True)
    assert lab.figures["midbatch_kills"] == [1, 3, 1]
    codes = {code for row in lab.rows.values() for code in row.codes}
    assert codes <= {"ok", "worker_lost", "poisoned"}


def test_a_decoder_is_killed():
    assert_clean(tried(kills.decoders, 4))


def test_a_worker_stops():
    lab = tried(suspects.hangs, 1)
    assert_clean(lab)
    assert lab.figures["hang_answer_s"], "a request was held by it"


def test_clients_leave():
    assert_clean(tried(strains.leaving, 3))


def test_no_descriptor_is_left():
    assert_clean(tried(strains.exhausted, 1))


def test_an_image_is_poison():
    lab = tried(suspects.poison, 1)
    assert_clean(lab, refusals=True)
    assert max(lab.figures["poison_crashes"]) <= 2
    assert lab.figures["poison_again_crashes"] == [0, 0]
    assert lab.figures["innocent_failures"] == [0, 0]


def test_a_model_is_reloaded_well_and_badly():
    assert_clean(tried(changes.reloads, 5))


def test_a_model_comes_and_goes():
    lab = tried(changes.cycles, 1)
    assert_clean(lab)
    assert min(lab.figures["given_back_share"]) >= 0.99


def test_the_gateway_is_replaced():
    assert_clean(tried(functools.partial(ends.replaced, rate=100.0), 1))


def test_the_gateway_is_asked_to_stop():
    assert_clean(tried(ends.stopped, 1))


def test_the_gateway_is_killed():
    assert_clean(tried(ends.killed, 1))


# -- the checker can fail ------------------------------------------------------------------------------------------


def problems_of(spoil) -> str:
    """What the checker says of a trial in which something was spoiled."""

    async def story() -> str:
        lab = Lab(seed=1)
        async with lab.trial("spoiled", rate=50.0) as trial:
            await trial.generator.ask()
            await spoil(trial)
        return "\n".join(lab.rows["spoiled"].problems)

    return asyncio.run(story())


def test_a_death_that_nobody_dealt_out_is_missed_in_neither_direction():
    async def forget(trial) -> None:
        life = await trial.target.wait_up("worker", 0)
        blow = trial.nemesis.strike(life, signal.SIGKILL)
        await trial.nemesis.wait_died(blow)
        await trial.target.wait_up("worker", 0)
        trial.nemesis.blows[0] = blow._replace(cause="SIGSEGV")
        key = ("worker", 0, 2)
        trial.nemesis.blows.append(blow._replace(life=key))

    said = problems_of(forget)
    assert "SIGKILL instead of SIGSEGV" in said
    assert "has no obituary" in said


def test_counters_that_disagree_with_the_ledger_are_seen():
    async def lose(trial) -> None:
        trial.ledger.rows.pop(0)

    assert "penstock_requests_total ok" in problems_of(lose)


def test_a_descriptor_more_is_seen(monkeypatch):
    async def leak(trial) -> None:
        await trial.generator.finish()
        trial._baseline = trial._baseline._replace(fds=trial._baseline.fds - 1)

    monkeypatch.setattr("bench.faults_lab.checker.SETTLE_S", 0.2)
    assert "fds: " in problems_of(leak)


def test_a_trial_that_comes_to_no_end_says_so():
    async def wait(trial) -> None:
        await trial.target.wait("the impossible", lambda: False, timeout_s=0.01)

    assert "not tried to its end" in problems_of(wait)
