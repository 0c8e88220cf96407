"""Any bytes at all: a reader answers with ranges inside the body or with a refusal, never with anything else."""

from __future__ import annotations

import base64
import itertools
import json

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Refusal
from gateway.http import payloads
from shm.wire import Encoding

IMAGES_MAX = 3
FILE = b'Content-Disposition: form-data; name="x"; filename="y"\r\n\r\n'

JSON_WORDS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b'"',
        b"\\",
        b"\\/",
        b"\\u002b",
        b"\\n",
        b" ",
        b"null",
        b"true",
        b"7",
        b"1e9",
    ),
    *(b'"image"', b'"images"', b'"top_k"', b'"deadline_ms"', b'"priority"', b'"batch"', b'"QUJD"', b'"QUJD",'),
    *(b'{"image":"QUJD"', b'{"images":["QUJD"', b"data:image/png;base64,", b"\xff", b"\x00", b"\xed\xa0\x80"),
)
MSGPACK_WORDS = (
    *(b"\x81", b"\x82", b"\x83", b"\x91", b"\x92", b"\xc0", b"\xc3", b"\xc4\x03abc", b"\xc5\x00\x01a", b"\xc6\xff\xff"),
    *(b"\xa5image", b"\xa6images", b"\xa6tensor", b"\xa5top_k", b"\xabdeadline_ms", b"\xa8priority", b"\xa5batch"),
    *(
        b"\xa5shape",
        b"\xa5dtype",
        b"\xa4data",
        b"\xa5uint8",
        b"\x93\x01\x01\x03",
        b"\xcb",
        b"\xd9\xff",
        b"\xdd",
        b"\xff",
    ),
)
MULTIPART_WORDS = (
    *(b"\r\n", b"--", b"b", b"\r\n--b", b"--b\r\n", b"\r\n--b--", b"\r\n\r\n", b" ", b":", b";", b'"', b"=", b"\\"),
    *(FILE, b'Content-Disposition: form-data; name="top_k"\r\n\r\n7', b"Content-Type: image/png\r\n", b"\xff", b"\x00"),
    *(b"--b\r\n" + FILE + b"abc",),
)

READERS = (
    ("image/jpeg", (b"\xff\xd8",)),
    ("application/json", JSON_WORDS),
    ("application/msgpack", MSGPACK_WORDS),
    ("multipart/form-data; boundary=b", MULTIPART_WORDS),
)


def bodies(words):
    """Random bytes, random words of the format, and both mixed."""
    pieces = st.one_of(st.sampled_from(words), st.binary(max_size=4))
    return st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(words), max_size=30).map(b"".join)) | st.lists(
        pieces, max_size=30
    ).map(b"".join)


def check_detail(refusal):
    assert refusal.detail.isascii()
    assert refusal.detail.isprintable()
    assert len(refusal.detail) < 400


def check(content_type, raw):
    body = memoryview(bytearray(raw))
    try:
        query = payloads.choose(content_type)(body, IMAGES_MAX)
    except Refusal as refusal:
        check_detail(refusal)
        return
    assert (query.tensor is None) == (1 <= len(query.parts) <= IMAGES_MAX)
    for part in query.parts if query.tensor is None else [query.tensor]:
        assert part.offset >= 0
        assert part.size >= 0
        assert part.offset + part.size <= len(body)
    ends = [(part.offset, part.offset + part.size) for part in query.parts]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends)), "images overlap or are out of order"


@given(st.sampled_from(READERS).flatmap(lambda pair: st.tuples(st.just(pair[0]), bodies(pair[1]))))
def test_no_bytes_get_past_a_reader(case):
    check(*case)


VALID = {
    "application/json": json.dumps({"images": ["QUJD", "QU\n+/="], "top_k": 3, "priority": "batch"}, indent=1).encode(),
    "application/msgpack": msgpack.packb({"images": [b"abc", b"d" * 300], "deadline_ms": 2.5, "priority": "batch"}),
    "application/x-msgpack": msgpack.packb({"tensor": {"shape": [2, 1, 1, 3], "dtype": "uint8", "data": b"abcdef"}}),
    "multipart/form-data; boundary=b": b"--b\r\n" + FILE + b"abc\r\n--b\r\n" + FILE + b"def\r\n--b--\r\n",
}


@given(
    st.sampled_from(sorted(VALID)),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4),
)
def test_no_mutation_gets_past_a_reader(content_type, edits):
    raw = VALID[content_type]
    check(content_type, raw)
    for position, removed, added in edits:
        at = position % (len(raw) + 1)
        raw = raw[:at] + added + raw[at + removed :]
        check(content_type, raw)


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4))
def test_no_header_or_query_gets_past(content_type, query):
    for call in (
        lambda: payloads.choose(content_type),
        lambda: payloads.choose("multipart/form-data" + content_type),
        lambda: payloads.read_parameters(query),
    ):
        try:
            call()
        except Refusal as refusal:
            check_detail(refusal)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=IMAGES_MAX), st.sampled_from([None, 1, 3]))
def test_what_goes_in_comes_out(images, indent):
    text = json.dumps({"images": [base64.b64encode(image).decode() for image in images]}, indent=indent)
    multipart = b"".join(b"--b\r\n" + FILE + image + b"\r\n" for image in images) + b"--b--"
    for content_type, raw in (
        ("application/json", text.encode()),
        ("application/json", text.replace("/", "\\/").replace("+", "\\u002b").encode()),
        ("application/msgpack", msgpack.packb({"images": images})),
        ("multipart/form-data; boundary=b", multipart),
    ):
        if content_type.startswith("multipart") and any(b"\r\n--b" in b"\r\n" + image for image in images):
            continue
        body = memoryview(bytearray(raw))
        found = payloads.choose(content_type)(body, IMAGES_MAX).parts
        got = [bytes(body[part.offset : part.offset + part.size]) for part in found]
        decoded = [
            base64.b64decode(g, validate=True) if p.encoding is Encoding.BASE64 else g
            for g, p in zip(got, found, strict=True)
        ]
        assert decoded == images
