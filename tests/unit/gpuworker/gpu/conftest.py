import importlib
import sys

import pytest

from tests.support import pretend

_OURS = ("tensorrt_library", "tensorrt_engine", "tensorrt_builder", "tensorrt_backend")


@pytest.fixture
def card(monkeypatch):
    return pretend.in_process(monkeypatch)


@pytest.fixture
def tensorrt(card, monkeypatch):
    """Make a version of TensorRT the installed one, here and for builders; returns the module."""
    monkeypatch.setenv("PYTHONPATH", str(pretend.FOLDER))

    def install(version):
        forget()
        monkeypatch.setenv("PENSTOCK_PRETEND_TENSORRT", version)
        return importlib.import_module("tensorrt")

    def forget():
        pretend.forget("tensorrt", "pretend_tensorrt", "pretend_engines", *(f"gpuworker.gpu.{name}" for name in _OURS))
        package = sys.modules["gpuworker.gpu"]
        for name in _OURS:
            vars(package).pop(name, None)

    yield install
    forget()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Engines that tests of this file need more than once; none of them counts builds there."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """A folder in which each build leaves a file."""
    folder = tmp_path / "builds"
    folder.mkdir()
    monkeypatch.setenv("PENSTOCK_PRETEND_BUILDS", str(folder))
    return folder
