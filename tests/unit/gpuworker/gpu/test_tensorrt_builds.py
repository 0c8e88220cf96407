"""Engines of a pretend TensorRT, built by real builder processes: when, what is kept, and how builds fail."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from gateway.errors import InvalidModel
from gpuworker.gpu import engines
from gpuworker.gpu.building import Order
from gpuworker.gpu.card import Card
from gpuworker.gpu.engine_cache import EngineCache, write_plan
from gpuworker.gpu.tensorrt_versions import Typing
from tests.support import graphs
from tests.support.engines import answers, contract, on_the_cpu, opened, refusal, same

pytestmark = pytest.mark.slow


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


def test_a_kept_engine_stays_in_the_folder_while_it_runs(tensorrt, tmp_path):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    full = {"engines_size_max": 1}
    with opened(contract(), tmp_path / "m", tmp_path / "e", warm=False, **full):
        with opened(contract(batching="sizes = [1]"), tmp_path / "m", tmp_path / "e", warm=False, **full):
            assert len(list((tmp_path / "e").glob("*.plan"))) == 2
        with opened(contract(batching="sizes = [2]"), tmp_path / "m", tmp_path / "e", warm=False, **full):
            assert len(list((tmp_path / "e").glob("*.plan"))) == 2


def test_a_folder_without_room_is_a_refusal(tensorrt, tmp_path, monkeypatch):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EngineCache, "part", full)
    said = refusal(contract(), tmp_path / "m", tmp_path / "e")
    assert said == (
        "the engine cannot be built and kept (No space left on device); make room in engine_dir, or set another one"
    )


def test_a_folder_that_somebody_else_empties_is_a_refusal(tensorrt, tmp_path, monkeypatch):
    tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    monkeypatch.setattr(EngineCache, "_evict", lambda self, key: self.drop(key))
    assert "an engine that was just built is gone" in refusal(contract(), tmp_path / "m", tmp_path / "e")


def test_an_engine_that_is_never_taken_is_built_twice_and_refused(tensorrt, tmp_path, builds, monkeypatch):
    trt = tensorrt("10.13")
    graphs.save(graphs.means(), tmp_path / "m")
    monkeypatch.setattr(trt.Runtime, "deserialize_cuda_engine", lambda self, plan: None)
    said = refusal(contract(), tmp_path / "m", tmp_path / "e")
    assert said.startswith("TensorRT 10.13.0.1 does not take an engine that it has just built")
    assert len(list(builds.iterdir())) == 2


@pytest.mark.parametrize(
    ("code", "words"), [(70, "failed with exit code 70"), (-9, "was killed by SIGKILL; the kernel")]
)
def test_a_builder_that_ends_badly_is_named(code, words):
    engines._check_end(0)
    with pytest.raises(InvalidModel, match=words):
        engines._check_end(code)
