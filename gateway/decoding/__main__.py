"""`python -m gateway.decoding FD`: inherit, map, warm, shut the sandbox, then decode until the gateway is gone.

Exit codes (a death by SIGPROF is the CPU budget of one image, SIGSYS a system call that no decoder makes):

====  =========================================================
code  meaning
====  =========================================================
0     the gateway closed the socket
12    the slots of an attached model do not fit in the address space it may have
64    started with anything but one descriptor of a heritage
76    the gateway sent what is not a frame, or named a slot, model or body that is not there
77    a confinement that the kernel has could not be applied
====  =========================================================
"""

from __future__ import annotations

import os

# Before any import that leads to NumPy: its BLAS starts a thread per core then, which would stay outside the sandbox.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import gc
import signal
import sys

from gateway.decoding import pillow, sandbox
from gateway.decoding.loop import CpuBudget, Decoder, Model, NoMemoryForModel, report
from gateway.decoding.warm import warm_up
from shm import failpoints, wire
from shm.heritage import Heritage, go_first
from shm.recorder import Recorder

EXIT_NO_MEMORY = 12
EXIT_USAGE = 64
EXIT_BAD_FRAME = 76
EXIT_SANDBOX = 77

OOM_POINTS = 800
"""Out of 1000, over the gateway's: the least is lost with a decoder."""


def main(arguments: list[str]) -> int:
    """Be a decoder; returns the exit code."""
    if len(arguments) != 1 or not arguments[0].isdecimal():
        return _fail(EXIT_USAGE, "started by the gateway, with the descriptor of its heritage; not by hand")
    heritage = Heritage.inherit(int(arguments[0]))
    heritage.die_with_parent()
    heritage.yield_to_parent()
    go_first(OOM_POINTS)
    failpoints.hit("decoder.after_inherit")
    if heritage.bodies is None or heritage.limits is None:
        return _fail(EXIT_USAGE, "the heritage of a decoder has bodies and limits")
    # Service managers signal the whole group; when a decoder ends is the gateway's decision, which drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pillow.silence()
    bodies = memoryview(heritage.bodies.attach().map)
    recorder = Recorder(heritage.recorder.attach())
    models = {
        grant.index: Model.of(grant.contract, grant.input.map_for_views(), grant.slot_count)
        for grant in heritage.models
    }
    control = heritage.open_socket()
    warm_up()
    # What exists now lives as long as the process, so no collection need look at it again.
    gc.collect()
    gc.freeze()
    limits = heritage.limits
    budget = CpuBudget(limits.cpu_ns_max)
    try:
        in_force = sandbox.confine(address_space_size_max=limits.address_space_size_max, nice=limits.nice)
    except sandbox.SandboxError as error:
        return _fail(EXIT_SANDBOX, str(error))
    failpoints.hit("decoder.before_ready")
    try:
        control.send(wire.encode(wire.DecoderReady(in_force)))
    except ConnectionError:
        return 0
    return _serve(Decoder(control, bodies, models, recorder, budget))


def _serve(decoder: Decoder) -> int:
    """Decode until the gateway is gone; the exit code."""
    try:
        decoder.serve()
    except wire.WireError as error:
        return _fail(EXIT_BAD_FRAME, f"the gateway sent a frame that no gateway sends: {error}")
    except NoMemoryForModel as error:
        return _fail(EXIT_NO_MEMORY, str(error))
    return 0


def _fail(code: int, message: str) -> int:
    """Say on stderr why this process ends; returns `code`."""
    report("decoder_failed", message)
    return code


if __name__ == "__main__":
    # Not sys.exit: after the sandbox is shut there is nothing to tidy, and interpreter shutdown makes system calls.
    os._exit(main(sys.argv[1:]))
