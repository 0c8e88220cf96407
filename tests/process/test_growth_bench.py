"""bench/growth.py from end to end at its smallest, against real gateways."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.growth_lab.parts import PARTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> tuple[dict[str, float], str]:
    """(its figures, what it printed)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "growth.py"), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("figure ")]
    return {name: float(value) for _, name, value, _ in lines}, done.stdout


@pytest.fixture
def kept():
    """Results of a run by hand are not overwritten for good."""
    files = [ROOT / "bench" / "out" / f"{name}.json" for name in ("growth", "soak")]
    before = {file: file.read_bytes() for file in files if file.exists()}
    yield files
    for file in files:
        file.unlink(missing_ok=True)
    for file, content in before.items():
        file.write_bytes(content)


def test_every_part_is_measured_and_drawn(tmp_path, kept):
    figures, _ = run("--small", "--plots", str(tmp_path))

    for part in PARTS:
        assert figures[f"growth_{part.name}_cpu_rise"] >= 1
        assert {f"growth_{part.name}_cpu_slope_us", f"growth_{part.name}_memory_slope_kib"} <= figures.keys()
    assert (tmp_path / "growth.png").stat().st_size > 20_000
    raw = json.loads(kept[0].read_text())
    for part in PARTS:
        points = raw[part.name]["points"]
        assert [point["size"] for point in points] == list(part.small)
        assert all(point["cpu_us"][role] > 0 for point in points for role in ("gateway", "decoder", "worker"))
    # A worker more is a process more.
    memory = [point["memory"]["worker"] for point in raw["workers"]["points"]]
    assert memory[1] > 1.5 * memory[0]


def test_a_soak_sends_what_it_was_asked_for(tmp_path, kept):
    figures, printed = run("soak", "--requests", "3200", "--plots", str(tmp_path))

    assert figures["soak_requests"] == 3200
    assert {"soak_p99_drift", "soak_memory_slope_kib", "soak_memory_noise_kib"} <= figures.keys()
    assert "gateway:" in printed
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    assert len(json.loads(kept[1].read_text())["pieces"]) == 100


def test_a_soak_that_is_out_of_time_says_what_it_has(kept):
    figures, _ = run("soak", "--requests", "100000", "--minutes", "0.001")

    assert 5_000 <= figures["soak_requests"] < 100_000
    assert kept[1].exists()
