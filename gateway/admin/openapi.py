"""The OpenAPI 3.1 document of the admin front, made from its table of routes and the types that it reads. No state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway import __version__, errors
from gateway.admin import routes
from gateway.admin.documents import WAIT_S_MAX
from gateway.http import responses
from gateway.http.openapi import CHALLENGE, PAGE_REFUSALS, REQUEST_ID, RETRY_AFTER, problems, ref, struct

if TYPE_CHECKING:
    from gateway.admin.routes import Route

    Schema = dict[str, Any]

_EVERYWHERE = (errors.Unauthorized, errors.BadRequest, errors.Forbidden, errors.RateLimited, *PAGE_REFUSALS)
_WITH_BODY = (errors.BodyTimeout, errors.PayloadTooLarge, errors.UnsupportedMediaType)

_PLACES: Schema = {
    "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    "index": {"type": "integer", "minimum": 0},
    "id": {"type": "string"},
    "version": {"type": "integer", "minimum": 1},
    "wait": {"type": "number", "minimum": 0, "maximum": WAIT_S_MAX, "default": 0},
}
_MEANINGS = {
    "name": "A model's name.",
    "index": "A worker's index.",
    "id": "An operation's id.",
    "version": "One version; all of them without it.",
    "wait": "Seconds to wait for the operation to end.",
}


def document() -> Schema:
    """The document, as plain data."""
    paths: dict[str, Schema] = {}
    for route in routes.ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    _, bodies = msgspec.json.schema_components(
        [route.body for route in routes.ROUTES if route.body is not None], ref_template="#/components/schemas/{name}"
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock, admin",
            "version": __version__,
            "summary": "Models, workers and the drain of a running gateway.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        # The socket's mode is the credential there; the port asks for the token.
        "security": [{}, {"token": []}],
        "components": {
            "schemas": {**bodies, **_schemas()},
            "headers": {
                "RetryAfter": RETRY_AFTER,
                "RequestId": REQUEST_ID,
                "Challenge": CHALLENGE,
                "Location": {"description": "The operation's path.", "schema": {"type": "string"}},
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "The admin token."}},
        },
    }


def _operation(route: Route) -> Schema:
    kinds = (*_EVERYWHERE, *route.refusals, *(_WITH_BODY if route.body is not None else ()))
    answers = problems(dict.fromkeys(kinds), with_limits=False)
    if route.long:
        place = {"Location": {"$ref": "#/components/headers/Location"}}
        answers["200"] = {**_answer("It ended well, within `wait`.", ref("Operation")), "headers": place}
        answers["202"] = {**_answer("It is under way.", ref("Operation")), "headers": place}
    elif route.method == "GET":
        answers["200"] = _answer(route.summary, ref("Operation") if route.name == "operation" else {"type": "object"})
    else:
        answers["202"] = _answer(route.summary, {"type": "object"})
    found: Schema = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": dict(sorted(answers.items())),
    }
    if route.body is not None:
        body = {"schema": ref(route.body.__name__)}
        found["requestBody"] = {"required": False, "content": {responses.JSON: body}}
    return found


def _answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {responses.JSON: {"schema": schema}}}


def _parameters(route: Route) -> list[Schema]:
    places = [step[1:-1] for step in route.path.split("/") if step.startswith("{")]
    named = [(name, "path") for name in places] + [(name, "query") for name in route.query]
    return [
        {
            "name": name,
            "in": where,
            "required": where == "path",
            "description": _MEANINGS[name],
            "schema": _PLACES[name],
        }
        for name, where in named
    ]


def _schemas() -> Schema:
    text = {"type": "string"}
    maybe = {"type": ["string", "null"]}
    operation = {
        "id": text,
        "kind": text,
        "model": text,
        "state": {"enum": ["queued", "running", "succeeded", "failed"]},
        "stage": {**text, "description": "What is being done."},
        "share": {"type": "number", "minimum": 0, "maximum": 1, "description": "How much is done."},
        "created": text,
        "started": maybe,
        "ended": maybe,
        "result": {"type": "object"},
        "error": {"anyOf": [struct({"code": text, "detail": text}), {"type": "null"}]},
    }
    problem = {
        "type": text,
        "title": text,
        "status": {"type": "integer"},
        "code": text,
        "detail": text,
        "request_id": text,
        "operation": ref("Operation"),
    }
    return {
        "Operation": struct(operation),
        "Problem": struct(
            problem,
            [name for name in problem if name != "operation"],
            description="RFC 9457. operation: the one that failed while the request waited for it.",
        ),
    }
