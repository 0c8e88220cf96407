"""What systemd and the gateway tell each other: a socket at the start, and how it stands. Without systemd, nothing.

Source: sd_listen_fds(3), sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket

from gateway.errors import InvalidSettings

FIRST_FD = 3
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


def take_listener() -> socket.socket | None:
    """The socket that was passed to this process, if one was; children are not told of it.

    Raises: InvalidSettings when it is not one listening TCP socket.
    """
    told = {name: os.environ.pop(name, "") for name in _VARIABLES}
    if told["LISTEN_PID"] != str(os.getpid()):
        return None
    advice = "the socket unit needs exactly one ListenStream= with a port, and Accept=no"
    if told["LISTEN_FDS"] != "1":
        raise InvalidSettings(f"systemd passed {told['LISTEN_FDS'] or 'no'} sockets; {advice}")
    try:
        passed = socket.socket(fileno=FIRST_FD)
        passed.set_inheritable(False)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise InvalidSettings(
            f"descriptor {FIRST_FD}, passed as LISTEN_FDS, is no socket ({error}); {advice}"
        ) from None
    if not listens or passed.type != socket.SOCK_STREAM or passed.family not in (socket.AF_INET, socket.AF_INET6):
        passed.detach()
        raise InvalidSettings(f"descriptor {FIRST_FD}, passed as LISTEN_FDS, is no listening TCP socket; {advice}")
    return passed


def notify(state: str) -> None:
    """Tell the service manager, if it listens: "READY=1", "STOPPING=1". It is never waited for."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out:
        out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
