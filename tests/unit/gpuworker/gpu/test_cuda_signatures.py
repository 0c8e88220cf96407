"""What card.py calls, held to the installed cuda-python: names, arguments in order, results. Its functions take no
keywords from us and say their signatures in their docstrings only; the table was the same in 12.9 to 13.5.
"""

import ast
import inspect
import re

import pytest
from cuda.bindings import runtime as cudart

from gpuworker import faults
from gpuworker.gpu import card

CALLS = {
    "cudaDeviceSynchronize": ("", ""),
    "cudaDriverGetVersion": ("", "driverVersion"),
    "cudaEventCreateWithFlags": ("flags", "event"),
    "cudaEventElapsedTime": ("start end", "ms"),
    "cudaEventRecord": ("event stream", ""),
    "cudaEventSynchronize": ("event", ""),
    "cudaFree": ("devPtr", ""),
    "cudaFreeHost": ("ptr", ""),
    "cudaGetDeviceCount": ("", "count"),
    "cudaGetDeviceProperties": ("device", "prop"),
    "cudaGetErrorName": ("error", "*"),
    "cudaGetErrorString": ("error", "*"),
    "cudaGetLastError": ("", ""),
    "cudaGraphDestroy": ("graph", ""),
    "cudaGraphExecDestroy": ("graphExec", ""),
    "cudaGraphGetNodes": ("graph numNodes", "nodes numNodes"),
    "cudaGraphInstantiate": ("graph flags", "pGraphExec"),
    "cudaGraphLaunch": ("graphExec stream", ""),
    "cudaGraphMemcpyNodeGetParams": ("node", "pNodeParams"),
    "cudaGraphNodeGetType": ("node", "pType"),
    "cudaHostAlloc": ("size flags", "pHost"),
    "cudaMalloc": ("size", "devPtr"),
    "cudaMemGetInfo": ("", "free total"),
    "cudaMemcpyAsync": ("dst src count kind stream", ""),
    "cudaPointerGetAttributes": ("ptr", "attributes"),
    "cudaRuntimeGetVersion": ("", "runtimeVersion"),
    "cudaSetDevice": ("device", ""),
    "cudaStreamBeginCapture": ("stream mode", ""),
    "cudaStreamCreateWithFlags": ("flags", "pStream"),
    "cudaStreamEndCapture": ("stream", "pGraph"),
    "cudaStreamSynchronize": ("stream", ""),
    "cudaStreamWaitEvent": ("stream event flags", ""),
}
"""Function → arguments, and results behind the status; "*": documented otherwise than the rest."""

NUMBERS = {
    "cudaEventBlockingSync": 1,
    "cudaEventDisableTiming": 2,
    "cudaHostAllocDefault": 0,
    "cudaStreamNonBlocking": 1,
}


def test_everything_that_the_card_calls_is_in_the_table():
    names = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(card)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cudart"
    }
    functions = {name for name in names if not inspect.isclass(getattr(cudart, name)) and name not in NUMBERS}
    assert functions <= CALLS.keys()
    assert len(functions) > 20


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_function_takes_and_gives_what_is_expected(name):
    arguments, results = CALLS[name]
    lines = (getattr(cudart, name).__doc__ or "").strip().splitlines()
    found = re.fullmatch(rf"{name}\((.*)\).*", lines[0].strip())
    assert found, lines[0]
    assert [named(each) for each in found[1].split(",") if each.strip()] == arguments.split()
    if results != "*":
        assert given(lines) == results.split()


def named(argument):
    """The name in "unsigned int flags", "kind: cudaMemcpyKind", or "size_t numNodes=0"."""
    return argument.partition("=")[0].partition(":")[0].split()[-1]


def given(lines):
    """Names of the section "Returns" behind the status."""
    texts = [line.strip() for line in lines]
    rest = lines[texts.index("Returns") + 2 :]
    depth = min(len(line) - len(line.lstrip()) for line in rest if line.strip())
    names = []
    for line in rest:
        if set(line.strip()) == {"-"}:
            # Under the next section's title.
            names.pop()
            break
        if line.strip() and len(line) - len(line.lstrip()) == depth:
            names.append(line.partition(" : ")[0].strip())
    assert names[0] == "cudaError_t"
    return [name for name in names[1:] if name.isidentifier() and name != "None"]


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_flag_is_the_number_that_cuda_gives_it(name):
    assert getattr(cudart, name) == NUMBERS[name]


def test_the_properties_that_the_card_reads_are_there():
    properties = cudart.cudaDeviceProp()
    for name in ("name", "totalGlobalMem", "major", "minor", "multiProcessorCount"):
        assert hasattr(properties, name), name


def test_a_stream_is_an_integer_for_other_libraries():
    stream = card.Stream.__new__(card.Stream)
    stream.handle = cudart.cudaStream_t(4711)
    assert stream.address == 4711


def test_codes_after_which_cuda_wants_a_new_process_are_known():
    wants = {
        int(code)
        for code in cudart.cudaError_t
        if "process must be terminated and relaunched" in " ".join((code.__doc__ or "").split())
    }
    assert 700 in wants
    assert wants <= faults.STICKY.keys()


@pytest.mark.parametrize("code", sorted(faults.STICKY))
def test_words_for_a_code_are_cudas(code):
    status, words = cudart.cudaGetErrorString(cudart.cudaError_t(code))
    assert status == cudart.cudaError_t.cudaSuccess
    assert words.decode() == faults.STICKY[code]
