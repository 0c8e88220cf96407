import itertools

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.errors import InvalidModel
from gpuworker import graph
from tests.support import graphs

RNG = np.random.default_rng(7)


def prepared(tmp_path, model, contract):
    return graph.prepare(graphs.save(model, tmp_path) / "model.onnx", contract)


def refusal(tmp_path, model, contract):
    with pytest.raises(InvalidModel) as caught:
        prepared(tmp_path, model, contract)
    return str(caught.value)


def run(ready, pixels):
    session = onnxruntime.InferenceSession(ready.content, providers=["CPUExecutionProvider"])
    return session.run(list(ready.outputs), {ready.input: pixels})[0]


@pytest.mark.parametrize("colour", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize(
    ("dtype", "norm"),
    # The contract refuses to normalise bytes.
    [("uint8", "none"), *itertools.product(["float32", "float16"], ["full", "scale", "mean", "none"])],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_inserted_nodes_do_what_numpy_does(tmp_path, layout, dtype, colour, norm):
    channels = 1 if colour == "gray" else 3
    scale, mean, std = {
        "full": (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "scale": (1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "mean": (1.0, (123.0, 0.0, 104.0), (1.0, 1.0, 1.0)),
        "none": (1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }[norm]
    contract = graphs.contract(
        task="raw",
        input=f'layout = "{layout}"\ndtype = "{dtype}"\ncolour = "{colour}"\n'
        f"scale = {scale}\nmean = {list(mean)}\nstd = {list(std)}",
    )
    shape = ["N", channels, 4, 4] if layout == "nchw" else ["N", 4, 4, channels]
    pixels = RNG.integers(0, 256, (3, 4, 4, channels), np.uint8)

    given = run(prepared(tmp_path, graphs.echo(shape, dtype), contract), pixels)

    expected = (pixels.astype(np.float64) * scale - np.array(mean[:channels])) / np.array(std[:channels])
    if layout == "nchw":
        expected = expected.transpose(0, 3, 1, 2)
    assert given.dtype == dtype
    assert given.shape == expected.shape
    np.testing.assert_allclose(given, expected, rtol=2e-3 if dtype == "float16" else 1e-5, atol=2e-6)


def test_bytes_in_the_slots_own_layout_need_no_node(tmp_path):
    contract = graphs.contract(task="raw", input='layout = "nhwc"\ndtype = "uint8"')
    ready = prepared(tmp_path, graphs.echo(["N", 4, 4, 3], "uint8"), contract)
    assert ready.input == "x"
    pixels = RNG.integers(0, 256, (2, 4, 4, 3), np.uint8)
    assert (run(ready, pixels) == pixels).all()


def test_names_of_the_graph_are_never_shadowed(tmp_path):
    model = graphs.draw(
        [
            helper.make_node("Identity", ["x"], ["penstock_pixels"]),
            helper.make_node("Identity", ["penstock_pixels"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (TensorProto.FLOAT, ["N", 3, 4, 4])},
    )
    pixels = RNG.integers(0, 256, (1, 4, 4, 3), np.uint8)
    given = run(prepared(tmp_path, model, graphs.contract(task="raw", input="scale = 0.5")), pixels)
    assert (given == pixels.transpose(0, 3, 1, 2) * np.float32(0.5)).all()


def test_weights_listed_as_inputs_are_no_inputs(tmp_path):
    model = graphs.draw(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", 3, 4, 4]), "w": (TensorProto.FLOAT, [1])},
        {"y": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"w": np.array([2], np.float32)},
    )
    pixels = RNG.integers(0, 256, (1, 4, 4, 3), np.uint8)
    assert (run(prepared(tmp_path, model, graphs.contract(task="raw")), pixels)[0, 1] == pixels[0, :, :, 1] * 2.0).all()


def test_free_sides_take_what_the_contract_says(tmp_path):
    ready = prepared(tmp_path, graphs.means(height="h", width="w"), graphs.contract())
    assert run(ready, np.full((2, 4, 4, 3), 9, np.uint8)).tolist() == [[9, 9, 9]] * 2


def test_a_graph_that_declares_no_shape_is_believed(tmp_path):
    model = graphs.means()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert run(prepared(tmp_path, model, graphs.contract()), np.full((2, 4, 4, 3), 9, np.uint8)).shape == (2, 3)


def test_a_fixed_batch_is_taken_when_it_is_the_only_size(tmp_path):
    contract = graphs.contract(batching="sizes = [2]")
    assert prepared(tmp_path, graphs.means(batch=2), contract).outputs == ("y",)


@pytest.mark.parametrize(
    ("shape", "lines", "message"),
    [
        (
            ["N", 3, 9, 8],
            "",
            (
                "model.toml says 4x4 rgb nchw, which is [N, 3, 4, 4]; the graph's input 'x' is [N, 3, 9, 8];"
                " set input.width = 8 and input.height = 9"
            ),
        ),
        (
            ["N", 4, 4, 3],
            "",
            (
                "model.toml says 4x4 rgb nchw, which is [N, 3, 4, 4]; the graph's input 'x' is [N, 4, 4, 3];"
                " set input.layout = 'nhwc'"
            ),
        ),
        (
            ["N", 3, 4, 4],
            'layout = "nhwc"',
            (
                "model.toml says 4x4 rgb nhwc, which is [N, 4, 4, 3]; the graph's input 'x' is [N, 3, 4, 4];"
                " set input.layout = 'nchw'"
            ),
        ),
        (
            ["N", 1, 4, 4],
            "",
            (
                "model.toml says 4x4 rgb nchw, which is [N, 3, 4, 4]; the graph's input 'x' is [N, 1, 4, 4];"
                " set input.colour = 'gray'"
            ),
        ),
        (
            ["N", 5, 4, 4],
            "",
            (
                "model.toml says 4x4 rgb nchw, which is [N, 3, 4, 4]; the graph's input 'x' is [N, 5, 4, 4];"
                " it has 5 channels, an image has 1 or 3: check input.layout, or export another graph"
            ),
        ),
        (
            ["N", 3, 4],
            "",
            (
                "the graph's input 'x' is [N, 3, 4]; an image batch has 4 axes, [N, 3, height, width] or"
                " [N, height, width, 3]"
            ),
        ),
        (
            [1, 3, 4, 4],
            "",
            (
                "the graph's input 'x' is [1, 3, 4, 4], a fixed batch of 1, and model.toml says batching.sizes ="
                " [1, 2, 4]; export it with a dynamic batch axis (torch.onnx.export: dynamic_axes={'x': {0: 'N'}})"
                " or set batching.sizes = [1]"
            ),
        ),
        (
            ["N", 3, 4, 4],
            'dtype = "float16"',
            "model.toml says input.dtype = 'float16', the graph's input 'x' is float32; set input.dtype = 'float32'",
        ),
        (
            ["N", 3, 4, 4],
            'tensor = "image"',
            "model.toml says input.tensor = 'image', the graph's inputs are: 'x'; name one of them",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_both_sides(tmp_path, shape, lines, message):
    assert refusal(tmp_path, graphs.echo(shape), graphs.contract(task="raw", input=lines)) == message


def test_an_input_of_another_kind_is_refused(tmp_path):
    model = graphs.draw(
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.INT64, ["N"])},
        {"y": (TensorProto.INT64, ["N"])},
    )
    assert refusal(tmp_path, model, graphs.contract()) == (
        "the graph's input 'x' is int64; an image tensor is float32, float16 or uint8"
    )


def test_two_inputs_are_refused(tmp_path):
    model = graphs.draw(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        {"a": (TensorProto.FLOAT, ["N", 3, 4, 4]), "b": (TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (TensorProto.FLOAT, ["N", 3, 4, 4])},
    )
    assert refusal(tmp_path, model, graphs.contract(task="raw")) == (
        "the graph has 2 inputs ('a', 'b'), one image is all it would get; export it with one"
    )


def two_outputs():
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in ("boxes", "scores")]
    kind = (TensorProto.FLOAT, ["N", 3, 4, 4])
    return graphs.draw(nodes, {"x": kind}, {"boxes": kind, "scores": kind})


def test_an_ambiguous_output_is_refused(tmp_path):
    assert refusal(tmp_path, two_outputs(), graphs.contract(task="embedding")) == (
        "the graph has 2 outputs ('boxes', 'scores'); say which one is the embedding: set output.tensor"
    )


def test_an_unknown_output_is_refused(tmp_path):
    assert refusal(tmp_path, two_outputs(), graphs.contract(output='tensor = "logits"')) == (
        "model.toml says output.tensor = 'logits', the graph's outputs are: 'boxes', 'scores'; name one of them"
    )


def test_tasks_read_their_outputs(tmp_path):
    named = graphs.contract(task="embedding", output='tensor = "scores"')
    assert prepared(tmp_path, two_outputs(), named).outputs == ("scores",)
    assert prepared(tmp_path, two_outputs(), graphs.contract(task="raw")).outputs == ("boxes", "scores")


def test_an_old_opset_is_refused(tmp_path):
    assert refusal(tmp_path, graphs.means(opset=6), graphs.contract()) == (
        "the graph is of opset 6, 7 is the oldest taken; export it with opset 17"
    )


def test_names_out_of_a_file_are_cut_and_escaped(tmp_path):
    model = graphs.echo(["N", 3, 4, 4])
    model.graph.input[0].name = model.graph.node[0].input[0] = "\x1b[2J" + "x" * 5000
    message = refusal(tmp_path, model, graphs.contract(task="raw", input='tensor = "y"'))
    assert "\x1b" not in message
    assert len(message) < 250


def external(model, location):
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    model.graph.initializer.append(tensor)
    return model


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "", "sub/../../secret", "link", "a\0b"])
def test_weights_outside_the_directory_are_refused(tmp_path, location):
    (tmp_path / "secret").write_bytes(bytes(12))
    home = tmp_path / "model"
    home.mkdir()
    (home / "link").symlink_to(tmp_path / "secret")
    message = refusal(home, external(graphs.means(), location), graphs.contract())
    assert message.endswith("outside the model's directory; save them beside the graph")


@pytest.mark.parametrize("location", ["weights.bin", "*/_ORT_MEM_ADDR_/*"])
def test_weights_that_are_missing_are_refused(tmp_path, location):
    assert refusal(tmp_path, external(graphs.means(), location), graphs.contract()) == (
        f"weights of the graph are in '{location}', which is not in the model's directory; copy it there"
    )


def test_weights_beside_the_graph_are_taken(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(12))
    assert prepared(tmp_path, external(graphs.means(), "weights.bin"), graphs.contract()).external


def test_hostile_weights_are_found_inside_attributes_and_subgraphs(tmp_path):
    hidden = external(graphs.means(), "../secret").graph.initializer[0]
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=hidden)], "inner", [], [])
    model = graphs.means()
    model.graph.node.append(helper.make_node("If", ["cond"], ["z"], then_branch=inner, else_branch=inner))
    assert "outside the model's directory" in refusal(tmp_path, model, graphs.contract())


def test_foreign_operators_are_refused_in_functions_too(tmp_path):
    foreign = helper.make_node("Exec", ["x"], ["y"], domain="evil.ops")
    message = "the graph needs operator 'Exec' of 'evil.ops', which is not built in; export it with standard operators"
    model = graphs.means()
    model.graph.node.append(foreign)
    assert refusal(tmp_path, model, graphs.contract()) == message
    model = graphs.means()
    model.functions.append(helper.make_function("local", "f", ["x"], ["y"], [foreign], []))
    assert refusal(tmp_path, model, graphs.contract()) == message


def test_operators_that_the_file_defines_itself_are_taken(tmp_path):
    model = graphs.means()
    body = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(helper.make_function("local", "same", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node[1].output[0] = "m"
    model.graph.node.append(helper.make_node("same", ["m"], ["y"], domain="local"))
    assert run(prepared(tmp_path, model, graphs.contract()), np.full((1, 4, 4, 3), 5, np.uint8)).tolist() == [[5, 5, 5]]


def test_compiled_contexts_are_refused(tmp_path):
    model = graphs.means()
    model.graph.node.append(helper.make_node("EPContext", ["x"], ["z"], domain="com.microsoft"))
    assert refusal(tmp_path, model, graphs.contract()) == (
        "the graph holds an EPContext node, which is compiled code; export it as plain ONNX"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 not a graph", "model.onnx is not an ONNX file, or is damaged (16 bytes); export it again"),
        (b"", "model.onnx holds no graph; export it again"),
        (None, "there is no model.onnx; put the exported graph there"),
    ],
)
def test_unreadable_files_are_refused_in_our_words(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidModel) as caught:
        graph.prepare(path, graphs.contract())
    assert str(caught.value) == message


def test_a_directory_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(InvalidModel, match=r"model\.onnx cannot be read \(Is a directory\)"):
        graph.prepare(tmp_path / "model.onnx", graphs.contract())


def test_a_file_over_the_limit_is_not_read(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(InvalidModel, match=r"model\.onnx has 2147483648 bytes, at most 2147483647 are read"):
        graph.prepare(path, graphs.contract())
