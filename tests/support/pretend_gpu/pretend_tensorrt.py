"""What all of the pretend TensorRT stands on: which version it is, its enumerations, its logger, and the card.

Of FACTS, which were read off the real modules, everything has the names that it has.
"""

import enum
import json
import os
from pathlib import Path

import numpy as np
import pretend_cuda
from onnx import TensorProto

VERSION = os.environ.get("PENSTOCK_PRETEND_TENSORRT", "10.13")
ALL = json.loads((Path(__file__).parents[1] / "tensorrt_api.json").read_text())
FACTS = next(facts for version, facts in ALL.items() if version.startswith(VERSION))
MAJOR = int(VERSION.split(".")[0])
MAGIC = b"pretend plan\n"
SCRATCH_SIZE = 1 << 16


class Enum(enum.Enum):
    def __int__(self):
        return self.value


def make_enum(name):
    return Enum(name.rpartition(".")[2], FACTS["enums"][name]) if name in FACTS["enums"] else None


DataType = make_enum("DataType")
BuilderFlag = make_enum("BuilderFlag")
NetworkDefinitionCreationFlag = make_enum("NetworkDefinitionCreationFlag")
MemoryPoolType = make_enum("MemoryPoolType")
TensorIOMode = make_enum("TensorIOMode")
TensorLocation = make_enum("TensorLocation")
TensorFormat = make_enum("TensorFormat")
ExecutionContextAllocationStrategy = make_enum("ExecutionContextAllocationStrategy")

ELEMENTS = {
    TensorProto.FLOAT: ("FLOAT", np.float32),
    TensorProto.FLOAT16: ("HALF", np.float16),
    TensorProto.UINT8: ("UINT8", np.uint8),
    TensorProto.INT8: ("INT8", np.int8),
    TensorProto.INT32: ("INT32", np.int32),
    TensorProto.INT64: ("INT64", np.int64) if "INT64" in FACTS["enums"]["DataType"] else ("INT32", np.int32),
    TensorProto.BOOL: ("BOOL", np.bool_),
    TensorProto.BFLOAT16: ("BF16", None),
}


def the_card():
    if pretend_cuda.card is None:
        from cuda.bindings import runtime  # noqa: PLC0415 - imported, it is patched

        assert runtime is not None
    return pretend_cuda.card


def the_gpu():
    return f"{pretend_cuda.NAME} {the_card().memory_size}"


class Bound:
    """As pybind11's classes: no attributes but those that were declared."""

    def __setattr__(self, name, value):
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
        object.__setattr__(self, name, value)


class ILogger:
    Severity = make_enum("ILogger.Severity")
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE

    def __init__(self):
        self._made = True


def say(logger, severity, text):
    assert logger._made, "ILogger.__init__ was not called"
    logger.log(severity, text)


class IProgressMonitor:
    def __init__(self):
        self._made = True


class IHostMemory(bytearray):
    @property
    def nbytes(self):
        return len(self)


PLUGIN_OPERATORS = {"InstanceNormalization", "RoiAlign"}
registered = False


def init_libnvinfer_plugins(logger, namespace):
    global registered  # noqa: PLW0603 - there is one registry
    registered = True
    return True


def lacks_plugin(node):
    return node.op_type in PLUGIN_OPERATORS and not registered
