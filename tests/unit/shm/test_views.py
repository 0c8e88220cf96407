from __future__ import annotations

import numpy as np
import pytest

from shm import layout, views
from shm.layout import Field

FIELDS = [Field("index", "int64", (5,)), Field("boxes", "float32", (3, 4))]


def mapped(count: int = 4):
    _, size = layout.offsets(FIELDS)
    buffer = bytearray(layout.stride(size) * count)
    return buffer, views.slot_arrays(buffer, FIELDS, slot_size=size, slot_count=count)


def test_shapes_dtypes_and_strides():
    _, arrays = mapped()

    assert (arrays["index"].shape, arrays["index"].dtype, arrays["index"].strides) == ((4, 5), np.int64, (128, 8))
    assert (arrays["boxes"].shape, arrays["boxes"].strides) == ((4, 3, 4), (128, 16, 4))


def test_no_two_rows_overlap():
    buffer, arrays = mapped()
    for slot in range(4):
        for number, array in enumerate(arrays.values()):
            array[slot].view(np.uint8)[:] = 16 * slot + number + 1

    for slot in range(4):
        for number, array in enumerate(arrays.values()):
            assert set(array[slot].view(np.uint8).ravel().tolist()) == {16 * slot + number + 1}
    assert sum(1 for byte in buffer if byte) == 4 * (40 + 48)


def test_views_are_views():
    buffer, arrays = mapped()
    arrays["index"][1, 0] = 258
    assert buffer[128:130] == b"\x02\x01"


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="fields index, boxes need 128 bytes a slot, which has 64"):
        views.slot_arrays(bytearray(256), FIELDS, slot_size=64, slot_count=4)


def test_a_buffer_that_is_too_short_is_refused():
    views.slot_arrays(bytearray(3 * 128 + 64 + 48), FIELDS, slot_size=128, slot_count=4)
    with pytest.raises(ValueError, match="incompatible with shape"):
        views.slot_arrays(bytearray(3 * 128 + 64 + 47), FIELDS, slot_size=128, slot_count=4)


def test_pixel_rows():
    buffer = bytearray(layout.stride(12) * 3)
    rows = views.pixel_rows(buffer, (2, 2, 3), 3)

    assert (rows.shape, rows.dtype, rows.strides) == ((3, 2, 2, 3), np.uint8, (64, 6, 3, 1))
    rows[2, 1, 1, 2] = 9
    assert buffer[128 + 11] == 9
