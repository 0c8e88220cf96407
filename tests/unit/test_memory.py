"""Every child gets the segments that it needs, for reading only where it only reads; and all of it is given back."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway.memory import Memory, output_size, slot_count
from gateway.models.repository import ModelVersion
from gateway.models.spec import Contract, parse_contract
from shm import layout
from shm.heritage import Grant, Limits
from shm.segment import Segment
from shm.wire import ProfilePoint

BASE = "[input]\nwidth = 5\nheight = 3\n[output]\n"
CLASSES = parse_contract(BASE + 'task = "classification"\ntop_k_max = 10\n[batching]\nsizes = [1, 2]\n')
RAW = parse_contract(BASE + 'task = "raw"\nsize_max = 1000\n')
LIMITS = Limits(cpu_ns_max=1, address_space_size_max=1 << 30, nice=0)


def model(contract: Contract, name: str = "m") -> ModelVersion:
    return ModelVersion(name, 1, Path("/nowhere") / name, contract, ())


@pytest.fixture
def memory():
    made = Memory(bodies_size=1 << 20)
    made.add(0, model(CLASSES), 4)
    made.add(1, model(RAW, "raw"), 2)
    yield made
    made.close()


@pytest.fixture
def recorder():
    made = Segment.create("recorder", layout.RECORDER_SIZE)
    yield made
    made.close()


def test_slots_are_a_sum_with_a_line_per_holder():
    assert slot_count(CLASSES, worker_count=1, decoder_count=1, frame_count_max=8) == 2 * 2 + 2 + 16
    more = slot_count(CLASSES, worker_count=3, decoder_count=4, frame_count_max=8)
    assert more == 2 * 2 * 3 + 2 + 2 * 8 * 4


def test_an_output_slot_holds_what_a_worker_may_write():
    assert output_size(CLASSES) >= 10 * (4 + 4)
    assert output_size(RAW) == 1000


def assert_writable(grant: Grant, *, writable: bool) -> None:
    """What the list says is what the fd allows, whatever the child tries."""
    assert grant.writable is writable
    assert os.fstat(grant.fd).st_size == grant.size
    refused = contextlib.nullcontext() if writable else pytest.raises(PermissionError)
    with refused:
        mmap.mmap(grant.fd, grant.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    mmap.mmap(grant.fd, grant.size, mmap.MAP_SHARED, mmap.PROT_READ).close()


def test_a_decoder_writes_pixels_and_only_reads_bodies(memory, recorder):
    heritage = memory.decoder_heritage(os.getpid(), 99, recorder, LIMITS)
    assert heritage.bodies is not None
    assert_writable(heritage.bodies, writable=False)
    assert_writable(heritage.recorder, writable=True)
    for grant in heritage.models:
        assert_writable(grant.input, writable=True)
        assert (grant.output, grant.directory) == (None, "")


def test_a_worker_writes_outputs_only_reads_pixels_and_never_sees_a_body(memory, recorder):
    heritage = memory.worker_heritage(os.getpid(), 99, recorder, models=[1, 0], device="cuda:1", thread_count=3)
    assert (heritage.bodies, heritage.limits) == (None, None)
    assert (heritage.device, heritage.thread_count) == ("cuda:1", 3)
    assert_writable(heritage.recorder, writable=True)
    for grant in heritage.models:
        assert_writable(grant.input, writable=False)
        assert grant.output is not None
        assert_writable(grant.output, writable=True)
        assert grant.directory == f"/nowhere/{grant.name}"


def test_a_worker_is_told_what_was_measured_in_its_place_before(memory, recorder):
    known = [ProfilePoint(1, 5, 6)]
    heritage = memory.worker_heritage(
        os.getpid(), 99, recorder, models=[0, 1], device="cpu", thread_count=1, profiles={1: known}
    )
    assert [list(grant.profile) for grant in heritage.models] == [[], known]


def test_nobody_else_can_be_given_the_bodies_for_writing(memory):
    """The seal stands on the segment itself: a decoder cannot reopen its fd for more than it was given."""
    path = f"/proc/self/fd/{memory.bodies.fd}"
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, memory.bodies.size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        memory.bodies_view[0] = 7
        assert mmap.mmap(fd, memory.bodies.size, mmap.MAP_SHARED, mmap.PROT_READ)[0] == 7
    finally:
        os.close(fd)


def test_the_address_space_limit_is_beside_what_is_mapped(memory, recorder):
    heritage = memory.decoder_heritage(os.getpid(), 99, recorder, LIMITS)
    assert heritage.limits is not None
    mapped = memory.bodies.size + sum(slots.input.size for slots in memory.models.values())
    assert heritage.limits.address_space_size_max == LIMITS.address_space_size_max + mapped


def test_every_fd_of_the_list_is_passed_on_and_the_contract_reads_back(memory, recorder):
    for heritage in (
        memory.decoder_heritage(os.getpid(), 99, recorder, LIMITS),
        memory.worker_heritage(os.getpid(), 99, recorder, models=[0, 1], device="cpu", thread_count=1),
    ):
        granted = [heritage.recorder, heritage.bodies] + [g for m in heritage.models for g in (m.input, m.output)]
        assert set(heritage.fds()) == {99} | {grant.fd for grant in granted if grant is not None}
        assert [m.index for m in heritage.models] == [0, 1]
        assert msgspec.json.decode(heritage.models[0].contract, type=Contract) == CLASSES


def test_what_a_worker_writes_by_its_fields_is_what_the_gateway_reads(memory, recorder):
    slots = memory.models[0]
    fields = [layout.Field("index", "uint32", (10,)), layout.Field("probability", "float32", (10,))]
    slots.map_outputs(fields)
    slots.outputs["index"][3] = np.arange(10)
    slots.outputs["probability"][3] = 0.5
    slots.map_outputs(fields)
    assert slots.outputs["index"][3].tolist() == list(range(10))
    assert slots.outputs["probability"].shape == (4, 10)


@pytest.mark.parametrize(
    "field",
    [
        layout.Field("x", "float32", (10_000,)),
        layout.Field("x", "float32", (1 << 40, 1 << 40)),
        layout.Field("x", "object", (1,)),
        layout.Field("x", "float32", (-1,)),
    ],
)
def test_fields_that_do_not_fit_are_a_broken_workers(memory, field):
    with pytest.raises(ValueError, match=r"slot|dtype|negative"):
        memory.models[1].map_outputs([field])
    assert memory.models[1].outputs == {}


def test_pixels_are_rows_of_the_contracts_shape(memory):
    assert memory.models[0].pixels.shape == (4, 3, 5, 3)
    assert memory.models[0].pixels.dtype == np.uint8


def fd_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_closing_gives_every_fd_back():
    gc.collect()
    before = fd_count()
    made = Memory(bodies_size=1 << 20)
    made.add(0, model(CLASSES), 4)
    made.add(1, model(RAW, "raw"), 2)
    assert fd_count() > before
    made.close()
    assert fd_count() == before
