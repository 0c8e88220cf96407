from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from shm.segment import Segment


@pytest.fixture
def segment():
    made = Segment.create("test", 8192)
    yield made
    made.close()


@pytest.fixture
def sole():
    made = Segment.create("test", 8192, sole_writer=True)
    yield made
    made.close()


def test_it_is_zero_and_its_writer_can_write(sole):
    assert bytes(sole.map) == bytes(8192)
    sole.map[8190:] = b"ab"
    assert sole.map[8190:] == b"ab"


@pytest.mark.parametrize("size", [4096, 12288])
def test_its_size_is_sealed(segment, size):
    with pytest.raises(PermissionError) as failure:
        os.ftruncate(segment.fd, size)
    assert failure.value.errno == errno.EPERM


def test_a_second_writer_is_possible_where_it_is_meant_to_be(segment):
    other = Segment.attach(os.dup(segment.fd), segment.size, writable=True)
    other.map[0] = 7
    assert segment.map[0] == 7
    other.close()


def test_a_sole_writer_has_no_rival(sole):
    fd = os.dup(sole.fd)
    with pytest.raises(PermissionError):
        Segment.attach(fd, sole.size, writable=True)
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    os.close(fd)


def test_not_even_by_opening_the_memory_again(sole):
    again = os.open(f"/proc/self/fd/{sole.fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        mmap.mmap(again, sole.size)
    os.close(again)


def test_readers_see_what_the_sole_writer_writes(sole):
    reader = Segment.attach(sole.readonly_fd(), sole.size, writable=False)
    sole.map[5] = 9
    assert reader.map[5] == 9
    with pytest.raises(TypeError):
        reader.map[5] = 1
    reader.close()


def test_a_readonly_fd_cannot_be_mapped_for_writing(segment):
    fd = segment.readonly_fd()
    with pytest.raises(PermissionError):
        Segment.attach(fd, segment.size, writable=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    os.close(fd)


def test_closing_twice_is_closing_once(segment):
    segment.close()
    segment.close()
    assert segment.fd == -1


def test_a_view_outlives_the_segment():
    segment = Segment.create("test", 4096)
    view = memoryview(segment.map)
    segment.close()
    view[0] = 3
    assert view[0] == 3


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_failed_creation_leaves_no_fd_behind():
    before = open_fds()
    with pytest.raises((OSError, OverflowError)):
        Segment.create("test", 1 << 62)
    assert open_fds() == before
