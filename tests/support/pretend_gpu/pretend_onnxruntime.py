"""Makes the real onnxruntime for CPUs pass for the build with CUDA: the real graph, run as a step of a pretend stream.

A session on CUDAExecutionProvider runs on the real CPU provider, and reads and writes at the bound addresses when the
stream comes to it. It holds its weights on the pretend card, and its activations once a batch needed them.

PENSTOCK_PRETEND_DIR          while it holds a file `full`, no run gets the memory for its activations
PENSTOCK_PRETEND_CPU_OPS      operators, separated by commas, that CUDA does not have
PENSTOCK_PRETEND_NO_PROVIDER  the provider does not load: as the real one, sessions are on the CPU then, silently
"""

import ctypes
import math
import os
import sys
import threading

import numpy as np
import onnx
import pretend_cuda

CPU_OPS = "PENSTOCK_PRETEND_CPU_OPS"
NO_PROVIDER = "PENSTOCK_PRETEND_NO_PROVIDER"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
NO_WAIT = "disable_synchronize_execution_providers"
IMAGE_SIZE = 1 << 20
"""Bytes that the activations of one image take."""
OPTIONS = frozenset({
    "device_id", "user_compute_stream", "cudnn_conv_algo_search", "arena_extend_strategy", "gpu_mem_limit", "use_tf32",
    "enable_cuda_graph",
})  # fmt: skip
"""Of the provider; the real one was seen to refuse any other."""


class Assigned:
    """onnxruntime.OrtEpAssignedSubgraph."""

    def __init__(self, ep_name, nodes):
        self.ep_name = ep_name
        self._nodes = nodes

    def get_nodes(self):
        return self._nodes


class Binding:
    """onnxruntime.IOBinding, by address only."""

    def __init__(self):
        self.inputs, self.outputs = {}, {}
        self._iobinding = self

    @staticmethod
    def _check(device, number):
        assert (device, number) == ("cuda", 0)

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr):
        self._check(device_type, device_id)
        self.inputs[name] = np.dtype(element_type), tuple(shape), buffer_ptr

    def bind_output(self, name, device_type="cpu", device_id=0, element_type=None, shape=None, buffer_ptr=None):
        self._check(device_type, device_id)
        self.outputs[name] = np.dtype(element_type), tuple(shape), buffer_ptr


class CudaSession:
    """onnxruntime.InferenceSession on CUDAExecutionProvider."""

    def __init__(self, real, content, settings):
        self._card = pretend_cuda.card
        assert settings.keys() <= OPTIONS, settings.keys() - OPTIONS
        # cuDNN and cuBLAS handles belong to it.
        self._thread = threading.get_ident()
        # Without one it has its own, which is in step with nobody's.
        stream = settings.get("user_compute_stream") or self._card.cudaStreamCreateWithFlags(1)[1]
        self._stream = int(stream)
        self._limit = int(settings["gpu_mem_limit"])
        model = onnx.load_model_from_string(content)
        self._weights = self._take(sum(math.prod(each.dims) * 4 for each in model.graph.initializer))
        self._arena, self._batch = [], 0
        self._real = real
        self._shapes = {}

    # -- memory ----------------------------------------------------------------------------------------------------

    def _take(self, size):
        status, address = self._card.cudaMalloc(max(1, size))
        if int(status):
            raise RuntimeError(
                f"CUDA failure {int(status)}: out of memory ; GPU=0 ; hostname=here ; file=cuda_allocator.cc ; line=1 ;"
                " expr=cudaMalloc((void**)&p, size);"
            )
        return address, size

    def _grow(self, batch):
        full = os.path.exists(os.path.join(os.environ.get(pretend_cuda.FOLDER, ""), "full"))  # noqa: PTH110, PTH118
        if batch <= self._batch and not full:
            return
        size = batch * IMAGE_SIZE
        held = self._weights[1] + sum(size for _, size in self._arena)
        if self._recording():
            self._spoil(900)
        if full or held + size > self._limit:
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node."
                f" Failed to allocate memory for requested buffer of size {size}"
            )
        self._arena.append(self._take(size))
        self._batch = batch

    # -- running ---------------------------------------------------------------------------------------------------

    def _recording(self):
        return self._card.streams[self._stream].recording is not None

    def _spoil(self, code):
        """As CUDA does: the capture is no good any more, and neither is this call."""
        self._card.streams[self._stream].spoiled = code
        raise RuntimeError(
            f"CUDA failure {code}: operation not permitted when stream is capturing ; GPU=0 ; hostname=here ;"
            " file=cuda_execution_provider.cc ; line=1 ; expr=cudaStreamSynchronize(stream);"
        )

    def _check_device(self):
        assert threading.get_ident() == self._thread
        if self._card.sticky:
            raise RuntimeError(f"CUDA failure {self._card.sticky}: an illegal memory access was encountered ; GPU=0")

    def _begin(self, batch, step, *, waits):
        self._check_device()
        self._grow(batch)
        self._card.enqueue(self._stream, step)
        if waits:
            if self._recording():
                self._spoil(900)
            self._card.streams[self._stream].wait()
            self._check_device()

    def io_binding(self):
        return Binding()

    def run_with_iobinding(self, binding, run_options=None):
        ((source, (dtype, shape, address)),) = binding.inputs.items()
        size = math.prod(shape) * dtype.itemsize
        names = list(binding.outputs)
        self._check_shapes(binding, source, shape)

        def step():
            self._card._check(self._card.device, address, size)
            pixels = np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape).copy()
            for name, array in zip(names, self._compute(names, source, pixels), strict=True):
                target = binding.outputs[name][2]
                self._card._check(self._card.device, target, array.nbytes)
                ctypes.memmove(target, np.ascontiguousarray(array).ctypes.data, array.nbytes)

        quiet = run_options is not None and NO_WAIT in run_options.entries and run_options.entries[NO_WAIT] == "1"
        self._begin(shape[0], step, waits=not quiet)

    def _check_shapes(self, binding, source, shape):
        """As the real one, which infers them before it begins kernels."""
        if shape not in self._shapes:
            names = list(binding.outputs)
            found = self._real.run(names, {source: np.zeros(shape, np.uint8)})
            self._shapes[shape] = {name: array.shape for name, array in zip(names, found, strict=True)}
        for name, (_, bound, _) in binding.outputs.items():
            if bound != self._shapes[shape][name]:
                raise RuntimeError(
                    f"[ONNXRuntimeError] : 1 : FAIL : OrtValue shape verification failed for {name}. Current"
                    f" shape:{bound} Requested shape:{self._shapes[shape][name]}"
                )

    def run(self, names, feed, run_options=None):
        ((source, pixels),) = feed.items()
        found = []
        self._begin(len(pixels), lambda: found.extend(self._compute(names, source, pixels)), waits=True)
        return found

    def _compute(self, names, source, pixels):
        try:
            return self._real.run(names, {source: pixels})
        except Exception as error:
            # A kernel has no exceptions.
            raise pretend_cuda.Fault(719) from error

    # -- what it says ----------------------------------------------------------------------------------------------

    @property
    def _sess(self):
        return self

    def get_providers(self):
        return [CUDA, CPU]

    def get_provider_graph_assignment_info(self):
        lacking = set(filter(None, os.environ.get(CPU_OPS, "").split(",")))
        nodes = [node for part in self._real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        left = [node for node in nodes if node.op_type in lacking]
        parts = [Assigned(CUDA, [node for node in nodes if node.op_type not in lacking])]
        return parts + ([Assigned(CPU, left)] if left else [])

    def __del__(self):
        for address, _ in [*getattr(self, "_arena", []), *([self._weights] if hasattr(self, "_weights") else [])]:
            self._card.give_back(address)


def install(module, put=setattr):
    """Patch the imported onnxruntime. `put`: as setattr, so that a test can take it back."""
    real, options = module.InferenceSession, module.RunOptions
    available = module.get_available_providers()

    class RunOptions(options):
        def __init__(self):
            super().__init__()
            self.entries = {}

        def add_run_config_entry(self, name, value):
            super().add_run_config_entry(name, value)
            self.entries[name] = value

    class InferenceSession(real):
        def __new__(cls, content, sess_options=None, providers=(), **how):
            first = providers[0] if providers else CPU
            name, settings = first if isinstance(first, tuple) else (first, {})
            on_cpu = real(content, sess_options, providers=[CPU])
            if name != CUDA or os.environ.get(NO_PROVIDER):
                return on_cpu
            assert how == {"enable_fallback": 0}, "it would fall back to the CPU"
            return CudaSession(on_cpu, content, settings)

    put(module, "InferenceSession", InferenceSession)
    put(module, "RunOptions", RunOptions)
    put(module, "get_available_providers", lambda: [CUDA, *available])
    put(module, "preload_dlls", lambda **_: sys.stdout.write("Failed to load libpretend.so\n"))
