"""Asks the worker's side: a child that prints one document of `shm.checkup`."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from gateway.errors import InvalidSettings
from shm.checkup import Checkup, Opened

_MODULE = "gpuworker.doctor"
_TIMEOUT_S = 300.0
"""Over what its own questions have together."""


def examine(engine_dir: str) -> Checkup:
    """The machine, its driver and the libraries. Raises InvalidSettings."""
    return msgspec.json.decode(_run(engine_dir), type=Checkup)


def open_device(given: str) -> Opened:
    """Open one GPU in a process of its own. Raises InvalidSettings."""
    return msgspec.json.decode(_run("open", given), type=Opened)


def _run(*arguments: str) -> bytes:
    try:
        command = [sys.executable, "-P", "-m", _MODULE, *arguments]
        done = subprocess.run(  # noqa: S603 - our own module
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_TIMEOUT_S, check=True
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise InvalidSettings(f"the examination of this machine ended before it was done: {error}") from error
    return done.stdout
