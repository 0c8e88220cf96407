import mmap
import os

import pytest

from gpuworker import device
from shm.segment import Segment


def test_names_are_read_and_written():
    assert device.parse("cpu") == ("cpu", "")
    assert device.parse("cuda:3") == ("cuda", "3")
    names = ["cpu", "cuda:12", "cuda:GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "cuda:MIG-GPU-8932f937/1/0"]
    assert [str(device.parse(name)) for name in names] == names


def test_a_worker_sees_its_own_gpu_only(monkeypatch):
    for name, seen in (("cpu", ""), ("cuda:3", "3"), ("cuda:GPU-8932f937", "GPU-8932f937")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
        device.parse(name).hide_others()
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"]) == (seen, "PCI_BUS_ID")


@pytest.mark.parametrize(
    "text", ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:1234", "cuda:GPU-", "cuda:GPU-1 ", "CPU", "cpu\n"]
)
def test_other_names_are_refused(text):
    with pytest.raises(ValueError, match="is no device; there are cpu, cuda:N"):
        device.parse(text)


def test_labels_are_for_people():
    assert device.label(device.parse("cuda:1"), 4) == "cuda:1"
    assert device.label(device.parse("cpu"), 1).endswith(", 1 thread")
    assert device.label(device.parse("cpu"), 4).endswith(", 4 threads")


def test_resident_memory_is_in_bytes():
    assert 5_000_000 < device.rss_size() < 1 << 40


def test_memory_of_ones_own_grows_with_what_is_touched():
    before = device.memory_size()
    # Not from the heap, which may have room that was touched before.
    held = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"x" * len(held))
    assert 60 << 20 < device.memory_size() - before < 80 << 20
    del held
    assert device.memory_size() - before < 20 << 20


def test_shared_memory_is_nobodys_own():
    segment = Segment.create("test", 64 << 20)
    before = device.memory_size()
    segment.map[:] = bytes(segment.size)
    again = Segment.attach(segment.readonly_fd(), segment.size, writable=False)
    assert sum(again.map[:: 1 << 12]) == 0
    assert device.memory_size() - before < 80 << 20
    segment.close()
    again.close()


def test_a_kernel_without_a_rollup(monkeypatch, tmp_path):
    exact = device.memory_size()
    monkeypatch.setattr(device, "_SMAPS_ROLLUP", tmp_path / "absent")
    assert exact / 2 < device.memory_size() < exact * 2 + (64 << 20)
