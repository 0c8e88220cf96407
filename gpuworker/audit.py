"""Decides whether an ONNX file may be given to an engine: a model file comes from outside, and engines trust it.

Reads, never runs. Refuses files that reach outside their directory, that bring operators of other libraries, or that
carry a compiled blob in place of a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from gateway.errors import InvalidModel
from gpuworker.wording import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_SIZE_MAX = (1 << 31) - 1
"""Bytes. What protobuf reads; larger models keep their weights in files beside the graph."""

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator sets that ONNX Runtime has built in. Any other needs a library of native code."""

_OPAQUE = frozenset({"EPContext"})
"""Operators whose content is a compiled engine of some device."""


def read_model(path: Path) -> Any:
    """Read an ONNX file into an onnx.ModelProto that passed every check; external weights stay on disk.

    Raises InvalidModel.
    """
    name = path.name
    try:
        size = path.stat().st_size
        if size > FILE_SIZE_MAX:
            raise InvalidModel(
                f"{name} has {size} bytes, at most {FILE_SIZE_MAX} are read; save its weights as external data"
            )
        content = path.read_bytes()
    except FileNotFoundError:
        raise InvalidModel(f"there is no {name}; put the exported graph there") from None
    except OSError as error:
        raise InvalidModel(f"{name} cannot be read ({error.strerror}); make it readable for the server") from None
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:
        # protobuf's own exception types differ between its implementations; each of them means this.
        raise InvalidModel(f"{name} is not an ONNX file, or is damaged ({size} bytes); export it again") from error
    if not model.graph.node:
        raise InvalidModel(f"{name} holds no graph; export it again")
    audit(model, path.parent)
    return model


def audit(model: Any, directory: Path) -> None:
    """Check every node and every tensor, in subgraphs and functions too. Raises InvalidModel."""
    local = {(function.domain, function.name) for function in model.functions}
    home = directory.resolve()
    for nodes, tensors in parts(model):
        for node in nodes:
            if node.op_type in _OPAQUE:
                raise InvalidModel(
                    f"the graph holds an {node.op_type} node, which is compiled code; export it as plain ONNX"
                )
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
                raise InvalidModel(
                    f"the graph needs operator '{shown(node.op_type)}' of '{shown(node.domain)}', which is not"
                    " built in; export it with standard operators"
                )
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                _check_location(tensor, home)


def has_external_data(model: Any) -> bool:
    """Whether any weight is in a file beside the graph."""
    external = onnx.TensorProto.EXTERNAL
    return any(tensor.data_location == external for _, tensors in parts(model) for tensor in tensors)


def external_files(model: Any, directory: Path) -> set[Path]:
    """The files beside the graph that hold weights of an audited model."""
    external = onnx.TensorProto.EXTERNAL
    return {
        directory / entry.value
        for _, tensors in parts(model)
        for tensor in tensors
        if tensor.data_location == external
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _check_location(tensor: Any, home: Path) -> None:
    """Raise InvalidModel unless the tensor's file is below `home`, links followed."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    try:
        target = (home / location).resolve()
        inside = location != "" and target.is_relative_to(home)
        there = inside and target.is_file()
    except (OSError, ValueError):
        inside = there = False
    if not inside:
        raise InvalidModel(
            f"weights of the graph are in '{shown(location)}', outside the model's directory;"
            " save them beside the graph"
        )
    if not there:
        raise InvalidModel(
            f"weights of the graph are in '{shown(location)}', which is not in the model's directory; copy it there"
        )


def parts(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Every list of nodes of the model, with the tensors that belong to it."""
    graphs = [model.graph]
    for function in model.functions:
        yield function.node, _node_tensors(function.node, graphs)
    while graphs:
        graph = graphs.pop()
        tensors = list(graph.initializer)
        for sparse in graph.sparse_initializer:
            tensors += (sparse.values, sparse.indices)
        yield graph.node, tensors + _node_tensors(graph.node, graphs)


def _node_tensors(nodes: Any, graphs: list[Any]) -> list[Any]:
    """Tensors in the attributes of `nodes`; subgraphs found there are added to `graphs`."""
    tensors: list[Any] = []
    for node in nodes:
        for attribute in node.attribute:
            tensors += (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += (sparse.values, sparse.indices)
            graphs += attribute.graphs
            if attribute.HasField("g"):
                graphs.append(attribute.g)
    return tensors
