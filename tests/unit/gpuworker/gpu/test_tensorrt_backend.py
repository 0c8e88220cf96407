"""TensorRT's backend on a pretend card, with real builder processes: its answers, and its memory."""

import importlib
import json

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from gateway.demo.model import build
from gateway.models.repository import read_version
from gpuworker.backend import DeviceLost
from gpuworker.gpu.card import Card
from gpuworker.gpu.engine_cache import EngineCache
from tests.support import graphs
from tests.support.engines import NORMALISED, SIZES, answers, contract, on_the_cpu, opened, refusal, same

SCRATCH_SIZE = 1 << 16
"""Of a pretend engine."""

VERSIONS = ["8.5", "8.6", "10.13", "11.4"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cuda_graph", ["true", "false"])
def test_answers_are_those_of_the_cpu_at_every_size(tensorrt, kept, tmp_path, version, cuda_graph):
    trt = tensorrt(version)
    graphs.save(graphs.means(), tmp_path)
    spec = contract(input=NORMALISED, gpu=f"cuda_graph = {cuda_graph}")
    with opened(spec, tmp_path, kept / "a") as backend:
        assert backend.provider == f"TensorRT {trt.__version__}"
        assert [(field.name, field.dtype, field.shape) for field in backend.fields] == [("y", "float32", (3,))]
        assert set(backend.graphs) == (set(SIZES) if cuda_graph == "true" else set())
        found = answers(backend)
    same(found, on_the_cpu(graphs.contract(input=NORMALISED), tmp_path))


def test_two_batches_at_a_time_keep_apart(tensorrt, kept, tmp_path):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    with opened(contract(), tmp_path, kept / "b") as backend:
        for value in range(1, 20, 2):
            backend.staging(1)[0][:] = value
            backend.start(1, 1)
            for row in backend.staging(4):
                row[:] = value + 1
            backend.start(4, 4)
            assert backend.finish().arrays["y"].tolist() == [[value] * 3]
            assert backend.finish().arrays["y"].tolist() == [[value + 1] * 3] * 4


def test_raw_outputs_of_several_types(tensorrt, kept, tmp_path):
    tensorrt("10.13")
    nodes = [
        helper.make_node("ArgMax", ["x"], ["whole"], axis=3, keepdims=0),
        helper.make_node("Cast", ["x"], ["half"], to=onnx.TensorProto.FLOAT16),
    ]
    kinds = onnx.TensorProto
    model = graphs.draw(
        nodes,
        {"x": (kinds.FLOAT, ["N", 3, 4, 4])},
        {"whole": (kinds.INT64, ["N", 3, 4]), "half": (kinds.FLOAT16, ["N", 3, 4, 4])},
    )
    graphs.save(model, tmp_path)
    with opened(contract(task="raw"), tmp_path, kept / "c") as backend:
        found = answers(backend)
    same(found, on_the_cpu(graphs.contract(task="raw"), tmp_path))


@pytest.mark.parametrize(("version", "flags"), [("8.6", ["FP16", "TF32"]), ("10.13", ["TF32"]), ("11.4", ["TF32"])])
def test_float16_is_in_the_graph_and_close_to_float32(tensorrt, tmp_path, builds, version, flags):
    tensorrt(version)
    graphs.save(graphs.means(), tmp_path / "m")
    with opened(contract(input=NORMALISED, gpu='precision = "float16"'), tmp_path / "m", tmp_path / "e") as backend:
        found = answers(backend)
    exact = on_the_cpu(graphs.contract(input=NORMALISED), tmp_path / "m")
    for mine, other in zip(found, exact, strict=True):
        assert mine["y"].dtype == np.float32
        np.testing.assert_allclose(mine["y"], other["y"], rtol=2e-3, atol=2e-2)
    assert [json.loads(path.read_text()) for path in builds.iterdir()] == [flags]


def test_operators_that_are_plugins_are_known_to_the_parser_and_to_engines(tensorrt, tmp_path):
    tensorrt("8.6")
    kind, shape = onnx.TensorProto.FLOAT, ["N", 3, 4, 4]
    node = helper.make_node("InstanceNormalization", ["x", "one", "none"], ["y"])
    weights = {"one": np.ones(3, np.float32), "none": np.zeros(3, np.float32)}
    graphs.save(graphs.draw([node], {"x": (kind, shape)}, {"y": (kind, shape)}, weights), tmp_path / "m")
    with opened(contract(task="raw"), tmp_path / "m", tmp_path / "e") as backend:
        found = answers(backend)
    same(found, on_the_cpu(graphs.contract(task="raw"), tmp_path / "m"))


def test_a_graph_of_one_size_has_one(tensorrt, tmp_path):
    tensorrt("10.13")
    graphs.save(graphs.means(batch=2), tmp_path / "m")
    with opened(contract(batching="sizes = [2]"), tmp_path / "m", tmp_path / "e") as backend:
        found = answers(backend, (2,))
    same(found, on_the_cpu(graphs.contract(batching="sizes = [2]"), tmp_path / "m"))


def test_an_output_without_a_batch_axis_is_refused(tensorrt, tmp_path):
    tensorrt("10.13")
    model = graphs.draw(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)],
        {"x": (onnx.TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (onnx.TensorProto.FLOAT, [3, 4, 4])},
    )
    graphs.save(model, tmp_path / "m")
    said = refusal(contract(task="raw", batching="sizes = [1, 2]"), tmp_path / "m", tmp_path / "e")
    assert "the model's output 'y' is [3, 4, 4] for a batch of 1; its first axis has to be the batch" in said


def test_contexts_share_one_block_and_all_memory_comes_back(tensorrt, kept, card, tmp_path):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    with opened(contract(), tmp_path, kept / "a") as backend:
        blocks = [size for _, size in card.device.values()]
        assert blocks.count(SCRATCH_SIZE) == 1
        assert len(backend._runner.engine._contexts) == len(SIZES)
    assert not card.device
    assert not card.pinned


def test_an_engine_that_does_not_fit_is_no_memory(tensorrt, kept, card, tmp_path, monkeypatch):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    with opened(contract(), tmp_path, kept / "a", warm=False):
        pass
    monkeypatch.setattr(type(card), "memory_size", property(lambda self: self.held() if self.opened else 8 << 30))
    engine = importlib.import_module("gpuworker.gpu.tensorrt_engine")
    stream = Card.open().compute
    monkeypatch.setattr("pretend_engines.the_gpu", lambda: "Pretend GPU 8589934592")
    cache = EngineCache(kept / "a", 0)
    path = next((kept / "a").glob("*.plan"))
    plan = cache.find(path.stem)
    with pytest.raises(MemoryError, match="OutOfMemory"):
        engine.Engine(plan.content, stream, (4, 4, 3))
    plan.close()


def test_a_lost_device_is_said_to_be_lost(tensorrt, kept, card, tmp_path):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    with opened(contract(), tmp_path, kept / "a") as backend:
        card.sticky = 700
        with pytest.raises(DeviceLost):
            backend.run(1, 1)
        card.sticky = 0


@pytest.mark.parametrize(
    ("words", "kind"), [("Error Code 3: API Usage Error", RuntimeError), ("OutOfMemory", MemoryError)]
)
def test_a_run_that_cannot_begin_fails_alone(tensorrt, kept, tmp_path, monkeypatch, words, kind):
    trt = tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    with opened(contract(gpu="cuda_graph = false"), tmp_path, kept / "a") as backend:
        with monkeypatch.context() as patch:
            say = trt.IExecutionContext._complain
            patch.setattr(trt.IExecutionContext, "execute_async_v3", lambda self, stream: say(self, words))
            with pytest.raises(kind):
                backend.run(1, 1)
        backend.staging(1)[0][:] = 7
        assert backend.run(1, 1).arrays["y"].tolist() == [[7, 7, 7]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("set_input_shape", "does not take a batch of 1"),
        ("set_tensor_address", "takes no address for 'penstock_pixels'"),
    ],
)
def test_what_a_context_refuses_is_a_refusal(tensorrt, kept, tmp_path, monkeypatch, call, words):
    trt = tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    monkeypatch.setattr(trt.IExecutionContext, call, lambda *_: False)
    assert words in refusal(contract(), tmp_path, kept / "a")


def test_too_many_outputs_and_too_long_names_are_refused(tensorrt, kept, tmp_path):
    tensorrt("10.13")
    kind = onnx.TensorProto.FLOAT
    for count, length, words in ((65, 1, "the model has 65 outputs, at most 64"), (1, 257, "a name of over 256 bytes")):
        names = [f"{number:0{length}}" for number in range(count)]
        nodes = [helper.make_node("Identity", ["x"], [name]) for name in names]
        shape = ["N", 3, 4, 4]
        graphs.save(graphs.draw(nodes, {"x": (kind, shape)}, dict.fromkeys(names, (kind, shape))), tmp_path)
        assert words in refusal(contract(task="raw"), tmp_path, kept / f"n{count}")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_real_model_says_the_same_as_on_the_cpu(tensorrt, tmp_path, precision):
    tensorrt("10.13")
    build(tmp_path, lambda *_: None)
    directory = tmp_path / "efficientnet_lite0" / "1"
    spec = read_version(directory).contract
    spec = msgspec.structs.replace(spec, batching=msgspec.structs.replace(spec.batching, sizes=(1, 4)))
    exact = on_the_cpu(spec, directory)
    gpu = msgspec.structs.replace(spec.gpu, precision=precision)
    with opened(msgspec.structs.replace(spec, backend="tensorrt", gpu=gpu), directory, tmp_path / "e") as backend:
        found = answers(backend, (1, 4))
    for mine, other in zip(found, exact, strict=True):
        assert (mine["logits"].argmax(axis=1) == other["logits"].argmax(axis=1)).all()
        error = 1e-4 if precision == "float32" else 0.05
        np.testing.assert_allclose(mine["logits"], other["logits"], atol=error * np.abs(other["logits"]).max())
