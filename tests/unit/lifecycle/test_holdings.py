"""What processes hold, on real processes; GPUs are pretended, behind the real NVML library."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys

import pytest

from gateway import gpus
from gateway.lifecycle import holdings
from gateway.lifecycle.holdings import Holding, Process, family, find_process, free_size, hold, private_size
from tests.support import pretend
from tests.support.gateways import wait_until

MIB = 1 << 20
GIB = 1 << 30

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


def test_device_memory_is_counted_while_nvml_names_the_process(monkeypatch, tmp_path):
    pretend.nvml(monkeypatch, gpus=2, dir=tmp_path)
    pretend_gpus = importlib.import_module("pretend_gpus")
    with holder() as process:
        found = find_process(process.pid)
        (tmp_path / str(process.pid)).write_text(f"{7 * MIB} {pretend_gpus.uuid(1)}")
        held = hold([found])
        assert held.device_memory_size == 7 * MIB
        assert held.by_process == {found: held.total}
        assert held.document() == {"memory_size": held.memory_size, "device_memory_size": 7 * MIB}
        # The kernel knows nobody of that pid and that start; the device says that somebody holds its memory.
        ghost = Process(process.pid, "nobody", "worker")
        assert hold([ghost]) == Holding(0, 7 * MIB, {ghost: 7 * MIB})


def test_free_memory_of_a_gpu_is_asked_for_by_its_uuid(monkeypatch, tmp_path):
    pretend.nvml(monkeypatch, gpus=2, dir=tmp_path, memory=GIB)
    pretend_gpus = importlib.import_module("pretend_gpus")
    (tmp_path / str(os.getpid())).write_text(f"{100 * MIB} {pretend_gpus.uuid(1)}")
    assert free_size(f"cuda:{pretend_gpus.uuid(0)}") == GIB - 500 * MIB
    assert free_size(f"cuda:{pretend_gpus.uuid(1)}") == GIB - 600 * MIB
    assert free_size("cuda:GPU-00000009-1111") is None
    assert free_size("cuda:1") is None, "an index means nothing to NVML that is sure to mean the same to CUDA"


def test_without_nvml_nothing_is_known_of_gpus(monkeypatch):
    monkeypatch.setattr(gpus, "nvml", lambda: None)
    assert free_size("cuda:GPU-00000000-1111-2222-3333-444444444444") is None
    with holder() as process:
        assert hold([find_process(process.pid)]).device_memory_size == 0


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
