"""TensorRT on the card: an engine built from the model's graph, or one that the operator brings along.

::

    model.onnx ─ prepare ─▶ graph with preprocessing ─▶ built engine           pixels ─▶ engine ─▶ outputs
    model.plan (foreign) ─▶ engine as it is, behind one of the preprocessing    pixels ─▶ front ─▶ input ─▶ engine ─▶ …

Engines are built while the model is loaded, never for a request. An engine file of somebody else's is native code: it
is refused unless the operator's settings allow it.
"""

from __future__ import annotations

import math
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from gateway.errors import InvalidModel
from gpuworker import log
from gpuworker.gpu import tensorrt_versions as versions
from gpuworker.gpu.backend import CardBackend
from gpuworker.gpu.building import Order
from gpuworker.gpu.card import Memory
from gpuworker.gpu.engines import Source, Workshop
from gpuworker.gpu.tensorrt_engine import Engine, UnreadableEngine
from gpuworker.gpu.tensorrt_graph import cast_first, prepare_for_tensorrt
from gpuworker.gpu.tensorrt_library import trt
from gpuworker.graph import check_tensors, preprocessing, serialize
from gpuworker.wording import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.models.spec import Contract
    from gpuworker.backend import Report, Setup
    from gpuworker.gpu.card import Card
    from gpuworker.gpu.engine_cache import Plan
    from gpuworker.gpu.tensorrt_engine import Tensor
    from shm.layout import Field

OUTPUTS_MAX = 64
_NAME_SIZE_MAX = 256
_ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "bf16": TensorProto.BFLOAT16,
}


class TensorRtBackend(CardBackend):
    """One engine on one GPU."""

    def __init__(self, contract: Contract, directory: Path, setup: Setup) -> None:
        super().__init__(contract, TensorRtRunner(contract, directory, setup))


class TensorRtRunner:
    """A Runner. `front`: the engine of the preprocessing, where the model's own does not bring it."""

    provider = f"TensorRT {trt.__version__}"

    def __init__(self, contract: Contract, directory: Path, setup: Setup) -> None:
        self.engine: Engine | None = None
        self.front: Engine | None = None
        self._contract = contract
        self._directory = directory
        self._grant = setup.grant
        self._plans: list[Plan] = []
        self._between: Memory | None = None
        """What the front gives and the engine takes."""

    def open(self, card: Card, report: Report) -> tuple[Field, ...]:
        """Find or build the engines and load them. Raises InvalidModel, MemoryError, DeviceLost."""
        versions.check_version(trt)
        workshop = Workshop(self._grant.engine_dir, self._grant.engines_size_max, card.properties, str(trt.__version__))
        if not (self._directory / "model.onnx").exists() and (self._directory / "model.plan").exists():
            names = self._open_foreign(card, workshop, report)
        else:
            names = self._open_own(card, workshop, report)
        if len(names) > OUTPUTS_MAX:
            raise InvalidModel(f"the model has {len(names)} outputs, at most {OUTPUTS_MAX} are read; export fewer")
        for name in names:
            if len(name.encode()) > _NAME_SIZE_MAX:
                raise InvalidModel(f"the output '{shown(name)}' has a name of over {_NAME_SIZE_MAX} bytes; rename it")
        assert self.engine is not None
        smallest = self._contract.batching.sizes[0]
        self.engine.prepare(smallest)
        return self.engine.fields(smallest, names)

    def _open_own(self, card: Card, workshop: Workshop, report: Report) -> tuple[str, ...]:
        """The engine of model.onnx. Returns the names of its outputs."""
        path = self._directory / "model.onnx"
        graph = prepare_for_tensorrt(path, self._contract)
        order = self._order(
            graph.input, versions.choose_typing(trt, self._contract.gpu, graph.types, card.properties.capability)
        )
        self.engine = self._load(Source(graph.content, graph.weights, path, order), card, workshop, report)
        return graph.outputs

    def _open_foreign(self, card: Card, workshop: Workshop, report: Report) -> tuple[str, ...]:
        """The engine of model.plan, and the one that prepares its input. Returns the outputs that the task reads."""
        if not self._grant.foreign_engines:
            raise InvalidModel(
                "model.plan is an engine that was built elsewhere, which is native code, and foreign_engines is false;"
                " put model.onnx there instead, or set foreign_engines = true if you trust its source"
            )
        report("engine", 0.0)
        self.engine = self._read_foreign(card)
        tensors = helper.make_graph(
            [],
            "model.plan",
            [_described(each) for each in self.engine.inputs],
            [_described(each) for each in self.engine.outputs],
        )
        name, outputs = check_tensors(tensors, self._contract)
        self.engine.check_layouts()
        for size in self._contract.batching.sizes:
            if self.engine.find_profile(size) is None:
                raise InvalidModel(
                    f"model.toml says batching.sizes = {list(self._contract.batching.sizes)}; the input '{shown(name)}'"
                    f" of model.plan takes {self.engine.describe_profiles()}, which {size} does not fit; build it with"
                    " a profile for each size, or leave the size out"
                )
        before = preprocessing(self._contract, name)
        if before is not None:
            model = onnx.load_model_from_string(before.content)
            cast_first(model, before.input)
            order = self._order(before.input, _front_typing(self._contract))
            source = Source(serialize(model), (), self._directory / "model.plan", order)
            self.front = self._load(source, card, workshop, report)
            row_size = math.prod(self._contract.input.shape) * np.dtype(self._contract.input.dtype).itemsize
            self._between = Memory.on_device(self._contract.batching.sizes[-1] * row_size)
        return outputs

    def _read_foreign(self, card: Card) -> Engine:
        height, width, channels = self._contract.input.shape
        row = (height, width, channels) if self._contract.input.layout == "nhwc" else (channels, height, width)
        try:
            with (self._directory / "model.plan").open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if not size:
                    raise InvalidModel("model.plan is empty; build the engine again")
                with mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as content, memoryview(content) as view:
                    return Engine(view, card.compute, row, host_code=True)
        except OSError as error:
            raise InvalidModel(
                f"model.plan cannot be read ({error.strerror}); make it readable for the server"
            ) from error
        except UnreadableEngine as error:
            raise InvalidModel(
                f"TensorRT {trt.__version__} does not take model.plan: it is of another version, for another GPU, or"
                " damaged; build it here, or put model.onnx there; TensorRT's own words are in the log"
            ) from error

    def _load(self, source: Source, card: Card, workshop: Workshop, report: Report) -> Engine:
        """An engine out of the folder or the builder, in device memory. Raises InvalidModel, MemoryError."""
        for afresh in (False, True):
            plan = workshop.obtain(source, report, afresh=afresh)
            report("engine", 0.0)
            try:
                engine = Engine(plan.content, card.compute, source.order.shape)
            except UnreadableEngine as error:
                plan.close()
                log.event("engine_refused", level="warning", error=error, detail="TensorRT does not take a kept engine")
            except BaseException:
                plan.close()
                raise
            else:
                plan.settle()
                self._plans.append(plan)
                return engine
        raise InvalidModel(
            f"TensorRT {trt.__version__} does not take an engine that it has just built; its own words are in the log"
        )

    def _order(self, name: str, typing: versions.Typing) -> Order:
        gpu, memory_size_max = self._contract.gpu, self._grant.memory_size_max
        return Order(
            input=name,
            shape=self._contract.input.shape,
            sizes=self._contract.batching.sizes,
            typing=typing,
            tf32=gpu.tf32,
            workspace_size_max=min(gpu.workspace_size_max, memory_size_max or gpu.workspace_size_max),
            optimization_level=gpu.optimization_level,
        )

    def bind(self, size: int, source: int, targets: Mapping[str, int]) -> None:
        """From now on a batch of `size` reads at `source` and writes at `targets`. Raises InvalidModel, MemoryError."""
        assert self.engine is not None
        if size != self._contract.batching.sizes[0]:
            self.engine.prepare(size)
        if self.front is not None:
            assert self._between is not None
            self.front.prepare(size)
            self.front.bind(size, source, {self.front.outputs[0].name: self._between.address})
            source = self._between.address
        self.engine.bind(size, source, targets)

    def enqueue(self, size: int) -> None:
        """Begin a bound size on the compute stream."""
        assert self.engine is not None
        if self.front is not None:
            self.front.enqueue(size)
        self.engine.enqueue(size)

    def close(self) -> None:
        """Let go of the engines; others may evict them from the folder then."""
        for engine in (self.front, self.engine):
            if engine is not None:
                engine.close()
        if self._between is not None:
            self._between.close()
        for plan in self._plans:
            plan.close()
        self.front = self.engine = self._between = None
        self._plans.clear()


def _front_typing(contract: Contract) -> versions.Typing:
    """The preprocessing computes in float32, whatever the engine behind it does."""
    types = frozenset({"float16"} if contract.input.dtype == "float16" else ())
    return versions.choose_typing(trt, type(contract.gpu)(), types, versions.BFLOAT16_CAPABILITY_MIN)


def _described(tensor: Tensor) -> Any:
    """An engine's tensor as ONNX would declare it."""
    shape = [axis if axis >= 0 else "N" for axis in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, _ELEMENTS.get(tensor.dtype, TensorProto.UNDEFINED), shape)
