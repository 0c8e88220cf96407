"""The decoder as the gateway starts it: a real process, a real heritage, real death."""

from __future__ import annotations

import base64
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from gateway.decoding.__main__ import EXIT_BAD_FRAME, EXIT_NO_MEMORY, EXIT_SANDBOX, EXIT_USAGE, OOM_POINTS
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from shm import failpoints, layout, views, wire
from shm.heritage import Grant, Heritage, Limits, ModelGrant
from shm.recorder import Recorder
from shm.segment import Segment
from shm.wire import Attach, Decode, DecodedItem, DecodeItem, Detach, Encoding, ItemStatus
from tests.support import images
from tests.support.pipeline import contract

pytestmark = pytest.mark.slow

BODIES_SIZE = 4 << 20
SLOT_COUNT = 4
ADDRESS_SPACE = 1 << 30


class Child:
    """One decoder with one model (index 3) of SLOT_COUNT slots; the gateway's ends of everything it holds."""

    def __init__(
        self,
        *,
        cpu_ns_max=5_000_000_000,
        address_space=ADDRESS_SPACE,
        bodies_size=BODIES_SIZE,
        armed="",
        **options,
    ):
        self.contract = contract(**options)
        shape = self.contract.input.shape
        self.bodies = Segment.create("bodies", bodies_size, sole_writer=True)
        self.slots = Segment.create("input", layout.stride(int(np.prod(shape))) * SLOT_COUNT)
        self.rows = views.pixel_rows(self.slots.map, shape, SLOT_COUNT)
        self.recorder_segment = Segment.create("recorder", layout.RECORDER_SIZE)
        self.recorder = Recorder(self.recorder_segment)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(20)
        readonly = self.bodies.readonly_fd()
        heritage = Heritage(
            parent=os.getpid(),
            socket_fd=theirs.fileno(),
            recorder=Grant(self.recorder_segment.fd, layout.RECORDER_SIZE, writable=True),
            bodies=Grant(readonly, bodies_size, writable=False),
            limits=Limits(cpu_ns_max=cpu_ns_max, address_space_size_max=address_space, nice=1),
            models=[
                ModelGrant(
                    index=3,
                    name="m",
                    version=1,
                    directory="",
                    contract=msgspec.json.encode(self.contract).decode(),
                    slot_count=SLOT_COUNT,
                    input=Grant(self.slots.fd, self.slots.size, writable=True),
                    output=None,
                )
            ],
        )
        fd = heritage.bequeath()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.decoding", str(fd)],
            pass_fds=(fd, *heritage.fds()),
            stderr=subprocess.PIPE,
            env={**os.environ, failpoints.VARIABLE: armed},
        )
        os.close(fd)
        os.close(readonly)
        theirs.close()
        self._end = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        del self.rows
        for segment in (self.bodies, self.slots, self.recorder_segment):
            segment.close()

    def wait_ready(self):
        message = wire.read_from_decoder(self.control.recv(wire.FRAME_SIZE_MAX))
        assert isinstance(message, wire.DecoderReady)
        return message.sandbox

    def item(self, ticket, body, *, slot=0, encoding=Encoding.BINARY):
        """Put a body into the segment and name it."""
        start = self._end
        self.bodies.map[start : start + len(body)] = body
        self._end = layout.align(start + len(body), layout.BODY_ALIGN)
        return DecodeItem(ticket, 3, slot, start, len(body), encoding)

    def attach(self, segment, *, model=7):
        """Pass one more model of the same contract."""
        text = msgspec.json.encode(self.contract).decode()
        socket.send_fds(self.control, [wire.encode(Attach(model, text, SLOT_COUNT, segment.size))], [segment.fd])

    def mapped(self, name):
        """How often a segment is mapped there, after everything sent so far was read."""
        return Path(f"/proc/{self.process.pid}/maps").read_text().count(f"penstock-{name} ")

    def send(self, *items):
        self.control.send(wire.encode(Decode(list(items))))

    def receive(self, count) -> dict[int, DecodedItem]:
        """Outcomes of `count` images, by ticket."""
        found = {}
        while len(found) < count:
            message = wire.read_from_decoder(self.control.recv(wire.FRAME_SIZE_MAX))
            assert isinstance(message, wire.Decoded)
            found.update((item.ticket, item) for item in message.items)
        return found

    def expect(self, body):
        """What decoding here gives."""
        recipe = Recipe(self.contract)
        out = np.zeros(recipe.shape, np.uint8)
        decode_into(body, out, recipe, Scratch())
        return out

    def wait_exit(self):
        """Its exit code and what it said."""
        code = self.process.wait(20)
        return code, self.process.stderr.read().decode()


def test_every_variant_is_decoded_in_the_sandbox_as_outside_of_it():
    with Child() as child:
        sandbox = child.wait_ready()
        assert {"no_new_privs", "rlimit_as"} <= set(sandbox)
        for ticket, (name, body) in enumerate(images.variants().items(), 1):
            child.send(child.item(ticket, body, slot=ticket % SLOT_COUNT))
            outcome = child.receive(1)[ticket]
            assert (outcome.status, outcome.width, outcome.height) == (ItemStatus.OK, 61, 47), name
            assert np.array_equal(child.rows[ticket % SLOT_COUNT], child.expect(body)), name
            assert outcome.decode_ns > 0
        assert child.recorder.last() == 0
        child.control.close()
        assert child.wait_exit() == (0, "")


def test_neighbours_in_one_frame_have_a_status_each():
    good = images.variants()["jpeg"]
    with Child(pixels_max=10_000) as child:
        child.wait_ready()
        child.send(
            child.item(1, good, slot=0),
            child.item(2, good[:300], slot=1),
            child.item(3, b"GIF is not spelled so", slot=1),
            child.item(4, images.png_bomb(), slot=1),
            child.item(5, b"*not base64*", slot=1, encoding=Encoding.BASE64),
            child.item(6, base64.b64encode(good), slot=2, encoding=Encoding.BASE64),
            child.item(7, base64.b64encode(good).rstrip(b"="), slot=3, encoding=Encoding.BASE64),
        )
        found = child.receive(7)
        statuses = [found[ticket].status for ticket in range(1, 8)]
        assert statuses == [
            ItemStatus.OK,
            ItemStatus.UNDECODABLE,
            ItemStatus.UNSUPPORTED_FORMAT,
            ItemStatus.PIXELS_OVER_LIMIT,
            ItemStatus.BAD_BASE64,
            ItemStatus.OK,
            ItemStatus.OK,
        ]
        assert all(bool(found[ticket].detail) == (found[ticket].status is not ItemStatus.OK) for ticket in found)
        for slot in (0, 2, 3):
            assert np.array_equal(child.rows[slot], child.expect(good))


def test_neighbours_do_not_wait_for_a_large_photo():
    small = images.variants()["jpeg"]
    large = images.encode(images.photo("coffee", 1200), "JPEG", quality=95)
    with Child() as child:
        child.wait_ready()
        child.send(child.item(1, small), child.item(2, large, slot=1), child.item(3, small, slot=2))
        first = wire.read_from_decoder(child.control.recv(wire.FRAME_SIZE_MAX))
        assert [item.ticket for item in first.items] == [1]
        assert set(child.receive(2)) == {2, 3}


def test_an_image_over_its_cpu_budget_kills_the_decoder_and_the_recorder_names_it():
    good = images.variants()["jpeg"]
    bomb = images.scan_bomb(4400, 90)
    assert len(bomb) < 100_000
    with Child(cpu_ns_max=30_000_000) as child:
        child.wait_ready()
        for ticket in range(1, 60):  # a budget is per image: many cheap ones never add up to it
            child.send(child.item(ticket, good))
            assert child.receive(1)[ticket].status is ItemStatus.OK
        child.send(child.item(77, bomb), child.item(78, good))
        code, _ = child.wait_exit()
        assert code == -signal.SIGPROF
        assert child.recorder.last() == 77
        assert child.control.recv(wire.FRAME_SIZE_MAX) == b""


def test_memory_over_the_limit_is_a_status_and_the_decoder_lives():
    body = images.encode(Image.new("RGB", (9000, 5000)), "PNG", compress_level=1)
    good = images.variants()["png"]
    with Child(address_space=ADDRESS_SPACE // 4) as child:
        child.wait_ready()
        child.send(child.item(1, body), child.item(2, good, slot=1))
        found = child.receive(2)
        assert found[1].status is ItemStatus.UNDECODABLE
        assert "memory" in found[1].detail
        assert found[2].status is ItemStatus.OK


@pytest.fixture
def more():
    """Slots of one more model."""
    segment = Segment.create("more", layout.stride(64 * 64 * 3) * SLOT_COUNT)
    yield segment
    segment.close()


def test_models_come_and_go_and_their_memory_with_them(more):
    body = images.variants()["jpeg"]
    with Child() as child:
        child.wait_ready()
        limit = "Max open files"
        limits = Path(f"/proc/{child.process.pid}/limits").read_text().splitlines()
        fds = {int(path.name) for path in Path(f"/proc/{child.process.pid}/fd").iterdir()}
        allowed = int(next(line for line in limits if line.startswith(limit)).removeprefix(limit).split()[0])
        assert len(set(range(allowed)) - fds) == 1, "room for one more"

        for ticket in range(1, 6):
            child.attach(more)
            item = child.item(ticket, body, slot=2)
            item.model = 7
            child.send(item)
            assert child.receive(1)[ticket].status is ItemStatus.OK
            assert child.mapped("more") == 1
            rows = views.pixel_rows(more.map, child.contract.input.shape, SLOT_COUNT)
            assert np.array_equal(rows[2], child.expect(body))
            del rows
            child.control.send(wire.encode(Detach(7)))
            child.send(child.item(100 + ticket, body))
            child.receive(1)
            assert child.mapped("more") == 0
        assert {int(path.name) for path in Path(f"/proc/{child.process.pid}/fd").iterdir()} == fds

        # Also a model that it was born with.
        assert child.mapped("input") == 1
        child.attach(more)
        child.control.send(wire.encode(Detach(3)))
        item = child.item(200, body)
        item.model = 7
        child.send(item)
        assert child.receive(1)[200].status is ItemStatus.OK
        assert (child.mapped("input"), child.mapped("more")) == (0, 1)


def test_address_space_for_a_model_is_given_from_outside(more):
    large = Segment.create("large", ADDRESS_SPACE)
    body = images.variants()["jpeg"]
    with Child() as child:
        child.wait_ready()
        soft, hard = resource.prlimit(child.process.pid, resource.RLIMIT_AS)
        assert soft == ADDRESS_SPACE
        resource.prlimit(child.process.pid, resource.RLIMIT_AS, (soft + large.size, hard))
        child.attach(large)
        item = child.item(1, body)
        item.model = 7
        child.send(item)
        assert child.receive(1)[1].status is ItemStatus.OK
    with Child() as child:
        child.wait_ready()
        child.attach(large)
        code, said = child.wait_exit()
        assert code == EXIT_NO_MEMORY
        assert "slots for model 7: Cannot allocate memory" in said
    large.close()


def test_a_second_descriptor_does_not_fit(more):
    with Child() as child:
        child.wait_ready()
        text = msgspec.json.encode(child.contract).decode()
        frame = wire.encode(Attach(7, text, SLOT_COUNT, more.size))
        socket.send_fds(child.control, [frame], [more.fd, more.fd])
        code, said = child.wait_exit()
        assert code == EXIT_BAD_FRAME
        assert "descriptors with Attach that do not belong there" in said


def test_it_goes_before_the_gateway_when_memory_runs_out():
    own = int(Path("/proc/self/oom_score_adj").read_text())
    with Child() as child:
        child.wait_ready()
        assert int(Path(f"/proc/{child.process.pid}/oom_score_adj").read_text()) == min(own + OOM_POINTS, 1000)


@pytest.mark.parametrize(
    ("armed", "code", "blamed"),
    [
        ("decoder.after_inherit=exit:9", 9, 0),
        ("decoder.before_ready=crash", -signal.SIGSEGV, 0),
        ("decoder.before_decode=crash", -signal.SIGSEGV, 5),
        ("decoder.before_decode=spin", -signal.SIGPROF, 5),
        ("decoder.after_decode=kill", -signal.SIGKILL, 5),
        ("decoder.before_reply=kill", -signal.SIGKILL, 0),
    ],
)
def test_failpoints_are_reached_and_act_in_the_sandbox(armed, code, blamed):
    with Child(armed=armed, cpu_ns_max=300_000_000) as child:
        item = child.item(5, images.variants()["jpeg"])
        try:
            child.send(item)
        except BrokenPipeError:
            assert blamed == 0
        assert child.process.wait(20) == code
        assert child.recorder.last() == blamed


def test_failpoints_that_leave_it_alive():
    armed = "decoder.before_decode=delay:1@1,decoder.before_decode=error@2,decoder.after_decode=error:ENOMEM@2"
    with Child(armed=armed) as child:
        child.wait_ready()
        statuses = []
        for ticket in range(1, 5):
            child.send(child.item(ticket, images.variants()["jpeg"]))
            statuses.append(child.receive(1)[ticket].status)
        assert statuses == [ItemStatus.OK, ItemStatus.FAILED, ItemStatus.FAILED, ItemStatus.OK]


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1 no message pack",
        wire.encode(wire.DecoderReady([])),
        wire.encode(Attach(7, "{}", 1, 4096)),
        wire.encode(Detach(9)),
        wire.encode(Decode([DecodeItem(1, 9, 0, 0, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, SLOT_COUNT, 0, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, -1, 0, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, 0, BODIES_SIZE - 9, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, 0, -1, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, 0, 5, -1, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(0, 3, 0, 0, 10, Encoding.BINARY)])),
    ],
    ids=["bytes", "message", "attach", "detach", "model", "slot", "slot_negative", "end", "offset", "size", "ticket"],
)
def test_a_frame_that_no_gateway_sends_ends_the_process(frame):
    with Child() as child:
        child.wait_ready()
        child.control.send(frame)
        code, said = child.wait_exit()
        assert code == EXIT_BAD_FRAME
        assert said.count("\n") == 1
        assert "gateway sent a frame" in said


def test_an_address_space_too_small_to_start_in_is_said():
    with Child(address_space=64 << 20) as child:
        code, said = child.wait_exit()
        assert code == EXIT_SANDBOX
        assert "are allowed" in said


def test_started_by_hand_it_says_so():
    for arguments in ([], ["x"], ["1", "2"]):
        done = subprocess.run([sys.executable, "-m", "gateway.decoding", *arguments], capture_output=True, check=False)
        assert done.returncode == EXIT_USAGE
        assert b"started by the gateway" in done.stderr


def test_it_dies_with_the_process_that_started_it():
    script = textwrap.dedent(
        """
        import os, sys
        sys.path.insert(0, os.getcwd())
        from tests.process.test_decoder_process import Child
        child = Child()
        child.wait_ready()
        print(child.process.pid, flush=True)
        sys.stdin.read()
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    assert _wait_death(pidfd)
    os.close(pidfd)


def _wait_death(pidfd):

    return bool(select.select([pidfd], [], [], 10)[0])


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
