"""Two answers to one image: same or different, and by how much."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.calls import Classes
from gateway.http.likeness import SAMPLED_COUNT, Likeness, compare, remember

NAN, INF = float("nan"), float("inf")


def classes(*ranked: tuple[int, float], labels: tuple[str, ...] = ()):
    return remember(Classes([index for index, _ in ranked], [share for _, share in ranked]), labels)


def outputs(**arrays):
    return remember({name: np.asarray(array) for name, array in arrays.items()}, ())


def test_the_same_best_class():
    same, difference = compare(classes((3, 0.9), (1, 0.1)), classes((3, 0.7), (2, 0.3)))
    assert same
    assert difference == pytest.approx(0.2)


def test_another_best_class_differs_by_the_probability_of_ours():
    same, difference = compare(classes((3, 0.6), (1, 0.4)), classes((1, 0.6), (3, 0.4)))
    assert not same
    assert difference == pytest.approx(0.2), "not 0, as the difference of the two best ones would be"


def test_a_class_that_is_not_ranked_has_no_probability():
    assert compare(classes((3, 0.75)), classes((1, 0.6))) == Likeness(same=False, difference=0.75)


def test_classes_go_by_their_label():
    ours = classes((0, 0.5), labels=("cat", "dog"))
    assert compare(ours, classes((2, 0.5), labels=("ant", "bee", "cat"))) == Likeness(same=True, difference=0.0)
    assert not compare(ours, classes((0, 0.5), labels=("ant", "bee", "cat"))).same


@pytest.mark.parametrize(
    ("ours", "theirs", "same", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], True, 0.0),
        ([1.0, 2.0], [1.0, 2.0015], True, 0.0015),
        ([1.0, 2.0], [1.0, 2.0025], False, 0.0025),
        ([0.0, 0.01], [0.0, 0.0105], True, 0.0005),
        ([1000.0, 0.0], [1000.0, 0.5], True, 0.5),
        ([NAN, INF, -INF], [NAN, INF, -INF], True, 0.0),
        ([NAN, 1.0], [NAN, 2.0], False, 1.0),
        ([NAN], [1.0], False, None),
        ([INF], [-INF], False, None),
        ([INF], [1.0], False, None),
        ([1.7e308], [-1.7e308], False, None),
        ([], [], True, 0.0),
    ],
)
def test_outputs_differ_by_their_largest_difference(ours, theirs, same, difference):
    found = compare(outputs(y=ours), outputs(y=theirs))
    assert found.same is same
    assert found.difference == (None if difference is None else pytest.approx(difference))


def test_small_integers_do_not_wrap():
    found = compare(outputs(y=np.array([1], np.uint8)), outputs(y=np.array([255], np.uint8)))
    assert found == Likeness(same=False, difference=254.0)


def test_the_worst_output_counts():
    found = compare(outputs(a=[1.0], b=[1.0]), outputs(a=[3.0], b=[1.0001]))
    assert found == Likeness(same=False, difference=2.0)


@pytest.mark.parametrize(
    "theirs",
    [outputs(z=[1.0]), outputs(y=[1.0, 2.0]), outputs(y=[[1.0]]), outputs(y=[1.0], z=[1.0]), classes((1, 1.0))],
)
def test_what_cannot_be_subtracted_is_different_by_no_number(theirs):
    assert compare(outputs(y=[1.0]), theirs) == Likeness(same=False, difference=None)


def test_a_large_output_is_compared_in_places_all_over_it():
    large = np.zeros((3, 100, 100), np.float32)
    kept = remember({"y": large}, ())["y"]
    assert kept.values.size <= SAMPLED_COUNT
    assert kept.values.size > SAMPLED_COUNT // 2
    other = large.copy()
    other[2, 50:] = 1.0
    assert compare(remember({"y": large}, ()), remember({"y": other}, ())) == Likeness(same=False, difference=1.0)


def test_what_is_remembered_is_a_copy():
    array = np.ones(3, np.float64)
    kept = remember({"y": array}, ())
    array[:] = 5.0
    assert kept["y"].values.tolist() == [1.0, 1.0, 1.0]
