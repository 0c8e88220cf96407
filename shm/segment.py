"""Owns the life of mapped memory: memfds that are sealed, passed by fd, and gone with their last process.

Never a name in any file system, never a resize after creation.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import weakref
from typing import Self

F_SEAL_FUTURE_WRITE = 0x0010
"""Linux 5.1; not in Python's fcntl module. Source: linux/fcntl.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value

_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class Segment:
    """One mapped memfd. `map` stays valid until `close`; `fd` may be passed to a child."""

    __slots__ = ("fd", "map", "size")

    def __init__(self, fd: int, size: int, mapping: mmap.mmap) -> None:
        self.fd = fd
        self.size = size
        self.map = mapping

    @classmethod
    def create(cls, name: str, size: int, *, sole_writer: bool = False) -> Self:
        """Make `size` zero bytes, mapped read-write here.

        With `sole_writer` no other process can ever map them writable, not even by opening the fd again.
        `name` is for people (it shows in /proc/PID/maps) and need not be unique.
        """
        assert size > 0
        fd = os.memfd_create(f"penstock-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            mapping = mmap.mmap(fd, size)
            # Seal only once our own writable mapping exists: FUTURE_WRITE forbids every later one.
            seals = _FIXED_SIZE | (F_SEAL_FUTURE_WRITE if sole_writer else 0) | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, size, mapping)

    @classmethod
    def attach(cls, fd: int, size: int, *, writable: bool) -> Self:
        """Map an inherited memfd; takes ownership of `fd`."""
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return cls(fd, size, mmap.mmap(fd, size, mmap.MAP_SHARED, prot))

    def readonly_fd(self) -> int:
        """Open a second, read-only fd of the same memory; the caller closes it."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Unmap and close. Views that still exist keep the mapping (not the fd) until they go."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        # An exported view (a response being written) holds the map; the garbage collector unmaps it then.
        with contextlib.suppress(BufferError):
            self.map.close()


def map_for_views(fd: int, size: int) -> memoryview:
    """Map a memfd read-write and close `fd`; unmapped when the last view of the memory is gone.

    For a process under seccomp: one system call, and no descriptor stays. Python's own mmap makes and keeps a second
    descriptor, for which the sandbox has neither the call nor the room. Raises OSError.
    """
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    failed = ctypes.get_errno() if address == _MAP_FAILED else 0
    os.close(fd)
    if failed:
        raise OSError(failed, os.strerror(failed))
    # Views of NumPy keep this array, not the memoryview, so it is the one to watch.
    array = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(array, _libc.munmap, address, size).atexit = False
    return memoryview(array).cast("B")
