"""The routes of the admin front, in one table: what is answered, what its document says, and what is allowed.

Every answer is a method of `gateway.admin.answers.Answers` by the route's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway import errors
from gateway.admin.documents import Nothing, ReloadWanted, VersionWanted
from gateway.lifecycle.desired import Want

if TYPE_CHECKING:
    from msgspec import Struct

    from gateway.errors import Refusal

_MODEL = (errors.UnknownModel,)
_FAILURES = (errors.InsufficientMemory, errors.LoadFailed, errors.MemoryNotGivenBack, errors.OperationFailed)
_CHANGE = (errors.UnknownModel, *_FAILURES, errors.Overloaded, errors.Draining)


class Route(NamedTuple):
    """One method of one path. `body`: None where none is read. `refusals`: those of its own. `long`: an operation."""

    method: str
    path: str
    name: str
    summary: str
    body: type[Struct] | None = None
    query: tuple[str, ...] = ()
    refusals: tuple[type[Refusal], ...] = ()
    long: bool = False


_W = ("wait",)

ROUTES = (
    Route("GET", "/admin/status", "status", "What the gateway is, serves, and has in flight."),
    Route("GET", "/admin/models", "models", "Every model that is known: what is wanted of it, its versions."),
    Route("GET", "/admin/models/{name}", "model", "One model.", refusals=_MODEL),
    Route("PUT", "/admin/models/{name}", "configure", "Want this of the model, whole.", Want, _W, _CHANGE, long=True),
    Route("DELETE", "/admin/models/{name}", "unload", "Serve the model, or one version of it, no longer.",
          query=("version", "wait"), refusals=_CHANGE, long=True),
    Route("POST", "/admin/models/{name}/versions", "load", "Serve a version, or what the repository and settings say.",
          VersionWanted, _W, _CHANGE, long=True),
    Route("POST", "/admin/models/{name}/reload", "reload", "Read the files again; the old ones serve until then.",
          ReloadWanted, _W, _CHANGE, long=True),
    Route("GET", "/admin/workers", "workers", "Every worker: its device, process, models, memory, deaths."),
    Route("POST", "/admin/workers/{index}/restart", "restart", "Start a worker's process anew.", Nothing, _W,
          (errors.NotFound, *_CHANGE[1:]), long=True),
    Route("POST", "/admin/evaluate", "evaluate", "Look at the repository now.", Nothing, _W, _CHANGE[1:], long=True),
    Route("GET", "/admin/operations", "operations", "Operations under way, and the last that ended."),
    Route("GET", "/admin/operations/{id}", "operation", "One operation; with `wait`, once it ended.", query=_W,
          refusals=(errors.NotFound,)),
    Route("POST", "/admin/drain", "drain", "Go down as on SIGTERM: answer what was accepted, then end.", Nothing),
    Route("GET", "/admin/openapi.json", "openapi", "This document."),
)  # fmt: skip
"""Every route there is."""

_SPLIT = {path: tuple(path.split("/")[1:]) for path in dict.fromkeys(route.path for route in ROUTES)}
_BY_PATH = {path: {route.method: route for route in ROUTES if route.path == path} for path in _SPLIT}


def find(path: str) -> tuple[dict[str, Route], dict[str, str]]:
    """The routes of a path, by method, and what stands in its places. The path is taken as it is. Raises NotFound."""
    segments = tuple(path.split("/")[1:])
    for template, steps in _SPLIT.items():
        if len(steps) != len(segments):
            continue
        parameters = {}
        for step, segment in zip(steps, segments, strict=True):
            if step.startswith("{") and segment:
                parameters[step[1:-1]] = segment
            elif step != segment:
                break
        else:
            return _BY_PATH[template], parameters
    raise errors.NotFound("there is nothing here; /admin/openapi.json lists what there is")
