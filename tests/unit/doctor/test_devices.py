"""Which GPU a name is, among those that the operator left visible."""

from __future__ import annotations

import pytest

from gateway.doctor.devices import choose, everything
from tests.support.checkups import OTHER, SLICE, UUID, checkup, cut, driver, gpu

TWO = (gpu(), gpu(index=1, uuid=OTHER, name="other"))
CUT = (gpu(), cut(SLICE, index=1, uuid=OTHER))


@pytest.mark.parametrize(
    ("gpus", "visible", "name", "given"),
    [
        (TWO, None, "cpu", "cpu"),
        (TWO, None, "cuda:0", f"cuda:{UUID}"),
        (TWO, None, "cuda:1", f"cuda:{OTHER}"),
        (TWO, None, "cuda:2", ""),
        (TWO, None, f"cuda:{OTHER}", f"cuda:{OTHER}"),
        (TWO, None, "cuda:GPU-none", ""),
        (TWO, "1", "cuda:0", f"cuda:{OTHER}"),
        (TWO, "1,0", "cuda:1", f"cuda:{OTHER}"),
        (TWO, "1", f"cuda:{UUID}", ""),
        (TWO, "1, 7, 0", "cuda:1", ""),
        (TWO, "GPU-9", "cuda:0", f"cuda:{OTHER}"),
        (TWO, "GPU-", "cuda:0", ""),
        (TWO, "", "cuda:0", ""),
        (TWO, "-1", "cuda:0", ""),
        (CUT, None, f"cuda:{SLICE}", f"cuda:{SLICE}"),
        (CUT, SLICE, "cuda:0", f"cuda:{SLICE}"),
        (CUT, "0", f"cuda:{SLICE}", ""),
        ((), None, "cuda:5", "cuda:5"),
    ],
)
def test_what_a_worker_is_given(gpus, visible, name, given):
    choice = choose(name, checkup(gpus=gpus, driver=driver(visible=visible)))
    assert choice.given == given
    assert (choice.cause is None) == bool(given)


@pytest.mark.parametrize(
    ("gpus", "names"),
    [
        (TWO, ["cpu", "cuda:0", "cuda:1"]),
        (CUT, ["cpu", "cuda:0", f"cuda:{SLICE}"]),
        ((cut(),), ["cpu"]),
        ((), ["cpu"]),
    ],
)
def test_everything_there_is(gpus, names):
    assert everything(checkup(gpus=gpus)) == names


def test_what_is_not_there_is_told_with_what_is():
    problem, cure = choose("cuda:7", checkup(gpus=TWO)).cause
    assert "cuda:7 is not there" in problem
    assert f"cuda:0 is {UUID}" in cure
    assert f"cuda:1 is {OTHER}" in cure


@pytest.mark.parametrize("name", ["cuda:1", f"cuda:{OTHER}"])
def test_a_gpu_in_slices_is_none_to_be_had_whole(name):
    problem, cure = choose(name, checkup(gpus=CUT)).cause
    assert "is in MIG mode" in problem
    assert cure == f"name one of its slices: cuda:{SLICE}"


def test_a_slice_belongs_to_its_gpu():
    assert choose(f"cuda:{SLICE}", checkup(gpus=CUT)).gpu.index == 1
