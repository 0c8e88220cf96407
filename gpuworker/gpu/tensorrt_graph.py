"""Makes a graph that TensorRT takes, out of one that takes a slot's pixels. Works in memory; writes and runs nothing.

TensorRT has uint8 at a network's edge only: pixels go straight into a Cast, and what comes after it is float32 that
holds whole numbers (NVIDIA/TensorRT issue 3985: "All UINT8 inputs must directly feed into a cast layer. No other layers
support UINT8 inputs, even just reshape/transpose")::

    pixels ─ Transpose ─ Cast ─ Mul …      becomes      pixels ─ Cast ─ Transpose ─ Cast ─ Mul …
    uint8                float32                        uint8    float32

The second Cast changes nothing then, and TensorRT drops it. Outputs that the task does not read are cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
from onnx import TensorProto, external_data_helper, helper

from gateway.errors import InvalidModel
from gpuworker import audit
from gpuworker.gpu.precision import to_float16
from gpuworker.graph import PIXELS, prepare, serialize
from gpuworker.wording import shown

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.models.spec import Contract

_MOVING = frozenset({"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that give their first input's elements as they are."""

_ANY_TYPE = frozenset({"Shape", "Size"})
_QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TYPES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


class Graph(NamedTuple):
    """What an engine is built from. `content`: an ONNX file's bytes. `input`: its uint8[N, h, w, c].

    `outputs`: all of its outputs. `weights`: files beside model.onnx that hold more of it.
    `types`: those of "float16", "bfloat16" and "quantised" that are in it.
    """

    content: bytes
    input: str
    outputs: tuple[str, ...]
    weights: tuple[Path, ...]
    types: frozenset[str]


def prepare_for_tensorrt(path: Path, contract: Contract) -> Graph:
    """Read, check and rewrite a graph, in the contract's precision. Raises InvalidModel as `graph.prepare` does."""
    prepared = prepare(path, contract)
    model = onnx.load_model_from_string(prepared.content)
    kept = [value for value in model.graph.output if value.name in prepared.outputs]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    _check_precision(model, contract.gpu.precision)
    cast_first(model, prepared.input)
    if contract.gpu.precision == "float16":
        if prepared.external:
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        model = to_float16(model)
    weights = tuple(sorted(audit.external_files(model, path.parent)))
    return Graph(serialize(model), prepared.input, prepared.outputs, weights, types_of(model))


def types_of(model: Any) -> frozenset[str]:
    """Which of "float16", "bfloat16" and "quantised" a model holds."""
    found = set()
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        found.add(_TYPES.get(value.type.tensor_type.elem_type))
    for nodes, tensors in audit.parts(model):
        found.update(_TYPES.get(tensor.data_type) for tensor in tensors)
        for node in nodes:
            if node.op_type in _QUANTISING:
                found.add("quantised")
            if node.op_type == "Cast":
                found.update(_TYPES.get(each.i) for each in node.attribute if each.name == "to")
    return frozenset(name for name in found if name is not None)


def _check_precision(model: Any, precision: str) -> None:
    """Raise InvalidModel unless the graph is quantised when the contract says so, and only then."""
    operators = {node.op_type for nodes, _ in audit.parts(model) for node in nodes}
    if precision == "int8" and not operators >= _QUANTISING:
        raise InvalidModel(
            "model.toml says gpu.precision = 'int8', and the graph is not quantised: it has no QuantizeLinear and"
            " DequantizeLinear; quantise it first (onnxruntime.quantization, TensorRT Model Optimizer), or set"
            " gpu.precision = 'float16'"
        )
    if precision != "int8" and operators & _QUANTISING:
        raise InvalidModel(
            f"the graph is quantised (QuantizeLinear), and model.toml says gpu.precision = '{precision}'; set"
            " gpu.precision = 'int8'"
        )


def cast_first(model: Any, pixels: str) -> None:
    """Put a Cast to float32 behind the uint8 input `pixels`, in place. Raises InvalidModel where that is not enough."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    target = f"{PIXELS}_float"
    while target in taken:
        target += "_"
    # What holds whole numbers of 0 to 255: once uint8, now float32.
    loose, retyped = {pixels}, set()
    for node in graph.node:
        places = [place for place, name in enumerate(node.input) if name in loose]
        if not places or node.op_type in _ANY_TYPE:
            continue
        if node.op_type in _MOVING and places == [0] and not outputs & set(node.output):
            loose |= set(node.output)
            retyped |= set(node.output)
        elif node.op_type != "Cast":
            raise InvalidModel(
                f"the graph computes with its pixels as uint8 (in '{shown(node.op_type)}'), which TensorRT cannot;"
                " export it with a Cast to float32 behind its input"
            )
    if _in_subgraphs(graph, loose):
        raise InvalidModel(
            "the graph's pixels go into a loop or a branch, which TensorRT does not take as uint8; export it with a"
            " Cast to float32 behind its input"
        )
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == pixels:
                node.input[place] = target
    nodes = [helper.make_node("Cast", [pixels], [target], name=target, to=TensorProto.FLOAT), *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    described = [value for value in graph.value_info if value.name not in retyped]
    del graph.value_info[:]
    graph.value_info.extend(described)


def _in_subgraphs(graph: Any, names: set[str]) -> bool:
    """Whether a graph inside this one reads any of the names."""
    inner = [each.g for node in graph.node for each in node.attribute if each.HasField("g")]
    inner += [each for node in graph.node for attribute in node.attribute for each in attribute.graphs]
    return any(
        any(name in names for node in each.node for name in node.input) or _in_subgraphs(each, names) for each in inner
    )
