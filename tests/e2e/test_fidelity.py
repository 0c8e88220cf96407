"""Through the gateway or through a plain Pillow and ONNX Runtime pipeline: the same pixels, and so the same answer."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.models.repository import read_version
from tests.support.images import PHOTOS, encode, photo
from tests.support.pipeline import reference

pytestmark = pytest.mark.slow

MODEL = "efficientnet_lite0"
LEAD_MIN = 0.1
MEAN_DIFFERENCE_MAX = 1.5
"""Of 255."""
MOTORCYCLE = PHOTOS["chelsea"].with_name("motorcycle_left.png")
FILES = {**PHOTOS, "motorcycle": MOTORCYCLE}
SHORTER = (224, 256, 300, 480, 700, 1100, 2200)


def jpegs(name: str) -> dict[int, bytes]:
    """A real photo as JPEG at several sizes, by its shorter side."""
    if name == "motorcycle":
        source = Image.open(MOTORCYCLE).convert("RGB")
        ratio = source.width / source.height
        return {
            side: encode(source.resize((round(side * ratio), side), Image.Resampling.LANCZOS), "JPEG", quality=90)
            for side in SHORTER
        }
    return {side: encode(photo(name, side), "JPEG", quality=90) for side in SHORTER}


@pytest.fixture(scope="module")
def contract(models):
    return read_version(models / MODEL / "1").contract


@pytest.fixture(scope="module")
def plain(models, contract):
    """Probabilities of one encoded image, by a few lines of Pillow, NumPy and ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    file = str(models / MODEL / "1" / "model.onnx")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(body: bytes) -> np.ndarray:
        pixels = reference(body, contract.input).astype(np.float32)
        tensor = ((pixels - 127) / 128).transpose(2, 0, 1)[None]
        (logits,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(tensor)})
        powers = np.exp(logits[0] - logits[0].max())
        return powers / powers.sum()

    return run


def test_the_same_answer_as_a_plain_pipeline(running, plain):
    compared = 0
    for name, file in FILES.items():
        for side, body in {0: file.read_bytes(), **jpegs(name)}.items():
            wanted = plain(body)
            second, first = np.sort(wanted)[-2:]
            found = running.predict(body, MODEL).document["prediction"][0]
            assert found["probability"] == pytest.approx(wanted[found["index"]], abs=0.08), (name, side)
            if first - second > LEAD_MIN:
                compared += 1
                assert found["index"] == int(wanted.argmax()), (name, side)
    assert compared >= 20, "or next to nothing was compared"


@pytest.mark.parametrize("name", FILES)
def test_the_same_pixels_as_a_plain_pipeline(contract, name):
    recipe, scratch = Recipe(contract), Scratch()
    worst = 0.0
    for side, body in jpegs(name).items():
        out = np.zeros(recipe.shape, np.uint8)
        decode_into(body, out, recipe, scratch)
        difference = np.abs(out.astype(int) - reference(body, contract.input).astype(int)).mean()
        assert difference <= MEAN_DIFFERENCE_MAX, (name, side)
        worst = max(worst, difference)
    assert worst < MEAN_DIFFERENCE_MAX
