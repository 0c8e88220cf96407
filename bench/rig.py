"""What every benchmark shares: photos, a real gateway in its own processes, CPU accounting, and figure lines.

A figure line is `figure NAME VALUE UNIT`; they are printed last, and scripts that come later read them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 120.0

PACKAGES = (
    *("aiohttp", "uvloop", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-bindings", "nvidia-ml-py"),
    *("onnx", "simplejpeg", "pillow", "msgspec", "orjson"),
)
"""Figures depend on their versions."""

NULL_224 = """backend = "fake"
[input]
width = 224
height = 224
resize = "{resize}"
crop_fraction = {crop_fraction}
[output]
task = "classification"
[fake]
class_count = 1000
"""


def figure(name: str, value: float, unit: str) -> None:
    """Print one figure line."""
    print(f"figure {name} {value:.4g} {unit}", flush=True)


def photo(width: int, height: int) -> Image.Image:
    """A real photo (scikit-image's astronaut) at a size; large ones are enlarged, with grain as cameras have it."""
    import skimage  # noqa: PLC0415 - slow to import, not needed by every script

    source = Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB")
    scaled = source.resize((width, height), Image.Resampling.BICUBIC)
    if width * height < 1_000_000:
        return scaled
    grain = np.random.default_rng(7).normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(scaled) + grain, 0, 255).astype(np.uint8))


def jpeg(width: int, height: int, quality: int = 90, **options: Any) -> bytes:
    """That photo as JPEG."""
    out = io.BytesIO()
    photo(width, height).save(out, "JPEG", quality=quality, **options)
    return out.getvalue()


def environment() -> dict[str, Any]:
    """What a figure depends on."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    commit = ""
    with contextlib.suppress(FileNotFoundError):  # a machine without git
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    model_name = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model n" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model_name,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": commit,
        "packages": packages,
    }


def write_null(repository: Path, name: str = "null", *, resize: str = "crop", crop_fraction: float = 1.0) -> None:
    """A model that does nothing: what is left is the server."""
    directory = repository / name / "1"
    directory.mkdir(parents=True)
    (directory / "model.toml").write_text(NULL_224.format(resize=resize, crop_fraction=crop_fraction))


class Gateway:
    """A running `penstock serve` and its children, as a user would start it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def pids(self) -> dict[str, list[int]]:
        """The gateway's pid and its children's, by role."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        roles: dict[str, list[int]] = {"gateway": [self.process.pid], "decoder": [], "worker": []}
        for child in children:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            roles["decoder" if b"gateway.decoding" in command else "worker"].append(int(child))
        return roles

    def cpu_ns(self) -> dict[str, int]:
        """CPU time used so far, per role."""
        return {role: sum(map(cpu_ns, pids)) for role, pids in self.pids().items()}

    def rss(self) -> dict[str, int]:
        """Resident bytes, per role."""
        return {role: sum(map(_rss, pids)) for role, pids in self.pids().items()}


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, in ns, from the scheduler's own account."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def gateway(
    repository: Path, *flags: str, tree: Path = ROOT, ready_timeout_s: float = READY_TIMEOUT_S
) -> Iterator[Gateway]:
    """Start the gateway of a checkout on a free port, wait until it is ready, stop it with SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gateway", "serve", "--models", str(repository), "--port", str(port), *flags]
    # What was on the path before stays behind the checkout: tests put a pretend card there.
    path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PENSTOCK_LOG_LEVEL": "warning", "PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=tree, env=environ)
    running = Gateway(process, port)
    try:
        _wait_ready(running, ready_timeout_s)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(running: Gateway, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if running.process.poll() is not None:
            raise SystemExit(f"the gateway exited with {running.process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(running.url + "/readyz", timeout=2):
            return
        time.sleep(0.05)
    raise SystemExit("the gateway did not get ready")


@contextlib.contextmanager
def temporary_repository() -> Iterator[Path]:
    """An empty folder for models, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def demo_repository() -> Path:
    """The demo model, built once into the user's cache as `penstock demo` does."""
    from gateway.demo import model  # noqa: PLC0415 - needs the demo extra
    from gateway.demo.show import repository  # noqa: PLC0415

    model.build(repository(), lambda *_: None)
    return repository()


def save(name: str, document: dict[str, Any]) -> Path:
    """Write raw results and the environment under bench/out/."""
    out = ROOT / "bench" / "out"
    out.mkdir(exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **document}, indent=1))
    return path
