"""Every segment of a gateway: one of request bodies, and per model one of input slots and one of output slots.

Bodies live as long as the gateway, slots as long as their model is served. Children get the fds by heritage: decoders
write input slots and only read bodies; workers write output slots and only read input slots. Nothing has a name in any
file system.
"""

from __future__ import annotations

import contextlib
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import paths
from shm import layout, views, wire
from shm.heritage import DeviceGrant, Grant, Heritage, Limits, ModelGrant
from shm.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion
    from gateway.models.spec import Contract
    from shm.wire import ProfilePoint


_NO_GRANT = DeviceGrant()


def device_grant(settings: Settings) -> DeviceGrant:
    """What the settings let a worker on a GPU use."""
    return DeviceGrant(
        memory_size_max=settings.device_memory_size_max,
        engine_dir=paths.engine_dir(settings),
        engines_size_max=settings.engines_size_max,
        foreign_engines=settings.foreign_engines,
    )


def slot_count(contract: Contract, *, worker_count: int, decoder_count: int, frame_count_max: int) -> int:
    """Slots that one model needs so that nobody waits for one in vain: a sum with one line per holder.

    A worker on a GPU has copied a batch long before it answers, and its slots are kept until then all the same: from
    them the images run again if the worker dies, and an image's output goes to the slot of the same index.
    """
    batch_size_max = contract.batching.sizes[-1]
    return (
        2 * batch_size_max * worker_count  # one running and one staged batch per worker
        + batch_size_max  # the batch that is being collected
        + 2 * frame_count_max * decoder_count  # frames in the decoders, and their answers on the way back
    )


def output_size(contract: Contract) -> int:
    """Bytes of one output slot."""
    if contract.output.task != "classification":
        return contract.output.size_max
    ranked = contract.output.top_k_max
    fields = [layout.Field("index", "uint32", (ranked,)), layout.Field("probability", "float32", (ranked,))]
    return layout.offsets(fields)[1]


class ModelMemory:
    """The slots of one model. `pixels`: uint8[slot_count, h, w, c]; `outputs`: by name, once a worker named them."""

    __slots__ = ("input", "input_readonly_fd", "model", "output", "output_slot_size", "outputs", "pixels", "slot_count")

    def __init__(self, model: ModelVersion, count: int) -> None:
        self.model = model
        self.slot_count = count
        shape = model.contract.input.shape
        size = layout.Field("pixels", "uint8", shape).size
        self.output_slot_size = output_size(model.contract)
        with contextlib.ExitStack() as undo:
            self.input = Segment.create(f"{model.name}-in", layout.stride(size) * count)
            undo.callback(self.input.close)
            self.output = Segment.create(f"{model.name}-out", layout.stride(self.output_slot_size) * count)
            undo.callback(self.output.close)
            self.input_readonly_fd = self.input.readonly_fd()
            undo.pop_all()
        self.pixels: NDArray[np.uint8] = views.pixel_rows(self.input.map, shape, count)
        self.outputs: dict[str, NDArray[Any]] = {}

    def map_outputs(self, fields: Sequence[layout.Field]) -> None:
        """Lay the worker's fields over the output slots. Raises ValueError when they do not fit."""
        unknown = [field.dtype for field in fields if field.dtype not in layout.DTYPE_SIZES]
        if unknown:
            raise ValueError(f"dtypes {unknown} never cross a segment")
        self.outputs = views.slot_arrays(
            self.output.map, fields, slot_size=self.output_slot_size, slot_count=self.slot_count
        )

    def close(self) -> None:
        """Give the slots back; views on them die with their last user."""
        self.input.close()
        self.output.close()
        os.close(self.input_readonly_fd)


class Memory:
    """All segments. `bodies_view` is the gateway's writable view of the bodies segment."""

    def __init__(self, *, bodies_size: int) -> None:
        self.bodies = Segment.create("bodies", bodies_size, sole_writer=True)
        self.bodies_view = memoryview(self.bodies.map)
        self._bodies_readonly_fd = self.bodies.readonly_fd()
        self.models: dict[int, ModelMemory] = {}
        """By line index."""

    def add(self, index: int, model: ModelVersion, count: int) -> ModelMemory:
        """Slots for one more model. Raises OSError when there is no memory, or no descriptor, for them."""
        memory = self.models[index] = ModelMemory(model, count)
        return memory

    def remove(self, index: int) -> None:
        """A model is served no more, and nobody holds a slot of it."""
        self.models.pop(index).close()

    def close(self) -> None:
        """Give everything back; the children are gone by now."""
        self.bodies_view.release()
        self.bodies.close()
        os.close(self._bodies_readonly_fd)
        for memory in self.models.values():
            memory.close()

    def decoder_heritage(self, parent: int, socket_fd: int, recorder: Segment, limits: Limits) -> Heritage:
        """What a decoder inherits. `limits.address_space_size_max` gets the size of all segments added."""
        mapped = self.bodies.size + sum(memory.input.size for memory in self.models.values())
        return Heritage(
            parent=parent,
            socket_fd=socket_fd,
            recorder=Grant(recorder.fd, recorder.size, writable=True),
            models=[self._grant(index, memory, for_worker=False) for index, memory in self.models.items()],
            bodies=Grant(self._bodies_readonly_fd, self.bodies.size, writable=False),
            limits=msgspec.structs.replace(limits, address_space_size_max=limits.address_space_size_max + mapped),
        )

    def attach(self, index: int) -> tuple[wire.Attach, int]:
        """What a decoder that is up is told of a model, and the descriptor that goes with it."""
        memory = self.models[index]
        contract = msgspec.structs.replace(memory.model.contract, description="")
        text = msgspec.json.encode(contract).decode()
        return wire.Attach(index, text, memory.slot_count, memory.input.size), memory.input.fd

    def worker_heritage(
        self,
        parent: int,
        socket_fd: int,
        recorder: Segment,
        *,
        models: Iterable[int],
        device: str,
        thread_count: int,
        device_grant: DeviceGrant = _NO_GRANT,
        profiles: Mapping[int, Sequence[ProfilePoint]] = MappingProxyType({}),
    ) -> Heritage:
        """What a worker inherits that is to serve `models`, by line index; so are `profiles`, measured there before."""
        return Heritage(
            parent=parent,
            socket_fd=socket_fd,
            recorder=Grant(recorder.fd, recorder.size, writable=True),
            models=[
                self._grant(index, self.models[index], for_worker=True, profile=profiles.get(index, ()))
                for index in sorted(models)
            ],
            device=device,
            thread_count=thread_count,
            device_grant=device_grant,
        )

    @staticmethod
    def _grant(
        index: int, memory: ModelMemory, *, for_worker: bool, profile: Sequence[ProfilePoint] = ()
    ) -> ModelGrant:
        model = memory.model
        input_fd = memory.input_readonly_fd if for_worker else memory.input.fd
        return ModelGrant(
            index=index,
            name=model.name,
            version=model.version,
            directory=str(model.directory) if for_worker else "",
            contract=msgspec.json.encode(model.contract).decode(),
            slot_count=memory.slot_count,
            label_count=len(model.labels),
            input=Grant(input_fd, memory.input.size, writable=not for_worker),
            output=Grant(memory.output.fd, memory.output.size, writable=True) if for_worker else None,
            profile=tuple(profile),
        )
