"""A model run in this process: real backends and real graphs, slots in plain memory."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.errors import InvalidModel
from gpuworker import backend as backends
from gpuworker import onnxruntime_backend
from gpuworker.backend import Setup
from gpuworker.device import Device
from gpuworker.model import NO_ANSWER, NOT_RUN, GatewayBug
from tests.support import graphs
from tests.support.models import FAILED, OK, RNG, SLOTS, batch, opened, refusal


@pytest.fixture
def ranked(tmp_path):
    return opened(graphs.contract(output='activation = "softmax"'), graphs.save(graphs.means(), tmp_path))


def test_every_slot_gets_its_own_answer(ranked):
    model, pixels, slots = ranked
    for slot, (r, g, b) in {4: (1, 2, 3), 0: (9, 8, 7), 2: (5, 6, 5)}.items():
        pixels[slot] = r, g, b
    ran = model.execute(batch([4, 0, 2], top_k=3))
    assert ran.statuses == [OK] * 3
    assert ran.detail == ""
    assert min(ran.gather_ns, ran.run_ns, ran.write_ns) > 0
    assert slots["index"][[4, 0, 2]].tolist() == [[2, 1, 0], [0, 1, 2], [1, 0, 2]]
    shares = np.exp([0.0, -1, -2]) / np.exp([0.0, -1, -2]).sum()
    np.testing.assert_allclose(slots["probability"][[4, 0]], [shares] * 2, rtol=1e-5)


def test_padding_never_shows(ranked):
    model, pixels, slots = ranked
    pixels[:4] = 200, 0, 0
    model.execute(batch([0, 1, 2, 3]))
    pixels[5] = 0, 0, 9
    slots["index"][:] = 77
    model.execute(batch([5], size=4))
    assert slots["index"][5, 0] == 2
    assert (slots["index"][:5] == 77).all()


def test_asking_for_more_classes_than_there_are_gives_all(ranked):
    model, pixels, slots = ranked
    pixels[0] = 1, 2, 3
    assert model.execute(batch([0], size=1, top_k=50)).statuses == [OK]
    assert slots["index"][0].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "run",
    [
        batch([0], size=3),
        batch([], size=1),
        batch([0, 1], size=1),
        batch([SLOTS], size=1),
        batch([-1], size=1),
        batch([0], size=1, top_k=-1),
    ],
)
def test_what_no_gateway_asks_for_is_a_bug(ranked, run):
    with pytest.raises(GatewayBug):
        ranked[0].check(run)


def test_an_engine_that_raises_fails_its_batch_and_lives(tmp_path, capfd):
    model, pixels, slots = opened(graphs.contract(), graphs.save(graphs.bounded(100), tmp_path))
    pixels[0], pixels[1] = 101, 7
    ran = model.execute(batch([0, 1], size=2))
    assert ran.statuses == [FAILED] * 2
    assert ran.detail == NOT_RUN
    assert '"event":"batch_failed"' in capfd.readouterr().err
    assert model.execute(batch([1], size=1)).statuses == [OK]
    assert slots["probability"][1, 0] == 7


def test_an_image_without_a_finite_answer_fails_alone(tmp_path):
    lines = "scale = 1e36"
    model, pixels, slots = opened(graphs.contract(input=lines), graphs.save(graphs.means(), tmp_path))
    pixels[1], pixels[2] = 255, 1
    ran = model.execute(batch([2, 1, 0]))
    assert ran.statuses == [OK, FAILED, OK]
    assert ran.detail == NO_ANSWER
    assert slots["index"][2, 0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_raw_outputs_keep_shape_and_type(tmp_path, dtype):
    contract = graphs.contract(task="raw", input=f'dtype = "{dtype}"')
    model, pixels, slots = opened(contract, graphs.save(graphs.echo(["N", 3, 4, 4], dtype), tmp_path))
    pixels[:] = RNG.integers(0, 256, pixels.shape, np.uint8)
    assert model.execute(batch([5, 1, 3])).statuses == [OK] * 3
    assert slots["y"].dtype == dtype
    assert (slots["y"][[5, 1, 3]] == pixels[[5, 1, 3]].transpose(0, 3, 1, 2)).all()
    assert not slots["y"][[0, 2, 4]].any()


def test_an_embedding_is_one_field(tmp_path):
    model, pixels, slots = opened(graphs.contract(task="embedding"), graphs.save(graphs.means(), tmp_path))
    pixels[3] = 4, 5, 6
    model.execute(batch([3], size=2))
    assert {name: view[3].tolist() for name, view in slots.items()} == {"y": [4, 5, 6]}


def test_weights_beside_the_graph_are_used(tmp_path):
    model = graphs.draw(
        [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Add", ["p", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (TensorProto.FLOAT, ["N", 3, 1, 1])},
    )
    weight = model.graph.initializer.add(name="w", dims=[3, 1, 1], data_type=TensorProto.FLOAT)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": "12"}.items():
        weight.external_data.add(key=key, value=value)
    (tmp_path / "w.bin").write_bytes(np.array([0, 50, 0], np.float32).tobytes())
    runner, _, slots = opened(graphs.contract(), graphs.save(model, tmp_path))
    runner.execute(batch([0], size=1))
    assert (slots["index"][0, 0], slots["probability"][0, 0]) == (1, 50)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_labels_that_do_not_match_are_refused(tmp_path, count):
    message = refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path), labels=count)
    assert message.startswith(f"labels.txt names {count} classes, the model has 3; make it one class name a line")
    assert ("background" in message) == (count in {2, 4})


@pytest.mark.parametrize("count", [0, 3])
def test_labels_that_match_or_are_absent_are_taken(tmp_path, count):
    opened(graphs.contract(), graphs.save(graphs.means(), tmp_path), labels=count)


def test_an_output_that_is_no_row_of_scores_is_refused(tmp_path):
    assert refusal(graphs.contract(), graphs.save(graphs.echo(["N", 3, 4, 4]), tmp_path)) == (
        "task = 'classification' reads [N, classes], the graph's output 'y' is float32[N, 3, 4, 4]; name the scores"
        " with output.tensor, or set output.task = 'raw'"
    )


def test_scores_that_are_no_floats_are_refused(tmp_path):
    model = graphs.means()
    model.graph.node[1].output[0] = "m"
    model.graph.node.append(helper.make_node("Cast", ["m"], ["y"], to=TensorProto.INT32))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    assert refusal(graphs.contract(), graphs.save(model, tmp_path)) == (
        "task = 'classification' reads float scores, the graph's output 'y' is int32[N, 3]; name the scores with"
        " output.tensor, or set output.task = 'raw'"
    )


def test_outputs_over_their_bound_are_refused_with_the_number(tmp_path):
    contract = graphs.contract(task="raw", output="size_max = 64")
    assert refusal(contract, graphs.save(graphs.echo(["N", 3, 4, 4]), tmp_path)) == (
        "the outputs of one image take 192 bytes, model.toml says output.size_max = 64; set output.size_max = 192"
    )


def test_an_output_without_the_batch_axis_is_refused(tmp_path):
    model = graphs.draw(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)],
        {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (TensorProto.FLOAT, [3, 4, 4])},
    )
    assert refusal(graphs.contract(task="raw"), graphs.save(model, tmp_path)) == (
        "the graph's output 'y' is [3, 4, 4] for a batch of 1; its first axis has to be the batch"
    )


def test_an_output_that_grows_with_the_batch_is_refused(tmp_path):
    model = graphs.draw(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["turned"]),
            helper.make_node("MatMul", ["flat", "turned"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (TensorProto.FLOAT, ["N", "M"])},
    )
    assert refusal(graphs.contract(task="raw"), graphs.save(model, tmp_path)) == (
        "the graph's output 'y' is [2, 2] for a batch of 2, where [2, 1] follows from other sizes; export it with"
        " fixed axes but for the first, or set batching.sizes = [1]"
    )


def test_text_outputs_are_refused(tmp_path):
    model = graphs.draw(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)],
        {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (TensorProto.STRING, ["N", 3, 4, 4])},
    )
    assert refusal(graphs.contract(task="raw"), graphs.save(model, tmp_path)) == (
        "the graph's output 'y' is object, which cannot be passed on; export it as float32"
    )


def test_a_graph_that_the_engine_refuses_is_refused_in_our_words(tmp_path):
    model = graphs.draw(
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (TensorProto.FLOAT, ["N", 3])},
    )
    with pytest.raises(InvalidModel, match=r"^ONNX Runtime ") as caught:
        opened(graphs.contract(), graphs.save(model, tmp_path))
    message = str(caught.value)
    assert message.endswith(
        "does not take this graph; check that it is valid and that its opset is not too new;"
        " its own words are in the log"
    )
    assert "NoSuchOperator" not in message
    assert "NoSuchOperator" in str(caught.value.__cause__)


def test_an_engine_of_gpus_is_never_run_on_the_cpu(tmp_path):
    with pytest.raises(InvalidModel) as caught:
        backends.open_backend(graphs.contract('backend = "tensorrt"'), tmp_path, Setup(Device("cpu"), 1))
    assert str(caught.value) == (
        "backend = 'tensorrt' runs on cuda, and the worker is for cpu; start the server with --device cuda:0, or set"
        " residency.devices"
    )


def test_a_provider_that_is_not_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime_backend.OnnxRuntimeBackend, "provider", "CUDAExecutionProvider")
    with pytest.warns(UserWarning, match="not in available provider names"):
        message = refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path))
    assert message == (
        "CUDAExecutionProvider was asked for, ONNX Runtime uses CPUExecutionProvider; install a build that has it"
    )


def test_an_engine_that_is_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(backends.ENGINES, ("onnxruntime", "cpu"), ("no_such_engine", "X"))
    assert refusal(graphs.contract(), tmp_path) == (
        "backend = 'onnxruntime' needs no_such_engine, which does not import here; install penstock[cpu], and"
        " see `penstock doctor`"
    )
