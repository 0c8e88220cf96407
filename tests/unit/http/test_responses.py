"""Every refusal has its status, and every kind of output can be written in both types."""

from __future__ import annotations

import json
import math

import msgpack
import numpy as np
import pytest

from gateway import errors
from gateway.calls import Classes
from gateway.http import responses
from gateway.http.responses import JSON, MSGPACK, STATUS
from shm import layout


def refusals(kind=errors.Refusal):
    """Those of the tree; a room's own kinds of them answer as they do."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from refusals(child)


def made(kind):
    return kind("says what to do", **({"allow": "GET"} if kind is errors.MethodNotAllowed else {}))


def test_every_refusal_has_a_status_and_a_code_of_its_own():
    kinds = list(refusals())
    assert set(STATUS) == set(kinds)
    assert len({kind.code for kind in kinds}) == len(kinds)
    for kind in kinds:
        answer = responses.problem(made(kind), "id-1")
        problem = json.loads(answer.body)
        assert (answer.status, problem["status"], problem["code"]) == (STATUS[kind], STATUS[kind], kind.code)
        assert (problem["detail"], problem["request_id"]) == ("says what to do", "id-1")
        assert 400 <= answer.status <= 599


def test_a_refusal_that_is_not_listed_answers_as_its_parent():
    class Mangled(errors.UndecodableImage):
        pass

    class Unheard(errors.Refusal):
        pass

    assert responses.status_of(Mangled("x")) == 422
    assert responses.status_of(Unheard("x")) == 500


@pytest.mark.parametrize(
    ("accept", "content_type", "wanted"),
    [
        (None, "", JSON),
        (None, "application/x-msgpack", MSGPACK),
        ("", "application/msgpack", MSGPACK),
        ("application/json", "application/msgpack", JSON),
        ("application/vnd.msgpack", "image/png", MSGPACK),
        ("application/msgpack;q=1, application/json", "image/png", MSGPACK),
        ("text/html", "application/msgpack", MSGPACK),
    ],
)
def test_accept_stands_over_the_bodys_type(accept, content_type, wanted):
    assert responses.choose_type(accept, content_type) == wanted


def read(document, kind):
    body = responses.encode(document, kind)
    return json.loads(body) if kind == JSON else msgpack.unpackb(body)


@pytest.mark.parametrize("labels", [(), ("ant", "bee", "cat")])
@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_classes_are_named_by_label_or_by_index(labels, kind):
    found = read(responses.answer(Classes([2, 0], [0.75, 0.25]), labels, kind), kind)
    assert found == {
        "prediction": [
            {"class": labels[2] if labels else "2", "index": 2, "probability": 0.75},
            {"class": labels[0] if labels else "0", "index": 0, "probability": 0.25},
        ]
    }


@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_an_error_among_images_is_its_code_and_its_detail(kind):
    answered = responses.answer(errors.UndecodableImage("send another"), (), kind)
    assert read(answered, kind) == {"error": {"code": "undecodable_image", "detail": "send another"}}


@pytest.mark.parametrize("dtype", sorted(layout.DTYPE_SIZES))
def test_every_dtype_that_crosses_a_segment_can_be_answered(dtype):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    found = read(responses.answer({"y": array}, (), JSON), JSON)["outputs"]["y"]
    assert found == {"shape": [2, 3], "dtype": dtype, "data": array.ravel().tolist()}
    found = read(responses.answer({"y": array}, (), MSGPACK), MSGPACK)["outputs"]["y"]
    assert (found["shape"], found["dtype"]) == ([2, 3], dtype)
    assert np.frombuffer(found["data"], dtype).reshape(2, 3).tolist() == array.tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_that_json_does_not_know_are_null_and_stay_themselves_in_msgpack(dtype):
    array = np.array([np.nan, np.inf, -np.inf, 0.5], dtype)
    assert read(responses.answer({"y": array}, (), JSON), JSON)["outputs"]["y"]["data"] == [None, None, None, 0.5]
    data = read(responses.answer({"y": array}, (), MSGPACK), MSGPACK)["outputs"]["y"]["data"]
    assert np.array_equal(np.frombuffer(data, dtype), array, equal_nan=True)
    assert read(responses.answer(Classes([0], [math.nan]), (), JSON), JSON)["prediction"][0]["probability"] is None


@pytest.mark.parametrize(
    "array",
    [np.float32(3.5).reshape(()), np.zeros((0, 3), np.float32), np.arange(12, dtype=np.int16).reshape(3, 4).T[::2]],
    ids=["scalar", "empty", "strided"],
)
@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_odd_shapes_are_flat_in_c_order(array, kind):
    found = read(responses.answer({"y": array}, (), kind), kind)["outputs"]["y"]
    data = found["data"] if kind == JSON else np.frombuffer(found["data"], array.dtype).tolist()
    assert (found["shape"], data) == (list(array.shape), np.ravel(array, order="C").tolist())


def test_float16_is_exact_in_json():
    array = np.array([0.1, 1 / 3, 65504, 6e-8], np.float16)
    data = read(responses.answer({"y": array}, (), JSON), JSON)["outputs"]["y"]["data"]
    assert np.array(data, np.float16).tolist() == array.tolist()
