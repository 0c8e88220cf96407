"""What TensorRT is given in place of a model's graph: the same answers, with uint8 at the very edge only."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import InvalidModel
from gpuworker.gpu.tensorrt_graph import prepare_for_tensorrt, types_of
from gpuworker.graph import prepare, preprocessing
from tests.support import graphs

UINT8, FLOAT, HALF = TensorProto.UINT8, TensorProto.FLOAT, TensorProto.FLOAT16
NORMALISED = "mean = [10.0, 20.0, 30.0]\nstd = [2.0, 4.0, 8.0]"
PIXELS = np.random.default_rng(5).integers(0, 256, (2, 4, 4, 3), np.uint8)


def run(content, name):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {name: PIXELS})[0]


def straight_into_casts(content, name):
    """Every reader of the uint8 input is a Cast to a floating type, and nothing else in the graph is uint8."""
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content))
    readers = [node for node in model.graph.node if name in node.input]
    bytes_inside = [each.name for each in model.graph.value_info if each.type.tensor_type.elem_type == UINT8]
    return {node.op_type for node in readers} == {"Cast"} and not bytes_inside


@pytest.mark.parametrize(
    ("layout", "dtype", "extra"),
    [
        ("nchw", "float32", NORMALISED),
        ("nchw", "float32", ""),
        ("nhwc", "float32", NORMALISED),
        ("nhwc", "float32", ""),
        ("nchw", "float16", NORMALISED),
        ("nchw", "float16", ""),
    ],
)
def test_pixels_go_straight_into_a_cast_and_answers_stay(tmp_path, layout, dtype, extra):
    contract = graphs.contract(input=f'layout = "{layout}"\ndtype = "{dtype}"\n{extra}', task="raw")
    shape = ["N", 3, 4, 4] if layout == "nchw" else ["N", 4, 4, 3]
    path = graphs.save(graphs.echo(shape, dtype), tmp_path) / "model.onnx"
    before, graph = prepare(path, contract), prepare_for_tensorrt(path, contract)
    assert straight_into_casts(graph.content, graph.input)
    np.testing.assert_array_equal(run(graph.content, graph.input), run(before.content, before.input))
    assert graph.types == ({"float16"} if dtype == "float16" else frozenset())
    assert (graph.input, graph.outputs, graph.weights) == (before.input, ("y",), ())


def of_bytes(*nodes, layout="nhwc", out=FLOAT):
    shape = ["N", 4, 4, 3] if layout == "nhwc" else ["N", 3, 4, 4]
    return graphs.draw(list(nodes), {"x": (UINT8, shape)}, {"y": (out, None)})


def bytes_contract(layout="nhwc"):
    return graphs.contract(input=f'layout = "{layout}"\ndtype = "uint8"', task="raw")


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("to", [FLOAT, HALF, TensorProto.INT32])
def test_a_graph_of_bytes_is_rewritten_too(tmp_path, layout, to):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Shape", ["t"], ["s"]),
        helper.make_node("Reshape", ["t", "s"], ["r"]),
        helper.make_node("Cast", ["r"], ["c"], to=to),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    path = graphs.save(of_bytes(*nodes, layout=layout), tmp_path) / "model.onnx"
    contract = bytes_contract(layout)
    before, graph = prepare(path, contract), prepare_for_tensorrt(path, contract)
    assert straight_into_casts(graph.content, graph.input)
    np.testing.assert_array_equal(run(graph.content, graph.input), run(before.content, before.input))


def test_what_was_said_about_bytes_is_not_said_any_more(tmp_path):
    model = of_bytes(
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), helper.make_node("Cast", ["t"], ["y"], to=FLOAT)
    )
    model.graph.value_info.append(helper.make_tensor_value_info("t", UINT8, ["N", 3, 4, 4]))
    path = graphs.save(model, tmp_path) / "model.onnx"
    graph = prepare_for_tensorrt(path, bytes_contract())
    run(graph.content, graph.input)
    assert straight_into_casts(graph.content, graph.input)


@pytest.mark.parametrize(
    ("nodes", "out", "words"),
    [
        ([helper.make_node("Add", ["x", "x"], ["y"])], UINT8, "computes with its pixels as uint8 \\(in 'Add'\\)"),
        ([helper.make_node("Identity", ["x"], ["y"])], UINT8, "as uint8 \\(in 'Identity'\\)"),
        ([helper.make_node("Gather", ["x", "x"], ["y"])], UINT8, "as uint8 \\(in 'Gather'\\)"),
    ],
)
def test_computing_with_bytes_is_refused(tmp_path, nodes, out, words):
    path = graphs.save(of_bytes(*nodes, out=out), tmp_path) / "model.onnx"
    with pytest.raises(InvalidModel, match=words + r".*export it with a Cast to float32"):
        prepare_for_tensorrt(path, bytes_contract())


def test_a_name_that_is_taken_is_not_taken_again(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["penstock_pixels_float"], to=FLOAT),
        helper.make_node("Identity", ["penstock_pixels_float"], ["y"]),
    ]
    path = graphs.save(of_bytes(*nodes), tmp_path) / "model.onnx"
    graph = prepare_for_tensorrt(path, bytes_contract())
    np.testing.assert_array_equal(run(graph.content, graph.input), PIXELS.astype(np.float32))


def test_bytes_in_a_branch_are_refused(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["b"], to=FLOAT)], "b", [], [helper.make_tensor_value_info("b", FLOAT, None)]
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]
    model = graphs.draw(nodes, {"x": (UINT8, ["N", 4, 4, 3])}, {"y": (FLOAT, None)}, {"yes": np.array([True])})
    path = graphs.save(model, tmp_path) / "model.onnx"
    with pytest.raises(InvalidModel, match="pixels go into a loop or a branch"):
        prepare_for_tensorrt(path, bytes_contract())


def test_outputs_that_nobody_reads_are_cut_off(tmp_path):
    model = graphs.means()
    model.graph.output.append(helper.make_tensor_value_info("p", FLOAT, None))
    path = graphs.save(model, tmp_path) / "model.onnx"
    graph = prepare_for_tensorrt(path, graphs.contract(output='tensor = "y"'))
    assert graph.outputs == ("y",)
    assert [each.name for each in onnx.load_model_from_string(graph.content).graph.output] == ["y"]


def quantised():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    weights = {"scale": np.array(2, np.float32), "zero": np.array(0, np.int8)}
    return graphs.draw(nodes, {"x": (FLOAT, ["N", 3, 4, 4])}, {"y": (FLOAT, ["N", 3])}, weights)


def test_int8_takes_a_quantised_graph(tmp_path):
    path = graphs.save(quantised(), tmp_path) / "model.onnx"
    assert prepare_for_tensorrt(path, tensorrt_contract("int8")).types == {"quantised"}


def tensorrt_contract(precision):
    return graphs.contract('backend = "tensorrt"', gpu=f'precision = "{precision}"')


def test_int8_is_refused_for_a_graph_that_is_not_quantised(tmp_path):
    path = graphs.save(graphs.means(), tmp_path) / "model.onnx"
    with pytest.raises(InvalidModel, match=r"precision = 'int8'.*has no QuantizeLinear.*quantise it first"):
        prepare_for_tensorrt(path, tensorrt_contract("int8"))


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_quantised_graph_is_refused_for_anything_else(tmp_path, precision):
    path = graphs.save(quantised(), tmp_path) / "model.onnx"
    with pytest.raises(
        InvalidModel, match=rf"is quantised.*gpu\.precision = '{precision}'; set gpu\.precision = 'int8'"
    ):
        prepare_for_tensorrt(path, tensorrt_contract(precision))


def test_types_are_found_wherever_they_are():
    assert types_of(graphs.echo(["N", 3, 4, 4], "float16")) == {"float16"}
    assert types_of(quantised()) == {"quantised"}
    model = graphs.means()
    assert types_of(model) == frozenset()
    model.graph.node.append(helper.make_node("Cast", ["y"], ["z"], to=TensorProto.BFLOAT16))
    assert types_of(model) == {"bfloat16"}
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float16), "w"))
    assert types_of(model) == {"bfloat16", "float16"}


def test_weights_beside_the_graph_are_named(tmp_path):
    model = graphs.draw(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": (FLOAT, ["N", 3, 4, 4])},
        {"y": (FLOAT, ["N", 3, 4, 4])},
        {"w": np.full((3, 4, 4), 2, np.float32)},
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=False)
    graph = prepare_for_tensorrt(path, graphs.contract(task="raw"))
    assert graph.weights == (tmp_path / "w.bin",)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_the_preprocessing_alone_gives_what_a_model_would_be_given(tmp_path, layout, dtype):
    extra = "" if dtype == "uint8" else NORMALISED
    contract = graphs.contract(input=f'layout = "{layout}"\ndtype = "{dtype}"\n{extra}', task="raw")
    alone = preprocessing(contract, "x")
    if (layout, dtype) == ("nhwc", "uint8"):
        assert alone is None
        return
    shape = ["N", 3, 4, 4] if layout == "nchw" else ["N", 4, 4, 3]
    whole = prepare(graphs.save(graphs.echo(shape, dtype), tmp_path) / "model.onnx", contract)
    assert alone.outputs == ("x",)
    np.testing.assert_array_equal(run(alone.content, alone.input), run(whole.content, whole.input))
