"""Reads tensors from torch's legacy checkpoint format without torch and without trusting the file.

A checkpoint is a pickle, and a pickle is a program. This reader knows the four names that a table of weights needs and
refuses every other, so a file can at worst be unreadable. It never executes, downloads or writes anything.

The file is five pickles and then the storages they name::

    magic | protocol | system | {name: tensor(storage key, offset, shape, stride)} | [storage keys] | count, data | ...

Source: the format as `torch.serialization._legacy_save` writes it.
"""

from __future__ import annotations

import collections
import math
import pickle
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_KEYS_MAX = 4096
_RANK_MAX = 8
_FLOAT = np.dtype("<f4")
_LONG = np.dtype("<i8")


class UnsafeWeights(Exception):
    """The file is no table of weights: it asks for something that this reader does not do."""


class _Storage(NamedTuple):
    """What a persistent id names: `length` elements of `dtype`, stored under `key`."""

    key: str
    dtype: np.dtype[Any]
    length: int


class _Tensor(NamedTuple):
    """A strided window on a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_rest: object
) -> _Tensor:
    """Stand in for torch._utils._rebuild_tensor_v2; remembers its arguments."""
    return _Tensor(storage, offset, shape, stride)


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): _FLOAT,
    ("torch", "LongStorage"): _LONG,
}


class _Reader(pickle.Unpickler):
    """An unpickler that finds nothing but _GLOBALS."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up in the table. Raises UnsafeWeights."""
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise UnsafeWeights(f"the file asks for {module}.{name}, which no table of weights needs") from None

    def persistent_load(self, pid: Any) -> _Storage:
        """Turn ("storage", dtype, key, device, count, view) into a _Storage."""
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(count), None) if count >= 0:
                return _Storage(key, dtype, count)
        raise UnsafeWeights("the file names a storage in a form that this reader does not know")


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of a legacy checkpoint by name, as arrays of their own (float32 or int64, C-order).

    Raises:
        UnsafeWeights: the file is truncated, or is something else, or asks for more than weights.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _read(file, path.stat().st_size)
        except UnsafeWeights:
            raise
        # A broken pickle may raise nearly anything; all of it means the same here.
        except (pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, LookupError, TypeError, ValueError):
            raise UnsafeWeights("the file is not a legacy torch checkpoint, or is damaged") from None


def _read(file: IO[bytes], file_size: int) -> dict[str, NDArray[Any]]:
    """The body of `read_weights`; errors of pickle and NumPy pass through."""
    if _Reader(file).load() != _MAGIC or _Reader(file).load() != _PROTOCOL:
        raise UnsafeWeights("the file does not begin as a legacy torch checkpoint does")
    if _Reader(file).load().get("little_endian") is not True:
        raise UnsafeWeights("the file was written on a big-endian machine")
    tensors: dict[str, _Tensor] = {
        name: tensor for name, tensor in _Reader(file).load().items() if isinstance(tensor, _Tensor)
    }
    keys = _Reader(file).load()
    if not isinstance(keys, list) or len(keys) > _KEYS_MAX:
        raise UnsafeWeights(f"the file lists no storages, or more than {_KEYS_MAX}")
    known = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    data: dict[str, NDArray[Any]] = {}
    for key in keys:
        storage = known[key]
        count = int.from_bytes(file.read(8), "little")
        # Checked against the file's own size before anything of that size is allocated.
        if count != storage.length or count * storage.dtype.itemsize > file_size - file.tell():
            raise UnsafeWeights(f"storage {key} is not as long as the file says")
        data[key] = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
    return {name: _window(tensor, data[tensor.storage.key]) for name, tensor in tensors.items()}


def _window(tensor: _Tensor, data: NDArray[Any]) -> NDArray[Any]:
    """Copy a tensor out of its storage. Raises UnsafeWeights when it reaches outside."""
    shape, stride, offset = tensor.shape, tensor.stride, tensor.offset
    if len(shape) != len(stride) or len(shape) > _RANK_MAX or min((0, offset, *shape, *stride)) < 0:
        raise UnsafeWeights("a tensor has an impossible shape")
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    elements: int = math.prod(shape)
    # A step of 0 would let a small storage stand for a huge array, so elements are counted too.
    if elements > data.size or (elements and last >= data.size):
        raise UnsafeWeights("a tensor reaches outside its storage")
    steps = [step * data.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(data[offset:], shape, steps, writeable=False).copy()
