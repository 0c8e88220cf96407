"""How far pixels, and answers, are from those of the plain Pillow pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from bench import rig
from bench.decode_lab import rows
from gateway.decoding import geometry, kernels, resizing
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.decoding.pillow import RESAMPLING
from gateway.models.repository import read_version
from tests.support.images import encode, photo
from tests.support.pipeline import reference

if TYPE_CHECKING:
    from gateway.models.spec import Contract

MODEL = "efficientnet_lite0"
LEAD_MIN = 0.1
SHORTER = (224, 256, 300, 375, 480, 700, 1080, 1536, 2160, 3000)
RATIOS = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.75, 2.0, 2.25, 2.5, 3.0, 4.0)


class Error(NamedTuple):
    """Of 255: mean, 99th percentile and largest difference of any channel."""

    mean: float
    p99: float
    largest: float

    @classmethod
    def between(cls, left: np.ndarray, right: np.ndarray) -> Error:
        off = np.abs(left.astype(int) - right.astype(int))
        return cls(float(off.mean()), float(np.percentile(off, 99)), float(off.max()))


def plain(body: bytes, contract: Contract) -> np.ndarray:
    """uint8[h, w, c] that a contract means: Pillow alone; NumPy where the kernel is not to be widened."""
    spec = contract.input
    if spec.antialias or spec.resample == "nearest":
        return reference(body, spec)
    pixels = simplejpeg.decode_jpeg(body, "RGB")
    fit = geometry.fit(spec, (pixels.shape[1], pixels.shape[0]), 1)
    return kernels.resize(pixels, fit.stored_size, fit.stored_box, spec.resample)


def of(body: bytes, contract: Contract) -> Error:
    """Ours against the plain pipeline."""
    out = np.zeros(contract.input.shape, np.uint8)
    decode_into(memoryview(body), out, Recipe(contract), Scratch())
    return Error.between(out, plain(body, contract))


def over_photos(contract: Contract, shorter: int) -> dict[str, Error]:
    """By photo, as JPEG of that shorter side."""
    return {name: of(rows.at(name, shorter), contract) for name in rows.names()}


class Answers(NamedTuple):
    """Of EfficientNet-Lite0 on real photos at many sizes."""

    compared: int
    """Images whose first class leads by more than LEAD_MIN in the plain pipeline."""
    same: int
    """Of these, those with the same first class."""
    probability_off: dict[int, float]
    """Largest difference of the probability of the plain pipeline's first class, by shorter side."""


def answers() -> Answers:
    """Ask the demo's model about our pixels and about Pillow's."""
    import onnxruntime  # noqa: PLC0415 - slow to import

    folder = rig.demo_repository() / MODEL / "1"
    contract = read_version(folder).contract
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def ask(pixels: np.ndarray) -> np.ndarray:
        tensor = ((pixels.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        (logits,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(tensor)})
        powers = np.exp(logits[0] - logits[0].max())
        return powers / powers.sum()

    recipe, scratch, out = Recipe(contract), Scratch(), np.zeros(contract.input.shape, np.uint8)
    compared = same = 0
    worst = dict.fromkeys(SHORTER, 0.0)
    for name in rows.names():
        for shorter in SHORTER:
            body = rows.at(name, shorter)
            wanted = ask(reference(body, contract.input))
            decode_into(memoryview(body), out, recipe, scratch)
            found = ask(out)
            first = int(wanted.argmax())
            worst[shorter] = max(worst[shorter], abs(float(found[first] - wanted[first])))
            second, lead = np.sort(wanted)[-2:]
            if lead - second > LEAD_MIN:
                compared += 1
                same += int(found.argmax()) == first
    return Answers(compared, same, worst)


def table() -> list[tuple[str, int, float, dict[str, tuple[float, float]]]]:
    """The measurements behind `gateway.decoding.scales`: (contract's kernel, divisor, ratio, errors by second kernel).

    An error is (mean over the photos, worst photo) of the mean difference, of 255.
    """
    found = []
    seconds = [*resizing.FILTERS, "hamming"]
    engine = resizing.Resizer()
    for divisor in (2, 4, 8):
        for ratio in RATIOS:
            if ratio * divisor > 12:
                continue
            off: dict[tuple[str, str], list[float]] = {}
            for name in rows.names():
                body = (
                    rows.at(name, round(256 * ratio * divisor))
                    if name == "motorcycle"
                    else encode(photo(name, round(256 * ratio * divisor)), "JPEG", quality=90)
                )
                for pair, error in _steps(body, divisor, seconds, engine).items():
                    off.setdefault(pair, []).append(error)
            for kernel in RESAMPLING:
                if kernel != "nearest":
                    errors = {to: (float(np.mean(off[kernel, to])), max(off[kernel, to])) for to in seconds}
                    found.append((kernel, divisor, ratio, errors))
    return found


def _steps(body: bytes, divisor: int, seconds: list[str], engine: resizing.Resizer) -> dict[tuple[str, str], float]:
    """Mean difference by (contract's kernel, second kernel) of one photo decoded at 1 / `divisor`."""
    whole = simplejpeg.decode_jpeg(body, "RGB")
    height, width = whole.shape[:2]
    canvas = resizing.Canvases().take((-(-width // divisor), -(-height // divisor)), 4)
    simplejpeg.decode_jpeg(
        body,
        "RGBX",
        min_height=canvas.pixels.shape[0],
        min_width=canvas.pixels.shape[1],
        min_factor=divisor,
        buffer=canvas.pixels,
    )
    fit = geometry.fit(rows.contract().input, (width, height), 1)
    box = geometry.divided(fit.stored_box, divisor)
    reached = {}
    for name in seconds:
        pixels = engine.resize(canvas, fit.stored_size, box, name)
        if pixels is None:
            image = Image.frombuffer("RGBX", canvas.image.size, canvas.pixels, "raw", "RGBX", 0, 1)
            pixels = np.asarray(image.resize(fit.stored_size, RESAMPLING[name], box))
        reached[name] = pixels[:, :, :3].copy()
    found = {}
    for kernel, method in RESAMPLING.items():
        if kernel != "nearest":
            wanted = np.asarray(Image.fromarray(whole).resize(fit.stored_size, method, fit.stored_box))
            for name, pixels in reached.items():
                found[kernel, name] = Error.between(pixels, wanted).mean
    return found
