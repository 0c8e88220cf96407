"""Tiny ONNX models and contracts for tests: drawn in memory, with answers one can compute by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from gateway.models.spec import Contract, parse_contract

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def draw(
    nodes: list[Any],
    inputs: dict[str, tuple[int, list[Any] | None]],
    outputs: dict[str, tuple[int, list[Any] | None]],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    opset: int = 17,
) -> Any:
    """Make a ModelProto: inputs and outputs are name → (element type, shape)."""
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value(name, *typed) for name, typed in inputs.items()],
        [value(name, *typed) for name, typed in outputs.items()],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def echo(shape: list[Any], dtype: str = "float32") -> Any:
    """Give the input back: `x` to `y`, so that what the preprocessing made can be read."""
    kind = DTYPES[dtype]
    return draw([helper.make_node("Identity", ["x"], ["y"])], {"x": (kind, shape)}, {"y": (kind, shape)})


def means(*, batch: Any = "N", height: Any = 4, width: Any = 4, channels: int = 3, opset: int = 17) -> Any:
    """Classify into as many classes as channels: `x` float32 NCHW to `y`, the mean of each channel."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    return draw(
        nodes,
        {"x": (TensorProto.FLOAT, [batch, channels, height, width])},
        {"y": (TensorProto.FLOAT, [batch, channels])},
        opset=opset,
    )


def bounded(limit: int) -> Any:
    """Classify as `means` does, and fail at run time when the first pixel of the batch is over `limit`.

    The first pixel becomes an index into a table of `limit` + 1 rows.
    """
    weights = {"zero": np.zeros(1, np.int64), "table": np.zeros(limit + 1, np.float32), "all": np.array([-1], np.int64)}
    nodes = [
        helper.make_node("Reshape", ["x", "all"], ["flat"]),
        helper.make_node("Gather", ["flat", "zero"], ["first"]),
        helper.make_node("Cast", ["first"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["mean"]),
        helper.make_node("Add", ["mean", "nothing"], ["y"]),
    ]
    return draw(nodes, {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])}, {"y": (TensorProto.FLOAT, ["N", 3])}, weights)


def external_means(directory: Path) -> Any:
    """Give twice what `means` does; the factor is in a file beside the graph, in `directory`."""
    weights = {"two": np.full(3, 2, np.float32)}
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["mean"]),
        helper.make_node("Mul", ["mean", "two"], ["y"]),
    ]
    model = draw(nodes, {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])}, {"y": (TensorProto.FLOAT, ["N", 3])}, weights)
    tensor = model.graph.initializer[0]
    (directory / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return model


def endless() -> Any:
    """Classify as `means` does, but never end on images that are all white: a loop of 2^62 steps."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["was", "none"], ["is"])],
        "step",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("was", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("is", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["mean"]),
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Div", ["least", "white"], ["share"]),
        helper.make_node("Cast", ["share"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "many"], ["steps"]),
        helper.make_node("Loop", ["steps", "", "mean"], ["y"], body=step),
    ]
    weights = {
        "white": np.array(255, np.float32),
        "many": np.array(1 << 62, np.int64),
        "none": np.array(0, np.float32),
    }
    return draw(nodes, {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])}, {"y": (TensorProto.FLOAT, ["N", 3])}, weights)


def hungry() -> Any:
    """Classify as `means` does, but ask for 2^48 bytes for images that are all white: more than a process can map."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["mean"]),
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Div", ["least", "white"], ["share"]),
        helper.make_node("Cast", ["share"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "many"], ["wanted"]),
        helper.make_node("Max", ["wanted", "one"], ["count"]),
        helper.make_node("Expand", ["nothing", "count"], ["food"]),
        helper.make_node("ReduceMax", ["food"], ["eaten"], keepdims=0),
        helper.make_node("Add", ["mean", "eaten"], ["y"]),
    ]
    weights = {
        "white": np.array(255, np.float32),
        "many": np.array([1 << 46], np.int64),
        "one": np.array([1], np.int64),
        "nothing": np.zeros(1, np.float32),
    }
    return draw(nodes, {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])}, {"y": (TensorProto.FLOAT, ["N", 3])}, weights)


def contract(text: str = "", *, task: str = "classification", **sections: str) -> Contract:
    """Parse a contract for 4x4 images; `sections` adds lines to [input], [output], [batching] or [fake]."""
    lines = [text, "[input]", "width = 4", "height = 4", 'resize = "stretch"', sections.pop("input", "")]
    lines += ["[output]", f'task = "{task}"', sections.pop("output", "")]
    for name, body in {"batching": "sizes = [1, 2, 4]", **sections}.items():
        lines += [f"[{name}]", body]
    return parse_contract("\n".join(lines))


def save(model: Any, directory: Path) -> Path:
    """Write `model.onnx` into the directory, which is made, and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    return directory
