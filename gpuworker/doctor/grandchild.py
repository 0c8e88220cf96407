"""Asks one library in a process of its own with a time limit: what imports, loads or opens may crash, hang or print.

The process gets its stdout for the answer alone: what libraries print there goes to stderr, and is read only when they
end the process.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ANSWER_TIMEOUT_S = 120.0
"""The first CUDA context after the driver was loaded takes several seconds, an import from a cold disk as many."""

WORDS_SIZE_MAX = 300
"""Characters of a library's own words that are passed on."""


def ask(name: str, *arguments: str, environ: Mapping[str, str] | None = None, timeout_s: float) -> dict[str, Any]:
    """Have `gpuworker.doctor.questions` answer `name`; what it says, or {"problem": how it ended}.

    `environ`: variables over this process' own.
    """
    command = [sys.executable, "-P", "-m", "gpuworker.doctor.questions", name, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"it gave no answer within {timeout_s:g} s"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    if done.returncode < 0:
        ended = f"it ended the process by {signal.Signals(-done.returncode).name}"
    else:
        ended = f"it ended the process with status {done.returncode}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return {"problem": f"{ended}: {said[-1][:WORDS_SIZE_MAX]}" if said else ended}


def ask_all(names: Iterable[str], *, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, dict[str, Any]]:
    """Ask several at once; answers by name."""
    wanted = list(names)
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as threads:
        return dict(zip(wanted, threads.map(lambda name: ask(name, timeout_s=timeout_s), wanted), strict=True))
