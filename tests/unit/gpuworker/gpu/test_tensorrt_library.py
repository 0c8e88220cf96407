"""TensorRT's words, and what its import says when its own libraries are missing."""

import importlib
import sys

import pytest

from gateway.errors import InvalidModel
from gpuworker.backend import DeviceLost, Setup, open_backend
from gpuworker.device import Device
from tests.support import graphs, pretend


@pytest.fixture
def library(tensorrt):
    tensorrt("10.13")
    return importlib.import_module("gpuworker.gpu.tensorrt_library")


def test_errors_are_kept_for_whoever_asks_and_warnings_are_logged(library, capfd):
    severity = library.trt.ILogger.Severity
    for kind in severity:
        library.WORDS.log(kind, f"a line of {kind.name}")
    assert library.WORDS.take() == "a line of INTERNAL_ERROR; a line of ERROR"
    assert library.WORDS.take() == ""
    assert [line.count('"event":"tensorrt_said"') for line in capfd.readouterr().err.splitlines()] == [1, 1, 1]


def test_only_the_last_errors_are_kept(library):
    for number in range(library.WORDS_MAX + 3):
        library.WORDS.log(library.trt.ILogger.Severity.ERROR, str(number))
    assert library.WORDS.take().split("; ") == [str(number) for number in range(3, library.WORDS_MAX + 3)]


def test_no_exception_goes_back_into_the_library(library, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no line")

    monkeypatch.setattr(library.log, "event", fail)
    library.WORDS.log(library.trt.ILogger.Severity.ERROR, "words")
    assert library.WORDS.take() == "words"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)", MemoryError),
        ("Error Code 1: Cuda Runtime (an illegal memory access was encountered)", DeviceLost),
        ("Error Code 4: Internal Error (network is broken)", InvalidModel),
        (None, InvalidModel),
    ],
)
def test_what_a_no_means_is_in_the_words_before_it(library, words, kind):
    if words is not None:
        library.WORDS.log(library.trt.ILogger.Severity.ERROR, words)
    error = library.failure("does not do it")
    assert type(error) is kind
    if kind is InvalidModel:
        assert str(error) == "TensorRT 10.13.0.1 does not do it; its own words are in the log"


@pytest.mark.parametrize("raised", ["OSError('libnvinfer.so.10: no such file')", "ImportError('libnvinfer.so.10')"])
def test_a_library_without_its_libraries_is_not_installed(card, monkeypatch, tmp_path, raised):
    (tmp_path / "tensorrt.py").write_text(f"raise {raised}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(each for each in sys.path if each != str(pretend.FOLDER))])
    pretend.forget("tensorrt", "gpuworker.gpu.tensorrt_library", "gpuworker.gpu.tensorrt_backend")
    with pytest.raises(InvalidModel, match=r"needs .*, which does not import here; install penstock\[gpu\]"):
        open_backend(graphs.contract('backend = "tensorrt"'), tmp_path, Setup(Device("cuda", "0"), 1))
