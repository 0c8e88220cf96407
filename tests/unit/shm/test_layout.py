from __future__ import annotations

import pytest

from shm import layout
from shm.layout import Field


@pytest.mark.parametrize(("size", "aligned"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_align(size, aligned):
    assert layout.align(size, 64) == aligned


@pytest.mark.parametrize(("size", "stride"), [(0, 64), (1, 64), (150528, 150528), (150529, 150592)])
def test_stride_is_never_zero(size, stride):
    assert layout.stride(size) == stride


def test_a_field_s_size():
    assert Field("boxes", "float32", (100, 4)).size == 1600
    assert Field("score", "float64", ()).size == 8
    assert Field("none", "int64", (0, 3)).size == 0


def test_every_field_starts_on_a_cache_line():
    fields = [Field("index", "int64", (5,)), Field("probability", "float32", (5,)), Field("flag", "bool", ())]

    assert layout.offsets(fields) == ([0, 64, 128], 192)
    assert layout.offsets([]) == ([], 0)


def test_sizes_agree_with_numpy():
    numpy = pytest.importorskip("numpy")
    assert all(numpy.dtype(name).itemsize == size for name, size in layout.DTYPE_SIZES.items())
