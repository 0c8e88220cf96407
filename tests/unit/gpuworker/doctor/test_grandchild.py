"""Questions to libraries in processes of their own: whatever a library does to its process, there is an answer."""

from __future__ import annotations

import sys

import pytest

from gpuworker.doctor import grandchild

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
