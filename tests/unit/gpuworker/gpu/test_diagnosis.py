"""What is missing for CUDA, in words that onnxruntime-gpu 1.31.1 (CUDA 13.0) made the loader say without a card."""

import contextlib
import ctypes
import importlib.metadata
import sys
import types

import onnxruntime
import pytest

from gpuworker.gpu import diagnosis
from tests.support import pretend

INSTALL = "install onnxruntime-gpu[cuda,cudnn], which brings CUDA's libraries and cuDNN"
NO_CUBLAS = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
NO_DRIVER = "libcuda.so.1: cannot open shared object file: No such file or directory"
NO_CUDNN = "libcudnn.so.9: cannot open shared object file: No such file or directory"
NO_SYMBOL = "/opt/ort/capi/libonnxruntime_providers_cuda.so: undefined symbol: cuTensorMapEncodeTiled"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (NO_CUBLAS, f"libcublasLt.so.13 of CUDA 13.0 is not here; {INSTALL}"),
        (NO_CUDNN, f"libcudnn.so.9 of cuDNN is not here; {INSTALL}"),
        (
            NO_DRIVER,
            (
                "libcuda.so.1, the NVIDIA driver's library, is not here; install the driver, and in a container start"
                " it with --gpus"
            ),
        ),
        (
            NO_SYMBOL,
            (
                "ONNX Runtime's CUDA provider does not load (libonnxruntime_providers_cuda.so: undefined symbol:"
                f" cuTensorMapEncodeTiled); {INSTALL}"
            ),
        ),
    ],
)
def test_a_library_that_does_not_load_is_named(words, said):
    assert diagnosis.library_problem(words, "13.0") == said


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (
            {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"},
            (
                "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.0 are both installed and overwrite each other's files;"
                " uninstall both, then install penstock[gpu]"
            ),
        ),
        (
            {"onnxruntime": "1.31.1"},
            "onnxruntime 1.31.1 is the build for CPUs only; uninstall it, then install penstock[gpu]",
        ),
        ({}, f"ONNX Runtime 1.31.1 was built without CUDA; {INSTALL}"),
    ],
)
def test_a_package_without_cuda_is_named(installed, said):
    assert diagnosis.package_problem(installed, "1.31.1") == said


def test_the_package_that_is_here_is_for_cpus():
    assert importlib.metadata.version("onnxruntime") == onnxruntime.__version__
    assert diagnosis.cuda_provider_problem() == (
        f"onnxruntime {onnxruntime.__version__} is the build for CPUs only; uninstall it, then install penstock[gpu]"
    )


def test_without_onnxruntime_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert diagnosis.cuda_provider_problem() == (
        f"ONNX Runtime does not import (import of onnxruntime halted; None in sys.modules); {INSTALL}"
    )


@pytest.fixture
def built_for_cuda(monkeypatch, tmp_path):
    """The build with CUDA, whose provider's libraries are in `tmp_path`, and which `loads` opens or refuses."""
    capi = tmp_path / "capi"
    capi.mkdir()
    (capi / "libonnxruntime_providers_cuda.so").touch()
    module = types.SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        __version__="1.31.1",
        cuda_version="13.0",
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        preload_dlls=lambda: sys.stdout.write(f"Failed to load {NO_CUBLAS}\n"),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    opened = []

    def use(refused=""):
        def load(path):
            opened.append(path.rpartition("/")[2])
            if refused and refused in path:
                raise OSError(NO_CUDNN if "cudnn" in refused else NO_CUBLAS)

        monkeypatch.setattr(ctypes, "CDLL", load)
        return opened

    return use


def test_the_provider_is_opened_as_onnxruntime_does_and_cudnn_behind_it(built_for_cuda, capfd):
    opened = built_for_cuda()
    assert diagnosis.cuda_provider_problem() is None
    assert opened == ["libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so", "libcudnn.so.9"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("refused", "said"),
    [("providers_cuda", "libcublasLt.so.13 of CUDA 13.0"), ("libcudnn", "libcudnn.so.9 of cuDNN")],
)
def test_the_first_that_does_not_load_is_told(built_for_cuda, refused, said):
    built_for_cuda(refused)
    assert diagnosis.cuda_provider_problem() == f"{said} is not here; {INSTALL}"


def test_the_pretence_has_no_problem(monkeypatch):
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        pretend.in_process(patch)
        pretend.onnxruntime(patch)
        assert diagnosis.cuda_provider_problem() is None
    assert diagnosis.cuda_provider_problem() is not None


@pytest.mark.parametrize(
    ("code", "word"), [(35, "driver"), (100, "nvidia-smi -L"), (802, "fabricmanager"), (999, "uvm")]
)
def test_a_card_that_cannot_be_opened_has_its_words(code, word):
    assert word in diagnosis.card_problem(code)


def test_other_codes_are_not_about_the_machine():
    assert diagnosis.card_problem(700) is None
