"""What the admin front answers: every route, and how long work is told of."""

from __future__ import annotations

import http
import re
import threading

import jsonschema
import msgspec
import openapi_spec_validator
import pytest

from gateway import errors
from gateway.admin.openapi import document as openapi_document
from gateway.admin.routes import ROUTES
from gateway.lifecycle.desired import Shadow, Want
from tests.support.admin import METHODS, PATHS, PLACES
from tests.support.gateways import PROBLEM, assert_problem, wait_until

WHOLE = Want(
    versions=(1, 3), default=1, aliases={"old": 1}, weights={1: 9.0, 3: 1.5}, shadow=Shadow(version=3, share=0.5)
)


# -- routes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_every_path_takes_its_methods_and_names_them(admin, method, path):
    allowed = {
        route.method for route in ROUTES if re.sub(r"\{\w+\}", lambda found: PLACES[found[0]], route.path) == path
    }
    if "GET" in allowed:
        allowed.add("HEAD")
    answer = admin.ask(method, path)
    if method in allowed:
        assert answer.status in ({404} if path.startswith("/admin/operations/") else {200, 202}), answer
    else:
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == allowed


def test_pages_say_what_the_changes_say(admin):
    assert admin.ask("GET", "/admin/models").document == {"models": admin.changes.models()}
    assert admin.ask("GET", "/admin/models/m").document == admin.changes.model("m")
    assert admin.ask("GET", "/admin/workers").document == {"workers": admin.changes.workers()}
    assert_problem(admin.ask("GET", "/admin/models/other"), 404, "unknown_model")


def test_status_has_it_all(admin):
    admin.changes.outcome = None
    begun = admin.ask("POST", "/admin/evaluate").document
    found = admin.ask("GET", "/admin/status").document
    assert found["models"] == admin.changes.models()
    assert found["workers"] == admin.changes.workers()
    assert [operation["id"] for operation in found["operations"]] == [begun["id"]]
    assert found["status"] == "ready"


@pytest.mark.parametrize(
    ("method", "path", "body", "call"),
    [
        ("POST", "/admin/models/m/versions", {}, ("load", "m", None)),
        ("POST", "/admin/models/m/versions", None, ("load", "m", None)),
        ("POST", "/admin/models/m/versions", {"version": 2}, ("load", "m", (2,))),
        ("POST", "/admin/models/m/versions", {"version": 2, "default": True},
         ("load", "m", (2,), 2)),
        ("PUT", "/admin/models/m", {}, ("configure", "m", Want())),
        ("PUT", "/admin/models/m",
         {"versions": [1, 3], "default": 1, "aliases": {"old": 1}, "weights": {"1": 9, "3": 1.5},
          "shadow": {"version": 3, "share": 0.5}},
         ("configure", "m", WHOLE)),
        ("PUT", "/admin/models/m", {"versions": []}, ("configure", "m", Want(versions=()))),
        ("DELETE", "/admin/models/m", None, ("unload", "m", None)),
        ("DELETE", "/admin/models/m?version=3", None, ("unload", "m", 3)),
        ("POST", "/admin/models/m/reload", None, ("reload", "m", None)),
        ("POST", "/admin/models/m/reload", {"version": 1}, ("reload", "m", 1)),
        ("POST", "/admin/evaluate", {}, ("evaluate",)),
        ("POST", "/admin/workers/0/restart", None, ("restart", 0)),
    ],
)  # fmt: skip
def test_every_change_is_asked_for_as_it_was_said(admin, method, path, body, call):
    answer = admin.ask(method, path, body)
    assert admin.changes.calls == [call]
    assert answer.status == 202 if answer.document["state"] != "succeeded" else 200
    found = admin.ask("GET", answer.headers["location"])
    assert found.document == answer.document


def test_drain(admin):
    for _ in range(2):
        answer = admin.ask("POST", "/admin/drain")
        assert (answer.status, answer.document) == (202, {"status": "draining"})
    assert admin.changes.draining


# -- long work -----------------------------------------------------------------------------------------------------


def test_long_work_is_told_of_at_once(admin):
    admin.changes.outcome = None
    answer = admin.ask("POST", "/admin/models/m/reload")
    assert answer.status == 202
    document = answer.document
    assert answer.headers["location"] == f"/admin/operations/{document['id']}"
    assert (document["state"], document["stage"], document["share"]) == ("running", "loading", 0.5)
    (listed,) = admin.ask("GET", "/admin/operations").document["operations"]
    assert listed == document


def test_who_waits_hears_of_the_end(admin):
    admin.changes.outcome = None
    answers = []
    asking = threading.Thread(target=lambda: answers.append(admin.ask("POST", "/admin/models/m/reload?wait=30")))
    asking.start()
    operation = wait_until(lambda: next(iter(admin.changes.operations), None), "it began")
    admin.call(admin.changes.end, operation)
    asking.join()
    (answer,) = answers
    assert (answer.status, answer.document["state"]) == (200, "succeeded")
    assert answer.document["result"] == {"seconds": 0.5}


def test_who_waits_too_short_hears_that_it_goes_on(admin):
    admin.changes.outcome = None
    answer = admin.ask("POST", "/admin/models/m/reload?wait=0.01")
    assert (answer.status, answer.document["state"]) == (202, "running")
    answer = admin.ask("GET", answer.headers["location"] + "?wait=0.01")
    assert (answer.status, answer.document["state"]) == (200, "running")


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(errors.OperationFailed("the worker died twice"), 500), (errors.ModelNotReady("it was refused"), 503)],
)
def test_who_waits_for_what_fails_gets_its_error(admin, refusal, status):
    admin.changes.outcome = refusal
    problem = assert_problem(admin.ask("POST", "/admin/models/m/reload?wait=30"), status, refusal.code)
    assert problem["detail"] == refusal.detail
    assert problem["operation"]["error"] == {"code": refusal.code, "detail": refusal.detail}
    found = admin.ask("GET", f"/admin/operations/{problem['operation']['id']}")
    assert (found.status, found.document["state"]) == (200, "failed")


def test_an_error_that_has_no_status_of_its_own_is_still_told(admin):
    class Unheard(errors.Refusal):
        code = "unheard_of"

    admin.changes.outcome = Unheard("nobody knows this one")
    problem = assert_problem(admin.ask("POST", "/admin/models/m/reload?wait=30"), 500, "operation_failed")
    assert problem["operation"]["error"]["code"] == "unheard_of"


def test_what_is_refused_before_it_begins_is_no_operation(admin):
    admin.changes.refusal = errors.Overloaded("too many operations are waiting", retry_after_s=5)
    assert_problem(admin.ask("POST", "/admin/models/m/reload"), 503, "overloaded", retry=True)
    assert not list(admin.changes.operations)


# -- what it says of itself ----------------------------------------------------------------------------------------


def test_request_ids_come_back(admin):
    answer = admin.ask("GET", "/admin/models/other", None, ("X-Request-Id", "mine-7"))
    assert (answer.headers["x-request-id"], answer.document["request_id"]) == ("mine-7", "mine-7")


def test_refusals_are_counted(admin):
    before = dict(admin.refusals)
    admin.ask("GET", "/admin/models/other")
    assert admin.refusals["unknown_model"] == before.get("unknown_model", 0) + 1


def test_a_fault_of_ours_is_500_and_says_nothing(admin, monkeypatch):
    monkeypatch.setattr(admin.changes, "models", lambda: 1 / 0)
    problem = assert_problem(admin.ask("GET", "/admin/models"), 500, "internal")
    assert "division" not in msgspec.json.encode(problem).decode()


@pytest.fixture(scope="module")
def described(admin_front):
    return admin_front.ask("GET", "/admin/openapi.json").document


def test_the_document_is_valid(described):
    openapi_spec_validator.validate(described)
    assert described == msgspec.json.decode(msgspec.json.encode(openapi_document()))


def test_the_document_has_every_route(described):
    found = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
    assert found == {(route.method, route.path) for route in ROUTES}
    names = [operation["operationId"] for item in described["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_what_is_answered_is_as_the_document_says(admin, described, route):
    path = re.sub(r"\{\w+\}", lambda found: PLACES[found[0]], route.path)
    answers = described["paths"][route.path][route.method.lower()]["responses"]
    seen = [admin.ask(route.method, path), admin.ask(route.method, path, None, ("Origin", "x"))]
    seen += [admin.ask(route.method, f"{path}?x=1")]
    if route.long:
        seen.append(admin.ask(route.method, f"{path}?wait=1"))
        admin.changes.outcome = errors.OperationFailed("the worker died twice")
        seen.append(admin.ask(route.method, f"{path}?wait=1"))
    for answer in seen:
        content = answers[str(answer.status)]["content"]
        assert answer.headers["content-type"] in content, (answer.status, http.HTTPStatus(answer.status).phrase)
        schema = {**content[answer.headers["content-type"]]["schema"], "components": described["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.document)
        assert (answer.headers["content-type"] == PROBLEM) == (answer.status >= 400)
