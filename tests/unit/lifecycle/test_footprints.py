"""What can be known of a worker's device memory by the whole GPU's, before and after."""

from __future__ import annotations

import os

import pytest

from gateway.lifecycle.footprints import Footprints
from tests.support import pretend

MIB = 1 << 20
UUID = "GPU-00000000-1111-2222-3333-444444444444"


@pytest.fixture
def hold(monkeypatch, tmp_path):
    """Have somebody hold so many MiB on the GPU."""
    pretend.nvml(monkeypatch, dir=tmp_path)
    return lambda size: (tmp_path / str(os.getpid())).write_text(f"{size * MIB} {UUID}")


@pytest.fixture
def footprints(hold):
    hold(100)
    return Footprints(["cpu", f"cuda:{UUID}"])


def test_a_worker_holds_what_the_gpu_filled_by_as_it_came_up(footprints, hold):
    footprints.mark([1])
    hold(150)
    footprints.measure({1: 7})
    assert footprints.of(7) == 50 * MIB
    # A second one, beside it.
    footprints.mark([1])
    hold(180)
    footprints.measure({1: 8})
    assert (footprints.of(7), footprints.of(8)) == (50 * MIB, 30 * MIB)


def test_one_that_came_after_another_went_is_counted_from_without_it(footprints, hold):
    footprints.mark([1])
    hold(150)
    footprints.measure({1: 7})
    footprints.mark([1])
    hold(120)
    footprints.measure({1: 8}, {1: 7})
    assert footprints.of(8) == 20 * MIB


def test_nothing_is_known_of_the_cpu_and_of_what_was_not_looked_at_before(footprints, hold):
    footprints.mark([0])
    hold(150)
    footprints.measure({0: 6, 1: 7})
    assert (footprints.of(6), footprints.of(7), footprints.of(None)) == (0, 0, 0)
    assert footprints.used_size(0) is None


def test_a_gpu_that_got_emptier_meanwhile_says_nothing(footprints, hold):
    footprints.mark([1])
    hold(50)
    footprints.measure({1: 7})
    assert footprints.of(7) == 0


def test_a_seat_without_a_worker_keeps_nothing(footprints, hold):
    footprints.mark([1])
    footprints.measure({1: None})
    hold(150)
    footprints.measure({1: 7})
    assert footprints.of(7) == 0


def test_who_is_gone_is_forgotten(footprints, hold):
    footprints.mark([1])
    hold(150)
    footprints.measure({1: 7})
    footprints.forget([7])
    assert footprints.of(7) == 50 * MIB
    footprints.forget([8])
    assert footprints.of(7) == 0
