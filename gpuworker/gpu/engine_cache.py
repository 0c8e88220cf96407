"""Built engines in a folder, so that each is built once. An engine is native code: the folder is ours alone.

Its state is the folder; processes meet in it through file locks, which die with them::

    <key>.plan    header, engine      shared lock: somebody runs it       appears by rename, whole or not at all
    <key>.part    being written       by whoever holds the lock below
    <key>.lock    empty               exclusive lock: somebody builds it
    timing-<key>  TensorRT's timings, which make the next build shorter   replaced by rename

A header says how long the engine is and its CRC, so that a damaged one is never given to TensorRT.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import stat
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import InvalidModel
from gpuworker import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

FORMAT = 1
"""Of the key and the header. Another number, and every engine is built again."""

TIMING_SIZE_MAX = 256 << 20
"""Bytes of a timing cache that are read."""

_MAGIC = b"penstock engine\n"
_HEADER = struct.Struct("<16sIIQ32x")
_POLL_S = 0.2
_PART_AGE_MAX_S = 3600
"""Nobody writes timings for that long."""


class DamagedEngine(Exception):
    """A file that is not what was written."""


class Plan:
    """An engine's bytes, in memory until `settle`; its file is not evicted before `close`."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor. Raises DamagedEngine; then it is closed."""
        self._fd = fd
        self._map: mmap.mmap | None = None
        try:
            size = os.fstat(fd).st_size
            if size < _HEADER.size:
                raise DamagedEngine(f"{size} bytes")
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
            magic, version, crc, length = _HEADER.unpack_from(self._map)
            if (magic, version, length) != (_MAGIC, FORMAT, size - _HEADER.size):
                raise DamagedEngine("its header is not ours")
            self.content: memoryview = memoryview(self._map)[_HEADER.size :]
            if zlib.crc32(self.content) != crc:
                self.content.release()
                raise DamagedEngine("its checksum differs")
        except BaseException:
            self.close()
            raise

    def settle(self) -> None:
        """TensorRT has its own copy: give the bytes back, and stay the one who uses the file, if there is one."""
        content = getattr(self, "content", None)
        if content is not None:
            content.release()
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0 and not os.fstat(self._fd).st_nlink:
            self._close_fd()

    def close(self) -> None:
        """Let go of it."""
        self.settle()
        self._close_fd()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_plan(fd: int, plan: Buffer) -> None:
    """Write a whole engine with its header to an empty file, down to the disk. Raises OSError."""
    with memoryview(plan) as content, os.fdopen(fd, "wb", closefd=False) as file:
        file.write(_HEADER.pack(_MAGIC, FORMAT, zlib.crc32(content), content.nbytes))
        file.write(content)
        file.flush()
        os.fsync(fd)


def make_key(parts: Iterable[bytes | Path]) -> str:
    """One name for all that an engine depends on. A path stands for what is in the file. Raises OSError."""
    total = hashlib.sha256(b"%d" % FORMAT)
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        else:
            digest = hashlib.sha256(part).digest()
        # Digests are of one length, so that no two lists of parts are written alike.
        total.update(digest)
    return total.hexdigest()[:40]


class EngineCache:
    """The folder. `size_max`: bytes of engines that are kept; 0: any."""

    def __init__(self, folder: Path, size_max: int) -> None:
        """Make the folder if it is not there. Raises InvalidModel unless it is ours alone."""
        self._folder = folder
        self._size_max = size_max
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat(follow_symlinks=False)
        except OSError as error:
            raise _refused(folder, f"cannot be made ({error.strerror})") from error
        if not stat.S_ISDIR(found.st_mode):
            raise _refused(folder, "is not a folder")
        if found.st_uid != os.geteuid():
            raise _refused(folder, "belongs to somebody else")
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise _refused(folder, "is open to others")

    def find(self, key: str) -> Plan | None:
        """An engine that was kept, from now on in use. A damaged one is thrown away.

        Raises InvalidModel: the file may have been written by somebody else.
        """
        fd = self._open_ours(f"{key}.plan")
        if fd is None:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        # What was used last goes last.
        with contextlib.suppress(OSError):
            os.utime(fd)
        try:
            return Plan(fd)
        except DamagedEngine as error:
            log.event("engine_damaged", level="warning", key=key, detail=f"a kept engine is damaged: {error}")
            self.drop(key)
            return None

    def drop(self, key: str) -> None:
        """Forget an engine; who runs it keeps it."""
        (self._folder / f"{key}.plan").unlink(missing_ok=True)

    @contextlib.contextmanager
    def building(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Be the only one who builds this engine; `waiting` is called again and again while somebody else does."""
        path = self._folder / f"{key}.lock"
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while not _try_lock(fd):
                    waiting()
                    time.sleep(_POLL_S)
                # It may have been evicted between opening and locking; then the lock is on a file that nobody finds.
                if _is_at(fd, path):
                    yield
                    return
            finally:
                os.close(fd)

    def part(self, key: str) -> int:
        """A descriptor of an empty file for the engine that is being built. The caller closes it."""
        path = self._folder / f"{key}.part"
        path.unlink(missing_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def publish(self, key: str) -> None:
        """The part is complete and on the disk: let everybody find it, and make room."""
        (self._folder / f"{key}.part").rename(self._folder / f"{key}.plan")
        _sync(self._folder)
        self._evict(key)

    def read_timing(self, key: str) -> bytes:
        """TensorRT's timings from earlier builds, or nothing. Raises InvalidModel as `find`."""
        fd = self._open_ours(f"timing-{key}")
        if fd is None:
            return b""
        with os.fdopen(fd, "rb") as file:
            content = file.read(TIMING_SIZE_MAX + 1)
        return content if len(content) <= TIMING_SIZE_MAX else b""

    def write_timing(self, key: str, content: Buffer) -> None:
        """Keep timings, in place of those that are there. Raises OSError."""
        part = self._folder / f"timing-{key}.{os.getpid()}.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        part.rename(self._folder / f"timing-{key}")

    def _open_ours(self, name: str) -> int | None:
        """A descriptor of a file that only we can have written, or None. Raises InvalidModel."""
        path = self._folder / name
        try:
            # O_NONBLOCK: opening a named pipe would wait for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refused(path, f"cannot be read ({error.strerror})") from error
        found = os.fstat(fd)
        wrong = ""
        if not stat.S_ISREG(found.st_mode):
            wrong = "is not a file"
        elif found.st_uid != os.geteuid():
            wrong = "belongs to somebody else"
        elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            wrong = "can be written by others"
        if wrong:
            os.close(fd)
            raise _refused(path, wrong)
        return fd

    def _evict(self, newest: str) -> None:
        """Remove the engines that were used longest ago, until the rest fits; never one in use, nor the newest."""
        self._sweep()
        found = []
        for path in self._folder.glob("*.plan"):
            with contextlib.suppress(OSError):
                about = path.stat(follow_symlinks=False)
                found.append((about.st_mtime_ns, about.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if not self._size_max or total <= self._size_max:
                return
            if path.stem != newest and self._evict_one(path):
                total -= size
                log.event("engine_evicted", key=path.stem, size=size)

    def _sweep(self) -> None:
        """Remove what builders left that were killed."""
        for lock in self._folder.glob("*.lock"):
            plan = lock.with_suffix(".plan")
            if not plan.exists():
                self._evict_one(plan)
        for part in self._folder.glob("timing-*.part"):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > _PART_AGE_MAX_S:
                    part.unlink()

    def _evict_one(self, path: Path) -> bool:
        """Remove an engine that nobody runs and nobody builds, with what belongs to it; return whether it went."""
        with contextlib.ExitStack() as stack:
            for name in (path, path.with_suffix(".lock")):
                try:
                    fd = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue
                except OSError:
                    return False
                stack.callback(os.close, fd)
                if not _try_lock(fd):
                    return False
            for suffix in (".plan", ".part", ".lock"):
                path.with_suffix(suffix).unlink(missing_ok=True)
        return True


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    """Have the folder's entries on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refused(path: Path, wrong: str) -> InvalidModel:
    """A refusal that names the setting; the path is for the log."""
    log.event("engine_dir_refused", level="error", path=str(path), detail=wrong)
    place = "a file in engine_dir" if path.suffix or path.name.startswith("timing-") else "engine_dir"
    return InvalidModel(
        f"{place} {wrong}, and engines are native code; let it belong to the server's user alone (chmod 700), or set"
        " another engine_dir"
    )
