"""A model run in this process: real backends and real graphs, slots in plain memory."""

import threading
import types
import zlib

import numpy as np
import pytest
from onnx import TensorProto, helper

from gateway.errors import InvalidModel
from gpuworker import backend as backends
from gpuworker import fake_backend, onnxruntime_backend
from gpuworker.answers import make_answer
from gpuworker.backend import DeviceLost
from gpuworker.device import Device, memory_size
from gpuworker.model import INTERRUPTED, LOST, NO_ANSWER, NO_MEMORY, NOT_RUN, GatewayBug, Model
from gpuworker.profile import noise
from shm import layout, views
from shm.wire import ItemStatus, Run
from tests.support import graphs

CPU = Device("cpu", 0)
NEVER_LATE = 1 << 62
SLOTS = 6
RNG = np.random.default_rng(11)
OK, FAILED = ItemStatus.OK, ItemStatus.FAILED
WHITE = 255


def opened(contract, directory, *, warm=True, labels=0):
    """Make (model, input slots, output slots by field)."""
    opener = backends.open_backend(contract, directory, CPU, 1)
    opener.load()
    if contract.output.task == "classification":
        size = contract.output.top_k_max * 8 + 2 * layout.SLOT_ALIGN
    else:
        size = contract.output.size_max
    buffer = bytearray(layout.stride(size) * SLOTS)
    answer = make_answer(contract, opener, labels, buffer, SLOTS)
    if warm:
        for batch in contract.batching.sizes:
            opener.warmup(batch)
    pixels = np.zeros((SLOTS, *contract.input.shape), np.uint8)
    model = Model("m", contract.batching.sizes, opener, answer, list(pixels.reshape(SLOTS, -1)))
    slots = views.slot_arrays(buffer, answer.fields, slot_size=layout.stride(size), slot_count=SLOTS)
    return model, pixels, slots


def batch(slots, *, size=4, top_k=1):
    return Run(1, 0, size, slots, top_k, NEVER_LATE)


def refusal(contract, directory, *, labels=0):
    with pytest.raises(InvalidModel) as caught:
        opened(contract, directory, labels=labels)
    return str(caught.value)


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


def interrupted(model, run):
    """Run a batch that never ends by itself, and interrupt it once it runs."""
    began = threading.Event()
    begin = model._backend.run

    def starts(size, count):
        began.set()
        return begin(size, count)

    model._backend.run = starts
    interrupter = threading.Thread(target=lambda: began.wait(30) and until_done(model, done))
    done = threading.Event()
    interrupter.start()
    ran = model.execute(run)
    done.set()
    interrupter.join(30)
    model._backend.run = begin
    return ran


def until_done(model, done):
    """Interrupt again and again: the first may come before the run looks at it."""
    while not done.wait(0.001):
        model.interrupt()


def test_a_graph_without_end_is_interrupted_and_the_next_batch_runs(tmp_path, capfd):
    model, pixels, slots = opened(graphs.contract(), graphs.save(graphs.endless(), tmp_path))
    pixels[0], pixels[1] = WHITE, 7
    for _ in range(3):
        ran = interrupted(model, batch([0], size=1))
        assert ran.statuses == [ItemStatus.INTERRUPTED]
        assert ran.detail == INTERRUPTED
        assert model.execute(batch([1], size=1)).statuses == [OK]
        assert slots["probability"][1, 0] == 7
    assert "terminate flag" in capfd.readouterr().err, "its own words are in the log"


@pytest.mark.parametrize("kind", ["onnxruntime", "fake"])
def test_an_interrupt_between_batches_ends_nothing(tmp_path, kind):
    contract = fake(base_ms=1) if kind == "fake" else graphs.contract()
    model, _, _ = opened(contract, graphs.save(graphs.means(), tmp_path))
    model.interrupt()
    assert model.execute(batch([0, 1])).statuses == [OK] * 2


def test_a_batch_that_does_not_fit_is_said_and_the_session_lives(tmp_path, capfd):
    model, pixels, slots = opened(graphs.contract(), graphs.save(graphs.hungry(), tmp_path))
    pixels[:2], pixels[2] = WHITE, 7
    ran = model.execute(batch([0, 1], size=2))
    assert ran.statuses == [ItemStatus.NO_MEMORY] * 2
    assert ran.detail == NO_MEMORY
    assert "Failed to allocate memory" in capfd.readouterr().err
    assert model.execute(batch([2], size=1)).statuses == [OK]
    assert slots["probability"][2, 0] == 7


def test_the_smallest_size_that_does_not_fit_three_times_in_a_row_is_the_end(tmp_path):
    model, pixels, _ = opened(graphs.contract(), graphs.save(graphs.hungry(), tmp_path))
    pixels[:2] = WHITE
    small, large, good = batch([0], size=1), batch([0, 1], size=2), batch([5], size=1)
    said = [model.execute(run).statuses[0].name for run in (small, small, good, small, large, large, small, small)]
    assert said == ["NO_MEMORY", "NO_MEMORY", "OK", *["NO_MEMORY"] * 4, "DEVICE_LOST"]


@pytest.mark.parametrize(
    ("words", "status", "detail"),
    [
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", ItemStatus.DEVICE_LOST, LOST),
        ("CUDA failure 2: out of memory ; GPU=0", ItemStatus.NO_MEMORY, NO_MEMORY),
        ("CUDA failure 1: invalid argument", FAILED, NOT_RUN),
    ],
)
def test_what_an_engine_says_of_its_device(tmp_path, words, status, detail):
    model, _, _ = opened(graphs.contract(), graphs.save(graphs.means(), tmp_path))

    def fail():
        raise RuntimeError(words)

    bound = model._backend._bound
    bound[1] = bound[1]._replace(run=fail)
    ran = model.execute(batch([0], size=1))
    assert (ran.statuses, ran.detail) == ([status], detail)


@pytest.mark.parametrize(
    ("words", "kind"),
    [("CUDA failure 719: unspecified launch failure", DeviceLost), ("std::bad_alloc", MemoryError)],
)
@pytest.mark.parametrize("where", ["open", "first_run", "warmup"])
def test_a_lost_device_is_not_the_models_fault(tmp_path, monkeypatch, where, words, kind):
    graphs.save(graphs.means(), tmp_path)

    def fail(*_, **__):
        raise RuntimeError(words)

    opener = backends.open_backend(graphs.contract(), tmp_path, CPU, 1)
    if where == "open":
        monkeypatch.setattr(onnxruntime_backend.onnxruntime, "InferenceSession", fail)
    elif where == "first_run":
        monkeypatch.setattr(onnxruntime_backend.onnxruntime.InferenceSession, "run", fail)
    else:
        opener.load()
        monkeypatch.setattr(onnxruntime_backend, "functools", types.SimpleNamespace(partial=lambda *_: fail))
    with pytest.raises(kind, match=words):
        opener.warmup(1) if where == "warmup" else opener.load()


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
        "the graph's output 'y' is [2, 2] for a batch of 2, where [2, 1] follows from smaller ones; export it with"
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


def test_a_gpu_is_never_replaced_by_the_cpu(tmp_path):
    with pytest.raises(InvalidModel) as caught:
        backends.open_backend(graphs.contract(), tmp_path, Device("cuda", 1), 1)
    assert str(caught.value) == (
        "backend = 'onnxruntime' runs on the CPU only in this version, and the worker is for cuda:1;"
        " start the server with --device cpu"
    )


def test_a_provider_that_is_not_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(onnxruntime_backend.PROVIDERS, "cpu", "CUDAExecutionProvider")
    with pytest.warns(UserWarning, match="not in available provider names"):
        message = refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path))
    assert message == (
        "CUDAExecutionProvider was asked for, ONNX Runtime uses CPUExecutionProvider; install a build that has it"
    )


def test_an_engine_that_is_not_here_is_refused(tmp_path, monkeypatch):
    assert refusal(graphs.contract('backend = "tensorrt"'), tmp_path) == (
        "backend = 'tensorrt' is not part of this version; it has 'onnxruntime', 'fake'"
    )
    monkeypatch.setitem(backends.ENGINES, "onnxruntime", ("no_such_engine", "X"))
    assert refusal(graphs.contract(), tmp_path) == (
        "backend = 'onnxruntime' needs no_such_engine, which does not import here; install penstock[cpu]"
    )


def fake(task="classification", output="", **settings):
    lines = "\n".join(f"{name} = {str(value).lower()}" for name, value in settings.items())
    return graphs.contract('backend = "fake"', task=task, output=output, fake=lines)


def test_a_fake_answers_class_zero(tmp_path):
    model, _, slots = opened(fake(class_count=10), tmp_path)
    assert model.execute(batch([3, 1], top_k=4)).statuses == [OK] * 2
    assert slots["index"][3].tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 0, 0]
    assert slots["probability"][3, :4].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("top_k_max", [1, 5, 40])
def test_a_fake_with_a_digest_answers_the_pixels(tmp_path, top_k_max):
    contract = fake(digest=True, class_count=40, output=f"top_k = 1\ntop_k_max = {top_k_max}")
    model, pixels, slots = opened(contract, tmp_path)
    for _ in range(20):
        pixels[:] = RNG.integers(0, 256, pixels.shape, np.uint8)
        model.execute(batch([5, 0, 2], top_k=top_k_max))
        for slot in (5, 0, 2):
            best = zlib.crc32(pixels[slot].tobytes()) % 40
            others = [place for place in range(40) if place != best]
            assert slots["index"][slot].tolist() == [best, *others][:top_k_max]


def test_a_fake_of_another_task_gives_its_digest(tmp_path):
    model, pixels, slots = opened(fake("raw", digest=True), tmp_path)
    pixels[2] = 5
    model.execute(batch([2], size=1))
    assert slots["digest"][2, 0] == zlib.crc32(pixels[2].tobytes())


def test_a_fake_fails_the_images_it_is_told_to_and_no_padding(tmp_path):
    model, pixels, _ = opened(fake(fail_pixel=[1, 2, 3]), tmp_path)
    pixels[1, 0, 0] = 1, 2, 3
    ran = model.execute(batch([0, 1, 2]))
    assert ran.statuses == [OK, FAILED, OK]
    assert ran.detail == NO_ANSWER
    assert model.execute(batch([0], size=4)).statuses == [OK]


def test_a_fake_takes_its_time(tmp_path, monkeypatch):
    model, _, _ = opened(fake(base_ms=10, image_ms=2.5), tmp_path, warm=False)
    now_ns, slept_s = 0, 0.0

    def look() -> int:
        nonlocal now_ns
        now_ns += 1000
        return now_ns

    def wait(seconds) -> bool:
        nonlocal now_ns, slept_s
        now_ns += round(seconds * 1e9)
        slept_s += seconds
        return False

    monkeypatch.setattr(fake_backend.time, "monotonic_ns", look)
    monkeypatch.setattr(model._backend._interrupted, "wait", wait)
    model.execute(batch([0, 1], size=4))
    assert 0.0198 < slept_s < 0.0199, "the end is waited out awake"
    assert 20_000_000 <= now_ns < 20_010_000


def test_a_fake_that_spins_is_interrupted(tmp_path):
    model, pixels, _ = opened(fake(spin_pixel=[1, 2, 3]), tmp_path)
    pixels[1, 0, 0] = 1, 2, 3
    for _ in range(2):
        assert interrupted(model, batch([0, 1])).statuses == [ItemStatus.INTERRUPTED] * 2
        assert model.execute(batch([0])).statuses == [OK]


def test_a_fake_that_takes_its_time_is_interrupted(tmp_path):
    model, _, _ = opened(fake(base_ms=60_000), tmp_path, warm=False)
    assert interrupted(model, batch([0])).statuses == [ItemStatus.INTERRUPTED]


def test_a_fake_loses_its_device(tmp_path):
    model, pixels, _ = opened(fake(lost_pixel=[1, 2, 3], fail_pixel=[4, 4, 4]), tmp_path)
    pixels[1, 0, 0] = 1, 2, 3
    assert model.execute(batch([0, 1])).statuses == [ItemStatus.DEVICE_LOST] * 2
    assert model.execute(batch([0])).statuses == [OK]


def test_a_fake_has_room_for_so_many_images_and_for_what_a_load_measures_with(tmp_path):
    model, _, _ = opened(fake(memory_images=2), tmp_path)
    assert model.execute(batch([0, 1], size=4)).statuses == [OK] * 2
    assert model.execute(batch([0, 1, 2], size=4)).statuses == [ItemStatus.NO_MEMORY] * 3
    model.rehearse(4, noise(48), 1, model._answer)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"load": '"refuse"'}, InvalidModel, "set it to 'ok'"),
        ({"load": '"no_memory"'}, MemoryError, "fake.load"),
    ],
)
def test_a_fake_refuses_to_load(tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        opened(fake(**settings), tmp_path)


def test_a_fake_takes_time_and_memory_to_load(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(fake_backend.time, "sleep", slept.append)
    before = memory_size()
    model, _, _ = opened(fake(load_ms=250, memory_size=64 << 20), tmp_path)
    assert slept == [0.25]
    assert memory_size() - before > 60 << 20
    model.close()
    assert memory_size() - before < 32 << 20


@pytest.mark.parametrize("name", ["crash", "kill", "hang", "spin", "fail", "lost"])
def test_a_fake_that_would_fire_on_black_is_refused_whatever_it_would_do(tmp_path, name):
    assert f"fake.{name}_pixel = [0, 0, 0] would fire" in refusal(fake(**{f"{name}_pixel": [0, 0, 0]}), tmp_path)


def test_a_fake_that_would_fire_on_black_is_refused(tmp_path):
    assert refusal(fake(crash_pixel=[0, 0, 0]), tmp_path) == (
        "fake.crash_pixel = [0, 0, 0] would fire on warm-up; choose a pixel that is not black"
    )
