from __future__ import annotations

from shm import layout
from shm.recorder import Recorder
from shm.segment import Segment


def test_the_last_word_is_read_after_the_death():
    ours = Segment.create("recorder", layout.RECORDER_SIZE)
    child = Segment.attach(ours.readonly_fd(), layout.RECORDER_SIZE, writable=False)
    writer, reader = Recorder(ours), Recorder(child)
    assert reader.last() == 0

    writer.note(2**64 - 1)
    assert reader.last() == 2**64 - 1
    assert bytes(child.map[:8]) == b"\xff" * 8

    writer.note(0)
    assert reader.last() == 0
    child.close()
    ours.close()
