"""What a gateway settles about its own process before it serves: kept heap, garbage, descriptors."""

from __future__ import annotations

import ctypes
import gc
import resource

from gateway import logs

_log = logs.get("server")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

HEAP_KEPT_SIZE = 64 << 20
"""Bytes of freed memory that the gateway keeps for the next bodies."""

FDS_PER_MODEL, FDS_RESERVED = 4, 256
"""Descriptors for each model's segments, and for children, listeners and files."""


def keep_heap() -> None:
    """Have the allocator keep what it was given back, up to HEAP_KEPT_SIZE.

    Bodies come in pieces of 256 KiB. By default each of them is mapped, faulted in, and unmapped again: 1,290 µs of
    CPU a request for a 1080p photo of 500 kB, against 690 so. Source: mallopt(3), glibc; others have no such call.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, HEAP_KEPT_SIZE // 2)
        libc.mallopt(_M_TRIM_THRESHOLD, HEAP_KEPT_SIZE)


YOUNG_COUNT = 20_000
"""Objects that may come, and stay, before the garbage collector looks at them."""


def rest_collector() -> None:
    """Have the garbage collector look at what was made since the last time far less often, and never at what is here.

    What exists now lives as long as the process, and without `freeze` every full collection stops the loop to look at
    it. Requests leave no garbage, so that what 700 new objects (CPython's own threshold) show is how many requests are
    under way: with 1,000 of them and 10,000 silent connections 30 µs of CPU a request, and stops of 0.4 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_COUNT, 10, 10)


def raise_fd_limit(connections_max: int, model_count: int) -> None:
    """As many descriptors as this user may have. Logs a warning when that is too few for what the settings promise."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = connections_max + FDS_PER_MODEL * model_count + FDS_RESERVED
    if hard != resource.RLIM_INFINITY and hard < needed:
        _log.warning("few_descriptors", limit=hard, needed=needed, advice="raise ulimit -n or lower connections_max")
