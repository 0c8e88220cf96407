"""The seccomp filter, run on a machine of our own: so the table of the other architecture is tested as well."""

from __future__ import annotations

import struct

import pytest

from gateway.decoding import bpf

PID = 4321
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000


def run(program: bytes, number: int, audit: int, arguments: tuple[int, ...] = ()) -> int:
    """Interpret classic BPF as the kernel does; the filter's verdict."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    record = struct.pack("=iIQ6Q", number, audit, 0, *padded)
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    for _ in range(len(code)):
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", record, constant)
        elif operation == 0x15:
            at += if_true if accumulator == constant else if_false
        elif operation == 0x45:
            at += if_true if accumulator & constant else if_false
        else:
            assert operation == 0x06
            return constant
    raise AssertionError("the program does not end")


@pytest.fixture(params=sorted(bpf.MACHINES))
def machine(request):
    return bpf.MACHINES[request.param]


def verdict(machine, name, *arguments):
    return run(bpf.program(machine, PID), machine.numbers[name], machine.audit, arguments)


def test_names_have_verdicts(machine):
    for name in bpf.FATAL:
        assert verdict(machine, name) == KILL
    for name in bpf.ALLOWED:
        # poll is an x86 call; newer machines have ppoll alone.
        if name != "poll" or "poll" in machine.numbers:
            assert verdict(machine, name) == ALLOW
    named = {*bpf.FATAL, *bpf.ALLOWED, *bpf.NOT_EXECUTABLE, *bpf.ONLY_SELF}
    assert set(machine.numbers) <= named
    assert named - set(machine.numbers) <= {"poll"}


def test_everything_else_is_refused(machine):
    program = bpf.program(machine, PID)
    for number in range(700):
        if number not in machine.numbers.values():
            assert run(program, number, machine.audit) == REFUSE
    # x32 calls carry this bit.
    assert run(program, 0x40000000 | machine.numbers["write"], machine.audit) == REFUSE


def test_memory_to_run_is_refused(machine):
    for name in bpf.NOT_EXECUTABLE:
        assert verdict(machine, name, 0, 4096, 3) == ALLOW
        assert verdict(machine, name, 0, 4096, 7) == REFUSE
        assert verdict(machine, name, 0, 4096, 5) == REFUSE


def test_signals_reach_this_process_alone(machine):
    assert verdict(machine, "tgkill", PID, PID, 6) == ALLOW
    assert verdict(machine, "tgkill", 1, 1, 9) == REFUSE


def test_another_architecture_is_killed(machine):
    assert run(bpf.program(machine, PID), machine.numbers["write"], 0x40000003) == KILL


def test_the_tables_agree_on_no_number_twice(machine):
    assert len(set(machine.numbers.values())) == len(machine.numbers)
