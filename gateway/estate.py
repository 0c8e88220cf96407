"""What a gateway holds that outlives it: the listening sockets and the locks. Taken at its start, left to a successor.

    http        the public listener          bound here | passed by systemd | left by the predecessor
    handover    where a successor calls      bound here | left by the predecessor
    admin       the admin front's socket     bound here | left by the predecessor
    admin_port  the admin front's TCP port   bound here | left by the predecessor
    lock:NAME   the runtime folder's file    taken here | left by the predecessor

Without a runtime folder (a container whose file system is read-only) a gateway serves all the same: nobody can replace
it, and no other one is kept from its devices.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from gateway import gpus, handover, locks, logs, paths, systemd
from gateway.errors import InvalidSettings
from gateway.http.listener import BACKLOG
from gateway.locks import Lock

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config import Settings
    from gateway.handover import Predecessor

_log = logs.get("server")

START_MARGIN_S = 15.0
"""How much longer than its children's start a successor may take."""


def start_timeout_s(settings: Settings) -> float:
    """How long a gateway may take to come up, but for the engines that its workers build meanwhile."""
    return settings.child_start_timeout_s + START_MARGIN_S


class Estate:
    """One gateway's sockets and locks. `shared`: whether others have copies of the listener, for good."""

    def __init__(
        self, listener: socket.socket, *, shared: bool = False, predecessor: Predecessor | None = None
    ) -> None:
        self.listener = listener
        self.shared = shared
        self.predecessor = predecessor
        self.handover: socket.socket | None = None
        self.admin: socket.socket | None = None
        self.admin_port: socket.socket | None = None
        self._locks: dict[str, Lock] = {}
        self._unix: dict[str, tuple[socket.socket, Path]] = {}
        self._ours: set[Path] = set()
        """Sockets that nobody but this process listens at: removed at the end."""
        self._left = dict(predecessor.fds) if predecessor is not None else {}
        self.given = False
        """Whether a successor has it all."""

    @classmethod
    def acquire(cls, settings: Settings, *, replace: bool) -> Self:
        """Everything that these settings need. Raises InvalidSettings when somebody else has a part of it."""
        if replace:
            estate = cls._inherit(settings)
        else:
            passed = systemd.take_listener()
            estate = cls(passed or bind(settings.host, settings.port), shared=passed is not None)
        try:
            estate._complete(settings)
        except BaseException:
            estate.close()
            raise
        return estate

    @classmethod
    def _inherit(cls, settings: Settings) -> Self:
        """The running gateway's. Raises InvalidSettings when there is none, or it listens elsewhere."""
        if not settings.port:
            raise InvalidSettings("--replace needs the port of the running gateway; give it with --port")
        try:
            path = paths.handover_socket(settings)
        except OSError as error:
            raise InvalidSettings(f"no gateway to replace: there is no runtime folder ({error})") from None
        predecessor = handover.call(path, start_timeout_s(settings) + settings.engine_build_timeout_s)
        if "http" not in predecessor.fds:
            predecessor.refuse()
            raise InvalidSettings(f"the running gateway (pid {predecessor.pid}) left no listener; stop it first")
        listener = socket.socket(fileno=predecessor.fds.pop("http"))
        estate = cls(listener, predecessor=predecessor)
        found = listener.getsockname()
        try:
            same = _resolve(settings.host, settings.port)[1][:2] == found[:2]
        except OSError:
            same = False
        if not same:
            estate.close()
            raise InvalidSettings(
                f"the running gateway listens on {found[0]}:{found[1]}, which --replace keeps; give that as --host "
                "and --port, or stop it first"
            )
        return estate

    def _complete(self, settings: Settings) -> None:
        """The admin port, the unix sockets and the devices' locks."""
        if settings.admin_port:
            self.admin_port = self._tcp_listener("admin_port", settings.admin_host, settings.admin_port)
        try:
            self.handover = self._unix_listener(
                "handover",
                paths.handover_socket(settings, self.port),
                f"port {self.port} of this user",
                "take its place with --replace, or set another XDG_RUNTIME_DIR",
                socket.SOCK_SEQPACKET,
            )
            for device, given in zip(settings.devices, gpus.resolve(settings.devices, os.environ), strict=True):
                if given != "cpu":
                    self._lock(paths.device_lock(given), device)
            if not settings.admin_socket:
                self._open_admin(settings)
        except OSError as error:
            _log.warning("no_runtime_folder", error=str(error), missing="handover, locks of devices, admin socket")
        if settings.admin_socket:
            try:
                self._open_admin(settings)
            except OSError as error:
                raise InvalidSettings(
                    f"admin_socket {settings.admin_socket} cannot be bound: {error.strerror}"
                ) from None

    def _open_admin(self, settings: Settings) -> None:
        path = paths.admin_socket(settings, self.port)
        if path is not None:
            self.admin = self._unix_listener("admin", path, str(path), "set another admin_socket")

    def _tcp_listener(self, name: str, host: str, port: int) -> socket.socket:
        """The TCP socket of this name: the predecessor's if it has the same address, else bound here."""
        left = self._left.pop(name, None)
        if left is not None:
            listener = socket.socket(fileno=left)
            with contextlib.suppress(OSError):
                if listener.getsockname()[:2] == _resolve(host, port)[1][:2]:
                    return listener
            listener.close()
        return bind(host, port, "choose another with admin_port or admin_host")

    @property
    def port(self) -> int:
        """The one that is really listened on."""
        port: int = self.listener.getsockname()[1]
        return port

    def _unix_listener(
        self, name: str, path: Path, what: str, advice: str, kind: int = socket.SOCK_STREAM
    ) -> socket.socket:
        """The unix socket of this name, 0600: the predecessor's if it has the same path, else bound here.

        Raises InvalidSettings when another gateway has it, OSError.
        """
        lock_name = f"lock:{path.name}.lock"
        left = self._left.get(name)
        if left is not None and lock_name in self._left and _path_of(left) == os.fspath(path):
            bound, lock = socket.socket(fileno=self._left.pop(name)), Lock(self._left.pop(lock_name))
        else:
            bound, lock = locks.bind_unix(path, what, advice, kind)
            self._ours.add(path)
        self._unix[name] = bound, path
        self._locks[f"{path.name}.lock"] = lock
        return bound

    def _lock(self, path: Path, device: str) -> None:
        left = self._left.pop(f"lock:{path.name}", None)
        advice = "choose another with --device, or stop that one"
        self._locks[path.name] = Lock(left) if left is not None else locks.take(path, device, advice)

    def fds(self) -> dict[str, int]:
        """What a successor gets, by name."""
        found = {"http": self.listener.fileno()}
        found |= {name: bound.fileno() for name, (bound, _) in self._unix.items()}
        if self.admin_port is not None:
            found["admin_port"] = self.admin_port.fileno()
        return found | {f"lock:{name}": lock.fd for name, lock in self._locks.items()}

    def settle(self) -> None:
        """This process is the one that serves now: the locks are to say so, and what it has no use for is let go."""
        for lock in self._locks.values():
            lock.sign()
        self._ours.update(path for _, path in self._unix.values())
        self._drop_left()

    def give(self) -> None:
        """A successor has settled: nothing here is ours any more."""
        self.given = True
        self._ours.clear()

    def _drop_left(self) -> None:
        for fd in self._left.values():
            os.close(fd)
        self._left = {}

    def close(self) -> None:
        """Close everything; what no successor has is removed first, while the locks still keep others away."""
        if self.predecessor is not None:
            self.predecessor.close()
        for bound, path in self._unix.values():
            if path in self._ours:
                path.unlink(missing_ok=True)
            bound.close()
        for lock in self._locks.values():
            lock.close()
        self._unix, self._locks = {}, {}
        self._drop_left()
        if self.admin_port is not None:
            self.admin_port.close()
        self.listener.close()


def _path_of(fd: int) -> str:
    """Where a unix socket is bound."""
    with socket.socket(fileno=os.dup(fd)) as bound:
        return str(bound.getsockname())


def bind(host: str, port: int, advice: str = "choose another with --port or --host") -> socket.socket:
    """A listening socket, taken before anything else is started. Raises InvalidSettings: the address is not free."""
    try:
        family, address = _resolve(host, port)
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidSettings(f"cannot listen on {host}:{port}: {reason}; {advice}") from None
    return bound


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """(family, address). Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return found[0], found[4]
