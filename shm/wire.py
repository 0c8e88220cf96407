"""Control messages between the gateway and its children, as msgpack arrays. Sans-IO: bytes in, structs out.

One frame is one SOCK_SEQPACKET datagram, so there is no framing and no partial read. A frame that does not decode to
one of the types below raises WireError: its sender is broken and is to be killed, never believed.

=========  =====================  ====================================
direction  message                meaning
=========  =====================  ====================================
→ decoder  Decode                 decode these images into these slots
→ decoder  Attach                 one more model; its frame carries one
                                  descriptor, of the model's input segment
→ decoder  Detach                 forget a model and unmap its slots
← decoder  DecoderReady           sandboxed and waiting for work
← decoder  Decoded                a status per image
→ worker   Run                    run these slots as one batch
← worker   Loading, Loaded,       progress, success or refusal of one
           LoadFailed             model at start
← worker   WorkerReady            every model was loaded or refused
← worker   Ran                    a status per slot of one batch
=========  =====================  ====================================
"""

from __future__ import annotations

import enum

import msgspec

from shm.layout import Field

FRAME_SIZE_MAX = 64 * 1024
"""Bytes. Larger datagrams are never sent; a larger one received is truncated by the kernel and refused here."""


class Encoding(enum.IntEnum):
    """How the bytes of an image stand in the bodies segment."""

    BINARY = 0
    BASE64 = 1


class ItemStatus(enum.IntEnum):
    """The outcome of one image in one stage. Never an HTTP number."""

    OK = 0
    UNDECODABLE = 1
    UNSUPPORTED_FORMAT = 2
    PIXELS_OVER_LIMIT = 3
    BAD_BASE64 = 4
    FAILED = 5
    LATE = 6
    INTERRUPTED = 7  # the run was ended on request, before it was done
    NO_MEMORY = 8  # the batch did not fit in memory; a smaller one may
    DEVICE_LOST = 9  # the device will fail all that comes; the worker ends itself behind this frame


class DecodeItem(msgspec.Struct, array_like=True, gc=False):
    """One image: `size` encoded bytes at `offset` of the bodies segment, to be decoded into `slot` of `model`."""

    ticket: int
    model: int
    slot: int
    offset: int
    size: int
    encoding: Encoding


class Decode(msgspec.Struct, array_like=True, tag=1):
    """Images for one decoder, in the order in which it is to decode them."""

    items: list[DecodeItem]


class Attach(msgspec.Struct, array_like=True, tag=10):
    """One more model for a decoder, as `shm.heritage.ModelGrant` has it: from now on it may be named in Decode.

    `size` is the bytes of its input segment, whose descriptor comes with this frame as SCM_RIGHTS. `contract` is JSON
    and has to leave the frame under FRAME_SIZE_MAX; a decoder has no use for its description.
    """

    model: int
    contract: str
    slot_count: int
    size: int


class Detach(msgspec.Struct, array_like=True, tag=11):
    """A model that no Decode will name again: its slots are to be unmapped."""

    model: int


class DecodedItem(msgspec.Struct, array_like=True, gc=False):
    """Outcome of one image. `decode_ns` is wall time; `width` and `height` are the source's, 0 when unknown.

    `detail` is a sentence of our own for the client, never the text of a library.
    """

    ticket: int
    status: ItemStatus
    decode_ns: int
    width: int = 0
    height: int = 0
    detail: str = ""


class DecoderReady(msgspec.Struct, array_like=True, tag=2):
    """`sandbox` names the confinements that are in force, e.g. ["no_new_privs", "landlock", "seccomp"]."""

    sandbox: list[str]


class Decoded(msgspec.Struct, array_like=True, tag=3):
    """Outcomes, in any order."""

    items: list[DecodedItem]


class Run(msgspec.Struct, array_like=True, tag=4):
    """One batch: gather `slots` of `model`, pad to `size` rows, run, write each output to its own slot.

    `top_k`: how many classes to rank (classification only). `latest_start_ns` (monotonic): a batch that would start
    later is answered LATE for all its slots instead of being run.
    """

    batch: int
    model: int
    size: int
    slots: list[int]
    top_k: int
    latest_start_ns: int


class Loading(msgspec.Struct, array_like=True, tag=5):
    """A model's progress at start: `stage` is one word ("session", "warmup", "profile"), `share` is 0 to 1."""

    model: int
    stage: str
    share: float


class ProfilePoint(msgspec.Struct, array_like=True, frozen=True):
    """Measured at load: a batch of `size` takes `p50_ns` (median) and `p99_ns` (99th percentile).

    Where batches overlap that is behind another one, from its answer; with nothing before it, `lead_ns` more.
    """

    size: int
    p50_ns: int
    p99_ns: int
    lead_ns: int = 0


class Loaded(msgspec.Struct, array_like=True, tag=6):
    """A model is warm at every size of `profile`. `fields` says what its output slots hold; `provider` what runs it.

    `memory_size`: bytes that loading added to the worker's own memory, buffers and engine included.
    """

    model: int
    fields: list[Field]
    profile: list[ProfilePoint]
    provider: str
    load_ns: int
    memory_size: int = 0


class LoadFailed(msgspec.Struct, array_like=True, tag=7):
    """A model is refused; `detail` says what does not fit and what to change."""

    model: int
    detail: str


class WorkerReady(msgspec.Struct, array_like=True, tag=8):
    """Every model was answered by Loaded or LoadFailed. `device` is a label for people.

    Bytes: `rss_size` is resident, `memory_size` is what of it is this process's alone, which its death gives back.
    """

    device: str
    rss_size: int
    memory_size: int = 0


class Ran(msgspec.Struct, array_like=True, tag=9):
    """One batch is done: `statuses` in the order of Run.slots. Wall times of its parts; `detail` for failed ones.

    `compute_ns`: of `run_ns`, what a GPU computed by its own clock; 0 where nobody can say.
    """

    batch: int
    statuses: list[ItemStatus]
    gather_ns: int
    run_ns: int
    write_ns: int
    detail: str = ""
    compute_ns: int = 0


ForDecoder = Decode | Attach | Detach
FromDecoder = DecoderReady | Decoded
FromWorker = Loading | Loaded | LoadFailed | WorkerReady | Ran
Message = ForDecoder | Run | FromDecoder | FromWorker


Buffer = bytes | bytearray | memoryview


class WireError(ValueError):
    """A frame that no correct peer sends."""


# msgspec lets two more exceptions than its own through: text that is not UTF-8, and nesting in what it skips.
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.msgpack.Encoder()
_to_decoder: msgspec.msgpack.Decoder[ForDecoder] = msgspec.msgpack.Decoder(ForDecoder)
_to_worker = msgspec.msgpack.Decoder(Run)
_from_decoder: msgspec.msgpack.Decoder[FromDecoder] = msgspec.msgpack.Decoder(FromDecoder)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: Message) -> bytes:
    """One message as one frame; at most FRAME_SIZE_MAX bytes."""
    frame = _encoder.encode(message)
    assert len(frame) <= FRAME_SIZE_MAX, f"{type(message).__name__} of {len(frame)} bytes"
    return frame


def read_for_decoder(frame: Buffer) -> ForDecoder:
    """In a decoder: a frame of the gateway's. Raises WireError."""
    try:
        return _to_decoder.decode(frame)
    except _MALFORMED as error:
        raise WireError(str(error)) from None


def read_for_worker(frame: Buffer) -> Run:
    """In a worker: a frame of the gateway's. Raises WireError."""
    try:
        return _to_worker.decode(frame)
    except _MALFORMED as error:
        raise WireError(str(error)) from None


def read_from_decoder(frame: Buffer) -> FromDecoder:
    """In the gateway: a frame of a decoder's. Raises WireError."""
    try:
        return _from_decoder.decode(frame)
    except _MALFORMED as error:
        raise WireError(str(error)) from None


def read_from_worker(frame: Buffer) -> FromWorker:
    """In the gateway: a frame of a worker's. Raises WireError."""
    try:
        return _from_worker.decode(frame)
    except _MALFORMED as error:
        raise WireError(str(error)) from None
