"""Reads from an engine's words whether memory ran out, or the device is lost. Engines have no exceptions of their own
for either, and go on as if the next run could be better.

Pure: text in, verdict out, so that it is tested without a GPU.
"""

from __future__ import annotations

import re

from gpuworker.backend import DeviceLost

STICKY = {
    214: "uncorrectable ECC error encountered",
    220: "uncorrectable NVLink error detected during the execution",
    226: "Invalid access of peer GPU memory over nvlink or a hardware error",
    700: "an illegal memory access was encountered",
    702: "the launch timed out and was terminated",
    709: "context is destroyed",
    710: "device-side assert triggered",
    714: "hardware stack error",
    715: "an illegal instruction was encountered",
    716: "misaligned address",
    717: "operation not supported on global/shared address space",
    718: "invalid program counter",
    719: "unspecified launch failure",
    721: "tensor memory not completely freed",
    810: "the MPS client has been terminated by the server",
    911: "an async error has occured in external entity outside of CUDA",
}
"""CUDA's codes after which every call of the process fails, with CUDA's words for them: some engines name the one, some
the other. Source: the documentation of cudaError_t ("the process must be terminated and relaunched"); cuGetErrorString.
"""

_OUT_OF_MEMORY = 2
_CODE = re.compile(r"\bcuda(?: driver| runtime)? (?:failure|error)(?: code)?[ :(=]*(\d+)")

_ALLOCATION = (
    "failed to allocate memory",  # ONNX Runtime's arena
    "std::bad_alloc",  # ONNX Runtime without an arena
    "out of memory",  # CUDA's words for its code 2
    "outofmemory",  # TensorRT
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def cuda_codes(error: BaseException) -> set[int]:
    """Every cudaError_t that an engine's exception names."""
    return {int(code) for code in _CODE.findall(str(error).lower())}


def named(error: Exception) -> Exception:
    """What an engine's exception means: DeviceLost, MemoryError, or itself."""
    if isinstance(error, DeviceLost | MemoryError):
        return error
    text = str(error).lower()
    codes = cuda_codes(error)
    # First, for a lost device also fails to allocate.
    if codes & STICKY.keys() or any(words.lower() in text for words in STICKY.values()):
        return DeviceLost(str(error))
    if _OUT_OF_MEMORY in codes or any(words in text for words in _ALLOCATION):
        return MemoryError(str(error))
    return error
