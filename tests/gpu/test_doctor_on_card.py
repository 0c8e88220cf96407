"""`penstock doctor` says of a backend on a card what a worker with a model on it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu_lab.worker import Worker
from gateway.errors import InvalidModel
from tests.gpu.cards import write
from tests.support.worker_process import SLOTS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def starts(tmp_path, backend):
    """Whether a worker takes a model on it."""
    _, directory = write(tmp_path / "m" / "1", backend, "float32")
    try:
        Worker(directory, slot_count=SLOTS).close()
    except InvalidModel:
        return False
    return True


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_doctor_says_what_a_worker_finds(tmp_path, backend):
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", "--json", "--device", "cuda:0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    found = json.loads(done.stdout)
    problems = [each["problem"] for each in found["verdicts"] if each["backend"] in {backend, "any"} and each["asked"]]
    assert problems, found["verdicts"]
    assert (not any(problems)) == starts(tmp_path, backend), problems
    assert (done.returncode == 0) == found["good"]
