"""Makes a float32 graph compute in float16, with its inputs and outputs as they were. Pure: a graph in, a graph out.

Each node is decided by its operator's schema: where that lets a tensor be float16, it becomes so, and what is fixed to
float32 (scales of a Resize) stays. Casts are put only where the two meet, so that nothing is rounded twice::

    pixels ─ Transpose ─ Cast ─ Mul ─ Add ─ (cast) ─ Conv ─ … ─ Gemm ─ (cast) ─ Softmax ─▶ float32
             preprocessing: float32                  float16                    kept

Not ONNX Runtime's own converter: it rounds to float16 between the nodes that it is told to leave, and the import of its
package changes sys.path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import InvalidModel
from gpuworker.graph import PIXELS
from gpuworker.wording import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEPT = """
CumSum DequantizeLinear Exp InstanceNormalization LRN LogSoftmax LpNormalization MeanVarianceNormalization Pow
QuantizeLinear Range ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare Softmax Softplus
"""
KEPT = frozenset(_KEPT.split())
"""Operators that stay float32. Their results, or sums on the way, leave the range of float16 (65504) where their inputs
do not; or they end a graph; or what they give follows from an attribute.
"""

_AS_THEY_COME = frozenset({"Cast", "Shape", "Size"})
"""They take either type, and what they give does not follow from it."""

_INPUTS_ARE_INPUTS = 4
"""The first IR version in which they are no weights, unless a graph lets its users replace those."""

_MAX = float(np.finfo(np.float16).max)
_HALF = "tensor(float16)"
_ONE_TO_FLOAT16 = "_penstock_float16"
_ONE_TO_FLOAT32 = "_penstock_float32"


def to_float16(model: Any) -> Any:
    """Another onnx.ModelProto that computes in float16; weights beyond its range keep their nodes in float32.

    `model`: with all of its weights in it. Its inputs and outputs keep their names and types. Raises InvalidModel:
    parts of it cannot be converted.
    """
    result = type(model)()
    result.CopyFrom(model)
    _check(result)
    _Conversion(result).run()
    return result


def _check(model: Any) -> None:
    """Raise InvalidModel when a graph has parts whose types are not known here."""
    advice = "export the graph in float16, or set gpu.precision = 'float32'"
    if model.functions:
        raise InvalidModel(f"the graph brings functions of its own, which are not made float16; {advice}")
    for node in model.graph.node:
        if node.domain not in {"", "ai.onnx"}:
            raise InvalidModel(
                f"operator '{shown(node.op_type)}' of '{shown(node.domain)}' is not made float16; {advice}"
            )
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InvalidModel(f"operator '{shown(node.op_type)}' holds a graph, which is not made float16; {advice}")


class _Conversion:
    """One graph being converted. `floats`: values that were float32. `halves`: those that are float16 now."""

    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._opset = max(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
        if model.ir_version < _INPUTS_ARE_INPUTS:
            # There weights had to be listed as inputs; those that are made here are not.
            weights = {tensor.name for tensor in self._graph.initializer}
            inputs = [value for value in self._graph.input if value.name not in weights]
            del self._graph.input[:]
            self._graph.input.extend(inputs)
            model.ir_version = _INPUTS_ARE_INPUTS
        self._inline_constants()
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._floats = self._find_floats(model)
        self._halves: set[str] = set()
        self._casts: dict[tuple[str, bool], str] = {}
        self._nodes: list[Any] = []

    def run(self) -> None:
        """Convert in place."""
        results = {value.name for value in self._graph.output}
        for node in list(self._graph.node):
            kept = node.name.startswith(PIXELS) or node.op_type in KEPT or self._has_large_weight(node)
            changed = [] if kept else self._convert(node)
            if kept:
                for place, name in enumerate(node.input):
                    node.input[place] = self._as(name, half=False)
            self._nodes.append(node)
            for place in changed:
                self._publish(node, place, is_result=node.output[place] in results)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        # They say the types of before.
        del self._graph.value_info[:]
        # A weight that users may replace is an input too, which would be required without it.
        read = (
            {name for node in self._nodes for name in node.input}
            | {value.name for value in self._graph.input}
            | results
        )
        weights = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(weights)

    def _convert(self, node: Any) -> list[int]:
        """Settle the types of a node's inputs; return which of its outputs become float16 by that."""
        if node.op_type in _AS_THEY_COME:
            return []
        schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        halved: set[str] = set()
        for place, name in enumerate(node.input):
            if name in self._floats:
                formal = schema.inputs[min(place, len(schema.inputs) - 1)]
                half = _HALF in formal.types
                node.input[place] = self._as(name, half=half)
                if half:
                    halved.add(formal.type_str)
        last = len(schema.outputs) - 1
        return [
            place
            for place, name in enumerate(node.output)
            if name in self._floats and schema.outputs[min(place, last)].type_str in halved
        ]

    def _publish(self, node: Any, place: int, *, is_result: bool) -> None:
        """An output of the last node became float16; under its own name only if nobody outside reads it."""
        name = node.output[place]
        if is_result:
            half = node.output[place] = name + _ONE_TO_FLOAT16
            self._casts[name, True] = half
            self._nodes.append(helper.make_node("Cast", [half], [name], name=half + "_cast", to=TensorProto.FLOAT))
        else:
            self._halves.add(name)

    def _as(self, name: str, *, half: bool) -> str:
        """The name of a value in the type that is wanted; a cast or another weight is made for the first who asks."""
        if name not in self._floats or (name in self._halves) == half:
            return name
        found = self._casts.get((name, half))
        if found is not None:
            return found
        target = self._casts[name, half] = name + (_ONE_TO_FLOAT16 if half else _ONE_TO_FLOAT32)
        if half and name in self._weights:
            weights = np.clip(numpy_helper.to_array(self._weights[name]), -_MAX, _MAX)
            self._graph.initializer.append(numpy_helper.from_array(weights.astype(np.float16), target))
        else:
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [name], [target], name=target + "_cast", to=to))
        return target

    def _has_large_weight(self, node: Any) -> bool:
        """Whether a weight of the node is finite and not in the range of float16; limits of a Clip are cut to it."""
        if node.op_type == "Clip":
            return False
        weights = [self._weights[name] for name in node.input if name in self._floats and name in self._weights]
        return any(_is_large(numpy_helper.to_array(tensor)) for tensor in weights)

    def _inline_constants(self) -> None:
        """Make weights of float32 Constant nodes, so that they are converted once and not at each run."""
        nodes = []
        for node in self._graph.node:
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            if node.op_type == "Constant" and values and values[0].data_type == TensorProto.FLOAT:
                values[0].name = node.output[0]
                self._graph.initializer.append(values[0])
            else:
                nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    @staticmethod
    def _find_floats(model: Any) -> set[str]:
        """Names of all float32 values. Raises InvalidModel when a node's types cannot be told."""
        try:
            graph = onnx.shape_inference.infer_shapes(model).graph
        except Exception as error:
            raise InvalidModel("the graph's types cannot be inferred, so it is not made float16; check it") from error
        known = {tensor.name: tensor.data_type for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            known[value.name] = value.type.tensor_type.elem_type
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        for node in graph.node:
            for name in node.output:
                if name in read and not known.get(name):
                    raise InvalidModel(
                        f"the type of '{shown(name)}', which {shown(node.op_type)} gives, cannot be told, so the graph"
                        " is not made float16; export it in float16, or set gpu.precision = 'float32'"
                    )
        return {name for name, kind in known.items() if kind == TensorProto.FLOAT}


def _is_large(weights: NDArray[np.float32]) -> bool:
    finite = np.abs(weights[np.isfinite(weights)])
    return bool(finite.size and finite.max() > _MAX)
