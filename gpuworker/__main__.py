"""`python -m gpuworker FD`: the worker process. FD is the heritage, its only argument.

Settles what has to be settled before NumPy or an engine is imported (whose death ends this process, which signals it
minds, how many threads libraries start), then hands over to `gpuworker.start`.

====  ===============================================================================
exit  meaning
====  ===============================================================================
0     the gateway closed the socket or died: nothing left to serve
64    the argument or the heritage is none: started by hand, or by another version
70    a defect of the worker; a traceback is on stderr
75    a sticky device error: whatever this process would run on the device fails, another process may do better
76    the gateway sent what no correct gateway sends; a line on stderr says what
====  ===============================================================================
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import os
import resource
import signal
import sys
from typing import NoReturn

import msgspec

from gpuworker import interrupts, log
from gpuworker.backend import DeviceLost
from shm import failpoints
from shm.heritage import Heritage, go_first
from shm.wire import WireError


class Exit(enum.IntEnum):
    """Exit codes. Source: sysexits.h for the numbers."""

    GATEWAY_GONE = 0
    NO_HERITAGE = 64
    OWN_DEFECT = 70
    DEVICE_LOST = 75
    GATEWAY_DEFECT = 76


OOM_POINTS = 500
"""Out of 1000, over the gateway's, and below the decoders': a worker is slower to replace than they are."""

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Without it ONNX Runtime keeps an id of this machine and a database of events in the user's cache folder."""

_UNTIL_THE_END: list[DeviceLost] = []
"""Its traceback holds the models: an engine whose device is lost must not be let go of, see `leave`."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main(arguments: list[str]) -> Exit:
    """Live one worker's life and return how it ended."""
    try:
        heritage = Heritage.inherit(int(arguments[0]))
    except (IndexError, ValueError, OSError, msgspec.DecodeError) as error:
        log.event("no_heritage", level="error", detail=f"a worker is started by the gateway: {error}")
        return Exit.NO_HERITAGE
    heritage.die_with_parent()
    heritage.yield_to_parent()
    go_first(OOM_POINTS)
    failpoints.hit("worker.after_inherit")
    # A core would hold clients' images.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    interrupts.block()
    # Ctrl-C and service managers signal the whole group; when to stop is the gateway's word, which drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(heritage.thread_count)))
    os.environ.setdefault(_NO_TELEMETRY, "1")

    # By name and only now: NumPy and the engines read those variables when they are imported.
    model = importlib.import_module("gpuworker.model")
    start = importlib.import_module("gpuworker.start")
    try:
        start.work(heritage)
    except ConnectionError:
        return Exit.GATEWAY_GONE
    except (WireError, model.GatewayBug) as error:
        log.event("gateway_defect", level="error", detail=str(error))
        return Exit.GATEWAY_DEFECT
    except DeviceLost as error:
        log.event("device_lost", level="error", detail=f"sticky device error: {error}", device=heritage.device)
        _UNTIL_THE_END.append(error)
        return Exit.DEVICE_LOST
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line for the log, then a named death
        log.event("worker_defect", level="error", error=error)
        return Exit.OWN_DEFECT
    return Exit.GATEWAY_GONE


def leave(code: Exit) -> NoReturn:
    """End this process.

    One that opened a card ends at once: on their way out engines let go of the device call by call, throw where a lost
    one refuses, and so end by a signal what was to end by its code. The driver takes everything back by itself.
    """
    if "gpuworker.gpu.card" in sys.modules:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
