"""The core's promises under the virtual clock, as bench/schedule.py measures them, on shorter horizons."""

from __future__ import annotations

import pytest

from bench.lab.promises import PROMISES
from bench.lab.scenarios import Laboratory

# It reads a clock, which no test depends on: bench/schedule.py alone holds the core to it.
MEASURED = {"decision_us_1000"}


@pytest.fixture(scope="module")
def lab():
    return Laboratory(scale=0.1, huge=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "promise", [pytest.param(promise, id=promise.name) for promise in PROMISES if promise.name not in MEASURED]
)
def test_the_core_keeps_its_promise(promise, lab):
    value = promise.measure(lab)

    assert promise.holds(value), f"{promise.name}: {value:.4g}, to reach: {promise.text} {promise.unit}"
