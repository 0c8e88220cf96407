"""What every test here is under: a card that CUDA sees, or the tests are skipped and say why."""

from __future__ import annotations

import pytest

from gpuworker.gpu.card import Card, CudaError

BACKENDS = [("onnxruntime", "float32"), ("onnxruntime", "float16"), ("tensorrt", "float32"), ("tensorrt", "float16")]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu" and "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            # The first process of a machine reads gigabytes of libraries, and TensorRT builds.
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(autouse=True, scope="session")
def card():
    """Looked for as a worker looks; no context is opened in this process, so that it holds no device memory."""
    try:
        count = Card.count()
    except CudaError as error:
        pytest.skip(f"there is no card: {error}")
    if not count:
        pytest.skip("there is no card: CUDA sees none")


@pytest.fixture(params=BACKENDS, ids=" ".join)
def engine(request):
    """(backend, precision)"""
    return request.param
