"""An alarm rings once for the time that was set last, also when that has passed, and never after it was closed."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from gateway.loadtest import alarm
from gateway.loadtest.alarm import Alarm


def with_alarm(story, run=asyncio.run):
    async def main() -> None:
        rung: list[float] = []
        ringing = asyncio.Event()

        def ring() -> None:
            rung.append(time.monotonic())
            ringing.set()

        made = Alarm(asyncio.get_running_loop(), ring)
        try:
            async with asyncio.timeout(10):
                await story(made, ringing, rung)
        finally:
            made.close()

    run(main())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_it_rings_at_the_time_set_and_once(run):
    async def story(made, ringing, rung):
        at = time.monotonic() + 0.0103
        made.set(at)
        await ringing.wait()
        assert rung[0] >= at
        await asyncio.sleep(0.01)
        assert len(rung) == 1

    with_alarm(story, run)


@pytest.mark.parametrize("at", [0.0, -1.0, 1e-9])
def test_a_time_that_has_passed_rings_at_once(at):
    async def story(made, ringing, _rung):
        made.set(at)
        await ringing.wait()

    with_alarm(story)


def test_the_time_set_last_counts():
    async def story(made, ringing, rung):
        made.set(time.monotonic() + 60)
        soon = time.monotonic() + 0.005
        made.set(soon)
        await ringing.wait()
        assert len(rung) == 1

    with_alarm(story)


def test_a_time_set_while_it_rings_is_not_rung_for_before():
    async def story(made, _ringing, rung):
        made.set(0.0)
        made.set(time.monotonic() + 60)
        made._read()  # The loop had seen it ring; by now there is nothing to read.
        assert rung == []

    with_alarm(story)


def test_without_descriptors_it_says_so(monkeypatch):
    class Poor:
        @staticmethod
        def timerfd_create(*_):
            return -1

    monkeypatch.setattr(alarm, "_libc", Poor)

    async def story() -> None:
        Alarm(asyncio.get_running_loop(), lambda: None)

    with pytest.raises(OSError, match="timerfd_create"):
        asyncio.run(story())
