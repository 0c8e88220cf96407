"""Questions to libraries in processes of their own: whatever a library does to its process, there is an answer."""

from __future__ import annotations

import os
import sys

import pytest

from gpuworker.doctor import grandchild
from tests.support import pretend

pytestmark = pytest.mark.slow


@pytest.fixture
def ask(tmp_path):
    """Have `onnx` be a library of ours, and ask for its version."""

    def asked(code, timeout_s=60.0):
        (tmp_path / "onnx.py").write_text(code)
        return grandchild.ask("onnx", environ={"PYTHONPATH": str(tmp_path)}, timeout_s=timeout_s)

    return asked


def test_an_answer(ask):
    assert ask("__version__ = '9.9'") == {"version": "9.9"}


def test_what_is_printed_is_no_answer(ask):
    assert ask("import os; print('hello'); os.write(1, b'hello'); __version__ = '9.9'") == {"version": "9.9"}


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it ended the process by SIGSEGV"),
        ("import os; os.write(2, b'dying\\nof this'); os.abort()", "it ended the process by SIGABRT: of this"),
        ("import os; os._exit(3)", "it ended the process with status 3"),
        ("raise ImportError('libx.so.1: cannot open')", "ImportError: libx.so.1: cannot open"),
        ("raise OSError", "OSError"),
        ("import surely_not_there", "ModuleNotFoundError: No module named 'surely_not_there'"),
        ("pass", "AttributeError: module 'onnx' has no attribute '__version__'"),
    ],
)
def test_a_library_that_fails(ask, code, problem):
    assert ask(code) == {"problem": problem}


def test_a_library_that_hangs(ask):
    assert ask("import signal; signal.pause()", timeout_s=2.0) == {"problem": "it gave no answer within 2 s"}


def test_a_crash_at_the_end_comes_after_the_answer(ask):
    code = "import atexit, os; atexit.register(os.abort); __version__ = '9.9'"
    assert ask(code) == {"version": "9.9"}


def test_what_is_not_installed_is_absent():
    assert "tensorrt" not in sys.modules
    assert grandchild.ask("tensorrt", timeout_s=60.0) == {"absent": True}


def test_several_are_asked_at_once():
    found = grandchild.ask_all(["onnx", "tensorrt"])
    assert found["tensorrt"] == {"absent": True}
    assert found["onnx"]["version"]


TENSORRT = """
import enum

class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

class Builder:
    def __init__(self, logger):
        logger.log(ILogger.Severity.WARNING, "mind the gap")
        {begin}

    def create_builder_config(self):
        return {config}
"""
"""So much of its API as the question needs; the pretend TensorRT and the real one have the rest."""


@pytest.mark.parametrize(
    ("begin", "config", "answer"),
    [
        ("pass", "object()", {}),
        ("pass", "None", {"problem": "it makes no configuration"}),
        ("raise TypeError('nullptr')", "None", {"problem": "TypeError: nullptr"}),
        (
            "logger.log(ILogger.Severity.ERROR, 'CUDA initialization failure: 35'); raise TypeError('nullptr')",
            "None",
            {"problem": "CUDA initialization failure: 35"},
        ),
        ("import os; os.abort()", "None", {"problem": "it ended the process by SIGABRT"}),
    ],
)
def test_why_tensorrt_does_not_begin_is_told_in_its_own_words(tmp_path, begin, config, answer):
    (tmp_path / "tensorrt.py").write_text(TENSORRT.format(begin=begin, config=config))
    environ = pretend.environment(tmp_path)
    environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environ["PYTHONPATH"]])
    assert grandchild.ask("builder", environ=environ, timeout_s=60.0) == answer


def test_a_card_is_opened_as_a_worker_does(tmp_path):
    environ = pretend.environment(tmp_path)
    assert grandchild.ask("card", "cuda:0", environ=environ, timeout_s=60.0) == {"label": "Pretend GPU, 8 GiB"}
