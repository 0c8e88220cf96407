import numpy as np
import pytest

from gpuworker.ranking import ROUNDS_MAX, rank

RNG = np.random.default_rng(3)


def plain(row, k):
    return sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]


@pytest.mark.parametrize("k", [1, 2, 5, 37, ROUNDS_MAX, ROUNDS_MAX + 1, 200])
@pytest.mark.parametrize("levels", [3, 50, 0])
def test_top_k_is_a_plain_sort_also_with_ties(k, levels):
    scores = RNG.standard_normal((4, 200)).astype(np.float32)
    if levels:
        scores = RNG.integers(0, levels, (4, 200)).astype(np.float32)
    index, probability, valid = rank(scores, "none", k)
    assert valid.all()
    assert index.tolist() == [plain(row, k) for row in scores.tolist()]
    assert (probability == np.take_along_axis(scores, index, 1)).all()


def test_softmax_shares_add_up_and_survive_large_scores():
    scores = (RNG.standard_normal((3, 50)) * 300).astype(np.float32)
    _, probability, _ = rank(scores, "softmax", 50)
    exact = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    exact = -np.sort(-(exact / exact.sum(axis=1, keepdims=True)), axis=1)
    np.testing.assert_allclose(probability, exact, rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)


def test_sigmoid_is_per_class_and_never_warns():
    _, probability, _ = rank(np.array([[0, 200, -200, 2]], np.float32), "sigmoid", 4)
    np.testing.assert_allclose(probability, [[1, 0.880797, 0.5, 0]], atol=1e-6)


def test_masked_classes_come_last_by_index():
    scores = np.array([[-np.inf, 1, -np.inf, -np.inf]], np.float32)
    for activation in ("softmax", "sigmoid"):
        index, probability, valid = rank(scores, activation, 4)
        assert index.tolist() == [[1, 0, 2, 3]]
        assert probability[0, 1:].tolist() == [0, 0, 0]
        assert valid.tolist() == [True]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid"])
def test_a_row_without_a_finite_answer_harms_no_other(bad, activation):
    scores = RNG.standard_normal((3, 10)).astype(np.float32)
    alone = rank(scores[[0, 2]], activation, 3)
    scores[1, 4] = bad
    index, probability, valid = rank(scores, activation, 3)
    assert valid.tolist() == [True, False, True]
    assert (index[valid] == alone[0]).all()
    assert (probability[valid] == alone[1]).all()


def test_the_callers_scores_stay_as_they_are():
    scores = RNG.standard_normal((2, 10)).astype(np.float32)
    before = scores.copy()
    rank(scores, "softmax", 5)
    assert (scores == before).all()
