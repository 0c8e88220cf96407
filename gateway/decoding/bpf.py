"""The seccomp filter as a program for the kernel's classic BPF machine. Pure: names in, bytes out.

Reading order of the program: architecture, then the system calls that end the process, then those that are allowed
(some only with certain arguments); all others fail with EPERM, which Python survives as PermissionError.
"""

from __future__ import annotations

import errno
import mmap
import struct
from typing import NamedTuple

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_ANY_BIT = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_REFUSE = 0x00050000 | errno.EPERM

# Offsets in struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. Source: linux/seccomp.h.
_NUMBER_AT = 0
_ARCHITECTURE_AT = 4
_ARGUMENTS_AT = 16


class Machine(NamedTuple):
    """One architecture: its AUDIT_ARCH word, and the numbers of the system calls that are named here."""

    audit: int
    numbers: dict[str, int]


_GENERIC = {  # include/uapi/asm-generic/unistd.h: the numbers of every newer architecture
    "lseek": 62,
    "read": 63,
    "write": 64,
    "ppoll": 73,
    "fstat": 80,
    "close": 57,
    "exit": 93,
    "exit_group": 94,
    "futex": 98,
    "getitimer": 102,
    "setitimer": 103,
    "clock_gettime": 113,
    "clock_getres": 114,
    "ptrace": 117,
    "sched_yield": 124,
    "restart_syscall": 128,
    "tgkill": 131,
    "sigaltstack": 132,
    "rt_sigaction": 134,
    "rt_sigprocmask": 135,
    "rt_sigreturn": 139,
    "getrusage": 165,
    "gettimeofday": 169,
    "getpid": 172,
    "gettid": 178,
    "sysinfo": 179,
    "sendto": 206,
    "recvfrom": 207,
    "recvmsg": 212,
    "brk": 214,
    "munmap": 215,
    "mremap": 216,
    "execve": 221,
    "mmap": 222,
    "mprotect": 226,
    "madvise": 233,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "getrandom": 278,
    "execveat": 281,
}
_X86_64 = {  # arch/x86/entry/syscalls/syscall_64.tbl
    "read": 0,
    "write": 1,
    "close": 3,
    "fstat": 5,
    "poll": 7,
    "lseek": 8,
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigprocmask": 14,
    "rt_sigreturn": 15,
    "sched_yield": 24,
    "mremap": 25,
    "madvise": 28,
    "getitimer": 36,
    "setitimer": 38,
    "getpid": 39,
    "sendto": 44,
    "recvfrom": 45,
    "recvmsg": 47,
    "execve": 59,
    "exit": 60,
    "gettimeofday": 96,
    "getrusage": 98,
    "sysinfo": 99,
    "ptrace": 101,
    "sigaltstack": 131,
    "gettid": 186,
    "futex": 202,
    "restart_syscall": 219,
    "clock_gettime": 228,
    "clock_getres": 229,
    "exit_group": 231,
    "tgkill": 234,
    "ppoll": 271,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "getrandom": 318,
    "execveat": 322,
}
MACHINES = {"x86_64": Machine(0xC000003E, _X86_64), "aarch64": Machine(0xC00000B7, _GENERIC)}
"""By `os.uname().machine`."""

FATAL = ("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev")
"""No decoder ever asks for these, so whoever does is not ours any more."""

NOT_EXECUTABLE = ("mmap", "mprotect")
"""Allowed, but not for memory that can be run."""

ONLY_SELF = ("tgkill",)
"""Allowed on this process alone: it is how abort() dies."""

ALLOWED = (
    # One frame in, one frame out, a last word on stderr. recvmsg takes the descriptor of an attached model: there is no
    # socket here but the gateway's, and none can be made, so nobody else can pass one. Not sendmsg, which passes on.
    *("recvfrom", "recvmsg", "sendto", "read", "write", "poll", "ppoll", "close", "fstat", "lseek"),
    *("brk", "munmap", "mremap", "madvise", "futex", "sched_yield", "getrandom"),
    *("clock_gettime", "clock_getres", "gettimeofday", "setitimer", "getitimer", "getrusage"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    # sysinfo: qsort of older C libraries asks for the size of memory before it sorts.
    *("getpid", "gettid", "sysinfo", "exit", "exit_group"),
)


def program(machine: Machine, pid: int) -> bytes:
    """The filter for process `pid`, as an array of struct sock_filter (u16 code, u8 jt, u8 jf, u32 k)."""
    numbers = machine.numbers
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    # Numbers of the x32 ABI share this architecture word; being none of ours they fall through to the refusal.
    for name in FATAL:
        code += [(_JUMP_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _KILL_PROCESS)]
    for name in NOT_EXECUTABLE:
        code += [
            (_JUMP_EQUAL, 0, 4, numbers[name]),
            (_LOAD, 0, 0, _ARGUMENTS_AT + 2 * 8),
            (_JUMP_ANY_BIT, 0, 1, mmap.PROT_EXEC),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    for name in ONLY_SELF:
        code += [
            (_JUMP_EQUAL, 0, 4, numbers[name]),
            (_LOAD, 0, 0, _ARGUMENTS_AT),
            (_JUMP_EQUAL, 1, 0, pid),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    for name in ALLOWED:
        if name in numbers:
            code += [(_JUMP_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
