"""Writes what a batch gave into its output slots: ranked classes, or tensors as they are. One kind per task.

Everything that can be refused is refused when the kind is made, at load; `write` has nothing left to decide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gateway.errors import InvalidModel
from gpuworker.ranking import rank
from gpuworker.wording import shown
from shm import layout, views

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gateway.models.spec import Contract
    from gpuworker.backend import Backend, Outputs
    from shm.layout import Field

_SCORE_DTYPES = frozenset({"float16", "float32", "float64"})


class Answer(Protocol):
    """How a task's outputs get into slots."""

    @property
    def fields(self) -> Sequence[Field]:
        """What a slot holds, in order."""

    def write(self, outputs: Outputs, slots: Sequence[int], top_k: int) -> Sequence[int]:
        """Write row i to `slots[i]`; return the rows that have no answer (their slots hold anything)."""


def make_answer(
    contract: Contract, backend: Backend, label_count: int, buffer: mmap.mmap | bytearray, slot_count: int
) -> Answer:
    """Choose the kind for the contract's task, on output slots in `buffer`. Raises InvalidModel."""
    kind = Classes if contract.output.task == "classification" else Tensors
    return kind(contract, backend, label_count, buffer, slot_count)


class Classes:
    """`index` uint32[k] and `probability` float32[k], best first, k = min(output.top_k_max, classes).

    A slot has `top_k` fresh entries (at most k); those after it are left over from whoever had the slot before.
    """

    def __init__(
        self, contract: Contract, backend: Backend, label_count: int, buffer: mmap.mmap | bytearray, slot_count: int
    ) -> None:
        class_count = _class_count(backend)
        _check_labels(contract.output.labels, label_count, class_count)
        self._source = backend.fields[0].name
        self._ranked = backend.ranked_class_count > 0
        self._activation = contract.output.activation
        self._class_count = class_count
        self.rank_count = min(contract.output.top_k_max, class_count)
        self.fields = (
            layout.Field("index", "uint32", (self.rank_count,)),
            layout.Field("probability", "float32", (self.rank_count,)),
        )
        arrays = _slots(self.fields, buffer, slot_count)
        self._index, self._probability = arrays["index"], arrays["probability"]
        # The first k columns, made once per k that is asked for: half the cost of indexing rows and columns at once.
        self._columns: dict[int, tuple[NDArray[np.uint32], NDArray[np.float32]]] = {}

    def write(self, outputs: Outputs, slots: Sequence[int], top_k: int) -> Sequence[int]:
        """Rank the whole batch and write its best `top_k` classes, or as many as there are."""
        k, count = min(top_k, self.rank_count), len(slots)
        columns = self._columns.get(k)
        if columns is None:
            columns = self._columns[k] = self._index[:, :k], self._probability[:, :k]
        rows = np.array(slots)
        if self._ranked:
            columns[0][rows] = outputs.arrays["index"][:count, :k]
            columns[1][rows] = outputs.arrays["probability"][:count, :k]
            return outputs.failed
        scores = outputs.arrays[self._source][:count].reshape(count, self._class_count)
        index, probability, valid = rank(scores.astype(np.float32, copy=False), self._activation, k)
        columns[0][rows] = index
        columns[1][rows] = probability
        if valid.all():
            return outputs.failed
        return [*outputs.failed, *np.flatnonzero(~valid).tolist()]


class Tensors:
    """Embedding and raw: every output tensor, as the engine gives it."""

    def __init__(
        self, contract: Contract, backend: Backend, label_count: int, buffer: mmap.mmap | bytearray, slot_count: int
    ) -> None:
        del label_count
        self.fields = tuple(backend.fields)
        needed = layout.offsets(self.fields)[1]
        if needed > contract.output.size_max:
            raise InvalidModel(
                f"the outputs of one image take {needed} bytes, model.toml says output.size_max ="
                f" {contract.output.size_max}; set output.size_max = {needed}"
            )
        self._arrays = _slots(self.fields, buffer, slot_count)

    def write(self, outputs: Outputs, slots: Sequence[int], top_k: int) -> Sequence[int]:
        """Copy the rows."""
        del top_k
        rows = np.array(slots)
        for name, target in self._arrays.items():
            target[rows] = outputs.arrays[name][: len(slots)]
        return outputs.failed


def _slots(fields: Sequence[Field], buffer: mmap.mmap | bytearray, slot_count: int) -> dict[str, Any]:
    """Views on the output slots. Raises InvalidModel when the gateway made them too small."""
    slot_size = len(buffer) // slot_count
    needed = layout.offsets(fields)[1]
    if needed > slot_size:
        raise InvalidModel(f"the outputs of one image take {needed} bytes and its slot has {slot_size}")
    return views.slot_arrays(buffer, fields, slot_size=slot_size, slot_count=slot_count)


def _class_count(backend: Backend) -> int:
    """How many classes the model knows. Raises InvalidModel when its output is no row of scores."""
    if backend.ranked_class_count:
        return backend.ranked_class_count
    field = backend.fields[0]
    said = f"the graph's output '{shown(field.name)}' is {field.dtype}{['N', *field.shape]}".replace("'N'", "N")
    # [N, classes], also with axes of length 1 behind, as fully convolutional networks have them.
    if not field.shape or math.prod(field.shape) != field.shape[0]:
        raise InvalidModel(
            f"task = 'classification' reads [N, classes], {said}; name the scores with output.tensor, or set"
            " output.task = 'raw'"
        )
    if field.dtype not in _SCORE_DTYPES:
        raise InvalidModel(
            f"task = 'classification' reads float scores, {said}; name the scores with output.tensor, or set"
            " output.task = 'raw'"
        )
    return field.shape[0]


def _check_labels(name: str, label_count: int, class_count: int) -> None:
    """Raise InvalidModel when there are class names, and another number of them than the model has classes."""
    if label_count in (0, class_count):
        return
    advice = "make it one class name a line, in index order"
    if abs(label_count - class_count) == 1:
        advice += "; a difference of one is often a background class, first in one of them"
    raise InvalidModel(f"{shown(name)} names {label_count} classes, the model has {class_count}; {advice}")
