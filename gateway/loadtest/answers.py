"""Reads HTTP/1.1 answers, as little of them as counting takes: status, where they end, whether the connection stays."""

from __future__ import annotations

HEAD_SIZE_MAX = 64 * 1024
BODY_SIZE_MAX = 64 * 1024 * 1024
CHUNK_LINE_SIZE_MAX = 256

_SWITCHING, _OK, _NO_CONTENT, _NOT_MODIFIED = 101, 200, 204, 304


class UnreadableAnswer(Exception):
    """The server answers in a way that cannot be counted here. The text is for a person."""


def read_head(data: bytes | bytearray) -> tuple[int, int, int, bool] | None:
    """(status, where the body begins, where it ends, whether the connection stays open) of the answer in `data`.

    None while its head, or its last chunk, is not whole. Interim answers (1xx) have no body. Raises UnreadableAnswer.
    """
    head_end = data.find(b"\r\n\r\n", 0, HEAD_SIZE_MAX)
    if head_end < 0:
        if len(data) >= HEAD_SIZE_MAX or not data.startswith(b"HTTP/1."[: len(data)]):
            raise UnreadableAnswer(f"this is no HTTP/1.1 answer: {bytes(data[:40])!a}")
        return None
    head = data[: head_end + 2].lower()
    try:
        if not head.startswith(b"http/1."):
            raise ValueError
        status = int(head[9:12])
    except ValueError:
        raise UnreadableAnswer(f"this is no HTTP/1.1 answer: {bytes(data[:40])!a}") from None
    if head.startswith(b"http/1.0"):
        stays = b"\r\nconnection: keep-alive\r\n" in head
    else:
        stays = b"\r\nconnection: close\r\n" not in head
    begin = head_end + 4
    if status < _OK or status in (_NO_CONTENT, _NOT_MODIFIED):
        if status == _SWITCHING:
            raise UnreadableAnswer("the server changed the protocol unasked")
        return status, begin, begin, stays
    if b"\r\ntransfer-encoding: chunked\r\n" in head:
        end = _chunks_end(data, begin)
        return None if end is None else (status, begin, end, stays)
    return status, begin, begin + _body_size(head), stays


def unchunked(answer: bytes | bytearray, begin: int) -> bytes:
    """The body of a whole answer that `read_head` has read, without the frames of its chunks, if it came in chunks."""
    if b"\r\ntransfer-encoding: chunked\r\n" not in answer[:begin].lower():
        return bytes(answer[begin:])
    parts, at = [], begin
    while (found := _chunk(answer, at)) is not None and found[1]:
        parts.append(bytes(answer[found[0] : found[0] + found[1]]))
        at = found[0] + found[1] + 2
    return b"".join(parts)


def _chunk(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """(where the chunk's bytes begin, how many) of the chunk whose size line is at `at`; None while that is not whole.

    Source: RFC 9112 section 7.1. Raises UnreadableAnswer.
    """
    line_end = data.find(b"\r\n", at, at + CHUNK_LINE_SIZE_MAX)
    if line_end < 0:
        if len(data) - at >= CHUNK_LINE_SIZE_MAX:
            raise UnreadableAnswer(f"a chunk's size is {bytes(data[at : at + 40])!a}")
        return None
    digits = bytes(data[at:line_end]).partition(b";")[0].strip()
    try:
        size = int(digits, 16) if digits.isalnum() else -1
    except ValueError:
        size = -1
    if not 0 <= size <= BODY_SIZE_MAX:
        raise UnreadableAnswer(f"a chunk's size is {digits[:40]!a}; up to {BODY_SIZE_MAX} is taken")
    return line_end + 2, size


def _chunks_end(data: bytes | bytearray, at: int) -> int | None:
    """Where a body in chunks ends, its trailers included; None while it is not whole. Raises UnreadableAnswer."""
    begin = at
    while (found := _chunk(data, at)) is not None:
        at, size = found
        if at + size - begin > BODY_SIZE_MAX:
            raise UnreadableAnswer(f"an answer in chunks is larger than {BODY_SIZE_MAX} bytes")
        if size:
            at += size + 2
            if len(data) < at:
                return None
            continue
        while (line_end := data.find(b"\r\n", at)) >= 0:
            if line_end == at:
                return at + 2
            at = line_end + 2
        return None
    return None


def _body_size(head: bytes | bytearray) -> int:
    """The value of Content-Length. Raises UnreadableAnswer without one."""
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        how = "in a coding" if b"\r\ntransfer-encoding:" in head else "without a Content-Length"
        raise UnreadableAnswer(f"the server answers {how}; what is read here has a Content-Length, or comes in chunks")
    text = bytes(head[at + 17 : head.find(b"\r\n", at + 2)]).strip()
    if not text.isdigit() or len(text) > len(str(BODY_SIZE_MAX)) or int(text) > BODY_SIZE_MAX:
        raise UnreadableAnswer(f"an answer's Content-Length is {text[:40]!a}; up to {BODY_SIZE_MAX} is taken")
    return int(text)
