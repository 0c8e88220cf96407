"""`POST /predictions/{model}[/{version}]`: a request's way from its headers to its answer. HTTP to core and back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.http import payloads, responses
from gateway.http.ratelimit import header_text
from gateway.http.responses import Reply
from gateway.scheduling.ticket import TENSOR, Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from gateway.calls import Call
    from gateway.driver import Driver
    from gateway.http.bodies import BodyReader
    from gateway.http.identity import Identity
    from gateway.http.payloads import Query
    from gateway.scheduling.limiter import Claim, Limiter
    from gateway.scheduling.line import Line
    from shm.wire import Encoding

    Refuse = Callable[[errors.Refusal, str, str], Reply]
    """Count a refusal and put it into words, for a request id, with further headers."""

_PRIORITIES = {None: Priority.REALTIME, "realtime": Priority.REALTIME, "batch": Priority.BATCH}
_NOTHING_ASKED = payloads.Parameters()

_NO_ROOM = (errors.Overloaded, errors.Draining)
_OVERLOAD = (*_NO_ROOM, errors.DeadlineExceeded, errors.ModelNotReady)
"""Refusals before acceptance that are not the client's fault."""


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

    def deadline_ns(self, received_ns: int, asked_ms: float | None, priority: Priority) -> int:
        """The absolute deadline. Raises BadRequest when the client asks for more than the model allows."""
        longest_ms = self.limits.deadline_ms_max
        if asked_ms is None:
            asked_ms = longest_ms if priority is Priority.BATCH else self.limits.deadline_ms
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


class _Asked:
    """One request, as far as its head says. Raises BadRequest, UnsupportedMediaType."""

    __slots__ = ("content_type", "read_payload", "received_ns", "request", "request_id", "url")

    def __init__(self, request: web.BaseRequest, request_id: str, received_ns: int) -> None:
        self.request = request
        self.request_id = request_id
        self.received_ns = received_ns
        self.url = payloads.read_parameters(request.query) if "?" in request.raw_path else _NOTHING_ASKED
        self.content_type = request.headers.get("Content-Type", "")
        self.read_payload = payloads.choose(self.content_type)


class Predict:
    """The predictions handler. Its state is the map of names to models, fixed at start."""

    def __init__(
        self, driver: Driver, reader: BodyReader, *, limiter: Limiter, identity: Identity, refuse: Refuse
    ) -> None:
        self._driver = driver
        self._core = driver.core
        self._reader = reader
        self._limiter = limiter
        self._identity = identity
        self._refuse = refuse
        self._bodies_view = driver.memory.bodies_view
        self._served: dict[tuple[str, str], Served] = {}
        for line in driver.core.lines:
            served = Served(driver, line)
            self._served[served.name, str(served.version)] = served
            # The repository lists versions in ascending order, so the last one is the default.
            self._served[served.name, ""] = served

    async def answer(
        self, request: web.BaseRequest, name: str, version: str, request_id: str, received_ns: int
    ) -> Reply:
        """Answer one request, there since `received_ns`.

        Raises: UnknownModel; CancelledError when the client left.
        """
        served = self._served.get((name, version))
        if served is None:
            raise self._unknown(name, version)
        counts = served.counts
        client = claim = None
        try:
            asked = _Asked(request, request_id, received_ns)
            priority = _PRIORITIES[asked.url.priority]
            deadline_ns = served.deadline_ns(received_ns, asked.url.deadline_ms, priority)
            now_ns = time.monotonic_ns()
            client = self._identity.client(request, now_ns)
            claim = self._limiter.claim(client, priority, now_ns, deadline_ns)
            try:
                return await self._serve(served, asked, claim, deadline_ns)
            finally:
                self._limiter.release(claim)
        except errors.Refusal as refusal:
            # Answered here: under overload most requests end so, and each frame that an exception crosses costs.
            counts.request_refused(refusal.code)
            limits = ""
            if client is not None and client.limited:
                retry_s = refusal.retry_after_s if isinstance(refusal, errors.RateLimited) else None
                if claim is not None:
                    priority = claim.priority  # The body may have named another.
                limits = header_text(client, priority, time.monotonic_ns(), retry_s=retry_s)
            return self._refuse(refusal, request_id, limits)
        except asyncio.CancelledError:
            counts.client_closed += 1
            raise
        except Exception:
            counts.request_refused(errors.Refusal.code)
            raise

    async def _serve(self, served: Served, asked: _Asked, claim: Claim, deadline_ns: int) -> Reply:
        """From an accepted head to the answer. Raises Refusal."""
        call, query, read_ns = await self._accept(served, asked, claim, deadline_ns)
        try:
            await call.answered
        except BaseException:
            self._driver.abandon(call)
            raise
        done_ns = time.monotonic_ns()
        reply_type = responses.choose_type(asked.request.headers.get("Accept"), asked.content_type)
        timing_ms = _timing_ms(call, asked.received_ns, read_ns, done_ns)
        document = _document(served, call, query, reply_type, asked.request_id)
        document["timing_ms"] = timing_ms
        client = claim.client
        limits = header_text(client, claim.priority, done_ns, ending=claim.image_count) if client.limited else ""
        reply = Reply(responses.encode(document, reply_type), reply_type, asked.request_id, more=limits)
        end_ns = time.monotonic_ns()
        served.counts.request_done(read_ns - asked.received_ns, end_ns - done_ns, end_ns - asked.received_ns)
        return reply

    async def _accept(self, served: Served, asked: _Asked, claim: Claim, deadline_ns: int) -> tuple[Call, Query, int]:
        """Read the body and hand its images to the core: (call, query, when the body was here). Raises Refusal.

        Where overload refuses, the client's rate is as if it had not asked. A bad body costs its image all the same.
        """
        ours: tuple[type[errors.Refusal], ...] = _OVERLOAD
        try:
            size = self._reader.announced_size(asked.request) if asked.read_payload is payloads.read_one else 0
            whose = self._identity.name_of(asked.request, claim.client)
            priority = _PRIORITIES[asked.url.priority]  # A claim that nothing limits is everybody's, and has no class.
            self._core.precheck(
                served.line, deadline_ns, time.monotonic_ns(), priority=priority, size=size, client=whose
            )
            ours = _NO_ROOM  # How long its body takes is the client's own doing.
            body = self._reader.read_nowait(asked.request) or await self._reader.read(asked.request, deadline_ns)
            read_ns = time.monotonic_ns()
            ours = _OVERLOAD
            try:
                region = body.region
                query = asked.read_payload(
                    self._bodies_view[region.offset : region.offset + region.size], served.limits.images_max
                )
                if asked.url is not _NOTHING_ASKED:
                    query.settle(asked.url)
                parts = served.parts(query, region.offset)
                top_k = served.top_k(query.top_k)
                priority = _PRIORITIES[query.priority]
                deadline_ns = served.deadline_ns(asked.received_ns, query.deadline_ms, priority)
                self._limiter.extend(claim, len(parts), priority, read_ns, deadline_ns)
                call = self._driver.submit(
                    served.line, body, parts, priority=priority, deadline_ns=deadline_ns, top_k=top_k, client=whose
                )
            finally:
                body.release()
        except errors.Refusal as refusal:
            if isinstance(refusal, ours):
                self._limiter.revoke(claim)
            raise
        self._limiter.accept(claim, len(parts))
        return call, query, read_ns

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


def _document(served: Served, call: Call, query: Query, reply_type: str, request_id: str) -> dict[str, Any]:
    """The answer. One image: its outcome; several: each outcome in order, when at least one succeeded.

    Raises: Refusal when none did.
    """
    document: dict[str, Any] = {"model": served.name, "version": served.version, "request_id": request_id}
    outcomes = call.outcomes
    if not query.many:
        if isinstance(outcomes[0], errors.Refusal):
            raise outcomes[0]
        return document | responses.answer(outcomes[0], served.labels, reply_type)
    predictions = [responses.answer(outcome, served.labels, reply_type) for outcome in outcomes]
    first = outcomes[0]
    if isinstance(first, errors.Refusal) and all(isinstance(outcome, errors.Refusal) for outcome in outcomes):
        first.extra = {"predictions": predictions}
        raise first
    document["predictions"] = predictions
    return document
