"""The stages of a tuning run, in order: profile, decode rate, choice, search. Each tells Findings what it learnt."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import msgspec

from gateway.tuning import choice, contract_file, decode, live, photos, profile
from gateway.tuning.search import RateSearch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.tuning.findings import Findings, Goal
    from gateway.tuning.photos import Photo

PROFILE_SHARE = 0.4
"""Of the whole time, at most, for the growth of batches."""

DECODE_SHARE, DECODE_S_MAX = 0.1, 3.0

FIRST_SHARE = 0.5
"""The first rate that is tried, of the one that profile and decode rate promise."""

RATE_SHARE_MAX = 4.0
"""The largest rate that is tried, of the same."""

PROBE_S_MIN, PROBE_S_MAX = 0.4, 10.0
PROBE_COUNT_MIN = 100
"""Requests of a probe, where CONFIRM_LONGER times its length are enough for them."""

CONFIRM_LONGER = 2.0

_PROBES_TIMED = 14
"""Probes that the time is divided by: the last one is longer, and answers trickle in."""

_OVERHEAD_S = 0.25
"""A probe's connections and its last answers."""


class DeadlineTooShort(Exception):
    """Not even one image alone makes it."""


async def run(goal: Goal, findings: Findings, progress: Callable[[str], None]) -> None:
    """All stages.

    Raises: DeadlineTooShort, InvalidModel, InvalidSettings, TooSlow, Unserved, UnreadableAnswer, OSError.
    """
    end = asyncio.get_running_loop().time() + goal.seconds
    body_size_max = goal.settings.body_size_max
    sample = [photos.made_up()] if goal.images is None else photos.from_folder(goal.images, body_size_max)
    await profile.grow(
        goal.model,
        goal.settings,
        deadline_ms=goal.deadline_ms,
        seconds=PROFILE_SHARE * goal.seconds,
        note=findings.note,
        progress=progress,
    )
    _check_deadline(goal, findings)
    seconds = min(DECODE_S_MAX, DECODE_SHARE * goal.seconds)
    findings.decode, sample, findings.skipped = await decode.measure(
        goal.model, goal.settings, sample, seconds, progress
    )
    findings.photo_count = len(sample)
    _check_deadline(goal, findings)
    await _choose(goal, findings, progress)
    await _search(goal, findings, sample, end, progress)


def _check_deadline(goal: Goal, findings: Findings) -> None:
    """Raises DeadlineTooShort."""
    single_ms = findings.points[1].p99_ns / 1e6
    decode_ms = findings.decode.p50_ms if findings.decode else 0.0
    if single_ms + decode_ms <= goal.deadline_ms:
        return
    device = goal.settings.devices[0]
    least = choice.deadline_ms_least(single_ms, decode_ms, len(goal.settings.devices))
    decoding = f", and {decode_ms:.1f} ms to decode it" if decode_ms else ""
    raise DeadlineTooShort(
        f"this model needs {single_ms:.1f} ms for one image on {device}{decoding}; ask for at least {math.ceil(least)}"
    )


async def _choose(goal: Goal, findings: Findings, progress: Callable[[str], None]) -> None:
    """Choose sizes, measure those that are new, and drop what the measurement does not bear out."""
    assert findings.decode is not None
    budget_ms = choice.budget_ms(goal.deadline_ms, findings.decode.p99_ms)
    worker_count = len(goal.settings.devices)
    points = list(findings.points.values())
    sizes: Sequence[int] = choice.choose(points, budget_ms=budget_ms, worker_count=worker_count).sizes
    if not set(sizes) <= set(findings.points):
        try:
            timeout_s = PROFILE_SHARE * goal.seconds
            findings.note(await profile.measure(goal.model, sizes, goal.settings, timeout_s, progress))
        except (profile.Refused, profile.TooSlow):
            sizes = sorted(findings.points)
    # Only what was measured: a size between two others need not be what a straight line says.
    findings.choice = choice.choose(
        list(findings.points.values()), budget_ms=budget_ms, worker_count=worker_count, only=sizes
    )
    findings.contract = contract_file.tuned(goal.model.contract, goal.text, findings.choice.sizes, goal.deadline_ms)


async def _search(
    goal: Goal, findings: Findings, sample: Sequence[Photo], end: float, progress: Callable[[str], None]
) -> None:
    """The largest rate at which the deadline is kept, by the real gateway with the chosen sizes."""
    assert findings.choice is not None
    assert findings.decode is not None
    assert findings.contract is not None
    loop = asyncio.get_running_loop()
    promised = min(findings.choice.rate, findings.decode.rate)
    search = RateSearch(FIRST_SHARE * promised, rate_max=RATE_SHARE_MAX * promised)
    model = msgspec.structs.replace(goal.model, contract=findings.contract)
    progress("starting the gateway with these sizes")
    async with live.serving(model, goal.settings) as port:
        bodies = live.requests(model, port, sample, goal.deadline_ms)
        seconds = min(max((end - loop.time()) / _PROBES_TIMED - _OVERHEAD_S, PROBE_S_MIN), PROBE_S_MAX)
        while step := search.next():
            length = CONFIRM_LONGER * seconds if step.confirms else seconds
            length = max(length, min(PROBE_COUNT_MIN / step.rate, CONFIRM_LONGER * length))
            left = end - loop.time()
            if left < length + CONFIRM_LONGER * seconds and not step.confirms:
                search.hurry()
                step = search.next()
                if step is None:
                    break
            progress(f"{step.rate:,.0f} requests/s{', to confirm it' if step.confirms else ''}")
            found = await live.probe(
                port,
                bodies,
                step.rate,
                length,
                deadline_ms=goal.deadline_ms,
                seed=len(findings.probes),
                confirms=step.confirms,
            )
            findings.probes.append(found)
            search.note(met=found.meets(goal.deadline_ms))
        findings.rate = search.confirmed
