"""Any Python process with this folder on PYTHONPATH finds a pretend card: workers, builders, the gateway's NVML.

A library is patched when it is imported, and only if it is.
"""

import importlib
import importlib.util
import sys

PATCHES = {
    "cuda.bindings.runtime": "pretend_cuda",
    "gateway.config": "pretend_settings",
    "gpuworker.backend": "pretend_rows",
    "onnxruntime": "pretend_onnxruntime",
}
"""Imported module → module here, whose `install(module)` puts the pretence in. What is not installed at all (tensorrt),
or asks a driver (pynvml), is a module of that name in this folder."""


class Patcher:
    """Finds as everybody does, then patches what was loaded."""

    def find_spec(self, name, path=None, target=None):
        if name not in PATCHES or importlib.util.find_spec(PATCHES[name]) is None:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            importlib.import_module(PATCHES[name]).install(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Patcher())
