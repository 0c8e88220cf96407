"""TensorRT's backend on a pretend card, with real builder processes: answers, the cache, refusals, and memory."""

import contextlib
import importlib
import json

import numpy as np
import onnx
import pytest
from onnx import helper

from gateway.errors import InvalidModel
from gpuworker.backend import DeviceLost, Setup, open_backend
from gpuworker.device import Device
from gpuworker.gpu import engines
from gpuworker.gpu.building import Order
from gpuworker.gpu.card import Card
from gpuworker.gpu.engine_cache import EngineCache, write_plan
from gpuworker.gpu.tensorrt_versions import Typing
from shm.heritage import DeviceGrant
from tests.support import graphs

SCRATCH_SIZE = 1 << 16
"""Of a pretend engine."""

VERSIONS = ["8.5", "8.6", "10.13", "11.4"]
SIZES = (1, 2, 4)
NORMALISED = "mean = [10.0, 20.0, 30.0]\nstd = [2.0, 4.0, 8.0]"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Engines that tests of this file need more than once; none of them counts builds there."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """A folder in which each build leaves a file."""
    folder = tmp_path / "builds"
    folder.mkdir()
    monkeypatch.setenv("PENSTOCK_PRETEND_BUILDS", str(folder))
    return folder


def contract(text="", **sections):
    sections.setdefault("batching", f"sizes = {list(SIZES)}")
    return graphs.contract('backend = "tensorrt"\n' + text, **sections)


def quiet(stage, share):
    pass


@contextlib.contextmanager
def opened(spec, directory, engines="", *, report=quiet, warm=True, **grant):
    setup = Setup(Device("cuda", "0"), 1, DeviceGrant(engine_dir=str(engines) if engines else "", **grant))
    backend = open_backend(spec, directory, setup)
    try:
        backend.load(report)
        for size in spec.batching.sizes if warm else ():
            backend.warmup(size)
        yield backend
    finally:
        backend.close()


def refusal(spec, directory, engines="", **grant):
    with pytest.raises(InvalidModel) as caught, opened(spec, directory, engines, **grant):
        pass
    return str(caught.value)


def answers(backend, sizes=SIZES):
    """What it says of noise, at every size, full and with one image less."""
    noise, found = np.random.default_rng(7).integers(0, 256, (sizes[-1], 48), np.uint8), []
    for size in sizes:
        for count in {size, max(1, size - 1)}:
            for row, pixels in zip(backend.staging(size), noise[:count], strict=False):
                row[:] = pixels
            found.append({name: array.copy() for name, array in backend.run(size, count).arrays.items()})
    return found


def on_the_cpu(spec, directory):
    backend = open_backend(spec, directory, Setup(Device("cpu"), 1))
    backend.load(quiet)
    for size in spec.batching.sizes:
        backend.warmup(size)
    found = answers(backend, spec.batching.sizes)
    backend.close()
    return found


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name].dtype == other[name].dtype
            np.testing.assert_allclose(mine[name], other[name], rtol=1e-6)


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


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_weights_beside_the_graph_are_read(tensorrt, tmp_path, builds, precision):
    tensorrt("10.13")
    model = graphs.draw(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        {"x": (onnx.TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"y": (onnx.TensorProto.FLOAT, ["N", 3, 4, 4])},
        {"w": np.full((3, 4, 4), 2, np.float32)},
    )
    directory, engines = tmp_path / "m", tmp_path / "e"
    directory.mkdir()
    where = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0, "convert_attribute": False}
    onnx.save(model, directory / "model.onnx", **where)
    spec = contract(task="raw", gpu=f'precision = "{precision}"')
    with opened(spec, directory, engines) as backend:
        same(answers(backend), on_the_cpu(graphs.contract(task="raw"), directory))
    content = bytearray((directory / "w.bin").read_bytes())
    content[3] ^= 1  # another weight, same graph
    (directory / "w.bin").write_bytes(content)
    with opened(spec, directory, engines) as backend:
        same(answers(backend), on_the_cpu(graphs.contract(task="raw"), directory))
    assert len(list(builds.iterdir())) == 2


def test_an_engine_is_built_once_and_said_to_be(tensorrt, tmp_path, builds, capfd):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    said = []
    with opened(contract(), tmp_path / "m", tmp_path / "e", report=lambda *what: said.append(what)):
        pass
    shares = [share for stage, share in said if stage == "building"]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert said[-1] == ("engine", 0.0)
    said.clear()
    with opened(contract(), tmp_path / "m", tmp_path / "e", report=lambda *what: said.append(what)):
        pass
    assert said == [("engine", 0.0)]
    assert len(list(builds.iterdir())) == 1
    assert capfd.readouterr().err.count('"event":"engine_built"') == 1
    assert len(list((tmp_path / "e").glob("timing-*"))) == 1


def test_without_a_monitor_it_still_says_that_it_builds(tensorrt, tmp_path):
    tensorrt("8.6")
    graphs.save(graphs.means(), tmp_path / "m")
    said = []
    with opened(contract(), tmp_path / "m", tmp_path / "e", report=lambda *what: said.append(what)):
        pass
    assert set(said) == {("building", 0.0), ("engine", 0.0)}


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("", {"batching": "sizes = [1, 2]"}),
        ("", {"gpu": "tf32 = false"}),
        ("", {"gpu": "workspace_size_max = 1048576"}),
        ("", {"gpu": "optimization_level = 1"}),
        ("", {"input": "scale = 2.0"}),
    ],
)
def test_another_contract_is_another_engine(tensorrt, kept, tmp_path, builds, text, sections):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    with opened(contract(), tmp_path, kept / "f", warm=False):
        pass
    before = len(list(builds.iterdir()))
    with opened(contract(text, **sections), tmp_path, kept / "f", warm=False):
        pass
    assert len(list(builds.iterdir())) == before + 1


@pytest.mark.parametrize(
    "changed",
    [{"name": "Other"}, {"capability": (8, 0)}, {"driver": 1}, {"runtime": 1}, {"memory_size": 1}, "library", "kernel"],
)
def test_another_machine_is_another_engine(card, tmp_path, monkeypatch, changed):
    properties = Card.open().properties
    order = Order(
        input="x",
        shape=(4, 4, 3),
        sizes=(1,),
        typing=Typing(strong=True),
        tf32=True,
        workspace_size_max=1,
        optimization_level=3,
    )
    source = engines.Source(b"graph", (), tmp_path / "model.onnx", order)
    before = engines.Workshop("", 0, properties, "10.13").key(source)
    assert engines.Workshop("", 0, properties, "10.13").key(source) == before
    if changed == "kernel":
        monkeypatch.setattr(engines, "driver_version", lambda: "NVRM version: 999")
    library = "10.14" if changed == "library" else "10.13"
    if isinstance(changed, dict):
        properties = properties._replace(**changed)
    assert engines.Workshop("", 0, properties, library).key(source) != before


def test_a_damaged_engine_is_built_again(tensorrt, tmp_path, builds, capfd):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    with opened(contract(), tmp_path / "m", tmp_path / "e", warm=False):
        pass
    (plan,) = (tmp_path / "e").glob("*.plan")
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1
    plan.write_bytes(content)
    with opened(contract(), tmp_path / "m", tmp_path / "e") as backend:
        assert len(answers(backend)) == 5
    assert len(list(builds.iterdir())) == 2
    assert '"event":"engine_damaged"' in capfd.readouterr().err


def test_an_engine_that_tensorrt_refuses_is_built_again(tensorrt, tmp_path, builds, capfd):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    with opened(contract(), tmp_path / "m", tmp_path / "e", warm=False):
        pass
    (plan,) = (tmp_path / "e").glob("*.plan")
    with plan.open("wb") as file:
        write_plan(file.fileno(), b"whole, and of another TensorRT")
    with opened(contract(), tmp_path / "m", tmp_path / "e") as backend:
        assert len(answers(backend)) == 5
    assert len(list(builds.iterdir())) == 2
    assert '"event":"engine_refused"' in capfd.readouterr().err


def test_without_a_folder_each_load_builds_and_says_so(tensorrt, tmp_path, builds, capfd):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path)
    for _ in range(2):
        with opened(contract(), tmp_path, warm=False):
            pass
    assert len(list(builds.iterdir())) == 2
    assert capfd.readouterr().err.count('"event":"engines_not_kept"') == 2


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ("crash", "the process that built the engine was killed by SIGSEGV; load the model again"),
        ("refuse", r"TensorRT 10.13.0.1 cannot build this graph for this GPU"),
        ("oserror", r"the engine cannot be written (No space left on device); make room in engine_dir"),
    ],
)
def test_a_build_that_fails_is_a_refusal(tensorrt, tmp_path, monkeypatch, ends, words):
    tensorrt("10.13")
    monkeypatch.setenv("PENSTOCK_PRETEND_BUILD_ENDS", ends)
    graphs.save(graphs.means(), tmp_path / "m")
    assert words in refusal(contract(), tmp_path / "m", tmp_path / "e")
    assert not list((tmp_path / "e").glob("*.plan"))
    # And the next load is as good as any.
    monkeypatch.delenv("PENSTOCK_PRETEND_BUILD_ENDS")
    with opened(contract(), tmp_path / "m", tmp_path / "e") as backend:
        assert len(answers(backend)) == 5


def test_a_build_without_memory_says_so(tensorrt, tmp_path, monkeypatch):
    tensorrt("10.13")
    monkeypatch.setenv("PENSTOCK_PRETEND_BUILD_ENDS", "no_memory")
    graphs.save(graphs.means(), tmp_path / "m")
    with pytest.raises(MemoryError, match="OutOfMemory"), opened(contract(), tmp_path / "m", tmp_path / "e"):
        pass


def test_an_operator_that_the_parser_does_not_know_is_named(tensorrt, tmp_path, monkeypatch, capfd):
    tensorrt("10.13")
    monkeypatch.setenv("PENSTOCK_PRETEND_UNPARSED", "GlobalAveragePool")
    graphs.save(graphs.means(), tmp_path / "m")
    said = refusal(contract(), tmp_path / "m", tmp_path / "e")
    assert "TensorRT 10.13.0.1 does not take this graph (operator 'GlobalAveragePool')" in said
    assert "no importer registered" in capfd.readouterr().err


def test_nobody_to_report_to_ends_the_builder(tensorrt, tmp_path, builds, monkeypatch):
    tensorrt("10.13")
    children, real = [], engines._spawn

    def spawn(errand):
        children.append(real(errand))
        return children[0]

    def report(stage, share):
        if share:
            raise BrokenPipeError("the gateway is gone")

    monkeypatch.setattr(engines, "_spawn", spawn)
    graphs.save(graphs.means(), tmp_path / "m")
    with pytest.raises(BrokenPipeError), opened(contract(), tmp_path / "m", tmp_path / "e", report=report):
        pass
    assert children[0].returncode is not None


def test_bfloat16_reaches_the_builder(tensorrt, tmp_path, builds):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    with opened(contract(gpu='precision = "bfloat16"'), tmp_path / "m", tmp_path / "e") as backend:
        answers(backend)
    (flags,) = [json.loads(path.read_text()) for path in builds.iterdir()]
    assert flags == ["BF16", "TF32"]


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


def test_a_kept_engine_stays_in_the_folder_while_it_runs(tensorrt, tmp_path):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    full = {"engines_size_max": 1}
    with opened(contract(), tmp_path / "m", tmp_path / "e", warm=False, **full):
        with opened(contract(batching="sizes = [1]"), tmp_path / "m", tmp_path / "e", warm=False, **full):
            assert len(list((tmp_path / "e").glob("*.plan"))) == 2
        with opened(contract(batching="sizes = [2]"), tmp_path / "m", tmp_path / "e", warm=False, **full):
            assert len(list((tmp_path / "e").glob("*.plan"))) == 2
