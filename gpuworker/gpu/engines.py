"""Where a worker's engines come from: out of the folder, or from a builder that it starts and watches."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway.errors import InvalidModel
from gpuworker import log
from gpuworker.gpu.building import Errand, Exit
from gpuworker.gpu.engine_cache import EngineCache, Plan, make_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpuworker.backend import Report
    from gpuworker.gpu.building import Order
    from gpuworker.gpu.card import Properties

REPORT_S = 1.0
"""At least that often the worker says that it lives while an engine is built."""

_LINE_SIZE_MAX = 1 << 16
_DRIVER = Path("/proc/driver/nvidia/version")


class Source(NamedTuple):
    """What an engine is built from. `content`: an ONNX file. `weights`: files that hold more of it.

    `path`: where the ONNX file is, or would be; weights are beside it.
    """

    content: bytes
    weights: tuple[Path, ...]
    path: Path
    order: Order


class Workshop:
    """Gives engines. `library`: TensorRT's version."""

    def __init__(self, engine_dir: str, size_max: int, properties: Properties, library: str) -> None:
        """Raises InvalidModel: the folder may be somebody else's."""
        self._cache = EngineCache(Path(engine_dir), size_max) if engine_dir else None
        self._engine_dir = engine_dir
        self._machine = msgspec.json.encode(
            [
                library,
                properties.name,
                properties.capability,
                properties.memory_size,
                properties.multiprocessor_count,
                properties.driver,
                properties.runtime,
                driver_version(),
            ]
        )
        if self._cache is None:
            log.event("engines_not_kept", level="warning", detail="engine_dir is empty: every start builds engines")

    def key(self, source: Source) -> str:
        """The engine's name. Raises InvalidModel: a file of weights has gone."""
        try:
            return make_key([self._machine, msgspec.json.encode(source.order), source.content, *source.weights])
        except OSError as error:
            raise InvalidModel("weights beside the graph cannot be read; make them readable for the server") from error

    def obtain(self, source: Source, report: Report, *, afresh: bool = False) -> Plan:
        """An engine, in use until it is closed. `afresh`: the one that is kept is no good.

        Raises InvalidModel, MemoryError, and ConnectionError when nobody is left to report to.
        """
        if self._cache is None:
            fd = os.memfd_create("penstock-engine", os.MFD_CLOEXEC)
            try:
                self._build(source, fd, report)
            except BaseException:
                os.close(fd)
                raise
            return Plan(fd)
        key = self.key(source)
        with _folder_trouble():
            if afresh:
                self._cache.drop(key)
            plan = self._cache.find(key)
            if plan is not None:
                return plan
            with self._cache.building(key, _paced(report)):
                # Whoever was waited for may have built it.
                return self._cache.find(key) or self._build_kept(self._cache, key, source, report)

    def _build_kept(self, cache: EngineCache, key: str, source: Source, report: Report) -> Plan:
        fd = cache.part(key)
        try:
            self._build(source, fd, report)
        finally:
            os.close(fd)
        cache.publish(key)
        plan = cache.find(key)
        if plan is None:
            raise InvalidModel("an engine that was just built is gone from engine_dir; let nobody else write there")
        return plan

    def _build(self, source: Source, plan_fd: int, report: Report) -> None:
        """Have a builder write the engine. Raises InvalidModel, MemoryError, ConnectionError."""
        begin = time.monotonic()
        report("building", 0.0)
        read_fd, write_fd = os.pipe()
        graph_fd = os.memfd_create("penstock-graph", os.MFD_CLOEXEC)
        with os.fdopen(read_fd, "rb", buffering=0) as pipe:
            try:
                with os.fdopen(graph_fd, "wb", closefd=False) as file:
                    file.write(source.content)
                os.lseek(graph_fd, 0, os.SEEK_SET)
                errand = Errand(
                    parent=os.getpid(),
                    order=source.order,
                    graph_fd=graph_fd,
                    graph_path=str(source.path) if source.weights else "",
                    plan_fd=plan_fd,
                    pipe_fd=write_fd,
                    engine_dir=self._engine_dir,
                    timing_key=make_key([self._machine]),
                )
                child = _spawn(errand)
            finally:
                os.close(write_fd)
                os.close(graph_fd)
            try:
                _watch(pipe.fileno(), report)
            except BaseException:
                child.kill()
                raise
            finally:
                code = child.wait()
        _check_end(code)
        log.event("engine_built", seconds=round(time.monotonic() - begin, 1), sizes=source.order.sizes)


def driver_version() -> str:
    """The kernel driver's own line about itself; empty where there is none."""
    try:
        return _DRIVER.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""


def _paced(report: Report) -> Callable[[], None]:
    """Something to call while another process builds the same engine: reports every now and then."""
    told = -REPORT_S

    def waiting() -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= REPORT_S:
            told = now
            report("building", 0.0)

    return waiting


def _spawn(errand: Errand) -> subprocess.Popen[bytes]:
    """Start a builder. It gets this process' environment, and with it the one GPU that is in sight."""
    fd = errand.bequeath()
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "gpuworker.gpu.building", str(fd)],
            pass_fds=(fd, errand.graph_fd, errand.plan_fd, errand.pipe_fd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    finally:
        os.close(fd)


def _watch(fd: int, report: Report) -> None:
    """Report what a builder says until it closes its pipe. Raises InvalidModel, MemoryError: it cannot build this."""
    share, rest = 0.0, b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(int(REPORT_S * 1000)):
            report("building", share)
            continue
        piece = os.read(fd, _LINE_SIZE_MAX)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            kind, what = msgspec.json.decode(line, type=tuple[str, float | str])
            if kind == "refused":
                raise InvalidModel(str(what))
            if kind == "no_memory":
                raise MemoryError(str(what))
            share = float(what)
            report("building", share)


def _check_end(code: int) -> None:
    """Raise InvalidModel unless a builder ended well."""
    if code == Exit.DONE:
        return
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the kernel does that when memory runs out" if name == "SIGKILL" else ""
        raise InvalidModel(f"the process that built the engine was killed by {name}{hint}; load the model again")
    raise InvalidModel(
        f"the process that built the engine failed with exit code {code}, which is a defect of ours; its log has the"
        " traceback"
    )


@contextlib.contextmanager
def _folder_trouble() -> Iterator[None]:
    """Make a refusal of what goes wrong with engine_dir. Who reports to nobody is not meant."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        raise InvalidModel(
            f"the engine cannot be built and kept ({error.strerror}); make room in engine_dir, or set another one"
        ) from error
