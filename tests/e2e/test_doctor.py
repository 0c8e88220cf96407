"""`penstock doctor` as it is typed: on this machine, and on one with a pretend card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pretend
from tests.support.gateways import ROOT

pytestmark = pytest.mark.slow

needs_no_gpu = pytest.mark.skipif(
    Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists(),
    reason="is about machines without GPU, and here is one",
)


def doctor(*arguments, environ=None, status=0):
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", *arguments],
        cwd=ROOT,
        env={**(environ or os.environ), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def doctor_of_pretence(*arguments, folder):
    """What it prints where every process finds a pretend card. What the pretence is set by is no setting of ours."""
    environ = pretend.environment(folder, COLUMNS="200")
    environ = {name: value for name, value in environ.items() if not name.startswith("PENSTOCK_")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", *arguments],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout


@needs_no_gpu
def test_a_machine_without_gpu_is_well_and_says_why_it_has_none():
    text = doctor("--run")
    cpu, cuda = (line for line in text.splitlines() if "│ cpu " in line or "│ cuda " in line)
    assert "ok; its trial gave right answers" in cpu
    assert "there is no NVIDIA GPU" in cuda
    assert text.count("NVIDIA") == 1, "one reason, not twenty"


@needs_no_gpu
def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error():
    text = doctor("--device", "cuda:0", status=1)
    assert text.count("there is no NVIDIA GPU") == 1


def test_json_is_the_whole_of_it():
    found = json.loads(doctor("--device", "cpu", "--json"))
    assert found["good"] is True
    assert [(each["device"], each["backend"], each["problem"]) for each in found["verdicts"] if each["asked"]] == [
        ("cpu", "onnxruntime", "")
    ]
    assert found["checkup"]["host"]["executable"] == sys.executable
    assert found["checkup"]["onnxruntime"]["version"]
    assert found["verdicts"][0]["tried"] is False


def test_nothing_of_the_environment_is_told_but_what_is_named():
    environ = {**os.environ, "SECRET_OF_MINE": "hush-hush", "CUDA_VISIBLE_DEVICES": "0"}
    text = doctor("--device", "cpu", "--json", environ=environ)
    assert "hush" not in text
    assert json.loads(text)["checkup"]["driver"]["visible"] == "0"


def test_a_device_that_is_none_is_wrong_input():
    doctor("--device", "tpu:0", status=2)


def test_what_opens_is_there_whatever_else_is_known(tmp_path):
    found = json.loads(doctor_of_pretence("--device", "cuda:0", "--run", "--json", folder=tmp_path))
    assert [each["label"] for each in found["opened"]] == ["Pretend GPU, 8 GiB"]
    assert all(each["label"] == "Pretend GPU, 8 GiB" for each in found["verdicts"])
    verdicts = {each["backend"]: each for each in found["verdicts"]}
    assert (verdicts["onnxruntime"]["problem"], verdicts["onnxruntime"]["tried"]) == ("", True)
    assert "tensorrt" in verdicts
    assert found["good"]


def test_a_gpu_that_is_found_is_asked_for(tmp_path):
    found = json.loads(doctor_of_pretence("--json", folder=tmp_path))
    (gpu,) = found["checkup"]["gpus"]
    assert gpu["name"] == "Pretend GPU"
    assert [each["device"] for each in found["opened"]] == [f"cuda:{gpu['uuid']}"]
    assert {each["device"] for each in found["verdicts"] if each["asked"]} == {"cpu", "cuda:0"}
