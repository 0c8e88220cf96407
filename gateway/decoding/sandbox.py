"""Confines this process before it sees a hostile byte: resource limits, no new privileges, Landlock, seccomp.

What the kernel does not have is left out of the list that `confine` returns; what it has and cannot apply is an error.
Nothing here can be undone by the process that it confines.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from pathlib import Path

from gateway.decoding import bpf

_PR_GET_SECCOMP = 21
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_NUMBERS = {"x86_64": 317, "aarch64": 277}

# Landlock's numbers are the same on every architecture. Source: linux/landlock.h, Documentation/userspace-api/landlock.
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
"""Kinds of file access (low bits) that can be denied, by the ABI that brought the last of them."""
_NETWORK_RIGHTS = 2
"""Binding and connecting TCP, since ABI 4."""
_NETWORK_ABI = 4
_SCOPES = 2
"""Abstract unix sockets and signals to others, since ABI 6."""
_SCOPE_ABI = 6


class SandboxError(Exception):
    """The kernel has a confinement and did not apply it. The text is for the operator."""


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def confine(*, address_space_size_max: int, nice: int) -> list[str]:
    """Shut the sandbox around this process, which must have one thread, and name what is in force.

    `address_space_size_max` (bytes) bounds everything that is mapped: interpreter and libraries (about 0.2 GiB), every
    segment of the heritage, and the image being decoded. Who started this process may raise it later (prlimit), before
    it passes another segment. Raises SandboxError.
    """
    # Landlock and seccomp bind the calling thread; another one would stay outside.
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names only
    if threads != 1:
        raise SandboxError(f"the decoder has {threads} threads before its sandbox is shut; it must have one")
    used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    if used >= address_space_size_max:
        raise SandboxError(
            f"the decoder maps {used} bytes before its first image; {address_space_size_max} are allowed"
        )
    os.nice(nice)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise SandboxError(f"no_new_privs: {_last_error()}")
    in_force = ["no_new_privs"]
    # Landlock's ruleset is a descriptor, so it comes before the limit on them; the filter, which allows neither, comes
    # last.
    if _landlock():
        in_force.append("landlock")
    _limit(address_space_size_max)
    in_force.append("rlimit_as")
    if _seccomp():
        in_force.append("seccomp")
    return in_force


def _limit(address_space_size_max: int) -> None:
    """Resource limits, soft and hard alike; only that of memory may the gateway raise later. Raises SandboxError."""
    limits = (
        # For models that are attached later. From inside it cannot be raised: the filter refuses the calls.
        (resource.RLIMIT_AS, address_space_size_max, True),
        (resource.RLIMIT_CORE, 0, False),  # a core would hold clients' images
        (resource.RLIMIT_FSIZE, 0, False),  # writing to mapped memory is not writing a file
        (resource.RLIMIT_NOFILE, _lowest_free_fd() + 1, False),  # that of an attached model, until it is mapped
        (resource.RLIMIT_NPROC, 0, False),
    )
    for limit, value, raisable in limits:
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (allowed, hard if raisable else allowed))
        except (OSError, ValueError) as error:
            raise SandboxError(f"resource limit {limit}: {error}") from None


def _lowest_free_fd() -> int:
    """The number that the next descriptor gets: the limit on them is on their numbers."""
    fd = os.memfd_create("penstock-probe")
    os.close(fd)
    return fd


def _landlock() -> bool:
    """Deny all of the file system, TCP, and reaching other processes; False when the kernel has no Landlock."""
    abi = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    if abi < 0:
        # EOPNOTSUPP: built in and switched off. EPERM: a container runtime whose own filter does not know the call.
        if ctypes.get_errno() in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise SandboxError(f"landlock: {_last_error()}")
    known = max(bits for since, bits in _FILE_RIGHTS.items() if since <= abi)
    ruleset = _Ruleset((1 << known) - 1)
    size = 8
    if abi >= _NETWORK_ABI:
        ruleset.network = (1 << _NETWORK_RIGHTS) - 1
        size = 16
    if abi >= _SCOPE_ABI:
        ruleset.scoped = (1 << _SCOPES) - 1
        size = 24
    fd = _libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    if fd < 0:
        raise SandboxError(f"landlock: {_last_error()}")
    if _libc.syscall(_LANDLOCK_RESTRICT_SELF, fd, 0) != 0:
        raise SandboxError(f"landlock: {_last_error()}")
    os.close(fd)
    return True


def _seccomp() -> bool:
    """Install the filter of `bpf`; False when the kernel has no seccomp, or the machine is one we have no table for."""
    name = os.uname().machine
    machine = bpf.MACHINES.get(name)
    if machine is None or _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return False
    code = bpf.program(machine, os.getpid())
    program = _Program(len(code) // 8, code)
    if _libc.syscall(_SECCOMP_NUMBERS[name], _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)) != 0:
        raise SandboxError(f"seccomp: {_last_error()}")
    return True


def _last_error() -> str:
    """The C library's last error, in words."""
    return os.strerror(ctypes.get_errno())
