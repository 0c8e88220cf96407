"""A body that is one image, as it is."""

from __future__ import annotations

from gateway.errors import BadRequest
from gateway.http.payloads.query import Part, Query
from shm.wire import Encoding


def read_raw(body: memoryview) -> Query:
    """The whole body is one image. Raises BadRequest when there is none."""
    if not body:
        raise BadRequest("The body is empty; send the bytes of an image, e.g. curl --data-binary @photo.jpg.")
    return Query([Part(0, len(body), Encoding.BINARY)])
