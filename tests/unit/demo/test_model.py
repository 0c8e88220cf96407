import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import skimage
from PIL import Image

from gateway.demo import model
from gateway.errors import InvalidModel
from gateway.models.spec import parse_contract
from gpuworker import graph

PHOTOS = Path(skimage.__file__).parent / "data"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    steps = []
    directory = model.build(tmp_path_factory.mktemp("repository"), lambda *step: steps.append(step))
    return directory, steps


@pytest.fixture(scope="module")
def contract(built):
    return parse_contract((built[0] / "model.toml").read_text())


@pytest.fixture(scope="module")
def session(built, contract):
    ready = graph.prepare(built[0] / "model.onnx", contract)
    return onnxruntime.InferenceSession(ready.content, providers=["CPUExecutionProvider"])


def answer(session, contract, photo):
    """Class probabilities for a photo, by a plain Pillow pipeline that does what the contract says."""
    side, kept = contract.input.width, contract.input.crop_fraction
    with Image.open(PHOTOS / photo) as opened:
        image = opened.convert("RGB")
    shorter = min(image.size) * kept
    left, top = (image.width - shorter) / 2, (image.height - shorter) / 2
    kernel = Image.Resampling[contract.input.resample.upper()]
    image = image.resize((side, side), kernel, box=(left, top, left + shorter, top + shorter))
    scores = session.run(None, {session.get_inputs()[0].name: np.asarray(image)[None]})[0][0]
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


@pytest.mark.slow
def test_it_knows_a_cup_of_coffee(built, session, contract):
    labels = (built[0] / "labels.txt").read_text().split("\n")
    shares = answer(session, contract, "coffee.png")
    assert labels[int(shares.argmax())] == "espresso"
    assert shares.max() == pytest.approx(0.951, abs=0.01)


@pytest.mark.slow
def test_it_knows_a_cat(built, session, contract):
    labels = (built[0] / "labels.txt").read_text().split("\n")
    shares = answer(session, contract, "chelsea.png")
    assert [labels[place] for place in np.argsort(-shares)[:3]] == ["tiger cat", "Egyptian cat", "tabby"]
    assert shares[282] == pytest.approx(0.385, abs=0.01)


@pytest.mark.slow
def test_the_file_is_portable_onnx_with_a_free_batch_axis(built, session):
    loaded = onnx.load(built[0] / "model.onnx")
    assert [(entry.domain, entry.version) for entry in loaded.opset_import] == [("", 17)]
    assert {node.domain for node in loaded.graph.node} == {""}
    assert "BatchNormalization" not in {node.op_type for node in loaded.graph.node}
    assert sum(node.op_type == "Conv" for node in loaded.graph.node) == 49
    pixels = np.zeros((3, 224, 224, 3), np.uint8)
    assert session.run(None, {session.get_inputs()[0].name: pixels})[0].shape == (3, 1000)


@pytest.mark.slow
def test_building_again_changes_nothing_and_repairs_what_is_damaged(built):
    directory, steps = built
    assert [step for step, _ in steps] == ["weights", "graph", "write", "ready"]
    assert [share for _, share in steps] == sorted(share for _, share in steps)
    assert {path.name for path in directory.parent.iterdir()} == {"1"}
    assert {path.name for path in directory.iterdir()} == {"model.onnx", "model.toml", "labels.txt"}
    before = (directory / "model.onnx").stat()

    again = []
    repository = directory.parent.parent
    assert model.build(repository, lambda *step: again.append(step)) == directory
    assert again == [("ready", 1.0)]
    assert (directory / "model.onnx").stat().st_ino == before.st_ino

    (directory / "labels.txt").write_text("cut")
    model.build(repository, lambda *step: None)
    assert (directory / "labels.txt").read_text().count("\n") == 1000
    assert {path.name for path in directory.parent.iterdir()} == {"1"}


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "_weights_file", lambda: tmp_path / "weights")
    monkeypatch.setattr(model, "read_weights", lambda path: {})
    monkeypatch.setattr(model, "_graph", lambda weights: "not bytes")
    with pytest.raises(TypeError):
        model.build(tmp_path / "repository", lambda *step: None)
    assert list((tmp_path / "repository" / model.NAME).iterdir()) == []


def test_labels_are_a_thousand_different_names():
    names = model._labels().split("\n")
    assert names.pop() == ""
    assert len(names) == len(set(names)) == 1000
    assert all(name == name.strip() and name for name in names)
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 285: "Egyptian cat", 504: "coffee mug", 967: "espresso"}
    assert {place: names[place] for place in known} == known


def test_folding_is_convolution_then_normalisation():
    rng = np.random.default_rng(0)
    weights = {"c.weight": rng.standard_normal((2, 3, 1, 1)).astype(np.float32)}
    for part in ("weight", "bias", "running_mean", "running_var"):
        weights[f"n.{part}"] = rng.uniform(0.5, 2, 2).astype(np.float32)
    kernel, bias = model.fold(weights, "c", "n")
    pixel = rng.standard_normal(3)
    plain = weights["c.weight"][:, :, 0, 0] @ pixel - weights["n.running_mean"]
    plain = plain / np.sqrt(weights["n.running_var"] + 1e-3) * weights["n.weight"] + weights["n.bias"]
    np.testing.assert_allclose(kernel[:, :, 0, 0] @ pixel + bias, plain, rtol=1e-5)


def test_a_missing_package_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(model.metadata, "files", missing)
    with pytest.raises(InvalidModel, match=r"needs the package .*; install penstock\[demo\]"):
        model._weights_file()


def test_a_missing_writer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InvalidModel, match=r"with the package onnx; install penstock\[demo\]"):
        model._graph({})


def test_an_empty_package_is_refused(monkeypatch):
    monkeypatch.setattr(model.metadata, "files", lambda name: None)
    with pytest.raises(InvalidModel, match="holds no weights"):
        model._weights_file()


@pytest.mark.slow
def test_other_weights_are_refused(monkeypatch):
    monkeypatch.setattr(model, "_WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(InvalidModel, match="are not the published ones"):
        model._weights_file()


def test_the_null_model_is_a_contract_and_nothing_else(tmp_path):
    directory = model.write_null(tmp_path, width=32, height=16)
    assert directory == tmp_path / "null" / "1"
    assert [path.name for path in directory.iterdir()] == ["model.toml"]
    contract = parse_contract((directory / "model.toml").read_text())
    assert contract.input.shape == (16, 32, 3)
    assert (contract.backend, contract.input.resize, contract.output.task) == ("fake", "stretch", "classification")
    assert contract.fake.class_count == 1000

    before = (directory / "model.toml").stat().st_ino
    model.write_null(tmp_path, width=32, height=16)
    assert (directory / "model.toml").stat().st_ino == before
    model.write_null(tmp_path, base_ms=2, image_ms=0.5)
    changed = parse_contract((directory / "model.toml").read_text())
    assert (changed.fake.base_ms, changed.fake.image_ms, changed.input.width) == (2, 0.5, 224)
    assert json.dumps([path.name for path in directory.parent.iterdir()]) == '["1"]'
