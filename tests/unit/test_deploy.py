"""The units for systemd hold what the settings need; the image and the extras are for one CUDA."""

from __future__ import annotations

import configparser
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from gateway.config import Settings
from gateway.doctor import causes

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string((DEPLOY / name).read_text())
    return parser


def test_the_service_waits_as_long_as_the_gateway_may_take():
    service = unit("penstock.service")["Service"]
    settings = Settings()
    assert service["Type"] == "notify"
    assert int(service["TimeoutStopSec"]) >= settings.drain_timeout_s + 5
    assert int(service["TimeoutStartSec"]) >= settings.child_start_timeout_s + 15
    assert int(service["LimitNOFILE"]) > settings.connections_max
    assert service["KillMode"] == "mixed", "SIGTERM is the gateway's alone"
    assert service["RuntimeDirectoryMode"] == "0700"


def test_the_socket_is_one_that_the_gateway_takes():
    found = unit("penstock.socket")["Socket"]
    assert found["ListenStream"] == f"{Settings().host}:{Settings().port}"
    assert "Accept" not in found, "no is the default"
    assert "penstock.socket" in unit("penstock.service")["Unit"]["Requires"]


def test_the_service_on_gpus_keeps_what_is_built_and_compiled():
    service, more = unit("penstock.service")["Service"], unit("penstock-gpu.conf")["Service"]
    assert service["CacheDirectory"] == "penstock"
    assert service["CacheDirectoryMode"] == "0700", "engines are native code"
    assert more["Environment"].startswith("CUDA_CACHE_PATH=%C/penstock/"), "a folder that the service may write to"
    assert service["NoNewPrivileges"] == "yes"
    assert more["ExecStartPre"].startswith("+-/usr/bin/nvidia-modprobe"), "which is what CUDA may not start then"


@pytest.mark.parametrize("name", ["penstock.service", "penstock-gpu.conf"])
def test_no_unit_takes_from_cuda_what_it_needs(name):
    service = unit(name)["Service"]
    for setting in ("PrivateDevices", "MemoryDenyWriteExecute", "DevicePolicy", "ProcSubset", "SystemCallFilter"):
        assert setting not in service, setting


# -- one CUDA ------------------------------------------------------------------------------------------------------


def bounds(extra: str, name: str) -> dict[str, str]:
    """Floor and ceiling of a package in an extra: {">=": …, "<": …}."""
    (found,) = [each for each in EXTRAS[extra] if re.match(rf"{name}(\[|>|=|<|$)", each)]
    return dict(re.findall(r"(>=|<)([\d.]+)", found))


def major(version: str) -> int:
    return int(version.partition(".")[0])


def test_everything_for_gpus_is_for_one_cuda():
    cuda = bounds("cuda", "cuda-python")
    of = major(cuda[">="])
    assert major(cuda["<"]) == of + 1
    assert bounds("cuda", "nvidia-cublas") == {">=": str(of), "<": str(of + 1)}
    assert f"tensorrt-cu{of}>=" in "".join(EXTRAS["gpu"])
    assert "penstock[cuda]" in EXTRAS["gpu"]
    assert bounds("dev", "cuda-bindings") == cuda, "what is tested is what is installed"
    assert bounds("dev", "nvidia-ml-py") == bounds("cuda", "nvidia-ml-py")
    assert major(bounds("cuda", "nvidia-ml-py")[">="].partition(".")[2]) == causes.DRIVERS[of]
    assert re.search(r'NVIDIA_REQUIRE_CUDA="cuda>=(\d+)\.', DOCKERFILE)[1] == str(of)


def test_the_bindings_that_tests_run_on_are_of_that_cuda():
    assert major(metadata.version("cuda-bindings")) == major(bounds("cuda", "cuda-python")[">="])


def test_only_one_package_of_onnx_runtime_is_in_an_extra():
    for name, requirements in EXTRAS.items():
        whole = " ".join(requirements)
        assert not ("onnxruntime>" in whole and "onnxruntime-gpu" in whole), name
    assert "penstock[cpu" not in " ".join(EXTRAS["gpu"] + EXTRAS["cuda"])


def test_the_image_for_gpus_has_what_containers_are_given_gpus_by():
    gpu = DOCKERFILE.partition("AS gpu")[2].partition("\nFROM")[0]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in gpu, "CUDA, and NVML"
    assert "[gpu]" in gpu
    assert "nvidia/cuda" not in DOCKERFILE, "CUDA comes with the wheels; a second one would be another"


def test_images_keep_engines_where_their_user_may_write():
    (folder,) = re.findall(r"PENSTOCK_ENGINE_DIR=(\S+)", DOCKERFILE)
    assert re.search(rf"install --directory --owner=penstock --mode=0700 {folder}\b", DOCKERFILE)
