"""`POST /predictions/{model}[/{version}]`: a request's way from its headers to its answer. HTTP to core and back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from gateway import errors
from gateway.http import payloads, responses
from gateway.metrics import STAGES
from gateway.scheduling.ticket import TENSOR, Priority

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.driver import Call, Driver
    from gateway.http.bodies import BodyReader
    from gateway.http.payloads import Query
    from gateway.metrics import ModelMetrics
    from gateway.models.repository import ModelVersion
    from gateway.models.spec import Limits
    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Body

_NO_PARAMETERS = payloads.Parameters()
_PRIORITIES = {None: Priority.REALTIME, "realtime": Priority.REALTIME, "batch": Priority.BATCH}


class Predict:
    """The predictions handler. Its state is the map of names to lines, fixed at start."""

    def __init__(self, driver: Driver, reader: BodyReader) -> None:
        self._driver = driver
        self._core = driver.core
        self._reader = reader
        self._lines: dict[tuple[str, str], Line] = {}
        for line, model in zip(driver.core.lines, driver.models, strict=True):
            self._lines[model.name, str(model.version)] = line
            # The repository lists versions in ascending order, so the last one is the default.
            self._lines[model.name, ""] = line

    async def answer(self, request: web.BaseRequest, name: str, version: str, request_id: str) -> web.Response:
        """Answer one request. Raises Refusal; CancelledError when the client left."""
        received_ns = time.monotonic_ns()
        line = self._lines.get((name, version))
        if line is None:
            raise self._unknown(name, version)
        counts = self._driver.metrics.models[line.index]
        try:
            response = await self._answer(request, line, request_id, received_ns, counts)
        except errors.Refusal as refusal:
            counts.requests[refusal.code] = counts.requests.get(refusal.code, 0) + 1
            raise
        except BaseException as error:
            if not isinstance(error, Exception):
                counts.client_closed += 1
            raise
        counts.requests["ok"] = counts.requests.get("ok", 0) + 1
        counts.request_seconds.observe((time.monotonic_ns() - received_ns) / 1e9)
        return response

    async def _answer(
        self, request: web.BaseRequest, line: Line, request_id: str, received_ns: int, counts: ModelMetrics
    ) -> web.Response:
        model = self._driver.models[line.index]
        limits = model.contract.limits
        url = payloads.read_parameters(request.query) if "?" in request.raw_path else _NO_PARAMETERS
        content_type = request.headers.get("Content-Type", "")
        read_payload = payloads.choose(content_type)
        self._core.precheck(line, _deadline(received_ns, url.deadline_ms, limits), received_ns)
        body = await self._reader.read(request)
        try:
            read_ns = time.monotonic_ns()
            region = body.region
            view = self._driver.memory.bodies_view[region.offset : region.offset + region.size]
            query = read_payload(view, limits.images_max)
            if url is not _NO_PARAMETERS:
                query.settle(url)
            call = self._submit(line, model, body, query, received_ns)
        finally:
            body.release()
        try:
            await call.wait_answered()
        except BaseException:
            self._driver.abandon(call)
            raise
        done_ns = time.monotonic_ns()
        accept = responses.choose_type(request.headers.get("Accept"), content_type)
        times_ns = _stages(call, received_ns, read_ns, done_ns)
        response = _respond(call, model, query, accept, request_id, times_ns)
        counts.stages[0].observe((read_ns - received_ns) / 1e9)
        counts.stages[5].observe((time.monotonic_ns() - done_ns) / 1e9)
        return response

    def _submit(self, line: Line, model: ModelVersion, body: Body, query: Query, received_ns: int) -> Call:
        contract = model.contract
        offset = body.region.offset
        parts: list[tuple[int, int, int]]
        if query.tensor is not None:
            tensor = query.tensor
            count = payloads.check_tensor(tensor, contract.input.shape)
            if count > contract.limits.images_max:
                raise errors.PayloadTooLarge(
                    f"{count} rows in one request; this model takes {contract.limits.images_max}"
                )
            row_size = tensor.size // count
            parts = [(offset + tensor.offset + row * row_size, row_size, TENSOR) for row in range(count)]
            query.many = len(tensor.shape) > len(contract.input.shape)
        else:
            parts = [(offset + part.offset, part.size, part.encoding) for part in query.parts]
        return self._driver.submit(
            line,
            body,
            parts,
            priority=_PRIORITIES[query.priority],
            deadline_ns=_deadline(received_ns, query.deadline_ms, contract.limits),
            top_k=self._top_k(line, model, query.top_k),
        )

    def _top_k(self, line: Line, model: ModelVersion, asked: int | None) -> int:
        """How many classes to rank: as asked, at most as many as there are. Raises BadRequest over the contract."""
        output = model.contract.output
        if output.task != "classification":
            if asked is not None:
                raise errors.BadRequest(f"model {model.name} has task '{output.task}'; top_k is for classification")
            return 0
        if asked is not None and asked > output.top_k_max:
            raise errors.BadRequest(f"top_k is {asked}; model {model.name} ranks {output.top_k_max} at most")
        ranked = self._driver.memory.models[line.index].outputs.get("index")
        return min(asked or output.top_k, output.top_k_max if ranked is None else ranked.shape[1])

    def _unknown(self, name: str, version: str) -> errors.UnknownModel:
        if version and (name, "") in self._lines:
            return errors.UnknownModel("there is no such version of this model; see /models")
        return errors.UnknownModel("there is no such model; see /models")


def _deadline(received_ns: int, asked_ms: float | None, limits: Limits) -> int:
    """The absolute deadline. Raises BadRequest when the client asks for more than the model allows."""
    if asked_ms is None:
        return received_ns + int(limits.deadline_ms * 1e6)
    if asked_ms > limits.deadline_ms_max:
        raise errors.BadRequest(f"deadline_ms is {asked_ms:g}; this model allows {limits.deadline_ms_max:g} at most")
    return received_ns + int(asked_ms * 1e6)


def _stages(call: Call, received_ns: int, read_ns: int, done_ns: int) -> tuple[int, ...]:
    """Times in ns of each of STAGES but the last, then the total so far; of the image that ended last."""
    last = call.last
    return (
        read_ns - received_ns,
        max(0, last.sent_ns - last.submitted_ns),
        max(0, last.decoded_ns - last.sent_ns),
        max(0, last.run_ns - last.decoded_ns),
        max(0, last.done_ns - last.run_ns),
        done_ns - received_ns,
    )


_TIMES = (*STAGES[:5], "total")


def _respond(
    call: Call, model: ModelVersion, query: Query, content_type: str, request_id: str, times_ns: tuple[int, ...]
) -> web.Response:
    """The answer. One image: its outcome; several: each outcome in order, 200 when at least one succeeded."""
    document: dict[str, Any] = {"model": model.name, "version": model.version, "request_id": request_id}
    refusals = [outcome for outcome in call.outcomes if isinstance(outcome, errors.Refusal)]
    if query.many:
        predictions = [
            responses.answer(outcome, model.labels, content_type) for outcome in call.outcomes if outcome is not None
        ]
        if len(refusals) == len(call.outcomes):
            return responses.problem(refusals[0], request_id, extra={"predictions": predictions})
        document["predictions"] = predictions
    elif refusals:
        raise refusals[0]
    else:
        outcome = call.outcomes[0]
        assert outcome is not None
        document.update(responses.answer(outcome, model.labels, content_type))
    document["timing_ms"] = {name: round(time_ns / 1e6, 3) for name, time_ns in zip(_TIMES, times_ns, strict=True)}
    return responses.reply(responses.encode(document, content_type), content_type, request_id)
