"""What each route of the admin front answers: HTTP to `lifecycle` and back. Decides nothing, keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gateway import errors
from gateway.admin import openapi
from gateway.http import responses
from gateway.http.responses import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.admin.documents import Query, ReloadWanted, VersionWanted
    from gateway.admin.protocols import Changes, Facts
    from gateway.lifecycle.operations import Operation

_BY_CODE = {kind.code: kind for kind in responses.STATUS if kind is not errors.MethodNotAllowed}


class Asked(NamedTuple):
    """One request, checked: what stands in the path, the URL's parameters, the body, the request's id."""

    parameters: Mapping[str, str]
    query: Query
    body: Any
    request_id: str

    @property
    def name(self) -> str:
        """The model."""
        return self.parameters["name"]


class Answers:
    """A method for each name of `routes.ROUTES`. Each raises Refusal."""

    def __init__(self, changes: Changes, facts: Facts) -> None:
        self._changes = changes
        self._facts = facts

    # -- what there is

    async def status(self, asked: Asked) -> Reply:
        """The gateway, its models, its workers, what is under way."""
        live = [operation.document() for operation in self._changes.operations if not operation.is_ended]
        document = {
            **self._facts.status(),
            "models": self._changes.models(),
            "workers": self._changes.workers(),
            "operations": live,
        }
        return _json(document, asked)

    async def models(self, asked: Asked) -> Reply:
        """Every model."""
        return _json({"models": self._changes.models()}, asked)

    async def model(self, asked: Asked) -> Reply:
        """One model."""
        return _json(self._changes.model(asked.name), asked)

    async def workers(self, asked: Asked) -> Reply:
        """Every worker."""
        return _json({"workers": self._changes.workers()}, asked)

    async def operations(self, asked: Asked) -> Reply:
        """Every operation that is remembered, the last one first."""
        found = [operation.document() for operation in self._changes.operations]
        return _json({"operations": found[::-1]}, asked)

    async def operation(self, asked: Asked) -> Reply:
        """One operation. Its failure is no failure to answer."""
        found = self._changes.operations.get(asked.parameters["id"])
        if found is None:
            raise errors.NotFound("there is no such operation, or it ended long ago; see /admin/operations")
        await found.wait_ended(asked.query.wait)
        return _json(found.document(), asked)

    async def openapi(self, asked: Asked) -> Reply:
        """The OpenAPI document."""
        return _json(openapi.document(), asked)

    # -- changes

    async def configure(self, asked: Asked) -> Reply:
        """Want all of this."""
        return await self._done(self._changes.configure(asked.name, asked.body), asked)

    async def load(self, asked: Asked) -> Reply:
        """Serve one version more; with `default`, for requests that name none: both as one change."""
        wanted: VersionWanted = asked.body
        versions = None if wanted.version is None else (wanted.version,)
        default = wanted.version if wanted.default else None
        return await self._done(self._changes.load(asked.name, versions, default=default), asked)

    async def unload(self, asked: Asked) -> Reply:
        """Serve one version less, or none."""
        return await self._done(self._changes.unload(asked.name, asked.query.version), asked)

    async def reload(self, asked: Asked) -> Reply:
        """Read the files again."""
        wanted: ReloadWanted = asked.body
        return await self._done(self._changes.reload(asked.name, wanted.version), asked)

    async def evaluate(self, asked: Asked) -> Reply:
        """Look at the repository now."""
        return await self._done(self._changes.evaluate(), asked)

    async def restart(self, asked: Asked) -> Reply:
        """Start a worker's process anew."""
        return await self._done(self._changes.restart(int(asked.parameters["index"])), asked)

    async def drain(self, asked: Asked) -> Reply:
        """Begin to go down; asked again, it is under way."""
        self._facts.drain()
        return _json({"status": "draining"}, asked, 202)

    async def _done(self, operation: Operation, asked: Asked) -> Reply:
        """The operation: ended well (200), under way (202), or failed: its error, with the operation in it."""
        if asked.query.wait:
            await operation.wait_ended(asked.query.wait)
        document = operation.document()
        place = f"Location: /admin/operations/{operation.id}\r\n"
        if not operation.is_ended:
            return _json(document, asked, 202, place)
        if operation.error is None:
            return _json(document, asked, 200, place)
        raise failure(operation)


def failure(operation: Operation) -> errors.Refusal:
    """A failed operation's error, as the answer to whoever waited for it."""
    assert operation.error is not None
    kind = _BY_CODE.get(operation.error["code"], errors.OperationFailed)
    refusal = kind(operation.error["detail"])
    refusal.extra = {"operation": operation.document()}
    return refusal


def _json(document: dict[str, Any], asked: Asked, status: int = 200, more: str = "") -> Reply:
    return Reply(orjson.dumps(document), responses.JSON, asked.request_id, status, more)
