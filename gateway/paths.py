"""Where a gateway keeps what is not a model: sockets and locks while it runs, its state across lives. Names only.

    runtime_dir()   $RUNTIME_DIRECTORY (systemd) | $XDG_RUNTIME_DIR/penstock | <temporary folder>/penstock-<uid>
        admin-8080.sock      handover-8080.sock      cuda-GPU-….lock   (8080: the port that is really listened on)
    state_dir()     state_dir in the settings | $STATE_DIRECTORY (systemd) | $XDG_STATE_HOME/penstock
                    | ~/.local/state/penstock

Whoever may write to the runtime folder can pass for the gateway, so it is taken only when it is nobody else's.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from gateway.config import Settings

OFF = "off"
"""The value of a setting for a socket that is not wanted."""

SOCKET_PATH_SIZE_MAX = 107
"""Bytes of a unix socket's path. Source: unix(7)."""

PRIVATE = 0o700


def runtime_dir() -> Path:
    """The folder for sockets and locks, made if need be.

    Raises:
        InvalidSettings: it is there and is not ours alone.
        OSError: it cannot be made; the gateway serves without what would be in it.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        found = Path(given)  # Made by systemd, perhaps as a link into a private folder.
        _check_ours(found, found.stat(), stat.S_IWGRP | stat.S_IWOTH)
        return found
    base = os.environ.get("XDG_RUNTIME_DIR")
    found = Path(base) / "penstock" if base else Path(tempfile.gettempdir()) / f"penstock-{os.geteuid()}"
    found.mkdir(mode=PRIVATE, exist_ok=True)
    _check_ours(found, found.lstat(), stat.S_IRWXG | stat.S_IRWXO)
    return found


def state_dir(settings: Settings) -> Path:
    """The folder for what outlives a gateway. It is not made here. Raises InvalidSettings without a home."""
    given = settings.state_dir or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    base = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".local" / "state") / "penstock"
    except RuntimeError:
        raise InvalidSettings("this user has no home folder to keep state in; set state_dir") from None


def engine_dir(settings: Settings) -> str:
    """The folder for built engines, which the worker that builds one makes; '' for a user without a home folder."""
    if settings.engine_dir:
        return settings.engine_dir
    given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if given:
        return str(Path(given) / "engines")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return str((Path(base) if base else Path.home() / ".cache") / "penstock" / "engines")
    except RuntimeError:
        return ""


def admin_socket(settings: Settings, port: int | None = None) -> Path | None:
    """The admin front's socket; None when it is off. `port`: the one that is listened on, if not that of the settings.

    Raises: InvalidSettings, OSError as `runtime_dir`.
    """
    if settings.admin_socket == OFF:
        return None
    if settings.admin_socket:
        return _checked(Path(settings.admin_socket), "admin_socket")
    return _checked(runtime_dir() / f"admin-{port or settings.port}.sock", "admin_socket")


def handover_socket(settings: Settings, port: int | None = None) -> Path:
    """The socket at which a successor calls. Raises InvalidSettings, OSError as `runtime_dir`."""
    return _checked(runtime_dir() / f"handover-{port or settings.port}.sock", "XDG_RUNTIME_DIR")


def device_lock(device: str) -> Path:
    """The file that is locked while a gateway uses this device, by the name that `gateway.gpus.resolve` gives it.

    Raises: InvalidSettings, OSError as `runtime_dir`.
    """
    return runtime_dir() / f"{device.replace(':', '-').replace('/', '-')}.lock"


def _checked(path: Path, setting: str) -> Path:
    """`path`, if a socket can have it. Raises InvalidSettings."""
    if len(os.fsencode(path)) > SOCKET_PATH_SIZE_MAX:
        raise InvalidSettings(
            f"{path} is too long for a unix socket, which takes {SOCKET_PATH_SIZE_MAX} bytes; set {setting} to a "
            "shorter one"
        )
    return path


def _check_ours(folder: Path, found: os.stat_result, forbidden: int) -> None:
    """Raises InvalidSettings when others could put something into this folder."""
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no folder"
    elif found.st_uid != os.geteuid():
        problem = "belongs to somebody else"
    elif found.st_mode & forbidden:
        problem = f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return
    raise InvalidSettings(
        f"{folder} {problem}; sockets and locks need a folder that is this user's alone: remove it, or set "
        "XDG_RUNTIME_DIR to another"
    )
