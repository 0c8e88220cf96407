"""`penstock doctor --run`: one convolution in a real worker on a device, answered to the last digit. Names uvloop.

A convolution, for it takes everything that is missing most often: cuDNN, cuBLAS, a kernel for this very card.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import uvloop

from gateway import logs
from gateway.driver import Driver
from gateway.errors import InvalidModel, Refusal
from gateway.models.repository import read_version
from gateway.scheduling.ticket import TENSOR, Priority

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion

SIDE, CHANNELS, KERNEL, FEATURES = 8, 3, 3, 4
ANSWER_TIMEOUT_S = 30.0
POLL_S = 0.05

_CONTRACT = f"""\
backend = "{{backend}}"
[input]
width = {SIDE}
height = {SIDE}
resize = "stretch"
layout = "nchw"
[output]
task = "raw"
[batching]
sizes = [1, 2]
[gpu]
tf32 = false
"""


def run(backend: str, device: str, settings: Settings, progress: Callable[[str], None]) -> str:
    """Why the trial failed; empty: the device gives right answers. Raises InvalidSettings."""
    with tempfile.TemporaryDirectory(prefix="penstock-doctor-") as folder:
        settings = msgspec.structs.replace(
            settings, devices=(device,), decoders=1, engine_dir=str(Path(folder) / "engines"), log_level="error"
        )
        stop_logs = logs.start("error")
        try:
            return uvloop.run(_run(_write(Path(folder), backend), settings, progress))
        except (InvalidModel, Refusal) as error:
            return str(error)
        finally:
            stop_logs()


def _weights() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """float32[FEATURES, CHANNELS, KERNEL, KERNEL], whole numbers from -2 to 2."""
    count = np.arange(FEATURES * CHANNELS * KERNEL * KERNEL)
    return (count * count * 3 % 101 % 5 - 2).astype(np.float32).reshape(FEATURES, CHANNELS, KERNEL, KERNEL)


def _pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8[SIDE, SIDE, CHANNELS], from 0 to 31: small, so that however a library rounds on its way, the nearest whole
    number is the right one.
    """
    count = np.arange(SIDE * SIDE * CHANNELS)
    return (count * count * 7 % 1009 % 32).astype(np.uint8).reshape(SIDE, SIDE, CHANNELS)


def _write(folder: Path, backend: str) -> ModelVersion:
    """The model as a repository has it. Raises InvalidModel."""
    try:
        from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415 - of the engines' extras
    except ImportError as error:
        raise InvalidModel(f"the trial needs {error.name}; install penstock[cpu] or penstock[gpu]") from error
    out = SIDE - KERNEL + 1
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "trial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", FEATURES, out, out])],
        [numpy_helper.from_array(_weights(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    version = folder / "trial" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(model.SerializeToString())
    (version / "model.toml").write_text(_CONTRACT.format(backend=backend))
    return read_version(version)


async def _run(model: ModelVersion, settings: Settings, progress: Callable[[str], None]) -> str:
    """Load it, send one image, compare. Raises InvalidModel, Refusal."""
    driver = Driver(settings, [model])
    driver.start()
    try:
        (line,), (state,) = driver.core.lines, driver.children.states.values()
        (worker,) = driver.core.workers
        # A model that was refused leaves a worker that is ready with none.
        while not (state.failures or (state.loaded and worker.ready)):
            if worker.restarts.failing:
                raise InvalidModel("the worker keeps dying; its last words are above")
            for stage in state.loading.values():
                progress(f"{model.contract.backend} on {settings.devices[0]}: {stage}")
            await asyncio.sleep(POLL_S)
        if state.failures:
            return next(iter(state.failures.values()))
        pixels = _pixels()
        body = driver.core.allocate_body(pixels.size)
        begin = body.region.offset
        driver.memory.bodies_view[begin : begin + pixels.size] = pixels.tobytes()
        call = driver.submit(
            line,
            body,
            [(begin, pixels.size, TENSOR)],
            priority=Priority.REALTIME,
            deadline_ns=time.monotonic_ns() + int(ANSWER_TIMEOUT_S * 1e9),
            top_k=0,
        )
        await call.answered
        (outcome,) = call.outcomes
        if isinstance(outcome, Refusal):
            raise outcome
        assert isinstance(outcome, dict), "the trial's outputs are raw"
        return _compare(pixels, outcome["y"])
    finally:
        await driver.stop(0.0)
        driver.memory.close()


def _compare(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], answer: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> str:
    """What is wrong with an answer; empty: nothing."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels.astype(np.float32), (KERNEL, KERNEL), (0, 1))
    right = np.einsum("yxcij,fcij->fyx", windows, _weights())
    if answer.shape == right.shape and np.array_equal(np.rint(answer), right):
        return ""
    return "a convolution of whole numbers came back wrong; the device or its driver cannot be trusted"
