"""The OpenAPI 3.1 document of the public port, made from the tables that the code itself runs on.

Statuses come from `responses.STATUS`, parameters and media types from `payloads`, names from the models that are
served. No state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import __version__, errors
from gateway.http import payloads, responses
from gateway.http.payloads.query import DEADLINE_MS_MAX, TOP_K_MAX
from gateway.http.predict import ROUTE_KEY, ROUTE_KEY_SIZE_MAX
from gateway.model_state import STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.errors import Refusal
    from gateway.models.repository import ModelVersion

    Schema = dict[str, Any]

_BASE64 = {"type": "string", "contentEncoding": "base64"}
_BINARY = {"type": "string", "format": "binary", "description": "bin, the bytes themselves"}
RETRY_AFTER = {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 0}}
REQUEST_ID = {
    "description": "The request's own X-Request-Id when it is sane, else a fresh one.",
    "schema": {"type": "string"},
}
_ROUTE_KEY = {
    "name": ROUTE_KEY,
    "in": "header",
    "description": "Requests with one key go to one version, while weights divide a model's requests among several.",
    "schema": {"type": "string", "maxLength": ROUTE_KEY_SIZE_MAX},
}
_RATE_LIMIT = {
    "description": "What is left of the client's limit, where it has one: r images; all of it in t seconds.",
    "schema": {"type": "string"},
    "example": '"realtime";r=199;t=1',
}
_RATE_LIMIT_POLICY = {
    "description": "The client's limit, where it has one: q images in w seconds.",
    "schema": {"type": "string"},
    "example": '"realtime";q=200;w=2;qu="images"',
}
CHALLENGE = {"description": "Names the scheme, Bearer.", "schema": {"type": "string"}}
_TRY_LATER = frozenset({429, 503})

PAGE_REFUSALS = (errors.MethodNotAllowed, errors.Refusal, errors.VersionNotSupported)
"""What any page may answer besides itself."""

NOT_FOR_PREDICTIONS = (
    *(errors.Forbidden, errors.NotFound),
    *(errors.InsufficientMemory, errors.LoadFailed, errors.MemoryNotGivenBack, errors.OperationFailed),
)
"""These paths exist and are open to pages; the others are how changes of what is served fail."""


_LIMITS = {
    "RateLimit": {"$ref": "#/components/headers/RateLimit"},
    "RateLimit-Policy": {"$ref": "#/components/headers/RateLimitPolicy"},
}


def _states() -> str:
    return "; ".join(f"{state}: {meaning}" for state, meaning in STATES.items())


def document(models: Sequence[ModelVersion]) -> dict[str, Any]:
    """The document for a gateway that serves `models`, as plain data."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Penstock",
            "version": __version__,
            "summary": "Images in, labels out.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/predictions/{model}": {"post": _predict(models, with_version=False)},
            "/predictions/{model}/{version}": {"post": _predict(models, with_version=True)},
            "/livez": {"get": _page("livez", "Whether the gateway answers at all.", _OBJECT)},
            "/readyz": {"get": _page("readyz", "Whether every model is ready, and what each lacks.", _OBJECT, _READY)},
            "/metrics": {"get": _page("metrics", "Metrics in Prometheus's text format.", None)},
            "/models": {"get": _page("models", f"Every model with its versions and states: {_states()}.", _OBJECT)},
            "/models/{name}": {
                "get": {
                    **_page(
                        "model",
                        "One model: effective contract, state, device and measured profile of each version.",
                        _OBJECT,
                        problems((errors.UnknownModel, *PAGE_REFUSALS)),
                    ),
                    "parameters": [_path("name", "A model's name.", _names(models))],
                }
            },
            "/openapi.json": {"get": _page("openapi", "This document.", _OBJECT)},
        },
        "components": {
            "schemas": _schemas(),
            "headers": {
                "RetryAfter": RETRY_AFTER,
                "RequestId": REQUEST_ID,
                "RateLimit": _RATE_LIMIT,
                "RateLimitPolicy": _RATE_LIMIT_POLICY,
                "Challenge": CHALLENGE,
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key from whoever runs the server."}
            },
        },
    }


_OBJECT: Schema = {"type": "object"}
_READY: Schema = {
    "503": {"description": "Not ready; the same document.", "content": {responses.JSON: {"schema": _OBJECT}}}
}


def _predict(models: Sequence[ModelVersion], *, with_version: bool) -> Schema:
    """The operation of one of the two prediction paths."""
    parameters = [_path("model", "A model's name.", _names(models)), *_query_parameters()]
    if with_version:
        versions = sorted({model.version for model in models})
        # No enum: aliases are names too, and come and go.
        named = _path("version", "One of the model's versions, or an alias of one.", [])
        named["schema"]["examples"] = [str(version) for version in versions]
        parameters.insert(1, named)
    else:
        parameters.append(_ROUTE_KEY)
    answer = {"schema": ref("Answer")}
    return {
        "operationId": "predict_version" if with_version else "predict",
        "summary": "Classify one image or several" + (", with one version." if with_version else "."),
        "security": [{}, {"key": []}],
        "parameters": parameters,
        "requestBody": {"required": True, "content": _bodies()},
        "responses": {
            "200": {
                "description": "At least one image was answered. msgpack in, msgpack out, or as Accept says.",
                "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}, **_LIMITS},
                "content": {responses.JSON: answer, responses.MSGPACK: answer},
            },
            **problems(kind for kind in responses.STATUS if kind not in NOT_FOR_PREDICTIONS),
        },
    }


def _bodies() -> Schema:
    """Each media type that is read, with what is in it."""
    several_in = {
        "application/json": ref("JsonRequest"),
        "multipart/form-data": {
            "type": "object",
            "description": "Files under any names, and the parameters.",
            "properties": _parameter_schemas(),
            "additionalProperties": {"type": "string", "format": "binary"},
        },
    }
    msgpack = ref("MsgpackRequest")
    return {
        media_type: {"schema": several_in.get(media_type, msgpack)}
        if media_type in several_in or "msgpack" in media_type
        else {"schema": {"description": "The bytes of one image: JPEG, PNG, WebP, GIF, TIFF or BMP."}}
        for media_type in payloads.MEDIA_TYPES
    }


def _page(name: str, summary: str, schema: Schema | None, more: Schema | None = None) -> Schema:
    """A GET that answers with `schema` as JSON, or with text (None); `more`: its other answers."""
    content = {"text/plain": {"schema": {"type": "string"}}} if schema is None else {responses.JSON: {"schema": schema}}
    answers = {"200": {"description": summary, "content": content}, **problems(PAGE_REFUSALS), **(more or {})}
    return {"operationId": name, "summary": summary, "responses": answers}


def problems(kinds: Iterable[type[Refusal]], *, with_limits: bool = True) -> Schema:
    """An answer per status of `kinds`, each with the codes that it may carry; `with_limits`: 429 tells the limit."""
    codes: dict[int, list[type[Refusal]]] = {}
    for kind in kinds:
        codes.setdefault(responses.STATUS[kind], []).append(kind)
    return {str(status): _problem(status, found, with_limits=with_limits) for status, found in sorted(codes.items())}


def _problem(status: int, kinds: Sequence[type[Refusal]], *, with_limits: bool) -> Schema:
    lines = [f"`{kind.code}`: {(kind.__doc__ or '').splitlines()[0]}" for kind in kinds if kind is not errors.Refusal]
    if errors.Refusal in kinds:
        lines.append(f"`{errors.Refusal.code}`: A fault of ours; the log has it under the request's id.")
    headers = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
    if status in _TRY_LATER:
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    if with_limits and errors.RateLimited in kinds:
        headers |= _LIMITS
    if errors.Unauthorized in kinds:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/Challenge"}
    schema = {"allOf": [ref("Problem"), {"properties": {"code": {"enum": [kind.code for kind in kinds]}}}]}
    return {"description": " ".join(lines), "headers": headers, "content": {responses.PROBLEM: {"schema": schema}}}


def _names(models: Sequence[ModelVersion]) -> list[str]:
    return sorted({model.name for model in models})


def _path(name: str, description: str, known: Sequence[str]) -> Schema:
    """A parameter in the path; `known` are the values that exist now, if any do."""
    schema: Schema = {"type": "string"}
    if known:
        schema["enum"] = list(known)
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _query_parameters() -> list[Schema]:
    return [{"name": name, "in": "query", "schema": schema} for name, schema in _parameter_schemas().items()]


def _parameter_schemas() -> Schema:
    """The parameters of a request, as the URL, a form, JSON and msgpack all take them."""
    found = {
        "top_k": {
            "type": "integer",
            "minimum": 1,
            "maximum": TOP_K_MAX,
            "description": "Classes in the answer; a model may allow fewer. Its contract has the default.",
        },
        "deadline_ms": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": DEADLINE_MS_MAX,
            "description": "Milliseconds from the arrival of the request; a model may allow less.",
        },
        "priority": {"type": "string", "enum": ["realtime", "batch"], "default": "realtime"},
    }
    assert tuple(found) == payloads.Parameters._fields
    return found


def ref(name: str) -> Schema:
    """A schema of the document, by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def struct(properties: Schema, required: Sequence[str] | None = None, **more: Any) -> Schema:
    """An object; every property is required unless `required` says which are."""
    return {"type": "object", "properties": properties, "required": list(required or properties), **more}


def _request(image: Schema, more: Schema | None = None) -> Schema:
    """A body of which exactly one of the sources is given."""
    sources = {"image": image, "images": {"type": "array", "items": image, "minItems": 1}, **(more or {})}
    return {
        "type": "object",
        "properties": {**sources, **_parameter_schemas()},
        "additionalProperties": False,
        "oneOf": [{"required": [source]} for source in sources],
    }


def _schemas() -> Schema:
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}}
    tensor = struct(
        {"shape": {**shape, "minItems": 3, "maxItems": 4}, "dtype": {"const": "uint8"}, "data": _BINARY},
        additionalProperties=False,
        description="Pixels as the model's slots hold them: uint8[h, w, c] or uint8[n, h, w, c], C-order.",
    )
    prediction = struct({"prediction": {"type": "array", "items": ref("Class")}})
    outputs = struct({"outputs": {"type": "object", "additionalProperties": ref("Tensor")}})
    error = struct({"error": struct({"code": {"type": "string"}, "detail": {"type": "string"}})})
    several = struct({"predictions": {"type": "array", "items": {"anyOf": [prediction, outputs, error]}}})
    envelope = struct(
        {
            "model": {"type": "string"},
            "version": {"type": "integer", "minimum": 1},
            "request_id": {"type": "string"},
            "timing_ms": {"type": "object", "additionalProperties": {"type": "number"}, "description": "Per stage."},
        }
    )
    text = {"type": "string"}
    return {
        "JsonRequest": _request({**_BASE64, "description": "base64, with or without data:image/…;base64, before it."}),
        "MsgpackRequest": _request(_BINARY, {"tensor": tensor}),
        "Class": struct({"class": text, "index": {"type": "integer", "minimum": 0}, "probability": {"type": "number"}}),
        "Tensor": struct(
            {
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                "dtype": text,
                "data": {
                    "anyOf": [{"type": "array", "items": {"type": ["number", "boolean"]}}, _BINARY],
                    "description": "Flat and in C-order: a list in JSON, little-endian bytes in msgpack.",
                },
            }
        ),
        "Answer": {
            "allOf": [envelope, {"anyOf": [prediction, outputs, several]}],
            "description": "One image: prediction or outputs. Several: predictions, in the order of the request.",
        },
        "Problem": struct(
            {
                "type": text,
                "title": text,
                "status": {"type": "integer"},
                "code": text,
                "detail": text,
                "request_id": text,
                "predictions": several["properties"]["predictions"],
            },
            ["type", "title", "status", "code", "detail", "request_id"],
            description="RFC 9457. predictions: the error of each image, where every one of several failed.",
        ),
    }
