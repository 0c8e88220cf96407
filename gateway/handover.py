"""The change from one gateway process to the next without a lost request: sockets and locks pass by descriptor.

    successor                         running gateway
       │ Hello ─────────────────────────▶ │   same user, same protocol, nobody else calling; it serves on
       │ ◀───────────── Estate, SCM_RIGHTS │   copies of the listening sockets and the locks
       │ starts its children, which takes as long as it takes
       │ Ready ─────────────────────────▶ │   closes its copy of the listener: nobody accepts now, the kernel queues
       │ ◀──────────────────────────── Go │
       │ accepts                          │   answers what it has accepted, and exits

At every moment at most one of them accepts, and the queue of connections, which is the kernel's, is never closed. Until
`Ready` the running gateway has given nothing away: a successor that dies, or takes too long (`Refused`), changes
nothing. One that finds its predecessor dead goes on alone. Frames are JSON in SOCK_SEQPACKET messages. `Hello` may
grow; its first two fields mean the same for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import TYPE_CHECKING

import msgspec

from gateway import __version__, logs
from gateway.errors import InvalidSettings
from gateway.measured import Measured
from shm import failpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_log = logs.get("handover")

PROTOCOL = 1
"""What both must speak. Raised when an older gateway could not understand a frame, or the names in the estate."""

FRAME_SIZE_MAX = 64 * 1024
FD_COUNT_MAX = 128

CALL_TIMEOUT_S = 5.0
"""How long a running gateway may take for its first answer: many of its slowest ticks."""

GO_TIMEOUT_S = 5.0
"""How long a successor that is ready waits for Go. A gateway that cannot say it in this time does not accept either."""

PATIENCE_MAX_S = 7200.0
"""Longest that a successor may ask to be waited for."""

BACKLOG = 4
_CREDENTIALS = struct.Struct("3i")


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A successor's first words. `timeout_s`: how long it wants to be waited for."""

    protocol: int
    version: str
    pid: int
    timeout_s: float


class Estate(msgspec.Struct, frozen=True, tag="estate"):
    """The names of the descriptors that come with it, in their order; and what is known of the models."""

    pid: int
    version: str
    names: list[str]
    measured: list[Measured] = []


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The successor can serve."""


class Go(msgspec.Struct, frozen=True, tag="go"):
    """The running gateway has stopped accepting."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """There is no handover, or no longer."""

    detail: str


_CALLS = msgspec.json.Decoder(Hello | Ready)
_ANSWERS = msgspec.json.Decoder(Estate | Go | Refused)


class Handover:
    """The running gateway's side: answers at a listening socket, to one successor at a time.

    `fds` names what is handed over, `measured` what is told with it. `let_go` is called once, when a successor is
    ready: it must stop accepting before it returns. State: the successor's connection, and whether it has what it
    called for.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listening: socket.socket,
        fds: Callable[[], Mapping[str, int]],
        let_go: Callable[[], None],
        measured: Callable[[], list[Measured]] = list,
    ) -> None:
        self._loop = loop
        self._listening = listening
        self._fds = fds
        self._let_go = let_go
        self._measured = measured
        self._successor: socket.socket | None = None
        self._greeted = False
        self._dismissed: set[socket.socket] = set()
        self._patience: asyncio.TimerHandle | None = None
        self.done = False
        """Whether a successor has taken over."""
        listening.setblocking(False)
        listening.listen(BACKLOG)
        loop.add_reader(listening, self._accept)

    @property
    def pending(self) -> bool:
        """Whether a successor holds copies of what is ours."""
        return self._successor is not None and self._greeted

    def close(self) -> None:
        """Hear nobody any more. A successor that is still starting goes on alone."""
        if self._listening.fileno() >= 0:
            # Its copies live on elsewhere, so closing alone would leave it in the loop's set.
            self._loop.remove_reader(self._listening)
            self._listening.close()
        self._forget()
        for caller in self._dismissed:
            self._loop.remove_reader(caller)
            caller.close()
        self._dismissed.clear()

    def _accept(self) -> None:
        try:
            caller, _ = self._listening.accept()
        except OSError:
            return
        _, uid, _ = _CREDENTIALS.unpack(caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid != os.geteuid():
            caller.close()
            _log.warning("handover_refused", reason="another user", uid=uid)
            return
        caller.setblocking(False)
        if self._successor is not None:
            self._dismiss(caller, "another gateway is taking over already; let it end, or stop it, and try again")
        else:
            self._successor = caller
            self._patience = self._loop.call_later(CALL_TIMEOUT_S, self._give_up)
            self._loop.add_reader(caller, self._read)

    def _read(self) -> None:
        """One frame of the successor, or its end."""
        caller = self._successor
        assert caller is not None
        try:
            frame = caller.recv(FRAME_SIZE_MAX)
            call = _CALLS.decode(frame) if frame else None
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("handover_failed", reason=str(error))
            self._forget()
            return
        if isinstance(call, Hello) and not self._greeted:
            self._greet(caller, call)
        elif isinstance(call, Ready) and self._greeted:
            self._yield(caller)
        else:
            _log.warning("handover_failed", reason="the successor left before it was ready; serving on")
            self._forget()

    def _greet(self, caller: socket.socket, hello: Hello) -> None:
        if hello.protocol != PROTOCOL:
            self._dismiss(
                caller,
                f"the running gateway {__version__} speaks handover protocol {PROTOCOL}, {hello.version} speaks "
                f"{hello.protocol}; stop the running one and start the other without --replace",
            )
            return
        fds = self._fds()
        measured = self._measured()
        while (
            len(estate := msgspec.json.encode(Estate(os.getpid(), __version__, list(fds), measured))) > FRAME_SIZE_MAX
        ):
            measured.pop()  # What does not fit is measured again.
        try:
            socket.send_fds(caller, [estate], list(fds.values()))
        except OSError as error:
            _log.warning("handover_failed", reason=str(error))
            self._forget()
            return
        self._greeted = True
        self._wait(min(max(hello.timeout_s, 1.0), PATIENCE_MAX_S))
        _log.info("handover_begun", pid=hello.pid, version=hello.version, timeout_s=hello.timeout_s)

    def _yield(self, caller: socket.socket) -> None:
        """Stop accepting, then say so."""
        failpoints.hit("gateway.before_let_go")
        self.done = True
        self._let_go()
        failpoints.hit("gateway.after_let_go")
        with contextlib.suppress(OSError):
            caller.send(msgspec.json.encode(Go()))
        _log.info("handover_done")
        self.close()

    def _wait(self, seconds: float) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        """Tell the successor that nobody waits for it any more."""
        assert self._successor is not None
        if self._greeted:
            self._read()  # A loop that was held up may hear of the timer first, and of its Ready second.
        if self._successor is not None:
            self._dismiss(self._successor, "it was not ready in time; the running gateway serves on")

    def _dismiss(self, caller: socket.socket, detail: str) -> None:
        """Say no, and let the caller hang up: closing first, with words of its own unread, would lose ours."""
        _log.warning("handover_refused", reason=detail)
        with contextlib.suppress(OSError):
            caller.send(msgspec.json.encode(Refused(detail)))

        def read() -> None:
            with contextlib.suppress(OSError):
                if caller.recv(FRAME_SIZE_MAX):
                    return
            self._loop.remove_reader(caller)
            self._dismissed.discard(caller)
            caller.close()

        self._loop.remove_reader(caller)
        self._loop.add_reader(caller, read)
        self._dismissed.add(caller)
        if caller is self._successor:
            self._successor = None
            self._forget()

    def _forget(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._successor is not None:
            self._loop.remove_reader(self._successor)
            self._successor.close()
            self._successor = None
        self._greeted = False


class Predecessor:
    """The successor's side: the gateway that runs, and what it gave. `fds` are this process's to close."""

    def __init__(self, line: socket.socket, estate: Estate, fds: list[int]) -> None:
        self._line = line
        self.pid = estate.pid
        self.version = estate.version
        self.measured = estate.measured
        self.fds = dict(zip(estate.names, fds, strict=True))

    def close(self) -> None:
        """Hang up: before `take_over`, that is to let the running gateway serve on."""
        self._line.close()

    def refuse(self) -> None:
        """Hang up, and close what it gave."""
        _close_all(self._line, list(self.fds.values()))

    async def wait_gone(self) -> None:
        """Until the running gateway died. Raises InvalidSettings when it gave up waiting instead."""
        if await self._hear() is not None:
            raise AssertionError("the running gateway says Go before it heard Ready")

    async def take_over(self) -> None:
        """Say Ready and wait until this process is the one that accepts: for Go, for the other's death, or long enough.

        Raises: InvalidSettings when the running gateway gave up waiting.
        """
        failpoints.hit("gateway.before_take_over")
        try:
            self._line.send(msgspec.json.encode(Ready()))
            async with asyncio.timeout(GO_TIMEOUT_S):
                await self._hear()
        except (TimeoutError, OSError) as error:
            _log.warning("predecessor_silent", pid=self.pid, error=repr(error))
        self.close()

    async def _hear(self) -> Go | None:
        """Its next word; None at its end."""
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        self._line.setblocking(False)
        loop.add_reader(self._line, heard.set)
        try:
            await heard.wait()
        finally:
            loop.remove_reader(self._line)
        try:
            frame = self._line.recv(FRAME_SIZE_MAX)
        except OSError:
            return None
        word = _ANSWERS.decode(frame) if frame else None
        if isinstance(word, Refused):
            raise InvalidSettings(f"the running gateway (pid {self.pid}) was not replaced: {word.detail}")
        assert not isinstance(word, Estate)
        return word


def call(path: Path, timeout_s: float) -> Predecessor:
    """Ask the gateway that listens at `path` for what it has. It waits `timeout_s` for this process to be ready.

    Raises: InvalidSettings when there is none, it refuses, or speaks another protocol.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds: list[int] = []
    try:
        line.settimeout(CALL_TIMEOUT_S)
        line.connect(os.fspath(path))
        line.send(msgspec.json.encode(Hello(PROTOCOL, __version__, os.getpid(), timeout_s)))
        frame, fds, _, _ = socket.recv_fds(line, FRAME_SIZE_MAX, FD_COUNT_MAX)
        for fd in fds:
            os.set_inheritable(fd, False)
        answer = _ANSWERS.decode(frame) if frame else None
        if isinstance(answer, Refused):
            raise InvalidSettings(f"the running gateway was not replaced: {answer.detail}")
        if not isinstance(answer, Estate) or len(answer.names) != len(fds):
            raise InvalidSettings(f"the running gateway was not replaced: it hung up at {path}; its log may say why")
    except (FileNotFoundError, ConnectionRefusedError):
        line.close()
        raise InvalidSettings(
            f"no gateway to replace: nobody listens at {path}; start without --replace, or with the running one's "
            "--port and XDG_RUNTIME_DIR"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        _close_all(line, fds)
        raise InvalidSettings(f"the gateway at {path} was not replaced: {error}") from None
    except BaseException:
        _close_all(line, fds)
        raise
    return Predecessor(line, answer, fds)


def _close_all(line: socket.socket, fds: list[int]) -> None:
    line.close()
    for fd in fds:
        os.close(fd)
