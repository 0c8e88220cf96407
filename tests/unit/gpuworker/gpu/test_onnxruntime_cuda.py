"""ONNX Runtime on a (pretend) card: the CPU's answers, what is refused in which words, and what cannot be recorded."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from gateway.errors import InvalidModel
from gpuworker import backend as backends
from gpuworker.backend import DeviceLost, Setup
from gpuworker.device import Device
from gpuworker.gpu import onnxruntime_cuda
from gpuworker.gpu.card import Card
from gpuworker.gpu.onnxruntime_cuda import PROVIDER, SHAPE_OPERATORS, OnnxRuntimeCudaBackend, on_the_cpu
from shm.heritage import DeviceGrant
from tests.support import graphs, pretend

RNG = np.random.default_rng(3)
CUDA = Setup(Device("cuda", "0"), 1)


@pytest.fixture
def card(monkeypatch):
    found = pretend.in_process(monkeypatch)
    pretend.onnxruntime(monkeypatch)
    return found


def quiet(stage, share):
    pass


def opened(contract, directory, setup=CUDA):
    backend = backends.open_backend(contract, directory, setup)
    backend.load(quiet)
    for size in contract.batching.sizes:
        backend.warmup(size)
    return backend


def refusal(contract, directory, setup=CUDA):
    with pytest.raises(InvalidModel) as caught:
        opened(contract, directory, setup)
    return str(caught.value)


def answers(backend, images, size):
    for row, image in zip(backend.staging(size), images, strict=False):
        row[:] = image.reshape(-1)
    return {name: array.copy() for name, array in backend.run(size, len(images)).arrays.items()}


def images(count):
    return RNG.integers(0, 256, (count, 4, 4, 3), np.uint8)


@pytest.mark.parametrize("graph", ["true", "false"])
@pytest.mark.parametrize("task", ["classification", "raw"])
def test_the_answers_are_the_cpus(card, tmp_path, capfd, task, graph):
    contract = graphs.contract(task=task, input="scale = 0.5\nmean = [1, 2, 3]", gpu=f"cuda_graph = {graph}")
    model = graphs.means() if task == "classification" else graphs.echo(["N", 3, 4, 4])
    directory = graphs.save(model, tmp_path)
    ours = opened(contract, directory)
    assert isinstance(ours, OnnxRuntimeCudaBackend)
    theirs = opened(contract, directory, Setup(Device("cpu"), 1))
    assert ours.fields == theirs.fields
    assert ours.provider == PROVIDER
    assert set(ours.graphs) == ({1, 2, 4} if graph == "true" else set())
    for size in (1, 2, 4, 4):
        batch = images(size)
        np.testing.assert_array_equal(answers(ours, batch, size)["y"], answers(theirs, batch, size)["y"])
    assert capfd.readouterr() == ("", ""), "preloading prints"
    ours.close()
    del ours
    assert not card.device, "the session's memory too"


def test_a_batch_is_begun_while_another_one_is_under_way(card, tmp_path, monkeypatch):
    backend = opened(graphs.contract(), graphs.save(graphs.means(), tmp_path))
    monkeypatch.setenv("PENSTOCK_PRETEND_COPY_MS", "2")
    for _ in range(5):
        batches = [images(4), images(4)]
        for batch in batches:
            for row, image in zip(backend.staging(4), batch, strict=True):
                row[:] = image.reshape(-1)
            backend.start(4, 4)
        for batch in batches:
            np.testing.assert_allclose(backend.finish().arrays["y"], batch.mean(axis=(1, 2)), rtol=1e-6)


def test_the_session_is_opened_with_these_settings(card, tmp_path, monkeypatch):
    seen = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: (seen.append((a, k)), real(*a, **k))[1])
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info", None, raising=False)
    grant = DeviceGrant(memory_size_max=1 << 30)
    opened(graphs.contract(gpu="tf32 = false"), graphs.save(graphs.means(), tmp_path), CUDA._replace(grant=grant))
    ((_, options), how) = seen[0]
    ((provider, settings),) = how["providers"]
    assert provider == PROVIDER
    assert settings == {
        "device_id": "0",
        "user_compute_stream": str(Card.open().compute.address),
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": str(1 << 30),
        "use_tf32": "0",
        "enable_cuda_graph": "0",
    }
    assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    opened(graphs.contract(), graphs.save(graphs.means(), tmp_path))
    ((_, settings),) = seen[1][1]["providers"]
    assert settings["use_tf32"] == "1"
    assert 1 << 30 < int(settings["gpu_mem_limit"]) < 8 << 30, "what was free"


def test_a_run_that_waits_cannot_be_recorded_and_is_run_without(card, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(onnxruntime.RunOptions, "add_run_config_entry", lambda *_: None)
    backend = opened(graphs.contract(), graphs.save(graphs.means(), tmp_path))
    assert not backend.graphs
    said = capfd.readouterr().err
    assert said.count("cuda_graph_refused") == 3
    assert "operation not permitted when stream is capturing" in said
    batch = images(2)
    np.testing.assert_allclose(answers(backend, batch, 2)["y"], batch.mean(axis=(1, 2)), rtol=1e-6)


def test_a_provider_that_does_not_load_is_refused_by_what_is_missing(card, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_PRETEND_NO_PROVIDER", "1")
    monkeypatch.setattr(onnxruntime_cuda, "cuda_provider_problem", lambda: "libx.so is not here; install it")
    assert refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path)) == (
        "CUDAExecutionProvider was asked for, ONNX Runtime uses CPUExecutionProvider; libx.so is not here; install it;"
        " see `penstock doctor`"
    )


def test_a_driver_that_is_too_old_for_onnxruntime_alone_is_not_the_graphs_fault(card, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError(
            'Failed to parse provider option "device_id": CUDA failure 35: CUDA driver version is insufficient for CUDA'
            " runtime version ; GPU=-1 ; expr=cudaGetDeviceCount(&num_devices);"
        )

    monkeypatch.setattr(onnxruntime.InferenceSession, "__new__", fails)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    assert refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path)) == (
        f"ONNX Runtime {onnxruntime.__version__}, built for CUDA 13.0, cannot use the GPU: the NVIDIA driver is older"
        " than this CUDA needs, or there is none; install or upgrade it, and in a container start it with --gpus; see"
        " `penstock doctor`"
    )


def test_a_graph_that_onnxruntime_does_not_take_is_refused_as_on_the_cpu(card, tmp_path):
    model = graphs.means()
    model.graph.node[0].attribute.add(name="nonsense", i=1, type=2)
    assert refusal(graphs.contract(), graphs.save(model, tmp_path)) == (
        f"ONNX Runtime {onnxruntime.__version__} does not take this graph; check that it is valid and that its opset is"
        " not too new; its own words are in the log"
    )


def test_the_cpus_package_is_refused_by_its_name(card, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path)) == (
        f"ONNX Runtime has no CUDA here: onnxruntime {onnxruntime.__version__} is the build for CPUs only; uninstall"
        " it, then install penstock[gpu]; see `penstock doctor`"
    )


def test_a_library_that_cannot_say_what_runs_where_is_refused(card, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", type("Old", (), {}))
    assert refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path)) == (
        f"onnxruntime-gpu {onnxruntime.__version__} is too old for this worker; install penstock[gpu]"
    )


def test_operators_on_the_cpu_are_refused_by_name_unless_allowed(card, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PENSTOCK_PRETEND_CPU_OPS", "GlobalAveragePool")
    model = graphs.means()
    model.graph.node[0].name = "pool"
    directory = graphs.save(model, tmp_path)
    assert refusal(graphs.contract(), directory) == (
        "CUDA has no kernels for these operators of the graph: GlobalAveragePool ('pool'); the CPU would run them and"
        " the rest wait for it: export the graph without them, or allow it with gpu.cpu_nodes = true"
    )
    opened(graphs.contract(gpu="cpu_nodes = true"), directory)
    assert '"operators":"GlobalAveragePool (\'pool\')"' in capfd.readouterr().err


def part(provider, *nodes):
    found = [type("Node", (), {"op_type": kind, "name": name, "domain": domain})() for kind, name, domain in nodes]
    return type("Part", (), {"ep_name": provider, "get_nodes": lambda self: found})()


def test_arithmetic_of_shapes_may_be_on_the_cpu():
    on_card = part(PROVIDER, ("Conv", "c", ""), ("NonMaxSuppression", "n", ""))
    shapes = part("CPUExecutionProvider", *((kind, "x", "") for kind in SHAPE_OPERATORS))
    assert on_the_cpu([on_card, shapes]) == ""
    assert on_the_cpu([part("CPUExecutionProvider", ("Gather", "g", "com.microsoft"))]) == "Gather ('g')"


def test_many_operators_are_told_in_few_words():
    nodes = [(f"Op{kind}", f"n{number}" if kind else "", "") for kind in range(7) for number in range(7)]
    said = on_the_cpu([part("CPUExecutionProvider", *nodes, ("Zero", "", ""))])
    assert said.startswith("Op0 (7 without a name), Op1 ('n0', 'n1', 'n2', 'n3', 'n4' and 2 more), Op2 (")
    assert said.endswith("and 2 more) and 3 more")
    assert on_the_cpu([part("CPUExecutionProvider", ("Zero", "", ""))]) == "Zero (without a name)"


def test_a_graph_of_other_shapes_at_other_sizes_is_refused(card, tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
        helper.make_node("Concat", ["s", "s"], ["both"], axis=0),
        helper.make_node("ConstantOfShape", ["both"], ["y"]),
    ]
    floats = TensorProto.FLOAT
    model = graphs.draw(nodes, {"x": (floats, ["N", 3, 4, 4])}, {"y": (floats, ["N", None])})
    message = refusal(graphs.contract(task="raw"), graphs.save(model, tmp_path))
    assert message == (
        "the graph's output 'y' is [1, 1] for a batch of 1, where [1, 4] follows from other sizes; export it with fixed"
        " axes but for the first, or set batching.sizes = [1]"
    )


def test_float16_is_computed_and_float32_comes_out(card, tmp_path):
    contract = graphs.contract(task="raw", input="scale = 0.1", gpu='precision = "float16"')
    backend = opened(contract, graphs.save(graphs.echo(["N", 3, 4, 4]), tmp_path))
    assert backend.fields[0].dtype == "float32"
    batch = images(2)
    expected = (batch.transpose(0, 3, 1, 2) * np.float32(0.1)).astype(np.float16)
    found = answers(backend, batch, 2)["y"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_weights_beside_the_graph_are_made_float16_too(card, tmp_path):
    directory = graphs.save(graphs.external_means(tmp_path), tmp_path)
    contract = graphs.contract(task="raw", gpu='precision = "float16"')
    batch = images(2)
    found = answers(opened(contract, directory), batch, 2)["y"]
    np.testing.assert_allclose(found, batch.mean(axis=(1, 2)) * 2, rtol=2e-3)
    contract = graphs.contract(task="raw")
    found = answers(opened(contract, directory), batch, 2)["y"]
    np.testing.assert_allclose(found, batch.mean(axis=(1, 2)) * 2, rtol=1e-5)


def test_a_size_that_does_not_fit_leaves_those_that_do(card, tmp_path):
    contract = graphs.contract()
    grant = DeviceGrant(memory_size_max=(3 << 20) + 4096)
    backend = backends.open_backend(contract, graphs.save(graphs.means(), tmp_path), CUDA._replace(grant=grant))
    backend.load(quiet)
    for size in (1, 2):
        backend.warmup(size)
        batch = images(size)
        np.testing.assert_allclose(answers(backend, batch, size)["y"], batch.mean(axis=(1, 2)), rtol=1e-6)
    with pytest.raises(MemoryError):
        backend.warmup(4)


def test_a_card_that_is_full_is_out_of_memory_at_load(card, tmp_path, monkeypatch):
    directory = graphs.save(graphs.means(), tmp_path)
    grant = DeviceGrant(memory_size_max=2 << 20)
    with pytest.raises(MemoryError, match="Failed to allocate memory for requested buffer"):
        opened(graphs.contract(), directory, CUDA._replace(grant=grant))
    monkeypatch.setenv("PENSTOCK_PRETEND_MEMORY", str((300 << 20) + 8))
    with pytest.raises(MemoryError, match="CUDA failure 2"):
        opened(graphs.contract(), graphs.save(graphs.external_means(tmp_path), tmp_path))


def test_memory_that_is_gone_in_a_run_is_said_and_the_next_run_is_good(card, tmp_path):
    backend = opened(graphs.contract(gpu="cuda_graph = false"), graphs.save(graphs.means(), tmp_path))
    session = backend._runner._session
    held, session._batch, session._limit = session._batch, 0, 0
    with pytest.raises(MemoryError, match="Failed to allocate memory for requested buffer of size"):
        answers(backend, images(4), 4)
    session._batch = held
    batch = images(4)
    np.testing.assert_allclose(answers(backend, batch, 4)["y"], batch.mean(axis=(1, 2)), rtol=1e-6)


def test_a_kernel_that_faults_loses_the_device(card, tmp_path):
    backend = opened(graphs.contract(), graphs.save(graphs.bounded(100), tmp_path))
    with pytest.raises(DeviceLost, match="CUDA error 719"):
        answers(backend, np.full((1, 4, 4, 3), 200, np.uint8), 1)
    backend.close()


def test_a_size_that_fails_with_the_librarys_own_words_is_refused(card, tmp_path, monkeypatch):
    runner = onnxruntime_cuda.OnnxRuntimeRunner
    real = runner.enqueue

    def fails(self, size):
        if size == 2:
            raise RuntimeError("no such algorithm")
        real(self, size)

    monkeypatch.setattr(runner, "enqueue", fails)
    message = refusal(graphs.contract(), graphs.save(graphs.means(), tmp_path))
    assert message == "ONNX Runtime fails on a batch of 2 with buffers of its own size"
