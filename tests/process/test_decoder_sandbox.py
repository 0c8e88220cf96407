"""What the sandbox of a decoder denies, tried in a real process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


CONFINED = """
import os, sys, socket, ctypes, mmap, errno, resource
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from gateway.decoding import sandbox
def fork(): return os.fork()
def thread():
    import _thread
    _thread.start_new_thread(print, ())
def code(): return mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
def passing():
    left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, (1).to_bytes(4, sys.byteorder))])
left, right = socket.socketpair()
pid = os.getppid()
def raising(): resource.setrlimit(resource.RLIMIT_AS, (2 << 30, resource.RLIM_INFINITY))
acts = {
    "raising": raising, "dup": lambda: os.dup(1), "pipe": os.pipe,
    "open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "create": lambda: os.open("/tmp/penstock-sandbox-test", os.O_CREAT | os.O_WRONLY),
    "list": lambda: os.listdir("/"),
    "stat": lambda: os.stat("/etc/passwd"),
    "socket": lambda: socket.socket(),
    "memfd": lambda: os.memfd_create("x"),
    "fork": fork, "thread": thread, "code": code, "passing": passing,
    "kill": lambda: os.kill(pid, 0),
    "readlink": lambda: os.readlink("/proc/self/exe"),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "ptrace": lambda: libc.ptrace(16, pid, 0, 0),
}
libc = ctypes.CDLL(None, use_errno=True)
in_force = sandbox.confine(address_space_size_max=1 << 30, nice=0)
left.send(b"frames"); assert right.recv(9) == b"frames"
memory = mmap.mmap(-1, 1 << 20); memory[0] = 1; memory.close()
sys.stdout.write(" ".join(in_force) + "\\n"); sys.stdout.flush()
try:
    acts[sys.argv[1]]()
except (OSError, RuntimeError, ValueError) as error:
    sys.stdout.write(type(error).__name__)
else:
    sys.stdout.write("done")
sys.stdout.flush()
os._exit(0)
"""


def confined(act):
    """Try one act inside the sandbox: exit code, what is in force, what came of it."""
    done = subprocess.run([sys.executable, "-c", CONFINED, act], capture_output=True, check=False, text=True)
    assert done.stderr == ""
    in_force, _, outcome = done.stdout.partition("\n")
    return done.returncode, in_force.split(), outcome


@pytest.mark.parametrize(
    "act",
    [
        "open",
        "create",
        "list",
        "stat",
        "socket",
        "memfd",
        "fork",
        "thread",
        "code",
        "passing",
        "kill",
        "readlink",
        "raising",
        "dup",
        "pipe",
    ],
)
def test_the_sandbox_denies(act):
    code, in_force, outcome = confined(act)
    if "seccomp" not in in_force:
        pytest.skip("this kernel or machine has no seccomp filter of ours")
    assert code == 0
    # Python says ValueError for a limit that may not be raised.
    assert outcome == ("ValueError" if act == "raising" else "RuntimeError" if act == "thread" else "PermissionError")


@pytest.mark.parametrize("act", ["exec", "ptrace"])
def test_the_sandbox_kills(act):
    code, in_force, outcome = confined(act)
    if "seccomp" not in in_force:
        pytest.skip("this kernel or machine has no seccomp filter of ours")
    assert code == -signal.SIGSYS
    assert outcome == ""


def test_landlock_alone_denies_files():
    script = (
        "from gateway.decoding import sandbox; import os, ctypes\n"
        "sandbox._libc.prctl(38, 1, 0, 0, 0)\n"
        "if not sandbox._landlock(): os._exit(3)\n"
        "try: open('/etc/passwd')\n"
        "except PermissionError: os._exit(0)\n"
        "os._exit(1)"
    )
    code = subprocess.run([sys.executable, "-c", script], check=False).returncode
    if code == 3:
        pytest.skip("this kernel has no Landlock")
    assert code == 0


def test_a_second_thread_forbids_the_sandbox():
    script = (
        "import threading, os\nfrom gateway.decoding import sandbox\n"
        "wait = threading.Event(); threading.Thread(target=wait.wait, daemon=True).start()\n"
        "try: sandbox.confine(address_space_size_max=1 << 30, nice=0)\n"
        "except sandbox.SandboxError as error: print(error)\n"
        "os._exit(0) if wait else None"
    )
    done = subprocess.run([sys.executable, "-u", "-c", script], capture_output=True, check=False, text=True)
    assert "2 threads" in done.stdout
