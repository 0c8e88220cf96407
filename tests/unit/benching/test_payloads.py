"""The bodies that are sent are what the forms say, byte for byte where that matters."""

from __future__ import annotations

import base64
import io
import json

import msgpack
import numpy as np
import pytest
from PIL import Image

from gateway.bench import payloads
from gateway.bench.wish import Form, Load, Wish
from gateway.errors import InvalidSettings
from tests.support.gateways import encode, pixels

PNGS = [encode(pixels(seed)) for seed in range(3)]


@pytest.fixture
def wish(tmp_path):
    for place, png in enumerate(PNGS):
        (tmp_path / f"{place}.png").write_bytes(png)
    return Wish(url="http://h", images=(tmp_path,))


def test_raw_is_the_file_with_its_kind(wish):
    made = payloads.build(wish, Form.RAW, 1, None)
    assert [payload.content for payload in made] == PNGS
    assert {payload.content_type for payload in made} == {"image/png"}
    assert [payload.size for payload in made] == [len(png) for png in PNGS]


def test_json_and_msgpack_hold_one_or_several(wish):
    one = payloads.build(wish, Form.JSON, 1, None)[1]
    assert base64.b64decode(json.loads(one.content)["image"]) == PNGS[1]
    several = payloads.build(wish, Form.JSON, 2, None)[2]
    assert [base64.b64decode(text) for text in json.loads(several.content)["images"]] == [PNGS[2], PNGS[0]]
    assert several.images == 2
    one = payloads.build(wish, Form.MSGPACK, 1, None)[0]
    assert msgpack.unpackb(one.content) == {"image": PNGS[0]}
    several = payloads.build(wish, Form.MSGPACK, 4, None)[0]
    assert msgpack.unpackb(several.content) == {"images": [*PNGS, PNGS[0]]}


def test_a_tensor_has_the_pixels_of_the_models_size(wish):
    one = msgpack.unpackb(payloads.build(wish, Form.TENSOR, 1, (8, 8))[0].content)["tensor"]
    assert (one["shape"], one["dtype"]) == ([8, 8, 3], "uint8")
    assert one["data"] == pixels(0).tobytes()
    several = msgpack.unpackb(payloads.build(wish, Form.TENSOR, 2, (6, 4))[0].content)["tensor"]
    assert several["shape"] == [2, 4, 6, 3]
    assert len(several["data"]) == 2 * 4 * 6 * 3


def test_what_is_no_image_can_be_sent_but_not_turned_into_a_tensor(tmp_path):
    (tmp_path / "x").write_bytes(b"no image")
    wish = Wish(url="http://h", images=(tmp_path / "x",))
    assert payloads.build(wish, Form.RAW, 1, None)[0].content_type == "application/octet-stream"
    with pytest.raises(InvalidSettings, match="x: cannot be read as an image"):
        payloads.build(wish, Form.TENSOR, 1, (8, 8))
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(InvalidSettings, match="has 0 bytes"):
        payloads.build(wish, Form.RAW, 1, None)


def test_a_made_up_image_has_the_size_that_was_asked_for():
    (made,) = payloads.build(Wish(url="http://h", size="40x30"), Form.RAW, 1, None)
    assert Image.open(io.BytesIO(made.content)).size == (40, 30)
    ladder = payloads.build(Wish(url="http://h", load=Load.TRACE, trace="t"), Form.RAW, 1, None)
    sizes = [payload.size for payload in ladder]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 100 * sizes[0]


def test_a_file_is_sent_as_it_is(tmp_path):
    (tmp_path / "b").write_bytes(b"\0body")
    wish = Wish(url="http://h", body=tmp_path / "b", content_type="a/b", images_per_request=8)
    assert payloads.build(wish, Form.RAW, 1, None) == [payloads.Payload(b"\0body", "a/b", 8, 5)]


def test_pixels_are_rgb(tmp_path):
    (tmp_path / "grey.png").write_bytes(encode(np.full((8, 8), 7, np.uint8)))
    wish = Wish(url="http://h", images=(tmp_path / "grey.png",))
    tensor = msgpack.unpackb(payloads.build(wish, Form.TENSOR, 1, (8, 8))[0].content)["tensor"]
    assert tensor["data"] == bytes([7]) * 8 * 8 * 3
