"""Triton, as PyTriton brings it: its C++ front and batcher, one Python function per core."""

from __future__ import annotations

import os
import sysconfig

import numpy as np
import orjson
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from work import CORES, PORT, Work


def function():  # noqa: ANN201 - what bind() takes
    """One instance with a decoder and a model of its own: PyTriton calls each from a thread of its own."""
    work = Work()

    @batch
    def predict(image):  # noqa: ANN001, ANN202 - object[n, 1] of bytes
        rows = work.run([work.decode(row[0]) for row in image])
        return {"answer": np.array([[orjson.dumps(row)] for row in rows], dtype=object)}

    return predict


if __name__ == "__main__":
    # PyTriton's stub links to libpython by name: without this it takes the system's, whose patch level may not be that
    # of the standard library that it then reads.
    library = sysconfig.get_config_var("LIBDIR")
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [library, os.environ.get("LD_LIBRARY_PATH")]))
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        allow_grpc=False,
        allow_metrics=False,
        http_thread_count=max(2, CORES),
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        # A dynamic batcher without delay, and one instance per core.
        # Source: Triton, "Batchers", https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/batcher.html
        # and PyTriton, https://triton-inference-server.github.io/pytriton/latest/binding_models
        triton.bind(
            model_name="photos",
            infer_func=[function() for _ in range(CORES)],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
            strict=False,
        )
        triton.serve()
