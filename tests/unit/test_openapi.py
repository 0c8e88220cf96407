"""The OpenAPI document is valid, complete, and says what the code does."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import openapi_spec_validator
import pytest

from gateway import errors
from gateway.calls import Classes
from gateway.http import openapi, payloads, responses
from gateway.models.repository import ModelVersion
from gateway.models.spec import parse_contract

CONTRACT = parse_contract('[input]\nwidth = 4\nheight = 4\n[output]\ntask = "classification"\n')


def model(name, version):
    return ModelVersion(name, version, Path("/nowhere"), CONTRACT, ())


@pytest.fixture(scope="module")
def document():
    return json.loads(json.dumps(openapi.document([model("cats", 2), model("dogs", 1), model("dogs", 3)])))


def check(document, schema, instance):
    """Validate an instance against a schema of the document."""
    resolver = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    jsonschema.Draft202012Validator(resolver).validate(instance)


def refused(document, schema, instance):
    with pytest.raises(jsonschema.ValidationError):
        check(document, schema, instance)


@pytest.mark.slow
def test_it_is_valid(document):
    openapi_spec_validator.validate(document)
    openapi_spec_validator.validate(openapi.document([]))


def test_every_path_is_there(document):
    assert {(path, method) for path, item in document["paths"].items() for method in item} == {
        ("/predictions/{model}", "post"),
        ("/predictions/{model}/{version}", "post"),
        ("/livez", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
        ("/models", "get"),
        ("/models/{name}", "get"),
        ("/openapi.json", "get"),
    }
    operations = [item for path in document["paths"].values() for item in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_predictions_take_every_body_and_parameter(document):
    operation = document["paths"]["/predictions/{model}/{version}"]["post"]
    assert set(operation["requestBody"]["content"]) == set(payloads.MEDIA_TYPES)
    by_name = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert by_name["model"]["schema"]["enum"] == ["cats", "dogs"]
    assert by_name["version"]["schema"]["examples"] == ["1", "2", "3"]
    assert {name for name, found in by_name.items() if found["in"] == "query"} == set(payloads.Parameters._fields)


def test_a_key_may_be_sent_with_predictions_only(document):
    for path, item in document["paths"].items():
        for operation in item.values():
            wanted = [{}, {"key": []}] if path.startswith("/predictions/") else None
            assert operation.get("security") == wanted
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_every_refusal_is_named_where_it_can_happen(document):
    answers = document["paths"]["/predictions/{model}"]["post"]["responses"]
    for kind, status in responses.STATUS.items():
        if kind in openapi.NOT_FOR_PREDICTIONS:
            continue
        assert f"`{kind.code}`" in answers[str(status)]["description"]
        schema = answers[str(status)]["content"]["application/problem+json"]["schema"]
        assert kind.code in schema["allOf"][1]["properties"]["code"]["enum"]
    for status in ("429", "503"):
        assert "Retry-After" in answers[status]["headers"]
    assert {"RateLimit", "RateLimit-Policy"} <= set(answers["200"]["headers"])
    assert {"RateLimit", "RateLimit-Policy"} <= set(answers["429"]["headers"])
    assert "WWW-Authenticate" in answers["401"]["headers"]
    assert "404" in document["paths"]["/models/{name}"]["get"]["responses"]


@pytest.mark.parametrize(
    "outcome",
    [
        Classes([3, 1], [0.75, 0.25]),
        {"features": np.zeros((2, 2), np.float32), "flags": np.zeros(3, np.bool_)},
        errors.UndecodableImage("no image"),
    ],
    ids=["classes", "outputs", "error"],
)
def test_real_answers_fit(document, outcome):
    found = json.loads(responses.encode(responses.answer(outcome, (), responses.JSON), responses.JSON))
    envelope = {"model": "cats", "version": 2, "request_id": "x", "timing_ms": {"read": 0.1, "total": 2}}
    check(document, "Answer", {**envelope, "predictions": [found, found]})
    if isinstance(outcome, errors.Refusal):
        refused(document, "Answer", {**envelope, **found})
        outcome.extra = {"predictions": [found]}
        response = responses.problem(outcome, "x")
        check(document, "Problem", json.loads(response.body))
    else:
        check(document, "Answer", {**envelope, **found})


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"image": "AA=="}, True),
        ({"images": ["AA==", "AA=="], "top_k": 3, "deadline_ms": 5.5, "priority": "batch"}, True),
        ({}, False),
        ({"images": []}, False),
        ({"image": "AA==", "images": ["AA=="]}, False),
        ({"image": "AA==", "top_k": 0}, False),
        ({"image": "AA==", "deadline_ms": 0}, False),
        ({"image": "AA==", "deadline_ms": 600_001}, False),
        ({"image": "AA==", "priority": "high"}, False),
        ({"image": "AA==", "topk": 3}, False),
    ],
)
def test_the_schema_and_the_reader_agree(document, body, fits):
    raw = memoryview(bytearray(json.dumps(body).encode()))
    if fits:
        check(document, "JsonRequest", body)
        payloads.read_json(raw, 4)
    else:
        refused(document, "JsonRequest", body)
        with pytest.raises(errors.BadRequest):
            payloads.read_json(raw, 4)
