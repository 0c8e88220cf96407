"""A TensorRT that is not there: the names that a version of its Python module has, and what its documentation promises.

Engines run by the real ONNX Runtime on the CPU, as a step on a stream of the pretend card. What the real one refuses,
this one does: uint8 that does not go straight into a Cast, flags in a strongly typed network, shapes off a profile, two
contexts on one profile, a run without addresses, a recording of what never ran, an engine of another version or GPU.

PENSTOCK_PRETEND_TENSORRT     8.5, 8.6, 10.13 (if unset) or 11.4
PENSTOCK_PRETEND_BUILDS       a folder in which each build leaves a file, named by its process
PENSTOCK_PRETEND_BUILD_GATE   a named pipe: builds wait until somebody has opened it for writing and closed it
PENSTOCK_PRETEND_BUILD_ENDS   how builds end: "crash", "no_memory", "refused" or "oserror"; else well
PENSTOCK_PRETEND_UNPARSED     an operator that the parser does not know
"""

import json
import os
import signal
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper
from pretend_engines import ICudaEngine, IExecutionContext, Runtime
from pretend_tensorrt import (
    FACTS,
    MAGIC,
    MAJOR,
    VERSION,
    Bound,
    BuilderFlag,
    DataType,
    Enum,
    ExecutionContextAllocationStrategy,
    IHostMemory,
    ILogger,
    IProgressMonitor,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    init_libnvinfer_plugins,
    lacks_plugin,
    say,
    the_card,
    the_gpu,
)

__version__ = f"{VERSION}.0.1"
__all__ = [
    "BuilderFlag",
    "DataType",
    "ExecutionContextAllocationStrategy",
    "ICudaEngine",
    "IExecutionContext",
    "ILogger",
    "IProgressMonitor",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
    "init_libnvinfer_plugins",
]


class ITimingCache(Bound):
    def __init__(self, entries):
        self._entries = set(entries)

    def combine(self, input_cache, ignore_mismatch):
        self._entries |= input_cache._entries
        return True

    def serialize(self):
        return IHostMemory(json.dumps([VERSION, the_gpu(), sorted(self._entries)]).encode())


class IOptimizationProfile(Bound):
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):  # noqa: A002 - its names
        self._shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig(Bound):
    def __init__(self):
        self._flags = {"TF32"}
        self._profiles = []
        self._timings = None
        self._level = 3
        self._monitor = None
        self._workspace = None

    def set_memory_pool_limit(self, pool, pool_size):
        assert pool is MemoryPoolType.WORKSPACE
        self._workspace = pool_size

    def set_flag(self, flag):
        self._flags.add(flag.name)

    def clear_flag(self, flag):
        self._flags.discard(flag.name)

    def add_optimization_profile(self, profile):
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache):
        content = bytes(serialized_timing_cache)
        try:
            version, gpu, entries = json.loads(content) if content else (VERSION, the_gpu(), [])
        except ValueError:
            return None
        return ITimingCache(entries) if (version, gpu) == (VERSION, the_gpu()) else None

    def set_timing_cache(self, cache, ignore_mismatch):
        self._timings = cache
        return True

    @property
    def builder_optimization_level(self):
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level):
        self._level = level

    @property
    def progress_monitor(self):
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor):
        assert monitor._made, "IProgressMonitor.__init__ was not called"
        self._monitor = monitor


class INetworkDefinition(Bound):
    def __init__(self, flags):
        self._flags = flags
        self._model = None


class ParserError(Bound):
    def __init__(self, text, index):
        self._text, self._index = text, index

    def desc(self):
        return self._text

    def node(self):
        return self._index


class OnnxParser(Bound):
    def __init__(self, network, logger):
        self._network, self._logger, self._errors = network, logger, []

    @property
    def num_errors(self):
        return len(self._errors)

    def get_error(self, index):
        return self._errors[index]

    def parse(self, model, path=None):
        loaded = onnx.load_model_from_string(bytes(model))
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in loaded.graph.initializer):
            if path is None:
                return self._fail("external weights without a path", -1)
            external_data_helper.load_external_data_for_model(loaded, os.path.dirname(path))  # noqa: PTH120
        loose = {each.name for each in loaded.graph.input if each.type.tensor_type.elem_type == TensorProto.UINT8}
        for index, node in enumerate(loaded.graph.node):
            if node.op_type == os.environ.get("PENSTOCK_PRETEND_UNPARSED") or lacks_plugin(node):
                return self._fail(f"no importer registered for op: {node.op_type}", index)
            to = [each.i for each in node.attribute if each.name == "to"]
            if loose & set(node.input) and (
                node.op_type != "Cast" or to[0] not in {TensorProto.FLOAT, TensorProto.FLOAT16}
            ):
                return self._fail("UINT8 is only supported as the input of a cast", index)
        self._network._model = loaded
        return True

    def _fail(self, text, index):
        self._errors.append(ParserError(text, index))
        say(self._logger, ILogger.ERROR, f"ModelImporter.cpp: {text}")
        return False


class Builder(Bound):
    def __init__(self, logger):
        self._logger = logger
        if not the_card().opened:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags=0):
        # The batch axis has to be asked for in 8, and 11 has nothing to ask for.
        assert flags == 1 if MAJOR < 10 else flags in ({0, 2} if MAJOR == 10 else {0})
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        model, flags = network._model, config._flags
        strong = MAJOR > 10 or (MAJOR == 10 and network._flags == 2)
        types = {each.data_type for each in model.graph.initializer}
        types |= {each.i for node in model.graph.node for each in node.attribute if each.name == "to"}
        types |= {each.type.tensor_type.elem_type for each in (*model.graph.input, *model.graph.output)}
        quantised = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        wrong = [
            strong and flags & {"FP16", "BF16", "INT8"},
            not strong and TensorProto.FLOAT16 in types and "FP16" not in flags,
            not strong and quantised and "INT8" not in flags,
            not config._profiles or config._workspace is None,
        ]
        if any(wrong):
            say(self._logger, ILogger.ERROR, f"API Usage Error {wrong}")
            return None
        if folder := os.environ.get("PENSTOCK_PRETEND_BUILDS"):
            (Path(folder) / f"{os.getpid()}").write_text(json.dumps(sorted(flags)))
        return self._work(model, config)

    def _work(self, model, config):
        monitor = config._monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 4)
            monitor.step_complete("Building Engine", 0)
            monitor.phase_start("Timing", "Building Engine", 2)
            monitor.step_complete("Timing", 0)
        if gate := os.environ.get("PENSTOCK_PRETEND_BUILD_GATE"):
            Path(gate).read_bytes()
        ends = os.environ.get("PENSTOCK_PRETEND_BUILD_ENDS")
        if ends == "crash":
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGSEGV)
        if ends == "oserror":
            raise OSError(28, "No space left on device")
        if ends:
            words = (
                "Error Code 2: OutOfMemory (Requested size was 99 bytes.)" if ends == "no_memory" else "Error Code 4"
            )
            say(self._logger, ILogger.ERROR, words)
            return None
        if monitor is not None:
            monitor.step_complete("Timing", 1)
            monitor.phase_finish("Timing")
            for step in range(1, 4):
                monitor.step_complete("Building Engine", step)
            monitor.phase_finish("Building Engine")
        if config._timings is not None:
            config._timings._entries.add(f"{os.getpid()}")
        about = {"version": VERSION, "gpu": the_gpu(), "profiles": config._profiles, "level": config._level}
        return IHostMemory(MAGIC + json.dumps(about).encode() + b"\n" + model.SerializeToString())


def _prune():
    """Leave nothing that this version does not have."""
    classes = FACTS["classes"]
    ours = {"tensorrt", "pretend_tensorrt", "pretend_engines"}
    for cls in [value for value in globals().values() if isinstance(value, type) and value.__module__ in ours]:
        for name in [name for name in vars(cls) if not name.startswith("_")]:
            if not issubclass(cls, Enum) and name not in classes.get(cls.__name__, ()):
                delattr(cls, name)
    for name in ("IProgressMonitor", "ExecutionContextAllocationStrategy"):
        if name not in classes and name not in FACTS["enums"]:
            del globals()[name]


_prune()
