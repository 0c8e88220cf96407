"""tests/gpu on the pretend card: without a real one they are skipped, and nobody would see that they are broken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pretend

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 380


def run(tmp_path, *, visible):
    folder = tmp_path / "holdings"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/gpu"],
        cwd=ROOT,
        env=pretend.environment(folder, **({} if visible else {"CUDA_VISIBLE_DEVICES": "-1"})),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped|failed)", done.stdout)}, done.stdout


def test_they_pass_on_the_pretend_card(tmp_path):
    counts, output = run(tmp_path, visible=True)
    assert counts.keys() == {"passed"}, output


def test_without_a_card_each_is_skipped_with_the_reason(tmp_path):
    counts, output = run(tmp_path, visible=False)
    assert set(counts) == {"skipped"}
    assert "there is no card: CUDA error 100" in output
