"""A small model for cards and for the CPU, workers that have it, and what they answer."""

import contextlib

import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.errors import InvalidModel
from gateway.models.spec import parse_contract
from tests.support import graphs
from tests.support.worker_process import OK, SLOTS, spawning

SIDE, CLASSES = 32, 10
SIZES = (1, 3, 4)
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
"""Of scores that are of the size of 1; float32 without tf32."""
RNG = np.random.default_rng(17)
WEIGHTS = {
    "kernel": RNG.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32),
    "matrix": RNG.normal(0, 0.5, (8, CLASSES)).astype(np.float32),
}
CONTRACT = """backend = "{backend}"
[input]
width = {side}
height = {side}
mean = [127.0, 127.0, 127.0]
std = [64.0, 64.0, 64.0]
[output]
task = "raw"
[batching]
sizes = {sizes}
[gpu]
precision = "{precision}"
tf32 = false
"""


def write(folder, backend, precision, sizes=SIZES):
    """(contract, directory) of a convolution, a mean and a layer of classes."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["y"]),
    ]
    model = graphs.draw(
        nodes,
        {"x": (TensorProto.FLOAT, ["N", 3, SIDE, SIDE])},
        {"y": (TensorProto.FLOAT, ["N", CLASSES])},
        WEIGHTS,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    text = CONTRACT.format(backend=backend, precision=precision, side=SIDE, sizes=list(sizes))
    (folder / "model.toml").write_text(text)
    return parse_contract(text), folder


@contextlib.contextmanager
def worker(model, device):
    """(worker, its input slots, its output slots); skipped where the backend is not installed."""
    with spawning() as start:
        child = start(model, device=device)
        child.control.settimeout(250)
        said = child.born()
        loaded = next((each for each in said if hasattr(each, "fields")), None)
        if loaded is None:
            detail = next((each.detail for each in said if hasattr(each, "detail")), "it died")
            skip_if_missing(detail)
            pytest.fail(f"the worker on {device} refused the model: {detail}")
        served = child.models[0]
        yield child, served.pixels, served.outputs(loaded)["y"]


def skip_if_missing(detail):
    """TensorRT is not on every machine with a card; whatever else is refused is a failure."""
    if "tensorrt" in detail and "does not import here" in detail:
        pytest.skip(detail)


@contextlib.contextmanager
def may_be_missing():
    """Around what opens a backend by itself."""
    try:
        yield
    except InvalidModel as refusal:
        skip_if_missing(str(refusal))
        raise


def right_answers(tmp_path, pixels):
    """float32[n, classes] of uint8[n, side, side, 3], by a worker on the CPU, one at a time."""
    found = []
    with worker(write(tmp_path / "cpu", "onnxruntime", "float32"), "cpu") as (child, slots, outputs):
        for image in pixels:
            slots[0] = image
            assert child.run([0], size=1).statuses == [OK]
            found.append(outputs[0].copy())
    return np.stack(found)


def noise(count=SLOTS):
    """uint8[count, side, side, 3], each of another brightness, so that answers differ."""
    images = RNG.integers(0, 64, (count, SIDE, SIDE, 3))
    return (images + np.linspace(0, 190, count).astype(int)[:, None, None, None]).astype(np.uint8)
