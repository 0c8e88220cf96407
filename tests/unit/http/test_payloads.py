"""Choosing a reader, raw bodies, parameters, and tensors against models."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest, UnsupportedMediaType
from gateway.http import payloads
from gateway.http.payloads import Parameters, Part, Query, TensorPart
from shm.wire import Encoding


@pytest.mark.parametrize(
    "content_type",
    ["", "image/jpeg", "IMAGE/PNG", "image/x-anything; q=1", "application/octet-stream", " application/octet-stream "],
)
def test_raw_types_are_one_image(content_type):
    query = payloads.choose(content_type)(memoryview(bytearray(b"abc")), 1)
    assert query == Query([Part(0, 3, Encoding.BINARY)])


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json; charset=utf-8", b'{"image":"YWJj"}'),
        ("application/msgpack", b"\x81\xa5image\xc4\x03abc"),
        ("application/x-msgpack", b"\x81\xa5image\xc4\x03abc"),
        ("application/vnd.msgpack", b"\x81\xa5image\xc4\x03abc"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="x"; filename="y"\r\n\r\nabc\r\n--b--\r\n',
        ),
    ],
)
def test_other_types_find_their_reader(content_type, body):
    part = payloads.choose(content_type)(memoryview(bytearray(body)), 1).parts[0]
    assert body[part.offset : part.offset + part.size] in (b"abc", b"YWJj")


@pytest.mark.parametrize("content_type", ["text/html", "multipart/mixed; boundary=b", "application/jsonx", "\x00"])
def test_other_types_are_refused_with_the_list(content_type):
    with pytest.raises(UnsupportedMediaType) as caught:
        payloads.choose(content_type)
    for media_type in payloads.MEDIA_TYPES:
        assert media_type in caught.value.detail


def test_curls_default_type_is_an_image_as_it_is():
    query = payloads.choose("application/x-www-form-urlencoded")(memoryview(b"\xff\xd8"), 1)
    assert query.parts == [payloads.Part(0, 2, Encoding.BINARY)]


def test_a_bad_boundary_is_refused_before_the_body():
    with pytest.raises(BadRequest, match="boundary"):
        payloads.choose("multipart/form-data")


def test_an_empty_raw_body_is_refused():
    with pytest.raises(BadRequest, match="empty"):
        payloads.read_raw(memoryview(b""))


def test_parameters_of_the_url():
    assert payloads.read_parameters({}) == Parameters()
    assert payloads.read_parameters({"top_k": "7", "deadline_ms": "12.5", "priority": "batch"}) == (7, 12.5, "batch")
    assert payloads.read_parameters({"top_k": "1000", "deadline_ms": "600000"}) == (1000, 600_000.0, None)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"topk": "5"}, "did you mean 'top_k'"),
        ({"zzzz": "5"}, "known are top_k, deadline_ms, priority"),
        ({"top_k": "0"}, "1 to 1000"),
        ({"top_k": "1001"}, "1 to 1000"),
        ({"top_k": "+5"}, "1 to 1000"),
        ({"top_k": " 5"}, "1 to 1000"),
        ({"top_k": "5_0"}, "1 to 1000"),
        ({"top_k": "٣"}, "1 to 1000"),
        ({"top_k": "9" * 5000}, "1 to 1000"),
        ({"deadline_ms": "0"}, "over 0"),
        ({"deadline_ms": "nan"}, "over 0"),
        ({"deadline_ms": "inf"}, "over 0"),
        ({"deadline_ms": "1e3"}, "over 0"),
        ({"deadline_ms": "600000.1"}, "over 0"),
        ({"deadline_ms": "-1"}, "over 0"),
        ({"priority": "Batch"}, "'realtime' or 'batch'"),
        ({"priority": ""}, "'realtime' or 'batch'"),
    ],
)
def test_bad_parameters_are_refused_with_their_bound(query, said):
    with pytest.raises(BadRequest) as caught:
        payloads.read_parameters(query)
    assert said in caught.value.detail


def test_an_unknown_parameter_cannot_write_the_answer():
    with pytest.raises(BadRequest) as caught:
        payloads.read_parameters({"\r\n\u2028<script>" + "x" * 10_000: "1"})
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 200


def test_url_and_body_are_settled():
    query = Query([], top_k=3)
    query.settle(Parameters(top_k=3, deadline_ms=5.0, priority="batch"))
    assert (query.top_k, query.deadline_ms, query.priority) == (3, 5.0, "batch")
    with pytest.raises(BadRequest, match=r"deadline_ms is 5\.0 in the body and 6\.0 in the URL"):
        query.settle(Parameters(deadline_ms=6.0))


def test_tensor_against_model():
    wanted = (224, 320, 3)
    assert payloads.check_tensor(TensorPart(0, 1, (224, 320, 3)), wanted) == 1
    assert payloads.check_tensor(TensorPart(0, 1, (7, 224, 320, 3)), wanted) == 7
    with pytest.raises(BadRequest) as caught:
        payloads.check_tensor(TensorPart(0, 1, (3, 224, 320)), wanted)
    assert "uint8[3, 224, 320]" in caught.value.detail
    assert "uint8[224, 320, 3]" in caught.value.detail
