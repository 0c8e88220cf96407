"""The real worker process on a pretend card: ONNX Runtime on CUDA, its answers, its refusals, and how it ends."""

import numpy as np
import pytest

from gpuworker.__main__ import Exit
from shm.heritage import DeviceGrant
from shm.wire import ItemStatus, Loaded, LoadFailed, Loading
from tests.support import graphs, pretend
from tests.support.worker_process import OK, SLOTS, spawning

pytestmark = pytest.mark.slow

CUDA = "CUDAExecutionProvider"


@pytest.fixture
def spawn(tmp_path):
    """Start a worker on the card; environment variables by name."""
    folder = tmp_path / "held"
    folder.mkdir()
    with spawning() as start:

        def on_card(*models, device="cuda:0", grant=None, **variables):
            environment = pretend.environment(folder, **variables)
            return start(*models, device=device, environment=environment, device_grant=grant)

        yield on_card


def filled(worker):
    rng = np.random.default_rng(17)
    for model in worker.models:
        model.pixels[:] = rng.integers(0, 256, model.pixels.shape, np.uint8)


def refusals(worker):
    return {message.model: message.detail for message in worker.born() if isinstance(message, LoadFailed)}


def events(log):
    return [line["event"] for line in log]


def test_ranked_and_raw_models_answer_as_on_the_cpu(spawn, tmp_path):
    with spawning() as start:
        models = (
            (graphs.contract(input="scale = 0.25"), graphs.save(graphs.means(), tmp_path / "a")),
            (graphs.contract(task="raw"), graphs.save(graphs.echo(["N", 3, 4, 4]), tmp_path / "b")),
        )
        ours, theirs = spawn(*models), start(*models)
        said = ours.born()
        loaded = {message.model: message for message in said if isinstance(message, Loaded)}
        expected = {message.model: message for message in theirs.born() if isinstance(message, Loaded)}
        assert {index: message.provider for index, message in loaded.items()} == {0: CUDA, 1: CUDA}
        assert {index: message.fields for index, message in loaded.items()} == {
            index: message.fields for index, message in expected.items()
        }
        assert said[-1].device == "Pretend GPU, 8 GiB"
        stages = [message.stage for message in said if isinstance(message, Loading) and message.model == 0]
        assert stages == ["session", *["warmup"] * 3, *["profile"] * 3]
        for worker in (ours, theirs):
            filled(worker)
            for size in (1, 2, 4):
                slots = list(range(SLOTS - size, SLOTS))
                for model in (0, 1):
                    assert worker.run(slots, size=size, model=model, top_k=3).statuses == [OK] * size
        for ours_model, theirs_model in zip(ours.models, theirs.models, strict=True):
            fields = loaded[ours_model.index]
            for name, array in theirs_model.outputs(fields).items():
                np.testing.assert_array_equal(ours_model.outputs(fields)[name], array)
        assert ours.end() == (0, [])


def test_a_model_that_cannot_be_recorded_serves_and_it_is_said(spawn, tmp_path):
    worker = spawn((graphs.contract(), graphs.save(graphs.means(), tmp_path)), PENSTOCK_PRETEND_CAPTURE_FAILS="901")
    worker.born()
    filled(worker)
    assert worker.run([2, 3], size=2).statuses == [OK, OK]
    code, log = worker.end()
    assert code == Exit.GATEWAY_GONE
    assert events(log) == ["cuda_graph_refused"] * 3
    assert "CUDA error 901" in log[0]["traceback"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PENSTOCK_PRETEND_NO_PROVIDER": "1"}, "ONNX Runtime uses CPUExecutionProvider"),
        (
            {"PENSTOCK_PRETEND_CPU_OPS": "GlobalAveragePool"},
            "CUDA has no kernels for these operators of the graph: GlobalAverage",
        ),
        ({"PENSTOCK_PRETEND_MEMORY": str((300 << 20) + 100)}, "there is not enough memory for this model"),
    ],
)
def test_what_cannot_run_on_the_card_is_refused(spawn, tmp_path, variables, said):
    worker = spawn((graphs.contract(), graphs.save(graphs.means(), tmp_path)), **variables)
    found = refusals(worker)
    assert said in found[0]
    assert worker.end()[0] == Exit.GATEWAY_GONE


def test_without_a_card_the_model_is_refused(spawn, tmp_path):
    worker = spawn((graphs.contract(), graphs.save(graphs.means(), tmp_path)), device="cuda:3")
    assert "no GPU is visible" in refusals(worker)[0]
    worker.end()


def test_the_grants_memory_is_a_limit(spawn, tmp_path):
    model = (graphs.contract(), graphs.save(graphs.means(), tmp_path))
    worker = spawn(model, grant=DeviceGrant(memory_size_max=1 << 10))
    assert refusals(worker)[0].startswith("there is not enough memory for this model")
    worker.end()


def test_memory_that_runs_out_fails_the_batch_and_not_the_worker(spawn, tmp_path):
    worker = spawn((graphs.contract(gpu="cuda_graph = false"), graphs.save(graphs.means(), tmp_path)))
    worker.born()
    filled(worker)
    full = tmp_path / "held" / "full"
    full.touch()
    assert worker.run([0, 1]).statuses == [ItemStatus.NO_MEMORY] * 2
    full.unlink()
    assert worker.run([0, 1]).statuses == [OK] * 2
    code, log = worker.end()
    assert (code, events(log)) == (Exit.GATEWAY_GONE, ["batch_failed"])
    assert "Failed to allocate memory for requested buffer of size" in log[0]["traceback"]


def test_a_broken_context_ends_the_worker_by_its_name(spawn, tmp_path):
    worker = spawn((graphs.contract(), graphs.save(graphs.bounded(100), tmp_path)))
    worker.born()
    worker.models[0].pixels[:] = 7
    assert worker.run([0]).statuses == [OK]
    worker.models[0].pixels[0] = 200
    assert worker.run([0, 1]).statuses == [ItemStatus.DEVICE_LOST] * 2
    assert worker.child.wait(30) == Exit.DEVICE_LOST
    code, log = worker.end()
    assert (code, events(log)) == (Exit.DEVICE_LOST, ["batch_failed", "device_lost"])
    assert "CUDA error 719" in log[0]["traceback"]
