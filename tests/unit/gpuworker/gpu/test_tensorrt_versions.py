"""What differs between TensorRT's versions, asked of pretend modules that have exactly the names of each."""

import json
import types
from pathlib import Path

import pytest

from gateway.errors import InvalidModel
from gateway.models.spec import Gpu
from gpuworker.gpu import tensorrt_versions as versions
from gpuworker.gpu.tensorrt_versions import Progress, Typing

VERSIONS = ["8.5", "8.6", "10.13", "11.4"]
MODULES = {"tensorrt", "pretend_tensorrt", "pretend_engines"}
HOPPER, TURING = (9, 0), (7, 5)
NONE = frozenset()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pretend_module_has_no_name_that_the_real_one_lacks(tensorrt, version):
    trt = tensorrt(version)
    facts = next(
        each
        for name, each in json.loads((Path(__file__).parents[3] / "support" / "tensorrt_api.json").read_text()).items()
        if name.startswith(version)
    )
    ours = {
        name: value for name, value in vars(trt).items() if isinstance(value, type) and name not in {"Bound", "Enum"}
    }
    ours = {name: value for name, value in ours.items() if value.__module__ in MODULES}
    assert set(ours) <= set(facts["module"])
    assert {"Builder", "Runtime", "OnnxParser", "ICudaEngine", "IExecutionContext"} <= set(ours)
    for name, cls in ours.items():
        if name in facts["enums"]:
            assert {each: int(value) for each, value in cls.__members__.items()} == facts["enums"][name]
        else:
            assert {each for each in vars(cls) if not each.startswith("_")} <= set(facts["classes"][name]), name


@pytest.mark.parametrize(
    ("version", "precision", "types", "strong", "flags"),
    [
        ("8.5", "float32", NONE, False, ()),
        ("8.6", "float16", frozenset({"float16"}), False, ("FP16",)),
        ("8.6", "float32", frozenset({"float16"}), False, ("FP16",)),
        ("8.6", "int8", frozenset({"quantised"}), False, ("INT8",)),
        ("8.6", "int8", frozenset({"quantised", "float16"}), False, ("FP16", "INT8")),
        ("10.13", "float32", NONE, True, ()),
        ("10.13", "float16", frozenset({"float16"}), True, ()),
        ("10.13", "int8", frozenset({"quantised"}), True, ()),
        ("10.13", "bfloat16", NONE, False, ("BF16",)),
        ("10.13", "bfloat16", frozenset({"float16"}), False, ("BF16", "FP16")),
        ("10.13", "bfloat16", frozenset({"bfloat16"}), True, ()),
        ("11.4", "float32", NONE, True, ()),
        ("11.4", "float16", frozenset({"float16"}), True, ()),
        ("11.4", "int8", frozenset({"quantised"}), True, ()),
        ("11.4", "bfloat16", frozenset({"bfloat16"}), True, ()),
    ],
)
def test_types_come_from_the_graph_or_from_flags(tensorrt, version, precision, types, strong, flags):
    trt = tensorrt(version)
    typing = versions.choose_typing(trt, Gpu(precision=precision), types, HOPPER)
    assert typing == Typing(strong=strong, flags=flags)
    assert set(flags) <= set(trt.BuilderFlag.__members__)


@pytest.mark.parametrize(
    ("version", "capability", "words"),
    [
        ("8.6", HOPPER, r"TensorRT 8\.6\.0\.1 has no bfloat16; set gpu\.precision = 'float16', or use TensorRT 10"),
        ("11.4", HOPPER, r"TensorRT 11\.4\.0\.1 takes types from the graph, and this one holds no bfloat16"),
        ("10.13", TURING, r"this GPU, of compute capability 7\.5, has no bfloat16; set gpu\.precision = 'float16'"),
        ("11.4", TURING, r"this GPU, of compute capability 7\.5, has no bfloat16"),
    ],
)
def test_bfloat16_is_refused_where_it_cannot_be_had(tensorrt, version, capability, words):
    with pytest.raises(InvalidModel, match=words):
        versions.choose_typing(tensorrt(version), Gpu(precision="bfloat16"), NONE, capability)


def test_a_library_that_is_too_old_is_refused():
    versions.check_version(types.SimpleNamespace(__version__="8.5.3.1"))
    versions.check_version(types.SimpleNamespace(__version__="10.0.1"))
    with pytest.raises(InvalidModel, match=r"TensorRT 8\.4\.3\.1 is installed, 8\.5 is the oldest"):
        versions.check_version(types.SimpleNamespace(__version__="8.4.3.1"))


@pytest.mark.parametrize(("version", "level"), [("8.5", 3), ("8.6", 5), ("11.4", 5)])
def test_effort_and_tf32_are_set_where_there_is_such_a_thing(tensorrt, version, level):
    trt = tensorrt(version)
    config = trt.IBuilderConfig()
    versions.set_flags(trt, config, Typing(strong=False), tf32=False, optimization_level=5)
    assert (config._flags, config._level) == (set(), level)
    versions.set_flags(trt, config, Typing(strong=False), tf32=True, optimization_level=5)
    assert config._flags == {"TF32"}


def told():
    said = []
    return said, Progress(said.append)


def test_nested_phases_add_up_and_never_fall_back():
    said, progress = told()
    progress.start("build", None, 4)
    progress.step("build", 0)
    progress.start("timing", "build", 10)
    for step in range(10):
        progress.step("timing", step)
    progress.finish("timing")
    progress.start("other", "build", 2)
    progress.step("other", 0)  # 0.25 + 0.125: less than was told
    progress.finish("other")
    for step in range(1, 4):
        progress.step("build", step)
    progress.finish("build")
    assert said == pytest.approx([0.25, *[0.25 + 0.025 * step for step in range(1, 11)], 0.75, 1.0])


def test_a_hundredth_is_the_least_that_is_told():
    said, progress = told()
    progress.start("build", None, 1000)
    for step in range(1000):
        progress.step("build", step)
    assert len(said) == 100


def test_a_phase_may_end_early_repeat_and_be_unknown():
    said, progress = told()
    progress.step("never began", 3)
    progress.finish("never began")
    progress.start("build", None, 0)
    progress.start("build", None, 2)
    progress.step("build", 7)
    progress.finish("build")
    progress.step("build", 0)
    assert said == [1.0]


@pytest.mark.parametrize("version", ["10.13", "11.4"])
def test_a_monitor_passes_on_what_the_builder_says_and_lets_it_go_on(tensorrt, version):
    said, progress = told()
    monitor = versions.make_monitor(tensorrt(version), progress)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is True
    monitor.phase_finish("build")
    assert said == [0.5]


def test_older_ones_have_no_monitor(tensorrt):
    assert versions.make_monitor(tensorrt("8.6"), None) is None
