"""When the generator was the limit, and what it says of that."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.bench.generator import Own, Watch

FINE = Own(lateness_p99_ms=0.5, loop_p99_ms=0.4, cpu_share=0.3, waited_share=0.01)


def test_one_that_was_not_the_limit_says_nothing():
    assert FINE.limits(10.0, 0) == []
    assert FINE._replace(lateness_p99_ms=0.9).limits(0.5, 0) == [], "below what any loop is late"
    assert FINE._replace(lateness_p99_ms=19.0).limits(100.0, 0) == [], "little against what was measured"


@pytest.mark.parametrize(
    ("seen", "unsent", "says"),
    [
        (FINE._replace(cpu_share=0.97), 0, "used 97% of a core"),
        (FINE._replace(lateness_p99_ms=3.0), 0, "was 3.0 ms late (p99), against a median latency of 10.0 ms"),
        (FINE._replace(loop_p99_ms=3.0), 0, "was 3.0 ms late"),
        (FINE._replace(waited_share=0.2), 0, "waited for a core 20% of the time"),
        (FINE, 7, "7 requests were not sent"),
    ],
)
def test_one_that_was_says_how(seen, unsent, says):
    (limit,) = seen.limits(10.0, unsent)
    assert says in limit


def test_a_watch_sees_a_loop_that_was_held_up_and_its_cpu():
    async def story() -> Own:
        watch = Watch(asyncio.get_running_loop())
        await asyncio.sleep(0)
        # Busy without a pause: as long as it takes until this process has used 30 ms.
        end = time.process_time() + 0.03
        while time.process_time() < end:
            pass
        while not watch._lags:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        return watch.end(1.5)

    own = asyncio.run(story())
    assert own.lateness_p99_ms == 1.5
    assert own.loop_p99_ms > 10
    assert own.cpu_share > 0
