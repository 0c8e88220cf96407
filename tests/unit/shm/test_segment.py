from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from shm import views
from shm.segment import Segment, map_for_views


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


def mapped(name):
    return Path("/proc/self/maps").read_text().count(f"penstock-{name} ")


def test_memory_mapped_for_views_goes_with_the_last_of_them():
    segment = Segment.create("views", 8192)
    fd = os.dup(segment.fd)
    rows = list(views.pixel_rows(map_for_views(fd, 8192), (4, 4, 3), 8))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert mapped("views") == 2
    rows[2][:] = 9
    assert segment.map[2 * 64] == 9
    last = rows[7][:1]
    del rows
    last[:] = 3
    assert segment.map[7 * 64] == 3
    assert mapped("views") == 2
    del last
    assert mapped("views") == 1
    segment.close()


def test_what_cannot_be_mapped_is_an_error_and_no_descriptor_stays(segment):
    fd = segment.readonly_fd()
    with pytest.raises(PermissionError):
        map_for_views(fd, segment.size)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
