"""The pages that say how it stands: each says what is so, in the form that it promises."""

from __future__ import annotations

import re

import jsonschema
import openapi_spec_validator
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import STAGES, TABLE
from tests.support.gateways import assert_problem, digest, gateway, pixels, png, wait_until, write_model
from tests.support.graphs import means

TYPES = {"counter", "gauge", "histogram"}


def test_livez(plain):
    answer = plain.ask("GET", "/livez")
    assert (answer.status, answer.document) == (200, {"status": "alive"})


def test_readyz_names_every_model(plain):
    document = plain.ask("GET", "/readyz").document
    assert document["status"] == "ready"
    assert document["decoders_ready"] >= 1
    named = {(model["name"], model["version"], model["state"]) for model in document["models"]}
    assert named == {(name, 1, "ready") for name in ("few", "m", "ranked", "raw")} | {("m", 3, "ready")}


def test_models_lists_versions_and_the_default(plain):
    models = {model["name"]: model for model in plain.ask("GET", "/models").document["models"]}
    assert set(models) == {"few", "m", "ranked", "raw"}
    assert models["m"]["default_version"] == 3
    assert models["m"]["versions"] == [{"version": 1, "state": "ready"}, {"version": 3, "state": "ready"}]


def test_a_model_has_its_contract_state_device_and_profile(plain):
    document = plain.ask("GET", "/models/ranked").document
    assert (document["name"], document["default_version"]) == ("ranked", 1)
    (version,) = document["versions"]
    assert (version["state"], version["label_count"]) == ("ready", 5)
    assert version["contract"]["input"]["resize"] == "crop", "defaults are part of the effective contract"
    assert version["contract"]["output"]["top_k"] == 3
    (worker,) = version["workers"]
    assert (worker["device"], worker["provider"]) == ("cpu", "fake")
    assert [point["size"] for point in worker["profile"]] == [1, 2, 4, 8, 16, 32]
    assert all(0 <= point["p50_ms"] <= point["p99_ms"] for point in worker["profile"])
    assert set(worker["outputs"]) == {"index", "probability"}


# -- OpenAPI -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(plain):
    return plain.ask("GET", "/openapi.json").document


@pytest.mark.slow
def test_the_openapi_document_is_valid(document):
    openapi_spec_validator.validate(document)


def test_every_documented_path_answers_as_documented(plain, document):
    for path, item in document["paths"].items():
        for method, operation in item.items():
            real = path.replace("{model}", "m").replace("{name}", "m").replace("{version}", "1")
            answer = plain.ask(method.upper(), real, png(1) if method == "post" else b"", Content_Type="image/png")
            assert answer.status == 200, real
            assert_documented(document, operation, answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predictions/m", b"no image"),
        ("/predictions/m", b""),
        ("/predictions/none", b"x"),
        ("/predictions/m?x=1", b"x"),
    ],
)
def test_refusals_are_as_documented(plain, document, path, body):
    answer = plain.ask("POST", path, body)
    assert answer.status >= 400
    assert_documented(document, document["paths"]["/predictions/{model}"]["post"], answer)


def assert_documented(document, operation, answer):
    content = operation["responses"][str(answer.status)]["content"]
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in content, (kind, list(content))
    if kind.endswith("json"):
        schema = {**content[kind]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.document)


# -- metrics -------------------------------------------------------------------------------------------------------


UNSEEN = {
    "penstock_gpu_memory_bytes",
    "penstock_gpu_memory_used_bytes",
    "penstock_gpu_power_watts",
    "penstock_operations",
    "penstock_shadow_difference",
    "penstock_shadow_images",
    "penstock_unload_given_back_ratio",
}
"""Rows of what happens when an operator changes something, and of GPUs."""


def test_metrics_hold_every_row_of_the_table_and_nothing_else(plain):
    plain.predict(png(1))
    plain.predict(b"no image")
    answer = plain.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert set(families) == {row.name for row in TABLE}
    for row in TABLE:
        family = families[row.name]
        assert (family.type, family.documentation) == (row.kind, row.help)
        assert row.kind in TYPES
        assert family.samples or row.name in UNSEEN, f"{row.name} has no sample after a request"
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(row.labels)


def test_a_request_is_counted_in_every_stage(plain):
    before = plain.metrics()
    assert plain.predict(png(1)).top == digest(pixels(1))
    assert plain.predict(b"no image").status == 415
    after = plain.metrics()

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert all(grown("penstock_stage_seconds_count", "m/3", stage) >= 1 for stage in STAGES)
    assert grown("penstock_request_seconds_count", "m/3") == 1
    assert grown("penstock_batch_images_count", "m/3", "idle") == 1
    assert grown("penstock_batch_images_count", "m/3", "full") == 0
    assert grown("penstock_images_total", "ok", "m/3") == 1
    assert grown("penstock_requests_total", "ok", "m/3") == 1
    assert grown("penstock_requests_total", "unsupported_media_type", "m/3") == 1
    assert grown("penstock_requests_total", "ok", "m/1") == 0


def test_labels_do_not_grow_with_what_clients_make_up(plain):
    def make_up(number: int) -> None:
        plain.predict(png(1), f"model-{number}")
        plain.ask("GET", f"/path-{number}")
        plain.ask(f"METHOD{number}", "/livez")
        plain.ask("GET", f"/models/{number}", X_Request_Id=f"id-{number}")

    make_up(0)
    before = plain.metrics()
    for number in range(1, 50):
        make_up(number)
    after = plain.metrics()
    assert set(after) == set(before)
    assert after["penstock_refusals_total", "unknown_model"] == before["penstock_refusals_total", "unknown_model"] + 98


# -- a model that is refused ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_refused_model_says_why_and_keeps_it_unready_while_others_serve(tmp_path):
    write_model(tmp_path, "good")
    write_model(tmp_path, "bad", fake={"fail_pixel": [0, 0, 0]})
    for name, graph, labels in (("garbage", b"garbage", "a"), ("labels", means().SerializeToString(), "a\nb")):
        folder = tmp_path / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.toml").write_text("[input]\nwidth = 4\nheight = 4\n[output]\ntask = 'classification'\n")
        (folder / "model.onnx").write_bytes(graph)
        (folder / "labels.txt").write_text(labels)
    with gateway(tmp_path, ready=False) as running:
        wait_until(lambda: running.predict(png(1), "good").status == 200, "the good model serves")
        answer = running.ask("GET", "/readyz")
        assert (answer.status, answer.document["status"]) == (503, "not_ready")
        states = {model["name"]: model for model in answer.document["models"]}
        assert states["good"]["state"] == "ready"
        assert states["bad"]["state"] == "failed"
        assert re.search(r"fail_pixel.*choose", states["bad"]["detail"])
        assert re.search(r"model.onnx.*export it again", states["garbage"]["detail"])
        assert re.search(r"labels.txt names 2 classes, the model has 3", states["labels"]["detail"])
        assert_problem(running.predict(png(1), "bad"), 503, "model_not_ready")  # no use to try again
        assert running.predict(png(1), "good").top == digest(pixels(1))
        assert running.wait_event("model_refused", model="bad")["detail"] == states["bad"]["detail"]
        version = running.ask("GET", "/models/bad").document["versions"][0]
        assert (version["state"], version["workers"]) == ("failed", [])
