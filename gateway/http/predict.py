"""`POST /predictions/{model}[/{version}]`: a request's way from its headers to its answer. HTTP to core and back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.http import payloads, responses
from gateway.http.responses import Reply
from gateway.scheduling.ticket import TENSOR, Priority

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.calls import Call
    from gateway.driver import Driver
    from gateway.http.bodies import BodyReader
    from gateway.http.payloads import Query
    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Body
    from shm.wire import Encoding

_PRIORITIES = {None: Priority.REALTIME, "realtime": Priority.REALTIME, "batch": Priority.BATCH}


class Served:
    """One model as the handler needs it, looked up once."""

    __slots__ = ("contract", "counts", "labels", "limits", "line", "memory", "name", "version")

    def __init__(self, driver: Driver, line: Line) -> None:
        model = driver.models[line.index]
        self.line = line
        self.name = model.name
        self.version = model.version
        self.labels = model.labels
        self.contract = model.contract
        self.limits = model.contract.limits
        self.memory = driver.memory.models[line.index]
        self.counts = driver.metrics.models[line.index]

    def deadline_ns(self, received_ns: int, asked_ms: float | None) -> int:
        """The absolute deadline. Raises BadRequest when the client asks for more than the model allows."""
        if asked_ms is None:
            return received_ns + int(self.limits.deadline_ms * 1e6)
        longest_ms = self.limits.deadline_ms_max
        if asked_ms > longest_ms:
            raise errors.BadRequest(f"deadline_ms is {asked_ms:g}; this model allows {longest_ms:g} at most")
        return received_ns + int(asked_ms * 1e6)

    def top_k(self, asked: int | None) -> int:
        """How many classes to rank: as asked, at most as many as there are. Raises BadRequest over the contract."""
        output = self.contract.output
        if output.task != "classification":
            if asked is not None:
                raise errors.BadRequest(f"model {self.name} has task '{output.task}'; top_k is for classification")
            return 0
        if asked is not None and asked > output.top_k_max:
            raise errors.BadRequest(f"top_k is {asked}; model {self.name} ranks {output.top_k_max} at most")
        ranked = self.memory.outputs.get("index")
        return min(asked or output.top_k, output.top_k_max if ranked is None else ranked.shape[1])

    def parts(self, query: Query, offset: int) -> list[tuple[int, int, Encoding | None]]:
        """(offset in the bodies segment, size, encoding or TENSOR) of each image in a body at `offset`.

        Raises: BadRequest, PayloadTooLarge for a tensor that does not fit the model.
        """
        if query.tensor is None:
            return [(offset + part.offset, part.size, part.encoding) for part in query.parts]
        tensor = query.tensor
        count = payloads.check_tensor(tensor, self.contract.input.shape)
        if count > self.limits.images_max:
            raise errors.PayloadTooLarge(f"{count} rows in one request; this model takes {self.limits.images_max}")
        row_size = tensor.size // count
        query.many = len(tensor.shape) > len(self.contract.input.shape)
        return [(offset + tensor.offset + row * row_size, row_size, TENSOR) for row in range(count)]


class Predict:
    """The predictions handler. Its state is the map of names to models, fixed at start."""

    def __init__(self, driver: Driver, reader: BodyReader) -> None:
        self._driver = driver
        self._core = driver.core
        self._reader = reader
        self._bodies_view = driver.memory.bodies_view
        self._served: dict[tuple[str, str], Served] = {}
        for line in driver.core.lines:
            served = Served(driver, line)
            self._served[served.name, str(served.version)] = served
            # The repository lists versions in ascending order, so the last one is the default.
            self._served[served.name, ""] = served

    async def answer(self, request: web.BaseRequest, name: str, version: str, request_id: str) -> Reply:
        """Answer one request. Raises Refusal; CancelledError when the client left."""
        received_ns = time.monotonic_ns()
        served = self._served.get((name, version))
        if served is None:
            raise self._unknown(name, version)
        counts = served.counts
        content_type = request.headers.get("Content-Type", "")
        try:
            url = payloads.read_parameters(request.query) if "?" in request.raw_path else None
            read_payload = payloads.choose(content_type)
            deadline_ns = served.deadline_ns(received_ns, url.deadline_ms if url else None)
            self._core.precheck(served.line, deadline_ns, received_ns)
            body = self._reader.read_nowait(request) or await self._reader.read(request, deadline_ns)
            read_ns = time.monotonic_ns()
            try:
                region = body.region
                query = read_payload(
                    self._bodies_view[region.offset : region.offset + region.size], served.limits.images_max
                )
                if url is not None:
                    query.settle(url)
                call = self._submit(served, body, query, received_ns)
            finally:
                body.release()
            try:
                await call.answered
            except BaseException:
                self._driver.abandon(call)
                raise
            done_ns = time.monotonic_ns()
            reply_type = responses.choose_type(request.headers.get("Accept"), content_type)
            timing_ms = _timing_ms(call, received_ns, read_ns, done_ns)
            reply = _respond(served, call, query, reply_type, request_id, timing_ms)
        except errors.Refusal as refusal:
            counts.request_refused(refusal.code)
            raise
        except asyncio.CancelledError:
            counts.client_closed += 1
            raise
        except Exception:
            counts.request_refused(errors.Refusal.code)
            raise
        end_ns = time.monotonic_ns()
        counts.request_done(read_ns - received_ns, end_ns - done_ns, end_ns - received_ns)
        return reply

    def _submit(self, served: Served, body: Body, query: Query, received_ns: int) -> Call:
        return self._driver.submit(
            served.line,
            body,
            served.parts(query, body.region.offset),
            priority=_PRIORITIES[query.priority],
            deadline_ns=served.deadline_ns(received_ns, query.deadline_ms),
            top_k=served.top_k(query.top_k),
        )

    def _unknown(self, name: str, version: str) -> errors.UnknownModel:
        if version and (name, "") in self._served:
            return errors.UnknownModel("there is no such version of this model; see /models")
        return errors.UnknownModel("there is no such model; see /models")


def _timing_ms(call: Call, received_ns: int, read_ns: int, done_ns: int) -> dict[str, float]:
    """`timing_ms`: every stage but the last, of the image that was done last, and the total. Whole µs."""
    last = call.last
    sent_ns, decoded_ns, run_ns = last.sent_ns, last.decoded_ns, last.run_ns
    return {
        "read": (read_ns - received_ns) // 1000 / 1000,
        "decode_queue": (sent_ns - last.submitted_ns) // 1000 / 1000,
        "decode": (decoded_ns - sent_ns) // 1000 / 1000,
        "batch_queue": (run_ns - decoded_ns) // 1000 / 1000,
        "infer": (last.done_ns - run_ns) // 1000 / 1000,
        "total": (done_ns - received_ns) // 1000 / 1000,
    }


def _respond(
    served: Served, call: Call, query: Query, reply_type: str, request_id: str, timing_ms: dict[str, float]
) -> Reply:
    """The answer. One image: its outcome; several: each outcome in order, 200 when at least one succeeded.

    Raises: Refusal when none did.
    """
    document: dict[str, Any] = {"model": served.name, "version": served.version, "request_id": request_id}
    outcomes = call.outcomes
    if not query.many:
        if isinstance(outcomes[0], errors.Refusal):
            raise outcomes[0]
        document |= responses.answer(outcomes[0], served.labels, reply_type)
    else:
        predictions = [responses.answer(outcome, served.labels, reply_type) for outcome in outcomes]
        first = outcomes[0]
        if isinstance(first, errors.Refusal) and all(isinstance(outcome, errors.Refusal) for outcome in outcomes):
            first.extra = {"predictions": predictions}
            raise first
        document["predictions"] = predictions
    document["timing_ms"] = timing_ms
    return Reply(responses.encode(document, reply_type), reply_type, request_id)
