"""An illegal access breaks the card for its process, every later call says so, and another process has a whole card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def poisoned():
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.poison"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


def test_every_call_after_an_illegal_access_says_that_the_device_is_lost():
    assert poisoned() == {"before": "well", "wait": "DeviceLost", "memory": "DeviceLost", "copy": "DeviceLost"}


def test_the_next_process_has_a_whole_card():
    poisoned()
    assert poisoned()["before"] == "well"
