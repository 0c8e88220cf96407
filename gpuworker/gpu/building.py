"""`python -m gpuworker.gpu.building FD`: builds one engine and ends. FD is its errand, its only argument.

A process of its own, so that a build's memory comes back, its crash is a refusal of one model, and the worker goes on
saying that it lives. It dies with the worker. What it says goes down a pipe, one JSON array a line::

    ["share", 0.37]        how far it is
    ["refused", "..."]     the model cannot be built, in words
    ["no_memory", "..."]   it did not fit

====  ==================================================================
exit  meaning
====  ==================================================================
0     the engine is in its file, or the pipe says why not
64    the argument or the errand is none: started by hand
70    a defect of ours; a traceback is on stderr
====  ==================================================================
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import sys
from typing import NoReturn, Self

import msgspec

from gateway.errors import InvalidModel
from gpuworker import log
from gpuworker.gpu.tensorrt_versions import Typing
from shm.heritage import die_with


class Exit(enum.IntEnum):
    """Exit codes. Source: sysexits.h for the numbers."""

    DONE = 0
    NO_ERRAND = 64
    OWN_DEFECT = 70


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is built. What changes an engine is in here, in the graph, its weights, or the machine."""

    input: str
    """The graph's uint8 input."""
    shape: tuple[int, ...]
    """Of one row of it."""
    sizes: tuple[int, ...]
    """Batch sizes; each gets an optimization profile of its own."""
    typing: Typing
    tf32: bool
    workspace_size_max: int
    """Bytes."""
    optimization_level: int


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """All that a builder is given. `parent`: the pid whose death ends it; fds are inherited."""

    parent: int
    order: Order
    graph_fd: int
    """An ONNX file."""
    graph_path: str
    """Where that file seems to be, for weights beside it; empty: it has none."""
    plan_fd: int
    """An empty file, for the engine."""
    pipe_fd: int
    engine_dir: str
    """Where timings are kept; empty: nowhere."""
    timing_key: str

    def bequeath(self) -> int:
        """Write it to a fresh memfd and return its fd; the caller closes it after the spawn."""
        fd = os.memfd_create("penstock-errand", os.MFD_CLOEXEC)
        os.write(fd, msgspec.json.encode(self))
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def inherit(cls, fd: int) -> Self:
        """In the builder: read it from the fd given as its argument, and close that fd."""
        with os.fdopen(fd, "rb") as file:
            return msgspec.json.decode(file.read(), type=cls)

    def tell(self, kind: str, what: float | str) -> None:
        """In the builder, from any thread: say something to the worker."""
        os.write(self.pipe_fd, msgspec.json.encode([kind, what]) + b"\n")


def main(arguments: list[str]) -> Exit:
    """Build, and return how it ended."""
    try:
        errand = Errand.inherit(int(arguments[0]))
    except (IndexError, ValueError, OSError, msgspec.DecodeError) as error:
        log.event("no_errand", level="error", detail=f"a builder is started by a worker: {error}")
        return Exit.NO_ERRAND
    die_with(errand.parent)
    try:
        # By name and only now: it takes a second and a GPU.
        importlib.import_module("gpuworker.gpu.tensorrt_builder").build(errand)
    except InvalidModel as refusal:
        if refusal.__cause__ is not None:
            log.event("build_refused", level="warning", error=refusal.__cause__)
        errand.tell("refused", str(refusal))
    except MemoryError as error:
        errand.tell("no_memory", str(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line for the log, then a named death
        log.event("builder_defect", level="error", error=error)
        return Exit.OWN_DEFECT
    return Exit.DONE


def leave(code: Exit) -> NoReturn:
    """End this process at once: what the libraries do to a card on their way out may crash, and the engine is written.

    The driver takes everything back by itself.
    """
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
