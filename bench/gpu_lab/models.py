"""The models that are measured, written as a user's repository would have them.

ResNet-50 and GoogLeNet come from the `onnx` wheel, as graphs whose weights are constants and whose batch is 1. Here
they get random weights of a trained network's size (a card draws less power on constants) and a free batch axis: for
speed, not for answers. EfficientNet-Lite0 has its real weights.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

LIGHT = {"resnet50": "light_resnet50.onnx", "googlenet": "light_inception_v1.onnx"}

_CONTRACT = """backend = "{backend}"
[input]
width = {side}
height = {side}
resize = "crop"
{normalise}
[output]
task = "{task}"
{output}
[batching]
sizes = {sizes}
[gpu]
precision = "{precision}"
optimization_level = {optimization_level}
[limits]
queue_max = 8192
images_max = 256
[residency]
devices = ["{device}"]
"""

_NORMALISE = {
    "efficientnet_lite0": 'resample = "bicubic"\nmean = [127.0, 127.0, 127.0]\nstd = [128.0, 128.0, 128.0]',
}
_IMAGENET = "mean = [123.675, 116.28, 103.53]\nstd = [58.395, 57.12, 57.375]"
_TOPK_TAKES_INPUT = 10
"""The opset since which TopK takes its k as an input, not as an attribute."""
NULL_SIDE = 32
"""Pixels of the sides of what the null model takes."""
_TINY_CHANNELS, _TINY_CLASSES = 8, 10


class Case(NamedTuple):
    """One model on one backend. `precision` counts on GPUs only."""

    model: str
    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.model} {self.backend} {self.precision}"

    @property
    def slug(self) -> str:
        """As figures and files are called."""
        return str(self).replace(" ", "_")

    @classmethod
    def parse(cls, text: str) -> Case:
        """Of what `str` gives."""
        return cls(*text.split(" "))


def write(
    folder: Path,
    case: Case,
    sizes: Sequence[int],
    *,
    side: int,
    device: str = "cuda:0",
    task: str = "classification",
    optimization_level: int = 3,
    ranked: int = 0,
) -> Path:
    """Write the case's model below `folder` as a repository, and return the directory of its version.

    `ranked`: append a TopK of so many classes to the graph, whose outputs are then "probability" and "place".
    Raises: InvalidModel, FileNotFoundError, ImportError: a model's weights or graph are not here.
    """
    shared = folder.parent / "graphs" / f"{case.model}{f'_top{ranked}' if ranked else ''}.onnx"
    if not shared.exists():
        shared.parent.mkdir(parents=True, exist_ok=True)
        part = shared.with_suffix(f".{os.getpid()}")
        part.write_bytes(_graph(case.model, side, ranked))
        part.rename(shared)
    directory = folder / case.model / "1"
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / "model.onnx"
    target.unlink(missing_ok=True)
    os.link(shared, target)
    activation = 'activation = "softmax"' if case.model == "efficientnet_lite0" and task == "classification" else ""
    text = _CONTRACT.format(
        backend=case.backend,
        side=side if case.model == "tiny" else 224,
        normalise=_NORMALISE.get(case.model, _IMAGENET),
        task=task,
        output=activation,
        sizes=list(sizes),
        precision=case.precision,
        optimization_level=optimization_level,
        device=device,
    )
    (directory / "model.toml").write_text(text)
    return directory


def write_null(folder: Path, *, device: str = "cpu") -> None:
    """A model that does nothing, on another device than the others."""
    directory = folder / "null" / "1"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.toml").write_text(
        f'backend = "fake"\n[input]\nwidth = {NULL_SIDE}\nheight = {NULL_SIDE}\n[output]\ntask = "classification"\n'
        f'[fake]\nclass_count = 10\n[residency]\ndevices = ["{device}"]\n'
    )


def _graph(name: str, side: int, ranked: int) -> bytes:
    if name == "efficientnet_lite0":
        model = onnx.load_model_from_string(_efficientnet())
    elif name == "tiny":
        model = _tiny(side)
    else:
        light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / LIGHT[name]
        model = onnx.load(light)
        _give_weights(model)
        _free_batch_axis(model)
    if ranked:
        _rank(model, ranked)
    content: bytes = model.SerializeToString()
    return content


def _efficientnet() -> bytes:
    import tempfile  # noqa: PLC0415 - with the demo's parts, which may be missing

    from gateway.demo import model  # noqa: PLC0415 - needs the demo extra

    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        return (model.build(Path(folder), lambda *_: None) / "model.onnx").read_bytes()


def _tiny(side: int) -> Any:
    """A convolution and a layer of 10 classes: to see that everything works, in no time."""
    draw = np.random.default_rng(3)
    weights = {
        "kernel": draw.normal(0, 0.2, (_TINY_CHANNELS, 3, 3, 3)),
        "matrix": draw.normal(0, 0.5, (_TINY_CHANNELS, _TINY_CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", _TINY_CLASSES])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _give_weights(model: Any) -> None:
    """Replace every constant weight by a random one, of the spread that keeps a signal's size from layer to layer."""
    graph, draw = model.graph, np.random.default_rng(5)
    shapes = {tensor.name: tensor for tensor in graph.initializer}
    kept, made = [], []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(axis) for axis in numpy_helper.to_array(shapes[node.input[0]]))
        spread = np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
        made.append(numpy_helper.from_array(draw.normal(0, spread, shape).astype(np.float32), node.output[0]))
    by_name = {tensor.name: tensor for tensor in (*graph.initializer, *made)}
    for node in kept:
        if node.op_type == "BatchNormalization":
            # Scale, shift, mean, variance. Halved, what residual branches add up to stays within float16.
            for name, value in zip(node.input[1:], (0.5, 0.0, 0.0, 1.0), strict=True):
                constant = np.full(tuple(by_name[name].dims), value, np.float32)
                by_name[name].CopyFrom(numpy_helper.from_array(constant, name))
    read = {name for node in kept for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in read] + made
    inputs = [value for value in graph.input if value.name in read or value.name not in shapes]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(kept)
    graph.initializer.extend(weights)
    graph.input.extend(inputs)


def _free_batch_axis(model: Any) -> None:
    """Let a graph of batch 1 take any batch: its input, its outputs, and every Reshape to [1, …]."""
    graph = model.graph
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        if tensor.name in shapes:
            shape = numpy_helper.to_array(tensor).copy()
            if len(shape) > 1 and shape[0] == 1:
                shape[0] = 0  # as many as came in
                tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))
    weights = {tensor.name for tensor in graph.initializer}
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and dims[0].dim_value == 1:
            dims[0].dim_param = "N"
    del graph.value_info[:]


def _rank(model: Any, count: int) -> None:
    """Put a TopK behind the graph's one output; places come as int32, which a slot can hold."""
    graph = model.graph
    (scores,) = graph.output
    inputs, attributes = [scores.name], {"axis": -1}
    if model.opset_import[0].version >= _TOPK_TAKES_INPUT:
        graph.initializer.append(numpy_helper.from_array(np.array([count], np.int64), "penstock_top"))
        inputs.append("penstock_top")
    else:
        attributes["k"] = count
    graph.node.append(helper.make_node("TopK", inputs, ["probability", "penstock_place"], **attributes))
    graph.node.append(helper.make_node("Cast", ["penstock_place"], ["place"], to=TensorProto.INT32))
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["N", count]),
            helper.make_tensor_value_info("place", TensorProto.INT32, ["N", count]),
        ]
    )
