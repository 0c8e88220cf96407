"""A float32 graph in float16: what becomes so, what stays, and how far the answers of a real model move."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.demo.model import build
from gateway.errors import InvalidModel
from gateway.models.repository import read_version
from gpuworker.gpu.precision import KEPT, to_float16
from gpuworker.graph import prepare
from tests.support import graphs
from tests.support.images import PHOTOS
from tests.support.pipeline import reference

F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16
IMAGE = {"x": (F32, ["N", 3, 4, 4])}
RNG = np.random.default_rng(7)
PROBABILITY_MAX = 0.01
"""Seen on five photos: 0.0041, and 0.03 of a logit, with the CPU provider."""


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def converted(nodes, outputs, weights=None, inputs=IMAGE, opset=17):
    model = graphs.draw(nodes, inputs, outputs, weights, opset=opset)
    before = model.SerializeToString()
    found = to_float16(model)
    assert model.SerializeToString() == before, "a graph in, another one out"
    onnx.checker.check_model(found, full_check=True)
    return model, found


def kinds(model):
    """Element types of what every node gives, by the node's operator and place."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return [(node.op_type, known[node.output[0]]) for node in graph.node]


def run(model, **feed):
    return session(model).run(None, feed)


def pixels(batch=2):
    return RNG.normal(size=(batch, 3, 4, 4)).astype(np.float32)


def test_inputs_and_outputs_stay_and_all_between_is_half():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    weights = {"w": RNG.normal(size=(5, 3, 3, 3)).astype(np.float32)}
    model, found = converted(nodes, {"y": (F32, ["N", 5, 1, 1])}, weights)
    assert kinds(found) == [("Cast", F16), ("Conv", F16), ("Relu", F16), ("GlobalAveragePool", F16), ("Cast", F32)]
    assert [(tensor.name, tensor.data_type) for tensor in found.graph.initializer] == [("w_penstock_float16", F16)]
    assert found.graph.input == model.graph.input
    assert found.graph.output == model.graph.output
    x = pixels()
    np.testing.assert_allclose(run(found, x=x)[0], run(model, x=x)[0], atol=0.01)


def test_preprocessing_is_rounded_once_and_behind_it(tmp_path):
    contract = graphs.contract(input="scale = 0.017\nmean = [2.1, 2.0, 1.8]\nstd = [0.2, 0.3, 0.4]")
    prepared = prepare(graphs.save(graphs.echo(["N", 3, 4, 4]), tmp_path) / "model.onnx", contract)
    model = onnx.load_model_from_string(prepared.content)
    found = to_float16(model)
    names = [("Transpose", TensorProto.UINT8), ("Cast", F32), ("Mul", F32), ("Add", F32), ("Cast", F16)]
    assert kinds(found)[:5] == names
    image = RNG.integers(0, 256, (2, 4, 4, 3), np.uint8)
    (exact,), (half,) = run(model, **{prepared.input: image}), run(found, **{prepared.input: image})
    np.testing.assert_array_equal(half, exact.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("operator", ["Softmax", "Exp"])
def test_what_leaves_the_range_stays_float32(operator):
    assert operator in KEPT
    _, found = converted(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node(operator, ["r"], ["y"])],
        {"y": (F32, ["N", 3, 4, 4])},
    )
    assert kinds(found) == [("Cast", F16), ("Relu", F16), ("Cast", F32), (operator, F32)]
    assert np.isfinite(run(found, x=np.full((1, 3, 4, 4), 20, np.float32))[0]).all()


def test_inputs_that_a_schema_fixes_stay_float32():
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")]
    weights = {"scales": np.array([1, 1, 2, 2], np.float32)}
    model, found = converted(nodes, {"y": (F32, ["N", 3, 8, 8])}, weights)
    assert ("Resize", F16) in kinds(found)
    assert [(tensor.name, tensor.data_type) for tensor in found.graph.initializer] == [("scales", F32)]
    x = pixels()
    np.testing.assert_allclose(run(found, x=x)[0], run(model, x=x)[0], atol=0.01)


def test_a_weight_for_both_kinds_is_there_twice():
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"]),
        helper.make_node("Pow", ["m", "w"], ["y"]),
    ]
    model, found = converted(nodes, {"y": (F32, ["N", 3, 4, 4])}, {"w": np.array(2, np.float32)})
    assert {tensor.name: tensor.data_type for tensor in found.graph.initializer} == {
        "w": F32,
        "w_penstock_float16": F16,
    }
    x = pixels()
    np.testing.assert_allclose(run(found, x=x)[0], run(model, x=x)[0], rtol=0.01)


def test_a_node_with_weights_beyond_the_range_stays_float32():
    weights = {"w": np.array([1e6, np.inf, -np.inf], np.float32).reshape(3, 1, 1), "v": np.array(np.inf, np.float32)}
    nodes = [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Min", ["m", "v"], ["y"])]
    _, found = converted(nodes, {"y": (F32, ["N", 3, 4, 4])}, weights)
    assert kinds(found) == [("Mul", F32), ("Cast", F16), ("Min", F16), ("Cast", F32)]


def test_limits_of_a_clip_are_cut_to_the_range():
    weights = {"low": np.array(0, np.float32), "high": np.array(3e38, np.float32)}
    _, found = converted([helper.make_node("Clip", ["x", "low", "high"], ["y"])], {"y": (F32, ["N", 3, 4, 4])}, weights)
    assert ("Clip", F16) in kinds(found)
    high = next(tensor for tensor in found.graph.initializer if tensor.name.startswith("high"))
    assert numpy_helper.to_array(high) == np.float16(65504)


def test_constants_are_weights_and_integers_are_left_alone():
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array(2, np.float32))),
        helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([2, 3]))),
        helper.make_node("Mul", ["x", "two"], ["m"]),
        helper.make_node("ReduceMax", ["m"], ["y"], axes=[2, 3]),
        helper.make_node("ArgMax", ["m"], ["z"], axis=1),
    ]
    outputs = {"y": (F32, ["N", 3, 1, 1]), "z": (TensorProto.INT64, ["N", 1, 4, 4])}
    model, found = converted(nodes, outputs)
    assert [node.op_type for node in found.graph.node] == ["Constant", "Cast", "Mul", "ReduceMax", "Cast", "ArgMax"]
    x = pixels()
    for ours, theirs in zip(run(found, x=x), run(model, x=x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_an_output_that_is_read_inside_keeps_its_name_and_type():
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    outputs = {"y": (F32, ["N", 3, 4, 4]), "z": (F32, ["N", 3, 4, 4])}
    model, found = converted(nodes, outputs)
    assert [node.op_type for node in found.graph.node] == ["Cast", "Relu", "Cast", "Neg", "Cast"]
    x = pixels()
    for ours, theirs in zip(run(found, x=x), run(model, x=x), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=0.01)


def test_casts_keep_what_they_say():
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["back"], to=F32),
        helper.make_node("Neg", ["back"], ["y"]),
    ]
    model, found = converted(nodes, {"y": (F32, ["N", 3, 4, 4])})
    assert [kind for _, kind in kinds(found)] == [TensorProto.INT32, F32, F16, F16, F32]
    x = pixels() * 100
    np.testing.assert_allclose(run(found, x=x)[0], run(model, x=x)[0], rtol=0.002)


@pytest.mark.parametrize(("version", "inputs"), [(3, ["x"]), (8, ["x", "w"])])
def test_weights_that_are_listed_as_inputs_stay_weights(version, inputs):
    model = graphs.draw(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {**IMAGE, "w": (F32, [3, 1, 1])},
        {"y": (F32, ["N", 3, 4, 4])},
        {"w": np.full((3, 1, 1), 2, np.float32)},
    )
    model.ir_version = version
    found = to_float16(model)
    onnx.checker.check_model(found, full_check=True)
    assert [value.name for value in found.graph.input] == inputs
    x = pixels()
    np.testing.assert_allclose(run(found, x=x)[0], x * 2, rtol=0.002)


def test_a_graph_that_is_half_already_is_left_as_it_is():
    model = graphs.echo(["N", 3, 4, 4], "float16")
    assert to_float16(model).graph.node == model.graph.node


def test_what_cannot_be_converted_is_refused():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o"])], "b", [], [helper.make_tensor_value_info("o", F32, None)]
    )
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = graphs.draw([choice], {**IMAGE, "c": (TensorProto.BOOL, [])}, {"y": (F32, None)})
    with pytest.raises(InvalidModel, match="operator 'If' holds a graph, which is not made float16; export"):
        to_float16(model)
    model = graphs.draw([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], IMAGE, {"y": (F32, None)})
    with pytest.raises(InvalidModel, match=r"operator 'Gelu' of 'com\.microsoft' is not made float16"):
        to_float16(model)
    nodes = [helper.make_node("Nonsense", ["x"], ["z"]), helper.make_node("Neg", ["z"], ["y"])]
    model = graphs.draw(nodes, IMAGE, {"y": (F32, None)})
    with pytest.raises(InvalidModel, match="the type of 'z', which Nonsense gives, cannot be told"):
        to_float16(model)
    model = graphs.means()
    model.functions.add(name="f", domain="d")
    with pytest.raises(InvalidModel, match="functions of its own"):
        to_float16(model)


@pytest.mark.slow
def test_a_real_model_says_the_same_about_real_photos(tmp_path):
    build(tmp_path, lambda *_: None)
    directory = tmp_path / "efficientnet_lite0" / "1"
    contract = read_version(directory).contract
    prepared = prepare(directory / "model.onnx", contract)
    model = onnx.load_model_from_string(prepared.content)
    found = to_float16(model)
    assert [kind for _, kind in kinds(found)].count(F32) == 4, "three of the preprocessing, and the answer"
    exact, half = session(model), session(found)
    for name, file in PHOTOS.items():
        image = reference(Path(file).read_bytes(), contract.input)[None]
        wanted, ours = (each.run(None, {prepared.input: image})[0] for each in (exact, half))
        assert ours.dtype == np.float32
        assert ours.argmax() == wanted.argmax(), name
        np.testing.assert_allclose(softmax(ours), softmax(wanted), atol=PROBABILITY_MAX, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bvlc_alexnet", "inception_v1", "squeezenet"])
def test_old_graphs_of_real_architectures_are_converted(name):
    light = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"
    model = onnx.load(light)
    found = to_float16(model)
    onnx.checker.check_model(found)
    halves = {output for node in found.graph.node if node.op_type == "Conv" for output in node.output}
    values = onnx.shape_inference.infer_shapes(found).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    assert {types[name] for name in halves} == {F16}
    assert [value.name for value in found.graph.output] == [value.name for value in model.graph.output]
    assert session(found).get_outputs()[0].type == "tensor(float)"


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()
