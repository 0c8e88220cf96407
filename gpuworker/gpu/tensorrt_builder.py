"""In the builder's process: from an ONNX graph to an engine in a file, with TensorRT."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from gateway.errors import InvalidModel
from gpuworker import log
from gpuworker.backend import DeviceLost
from gpuworker.gpu import tensorrt_versions as versions
from gpuworker.gpu.card import Card, CudaError
from gpuworker.gpu.engine_cache import EngineCache, write_plan
from gpuworker.gpu.tensorrt_library import WORDS, failure, register_plugins, trt
from gpuworker.wording import shown

if TYPE_CHECKING:
    from gpuworker.gpu.building import Errand

GRAPH_SIZE_MAX = 1 << 31
"""Bytes."""


def build(errand: Errand) -> None:
    """Build what the errand says, and write it to its file. Raises InvalidModel, MemoryError, OSError."""
    try:
        # TensorRT without a card ends the process in some versions.
        Card.open()
        _build(errand)
    except CudaError as error:
        raise InvalidModel(f"there is no GPU to build an engine on ({error}); see `penstock doctor`") from error
    except DeviceLost as error:
        # Of this process only, and this model's doing: the worker's own device is as good as before.
        raise InvalidModel(f"the GPU failed while the engine was built ({error})") from error
    except OSError as error:
        raise InvalidModel(f"the engine cannot be written ({error.strerror}); make room in engine_dir") from error


def _build(errand: Errand) -> None:
    order = errand.order
    register_plugins()
    builder = trt.Builder(WORDS)
    network = versions.make_network(trt, builder, order.typing)
    parser = trt.OnnxParser(network, WORDS)
    _parse(parser, errand)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.workspace_size_max)
    versions.set_flags(trt, config, order.typing, tf32=order.tf32, optimization_level=order.optimization_level)
    for size in order.sizes:
        profile = builder.create_optimization_profile()
        shape = (size, *order.shape)
        profile.set_shape(order.input, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise failure(f"takes no optimization profile for a batch of {size}")
    cache = EngineCache(Path(errand.engine_dir), 0) if errand.engine_dir else None
    timings = _attach_timings(config, cache, errand.timing_key)
    # Kept here: the configuration does not hold it.
    monitor = versions.make_monitor(trt, versions.Progress(lambda share: errand.tell("share", share)))
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise failure("cannot build this graph for this GPU; check its operators, or raise gpu.workspace_size_max")
    write_plan(errand.plan_fd, plan)
    if cache is not None and timings is not None:
        _keep_timings(config, timings, cache, errand.timing_key)


def _parse(parser: Any, errand: Errand) -> None:
    """Read the graph into the parser's network. Raises InvalidModel, which names operators."""
    with os.fdopen(errand.graph_fd, "rb", closefd=False) as file:
        content = file.read(GRAPH_SIZE_MAX)
    parsed = parser.parse(content, errand.graph_path) if errand.graph_path else parser.parse(content)
    if parsed:
        return
    nodes, named = onnx.load_model_from_string(content).graph.node, []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        log.event("graph_not_parsed", level="error", detail=error.desc(), node=error.node())
        if 0 <= error.node() < len(nodes):
            named.append(f"'{shown(nodes[error.node()].op_type)}'")
    WORDS.take()
    where = f" (operator {', '.join(dict.fromkeys(named))})" if named else ""
    raise InvalidModel(
        f"TensorRT {trt.__version__} does not take this graph{where}; set backend = 'onnxruntime', or export it"
        " otherwise; its own words are in the log"
    )


def _attach_timings(config: Any, cache: EngineCache | None, key: str) -> Any:
    """Have the build use what earlier ones measured. Returns the timing cache, or None where none is kept."""
    if cache is None:
        return None
    for content in (cache.read_timing(key), b""):
        timings = config.create_timing_cache(content)
        if timings is not None and config.set_timing_cache(timings, False):
            return timings
        log.event("timings_refused", level="warning", detail="TensorRT does not take the timings that were kept")
    WORDS.take()
    return None


def _keep_timings(config: Any, timings: Any, cache: EngineCache, key: str) -> None:
    """Keep what this build measured, together with what others did meanwhile."""
    meanwhile = config.create_timing_cache(cache.read_timing(key))
    if meanwhile is not None:
        timings.combine(meanwhile, False)
    try:
        cache.write_timing(key, memoryview(timings.serialize()))
    except OSError as error:
        log.event("timings_not_kept", level="warning", detail=os.strerror(error.errno or 0))
