"""What engines say, and what it means: their words as they were seen, or as CUDA gives them."""

import pytest

from gpuworker import faults
from gpuworker.backend import DeviceLost

STICKY = [
    # ONNX Runtime 1.23, github.com/microsoft/onnxruntime/issues/26312
    (
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Status Message:"
        " CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h ; file=f ; line=63 ; expr=e"
    ),
    # Code 77 until CUDA 10, known by its words
    "CUDA failure 77: an illegal memory access was encountered ; GPU=0 ; hostname=h ; expr=cudaEventDestroy(e);",
    "OSError: (External) CUDA error(700), an illegal memory access was encountered.",
    "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (unspecified launch failure)",
    "CUDA error: device-side assert triggered",
    "CUDA driver error: 716",
    "CUDA failure 702: the launch timed out and was terminated; then Failed to allocate memory for requested buffer",
]
MEMORY = [
    # Both provoked with ONNX Runtime 1.31 on the CPU
    (
        "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal("
        "size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 2199023255552"
    ),
    "Non-zero status code returned while running Expand node. Name:'' Status Message: std::bad_alloc",
    "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; expr=cudaMalloc((void**)&p, size);",
    "CUDNN failure 4000: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
    "Error Code 2: OutOfMemory (Requested size was 1 bytes.)",
]
NEITHER = [
    "CUDA failure 1: invalid argument ; GPU=0",
    "CUDA failure 98: invalid device function ; line=700 ; expr=x",
    "Non-zero status code returned while running Node 700. Name:'CUDA_700'",
    "CUDNN failure 700: whatever",
    "INVALID_ARGUMENT : Got invalid dimensions for input: x",
]


@pytest.mark.parametrize("words", STICKY)
def test_sticky_errors_lose_the_device(words):
    meaning = faults.named(RuntimeError(words))
    assert type(meaning) is DeviceLost
    assert str(meaning) == words


@pytest.mark.parametrize("code", sorted(faults.STICKY))
def test_every_code_of_the_table_is_known_by_number_and_by_words(code):
    assert type(faults.named(RuntimeError(f"CUDA failure {code}: ?"))) is DeviceLost
    assert type(faults.named(RuntimeError(f"Cuda Runtime ({faults.STICKY[code]})"))) is DeviceLost


@pytest.mark.parametrize("words", MEMORY)
def test_memory_that_is_not_there(words):
    assert type(faults.named(RuntimeError(words))) is MemoryError


@pytest.mark.parametrize("words", NEITHER)
def test_everything_else_is_itself(words):
    error = RuntimeError(words)
    assert faults.named(error) is error


@pytest.mark.parametrize("kind", [DeviceLost, MemoryError])
def test_what_has_a_name_keeps_it(kind):
    error = kind("CUDA failure 700, out of memory")
    assert faults.named(error) is error
