"""bench/gpu.py from end to end on the pretend card, so that whoever runs it on a real one finds that it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pretend
from tests.support.gateways import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 380
SERVED = "tiny_onnxruntime_float32"
BACKENDS = ("onnxruntime", "tensorrt")
CASES = [f"tiny_{backend}_{precision}" for backend in BACKENDS for precision in ("float32", "float16")]
KILLED = (SERVED, "tiny_tensorrt_float16")


def run(folder, *arguments, **environ):
    """Run the script at its smallest on a pretend card; its exit status, lines and errors."""
    holdings = folder / "holdings"
    holdings.mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), "--small", "--out", str(folder / "out"), *arguments],
        cwd=folder,
        env=pretend.environment(holdings, **environ),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def figures(lines):
    found = [line.split() for line in lines if line.startswith("figure ")]
    return {name: float(value) for _, name, value, _ in found}


def failures(lines):
    return lines[lines.index("Failed") : lines.index("Remarks")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All parts, run once: (lines, figures, folder)."""
    folder = tmp_path_factory.mktemp("whole")
    status, lines, errors = run(folder)
    assert status == 0, "\n".join([*lines, errors])
    return lines, figures(lines), folder


def test_the_ways_of_the_bytes_are_timed_and_a_kill_leaves_no_late_write(whole):
    _, found, _ = whole
    for way in ("gathered", "copy_only", "direct", "batched", "pageable"):
        assert found[f"bytes_{way}_4_wall"] > 0
        assert found[f"bytes_{way}_4_cpu"] > 0
    assert found["register_writable"] > 0
    assert found["copy_on_device_4"] > 0
    assert found["top_k_cpu_4"] > 0
    assert found["killed_late_bytes"] == 0


@pytest.mark.parametrize("case", CASES)
def test_engine_and_worker_are_measured_on_every_backend(whole, case):
    _, found, _ = whole
    assert found[f"batch_10_of_single_{case}"] > 0
    assert found[f"worker_rate_{case}"] > 0
    assert 0 < found[f"compute_share_{case}"] <= 1
    assert found[f"answers_same_{case}"] == 1
    assert found[f"answers_difference_{case}"] < 1e-3


@pytest.mark.parametrize("kind", ["tensor_1", "tensor_8", "tensor_32", "jpeg_224", "jpeg_500"])
def test_the_gateway_is_measured_with_every_kind_of_request(whole, kind):
    _, found, _ = whole
    for figure in ("gateway_rate", "gateway_ratio", "gateway_cpu", "cores_to_saturate_extrapolated"):
        assert found[f"{figure}_{SERVED}_{kind}"] > 0


def test_the_tail_is_measured(whole):
    _, found, _ = whole
    assert found[f"tail_ratio_{SERVED}_tensor_1"] >= 1


@pytest.mark.parametrize("case", KILLED)
def test_a_kill_is_noticed_by_nobody_else(whole, case):
    _, found, _ = whole
    assert found[f"successor_ready_{case}"] > 0
    assert found[f"kill_to_serving_{case}"] > 0
    assert found[f"kill_neighbour_refused_{case}"] == 0


def test_memory_comes_back_and_a_card_without_any_loses_no_request(whole):
    lines, found, _ = whole
    for case in KILLED:
        assert found[f"killed_freed_{case}"] > 0
    assert found["starved_refused_at_load"] == found["starved_refused_after_load"] == 0
    assert found[f"worker_per_watt_{SERVED}"] > 0
    assert not [line for line in lines if "not measured" in line]


def test_the_figures_are_last_and_the_short_table_before_them(whole):
    lines, _, folder = whole
    first = next(place for place, line in enumerate(lines) if line.startswith("figure "))
    assert all(line.startswith("figure ") for line in lines[first:])
    assert lines.index("In short") < lines.index("Remarks") < first
    assert json.loads((folder / "out.json").read_text())


def test_a_part_that_fails_leaves_the_others_and_is_told_by_the_exit_status(tmp_path):
    status, lines, _ = run(tmp_path, "facts", "backends", PENSTOCK_FAILPOINTS="worker.before_gather=kill")
    assert status == 1
    found = figures(lines)
    assert found["bytes_gathered_4_wall"] > 0
    assert found[f"batch_10_of_single_{SERVED}"] > 0, "the engine alone is told"
    assert f"worker_rate_{SERVED}" not in found
    assert any("tiny onnxruntime float32" in line for line in failures(lines))


def test_a_part_that_hangs_is_ended_with_everything_that_it_started(tmp_path):
    status, lines, _ = run(tmp_path, "backends", "--minutes", "0.2", PENSTOCK_FAILPOINTS="worker.before_gather=hang")
    assert status == 1
    assert "  tiny onnxruntime float32: its time was over" in failures(lines)
    assert figures(lines)[f"batch_10_of_single_{SERVED}"] > 0, "what it found before is kept"
    # Whoever opens the pretend card leaves its pid in this folder.
    pids = [int(file.name) for file in (tmp_path / "holdings").iterdir()]
    assert len(pids) >= 2
    wait_until(lambda: not any(map(alive, pids)), "all of them are gone")


def alive(pid):
    """Whether it runs or is stopped; nobody waits for the body of a process whose parent was killed before it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_a_card_it_says_so_and_prints_no_figure(tmp_path):
    status, lines, errors = run(tmp_path, CUDA_VISIBLE_DEVICES="-1")
    assert status == 3
    assert not lines
    (sentence,) = errors.splitlines()
    assert sentence.startswith("There is no card to measure: ")


def test_a_part_that_there_is_not_is_named(tmp_path):
    status, _, errors = run(tmp_path, "speed")
    assert status == 2
    assert "there is no part 'speed'" in errors
