"""Engines that were built elsewhere: refused unless allowed, checked against the contract, run behind a front."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from gpuworker.backend import Setup, open_backend
from gpuworker.device import Device
from tests.support import graphs
from tests.support.engines import NORMALISED, contract, opened, refusal

FLOAT, HALF, UINT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8
pytestmark = pytest.mark.slow


def save(trt, model, directory, sizes=((1, 1), (2, 2), (4, 4)), version=None):
    """A model.plan of this TensorRT, with a profile for each (least, most) of `sizes`."""
    source = model.graph.input[0]
    row = [dim.dim_value for dim in source.type.tensor_type.shape.dim][1:]
    profiles = [{source.name: [[low, *row], [high, *row], [high, *row]]} for low, high in sizes]
    about = {"version": version or trt.VERSION, "gpu": trt.the_gpu(), "profiles": profiles, "level": 3}
    directory.mkdir(exist_ok=True)
    (directory / "model.plan").write_bytes(trt.MAGIC + json.dumps(about).encode() + b"\n" + model.SerializeToString())
    return directory


def foreign(spec, directory, engines):
    return opened(spec, directory, engines, foreign_engines=True)


def refused(spec, directory, engines):
    return refusal(spec, directory, engines, foreign_engines=True)


def test_it_is_refused_unless_the_operator_allows_it(tensorrt, kept, tmp_path):
    save(tensorrt("10.13"), graphs.means(), tmp_path / "m")
    said = refusal(contract(), tmp_path / "m", kept)
    assert said.startswith("model.plan is an engine that was built elsewhere, which is native code")
    assert said.endswith("put model.onnx there instead, or set foreign_engines = true if you trust its source")


def test_a_graph_beside_it_is_what_counts(tensorrt, kept, tmp_path):
    directory = save(tensorrt("10.13"), graphs.echo(["N", 3, 4, 4]), tmp_path / "m")
    graphs.save(graphs.means(), directory)
    with opened(contract(), directory, kept) as backend:
        assert backend.fields[0].shape == (3,)


@pytest.mark.parametrize("version", ["8.5", "10.13", "11.4"])
@pytest.mark.parametrize(
    ("layout", "dtype", "extra"),
    [("nchw", "float32", NORMALISED), ("nhwc", "float16", NORMALISED), ("nchw", "uint8", ""), ("nhwc", "uint8", "")],
)
def test_pixels_are_prepared_in_front_of_it(tensorrt, kept, tmp_path, version, layout, dtype, extra):
    shape = ["N", 3, 4, 4] if layout == "nchw" else ["N", 4, 4, 3]
    kinds = {"float32": FLOAT, "float16": HALF, "uint8": UINT8}
    model = graphs.draw(
        [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)], {"x": (kinds[dtype], shape)}, {"y": (FLOAT, shape)}
    )
    save(tensorrt(version), model, tmp_path / "m")
    graphs.save(model, tmp_path / "g")
    words = f'layout = "{layout}"\ndtype = "{dtype}"\n{extra}'
    pixels = np.random.default_rng(3).integers(0, 256, (4, 48), np.uint8)
    theirs = open_backend(graphs.contract(input=words, task="raw"), tmp_path / "g", Setup(Device("cpu"), 1))
    theirs.load(lambda stage, share: None)
    with foreign(contract(input=words, task="raw"), tmp_path / "m", kept) as ours:
        assert (ours._runner.front is None) == ((layout, dtype) == ("nhwc", "uint8"))
        for size in (1, 2, 4):
            theirs.warmup(size)
            for backend in (ours, theirs):
                for row, given in zip(backend.staging(size), pixels, strict=False):
                    row[:] = given
            mine, other = ours.run(size, size), theirs.run(size, size)
            np.testing.assert_array_equal(mine.arrays["y"], other.arrays["y"])
        assert set(ours.graphs) == {1, 2, 4}


def test_outputs_that_nobody_reads_have_a_place_of_their_own(tensorrt, kept, card, tmp_path):
    model = graphs.means()
    model.graph.output.append(helper.make_tensor_value_info("p", FLOAT, ["N", 3, 1, 1]))
    save(tensorrt("10.13"), model, tmp_path / "m")
    with foreign(contract(output='tensor = "y"'), tmp_path / "m", kept) as backend:
        backend.staging(2)[0][:] = 9
        assert backend.run(2, 1).arrays["y"].tolist() == [[9, 9, 9]]
    assert not card.device


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (
            ((1, 1), (2, 2)),
            r"[1, 2, 4]; the input 'x' of model.plan takes [1, 3, 4, 4], [2, 3, 4, 4], which 4 does not",
        ),
        (((2, 8),), "takes [2, 3, 4, 4] to [8, 3, 4, 4], which 1 does not fit"),
    ],
)
def test_a_size_that_no_profile_covers_is_named(tensorrt, kept, tmp_path, sizes, words):
    save(tensorrt("10.13"), graphs.means(), tmp_path / "m", sizes)
    assert words in refused(contract(), tmp_path / "m", kept)


def test_one_profile_for_several_sizes_is_refused_in_words(tensorrt, kept, tmp_path):
    save(tensorrt("10.13"), graphs.means(), tmp_path / "m", ((1, 4),))
    said = refused(contract(), tmp_path / "m", kept)
    assert "its optimization profile 0 serves another size already" in said
    with foreign(contract(batching="sizes = [4]"), tmp_path / "m", kept):
        pass


@pytest.mark.parametrize(
    ("model", "spec", "words"),
    [
        (graphs.means(height=5), {}, "set input.height = 5"),
        (graphs.echo(["N", 4, 4, 3]), {}, "set input.layout = 'nhwc'"),
        (graphs.echo(["N", 3, 4, 4], "float16"), {"task": "raw"}, "set input.dtype = 'float16'"),
        (graphs.means(), {"input": 'tensor = "image"'}, "input.tensor = 'image', the graph's inputs are: 'x'"),
        (graphs.means(), {"output": 'tensor = "z"'}, "output.tensor = 'z', the graph's outputs are: 'y'"),
    ],
)
def test_its_tensors_have_to_fit_the_contract(tensorrt, kept, tmp_path, model, spec, words):
    save(tensorrt("10.13"), model, tmp_path / "m")
    assert words in refused(contract(**spec), tmp_path / "m", kept)


@pytest.mark.parametrize("content", [b"garbage", None])
def test_what_tensorrt_does_not_take_is_refused(tensorrt, kept, tmp_path, content):
    directory = save(tensorrt("10.13"), graphs.means(), tmp_path / "m", version="8.6")
    if content is not None:
        (directory / "model.plan").write_bytes(content)
    said = refused(contract(), directory, kept)
    assert said.startswith("TensorRT 10.13.0.1 does not take model.plan: it is of another version, for another GPU, or")


def test_an_empty_and_an_unreadable_file_are_refused(tensorrt, kept, tmp_path):
    tensorrt("10.13")
    (tmp_path / "model.plan").write_bytes(b"")
    assert refused(contract(), tmp_path, kept) == "model.plan is empty; build the engine again"
    (tmp_path / "model.plan").unlink()
    (tmp_path / "model.plan").mkdir()
    assert "model.plan cannot be read (Is a directory)" in refused(contract(), tmp_path, kept)


@pytest.mark.parametrize("method", ["get_tensor_format", "get_tensor_location"])
def test_tensors_that_do_not_lie_plainly_are_refused(tensorrt, kept, tmp_path, monkeypatch, method):
    trt = tensorrt("10.13")
    save(trt, graphs.means(), tmp_path / "m")
    odd = trt.TensorFormat.CHW2 if method == "get_tensor_format" else trt.TensorLocation.HOST
    monkeypatch.setattr(trt.ICudaEngine, method, lambda self, name: odd)
    assert "the engine's 'x' is not a plain tensor in device memory" in refused(contract(), tmp_path / "m", kept)
