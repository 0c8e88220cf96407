"""Which GPU a setting means, by pretend NVML, whose functions take what the real library's take."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest

from gateway import gpus, paths
from gateway.errors import InvalidSettings
from gateway.gpus import Gpu, Memory, held_sizes, listed, look, memory, resolve, visible
from tests.support import pretend

MIB = 1 << 20


@pytest.fixture
def two(monkeypatch, tmp_path):
    """Two GPUs. Returns pretend NVML."""
    return pretend.nvml(monkeypatch, gpus=2, dir=tmp_path)


@pytest.fixture
def sliced(monkeypatch, tmp_path):
    """One GPU that is cut in two slices."""
    return pretend.nvml(monkeypatch, gpus="mig", dir=tmp_path)


def uuid(place):
    return importlib.import_module("pretend_gpus").uuid(place)


def slices():
    return importlib.import_module("pretend_gpus").SLICES


def refusal(*devices, mask=None):
    with pytest.raises(InvalidSettings) as caught:
        resolve(devices, {} if mask is None else {gpus.VISIBLE: mask})
    return str(caught.value)


# -- which one -------------------------------------------------------------------------------------------------------


def test_a_gpu_is_given_by_its_uuid_whatever_it_is_called(two):
    assert resolve(["cuda:1", "cpu", "cuda:0"], {}) == (f"cuda:{uuid(1)}", "cpu", f"cuda:{uuid(0)}")
    assert resolve([f"cuda:{uuid(1)}"], {}) == (f"cuda:{uuid(1)}",)
    assert resolve(["cuda:GPU-00000001"], {}) == (f"cuda:{uuid(1)}",), "the beginning that is one's own is enough"


def test_without_gpus_in_the_settings_nvml_is_not_asked(monkeypatch):
    monkeypatch.setattr(gpus, "nvml", None)
    assert resolve(["cpu"], {}) == ("cpu",)


@pytest.mark.parametrize(
    ("mask", "places"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [0, 2]),
        ("1,-1,0", [1]),
        ("1,7,0", [1]),
        ("GPU-00000002, 1", [1, 2]),
        ("GPU-0000000", []),
        ("gpu-00000002", []),
        ("GPU-00000001-1111-2222-3333-444444444444,0", [0, 1]),
        ("all", []),
    ],
)
def test_what_an_operator_leaves_visible_counts_in_the_order_of_the_bus(monkeypatch, mask, places):
    pretend.nvml(monkeypatch, gpus=3)
    assert visible(listed(), mask) == [Gpu(uuid(place), "Pretend GPU") for place in places]
    for count, place in enumerate(places):
        environ = {} if mask is None else {gpus.VISIBLE: mask}
        assert resolve([f"cuda:{count}"], environ) == (f"cuda:{uuid(place)}",)


def test_the_order_is_that_of_the_bus_and_not_that_of_nvml(two, monkeypatch):
    def turned_round(handle):
        return SimpleNamespace(domain=0, bus=9 - int(handle.uuid.split("-")[1]), device=0)

    monkeypatch.setattr(two, "nvmlDeviceGetPciInfo", turned_round)
    assert [gpu.uuid for gpu in listed()] == [uuid(1), uuid(0)]
    assert resolve(["cuda:0"], {}) == (f"cuda:{uuid(1)}",)


def test_one_that_is_lost_is_not_there(two, monkeypatch):
    def lost(index):
        if index == 0:
            raise two.NVMLError(two.NVML_ERROR_GPU_IS_LOST)
        return two.Handle(uuid(index))

    monkeypatch.setattr(two, "nvmlDeviceGetHandleByIndex", lost)
    assert [gpu.uuid for gpu in listed()] == [uuid(1)]
    assert held_sizes() == {}


def test_one_that_is_not_there_is_refused_with_those_that_are(two):
    words = refusal("cuda:2")
    assert "cuda:2 is not there" in words
    assert f"cuda:0 is {uuid(0)}, Pretend GPU; cuda:1 is {uuid(1)}" in words
    assert "CUDA_VISIBLE_DEVICES" not in words
    assert "GPU-deadbeef" in refusal("cuda:GPU-deadbeef")
    assert "names more than one" in refusal("cuda:GPU-0000")


def test_one_that_the_operator_hides_is_not_there(two):
    words = refusal(f"cuda:{uuid(0)}", mask="1")
    assert "with CUDA_VISIBLE_DEVICES=1 in the environment" in words
    assert f"cuda:0 is {uuid(1)}" in words
    assert "there is no GPU" in refusal("cuda:0", mask="-1")


def test_a_machine_with_a_driver_and_no_gpu_says_so(monkeypatch):
    pretend.nvml(monkeypatch, gpus=0)
    assert "there is no GPU" in refusal("cuda:0")


def test_two_names_of_one_gpu_are_refused(two):
    assert refusal("cuda:1", f"cuda:{uuid(1)}") == (
        f"devices names one twice, as cuda:1 and as cuda:{uuid(1)}; a device has one worker"
    )


def test_a_gpu_in_mig_mode_has_to_be_named_by_a_slice(sliced):
    for device in ("cuda:0", f"cuda:{uuid(0)}"):
        words = refusal(device)
        assert "is in MIG mode; name one of its slices" in words
        assert all(f"cuda:{each}" in words for each in slices())
    assert resolve([f"cuda:{slices()[1]}", f"cuda:{slices()[0]}"], {}) == tuple(f"cuda:{s}" for s in slices()[::-1])
    assert f"with the slices {slices()[0]}" in refusal("cuda:MIG-99999999")


def test_a_slice_that_the_operator_names_counts_as_a_gpu(sliced):
    assert resolve(["cuda:0"], {gpus.VISIBLE: slices()[1]}) == (f"cuda:{slices()[1]}",)
    assert resolve([f"cuda:{slices()[1]}"], {gpus.VISIBLE: "0"}) == (f"cuda:{slices()[1]}",)
    assert "is not there" in refusal(f"cuda:{slices()[0]}", mask=slices()[1])


def test_a_gpu_in_mig_mode_without_slices_says_how_to_make_some(sliced, monkeypatch):
    monkeypatch.setattr(sliced, "nvmlDeviceGetMaxMigDeviceCount", lambda device: 0)
    assert "make some with nvidia-smi mig" in refusal("cuda:0")


@pytest.mark.parametrize(
    ("mask", "given"), [(None, "cuda:1"), ("5,3", "cuda:5"), ("GPU-b,GPU-a", "cuda:GPU-a"), ("-1,5,3,", "cuda:5")]
)
def test_without_nvml_an_index_is_passed_on_as_the_operator_means_it(monkeypatch, mask, given):
    monkeypatch.setattr(gpus, "nvml", lambda: None)
    environ = {} if mask is None else {gpus.VISIBLE: mask}
    assert resolve(["cuda:1"], environ) == (given,)
    assert resolve(["cuda:GPU-abcd", "cpu"], environ) == ("cuda:GPU-abcd", "cpu")


def test_without_nvml_what_the_operator_hides_is_refused_all_the_same(monkeypatch):
    monkeypatch.setattr(gpus, "nvml", lambda: None)
    assert "leaves 1 GPUs" in refusal("cuda:1", mask="3")
    assert "leaves 0 GPUs" in refusal("cuda:0", mask="")
    assert listed() == []


def test_locks_are_of_the_gpu_whatever_it_is_called(two, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (name,) = resolve(["cuda:1"], {})
    assert paths.device_lock(name).name == f"cuda-{uuid(1)}.lock"
    # As slices are called by drivers older than 470.
    assert paths.device_lock("cuda:MIG-GPU-5c7a/1/0").name == "cuda-MIG-GPU-5c7a-1-0.lock"


# -- what they hold --------------------------------------------------------------------------------------------------


def test_a_gpu_says_what_is_in_use_and_what_it_draws(two, tmp_path):
    (tmp_path / "1").write_text(f"{100 * MIB} {uuid(1)}")
    assert look(f"cuda:{uuid(0)}") == gpus.Look(Memory(500 * MIB, 8 << 30), 70.0)
    assert look(f"cuda:{uuid(1)}") == gpus.Look(Memory(600 * MIB, 8 << 30), 250.0)
    assert memory(f"cuda:{uuid(1)}").free_size == (8 << 30) - 600 * MIB
    assert look("cpu") == look("cuda:0") == look("cuda:GPU-none") == gpus.Look(None, None)


def test_a_slice_has_memory_of_its_own_and_no_power(sliced, tmp_path):
    (tmp_path / "1").write_text(f"{100 * MIB} {slices()[1]}")
    assert look(f"cuda:{slices()[0]}") == gpus.Look(Memory(500 * MIB, 4 << 30), None)
    assert look(f"cuda:{slices()[1]}") == gpus.Look(Memory(600 * MIB, 4 << 30), None)
    assert held_sizes() == {1: 100 * MIB}


def test_memory_by_process_is_that_of_all_gpus_together(two, tmp_path, monkeypatch):
    (tmp_path / "1").write_text(f"{100 * MIB} {uuid(0)}")
    assert held_sizes() == {1: 100 * MIB}
    both = [SimpleNamespace(pid=1, usedGpuMemory=5), SimpleNamespace(pid=8, usedGpuMemory=None)]
    monkeypatch.setattr(two, "nvmlDeviceGetComputeRunningProcesses", lambda handle: both)
    assert held_sizes() == {1: 10, 8: 0}


def test_a_driver_that_is_older_than_the_library_is_asked_in_its_way(two, monkeypatch):
    def too_new(handle):
        raise two.NVMLLibraryMismatchError

    monkeypatch.setattr(two, "nvmlDeviceGetComputeRunningProcesses", too_new)
    older = [SimpleNamespace(pid=1, usedGpuMemory=5)]
    monkeypatch.setattr(two, "nvmlDeviceGetComputeRunningProcesses_v2", lambda handle: older, raising=False)
    assert held_sizes() == {1: 10}


def test_pids_of_another_namespace_are_nobody_here(monkeypatch, tmp_path):
    pretend.nvml(monkeypatch, dir=tmp_path, hidden=1)
    (tmp_path / "1").write_text(f"{100 * MIB} {uuid(0)}")
    (pid,) = held_sizes()
    assert pid != 1
    assert held_sizes()[pid] == 0


def test_without_a_driver_there_is_no_nvml(monkeypatch):
    two = pretend.nvml(monkeypatch)

    def not_loaded():
        raise two.NVMLError(two.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(two, "nvmlInit", not_loaded)
    assert gpus.nvml() is None
    assert (held_sizes(), memory(f"cuda:{uuid(0)}")) == ({}, None)


# -- the pretence ----------------------------------------------------------------------------------------------------


def test_every_function_that_is_pretended_is_the_real_library_s(two):
    names = {name for name, value in vars(two).items() if name.startswith("nvml") and callable(value)}
    assert "nvmlDeviceGetMemoryInfo" in names
    for name in names:
        assert inspect.signature(getattr(two, name)) == inspect.signature(getattr(two.real, name)), name
    assert two.NVMLError is two.real.NVMLError
    with pytest.raises(TypeError):
        two.nvmlDeviceGetName()


def test_every_function_that_the_gateway_calls_is_there(two):
    called = {
        word.strip("(),")
        for word in inspect.getsource(gpus).replace("library.", " ").replace("nvml().", " ").split()
        if word.startswith("nvml") and word != "nvml()"
    }
    for name in {word for word in called if word.isidentifier() and word != "nvml"}:
        assert hasattr(two.real, name), name
    assert "nvmlDeviceGetMigDeviceHandleByIndex" in called


def test_who_asks_before_it_was_initialised_is_refused_as_by_the_real_one(two):
    two.nvmlShutdown()
    with pytest.raises(two.NVMLError_Uninitialized):
        two.nvmlDeviceGetCount()
