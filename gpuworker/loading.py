"""From a ModelGrant to a Model that was run at every size, or to a refusal in words. Reports progress as it goes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from gateway.errors import InvalidModel
from gateway.models.spec import Contract
from gpuworker import device as devices
from gpuworker import log
from gpuworker.answers import make_answer
from gpuworker.backend import DeviceLost, import_engine, open_backend
from gpuworker.model import GatewayBug, Model
from gpuworker.profile import measure, measure_overlapping, noise
from shm import failpoints, views
from shm.wire import Loaded, LoadFailed, Loading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gpuworker.answers import Answer
    from gpuworker.backend import Backend, Setup
    from shm.heritage import ModelGrant
    from shm.segment import Segment
    from shm.wire import ProfilePoint

T = TypeVar("T")

_DETAIL_SIZE_MAX = 4000
"""Characters; a refusal has to fit in a frame whatever names a file has in it."""


class _Slots(NamedTuple):
    """The segments of one model, attached."""

    input: Segment
    output: Segment
    slot_count: int


def load(grant: ModelGrant, setup: Setup, send: Callable[[Loading | Loaded | LoadFailed], None]) -> Model | None:
    """Load one model, warm and measure it, and send Loaded; or send LoadFailed and return None.

    Raises:
        GatewayBug: the grant itself is none that a worker can be given.
        DeviceLost: no other model can be loaded either.
    """
    begin = time.monotonic_ns()
    try:
        contract = msgspec.json.decode(grant.contract, type=Contract)
    except msgspec.DecodeError as error:
        raise GatewayBug(f"the contract of {grant.name} does not parse: {error}") from None
    if grant.output is None:
        raise GatewayBug(f"{grant.name} was granted no output slots")
    slots = _Slots(grant.input.attach(), grant.output.attach(), grant.slot_count)
    backend: Backend | None = None
    try:
        failpoints.hit("worker.before_load")
        import_engine(contract, setup.device)
        before_size = devices.memory_size()
        backend = open_backend(contract, Path(grant.directory), setup)
        model, loaded = _load(grant, contract, backend, slots, send)
    except (ConnectionError, DeviceLost):
        raise
    except InvalidModel as refusal:
        detail = str(refusal)
        if refusal.__cause__ is not None:
            log.event("model_refused", level="warning", error=refusal.__cause__, model=grant.name, detail=detail)
    except MemoryError:
        detail = "there is not enough memory for this model; make the largest of batching.sizes smaller"
    except Exception as error:  # noqa: BLE001 - one model's trouble, of whatever kind, leaves the others serving
        log.event("model_failed", level="error", error=error, model=grant.name)
        detail = "the worker failed to load this model, which is a defect of ours; its log has the traceback"
    else:
        loaded.load_ns = time.monotonic_ns() - begin
        loaded.memory_size = max(0, devices.memory_size() - before_size)
        send(loaded)
        return model
    if backend is not None:
        backend.close()
    slots.input.close()
    slots.output.close()
    send(LoadFailed(grant.index, detail[:_DETAIL_SIZE_MAX]))
    return None


def _load(
    grant: ModelGrant, contract: Contract, backend: Backend, slots: _Slots, send: Callable[[Loading], None]
) -> tuple[Model, Loaded]:
    """Open, warm and measure. Raises InvalidModel, and whatever an engine raises."""
    index, sizes = grant.index, contract.batching.sizes

    backend.load(lambda stage, share: send(Loading(index, stage, share)))
    failpoints.hit("worker.after_session")
    answer = make_answer(contract, backend, grant.label_count, slots.output.map, slots.slot_count)
    pixels = views.pixel_rows(slots.input.map, contract.input.shape, slots.slot_count)
    rows = [slot.reshape(-1) for slot in pixels]
    model = Model(grant.name, sizes, backend, answer, rows)

    def warm(size: int) -> int:
        backend.warmup(size)
        return size

    fitting = _in_turn(sizes, warm, lambda share: send(Loading(index, "warmup", share)), model, sizes[:1])
    known = grant.profile[: len(fitting)]
    if [point.size for point in known] == fitting:
        # It was here before: measuring takes several times as long as everything else, and people wait.
        return model, Loaded(index, list(answer.fields), list(known), backend.provider, 0)
    image = noise(rows[0].size)
    top_k = contract.output.top_k
    slot_size = len(slots.output.map) // slots.slot_count
    aside = make_answer(contract, backend, grant.label_count, bytearray(slot_size), 1)

    def time_one(size: int) -> ProfilePoint:
        return _measured(model, size, image, top_k, aside)

    # Where batches overlap, one that does not fit may leave the one before it in flight: then the model is refused.
    sure = fitting if model.depth > 1 else fitting[:1]
    profile = _in_turn(fitting, time_one, lambda share: send(Loading(index, "profile", share)), model, sure)
    return model, Loaded(index, list(answer.fields), profile, backend.provider, 0)


def _measured(model: Model, size: int, image: NDArray[np.uint8], top_k: int, aside: Answer) -> ProfilePoint:
    """What batches of one size take. `aside` takes the answers. Raises whatever an engine raises."""
    if model.depth == 1:
        return measure(size, lambda: model.rehearse(size, image, top_k, aside))
    return measure_overlapping(
        size,
        lambda: model.rehearse_start(size, image),
        lambda: model.rehearse_finish(size, top_k, aside),
    )


def _in_turn(
    sizes: Sequence[int], step: Callable[[int], T], report: Callable[[float], None], model: Model, sure: Sequence[int]
) -> list[T]:
    """What `step` gives for each size, the smallest first, as far as they fit in memory. The others are given up for as
    long as this worker lives, and named in the log.

    Raises: MemoryError when one of `sure` does not fit; whatever else `step` does.
    """
    found: list[T] = []
    for size in sizes:
        report(len(found) / len(sizes))
        try:
            found.append(step(size))
        except MemoryError as error:
            if size in sure:
                raise
            given_up = list(sizes[len(found) :])
            log.event("sizes_given_up", level="warning", error=error, model=model.name, sizes=given_up)
            break
    model.sizes = frozenset(sizes[: len(found)])
    return found
