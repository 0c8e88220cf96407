"""The model contract (`model.toml`) as data: what a model takes, what it gives, how it is batched.

Pure data: parsed once, passed to children as JSON, read back by `GET /models/{name}`. Unknown keys are errors.
This module is the one thing that decoders and workers share with the gateway besides `shm`.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.errors import InvalidModel

Byte = Annotated[int, Meta(ge=0, le=255)]
Side = Annotated[int, Meta(ge=1, le=4096)]
Count = Annotated[int, Meta(ge=1, le=1024)]
Positive = Annotated[float, Meta(gt=0)]

DEVICE_PATTERN = r"^(cpu|cuda:(0|[1-9][0-9]?|(GPU|MIG)-[0-9A-Za-z/-]{4,80}))\Z"
"""What a device is called, in contracts and in settings: 'cpu', 'cuda:INDEX', 'cuda:GPU-UUID' or 'cuda:MIG-UUID'."""


class Input(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[input]`: how an image becomes the tensor that the model was trained on."""

    width: Side
    """Pixels."""
    height: Side
    """Pixels."""
    tensor: str | None = None
    """Name of the graph's input; None: its only one."""
    resize: Literal["crop", "stretch", "letterbox"] = "crop"
    """crop: shorter side to size / crop_fraction, then the centre; stretch: ignore the aspect ratio; letterbox: pad."""
    crop_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.875
    """Share of the resized image's shorter side that the centre crop keeps (224 of 256 = 0.875)."""
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    """Kernel of the resize, by Pillow's names."""
    antialias: bool = True
    """Widen the kernel when shrinking, as Pillow and tf.image.resize(antialias=True) do."""
    exact: bool = False
    """Same pixels as a plain Pillow pipeline, bit by bit; slower."""
    exif: bool = True
    """Apply the EXIF orientation."""
    colour: Literal["rgb", "bgr", "gray"] = "rgb"
    """Channel order of the slot and of the tensor."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """RGB that alpha is composed over."""
    padding: tuple[Byte, Byte, Byte] = (114, 114, 114)
    """RGB of letterbox bars."""
    scale: Positive = 1.0
    """tensor = (pixel * scale - mean) / std"""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Per channel, in the contract's colour order, after `scale`."""
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    """Per channel, in the contract's colour order."""
    layout: Literal["nchw", "nhwc"] = "nchw"
    """Axes of the graph's input."""
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    """Element type of the graph's input."""

    @property
    def channels(self) -> int:
        """1 for gray, else 3."""
        return 1 if self.colour == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a slot's uint8 pixels, C-order."""
        return self.height, self.width, self.channels

    @property
    def is_identity(self) -> bool:
        """Whether the graph takes the slot's pixels as they are, but for layout and dtype."""
        return self.scale == 1.0 and self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)


class Output(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[output]`: what the answer is made of."""

    task: Literal["classification", "embedding", "raw"]
    tensor: str | None = None
    """Name of the graph's output for classification and embedding; None: its only one."""
    activation: Literal["none", "softmax", "sigmoid"] = "none"
    """Applied to classification scores by the worker."""
    labels: str = "labels.txt"
    """File of class names, one a line, in index order. Classification only; without the file, names are indices."""
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Classes in an answer when the request does not say."""
    top_k_max: Annotated[int, Meta(ge=1, le=1000)] = 100
    """Most classes that a request may ask for."""
    size_max: Annotated[int, Meta(ge=64, le=1 << 28)] = 1 << 16
    """Bytes of one image's outputs, for embedding and raw."""


class Batching(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[batching]`: which sizes are warmed, how long to wait for company, and whose turn it is."""

    sizes: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=32)] = (1, 2, 4, 8, 16, 32)
    """Batch sizes run once at load and the only ones ever run, ascending. The last one is the largest batch."""
    window_ms: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    """How long an image may wait for others while a worker is free."""
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """Share of the workers' time against the weights of other models, while all of them are busy."""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[limits]`: what a request to this model may ask for."""

    deadline_ms: Annotated[float, Meta(gt=0, le=600_000)] = 10_000.0
    """Deadline of a request of the real-time class that names none. Batch sizes are chosen for it."""
    deadline_ms_max: Annotated[float, Meta(gt=0, le=600_000)] = 60_000.0
    """Longest deadline that a request may name, and the one of a request of the batch class that names none."""
    pixels_max: Annotated[int, Meta(ge=1, le=1 << 30)] = 50_000_000
    """Width times height of an encoded image."""
    images_max: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Images in one request."""
    queue_max: Annotated[int, Meta(ge=1, le=1 << 20)] = 1024
    """Images that were accepted and not yet handed to a worker."""


class Residency(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[residency]`: where the model is loaded, and when."""

    devices: Annotated[tuple[Annotated[str, Meta(pattern=DEVICE_PATTERN)], ...], Meta(max_length=64)] = ()
    """Which of the settings' devices serve it; empty: all of them."""
    lazy: bool = False
    """Load it when the first request for it comes, and unload it when others need its memory."""
    idle_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 0.0
    """Unload it after that long without a request; 0: never. For lazy models."""


class Gpu(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gpu]`: how the model runs on a GPU. On the CPU nothing of it counts, so that one contract serves both."""

    precision: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """What the engine computes in. onnxruntime: float32 or float16. int8 takes a graph that is quantised already."""
    tf32: bool = True
    """Let float32 convolutions and products round their inputs to 10 bits of mantissa, as PyTorch does: faster."""
    cuda_graph: bool = True
    """Record each batch size as a CUDA graph and replay it. A graph that cannot be recorded is run without."""
    cpu_nodes: bool = False
    """onnxruntime: leave operators that CUDA does not have to the CPU; else a graph with such is refused."""
    workspace_size_max: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 1 << 30
    """tensorrt: bytes of device memory that one of its algorithms may use beside weights and activations."""
    optimization_level: Annotated[int, Meta(ge=0, le=5)] = 3
    """tensorrt: how long the builder looks for the fastest algorithms, 0 to 5."""


class Fake(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[fake]`: the backend without a model, for measuring the server and for testing it.

    Takes `base_ms` + `image_ms` x batch. With `digest` the answer is the CRC-32 of the slot's pixels, so that a
    swapped answer shows; else class 0. An image whose first pixel is one of those below brings its fault.
    """

    class_count: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    base_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    image_ms: Annotated[float, Meta(ge=0, le=60_000)] = 0.0
    digest: bool = False
    crash_pixel: tuple[Byte, Byte, Byte] | None = None
    """The worker dies by its own doing (SIGSEGV)."""
    kill_pixel: tuple[Byte, Byte, Byte] | None = None
    """The worker dies as if killed by somebody else (SIGKILL)."""
    hang_pixel: tuple[Byte, Byte, Byte] | None = None
    """The worker stops (SIGSTOP): nothing but SIGKILL helps."""
    spin_pixel: tuple[Byte, Byte, Byte] | None = None
    """The batch never ends, until it is interrupted."""
    fail_pixel: tuple[Byte, Byte, Byte] | None = None
    """That image fails, its neighbours do not."""
    lost_pixel: tuple[Byte, Byte, Byte] | None = None
    """The device is lost, as by a sticky CUDA error."""
    memory_images: Annotated[int, Meta(ge=0, le=1024)] = 0
    """A batch of more images does not fit in memory, once the model is loaded; 0: any fits."""
    load: Literal["ok", "refuse", "crash", "no_memory"] = "ok"
    """How a load ends."""
    load_ms: Annotated[float, Meta(ge=0, le=600_000)] = 0.0
    """What a load takes besides."""
    build_ms: Annotated[float, Meta(ge=0, le=600_000)] = 0.0
    """What building its engine takes, at each load: it has none."""
    warmup_images: Annotated[int, Meta(ge=0, le=1024)] = 0
    """A batch of more images does not fit in memory when it is warmed; 0: any fits."""
    memory_size: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    """Bytes that are taken at load, really."""


class Contract(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `model.toml`, whole."""

    input: Input
    output: Output
    backend: Literal["onnxruntime", "tensorrt", "fake"] = "onnxruntime"
    description: str = ""
    batching: Batching = Batching()
    limits: Limits = Limits()
    residency: Residency = Residency()
    gpu: Gpu = Gpu()
    fake: Fake | None = None

    def __post_init__(self) -> None:
        """Check what one field alone cannot say. Raises ValueError, which the parser reports with the file's name."""
        sizes = self.batching.sizes
        if list(sizes) != sorted(set(sizes)):
            raise ValueError("batching.sizes must ascend without repeats, e.g. [1, 2, 4, 8]")
        if self.output.top_k > self.output.top_k_max:
            raise ValueError("output.top_k is over output.top_k_max; raise the latter")
        if self.limits.deadline_ms > self.limits.deadline_ms_max:
            raise ValueError("limits.deadline_ms is over limits.deadline_ms_max; raise the latter")
        if self.input.dtype == "uint8" and not self.input.is_identity:
            raise ValueError("input.dtype = 'uint8' takes pixels as they are; remove scale, mean and std")
        if self.backend == "onnxruntime" and self.gpu.precision not in {"float32", "float16"}:
            raise ValueError(
                f"gpu.precision = '{self.gpu.precision}' is for backend = 'tensorrt'; here it is 'float32' or 'float16'"
            )
        if (self.backend == "fake") != (self.fake is not None):
            raise ValueError("backend = 'fake' and a [fake] section go together")
        if self.residency.idle_s and not self.residency.lazy:
            raise ValueError("residency.idle_s is for models that come back by themselves; set lazy = true")
        if len(set(self.residency.devices)) != len(self.residency.devices):
            raise ValueError("residency.devices names one twice")
        if self.input.exact and not self.input.antialias and self.input.resample != "nearest":
            raise ValueError("input.exact follows Pillow, which always antialiases; set antialias = true")


_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)`(?: - at `\$\.?([^`]*)`)?")


def parse_contract(text: str) -> Contract:
    """Read a `model.toml`. Raises InvalidModel, which names the key, its bound, and the nearest known key."""
    try:
        return msgspec.toml.decode(text, type=Contract)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidModel(f"model.toml: {explain(str(error), Contract)}") from None


def explain(message: str, root: type[Struct]) -> str:
    """A msgspec message in our words: `$.input` becomes `input`, and an unknown key gets its nearest neighbour."""
    found = _UNKNOWN_FIELD.search(message)
    if found is None:
        return message.replace("`$.", "`")
    key, path = found[1], found[2] or ""
    known = _keys_at(root, path)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    where = f"in [{path}]" if path else "at the top level"
    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"unknown key '{key}' {where}; {hint}"


def _keys_at(root: type[Struct], path: str) -> list[str]:
    """Field names of the struct that `path` ("input", "" for the root) leads to."""
    node: Any = root
    for step in filter(None, path.split(".")):
        field = next((f for f in msgspec.structs.fields(node) if f.encode_name == step), None)
        if field is None:
            return []
        node = _struct_in(field.type)
    return [f.encode_name for f in msgspec.structs.fields(node)]


def _struct_in(annotation: Any) -> Any:
    """The struct inside an optional annotation."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Struct):
            return candidate
    return annotation
