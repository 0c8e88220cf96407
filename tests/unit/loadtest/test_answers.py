"""An answer's head says its status, its end and whether the connection stays; what cannot be counted is refused."""

from __future__ import annotations

import pytest

from gateway.loadtest.answers import HEAD_SIZE_MAX, UnreadableAnswer, read_head, unchunked

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_an_answer_with_a_body():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    assert read_head(head + b"body") == (200, len(head), len(head) + 4, True)


def test_names_of_headers_are_in_any_case():
    head = b"HTTP/1.1 503 Busy\r\ncontent-LENGTH:7\r\nCONNECTION: Close\r\n\r\n"
    assert read_head(head) == (503, len(head), len(head) + 7, False)


@pytest.mark.parametrize("cut", range(1, 38))
def test_none_until_the_head_is_whole(cut):
    assert read_head(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"[:cut]) is None


@pytest.mark.parametrize(("more", "stays"), [(b"", False), (b"Connection: keep-alive\r\n", True)])
def test_http_1_0_closes_unless_it_says_otherwise(more, stays):
    head = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n" + more + b"\r\n"
    assert read_head(head) == (200, len(head), len(head), stays)


@pytest.mark.parametrize("status", [100, 204, 304])
def test_some_answers_have_no_body(status):
    head = b"HTTP/1.1 %d Word\r\n\r\n" % status
    assert read_head(head) == (status, len(head), len(head), True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "in a coding"),
        (CHUNKED + b"zz\r\n", "a chunk's size is b'zz'"),
        (CHUNKED + b"-1\r\n", "a chunk's size is b'-1'"),
        (CHUNKED + b"fffffffff\r\n", "a chunk's size"),
        (CHUNKED + b"1" * 256, "a chunk's size"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "without a Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n", "Content-Length is b'-4'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "Content-Length is"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "changed the protocol"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP/1.1 answer"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP/1.1 answer"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP/1.1 answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * HEAD_SIZE_MAX, "no HTTP/1.1 answer"),
    ],
)
def test_what_cannot_be_counted_is_refused(data, says):
    with pytest.raises(UnreadableAnswer, match=says):
        read_head(data)


def test_chunks_are_read_to_their_end_and_put_together():
    body = b"4;name=x\r\nbo\r\n\r\n1\r\ny\r\n0\r\nTrailer: 1\r\n\r\n"
    whole = CHUNKED + body
    assert read_head(whole) == (200, len(CHUNKED), len(whole), True)
    assert read_head(whole + b"HTTP/1.1") == (200, len(CHUNKED), len(whole), True)
    assert unchunked(whole, len(CHUNKED)) == b"bo\r\ny"
    assert [cut for cut in range(len(CHUNKED), len(whole)) if read_head(whole[:cut]) is not None] == []


def test_a_body_without_chunks_is_what_it_is():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    assert unchunked(head + b"body", len(head)) == b"body"
