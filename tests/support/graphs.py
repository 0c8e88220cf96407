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
