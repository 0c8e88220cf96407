"""What a person sees of a checkup: everything that was found, and commands in one piece."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway.doctor import causes, report
from gateway.doctor.verdicts import Remark, judge, remarks, to_open, tried
from tests.support import checkups
from tests.support.checkups import SLICE, checkup, cut, driver, gpu, opened, package, runtime


def shown(found, names=("cuda:0",), failed=None, width=200):
    """The screen as text."""
    found = checkups.over_the_wire(found)
    names = list(names)
    judged = judge(names, found, {choice.name: opened() for choice in to_open(names, found)})
    judged = [tried(each, failed) if each.good else each for each in judged]
    file = io.StringIO()
    report.show(Console(file=file, width=width), found, judged, remarks(names, found))
    return file.getvalue()


def test_a_good_machine_is_told_in_full():
    text = shown(checkup(gpus=(cut(SLICE), gpu(index=1)), driver=driver(visible="0,1")), ["cuda:1"])
    for words in (
        "Linux x86_64, Linux 6.8.0, glibc 2.39, 16 cores",
        "NVIDIA 580.65.06, knows CUDA up to 13.0",
        "onnxruntime-gpu 1.31.1, for CUDA 13.0",
        "tensorrt-cu13 11.4.0.106, builds engines",
        "/cache/engines  0 files, 0 MiB; 1 GiB free",
        "1.0 of 141.0 GiB",
        "1 slices",
        SLICE,
        "9.0",
        "cuda:1  NVIDIA H200, 141 GiB",
    ):
        assert words in text, words
    assert "CUDA_VISIBLE_DEVICES  0,1" in text


def test_a_bare_machine_is_told_too():
    bare = checkup(
        **checkups.NO_DRIVER,
        host=checkups.host(container=True, memory_size_max=4 << 30, memlock_size_max=8 << 20),
        onnxruntime=runtime(installed={}, version="", problem="ImportError: no", providers=()),
        tensorrt=checkups.NO_TENSORRT,
        nvml=package(""),
    )
    text = shown(bare, ["cpu"])
    for words in (
        "in a container",
        "memory 4.0 GiB, locked memory 8 MiB",
        "does not import",
        "not installed",
        "there is no NVIDIA GPU in this container",
    ):
        assert words in text, words
    assert "engines" not in text.replace("builds engines", "")


def test_commands_stand_in_one_piece_however_narrow_the_terminal_is():
    found = checkup(onnxruntime=runtime(**checkups.CPU_BUILD), tensorrt=checkups.NO_TENSORRT)
    lines = shown(found, width=40).splitlines()
    assert f"for onnxruntime on cuda:0  {causes.REINSTALL}" in lines
    assert f"for tensorrt on cuda:0  {causes.INSTALL}" in lines


def test_one_cure_for_all_is_told_once():
    found = checkup(onnx=package(""))
    text = shown(found, ["cuda:0"])
    assert text.count(causes.INSTALL) == 1
    assert "for onnxruntime on cuda:0 and tensorrt on cuda:0" in text


def test_remarks_come_last_with_their_cures():
    lines = shown(checkup(gpus=(gpu(persistence=False),))).splitlines()
    assert lines[-2].startswith("note  NVIDIA H200: persistence mode is off")
    assert lines[-1].strip() == "sudo systemctl enable --now nvidia-persistenced"
    assert Remark(text="t").cure == ""


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        (None, "ok"),
        ("", "ok; its trial gave right answers"),
        ("a convolution [x] came back wrong", "its trial failed: a convolution [x] came back wrong"),
    ],
)
def test_a_trial_is_told_where_there_was_one(failed, words):
    (line,) = [line for line in shown(checkup(), failed=failed).splitlines() if "│ tensorrt" in line]
    assert f" {words} " in line
