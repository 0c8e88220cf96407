from __future__ import annotations

import subprocess
import sys

import pytest

from bench.rig import ROOT


@pytest.mark.slow
def test_the_script_prints_a_table_and_writes_its_plots(tmp_path):
    command = [sys.executable, "bench/schedule.py", "--quick", "--only", "optimum", "--plots", str(tmp_path)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert "on time / exact offline optimum" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["optimum.png"]
    assert (tmp_path / "optimum.png").read_bytes().startswith(b"\x89PNG")
