"""NumPy views on slots: no copies, no ownership. A view is only as valid as its segment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shm import layout

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from shm.layout import Field


def slot_arrays(
    buffer: mmap.mmap | memoryview | bytearray, fields: Sequence[Field], *, slot_size: int, slot_count: int
) -> dict[str, NDArray[Any]]:
    """Map every field of all slots: name → dtype[slot_count, *shape], one row per slot.

    `slot_size` is the bytes of one slot before alignment. Raises ValueError when the fields do not fit in it.
    """
    starts, needed = layout.offsets(fields)
    stride = layout.stride(slot_size)
    if needed > stride:
        names = ", ".join(field.name for field in fields)
        message = f"fields {names} need {needed} bytes a slot, which has {stride}"
        raise ValueError(message)
    views: dict[str, NDArray[Any]] = {}
    for field, start in zip(fields, starts, strict=True):
        dtype = np.dtype(field.dtype)
        inner = np.empty(field.shape, dtype).strides
        views[field.name] = np.ndarray((slot_count, *field.shape), dtype, buffer, start, (stride, *inner))
    return views


def pixel_rows(
    buffer: mmap.mmap | memoryview | bytearray, shape: tuple[int, int, int], slot_count: int
) -> NDArray[np.uint8]:
    """Input slots as uint8[slot_count, h, w, c], C-order within a slot."""
    field = layout.Field("pixels", "uint8", shape)
    return slot_arrays(buffer, [field], slot_size=field.size, slot_count=slot_count)["pixels"]
