"""What processes hold, on real processes; NVML by a library of our own, for it is not everywhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gateway.lifecycle import holdings
from gateway.lifecycle.holdings import Holding, Process, family, find_process, free_size, hold, private_size
from tests.support.gateways import wait_until

MIB = 1 << 20

HOLD = "import sys; held = bytearray(b'x') * {size}; print('held', flush=True); sys.stdin.read()"


@contextlib.contextmanager
def holder(size=0, **options):
    """A process that holds `size` bytes until the end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.format(size=size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    ) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_private_memory_is_what_a_process_would_give_back():
    with holder() as small, holder(32 * MIB) as large:
        difference = private_size(large.pid) - private_size(small.pid)
        assert 31 * MIB < difference < 36 * MIB
    assert private_size(large.pid) == 0


def test_where_little_is_shown_of_other_processes_the_figure_is_nearly_the_same(monkeypatch):
    real = holdings.Path.read_text

    def hidden(path, **options):
        if path.name == "smaps_rollup":
            raise PermissionError
        return real(path, **options)

    with holder(32 * MIB) as process:
        before = private_size(process.pid)
        monkeypatch.setattr(holdings.Path, "read_text", hidden)
        assert private_size(process.pid) == pytest.approx(before, rel=0.1)
        monkeypatch.setattr(holdings.Path, "read_text", real)
    monkeypatch.setattr(holdings.Path, "read_text", hidden)
    assert private_size(process.pid) == 0


def test_a_process_is_more_than_its_number():
    with holder() as process:
        found = find_process(process.pid)
        assert found.pid == process.pid
        assert found.name
        assert found == find_process(process.pid)
        process.kill()
        # A dead body that nobody has taken away holds nothing.
        wait_until(lambda: find_process(process.pid) is None, "it is dead")
    assert find_process(process.pid) is None
    assert hold([found]) == Holding(0, 0, {})


def test_a_name_with_parentheses_hides_nothing():
    before = find_process(os.getpid())
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) Z (b'); " + HOLD.format(size=0)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        found = find_process(process.pid)
        process.kill()
    assert found.name == "a) Z (b"
    assert int(found.start) >= int(before.start)


def test_a_family_is_descendants_and_the_process_group():
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], "
        "stdin=subprocess.PIPE, process_group=0); print(child.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    ) as parent:
        child = int(parent.stdout.readline())
        with holder(process_group=parent.pid) as companion:
            assert {found.pid for found in family(parent.pid)} == {parent.pid, child, companion.pid}
            held = hold(family(parent.pid))
            assert {process.pid for process in held.by_process} == {parent.pid, child, companion.pid}
            assert held.memory_size == held.total == sum(held.by_process.values())
            parent.kill()
            parent.wait()
            left = family(parent.pid)
            assert [found.pid for found in left] == [companion.pid], "the group outlives its leader"
        os.kill(child, signal.SIGKILL)
    assert family(parent.pid) == []


def test_host_memory_is_known_here():
    assert free_size("cpu") > 0
    assert free_size("cpu") == pytest.approx(holdings.available_size(), rel=0.5)


class NvmlError(Exception):
    """As the library's."""


class FakeNvml:
    """Two devices; process 7 uses both, process 8 hides what it uses."""

    NVMLError = NvmlError

    def __init__(self, *, broken=False):
        self._broken = broken

    def nvmlInit(self):  # noqa: N802
        pass

    def nvmlDeviceGetCount(self):  # noqa: N802
        if self._broken:
            raise NvmlError
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if self._broken or index > 1:
            raise NvmlError
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device):  # noqa: N802
        used = [SimpleNamespace(pid=7, usedGpuMemory=10 + device)]
        return used if device else [*used, SimpleNamespace(pid=8, usedGpuMemory=None)]

    def nvmlDeviceGetMemoryInfo(self, device):  # noqa: N802
        return SimpleNamespace(free=1000 + device)


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.setattr(holdings._Nvml, "looked", False)
    monkeypatch.setattr(holdings._Nvml, "library", None)

    def install(library):
        monkeypatch.setitem(sys.modules, "pynvml", library)

    return install


def test_device_memory_by_process(nvml):
    nvml(FakeNvml())
    assert holdings.device_memory() == {7: 21, 8: 0}
    assert free_size("cuda:1") == 1001
    assert free_size("cuda:9") is None
    # The kernel says that nobody has pid 7's start; the device says that somebody holds its memory.
    ghost = Process(7, "nobody", "worker")
    assert hold([ghost]) == Holding(0, 21, {ghost: 21})
    assert hold([ghost]).document() == {"memory_size": 0, "device_memory_size": 21}


def test_a_library_that_fails_knows_nothing(nvml):
    nvml(FakeNvml(broken=True))
    assert holdings.device_memory() == {}
    assert free_size("cuda:0") is None


def test_without_the_library_nothing_is_known(nvml):
    nvml(None)
    assert holdings.device_memory() == {}
    assert free_size("cuda:0") is None


@pytest.mark.parametrize(
    ("files", "found"),
    [
        pytest.param({"meminfo": "MemTotal: 9 kB\nMemAvailable:  4 kB\n"}, 4096, id="no container"),
        pytest.param({"memory.max": "max\n", "meminfo": "MemAvailable: 4 kB\n"}, 4096, id="a container without limit"),
        pytest.param(
            {
                "memory.max": "3000\n",
                "memory.current": "1500\n",
                "memory.stat": "anon 1\ninactive_file 500\n",
                "meminfo": "MemAvailable: 4 kB\n",
            },
            2000,
            id="a container with a limit",
        ),
        pytest.param(
            {"memory.max": "3000\n", "memory.current": "5000\n", "memory.stat": "inactive_file 0\n"}, 0, id="over it"
        ),
        pytest.param({}, None, id="nobody says"),
    ],
)
def test_host_memory_is_what_the_machine_or_the_container_has_left(monkeypatch, files, found):
    def read(path, **_):
        try:
            return files[path.name]
        except KeyError:
            raise FileNotFoundError from None

    monkeypatch.setattr(holdings.Path, "read_text", read)
    assert holdings.available_size() == found
