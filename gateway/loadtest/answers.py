"""Reads HTTP/1.1 answers, as little of them as counting takes: status, where they end, whether the connection stays."""

from __future__ import annotations

HEAD_SIZE_MAX = 64 * 1024
BODY_SIZE_MAX = 64 * 1024 * 1024

_SWITCHING, _OK, _NO_CONTENT, _NOT_MODIFIED = 101, 200, 204, 304


class UnreadableAnswer(Exception):
    """The server answers in a way that cannot be counted here. The text is for a person."""


def read_head(data: bytes | bytearray) -> tuple[int, int, int, bool] | None:
    """(status, where the body begins, where it ends, whether the connection stays open) of the answer in `data`.

    None while its head is not whole. Interim answers (1xx) have no body. Raises UnreadableAnswer.
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
    return status, begin, begin + _body_size(head), stays


def _body_size(head: bytes | bytearray) -> int:
    """The value of Content-Length. Raises UnreadableAnswer without one."""
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        how = "in chunks" if b"\r\ntransfer-encoding:" in head else "without a Content-Length"
        raise UnreadableAnswer(f"the server answers {how}; answers are counted by their Content-Length here")
    text = bytes(head[at + 17 : head.find(b"\r\n", at + 2)]).strip()
    if not text.isdigit() or len(text) > len(str(BODY_SIZE_MAX)) or int(text) > BODY_SIZE_MAX:
        raise UnreadableAnswer(f"an answer's Content-Length is {text[:40]!a}; up to {BODY_SIZE_MAX} is taken")
    return int(text)
