"""What is said of a machine: documents in, verdicts out."""

from __future__ import annotations

import msgspec
import pytest

from gateway.doctor import causes, verdicts
from gateway.doctor.verdicts import asked_devices, good, judge, remarks, to_open
from tests.support import checkups
from tests.support.checkups import checkup, driver, gpu, host, opened, package, runtime, tensorrt

CUDA = "cuda:0"


def judged(found, names=(CUDA,), **changes):
    """Verdicts as `penstock doctor` comes to them."""
    found = checkups.over_the_wire(found)
    names = list(names)
    return judge(names, found, {choice.name: opened(**changes) for choice in to_open(names, found)})


def problems(found, names=(CUDA,), **changes):
    """(backend, problem, cure) of each verdict that is not good."""
    return [(each.backend, each.problem, each.cure) for each in judged(found, names, **changes) if not each.good]


def the_one(found, **changes):
    """The only verdict's problem and cure: one cause is said once, whatever follows from it."""
    ((backend, problem, cure),) = problems(found, **changes)
    assert backend == verdicts.ANY
    assert not good(judged(found, **changes))
    return problem, cure


def test_where_all_is_well_both_backends_are_ok():
    found = judged(checkup(), ["cpu", CUDA])
    assert [(each.device, each.backend, each.label, each.good) for each in found] == [
        ("cpu", "onnxruntime", "16 cores", True),
        (CUDA, "onnxruntime", "NVIDIA H200, 141 GiB", True),
        (CUDA, "tensorrt", "NVIDIA H200, 141 GiB", True),
    ]
    assert good(found)
    assert remarks(["cpu", CUDA], checkup()) == []


def test_a_machine_without_gpu_has_a_good_cpu_and_one_reason():
    found = checkup(**checkups.NO_DRIVER, onnxruntime=runtime(**checkups.CPU_BUILD), tensorrt=checkups.NO_TENSORRT)
    names = asked_devices((), ("cpu",), found)
    assert names == ["cpu"]
    cpu, cuda = judged(found, names)
    assert cpu.good
    assert (cuda.backend, cuda.problem, cuda.asked) == (verdicts.ANY, "there is no NVIDIA GPU in this machine", False)
    assert good([cpu, cuda])
    assert the_one(found, problem="there is none") == ("there is no NVIDIA GPU in this machine", "")
    assert the_one(checkup(**checkups.NO_DRIVER, cuda=package(""))) == ("there is no NVIDIA GPU in this machine", "")


@pytest.mark.parametrize(
    ("changes", "machine", "problem", "cure"),
    [
        pytest.param(
            {}, {"container": True}, "no NVIDIA GPU in this container", "docker run --gpus all", id="container"
        ),
        pytest.param(
            {"board_count": 2}, {}, "the bus has 2 NVIDIA GPUs, and no driver", "580 or newer", id="no module"
        ),
        pytest.param({"module": "580.65.06"}, {}, "/dev has no GPU", "nvidia-modprobe", id="no nodes"),
        pytest.param(
            {"module": "580.65.06"}, {"container": True}, "was given no GPU", "--gpus all", id="container without nodes"
        ),
        pytest.param(
            {"module": "580.65.06", "nodes": ("/dev/nvidia0",), "closed_nodes": ("/dev/nvidia0",)},
            {},
            "may not open /dev/nvidia0",
            "ls -l /dev/nvidia0",
            id="closed nodes",
        ),
        pytest.param(
            {"module": "580.65.06", "nodes": ("/dev/nvidia0",), "nvml_code": 18},
            {},
            "it was upgraded",
            "sudo reboot",
            id="upgraded",
        ),
        pytest.param(
            {"module": "580.65.06", "nodes": ("/dev/nvidia0",)},
            {},
            "the driver's library does not load",
            "libcuda.so.1",
            id="no libcuda",
        ),
        pytest.param(
            {"module": "580.65.06", "nodes": ("/dev/nvidia0",)},
            {"container": True},
            "the driver's library does not load",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            id="container without compute",
        ),
        pytest.param(
            {"module": "580.65.06", "nodes": ("/dev/nvidia0",), "libcuda": "", "visible": ""},
            {},
            "CUDA_VISIBLE_DEVICES='' hides every GPU",
            "unset CUDA_VISIBLE_DEVICES",
            id="hidden",
        ),
    ],
)
def test_why_no_gpu_can_be_used(changes, machine, problem, cure):
    whole = msgspec.structs.replace(checkups.NO_DRIVER["driver"], **changes)
    said, todo = the_one(checkup(driver=whole, gpus=(), host=host(**machine)), problem="there is none")
    assert problem in said
    assert cure in todo


def test_without_nvml_a_gpu_is_opened_by_its_number():
    found = checkup(gpus=(), nvml=package(""), driver=driver(nvml_code=0, version=""))
    (choice,) = to_open([CUDA], found)
    assert choice.given == CUDA
    assert good(judged(found))
    assert "nvidia-ml-py is not installed" in remarks([CUDA], found)[0].text


@pytest.mark.parametrize(
    ("changes", "problem", "cure"),
    [
        pytest.param({"cuda": package("")}, "cuda-python is not installed", causes.INSTALL, id="no cuda-python"),
        pytest.param(
            {"cuda": package("", "ImportError: libstdc++.so.6")},
            "cuda-python does not import: ImportError: libstdc++.so.6",
            "pip install --force-reinstall 'penstock[gpu]'",
            id="broken cuda-python",
        ),
    ],
)
def test_what_every_backend_lacks_is_said_once_and_nothing_is_opened(changes, problem, cure):
    assert to_open([CUDA], checkup(**changes)) == []
    assert the_one(checkup(**changes)) == (problem, cure)


@pytest.mark.parametrize(
    ("changes", "problem", "cure"),
    [
        pytest.param(
            {"driver": driver(version="535.183.01", cuda=12020)},
            "cuda-python is for CUDA 13, which needs driver 580 or newer, and 535.183.01 is loaded",
            "install NVIDIA's driver, 580 or newer",
            id="old driver",
        ),
        pytest.param(
            {"driver": driver(closed_nodes=("/dev/nvidia-uvm",))},
            "this user may not open /dev/nvidia-uvm",
            "ls -l /dev/nvidia-uvm, and join its group",
            id="closed",
        ),
        pytest.param(
            {"driver": driver(unified_memory=False)},
            "/dev/nvidia-uvm is missing, which CUDA needs and may not make here",
            "sudo nvidia-modprobe -u -c=0",
            id="no uvm",
        ),
        pytest.param(
            {"gpus": (gpu(compute_mode=2),)},
            "NVIDIA H200 is in compute mode 'prohibited'",
            "sudo nvidia-smi -i 0 -c DEFAULT",
            id="prohibited",
        ),
        pytest.param(
            {"gpus": (gpu(compute_mode=3, occupants=(checkups.occupant(),)),)},
            "NVIDIA H200 takes one process, and has python (pid 42)",
            "sudo nvidia-smi -i 0 -c DEFAULT",
            id="exclusive",
        ),
        pytest.param({}, "the GPU sulks", "hug it", id="its own words"),
    ],
)
def test_why_a_gpu_that_is_there_does_not_open(changes, problem, cure):
    assert the_one(checkup(**changes), problem="the GPU sulks; hug it") == (problem, cure)


@pytest.mark.parametrize(
    "changes",
    [
        {"driver": driver(closed_nodes=("/dev/nvidia-uvm",), unified_memory=False, libcuda="it sulks", visible="0")},
        {"driver": driver(version="535.183.01", cuda=13000)},
        checkups.NO_DRIVER,
        {"gpus": (gpu(compute_mode=3, occupants=(checkups.occupant(),)),)},
    ],
)
def test_what_opens_is_not_judged_by_what_could_have_kept_it_closed(changes):
    assert problems(checkup(**changes)) == []


BOTH = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}


@pytest.mark.parametrize(
    ("changes", "problem", "cure"),
    [
        pytest.param(
            {"onnxruntime": runtime(installed={}, version="", providers=())},
            "onnxruntime-gpu is not installed",
            causes.INSTALL,
            id="absent",
        ),
        pytest.param(
            {"onnxruntime": runtime(**checkups.CPU_BUILD)},
            "onnxruntime 1.31.1 is a build for the CPU",
            causes.REINSTALL,
            id="the other package",
        ),
        pytest.param(
            {"onnxruntime": runtime(**{**checkups.CPU_BUILD, "installed": BOTH})},
            "onnxruntime and onnxruntime-gpu are both installed, in each other's files",
            causes.REINSTALL,
            id="both",
        ),
        pytest.param(
            {
                "onnxruntime": runtime(
                    provider="libcublas.so.13 is not here; install onnxruntime-gpu[cuda,cudnn], which"
                )
            },
            "libcublas.so.13 is not here",
            causes.LIBRARIES,
            id="a library",
        ),
        pytest.param(
            {"onnxruntime": runtime(provider="the driver's library is not here; install the driver")},
            "the driver's library is not here",
            "install the driver",
            id="another cure",
        ),
        pytest.param(
            {"onnxruntime": runtime(version="", problem="it ended the process by SIGSEGV", providers=())},
            "onnxruntime-gpu does not import: it ended the process by SIGSEGV",
            "pip install --force-reinstall 'penstock[gpu]'",
            id="crashes",
        ),
        pytest.param(
            {
                "gpus": (gpu(capability=(7, 0), name="Tesla V100"),),
                "tensorrt": tensorrt(installed={"tensorrt": "8.6.1"}),
            },
            "onnxruntime-gpu is for CUDA 13, whose compute capability starts at 7.5; Tesla V100 has 7.0",
            "",
            id="old card",
        ),
        pytest.param(
            {
                "driver": driver(version="570.10", cuda=12080),
                "tensorrt": tensorrt(installed={"tensorrt-cu12": "10.13.0.35"}),
            },
            "onnxruntime-gpu is for CUDA 13, which needs driver 580 or newer, and 570.10 is loaded",
            "install NVIDIA's driver, 580 or newer",
            id="old driver",
        ),
    ],
)
def test_what_onnx_runtime_lacks_leaves_tensorrt_usable(changes, problem, cure):
    assert problems(checkup(**changes)) == [("onnxruntime", problem, cure)]
    assert good(judged(checkup(**changes))), "one backend will do"


@pytest.mark.parametrize(
    ("changes", "trial", "problem", "cure"),
    [
        pytest.param({"tensorrt": checkups.NO_TENSORRT}, {}, "tensorrt is not installed", causes.INSTALL, id="absent"),
        pytest.param(
            {"engines": checkups.engines(problem="/e is open to other users; chmod 700 /e")},
            {},
            "/e is open to other users",
            "chmod 700 /e",
            id="folder",
        ),
        pytest.param(
            {"tensorrt": tensorrt(version="", problem="ImportError: libnvinfer.so.11: cannot open shared object file")},
            {},
            "tensorrt does not import: ImportError: libnvinfer.so.11: cannot open shared object file",
            "pip install --force-reinstall 'penstock[gpu]'",
            id="no libnvinfer",
        ),
        pytest.param(
            {"tensorrt": tensorrt(builder=False)},
            {},
            "tensorrt 11.4.0.106 builds no engines from ONNX: it is a runtime only",
            causes.INSTALL,
            id="no builder",
        ),
        pytest.param(
            {"tensorrt": tensorrt(parser=False)},
            {},
            "tensorrt 11.4.0.106 builds no engines from ONNX: it is a runtime only",
            causes.INSTALL,
            id="no parser",
        ),
        pytest.param(
            {},
            {"tensorrt": "TypeError: pybind11::init(): factory function returned nullptr"},
            "tensorrt does not start: TypeError: pybind11::init(): factory function returned nullptr",
            "",
            id="does not start",
        ),
        pytest.param(
            {
                "driver": driver(version="550.54.15", cuda=12040),
                "onnxruntime": runtime(cuda="12.8"),
                "cuda": package("12.9.0"),
            },
            {},
            "tensorrt is for CUDA 13, which needs driver 580 or newer, and 550.54.15 is loaded",
            "install NVIDIA's driver, 580 or newer",
            id="old driver",
        ),
    ],
)
def test_what_tensorrt_lacks_leaves_onnx_runtime_usable(changes, trial, problem, cure):
    assert problems(checkup(**changes), **trial) == [("tensorrt", problem, cure)]
    assert good(judged(checkup(**changes), **trial))


def test_without_onnx_no_backend_prepares_a_graph():
    found = checkup(onnx=package(""))
    assert [problem for _, problem, _ in problems(found, ["cpu", CUDA])] == ["onnx is not installed"] * 3
    assert not good(judged(found, ["cpu"]))
    assert problems(found, ["cpu"])[0][2] == causes.INSTALL_CPU


def test_the_cpu_runs_on_the_build_for_gpus_too():
    assert good(judged(checkup(**checkups.NO_DRIVER), ["cpu"]))


@pytest.mark.parametrize(
    ("given", "settings", "gpus", "asked"),
    [
        (["cuda:1", "cuda:1"], ("cpu",), 1, ["cuda:1"]),
        ([], ("cuda:0", "cpu"), 2, ["cuda:0", "cpu"]),
        ([], ("cpu",), 2, ["cpu", "cuda:0", "cuda:1"]),
        ([], ("cpu",), 0, ["cpu"]),
    ],
)
def test_what_is_judged(given, settings, gpus, asked):
    found = checkup(gpus=tuple(gpu(index=index, uuid=f"GPU-{index}") for index in range(gpus)))
    assert asked_devices(given, settings, found) == asked


def test_a_gpu_that_works_does_not_excuse_one_that_was_asked_for():
    found = judged(checkup(), [CUDA, "cuda:1"])
    (missing,) = (each for each in found if not each.good)
    assert (missing.device, missing.backend) == ("cuda:1", verdicts.ANY)
    assert missing.problem.startswith("cuda:1 is not there")
    assert not good(found)


def test_a_device_whose_only_trial_fails_cannot_be_used():
    ort, trt = judged(checkup(tensorrt=checkups.NO_TENSORRT))
    assert good([ort, trt])
    assert good([verdicts.tried(ort, ""), trt])
    failed = verdicts.tried(ort, "a convolution came back wrong")
    assert failed.problem == "its trial failed: a convolution came back wrong"
    assert not good([failed, trt])


def test_what_is_worth_knowing_of_a_gpu_that_works():
    busy = gpu(persistence=False, compute_mode=3, occupants=(checkups.occupant(), checkups.occupant(memory_size=None)))
    found = checkup(
        gpus=(busy, gpu(index=1, uuid=checkups.OTHER, name="another", persistence=False)),
        onnxruntime=runtime(installed=BOTH),
        engines=checkups.engines(path=""),
    )
    said = remarks([CUDA], found)
    assert [each.text for each in said] == [
        "onnxruntime and onnxruntime-gpu are both installed; whichever came last wrote over the other's files",
        "NVIDIA H200: persistence mode is off; each first start waits until the driver has woken the GPU",
        "NVIDIA H200 takes one process: models are replaced only after the old worker has gone",
        "NVIDIA H200: python (pid 42) has a context and 512 MiB",
        "NVIDIA H200: python (pid 42) has a context",
        "this user has no home folder to keep engines in: every start builds them again",
    ]
    assert "nvidia-smi -i 0 -c DEFAULT" in said[2].cure
