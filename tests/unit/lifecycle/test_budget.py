"""What fits, and who has to go."""

from __future__ import annotations

import pytest

from gateway.lifecycle import budget
from gateway.lifecycle.budget import NEED_COUNT_MAX, Candidate, Needs, evict, fits, identity

FILES = (("model.onnx", 100, 5), ("model.toml", 10, 5))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((("model.onnx", 100, 6), ("model.toml", 10, 5)), id="written again"),
        pytest.param((("model.onnx", 101, 5), ("model.toml", 10, 5)), id="grown"),
        pytest.param((("model.onnx", 100, 5),), id="one less"),
        pytest.param((("model.onnx2", 100, 5), ("model.toml", 10, 5)), id="renamed"),
    ],
)
def test_other_files_are_another_identity(other):
    assert identity(FILES) == identity(tuple(FILES))
    assert identity(FILES) != identity(other)


def test_a_need_belongs_to_files_and_a_kind_of_device():
    needs = Needs()
    assert needs.of("a", "cpu") is None
    needs.measured("a", "cpu", 5)
    needs.measured("a", "cuda", 7)
    needs.measured("a", "cpu", 6)
    assert (needs.of("a", "cpu"), needs.of("a", "cuda"), needs.of("b", "cpu")) == (6, 7, None)


def test_a_set_needs_its_models_and_a_worker_and_no_set_needs_nothing():
    needs = Needs()
    needs.measured("a", "cpu", 5)
    needs.measured("b", "cpu", 7)
    assert needs.total(["a", "b"], "cpu") == 12
    needs.base_measured("cpu", 100)
    assert needs.total(["a", "b"], "cpu") == 112
    assert needs.total(["a", "never loaded"], "cpu") == 105
    assert needs.total([], "cpu") == 0
    assert needs.total(["a"], "cuda") == 0


def test_what_was_measured_longest_ago_is_forgotten_first():
    needs = Needs()
    for number in range(NEED_COUNT_MAX):
        needs.measured(str(number), "cpu", number)
    needs.measured("0", "cpu", 42)
    needs.measured("new", "cpu", 1)
    assert needs.of("0", "cpu") == 42
    assert needs.of("1", "cpu") is None
    assert needs.of("2", "cpu") == 2


@pytest.mark.parametrize(("need", "free", "found"), [(5, 5, True), (6, 5, False), (6, None, True), (0, 0, True)])
def test_fits(need, free, found):
    assert fits(need, free) is found


def candidate(key, need=10, used=0, lazy=True):  # noqa: FBT002
    return Candidate(key, need, used, lazy)


@pytest.mark.parametrize(
    ("lacking", "chosen"),
    [
        pytest.param(0, [], id="nothing lacks"),
        pytest.param(-5, [], id="less than nothing lacks"),
        pytest.param(1, ["old"], id="one is enough"),
        pytest.param(10, ["old"], id="exactly one"),
        pytest.param(11, ["old", "middle"], id="two"),
        pytest.param(30, ["old", "middle", "new"], id="all"),
        pytest.param(31, None, id="never enough"),
    ],
)
def test_the_least_recently_used_go_first_and_no_more_than_it_takes(lacking, chosen):
    loaded = [candidate("new", used=9), candidate("old", used=1), candidate("middle", used=5)]
    assert evict(loaded, lacking) == chosen


def test_what_is_not_lazy_stays_and_what_nobody_measured_frees_nothing():
    loaded = [candidate("pinned", used=0, lazy=False), candidate("unknown", need=0, used=1), candidate("lazy", used=2)]
    assert evict(loaded, 5) == ["lazy"]
    assert evict(loaded, 15) is None
    assert evict([], 1) is None
    assert budget.evict([], 0) == []
