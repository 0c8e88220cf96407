from __future__ import annotations

import gc

import pytest

from gateway.provisions import YOUNG_COUNT, rest_collector


@pytest.fixture
def collector():
    """Ours, as it was, afterwards."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


class Ring:
    def __init__(self) -> None:
        self.itself = self


def rings(count: int) -> int:
    """How many of so many rings, that nobody has, the collector leaves by itself."""
    for _ in range(count):
        Ring()
    return sum(isinstance(each, Ring) for each in gc.get_objects())


@pytest.mark.usefixtures("collector")
def test_the_collector_leaves_what_is_there_alone_and_still_frees_rings():
    rest_collector()

    assert gc.get_freeze_count() > YOUNG_COUNT
    assert rings(1000) == 1000, "few are not worth a look"
    assert rings(2 * YOUNG_COUNT) < 2 * YOUNG_COUNT, "many are"
