"""Engines of the pretend TensorRT: bytes that carry a graph, and contexts that run it on the pretend card."""

import ctypes
import json
import weakref

import numpy as np
import onnx
import pretend_cuda
from pretend_tensorrt import (
    ELEMENTS,
    MAGIC,
    SCRATCH_SIZE,
    VERSION,
    Bound,
    DataType,
    ILogger,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
    lacks_plugin,
    say,
    the_card,
    the_gpu,
)


class Runtime(Bound):
    def __init__(self, logger):
        self._logger = logger
        self._host_code = False

    @property
    def engine_host_code_allowed(self):
        return self._host_code

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, allowed):
        self._host_code = allowed

    def deserialize_cuda_engine(self, serialized_engine):
        content = bytes(serialized_engine)
        try:
            assert content.startswith(MAGIC)
            line, _, graph = content[len(MAGIC) :].partition(b"\n")
            about = json.loads(line)
            model = onnx.load_model_from_string(graph)
        except Exception:  # noqa: BLE001 - whatever it is, it is no plan
            say(self._logger, ILogger.ERROR, "Error Code 1: Serialization (Magic tag does not match)")
            return None
        if any(lacks_plugin(node) for node in model.graph.node):
            say(self._logger, ILogger.ERROR, "IPluginRegistry::getCreator: Error Code 4: API Usage Error")
            return None
        if (about["version"], about["gpu"]) != (VERSION, the_gpu()):
            say(self._logger, ILogger.ERROR, "Error Code 1: Serialization (Version tag does not match)")
            return None
        error, weights = the_card().cudaMalloc(len(graph))
        if int(error):
            say(self._logger, ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was too large)")
            return None
        return ICudaEngine(self, about, model, weights)


class ICudaEngine(Bound):
    def __init__(self, runtime, about, model, weights):
        import onnxruntime  # noqa: PLC0415 - the parser and the builder do without

        self._runtime, self._about, self._model, self._weights = runtime, about, model, weights
        self._logger = runtime._logger
        self._card = the_card()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._values = {each.name: each for each in (*model.graph.input, *model.graph.output)}
        self._users = {}

    def __del__(self):
        self._card.give_back(self._weights)

    @property
    def num_io_tensors(self):
        return len(self._values)

    @property
    def num_optimization_profiles(self):
        return len(self._about["profiles"])

    @property
    def device_memory_size(self):
        return SCRATCH_SIZE

    @property
    def device_memory_size_v2(self):
        return SCRATCH_SIZE

    def get_tensor_name(self, index):
        return list(self._values)[index]

    def get_tensor_mode(self, name):
        is_input = name in {each.name for each in self._model.graph.input}
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType[ELEMENTS[self._values[name].type.tensor_type.elem_type][0]]

    def get_tensor_shape(self, name):
        dims = self._values[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def get_tensor_format(self, name):
        return TensorFormat.LINEAR

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(shape) for shape in self._about["profiles"][profile_index][name]]

    def create_execution_context(self, strategy=None):
        own = 0
        if strategy is None or strategy.name != "USER_MANAGED":
            error, own = self._card.cudaMalloc(SCRATCH_SIZE)
            if int(error):
                return None
        return IExecutionContext(self, own)

    def create_execution_context_without_device_memory(self):
        return IExecutionContext(self, 0)


class IExecutionContext(Bound):
    def __init__(self, engine, own):
        self._engine, self._own, self._scratch = engine, own, own
        self._profile = None
        self._shapes, self._addresses = {}, {}
        self._changes = 0
        self._ran_at = -1
        # The first context has the first profile without being asked.
        if not engine._users:
            self._take(0)

    def _take(self, index):
        self._engine._users[index] = weakref.ref(self)
        self._profile = index

    def _complain(self, text):
        say(self._engine._logger, ILogger.ERROR, f"IExecutionContext: {text}")
        return False

    def _scratch_at(self, address):
        self._changes += 1
        self._scratch = address

    device_memory = property(None, _scratch_at)

    def set_device_memory(self, memory, size):
        assert size >= SCRATCH_SIZE
        self._scratch_at(memory)

    def set_optimization_profile_async(self, profile_index, stream_handle):
        user = self._engine._users.get(profile_index)
        if user is not None and user() not in {None, self}:
            return self._complain(f"profile {profile_index} has been chosen for another IExecutionContext")
        self._changes += 1
        self._take(profile_index)
        return True

    def set_input_shape(self, name, shape):
        if self._profile is None:
            return self._complain("no optimization profile was set")
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        if not all(low <= axis <= high for low, axis, high in zip(least, shape, most, strict=True)):
            return self._complain(f"{shape} is not in {least} to {most}")
        self._changes += 1
        source = self._engine._values[name].type.tensor_type.elem_type
        blank = np.zeros(shape, ELEMENTS[source][1])
        found = self._engine._session.run(None, {name: blank})
        names = [each.name for each in self._engine._session.get_outputs()]
        self._shapes = {name: tuple(shape), **{name: array.shape for name, array in zip(names, found, strict=True)}}
        return True

    def get_tensor_shape(self, name):
        return self._shapes.get(name) or self._engine.get_tensor_shape(name)

    def set_tensor_address(self, name, memory):
        if name not in self._engine._values or memory % 2:
            return self._complain(f"{memory} for {name}")
        self._changes += 1
        self._addresses[name] = memory
        return True

    def infer_shapes(self):
        return [name for name in self._engine._values if name not in self._shapes]

    def execute_async_v3(self, stream_handle):
        card, engine = self._engine._card, self._engine
        missing = set(engine._values) - set(self._addresses)
        if missing or not self._scratch or not self._shapes:
            return self._complain(f"Error Code 3: {missing or 'memory'} was not set")
        if card.streams[stream_handle].recording is not None and self._ran_at != self._changes:
            return self._complain("cannot be recorded before it ran")
        self._ran_at = changes = self._changes
        # What runs later holds nothing: as a kernel, it goes wrong when its engine has gone meanwhile.
        mine = weakref.ref(self)
        card.enqueue(stream_handle, lambda: IExecutionContext._run(mine(), changes))
        return True

    def _run(self, changes):
        if self is None or changes != self._changes:
            raise pretend_cuda.Fault(700)
        card, engine = self._engine._card, self._engine
        arrays = {}
        for name, address in self._addresses.items():
            dtype = ELEMENTS[engine._values[name].type.tensor_type.elem_type][1]
            shape = self._shapes[name]
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            card._check(card.device, address, size)
            arrays[name] = np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
        card._check(card.device, self._scratch, SCRATCH_SIZE)
        ctypes.memset(self._scratch, 0xEE, SCRATCH_SIZE)
        source = engine._model.graph.input[0].name
        names = [each.name for each in engine._session.get_outputs()]
        for name, found in zip(names, engine._session.run(names, {source: arrays[source].copy()}), strict=True):
            arrays[name][...] = found
