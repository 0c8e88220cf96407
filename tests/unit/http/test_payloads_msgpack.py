"""msgpack bodies: written by the library, read by our cursor."""

from __future__ import annotations

import msgpack
import msgspec
import numpy as np
import pytest

from gateway.errors import BadRequest, PayloadTooLarge
from gateway.http.payloads import Part, read_msgpack
from shm.wire import Encoding

SIZES = [0, 1, 255, 256, 65_535, 65_536]


def read(value, images_max=4):
    body = value if isinstance(value, bytes) else msgpack.packb(value)
    view = memoryview(body)
    query = read_msgpack(view, images_max)
    return query, [bytes(view[part.offset : part.offset + part.size]) for part in query.parts]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("encode", [msgpack.packb, msgspec.msgpack.encode])
def test_one_image_of_every_header(size, encode):
    image = bytes(size)
    query, images = read(encode({"image": image}))
    assert images == [image]
    assert query.parts[0].encoding is Encoding.BINARY
    assert not query.many


def test_several_images_and_parameters():
    query, images = read(
        {"deadline_ms": 12.5, "images": [b"a", b"", b"c" * 300], "priority": "realtime", "top_k": 1000}
    )
    assert images == [b"a", b"", b"c" * 300]
    assert query.many
    assert (query.top_k, query.deadline_ms, query.priority) == (1000, 12.5, "realtime")


def test_a_list_of_one_is_a_list():
    assert read({"images": [b"x"]})[0].many


@pytest.mark.parametrize("value", [1, 127, 128, 255, 256, 1000])
def test_whole_numbers_of_every_header(value):
    assert read({"image": b"x", "top_k": value})[0].top_k == value


def test_numbers_for_deadlines():
    assert read({"image": b"x", "deadline_ms": 100})[0].deadline_ms == 100.0
    assert read(msgpack.packb({"image": b"x", "deadline_ms": 0.5}, use_single_float=True))[0].deadline_ms == 0.5
    assert read({"image": b"x", "deadline_ms": None, "top_k": None, "priority": None})[0].deadline_ms is None


@pytest.mark.parametrize("shape", [(2, 3, 3), (4, 2, 3, 1), (1, 2, 3, 3)])
def test_tensors(shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    body = msgpack.packb({"tensor": {"dtype": "uint8", "data": pixels.tobytes(), "shape": list(shape)}, "top_k": 2})
    query = read_msgpack(memoryview(body), 4)
    assert query.tensor.shape == shape
    assert query.many == (len(shape) == 4)
    assert query.parts == []
    found = np.frombuffer(body, np.uint8, query.tensor.size, query.tensor.offset).reshape(shape)
    assert np.array_equal(found, pixels)


def tensor(**changes):
    return {"tensor": {"shape": [1, 1, 3], "dtype": "uint8", "data": b"abc"} | changes}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "ends too early"),
        (b"\x81", "ends too early"),
        (b"\x81\xa5imag", "ends too early"),
        (b"\x81\xa5image\xc6\xff\xff\xff\xff", "ends too early"),
        (b"\x81\xa5image\xc4", "ends too early"),
        (b"\xdf\xff\xff\xff\xff", "ends too early"),
        (b"\x91\xc4\x01a", "must be a map"),
        (b"\xc1", "must be a map"),
        ([], "must be a map"),
        ({}, 'one of "image"'),
        ({"top_k": 3}, 'one of "image"'),
        ({"image": b"x", "images": [b"x"]}, 'one of "image"'),
        ({"image": b"x"} | tensor(), 'one of "image"'),
        ({1: b"x"}, "must be strings"),
        ({b"image": b"x"}, "must be strings"),
        ({"imgae": b"x"}, "did you mean 'image'"),
        ({"x" * 100_000: b"x"}, "Unknown key 'xxx"),
        ({"image": "YWJj"}, "must be bin"),
        ({"image": [b"x"]}, "must be bin"),
        ({"image": msgpack.ExtType(5, b"x")}, "must be bin"),
        ({"image": msgpack.Timestamp(1)}, "must be bin"),
        ({"images": b"x"}, "array of bin"),
        ({"images": {"a": 1}}, "array of bin"),
        ({"images": []}, "at least one"),
        ({"images": [[b"x"]]}, "must be bin"),
        (b"\x82\xa5image\xc4\x01a\xa5image\xc4\x01b", "stands twice"),
        (b"\x81\xa5image\xc4\x01a\xc0", "Bytes follow"),
        ({"image": b"x", "top_k": True}, "number or a string"),
        ({"image": b"x", "top_k": -1}, "1 to 1000"),
        ({"image": b"x", "top_k": -100_000}, "1 to 1000"),
        ({"image": b"x", "top_k": 5.0}, "1 to 1000"),
        ({"image": b"x", "top_k": 1 << 63}, "1 to 1000"),
        ({"image": b"x", "deadline_ms": float("nan")}, "over 0"),
        ({"image": b"x", "deadline_ms": float("inf")}, "over 0"),
        ({"image": b"x", "priority": [1]}, "number or a string"),
        ({"image": b"x", "priority": "x" * 70_000}, "'realtime' or 'batch'"),
        (b"\x82\xa5image\xc4\x01a\xa8priority\xa2\xff\xfe", "'realtime' or 'batch'"),
        (tensor(dtype="float32"), "'float32'; it must be 'uint8'"),
        (tensor(dtype=7), '"dtype" must be a string'),
        (tensor(shape=[1, 1, 4]), "shape [1, 1, 4] needs 4 bytes; its data has 3"),
        (tensor(shape=[3]), "in whole numbers over 0"),
        (tensor(shape=[1] * 100), "in whole numbers over 0"),
        (tensor(shape=[0, 1, 3], data=b""), "in whole numbers over 0"),
        (tensor(shape=[-1, -1, 3]), "in whole numbers over 0"),
        (tensor(shape=[1, 1, 3.0]), "in whole numbers over 0"),
        (tensor(shape="113"), "in whole numbers over 0"),
        (tensor(shape=[(1 << 64) - 1] * 4), "needs"),
        (tensor(data="abc"), '"data" must be bin'),
        (tensor(extra=1), "Unknown key 'extra'"),
        ({"tensor": {"shape": [1, 1, 3]}}, '"tensor" must be {'),
        ({"tensor": 5}, '"tensor" must be a map'),
    ],
)
def test_refusals_say_what_to_do(value, said):
    with pytest.raises(BadRequest) as caught:
        read(value)
    assert said in caught.value.detail


def test_too_many_images():
    assert len(read({"images": [b"x"] * 4})[0].parts) == 4
    with pytest.raises(PayloadTooLarge):
        read({"images": [b"x"] * 5})
    with pytest.raises(PayloadTooLarge):
        read(b"\x81\xa6images\xdd\xff\xff\xff\xff")
    with pytest.raises(PayloadTooLarge):
        read({"tensor": {"shape": [5, 1, 1, 3], "dtype": "uint8", "data": bytes(15)}})


@pytest.mark.parametrize(
    "unit", [b"\x91", b"\x81", b"\x81\xa5image", b"\xdd\x00\xff\xff\xff", b"\xc7\x00\x05", b"\xc0"]
)
def test_a_structure_bomb_builds_nothing(unit):
    for head in (b"", b"\x81\xa5image", b"\x81\xa6images\xdd\x00\x00\x00\x04", b"\x81\xa5top_k", b"\x81\xa6tensor"):
        with pytest.raises((BadRequest, PayloadTooLarge)):
            read(head + unit * 100_000)


def test_ranges_are_of_the_body():
    assert read({"image": b"abc"})[0].parts == [Part(9, 3, Encoding.BINARY)]
