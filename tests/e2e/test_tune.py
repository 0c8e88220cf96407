"""`penstock tune` as a user types it: it measures, says what it found, writes the section, and can be stopped."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gateway.models.spec import parse_contract
from gateway.tuning.search import PROBES_MAX
from tests.support.gateways import ROOT, all_children, wait_until, write_model

pytestmark = pytest.mark.slow

QUICK = ("--minutes", "0.1", "--decoders", "1")


@pytest.fixture
def images(tmp_path):
    """Small photos, so that decoding is not what is measured, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, "JPEG")
        (folder / f"{seed}.jpg").write_bytes(out.getvalue())
    (folder / "notes.txt").write_text("no image")
    return folder


def start(*arguments: object) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", "tune", *map(str, arguments)],
        cwd=ROOT,
        env={**environ, "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tune(*arguments: object, status: int = 0) -> str:
    """Everything that it printed, its line breaks as blanks."""
    with start(*arguments) as process:
        try:
            said, complained = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == status, said + complained
    assert "Traceback" not in complained
    return " ".join((said + complained).split())


def descendants(pid: int) -> list[int]:
    found = all_children(pid)
    return found + [lower for child in found for lower in descendants(child)]


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_it_finds_the_sizes_and_the_rate_and_writes_them(tmp_path, images):
    folder = write_model(tmp_path, fake={"base_ms": 2.9, "image_ms": 0.77})
    file = folder / "model.toml"
    before = "# mine\r\n" + file.read_text() + "[batching] # to be tuned\nwindow_ms = 3 # why?\n"
    file.write_bytes(before.encode())
    file.chmod(0o604)
    png = tmp_path / "plot.png"

    said = tune(folder, "--deadline-ms", 50, "--minutes", "0.3", "--images", images, "--plot", png)

    after = file.read_bytes().decode()
    contract = parse_contract(after)
    assert contract.batching.window_ms == 0
    assert contract.batching.sizes[0] == 1
    # Times are only ever longer than the model's own, so this bound holds on the busiest machine.
    assert contract.batching.sizes[-1] <= 28, "2 l(B) within what decoding and the margin leave of 50 ms"
    assert contract.limits.deadline_ms == 50
    kept = [line for line in before.splitlines(keepends=True) if "window_ms" not in line]
    assert [line for line in after.splitlines(keepends=True) if line in kept] == kept
    assert "window_ms = 0 # why?" in after
    assert file.stat().st_mode & 0o777 == 0o604
    assert [entry.name for entry in folder.iterdir()] == ["model.toml"]

    assert "notes.txt is not sent" in said
    assert "decoding 3 of your images" in said
    assert re.search(rf"│ {contract.batching.sizes[-1]} │ [\d.]+ │ [\d.]+ │ [\d,]+ │ best │", said)
    assert 1 <= len(re.findall(r"│ (?:meets|late|refuses|confirmed) +│", said)) <= PROBES_MAX
    # On a machine that others keep busy no rate may hold, and then it says that.
    assert re.search(r"[\d,]+ images/s with p99 [\d.]+ ms of 50 and|no rate was confirmed to keep 50 ms", said)
    assert f"sizes = {list(contract.batching.sizes)}" in said
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_dry_run_of_a_model_by_its_name_writes_nothing(tmp_path, images):
    folder = write_model(tmp_path, "flowers", 2, fake={"base_ms": 0, "image_ms": 3})
    before = (folder / "model.toml").read_bytes()
    said = tune("flowers", "--models", tmp_path, "--deadline-ms", 60, *QUICK, "--images", images, "--dry-run")
    assert "nothing was written" in said
    assert "[batching] sizes = [1" in said
    assert (folder / "model.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("module", "number"),
    [(b"gpuworker", signal.SIGINT), (b"gateway.tuning", signal.SIGTERM), (b"gateway.tuning", signal.SIGKILL)],
)
def test_stopped_at_any_time_it_leaves_no_process_and_the_file_as_it_was(tmp_path, images, module, number):
    folder = write_model(tmp_path, fake={"base_ms": 0, "image_ms": 3})
    before = (folder / "model.toml").read_bytes()
    with start(folder, "--deadline-ms", 60, *QUICK, "--images", images) as process:
        try:
            wait_until(
                lambda: any(module in command_of(pid).split(b"\0") for pid in descendants(process.pid)),
                f"{module} runs",
            )
            left = {pid: command_of(pid) for pid in descendants(process.pid)}
            process.send_signal(number)
            said, complained = process.communicate(timeout=30)
        finally:
            process.kill()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number, complained
        assert complained == ""
        assert "stopped; nothing was written" in said
        assert ("batch size" in said) == (module == b"gateway.tuning"), "what is known by then"
    wait_until(lambda: not any(command and command_of(pid) == command for pid, command in left.items()), "all are gone")
    assert (folder / "model.toml").read_bytes() == before
    assert [entry.name for entry in folder.iterdir()] == ["model.toml"]


def test_a_deadline_that_one_image_cannot_meet_is_told_with_one_that_it_can(tmp_path):
    folder = write_model(tmp_path, fake={"base_ms": 40, "image_ms": 1})
    said = tune(folder, "--deadline-ms", 20, *QUICK, status=2)
    found = re.search(r"needs ([\d.]+) ms for one image on cpu; ask for at least (\d+)", said)
    assert found, said
    assert float(found[1]) >= 41
    assert int(found[2]) >= 92


def test_a_model_that_the_worker_refuses_is_told_with_its_reason(tmp_path):
    folder = write_model(tmp_path, fake={"crash_pixel": [0, 0, 0]})
    assert "choose a pixel that is not black" in tune(folder, "--deadline-ms", 50, *QUICK, status=2)


def test_a_folder_without_an_image_is_told(tmp_path):
    folder = write_model(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    said = tune(folder, "--deadline-ms", 50, *QUICK, "--images", tmp_path, status=2)
    assert "none of the images can be decoded; notes.txt:" in said
