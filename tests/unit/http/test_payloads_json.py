"""JSON bodies: what real encoders write is found where it lies; what they do not write is refused."""

from __future__ import annotations

import base64
import json

import orjson
import pytest

from gateway.errors import BadRequest, PayloadTooLarge
from gateway.http.payloads import json_body, read_json
from shm.wire import Encoding

IMAGE = bytes(range(256)) * 3
TEXT = base64.b64encode(IMAGE).decode()


def read(body, images_max=4):
    """The query and the base64 of each of its images."""
    view = memoryview(bytearray(body))
    query = read_json(view, images_max)
    assert all(part.encoding is Encoding.BASE64 for part in query.parts)
    return query, [bytes(view[part.offset : part.offset + part.size]).decode() for part in query.parts]


@pytest.mark.parametrize("dumps", [json.dumps, orjson.dumps, lambda x: json.dumps(x, indent=2)])
def test_real_encoders(dumps):
    def encode(value):
        text = dumps(value)
        return text.encode() if isinstance(text, str) else text

    query, texts = read(encode({"image": TEXT}))
    assert texts == [TEXT]
    assert not query.many
    query, texts = read(encode({"top_k": 3, "images": [TEXT, "", TEXT], "deadline_ms": 20, "priority": "batch"}))
    assert texts == [TEXT, "", TEXT]
    assert query.many
    assert (query.top_k, query.deadline_ms, query.priority) == (3, 20.0, "batch")


def test_a_list_of_one_is_a_list():
    query, texts = read(b'{"images":["YQ=="]}')
    assert query.many
    assert texts == ["YQ=="]


def test_null_parameters_are_not_given():
    query, _ = read(b'{"image":"YQ==","top_k":null,"deadline_ms":null,"priority":null}')
    assert (query.top_k, query.deadline_ms, query.priority) == (None, None, None)


def test_phps_slashes_and_nets_plus_signs_are_unescaped_in_place():
    escaped = TEXT.replace("/", "\\/").replace("+", "\\u002B").replace("=", "\\u003d")
    assert read(f'{{"image":"{escaped}"}}'.encode())[1] == [TEXT]
    assert read(f'{{"images":["{escaped}","{TEXT}","{escaped}"]}}'.encode())[1] == [TEXT] * 3


def test_line_breaks_are_dropped():
    wrapped = base64.encodebytes(IMAGE).decode()
    assert read(json.dumps({"image": wrapped}).encode())[1] == [TEXT]
    assert read(json.dumps({"image": wrapped.replace("\n", "\r\n")}).encode())[1] == [TEXT]


@pytest.mark.parametrize("shift", range(8))
def test_escapes_across_blocks(shift, monkeypatch):
    monkeypatch.setattr(json_body, "BLOCK_SIZE", 16)
    text = "A" * shift + "+/=+//==" * 9
    escaped = text.replace("/", "\\/").replace("+", "\\u002b").replace("=", "\\n=")
    assert read(f'{{"image":"{escaped}"}}'.encode())[1] == [text]


@pytest.mark.parametrize(
    "prefix", ["data:image/png;base64,", "DATA:image/svg+xml;BASE64,", "data:image\\/jpeg;base64,"]
)
def test_data_urls(prefix):
    assert read(f'{{"images":["{prefix}{TEXT}","{TEXT}"]}}'.encode())[1] == [TEXT, TEXT]


@pytest.mark.parametrize(
    "escape", ["\\\\", "\\u0041", "\\t", "\\b", "\\u00", "\\u00\\n2b", "\\\\/", "\\\\n/", "\\ud800"]
)
def test_other_escapes_are_refused(escape):
    with pytest.raises(BadRequest):
        read(f'{{"image":"AAAA{escape}AAAA"}}'.encode())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"image":"AA=="', "not valid JSON"),
        (b'{"image":"AA=="} x', "not valid JSON"),
        (b'{"image":"AA==",}', "not valid JSON"),
        (b"[]", "must be an object"),
        (b"7", "must be an object"),
        (b"{}", 'one of "image"'),
        (b'{"top_k":5}', 'one of "image"'),
        (b'{"image":"AA==","images":[]}', 'one of "image"'),
        (b'{"imagee":"AA=="}', "did you mean 'image'"),
        (b'{"instances":"AA=="}', "Unknown key 'instances'"),
        (b'{"image":7}', "string of base64"),
        (b'{"image":null}', "string of base64"),
        (b'{"image":["AA=="]}', "string of base64"),
        (b'{"image":{"b64":"AA=="}}', "string of base64"),
        (b'{"images":"AA=="}', "list of base64"),
        (b'{"images":[7]}', "string of base64"),
        (b'{"images":[null,"AA=="]}', "string of base64"),
        (b'{"images":[]}', "at least one"),
        (b'{"images":[["AA=="]]}', "nested"),
        (b'{"images":[[["AA=="]]]}', "nested"),
        (b'{"image":"AA==","image":"BB=="}', "stands twice"),
        (b'{"images":["AA=="],"images":["BB=="]}', "nested"),
        (b'{"image":"AA==","top_k":1,"top_k":2}', "stands twice"),
        (b'{"image":"A\\"A"}', "or a string holds a quote"),
        (b'{"image":"AA==","top_k":0}', "1 to 1000"),
        (b'{"image":"AA==","top_k":true}', "1 to 1000"),
        (b'{"image":"AA==","top_k":5.0}', "1 to 1000"),
        (b'{"image":"AA==","top_k":"5"}', "1 to 1000"),
        (b'{"image":"AA==","top_k":[]}', "1 to 1000"),
        (b'{"image":"AA==","top_k":99999999999999999999}', "1 to 1000"),
        (b'{"image":"AA==","deadline_ms":1e400}', "over 0"),
        (b'{"image":"AA==","deadline_ms":-5}', "over 0"),
        (b'{"image":"AA==","deadline_ms":' + b"1" * 400 + b"}", "over 0"),
        (b'{"image":"AA==","priority":"high"}', "'realtime' or 'batch'"),
        (b'{"image":"AA==","priority":"\xff"}', "'realtime' or 'batch'"),
        (b'{"image":"data:text/plain;base64,AA=="}', "data URL"),
        (b'{"image":"data:image/png,AA=="}', "data URL"),
        (b'{"image":"data:' + b"x" * 5000 + b'"}', "data URL"),
    ],
)
def test_refusals_say_what_to_do(body, said):
    with pytest.raises(BadRequest) as caught:
        read(body)
    assert said in caught.value.detail
    assert "msgspec" not in caught.value.detail
    assert "`" not in caught.value.detail


def test_too_many_images():
    assert len(read(json.dumps({"images": ["AA=="] * 4}).encode())[0].parts) == 4
    for count in (5, 50):
        with pytest.raises(PayloadTooLarge):
            read(json.dumps({"images": ["AA=="] * count}).encode())


@pytest.mark.parametrize(
    "unit",
    [b"[", b"{", b'"",', b'{"image":', b'"\\"', b"1,"],
    ids=["array", "object", "strings", "nest", "quote", "number"],
)
def test_a_structure_bomb_builds_nothing(unit):
    body = b'{"images":[' + unit * (1 << 20)
    with pytest.raises((BadRequest, PayloadTooLarge)):
        read(body)


def test_a_list_of_numbers_builds_nothing():
    with pytest.raises(PayloadTooLarge, match="more values"):
        read(b'{"images":[' + b"1," * (1 << 20) + b"1]}")
