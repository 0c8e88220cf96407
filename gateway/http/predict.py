"""`POST /predictions/{model}[/{version}]`: a request's way from its headers to its answer. HTTP to core and back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.http import payloads, responses
from gateway.http.ratelimit import header_text
from gateway.http.responses import Reply
from gateway.http.shadow import Shadows
from gateway.lifecycle.routes import Absent, Lazy, Split, Standing, build
from gateway.scheduling.line import Line
from gateway.scheduling.ticket import TENSOR, Priority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp import web

    from gateway.calls import Call
    from gateway.driver import Driver
    from gateway.http.bodies import BodyReader
    from gateway.http.identity import Identity
    from gateway.http.payloads import Query
    from gateway.lifecycle.routes import Routes
    from gateway.scheduling.limiter import Claim, Limiter
    from shm.wire import Encoding

    Refuse = Callable[[errors.Refusal, str, str], Reply]
    """Count a refusal and put it into words, for a request id, with further headers."""

    WaitLoaded = Callable[[str, int, int], Awaitable[None]]
    """Have a lazy (name, version) loaded and routed to, until a time in ns. Raises Refusal."""

ROUTE_KEY = "X-Route-Key"
"""Header by which a client's requests stay with one version while weights divide them."""

ROUTE_KEY_SIZE_MAX = 256
"""Bytes."""

LOADS_MAX = 2
"""Lazy versions that one request waits for: its own, and one that took its place meanwhile."""

_PRIORITIES = {None: Priority.REALTIME, "realtime": Priority.REALTIME, "batch": Priority.BATCH}
_NOTHING_ASKED = payloads.Parameters()

_NO_ROOM = (errors.Overloaded, errors.Draining)
_OVERLOAD = (*_NO_ROOM, errors.DeadlineExceeded, errors.ModelNotReady)
"""Refusals before acceptance that are not the client's fault."""


class Served:
    """One model as the handler needs it, looked up once. `shadow`: what gets copies of which share of its requests."""

    __slots__ = ("contract", "counts", "labels", "limits", "line", "memory", "name", "shadow", "version")

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
        self.shadow: tuple[Served, float] | None = None

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

    __slots__ = ("content_type", "name", "read_payload", "received_ns", "request", "request_id", "url", "version")

    def __init__(self, request: web.BaseRequest, name: str, version: str, request_id: str, received_ns: int) -> None:
        self.request = request
        self.name = name
        self.version = version
        self.request_id = request_id
        self.received_ns = received_ns
        self.url = payloads.read_parameters(request.query) if "?" in request.raw_path else _NOTHING_ASKED
        self.content_type = request.headers.get("Content-Type", "")
        self.read_payload = payloads.choose(self.content_type)
        key = request.headers.get(ROUTE_KEY)
        if key and len(key.encode("utf-8", "surrogateescape")) > ROUTE_KEY_SIZE_MAX:
            raise errors.BadRequest(f"{ROUTE_KEY} is over {ROUTE_KEY_SIZE_MAX} bytes; send a shorter one")


async def _never_loaded(name: str, version: int, until_ns: int) -> None:
    """Nobody loads anything here. Raises ModelNotReady."""
    del version, until_ns
    raise Absent.LOADING.refusal(name)


class Predict:
    """The predictions handler. Its state is the table of routes, which is replaced as a whole."""

    def __init__(
        self,
        driver: Driver,
        reader: BodyReader,
        *,
        limiter: Limiter,
        identity: Identity,
        refuse: Refuse,
        lazy_wait_s: float,
    ) -> None:
        self._driver = driver
        self._core = driver.core
        self._reader = reader
        self._limiter = limiter
        self._identity = identity
        self._refuse = refuse
        self._bodies_view = driver.memory.bodies_view
        self._lazy_wait_ns = int(lazy_wait_s * 1e9)
        self._shadows = Shadows(driver)
        self.wait_loaded: WaitLoaded = _never_loaded
        standings: dict[str, dict[int, Line]] = {}
        for line in driver.core.lines:
            model = driver.models[line.index]
            standings.setdefault(model.name, {})[model.version] = line
        self.routes = build({name: Standing(served=lines) for name, lines in standings.items()})

    @property
    def routes(self) -> Routes:
        """Who answers what. Set anew with every change; a request goes by the table that it finds."""
        return self._routes

    @routes.setter
    def routes(self, table: Routes) -> None:
        known: dict[int, Served] = {}

        def served(line: Line) -> Served:
            if line.index not in known:
                known[line.index] = Served(self._driver, line)
            return known[line.index]

        found: dict[tuple[str, str], Served | Lazy | Split | Absent] = {
            key: served(entry) if isinstance(entry, Line) else entry for key, entry in table.entries.items()
        }
        for (name, version), copies in table.shadows.items():
            original = found[name, str(version)]
            if isinstance(original, Served):  # A lazy one has no requests to copy.
                original.shadow = served(copies.line), copies.share
        self._table, self._routes = found, table
        self._shadows.keep({copies.line.index for copies in table.shadows.values()})

    def stop_copying(self) -> None:
        """Give up what nobody waits for: the gateway goes down."""
        self._shadows.stop()

    async def answer(
        self, request: web.BaseRequest, name: str, version: str, request_id: str, received_ns: int
    ) -> Reply:
        """Answer one request, there since `received_ns`.

        Raises: UnknownModel, ModelNotReady; CancelledError when the client left.
        """
        served = self._table.get((name, version))
        if type(served) is not Served:
            served = await self._find(request, name, version, request_id, received_ns)
        counts = served.counts
        client = claim = None
        try:
            asked = _Asked(request, name, version, request_id, received_ns)
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
        served, call, query, read_ns = await self._accept(served, asked, claim, deadline_ns)
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

    async def _accept(
        self, served: Served, asked: _Asked, claim: Claim, deadline_ns: int
    ) -> tuple[Served, Call, Query, int]:
        """Read the body and hand its images to the core: (who answers, call, query, when the body was here).

        Raises: Refusal.
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
                if served.line.closed:  # Its version was loaded anew, or another one took its place, meanwhile.
                    served = await self._find_again(asked)
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
                if served.shadow is not None:
                    self._shadows.follow(served, call, body, query)
            finally:
                body.release()
        except errors.Refusal as refusal:
            if isinstance(refusal, ours):
                self._limiter.revoke(claim)
            raise
        self._limiter.accept(claim, len(parts))
        return served, call, query, read_ns

    # -- routes --------------------------------------------------------------------------------------------------

    async def _find(
        self, request: web.BaseRequest, name: str, version: str, request_id: str, received_ns: int
    ) -> Served:
        """Who answers a request that no single version stands ready for. Raises UnknownModel, ModelNotReady.

        A lazy version is loaded for whoever may ask at all.
        """
        for turn in range(LOADS_MAX + 1):
            entry = self._table.get((name, version))
            if isinstance(entry, Split):
                entry = self._table[name, str(entry.choose(request.headers.get(ROUTE_KEY) or request_id))]
            if isinstance(entry, Served):
                return entry
            if entry is None:
                raise self._unknown(name, version)
            if isinstance(entry, Absent):
                raise entry.refusal(name)
            if turn < LOADS_MAX:
                assert isinstance(entry, Lazy)
                self._identity.client(request, time.monotonic_ns())
                await self.wait_loaded(name, entry.version, self._patience_ns(request, received_ns))
        raise Absent.LOADING.refusal(name)

    async def _find_again(self, asked: _Asked) -> Served:
        """Who answers instead of a line that closed while the body came. Raises UnknownModel, ModelNotReady."""
        served = await self._find(asked.request, asked.name, asked.version, asked.request_id, asked.received_ns)
        if served.line.closed:
            raise Absent.LOADING.refusal(asked.name)
        return served

    def _patience_ns(self, request: web.BaseRequest, received_ns: int) -> int:
        """Until when a request waits for its model to be loaded. Raises BadRequest."""
        url = payloads.read_parameters(request.query) if "?" in request.raw_path else _NOTHING_ASKED
        own_ns = self._lazy_wait_ns if url.deadline_ms is None else int(url.deadline_ms * 1e6)
        return received_ns + min(own_ns, self._lazy_wait_ns)

    def _unknown(self, name: str, version: str) -> errors.UnknownModel:
        if version and (name, "") in self._table:
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
